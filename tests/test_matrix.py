"""docs/matrix.md is what the catalogue says, and what the catalogue says is what a config meets."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from training import catalog
from training.contract import TrainConfig

ROOT = Path(__file__).parent.parent
SCRIPT, PAGE = ROOT / "bench" / "matrix.py", ROOT / "docs" / "matrix.md"


def tables(page: str) -> dict[tuple[str, str], str]:
    """(row, column) -> cell, of all tables of a page."""
    cells: dict[tuple[str, str], str] = {}
    head: list[str] = []
    for line in page.splitlines():
        if not line.startswith("|"):
            head = []
            continue
        first, *rest = [word.strip() for word in line.strip("|").split("|")]
        if not head:
            head = rest
        elif first != "---":
            cells |= {(first, column): cell for column, cell in zip(head, rest, strict=True)}
    return cells


def run(name: str) -> object:
    return runpy.run_path(str(SCRIPT))[name]()


def refusal(row: str, column: str) -> str | None:
    """Why a config of the two is refused."""
    asked: dict[str, object] = {"architecture" if row in catalog.architectures() else "loss": row}
    if column in catalog.losses():
        asked["loss"] = column
    elif column in catalog.penalties():
        asked["penalty"] = column
    else:
        asked[column] = {"spectral_norm": True, "diff_augment": ["color"]}[column]
    try:
        catalog.build(TrainConfig.model_validate(asked))
    except catalog.ConfigError as error:
        ((_, message),) = error.errors
        return message.partition(": ")[2]
    return None


def test_the_page_is_what_the_catalogue_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == run("document"), "bring it up to date: .venv/bin/python bench/matrix.py --write"


def test_a_cell_has_a_number_exactly_where_a_config_is_refused_and_the_number_is_its_reason() -> None:
    page = str(run("document"))
    cells, reasons = tables(page), dict(re.findall(r"^(\d+)\. `[^`]+`: (.*)\.$", page, flags=re.MULTILINE))
    architectures, losses, added = len(catalog.architectures()), len(catalog.losses()), len(catalog.penalties()) + 2
    assert len(cells) == architectures * losses + (architectures + losses) * added
    for (row, column), cell in cells.items():
        assert refusal(row, column) == (None if "yes" in cell else reasons[cell]), (row, column)


def test_what_is_bold_is_what_is_trained_where_nothing_else_is_said() -> None:
    cells = tables(str(run("document")))
    for key in catalog.architectures():
        bold = {column for (row, column), cell in cells.items() if row == key and cell == "**yes**"}
        recipe = TrainConfig.model_validate(catalog.architectures()[key].recipe)
        assert bold - {"spectral_norm", "diff_augment"} == {recipe.loss, recipe.penalty} - {"none"}


def test_the_command_prints_the_page_and_knows_no_other_word(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["matrix.py"])
    run("main")
    assert capsys.readouterr().out == run("document")
    monkeypatch.setattr(sys, "argv", ["matrix.py", "--save"])
    with pytest.raises(SystemExit, match=r"^--save is unknown; --write, or nothing, is allowed$"):
        run("main")
