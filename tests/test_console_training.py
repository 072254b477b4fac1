"""`ganserve train`: the bar, the lines, Ctrl-C, and going on."""

import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from consoles import SECONDS, Console, Terminal
from pydantic import JsonValue
from servers import GANSERVE

from training import estimate
from training.catalog import resolve
from training.commands import train_command
from training.contract import Finding, TrainConfig
from training.files import runs

pytest_plugins = ["console_fixtures"]
pytestmark = pytest.mark.usefixtures("torch_as_before")
TINY = [
    *("--architecture", "mlp", "--options.generator-widths", "[8]", "--options.discriminator-widths", "[8]", "--options.latent-size", "4"),
    *("--num-evaluated", "0"),
]

WIDTHS: dict[str, JsonValue] = {"generator_widths": [8], "discriminator_widths": [8], "latent_size": 4}  # the same


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
    state = ["--state", str(folder / "state"), "--models", str(folder / "models"), "--device", "cpu", "--threads", "1"]
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


def test_a_run_goes_on_as_it_was_begun_and_has_one_beginning(interrupted: Interrupted, console: Console) -> None:
    for words, sentence in (
        (["--seed", "3"], "seed: the run was begun with 0, not 3; leave seed out, or begin a new run"),
        (["--generator.learning-rate", "0.1"], "generator.learning_rate: the run was begun with 0.0002, not 0.1; leave learning_rate out"),
        (["--options.latent-size", "5"], "options.latent_size: the run was begun with"),
        (["--total-images", "1000"], "total_images: the run was begun for 200,000; give more, to train on, or leave total_images out"),
        (["--run-dir", "elsewhere"], "--resume names the run directory: leave out --run-dir"),
        (["--threads", "97"], "and goes on with it: leave --threads out"),
        (["--compile"], "the run was begun with --compile false, and goes on with it: leave --compile out"),
    ):
        assert sentence in console.refused("train", "--resume", interrupted.folder, *words)
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
    finished_as = f"{interrupted.folder} is finished: published as tiny version 1"
    assert console.refused(*words) == f"{finished_as}; to train on, give more than {images + 3000:,} --total-images"
    more = [*words, "--total-images", str(images + 4000), "--batch-size", "2"]
    again = subprocess.run([GANSERVE, *more], capture_output=True, text=True, check=False, timeout=SECONDS)
    assert again.stdout == "published as tiny version 2\n", again.stderr
    assert f"going on from the checkpoint at {images + 3000:,} images" in (interrupted.folder / runs.LOG).read_text()
    assert runs.read_status(interrupted.folder).progress.images == images + 4000


def test_a_damaged_run_is_refused(console: Console, tmp_path: Path) -> None:
    for name in (runs.CONFIG, runs.STATUS):
        runs.create(tmp_path / name, TrainConfig(), runs.new_id())
        (tmp_path / name / name).write_bytes(b"{")
        assert "is damaged: its config.json or status.json cannot be read" in console.refused("train", "--resume", tmp_path / name)


def test_what_would_come_to_the_same_end_is_not_begun_again(console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(kind: Literal["generator-collapsed", "not-finite"]) -> Path:
        folder = tmp_path / kind
        runs.create(folder, TrainConfig(on_collapse="stop", total_images=1000), runs.new_id())
        finding = Finding(kind=kind, images=600, message=f"{kind}, in a sentence")
        runs.write_status(folder, runs.read_status(folder).model_copy(update={"findings": (finding,)}))
        return folder

    said = console.refused("train", "--resume", found("generator-collapsed"), "--total-images", "2000")
    assert "ended because its generator collapsed and on_collapse is stop; trained on, it would end there again" in said
    lost = found("not-finite")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # torchrun's, to a team that has ended in failure
    runs.write_status(lost, runs.read_status(lost).model_copy(update={"state": "failed", "message": "weights are lost"}))
    told = console("train", "--resume", lost)
    assert (told.code, told.out) == (1, "")
    assert told.err.endswith(f"ganserve: weights are lost (the whole log: {lost / runs.LOG})\n")
    assert runs.read_status(lost).attempts == 0


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


# --- a dry run ----------------------------------------------------------------------------------------------------------------

CONVOLVED = [
    *("--architecture", "srgan", "--options.num-blocks", "1", "--options.generator-width", "4", "--options.discriminator-width", "2"),
    *("--options.content", "discriminator", "--options.pixel-phase", "0.5", "--critic-steps", "2", "--batch-size", "20"),
]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a dry run that measures three steps of each phase, and leaves the threads of the other tests alone."""
    monkeypatch.setattr(estimate, "MEASURED_SECONDS", 0.01)
    return ["--dry-run", "--device", "cpu", "--threads", str(torch.get_num_threads())]


def test_a_dry_run_says_what_a_run_would_take_and_leaves_nothing(console: Console, tmp_path: Path, quick: list[str]) -> None:
    said = console("train", *TINY, "--total-images", "640", "--checkpoint-images", "300", "--run-dir", "run", *quick)
    assert (said.code, said.err) == (0, "measuring some steps ...\n"), said
    command, _, data, _, head, generator, discriminator, _, *memory, _, steps_head, steps, _, counts, total = said.out.splitlines()
    config = resolve(TrainConfig(architecture="mlp", options=WIDTHS, total_images=640, checkpoint_images=300, num_evaluated=0), Path(), ())
    assert command == train_command(config)
    assert data == "fashion-mnist-10k: 10,000 images of 1x28x28, 9,000 to train on, 1,000 held out"
    assert head.split() == ["network", "parameters", "multiply-accumulates", "an", "image,", "forward"]
    assert generator.split() == ["generator", f"{4 * 8 + 8 + 8 * 784 + 784:,}", f"{4 * 8 + 8 * 784:,}"]
    assert discriminator.split() == ["discriminator", f"{784 * 8 + 8 + 8 + 1:,}", f"{784 * 8 + 8:,}"]
    assert [re.split(r"  +", line)[0] for line in memory] == [
        *("memory", "weights", "gradients", "Adam's two moments", "moving average", "data set", "peak")
    ]
    assert re.fullmatch(r"data set +7\.1  read from its file where it is half of the memory or more", memory[5])
    assert "median" in steps_head
    assert re.fullmatch(r"main +10 +64( +[\d.]+){4} +\d+ +0:00:00", steps), steps
    assert counts == "2 checkpoints and 1 grid of samples, whose time is not counted"
    assert total.startswith("in all about 0:00:00 (h:mm:ss) on cpu with ")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_tells_of_every_phase_and_of_evaluations(console: Console, quick: list[str]) -> None:
    evaluated = ["--num-evaluated", "6", "--extractor", "fashion-classifier", "--evaluation-images", "100"]
    out = console.done("train", *CONVOLVED, *evaluated, "--total-images", "480", *quick)
    assert re.search(r"^main, warm-up +12 +20 ", out, re.MULTILINE)
    assert re.search(r"^main +6 +40 ", out, re.MULTILINE)
    assert re.search(r"^4 evaluations on 6 images, about [\d.]+ s each, as two small ones tell$", out, re.MULTILINE)


def test_a_dry_run_refuses_what_a_run_refuses(console: Console, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").touch()
    for words, sentence in (
        (["--compile"], "--dry-run measures steps in the usual layout, not compiled"),
        (["--resume", "taken"], "--dry-run is of a run that is yet to begin: leave out --resume"),
        (["--run-dir", "taken"], "taken is there already: choose another --run-dir"),
        (["--models", "file"], "--models file cannot be published into: it is no folder"),
        (["--dataset", "no-such"], "dataset: there is no data set 'no-such'"),
        (["--loss", "no-such"], "loss: 'no-such' is unknown"),
        (["--device", "quantum"], "device 'quantum' is not to be had here"),
    ):
        assert sentence in console.refused("train", "--dry-run", *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]
