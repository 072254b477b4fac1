"""When a run points an alias at what it has published."""

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny_versions
from tiny_versions import write_manifest

from training.contract import DatasetCard, Manifest, PublishConfig, TrainConfig
from training.files import versions
from training.promotion import promote, refusals

ALWAYS = PublishConfig(alias="production")
KID = "kid_efficientnet_lite0"
Make = Callable[..., Manifest]


def where(metric: str, alias: str = "production", better_than: str = "production") -> PublishConfig:
    return PublishConfig.model_validate({"alias": alias, "if": {"metric": metric, "better_than": better_than}})


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Publishes `tiny` in a version, with metrics and what else its manifest is to say."""

    def make(version: int, dataset: str = "0" * 64, config: TrainConfig | None = None, **metrics: float) -> Manifest:
        shutil.rmtree(tmp_path / "models/tiny" / str(version), ignore_errors=True)
        made = tiny_versions.publish(tmp_path / "models", "tiny", tiny_versions.single(), version=version)
        card = DatasetCard.model_validate(made.dataset.model_dump() | {"content_sha256": dataset})
        changed = made.model_copy(update={"metrics": metrics, "dataset": card, "config": config or TrainConfig()})
        write_manifest(tmp_path / "models/tiny" / str(version), changed)
        return changed

    return make


def aliases(tmp_path: Path) -> dict[str, int]:
    return versions.read_aliases([tmp_path / "models"], "tiny")


def test_an_alias_is_pointed_and_done_again_it_comes_to_the_same(make: Make, tmp_path: Path) -> None:
    repositories = [tmp_path / "models"]
    first, second = make(1), make(2)
    assert promote(first, PublishConfig(), repositories) == ""
    assert aliases(tmp_path) == {}
    assert promote(first, ALWAYS, repositories) == "production is version 1 now"
    for _ in range(2):
        assert promote(second, ALWAYS, repositories) == "production is version 2 now"
        assert aliases(tmp_path) == {"production": 2, "previous": 1}


@pytest.mark.parametrize(("metric", "was", "better", "worse"), [("kid", 0.02, 0.01, 0.03), ("psnr", 20.0, 21.0, 20.0)])
def test_an_alias_moves_where_the_version_is_better(
    metric: str, was: float, better: float, worse: float, make: Make, tmp_path: Path
) -> None:
    key, repositories = {"kid": KID}.get(metric, metric), [tmp_path / "models"]
    intervals = {f"{KID}_low": -1.0, f"{KID}_high": 1.0, "psnr_baseline": 0.0}
    moved = [promote(make(n, **{key: value}, **intervals), where(metric), repositories) for n, value in ((1, was), (2, worse), (3, better))]
    assert moved[0] == "production is version 1 now", "it names nothing yet"
    assert moved[1].startswith(f"production stays as it was: {key} is {worse:g}, and {was:g} of version 1, which production names, where ")
    assert moved[2] == "production is version 3 now"
    again = promote(make(3, **{key: better}), where(metric), repositories)
    assert again == "production is version 3 now", "it is not compared with itself"


def test_another_alias_may_move_than_the_one_that_is_compared_with(make: Make, tmp_path: Path) -> None:
    assert promote(make(1, **{KID: 0.02}), ALWAYS, [tmp_path / "models"])
    assert promote(make(2, **{KID: 0.01}), where(KID, "candidate"), [tmp_path / "models"]) == "candidate is version 2 now"
    assert aliases(tmp_path) == {"production": 1, "candidate": 2}


def test_versions_that_cannot_be_compared_leave_the_alias_where_it_is_and_say_why(make: Make, tmp_path: Path) -> None:
    repositories = [tmp_path / "models"]
    promote(make(1, **{KID: 0.02}), ALWAYS, repositories)
    cannot = "production stays as it was: version 1, which production names, cannot be compared with: "
    assert promote(make(2, "1" * 64, **{KID: 0.01}), where("kid"), repositories) == (
        f"{cannot}it was measured on tiny-set, and this one on tiny-set, of other content"
    )
    assert promote(make(2, config=TrainConfig(num_evaluated=50), **{KID: 0.01}), where("kid"), repositories) == (
        f"{cannot}its num_evaluated is 1000, and this one's 50"
    )
    assert promote(make(2, kid_digits_classifier=0.01), where("kid"), repositories) == (
        f"{cannot}it has {KID}, and this one kid_digits_classifier"
    )
    assert promote(make(2, kid_digits_classifier=0.01), where("kid_digits_classifier"), repositories) == (
        f"{cannot}it has no kid_digits_classifier, and this one kid_digits_classifier"
    )
    (tmp_path / "models/tiny/1/manifest.json").write_text("{")
    assert promote(make(2, **{KID: 0.01}), where("kid"), repositories).endswith("has no manifest that can be read")
    assert aliases(tmp_path) == {"production": 1}


def test_what_a_run_cannot_do_is_refused_before_it_begins() -> None:
    def refused(alias: str | None = "a", metric: str | None = "kid", than: str = "a", *, of_pairs: bool = False, **more: object) -> str:
        asked = {"alias": alias, "if": None if metric is None else {"metric": metric, "better_than": than}}
        errors = refusals(TrainConfig.model_validate({"publish": asked} | more), of_pairs=of_pairs)
        return " ".join(f"{pointer}: {message}" for pointer, message in errors)

    assert refused() == refused(metric=KID) == refused(metric=None) == ""
    assert refused(metric="psnr", of_pairs=True) == refused(metric="modes", extractor="digits-classifier") == ""
    assert refused("3", None).startswith("/publish/alias: '3' cannot be pointed: ")
    assert refused("latest", None).startswith("/publish/alias: 'latest' cannot be pointed: ")
    assert refused(None).startswith("/publish/if: has no effect without an alias")
    assert refused(than="3").startswith("/publish/if/better_than: '3' is no alias: ")
    for metric in ("psnr", "modes", "kid_digits_classifier", "generator_loss", f"{KID}_low", "fid"):
        assert refused(metric=metric) == (
            f"/publish/if/metric: {metric!r} is nothing that this run will have;"
            " it will have: kid, fd, precision, recall, density, coverage"
        )
    assert refused(num_evaluated=0).endswith("it will have: none, as num_evaluated is 0")


def test_a_version_that_was_removed_meanwhile_leaves_the_alias_where_it_is(make: Make, tmp_path: Path) -> None:
    make(1)
    gone = make(2)
    versions.remove([tmp_path / "models"], gone.name, 2)
    said = promote(gone, ALWAYS, [tmp_path / "models"])
    assert said.startswith("production stays as it was: model 'tiny' has no version '2'")
    assert aliases(tmp_path) == {}


def test_an_alias_is_not_given_to_a_version_that_is_removed_while_it_waits_for_its_turn(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(1)
    name, lock = make(2).name, fcntl.flock

    def removed_before(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        versions.remove([tmp_path / "models"], name, 2)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", removed_before)
    with pytest.raises(LookupError, match="has no version '2'"):
        versions.write_alias([tmp_path / "models"], name, "best", 2)
    assert aliases(tmp_path) == {}


def test_of_two_runs_that_end_together_the_better_one_keeps_the_alias(make: Make, tmp_path: Path) -> None:
    repositories, condition = [tmp_path / "models"], where(KID)
    promote(make(1, **{KID: 0.03}), ALWAYS, repositories)
    best, second = make(2, **{KID: 0.01}), make(3, **{KID: 0.02})
    with ThreadPoolExecutor() as pool:
        folder = os.open(tmp_path / "models/tiny", os.O_RDONLY)
        fcntl.flock(folder, fcntl.LOCK_EX)  # as the run does that points the alias at the best one
        later = pool.submit(promote, second, condition, repositories)
        time.sleep(0.3)  # long enough to have compared already, where that is not done alone
        (tmp_path / "models/tiny" / versions.ALIASES).write_text(f'{{"production": {best.version}}}')
        os.close(folder)
    assert later.result().startswith(f"production stays as it was: {KID} is 0.02, and 0.01 of version 2")
    assert aliases(tmp_path) == {"production": 2}
