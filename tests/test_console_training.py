"""`ganserve train`: the bar, the lines, Ctrl-C, and going on."""

import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from consoles import SECONDS, Console, Terminal
from servers import GANSERVE

from training.contract import TrainConfig
from training.files import runs

pytest_plugins = ["console_fixtures"]
TINY = [
    *("--architecture", "mlp", "--options.generator-widths", "[8]", "--options.discriminator-widths", "[8]", "--options.latent-size", "4"),
    *("--num-evaluated", "0"),
]


@dataclass(frozen=True)
class Interrupted:
    """A run that was begun on a terminal and ended by Ctrl-C."""

    folder: Path
    state: list[str]
    shown: str
    code: int


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    folder = tmp_path_factory.mktemp("interrupted")
    state = ["--state", str(folder / "state"), "--models", str(folder / "models"), "--device", "cpu"]
    # batches of 2 make a run of minutes on any machine
    terminal = Terminal(
        "train", "--name", "tiny", *TINY, "--batch-size", "2", "--total-images", "200000", "--run-dir", str(folder / "run"), *state
    )
    terminal.read_until(r"[\d,]+ of 200,000 images +[\d,]+ images/s +losses D [\d.]+ G [\d.]+ +[\d:]+ left")
    terminal.process.send_signal(signal.SIGINT)
    code = terminal.read_to_the_end()
    return Interrupted(folder / "run", state, terminal.text, code)


def test_a_terminal_shows_a_bar_with_images_speed_losses_and_time_left(interrupted: Interrupted) -> None:
    assert re.search(
        r"[━╸╺]{10}.* \d+% +[\d,]+ of 200,000 images +[\d,]+ images/s +losses D [\d.]+ G [\d.]+ +\d+:\d\d left", interrupted.shown
    )


def test_ctrl_c_says_how_to_go_on_and_is_130(interrupted: Interrupted) -> None:
    assert interrupted.code == 130
    assert "Traceback" not in interrupted.shown
    said = " ".join(interrupted.shown.split())
    match = re.search(r"stopped after ([\d,]+) of 200,000 images; it goes on from there: ganserve train --resume (\S+)", said)
    assert match is not None, said
    assert match[2] == str(interrupted.folder)
    status = runs.read_status(interrupted.folder)
    assert status.state == "queued"
    assert f"{status.progress.images:,}" == match[1]
    assert [int(path.name) for path in (interrupted.folder / runs.CHECKPOINTS).iterdir() if path.name.isdecimal()] == [
        status.progress.images
    ]


def test_a_run_takes_no_other_config_and_no_second_beginning(interrupted: Interrupted, console: Console) -> None:
    for words in (["--seed", "3"], ["--batch-size", "2"], ["--generator.learning-rate", "0.1"], ["--run-dir", "elsewhere"]):
        sentence = console.refused("train", "--resume", interrupted.folder, *words)
        assert "--resume goes on with a run as it was begun" in sentence
    assert "choose another --run-dir, or go on with it by --resume" in console.refused("train", "--run-dir", interrupted.folder)


def test_resume_goes_on_to_the_end_with_lines_where_there_is_no_terminal(interrupted: Interrupted, console: Console) -> None:
    images = runs.read_status(interrupted.folder).progress.images
    config = runs.read_config(interrupted.folder)
    rest = config.model_copy(update={"total_images": images + 3000})  # the whole would take minutes
    (interrupted.folder / runs.CONFIG).write_text(rest.model_dump_json())
    words = ["train", "--resume", str(interrupted.folder), *interrupted.state]
    finished = subprocess.run([GANSERVE, *words], capture_output=True, text=True, check=False, timeout=SECONDS)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "published as tiny version 1\n"
    first, *lines = finished.stderr.splitlines()
    assert first == f"run directory: {interrupted.folder}"
    assert lines
    for line in lines:
        assert re.fullmatch(r" *\d+%  [\d,]+ of [\d,]+ images  [\d,]+ images/s  losses D [\d.]+ G [\d.]+  \d+:\d\d left", line), line
    assert f"going on from the checkpoint at {images:,} images" in (interrupted.folder / runs.LOG).read_text()
    assert console.refused(*words) == f"{interrupted.folder} is finished: published as tiny version 1"


def test_a_damaged_run_is_refused(console: Console, tmp_path: Path) -> None:
    for name in (runs.CONFIG, runs.STATUS):
        runs.create(tmp_path / name, TrainConfig(), runs.new_id())
        (tmp_path / name / name).write_bytes(b"{")
        assert "is damaged: its config.json or status.json cannot be read" in console.refused("train", "--resume", tmp_path / name)


def test_a_run_that_fails_says_why_and_where_its_log_is(console: Console, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mlp-fashion-mnist-10k").write_text("a file where the model's folder should be")
    said = console("train", *TINY, "--total-images", "640", "--run-dir", "run", "--device", "cpu")
    assert said.code == 1
    assert re.fullmatch(r"run directory: run\n(.*%.*\n)*ganserve: .*\(the whole log: run/log.txt\)\n", said.err), said.err
    assert runs.read_status(Path("run")).state == "failed"


def test_a_repository_that_cannot_be_published_into_is_told_before_the_training(console: Console, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the repository should be")
    assert console.refused("train", *TINY, "--run-dir", "run") == "--models models cannot be published into: File exists"
    assert not (tmp_path / "run").exists()
