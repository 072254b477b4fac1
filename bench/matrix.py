"""Which architectures, losses, penalties and tricks go together, as the catalogue knows it: docs/matrix.md.

.venv/bin/python bench/matrix.py            prints it
.venv/bin/python bench/matrix.py --write    brings docs/matrix.md up to date
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from training import catalog
from training.contract import TrainConfig
from training.game import Architecture
from training.losses import AdversarialLoss

FILE = Path(__file__).parent.parent / "docs" / "matrix.md"
TRICKS = ("spectral_norm", "diff_augment")
Part = type[Architecture] | type[AdversarialLoss]

HEAD = """\
# What goes together

Made from the catalogue by `bench/matrix.py --write`, and a test holds it to that.

- yes: can be trained. **yes**: what is trained where nothing else is said. A number: refused before any work, for the reason below.
- A combination of several parts can be trained where no two of them refuse each other.
- Beside a penalty (that of wasserstein-gp too) a discriminator's norms over the batch become norms over each image by itself; under
  spectral norm they are left out.
"""


def document() -> str:
    """The whole page, Markdown."""
    architectures, losses = list(catalog.architectures().values()), list(catalog.losses().values())
    added = [*catalog.penalties(), *TRICKS]
    reasons: list[str] = []
    sections = [
        HEAD,
        "## Architectures and losses\n",
        *table("architecture", architectures, [loss.key for loss in losses], reasons),
        "\n## Architectures, penalties and tricks\n",
        *table("architecture", architectures, added, reasons),
        "\n## Losses, penalties and tricks\n",
        *table("loss", losses, added, reasons),
        "\n## Reasons\n",
        *(f"{number}. {reason}." for number, reason in enumerate(reasons, start=1)),
    ]
    return "\n".join(sections) + "\n"


def table(head: str, parts: Sequence[Part], others: Sequence[str], reasons: list[str]) -> list[str]:
    """Lines of Markdown; a reason that is new is added to the reasons."""
    rows = [f"| {part.key} | {' | '.join(cell(part, other, reasons) for other in others)} |" for part in parts]
    return [f"| {head} | {' | '.join(others)} |", "|---" * (len(others) + 1) + "|", *rows]


def cell(part: Part, other: str, reasons: list[str]) -> str:
    if other not in part.refused:
        return "**yes**" if is_default(part, other) else "yes"
    reason = f"`{other}`: {part.refused[other]}"
    if reason not in reasons:
        reasons.append(reason)
    return str(reasons.index(reason) + 1)


def is_default(part: Part, other: str) -> bool:
    """Whether a run that is given the part alone has the other."""
    field = "architecture" if issubclass(part, Architecture) else "loss"
    config = TrainConfig.model_validate({**part.recipe, field: part.key})
    return other in (config.loss, config.penalty) or (other in TRICKS and bool(getattr(config, other)))


def main() -> None:
    if sys.argv[1:] not in ([], ["--write"]):
        sys.exit(f"{' '.join(sys.argv[1:])} is unknown; --write, or nothing, is allowed")
    if sys.argv[1:]:
        FILE.write_text(document(), encoding="utf-8")
    else:
        print(document(), end="")


if __name__ == "__main__":
    main()
