"""Two processes, started as torchrun starts them, against one; on this machine alone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import team_member
import torch
from starting_weights import publish_with_weights
from torch import Tensor

from ganserve.training import _in_team
from training import export
from training.contract import TrainConfig, UserError
from training.files import runs
from training.game import Round
from training.preparation import Places
from training.run import Listener
from training.submission import find_version
from training.team import ALONE, Team
from training.worker import work

MakeConfig = Callable[..., TrainConfig]
pytestmark = pytest.mark.usefixtures("torch_as_before")
STEPS = 50
TOLERANCE = 2e-3  # of a weight's own size, after 50 steps of Adam: sums of halves are rounded otherwise than whole ones
CONFIGS: tuple[dict[str, Any], ...] = (
    {"architecture": "mlp", "options": {"latent_size": 4, "generator_widths": [8], "discriminator_widths": [8], "dropout": 0.0}},
    {"architecture": "dcgan"},  # batch norm in both networks
    {"architecture": "dcgan", "loss": "relativistic", "penalty": "r1-r2", "critic_steps": 2, "penalty_interval": 2},
    # no hinge: the gradient of its last bias is 0 but for rounding, which Adam makes a whole step of
    {"architecture": "dcgan", "spectral_norm": True, "loss": "least-squares", "learning_rate_schedule": "linear"},
)


def in_team(processes: int, *words: str, restarts: int = 0) -> list[str]:
    """The command by which torchrun starts so many processes of a program."""
    team = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    return [sys.executable, *team, *words]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@dataclass(frozen=True)
class Trained:
    """What one process, and what two, have made of each config."""

    alone: Path
    together: Path

    def both(self, name: str) -> tuple[Any, Any]:
        return torch.load(self.alone / name, weights_only=True), torch.load(self.together / name, weights_only=True)


@pytest.fixture(scope="module")
def trained(datasets_folder: Path, make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    configs = [make_config(total_images=4000, learning_rate=1e-3, **changes).model_dump_json() for changes in CONFIGS]
    made = Trained(tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("together"))
    command = in_team(2, team_member.__file__, str(datasets_folder), str(made.together), str(STEPS), *configs)
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        team_member.main(str(datasets_folder), str(made.alone), str(STEPS), *configs)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    return made


@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_two_processes_come_to_the_weights_and_figures_of_one(trained: Trained, number: int) -> None:
    alone, together = trained.both(f"{number}.pt")
    for part in ("generator", "discriminator", "average"):
        for name, weight in alone["state"]["main"][part].items():
            assert torch.allclose(together["state"]["main"][part][name].double(), weight.double(), rtol=TOLERANCE, atol=TOLERANCE), name
    assert together["told"] == pytest.approx(alone["told"], rel=1e-2, abs=1e-3)


def test_a_norm_over_several_processes_counts_in_every_bit_under_bfloat16_too(trained: Trained) -> None:
    alone, together = trained.both("norm.pt")
    for norm in (alone, together):
        assert norm["output"].dtype == torch.bfloat16
        assert norm["running_var"].dtype == torch.float32
        assert bool((norm["running_var"] != 1).all())
        assert torch.equal(norm["means of all"], norm["running_mean"]), "the same everywhere"
        assert norm["is plain"]
    assert not torch.equal(alone["running_mean"], together["running_mean"]), "the other has images of its own"


def test_each_has_its_own_rows_and_all_together_the_whole_batch() -> None:
    values = torch.arange(12.0).reshape(6, 2)
    dealt = Round({"latent": values}, values + 1, {"label": values + 2})
    shares = [Team(rank, 3).share(dealt) for rank in range(3)]
    assert torch.equal(torch.cat([share.inputs["latent"] for share in shares]), values)
    assert torch.equal(torch.cat([share.target for share in shares]), values + 1)
    assert torch.equal(torch.cat([share.condition["label"] for share in shares]), values + 2)
    assert ALONE.share(dealt) is dealt


@pytest.mark.parametrize(("batch_size", "size"), [(21, 2), (2, 2), (64, 3)])
def test_a_batch_that_cannot_be_shared_evenly_is_refused(batch_size: int, size: int) -> None:
    with pytest.raises(UserError, match=f"give a batch_size that is a multiple of {size}, and two images for each at least"):
        Team(0, size).check(batch_size)
    Team(0, size).check(4 * size)


def test_what_is_drawn_within_a_step_differs_by_member_and_step_and_is_the_same_again() -> None:
    def draws(rank: int, step: int) -> list[Tensor]:
        shared = torch.Generator().manual_seed(7)
        own = Team(rank, 2).own_random(shared, step)
        return [torch.rand(3, generator=own), torch.rand(3)]

    for kind in (0, 1):
        found = [tuple(draws(rank, step)[kind].tolist()) for rank in (0, 1) for step in range(50)]
        assert len(set(found)) == 100
        assert found[0] == tuple(draws(0, 0)[kind].tolist())
    shared = torch.Generator()
    assert ALONE.own_random(shared, 3) is shared


# --- a whole run ---------------------------------------------------------------------------------------------------------------


def torchrun(run: Path, datasets_folder: Path, processes: int, restarts: int = 0) -> "subprocess.Popen[str]":
    places = ["--datasets", str(datasets_folder), "--repository", str(run.parent / "models"), "--digests", str(run.parent / "digests")]
    places += ["--device", "cpu", "--threads", "1"]
    command = in_team(processes, "-m", "training.worker", str(run), *places, restarts=restarts)
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_checkpoint(process: "subprocess.Popen[str]", run: Path) -> None:
    """Until a run at work has a newer one."""
    before, deadline = runs.checkpoint_images(run), time.monotonic() + 120
    while runs.checkpoint_images(run) <= before:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def members(parent: int) -> list[int]:
    """Process ids of a launcher's children."""
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.fixture(scope="module")
def restarted(datasets_folder: Path, make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a team with batch norms, of which a member was killed; it was to end soon after that."""
    run = tmp_path_factory.mktemp("restarted") / "run"
    every = {"checkpoint_images": 400, "evaluation_images": 400, "num_evaluated": 12}
    config = make_config(name="mine", architecture="dcgan", total_images=100_000, **every)
    runs.create(run, config, runs.new_id())
    process = torchrun(run, datasets_folder, processes=2, restarts=1)
    wait_for_checkpoint(process, run)
    victim = members(process.pid)[1]
    os.kill(victim, signal.SIGSTOP)  # the leader waits for it, and keeps one more checkpoint at most
    rest = config.model_copy(update={"total_images": runs.checkpoint_images(run) + 800})
    (run / runs.CONFIG).write_text(rest.model_dump_json())
    os.kill(victim, signal.SIGKILL)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said[-3000:]
    return run


def test_a_killed_member_brings_all_back_to_the_checkpoint_and_the_run_is_finished(restarted: Path) -> None:
    status = runs.read_status(restarted)
    assert (status.state, status.version, status.progress.images) == ("succeeded", 1, runs.read_config(restarted).total_images)
    assert status.attempts >= 2
    assert "going on from the checkpoint at" in (restarted / runs.LOG).read_text()
    images = [line.images for line in runs.read_metrics(restarted) if line.losses]
    assert images == sorted(set(images)), "no line was written twice"


def test_norms_that_were_shared_are_published_as_plain_ones(restarted: Path) -> None:
    published = find_version("mine", (restarted.parent / "models",))
    weights = export.published_weights(published, restarted.parent / "models" / "mine" / "1", "generator")
    assert any(name.endswith("running_var") for name in weights)


def test_a_run_that_is_lost_is_not_tried_again(datasets_folder: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    places = Places(datasets_folder, (tmp_path / "models",), tmp_path / "weights", tmp_path / "digests")
    publish_with_weights(places, make_config(name="start"), discriminator_head=1e38)
    config = make_config(name="mine").model_copy(update={"initial_model": "start/1"})
    runs.create(tmp_path / "run", config, runs.new_id())
    process = torchrun(tmp_path / "run", datasets_folder, processes=2, restarts=1)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 1, said[-3000:]
    status = runs.read_status(tmp_path / "run")
    assert (status.state, status.attempts) == ("failed", 1)
    assert "is not finite" in status.message


class Impatient(Listener):
    """Ends a run at its first beat."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def started(self, config: TrainConfig, images: int) -> None:
        runs.ask_to_stop(self.run)


def test_a_team_goes_on_with_the_run_of_one_and_one_with_that_of_a_team(
    datasets_folder: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", make_config(name="mine", total_images=10**9, checkpoint_images=1_000, num_evaluated=12)
    runs.create(run, config, runs.new_id())
    work(run, Places(datasets_folder, (), tmp_path / "weights"), torch.device("cpu"), Impatient(run), 1, "contiguous")
    check_stopped(run, attempts=1)
    process = torchrun(run, datasets_folder, processes=2)
    wait_for_checkpoint(process, run)
    process.send_signal(signal.SIGTERM)  # torchrun tells every member
    process.communicate(timeout=120)
    check_stopped(run, attempts=2)
    runs.train_on(run, config.model_copy(update={"total_images": runs.checkpoint_images(run) + 1_000}))
    last = torchrun(run, datasets_folder, processes=1)
    said, _ = last.communicate(timeout=240)
    assert last.returncode == 0, said
    assert runs.read_status(run).state == "succeeded"


def check_stopped(run: Path, attempts: int) -> None:
    status = runs.read_status(run)
    assert (status.state, status.attempts) == ("queued", attempts), status.message
    assert "stopped after" in status.message


def test_the_console_program_trains_in_a_team(tmp_path: Path) -> None:
    words = ["train", "--architecture", "mlp", "--options.generator-widths", "[8]", "--options.discriminator-widths", "[8]"]
    words += ["--total-images", "640", "--num-evaluated", "0", "--name", "tiny", "--device", "cpu", "--threads", "1"]
    words += ["--state", str(tmp_path / "state"), "--models", str(tmp_path / "models")]
    command = in_team(2, "-m", "ganserve", *words, "--run-dir", str(tmp_path / "run"))
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "published as tiny version 1\n"
    assert runs.read_status(tmp_path / "run").progress.images == 640


def test_a_team_wants_a_run_directory_that_all_know() -> None:
    with pytest.raises(UserError, match="several processes train one run: name its directory, by --run-dir or --resume"):
        _in_team(None, None)
