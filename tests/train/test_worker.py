import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from starting_weights import publish_with_weights
from torch import Tensor

from training import catalog, checkpoint, datasets, export
from training.contract import JobStatus, Manifest, TrainConfig, Tuning
from training.datasets import About, Batch
from training.files import digests, runs, versions
from training.files.locks import hold, is_held
from training.game import DataSpec
from training.preparation import Places
from training.run import Listener
from training.submission import find_version
from training.worker import STOPPED, pick_device, work

MakeConfig = Callable[..., TrainConfig]
CPU = torch.device("cpu")
SPEC = DataSpec((1, 16, 16))
pytestmark = pytest.mark.usefixtures("torch_as_before")
LONG = {"total_images": 50_000, "checkpoint_images": 2_500, "sample_images": 20_000, "learning_rate": 0.001}  # some seconds


@dataclass(frozen=True)
class Bench:
    """Runs, and the places that they work with."""

    folder: Path
    places: Places

    @property
    def repository(self) -> Path:
        return self.places.repositories[0]

    def create(self, name: str, config: TrainConfig) -> Path:
        runs.create(self.folder / name, config, runs.new_id())
        return self.folder / name

    def start(self, run: Path) -> "subprocess.Popen[str]":
        places = ["--datasets", str(self.places.datasets), "--repository", str(self.repository)]
        places += ["--digests", str(self.folder / "digests")]
        command = [sys.executable, "-m", "training.worker", str(run), *places, "--device", "cpu", "--threads", "1"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def work(self, run: Path, listener: Listener | None = None) -> tuple[int, JobStatus]:
        """In this process, for what needs no other one; as `start` does, with one thread."""
        return work(run, self.places, CPU, listener, num_threads=1), runs.read_status(run)


@pytest.fixture
def bench(tmp_path: Path, datasets_folder: Path) -> Bench:
    return Bench(tmp_path / "runs", Places(datasets_folder, (tmp_path / "models",), tmp_path / "weights"))


class Ear(Listener):
    """Hears where runs start."""

    def __init__(self) -> None:
        self.told: list[tuple[str | None, int]] = []

    def started(self, config: TrainConfig, images: int) -> None:
        self.told.append((config.name, images))


def wait_for(process: "subprocess.Popen[str]", condition: Callable[[], bool]) -> None:
    while not condition():
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.02)
            raise AssertionError(f"the worker ended with {process.returncode}: {process.communicate()}")


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and all that it said."""
    said = "".join(process.communicate(timeout=120))
    return process.returncode, said


def newest(run: Path) -> int:
    """At how many images the newest checkpoint stands; 0 where there is none."""
    return max((int(path.name) for path in (run / runs.CHECKPOINTS).glob("0*")), default=0)


def tensors(state: object, path: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        yield path, state
    elif isinstance(state, dict | list | tuple):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from tensors(value, f"{path}/{key}")


def final_bits(run: Path) -> dict[str, bytes]:
    state = checkpoint.load_newest(run / runs.CHECKPOINTS, CPU)
    assert state is not None
    found = {path: tensor.numpy().tobytes() for path, tensor in tensors(state)}
    assert any(path.startswith("/matches/main/generator/") for path in found)
    return found


def metrics(run: Path) -> list[tuple[int, object, object]]:
    lines = [json.loads(text) for text in (run / runs.METRICS).read_text().splitlines()]
    return [(line["images"], line["losses"], line["evaluation"]) for line in lines]


def samples(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / runs.SAMPLES).iterdir()}


def published(bench: Bench, name: str, number: int) -> dict[str, Tensor]:
    folder = bench.repository / name / str(number)
    return export.published_weights(Manifest.model_validate_json((folder / versions.MANIFEST).read_bytes()), folder, "generator")


# --- processes ----------------------------------------------------------------------------------------------------------------


def test_a_worker_stopped_and_killed_ends_with_the_bits_of_one_left_alone(bench: Bench, make_config: MakeConfig) -> None:
    config = make_config(name="mine", **LONG)
    alone, disturbed = bench.create("alone", config), bench.create("disturbed", config)
    stopped = bench.start(disturbed)
    wait_for(stopped, lambda: newest(disturbed) > 0)
    assert is_held(disturbed)
    stopped.send_signal(signal.SIGTERM)
    assert ended(stopped) == (STOPPED, "") == (75, "")
    status = runs.read_status(disturbed)
    assert status.state == "queued"
    assert status.message.startswith("stopped after ")
    assert status.message.endswith(" of 50,000 images; it goes on from there")
    seen = status.progress.images
    assert 0 < seen < 50_000
    assert newest(disturbed) == seen, "it stops with a checkpoint of all that was seen"

    killed = bench.start(disturbed)
    wait_for(killed, lambda: newest(disturbed) > seen)
    os.kill(killed.pid, signal.SIGKILL)
    ended(killed)
    status = runs.read_status(disturbed)
    assert (status.state, status.attempts) == ("running", 2)
    assert not is_held(disturbed)

    assert ended(bench.start(disturbed)) == (0, "")
    assert bench.work(alone)[0] == 0
    for run, attempts in ((alone, 1), (disturbed, 3)):
        status = runs.read_status(run)
        assert (status.state, status.attempts, status.model) == ("succeeded", attempts, "mine")
        assert status.message == f"published as mine version {status.version}"
        assert (status.progress.images, status.progress.seconds_left) == (50_000, 0)
        assert status.finished_at is not None
        assert not is_held(run)
    assert final_bits(disturbed) == final_bits(alone)
    assert metrics(disturbed) == metrics(alone)
    assert len(metrics(alone)) == 200
    assert samples(disturbed) == samples(alone)
    assert sorted(samples(alone)) == ["000000020000.png", "000000040000.png", "000000050000.png"]
    assert "going on from the checkpoint at" in (disturbed / runs.LOG).read_text()
    first, second = published(bench, "mine", 1), published(bench, "mine", 2)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_wish_to_cancel_ends_a_run_at_work_with_a_checkpoint(bench: Bench, make_config: MakeConfig) -> None:
    run = bench.create("run", make_config(total_images=10**9, name="mine"))
    worker = bench.start(run)
    wait_for(worker, lambda: runs.read_status(run).progress.images > 0)
    runs.ask_to_cancel(run)
    assert ended(worker) == (0, "")
    status = runs.read_status(run)
    assert status.state == "cancelled"
    assert status.message.endswith(" of 1,000,000,000 images; the last checkpoint is kept")
    assert final_bits(run)
    assert versions.names([bench.repository]) == []


def test_a_second_worker_on_one_directory_is_refused(bench: Bench, make_config: MakeConfig) -> None:
    run = bench.create("run", make_config())
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    with hold(run):
        code, said = ended(bench.start(run))
    assert code == 1
    assert said.splitlines()[-1].endswith(f"another process works in {run}")
    after = {path.name: path.stat().st_mtime_ns for path in run.iterdir() if path.name != "lock"}
    assert after == before, "it touched nothing"


def test_a_run_that_fails_says_why_in_one_sentence_and_keeps_its_traceback_in_the_log(
    bench: Bench, make_config: MakeConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    run = bench.create("run", make_config(name="mine").model_copy(update={"dataset": "gone"}))
    code, status = bench.work(run)
    assert (code, *capfd.readouterr()) == (1, "", "")
    assert (status.state, status.model, status.version) == ("failed", None, None)
    assert status.message.startswith("there is no data set 'gone'; known: fashion-mnist-10k, tiny")
    assert "\n" not in status.message
    assert status.finished_at is not None
    log = (run / runs.LOG).read_text()
    assert "Traceback" in log
    assert "UnknownDatasetError" in log


# --- in this process ----------------------------------------------------------------------------------------------------------


def test_a_run_trains_publishes_and_tells_as_it_goes(bench: Bench, make_config: MakeConfig) -> None:
    ear = Ear()
    config = make_config(architecture="dcgan", name="mine", sample_images=100, checkpoint_images=100)
    run = bench.create("run", config)
    code, status = bench.work(run, ear)
    assert (code, status.state, status.model, status.version) == (0, "succeeded", "mine", 1)
    assert ear.told == [("mine", 0)]
    assert sorted(samples(run)) == ["000000000100.png", "000000000200.png", "000000000240.png"]
    assert sorted(path.name for path in (run / runs.CHECKPOINTS).glob("0*")) == ["000000000200", "000000000240"]
    assert [images for images, _, _ in metrics(run)] == list(range(20, 260, 20))
    manifest = find_version("mine", (bench.repository,))
    assert manifest.config == config
    assert manifest.run == status.id
    assert manifest.dataset == datasets.card("tiny", bench.places.datasets)
    assert manifest.metrics["images"] == 240
    assert {"discriminator_loss", "generator_loss"} <= set(manifest.metrics)
    assert manifest.score_reference is not None
    assert manifest.score_reference.num_real == 64
    log = (run / runs.LOG).read_text()
    assert "training dcgan on tiny: 96 images of 1x16x16, 64 held out, on cpu" in log


def test_what_is_published_is_the_average_with_its_statistics(bench: Bench, make_config: MakeConfig) -> None:
    run = bench.create("run", make_config(architecture="dcgan", name="mine", learning_rate=0.01, ema_halflife_images=1000.0))
    bench.work(run)
    state = checkpoint.load_newest(run / runs.CHECKPOINTS, CPU)
    assert state is not None
    average, last = state["matches"]["main"]["average"], state["matches"]["main"]["generator"]
    weights = published(bench, "mine", 1)
    assert any(name.endswith("running_var") for name in weights)
    assert all(torch.equal(value, average[name]) for name, value in weights.items())
    assert not all(torch.equal(value, last[name]) for name, value in weights.items())


def test_a_worker_that_died_between_publishing_and_saying_so_publishes_once(bench: Bench, make_config: MakeConfig) -> None:
    run = bench.create("run", make_config(name="mine"))
    _, status = bench.work(run)
    runs.write_status(run, status.model_copy(update={"state": "running", "model": None, "version": None}))
    code, again = bench.work(run)
    assert (code, again.state, again.version, again.attempts) == (0, "succeeded", 1, 2)
    assert list(versions.versions([bench.repository], "mine")) == [1]
    assert len(metrics(run)) == 12


def test_a_run_cancelled_before_it_started_does_no_work(bench: Bench, make_config: MakeConfig) -> None:
    run = bench.create("run", make_config())
    runs.ask_to_cancel(run)
    code, status = bench.work(run)
    assert (code, status.state, status.message) == (0, "cancelled", "cancelled before it started")
    assert list((run / runs.CHECKPOINTS).iterdir()) == []


def test_a_damaged_checkpoint_is_told_in_the_log_and_the_one_before_is_used(bench: Bench, make_config: MakeConfig) -> None:
    config = make_config(name="mine", checkpoint_images=100)
    whole, damaged = bench.create("whole", config), bench.create("damaged", config)
    bench.work(whole)
    _, status = bench.work(damaged)
    (damaged / runs.CHECKPOINTS / "000000000240" / "state.pt").write_bytes(b"nonsense")
    runs.write_status(damaged, status.model_copy(update={"state": "running"}))
    ear = Ear()
    assert bench.work(damaged, ear)[0] == 0
    assert ear.told == [("mine", 200)], "it went on, and did not begin anew"
    log = (damaged / runs.LOG).read_text()
    assert "WARNING checkpoint 000000000240 is damaged and left out: state.pt has 8 bytes" in log
    assert "going on from the checkpoint at 200 images" in log
    assert final_bits(damaged) == final_bits(whole)
    assert metrics(damaged) == metrics(whole)


def test_a_loss_that_is_not_finite_fails_the_run_and_publishes_nothing(bench: Bench, make_config: MakeConfig) -> None:
    publish_with_weights(bench.places, make_config(name="start"), discriminator_head=1e38)
    run = bench.create("run", make_config(name="mine").model_copy(update={"initial_model": "start/1"}))
    code, status = bench.work(run)
    assert (code, status.state) == (1, "failed")
    said = "discriminator_loss is not finite at step 1; try a smaller learning_rate; the run cannot go on from there"
    assert status.message == f"{said}, and there was no checkpoint before it"
    assert [(each.kind, each.images, each.message) for each in status.findings] == [("not-finite", 20, status.message)]
    assert "NotFiniteError" in (run / runs.LOG).read_text()
    assert versions.names([bench.repository]) == ["start"]
    assert metrics(run) == []


def test_what_a_begun_run_does_not_take_is_told_in_its_log(bench: Bench, make_config: MakeConfig) -> None:
    run = bench.create("run", make_config(name="mine"))
    begun = Tuning(num_threads=1, memory_layout="contiguous")
    runs.write_status(run, runs.read_status(run).model_copy(update={"tuning": begun}))
    assert work(run, bench.places, CPU, num_threads=2, memory_layout="channels-last") == 0
    assert runs.read_status(run).tuning == begun
    log = (run / runs.LOG).read_text()
    assert "num_threads 2 has no effect: the run goes on with 1, as it began" in log
    assert "memory_layout channels-last has no effect: the run goes on with contiguous, as it began" in log


def test_fine_tuning_starts_from_the_published_weights(bench: Bench, make_config: MakeConfig) -> None:
    weights = publish_with_weights(bench.places, make_config(name="start"))
    # a step so small that no weight can move shows what it starts from
    values = {"name": "tuned", "initial_model": "start/1", "learning_rate": 1e-30, "ema_halflife_images": 0.0, "total_images": 20}
    given = TrainConfig.model_validate({"architecture": "mlp", "dataset": "tiny", "batch_size": 20, "num_evaluated": 0} | values)
    run = bench.create("run", catalog.resolve(given, bench.places.datasets, bench.places.repositories))
    assert bench.work(run)[0] == 0
    tuned = find_version("tuned", (bench.repository,))
    assert tuned.config.initial_model == "start/1"
    for key in ("generator", "discriminator"):
        found = export.published_weights(tuned, bench.repository / "tuned" / "1", key)
        assert all(torch.equal(value, weights[key][name]) for name, value in found.items())
    assert "starting from start/1" in (run / runs.LOG).read_text()


def test_a_run_adds_the_digest_of_what_it_publishes_and_starts_from_no_version_that_is_not_known(
    bench: Bench, make_config: MakeConfig
) -> None:
    places = replace(bench.places, digests=bench.folder / "digests")
    first, config = bench.create("first", make_config(name="start")), make_config(name="mine")
    assert work(first, places, CPU) == 0
    digest = digests.digest_of((bench.repository / "start" / "1" / versions.MANIFEST).read_bytes())
    assert digests.known(bench.folder / "digests") - digests.SHIPPED.keys() == {digest}
    tuned = config.model_copy(update={"initial_model": "start/1"})
    assert work(bench.create("second", tuned), places, CPU) == 0
    digests.forget(bench.folder / "digests", digest)
    run = bench.create("third", tuned)
    assert work(run, places, CPU) == 1
    assert f"start/1 cannot be started from: its manifest (sha256 {digest}) was neither published" in runs.read_status(run).message


def test_a_worker_that_died_before_it_pointed_the_alias_points_it_and_publishes_nothing_more(bench: Bench, make_config: MakeConfig) -> None:
    run = bench.create("run", make_config(name="mine", publish={"alias": "production"}))
    said = "published as mine version 1; production is version 1 now"
    assert bench.work(run)[1].message == said
    assert versions.read_aliases([bench.repository], "mine") == {"production": 1}
    (bench.repository / "mine" / versions.ALIASES).unlink()
    runs.write_status(run, runs.read_status(run).model_copy(update={"state": "queued", "message": ""}))
    assert bench.work(run)[1].message == said
    assert versions.read_aliases([bench.repository], "mine") == {"production": 1}
    assert list(versions.versions([bench.repository], "mine")) == [1]


def test_old_versions_go_when_one_more_is_published_and_few_are_kept(bench: Bench, make_config: MakeConfig) -> None:
    places = replace(bench.places, keep_versions=2)
    for number in range(1, 5):
        run = bench.create(f"run-{number}", make_config(name="mine", publish={"alias": "production"} if number == 1 else {}))
        assert work(run, places, CPU) == 0
    assert list(versions.versions([bench.repository], "mine")) == [1, 3, 4]
    assert "2 versions of mine are kept; removed: 2" in (run / runs.LOG).read_text()


def test_an_initial_model_that_was_damaged_meanwhile_fails_the_run(bench: Bench, make_config: MakeConfig) -> None:
    publish_with_weights(bench.places, make_config(name="start"))
    (bench.repository / "start" / "1" / "generator.pt").write_bytes(b"nonsense")
    config = make_config(name="mine").model_copy(update={"initial_model": "start/1"})
    code, status = bench.work(bench.create("run", config))
    assert (code, status.state) == (1, "failed")
    assert "generator.pt has 8 bytes; its document says" in status.message


def test_a_set_of_copies_fails_with_its_sentence(bench: Bench, make_config: MakeConfig, tmp_path: Path) -> None:
    folder = tmp_path / "datasets"
    card = datasets.write("copies", folder, About((1, 16, 16), "a test", "CC0"), [Batch(np.zeros((200, 1, 16, 16), np.uint8))])
    run = bench.create("run", make_config().model_copy(update={"dataset": "copies", "dataset_sha256": card.content_sha256}))
    assert work(run, replace(bench.places, datasets=folder), CPU) == 1
    assert "all of them are held out, because they are copies" in runs.read_status(run).message


def test_a_set_that_took_the_name_of_the_one_that_a_run_was_begun_with_is_not_trained_on(
    bench: Bench, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config()
    images = np.random.default_rng(1).integers(0, 256, (160, 1, 16, 16), dtype=np.uint8)
    datasets.write("tiny", tmp_path / "datasets", About((1, 16, 16), "a test", "CC0"), [Batch(images)])
    run = bench.create("run", config)
    assert work(run, replace(bench.places, datasets=tmp_path / "datasets"), CPU) == 1
    message = runs.read_status(run).message
    assert f"and {config.dataset_sha256} is wanted: it was removed and another was added by its name" in message


def test_a_stop_is_asked_of_the_process_only_while_it_trains(bench: Bench, make_config: MakeConfig) -> None:
    def handlers() -> list[object]:
        return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    class Look(Listener):
        def started(self, config: TrainConfig, images: int) -> None:
            during.extend(handlers())

    before, during = handlers(), list[object]()
    assert bench.work(bench.create("run", make_config()), Look())[0] == 0
    assert len(during) == 2
    assert not set(map(id, during)) & set(map(id, before))
    assert handlers() == before


def test_the_device_is_picked_by_name() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


# --- the best state -----------------------------------------------------------------------------------------------------------


def evaluations(run: Path) -> dict[int, dict[str, float]]:
    return {line.images: line.evaluation for line in runs.read_metrics(run) if line.evaluation}


def test_the_state_that_was_evaluated_best_is_published_and_not_the_last(bench: Bench, make_config: MakeConfig) -> None:
    config = make_config(architecture="dcgan", name="mine", num_evaluated=12, evaluation_images=60, learning_rate=0.05, seed=2)
    run = bench.create("run", config)
    code, status = bench.work(run)
    assert (code, status.progress.images) == (0, 240)
    kid = {images: values["kid_efficientnet_lite0"] for images, values in evaluations(run).items()}
    assert list(kid) == [60, 120, 180, 240]
    best = min(kid, key=kid.__getitem__)
    assert best != 240, "else this test says nothing"
    manifest = find_version("mine", (bench.repository,))
    assert manifest.metrics["images"] == best
    assert manifest.metrics["kid_efficientnet_lite0"] != kid[best], "of other images than those that it was chosen by"
    assert manifest.metrics["num_evaluated"] == 12
    line = next(line for line in runs.read_metrics(run) if line.losses and line.images == best)
    assert manifest.metrics["generator_loss"] == round(line.losses["generator_loss"], 4), "of the state that is published"
    assert {"fd_efficientnet_lite0", "precision_efficientnet_lite0", "coverage_efficientnet_lite0"} <= set(manifest.metrics)
    average = checkpoint.load(run / runs.BEST, best, CPU)["matches"]["main"]["average"]
    weights = published(bench, "mine", 1)
    assert all(torch.equal(value, average[name]) for name, value in weights.items())
    assert set(status.progress.evaluation) == set(evaluations(run)[240])
    log = (run / runs.LOG).read_text()
    assert re.search(r"evaluating on 12 held-out images with efficientnet-lite0, sha256 [0-9a-f]{64}\n", log)
    assert f"publishing the best state, of {best} images" in log


def test_a_run_killed_anywhere_publishes_the_same_best_state(bench: Bench, make_config: MakeConfig) -> None:
    config = make_config(name="mine", num_evaluated=8, evaluation_images=40, checkpoint_images=60, learning_rate=0.05)
    whole = bench.create("whole", config)
    bench.work(whole)

    class Killed(BaseException):
        pass

    resumed = bench.create("resumed", config)
    save = checkpoint.save
    for images in (40, 120, 160, 240):  # right after a best state or a checkpoint became visible, before anything else

        def save_and_die(folder: Path, at: int, state: dict[str, object], images: int = images) -> None:
            save(folder, at, state)
            if at >= images:
                raise Killed

        with pytest.MonkeyPatch.context() as patched, suppress(Killed):
            patched.setattr(checkpoint, "save", save_and_die)
            bench.work(resumed)
    assert bench.work(resumed)[0] == 0
    assert evaluations(resumed) == evaluations(whole)
    first, second = published(bench, "mine", 1), published(bench, "mine", 2)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_without_evaluation_the_last_state_is_published(bench: Bench, make_config: MakeConfig) -> None:
    run = bench.create("run", make_config(name="mine", num_evaluated=0))
    bench.work(run)
    assert evaluations(run) == {}
    assert list((run / runs.BEST).iterdir()) == []
    assert find_version("mine", (bench.repository,)).metrics["images"] == 240


def test_a_slow_run_is_kept_by_the_clock_too(bench: Bench, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.run.CHECKPOINT_SECONDS", 0.0)
    folder = bench.create("run", make_config(**LONG | {"checkpoint_images": 10**6}))
    kept: list[int] = []

    class Patient(Listener):
        def progressed(self, status: JobStatus) -> None:
            if images := runs.checkpoint_images(folder):
                kept.append(images)
                runs.ask_to_cancel(folder)

    _, status = bench.work(folder, Patient())
    assert status.state == "cancelled", "there was a checkpoint long before the first that images would have brought"
    assert 0 < kept[0] <= status.progress.images < LONG["total_images"]
