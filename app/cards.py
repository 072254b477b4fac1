"""A version's manifest as a page that people read: Markdown, as model hubs show it."""

import json
from collections.abc import Iterable, Sequence

from training.commands import train_command
from training.contract import Manifest, ModuleSpec, TensorSpec


def model_card(manifest: Manifest) -> str:
    """What it is, what it takes and gives, its data, recipe and figures, its files, and how to train it again."""
    name, data = manifest.name, manifest.dataset
    modules = {"generator": manifest.generator} | ({"discriminator": manifest.discriminator} if manifest.discriminator else {})
    modules |= manifest.parts
    classes = None if data.class_names is None else f"{len(data.class_names)}: {', '.join(data.class_names)}"
    sections = (
        f"# {_text(name)}, version {manifest.version}",
        f"![Samples of seeds 0 to 63](/models/{name}/{manifest.version}/samples.png)",
        f"`{manifest.architecture}` ({_text(manifest.source)}), trained on {_text(data.name)}. Published {manifest.created_at} by run"
        f" `{manifest.run}`, with torch {_text(manifest.torch_version)}.",
        "## What it takes and gives",
        _table(("module", "takes", "gives"), [(key, _tensors(spec.inputs), _tensors([spec.output])) for key, spec in modules.items()]),
        "## Data",
        _table(
            ("", ""),
            [
                ("set", data.name),
                ("images", f"{data.num_images:,} of {_shape(data.shape)}"),
                *([("sources", _shape(data.source_shape))] if data.source_shape else []),
                *([("classes", classes)] if classes else []),
                ("from", data.source),
                ("licence", data.licence),
                ("content, SHA-256", data.content_sha256),
                *([("left out", f"{len(data.skipped)} files")] if data.skipped else []),
            ],
        ),
        "## Figures",
        _table(("figure", "value"), [(key, _number(value)) for key, value in manifest.metrics.items()]),
        "## Recipe",
        "It is trained again by",
        f"```console\n$ {train_command(manifest.config)}\n```",
        "and with every default resolved:",
        f"```json\n{json.dumps(manifest.config.model_dump(mode='json'), indent=2)}\n```",
        "## Files",
        _table(("file", "bytes", "SHA-256"), _files(manifest, modules.values())),
    )
    return "\n\n".join(sections) + "\n"


def _files(manifest: Manifest, modules: Iterable[ModuleSpec]) -> list[tuple[str, str, str]]:
    files = [file for spec in modules for file in spec.files.values()] + [manifest.samples]
    return [(file.file, f"{file.size_bytes:,}", file.sha256) for file in files]


def _tensors(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} ({spec.kind}{f' {_shape(spec.shape)}' if spec.shape else ''})" for spec in specs)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:,.6g}"


def _shape(shape: Sequence[int]) -> str:
    return " x ".join("any" if side < 0 else str(side) for side in shape)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(_text(cell) for cell in cells)} |" for cells in lines)


def _text(text: str) -> str:
    """What somebody wrote, on one line and as it stands: no tag, link or column of it counts."""
    line = " ".join(text.split())
    return "".join(f"\\{sign}" if sign in r"\`*_[]<>|#" else sign for sign in line)
