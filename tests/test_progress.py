"""What a console prints of a run's findings, beside its bar or between its lines."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from ganserve.progress import Bar, Lines, tell
from training.contract import Finding, TrainConfig

FINDING = Finding(kind="memorising", images=49_152, message="[93 %] of the images are copies; " + "try more images " * 10)


def test_a_finding_is_one_line_with_its_kind_and_when() -> None:
    assert tell(FINDING).startswith("warning: memorising at 49,152 images: [93 %] of the images are copies; try more images")


def test_lines_have_it_between_them(capsys: pytest.CaptureFixture[str]) -> None:
    Lines().found(FINDING)
    assert capsys.readouterr().err == tell(FINDING) + "\n"


def test_a_bar_has_it_above_it_whole() -> None:
    written = io.StringIO()
    with Progress(console=Console(file=written, force_terminal=True, width=40)) as progress:
        bar = Bar(progress)
        bar.started(TrainConfig(), 0)
        bar.found(FINDING)
    assert tell(FINDING) in written.getvalue()
