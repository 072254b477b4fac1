"""What a run does with an alias once its version is published: it points the alias there, always or where the version is the better one.

A measure counts where two versions can be compared: of the same extractor, on the same held-out images, of as many generated ones.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from training.contract import Manifest, PublishConfig, TrainConfig
from training.files import versions

# what each measure is better in; of a measure of features, the manifest's name goes on with the extractor's
BETTER: Mapping[str, Literal["lower", "higher"]] = {
    "kid": "lower",
    "fd": "lower",
    "fid": "lower",
    "mode_divergence": "lower",
    "precision": "higher",
    "recall": "higher",
    "density": "higher",
    "coverage": "higher",
    "modes": "higher",
    "psnr": "higher",
    "ssim": "higher",
}
OF_PAIRS, OF_CLASSES = frozenset({"psnr", "ssim"}), frozenset({"modes", "mode_divergence"})


def refusals(config: TrainConfig, *, of_pairs: bool) -> list[tuple[str, str]]:
    """What of `publish` cannot be done by such a run: pointer and sentence.

    Args:
        of_pairs: each image has its own target.
    """
    asked, errors = config.publish, list[tuple[str, str]]()
    if asked.alias is not None and not versions.may_be_pointed(asked.alias):
        errors.append(("/publish/alias", f"{asked.alias!r} cannot be pointed: {versions.ALIAS_RULE}"))
    if asked.condition is None:
        return errors
    if asked.alias is None:
        errors.append(("/publish/if", "has no effect without an alias to point; give publish.alias, or leave if out"))
    if not versions.may_be_pointed(asked.condition.better_than):
        errors.append(("/publish/if/better_than", f"{asked.condition.better_than!r} is no alias: {versions.ALIAS_RULE}"))
    known = {} if not config.num_evaluated else _measures(config, of_pairs=of_pairs)
    if asked.condition.metric not in known.keys() | known.values():
        there = ", ".join(known.values()) or "none, as num_evaluated is 0"
        errors.append(("/publish/if/metric", f"{asked.condition.metric!r} is nothing that this run will have; it will have: {there}"))
    return errors


def _measures(config: TrainConfig, *, of_pairs: bool) -> dict[str, str]:
    """The whole and the short name of each measure that a run of this config has."""
    suffix = config.extractor.replace("-", "_")
    without = frozenset({"fid"} if config.extractor != "inception-v3" else ())
    without |= frozenset() if of_pairs else OF_PAIRS
    without |= frozenset() if config.extractor.endswith("-classifier") else OF_CLASSES
    return {name if name in OF_PAIRS | {"fid"} else f"{name}_{suffix}": name for name in BETTER if name not in without}


def promote(manifest: Manifest, asked: PublishConfig, repositories: Sequence[Path]) -> str:
    """Point the alias at the version where that is to be done; done again, it comes to the same.

    Returns:
        What was done, or not done, and why: the rest of a sentence; empty where nothing was asked.

    Raises:
        OSError: the aliases cannot be written.
    """
    if asked.alias is None:
        return ""

    def against(aliases: Mapping[str, int]) -> str:
        """Of two runs that end together, the second is compared with what the first has pointed the alias at."""
        return "" if aliases.get(asked.alias or "") == manifest.version else _reason_against(manifest, asked, aliases, repositories)

    try:
        versions.write_alias(repositories, manifest.name, asked.alias, manifest.version, against=against)
    except (LookupError, ValueError) as error:  # not the better one, or removed meanwhile: the run is not lost for it
        return f"{asked.alias} stays as it was: {error.args[0]}"
    return f"{asked.alias} is version {manifest.version} now"


def _reason_against(manifest: Manifest, asked: PublishConfig, pointers: Mapping[str, int], repositories: Sequence[Path]) -> str:
    """Why the alias is not to be pointed; empty where it is."""
    known = versions.versions(repositories, manifest.name)
    if asked.condition is None or (number := pointers.get(asked.condition.better_than, 0)) not in known:
        return ""
    what = f"version {number}, which {asked.condition.better_than} names,"
    try:
        other = Manifest.model_validate_json((known[number] / versions.MANIFEST).read_bytes())
    except (OSError, ValueError):
        return f"{what} has no manifest that can be read"
    if reason := _incomparable(manifest, other):
        return f"{what} cannot be compared with: {reason}"
    return _not_better(_value(manifest, asked.condition.metric), _value(other, asked.condition.metric), asked.condition.metric, what)


def _not_better(ours: tuple[str, float] | None, theirs: tuple[str, float] | None, metric: str, what: str) -> str:
    if ours is None or theirs is None or ours[0] != theirs[0]:
        names = [f"no {metric}" if each is None else each[0] for each in (theirs, ours)]
        return f"{what} cannot be compared with: it has {names[0]}, and this one {names[1]}"
    (key, mine), (_, other) = ours, theirs
    better = BETTER[_short(key)]
    is_better = mine < other if better == "lower" else mine > other
    return "" if is_better else f"{key} is {mine:.6g}, and {other:.6g} of {what} where {better} is better"


def _incomparable(first: Manifest, second: Manifest) -> str:
    """Why measures of two versions do not compare; empty where they do."""
    if first.dataset.content_sha256 != second.dataset.content_sha256:
        return f"it was measured on {second.dataset.name}, and this one on {first.dataset.name}, of other content"
    for field in ("hold_out", "num_evaluated"):
        ours, theirs = getattr(first.config, field), getattr(second.config, field)
        if ours != theirs:
            return f"its {field} is {theirs:g}, and this one's {ours:g}"
    return ""


def _value(manifest: Manifest, metric: str) -> tuple[str, float] | None:
    """A measure by its whole or its short name."""
    found = [key for key in manifest.metrics if metric in (key, _short(key)) and _short(key) in BETTER]
    return (found[0], manifest.metrics[found[0]]) if len(found) == 1 and math.isfinite(manifest.metrics[found[0]]) else None


def _short(key: str) -> str:
    """`kid` of `kid_efficientnet_lite0`; the key itself where it is none of ours. The ends of an interval are no measure."""
    if key.endswith(("_low", "_high", "_baseline")):
        return key
    return next((name for name in sorted(BETTER, key=len, reverse=True) if key == name or key.startswith(f"{name}_")), key)
