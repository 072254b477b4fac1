"""Two processes, started as torchrun starts them, against one; on this machine alone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from starting_weights import publish_with_weights
from torch import Tensor

from training.contract import TrainConfig, UserError
from training.files import runs
from training.game import Round
from training.preparation import Places
from training.team import ALONE, Team

MakeConfig = Callable[..., TrainConfig]
STEPS = 50
TOLERANCE = 2e-3  # of a weight's own size, after 50 steps of Adam: sums of halves are rounded otherwise than whole ones
MEMBER = Path(__file__).parent / "team_member.py"
CONFIGS: tuple[dict[str, Any], ...] = (
    {"architecture": "mlp", "options": {"latent_size": 4, "generator_widths": [8], "discriminator_widths": [8], "dropout": 0.0}},
    {"architecture": "dcgan"},  # batch norm in both networks
    {"architecture": "dcgan", "loss": "relativistic", "penalty": "r1-r2", "critic_steps": 2, "penalty_interval": 2},
    # no hinge: the gradient of its last bias is 0 but for rounding, which Adam makes a whole step of
    {"architecture": "dcgan", "spectral_norm": True, "loss": "least-squares", "learning_rate_schedule": "linear"},
)


def launch(*words: str, processes: int = 0) -> None:
    team = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([sys.executable, *team, *words], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def trained(datasets_folder: Path, make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, Any]]:
    """What one process, and what two, have made of each config."""
    configs = [make_config(total_images=4000, learning_rate=1e-3, **changes).model_dump_json() for changes in CONFIGS]
    folders = []
    for processes in (0, 2):
        folders.append(tmp_path_factory.mktemp("out"))
        launch(str(MEMBER), str(datasets_folder), str(folders[-1]), str(STEPS), *configs, processes=processes)
    return [tuple(torch.load(folder / f"{number}.pt", weights_only=True) for folder in folders) for number in range(len(configs))]


@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_two_processes_come_to_the_weights_and_figures_of_one(trained: list[tuple[Any, Any]], number: int) -> None:
    alone, together = trained[number]
    for part in ("generator", "discriminator", "average"):
        for name, weight in alone["state"]["main"][part].items():
            assert torch.allclose(together["state"]["main"][part][name].double(), weight.double(), rtol=TOLERANCE, atol=TOLERANCE), name
    assert together["told"] == pytest.approx(alone["told"], rel=1e-2, abs=1e-3)


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


def test_a_norm_over_several_processes_counts_in_every_bit_under_bfloat16_too(tmp_path: Path) -> None:
    code = """if True:
        import torch
        from torch import nn
        from training.team import Team
        team = Team.gather(torch.device("cpu"))
        norm = nn.BatchNorm2d(3)
        team.synchronise_norms(norm)
        with torch.autocast("cpu", torch.bfloat16):
            given = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(team.rank)).bfloat16()
            assert norm(given).dtype == torch.bfloat16
        assert norm.running_var.dtype == torch.float32 and bool((norm.running_var != 1).all())
        means = team.average(norm.running_mean)
        assert torch.equal(means, norm.running_mean), "the same everywhere"
        team.separate_norms(norm)
        assert type(norm) is nn.BatchNorm2d
    """
    (tmp_path / "member.py").write_text(code)
    launch(str(tmp_path / "member.py"), processes=2)


@pytest.fixture
def run(datasets_folder: Path, make_config: MakeConfig, tmp_path: Path) -> Path:
    """A run of some seconds, with a checkpoint every now and then."""
    config = make_config(name="mine", total_images=30_000, checkpoint_images=1_000, num_evaluated=12, evaluation_images=15_000)
    runs.create(tmp_path / "run", config, runs.new_id())
    return tmp_path / "run"


def torchrun(run: Path, datasets_folder: Path, processes: int, restarts: int = 0) -> "subprocess.Popen[str]":
    team = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    places = ["--datasets", str(datasets_folder), "--repository", str(run.parent / "models"), "--digests", str(run.parent / "digests")]
    places += ["--device", "cpu", "--threads", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    words = [sys.executable, *team, "-m", "training.worker", str(run), *places]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def members(parent: int) -> list[int]:
    """Process ids of a launcher's children."""
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def test_a_killed_member_brings_all_back_to_the_checkpoint_and_the_run_is_finished(run: Path, datasets_folder: Path) -> None:
    process = torchrun(run, datasets_folder, processes=2, restarts=1)
    deadline = time.monotonic() + 120
    while runs.checkpoint_images(run) == 0:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    victim = members(process.pid)[1]
    os.kill(victim, signal.SIGKILL)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said[-3000:]
    status = runs.read_status(run)
    assert (status.state, status.version, status.progress.images) == ("succeeded", 1, 30_000)
    assert status.attempts >= 2
    assert "going on from the checkpoint at" in (run / runs.LOG).read_text()
    images = [line.images for line in runs.read_metrics(run) if line.losses]
    assert images == sorted(set(images)), "no line was written twice"


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


def test_a_team_goes_on_with_the_run_of_one_and_one_with_that_of_a_team(run: Path, datasets_folder: Path) -> None:
    for processes, begin in ((1, 0), (2, 1)):
        process = torchrun(run, datasets_folder, processes)
        before = runs.checkpoint_images(run)
        while process.poll() is None and runs.checkpoint_images(run) <= before:
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()[0]
        if processes == 2:
            process.send_signal(signal.SIGTERM)  # torchrun tells every member
        else:
            runs.ask_to_stop(run)
        process.communicate(timeout=120)
        status = runs.read_status(run)
        assert (status.state, status.attempts) == ("queued", begin + 1), status.message
        assert "stopped after" in status.message
    last = torchrun(run, datasets_folder, 1)
    said, _ = last.communicate(timeout=240)
    assert last.returncode == 0, said
    assert runs.read_status(run).state == "succeeded"


def test_norms_that_were_shared_are_published_as_plain_ones(datasets_folder: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    runs.create(tmp_path / "run", make_config(name="mine", architecture="dcgan"), runs.new_id())
    process = torchrun(tmp_path / "run", datasets_folder, processes=2)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said[-3000:]
    assert runs.read_status(tmp_path / "run").state == "succeeded"


def test_the_console_program_trains_in_a_team(tmp_path: Path) -> None:
    words = ["train", "--architecture", "mlp", "--options.generator-widths", "[8]", "--options.discriminator-widths", "[8]"]
    words += ["--total-images", "640", "--num-evaluated", "0", "--name", "tiny", "--device", "cpu", "--threads", "1"]
    words += ["--state", str(tmp_path / "state"), "--models", str(tmp_path / "models")]
    team = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ganserve"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}

    def ran(*more: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, *team, *words, *more]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)

    assert "several processes train one run: name its directory, by --run-dir or --resume" in ran().stderr
    done = ran("--run-dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "published as tiny version 1\n"
    assert runs.read_status(tmp_path / "run").progress.images == 640
