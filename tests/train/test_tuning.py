"""What is chosen by the clock is not asserted; that measuring leaves no trace is."""

import io
from collections.abc import Callable, Iterator

import pytest
import torch

from training import tuning
from training.contract import TrainConfig, Tuning, UserError
from training.files.machine import num_cores, num_training_threads
from training.loop import Training

MakeConfig = Callable[..., TrainConfig]
MakeTraining = Callable[[TrainConfig], Training]
CPU = torch.device("cpu")
SMALL = {"latent_size": 4, "generator_widths": [8], "discriminator_widths": [8]}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def bits(training: Training) -> bytes:
    file = io.BytesIO()
    torch.save(training.state_dict() | {"seconds": 0.0}, file)
    return file.getvalue()


def steps(training: Training, count: int = 4) -> Training:
    for _ in range(count):
        training.step()
    return training


def test_what_is_given_is_left_alone() -> None:
    assert tuning.candidates(CPU, 3, "channels-last") == [Tuning(num_threads=3, memory_layout="channels-last")]
    assert [each.num_threads for each in tuning.candidates(CPU, 3, None)] == [3, 3]
    free = tuning.candidates(CPU, None, None)
    assert free[0] == Tuning(num_threads=num_training_threads(), memory_layout="contiguous"), "the usual one comes first"
    assert {1, num_cores()} <= {each.num_threads for each in free} <= set(range(1, num_cores() + 1))
    assert len(set(free)) == len(free)
    assert {each.num_threads for each in tuning.candidates(torch.device("cuda"), None, None)} == {num_training_threads()}


@pytest.mark.parametrize("changes", [{"architecture": "mlp"}, {"architecture": "dcgan", "penalty": "r1"}], ids=["mlp", "dcgan"])
def test_measuring_leaves_no_trace(make_config: MakeConfig, make_training: MakeTraining, changes: dict[str, object]) -> None:
    config = make_config(**changes)
    measured, untouched = make_training(config), make_training(config)
    chosen = tuning.fastest(measured, tuning.candidates(CPU, 1, None))
    assert bits(measured) == bits(untouched)
    for training in (measured, untouched):
        tuning.apply(training, chosen)
    torch.manual_seed(0)
    after = bits(steps(measured))
    torch.manual_seed(0)
    assert bits(steps(untouched)) == after


def test_channels_last_is_used_and_is_the_same_training_but_for_rounding(make_config: MakeConfig, make_training: MakeTraining) -> None:
    trainings = []
    for layout in ("contiguous", "channels-last"):
        training = make_training(make_config(architecture="dcgan"))
        tuning.apply(training, Tuning(num_threads=1, memory_layout=layout))
        trainings.append(steps(training))
    weights = [dict(training.matches["main"].average.named_parameters()) for training in trainings]
    layouts = {name: weight.is_contiguous(memory_format=torch.channels_last) for name, weight in weights[1].items() if weight.dim() == 4}
    assert all(layouts.values())
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-4) for name in weights[0])


def test_a_cut_run_with_another_layout_goes_on_to_the_same_bits(make_config: MakeConfig, make_training: MakeTraining) -> None:
    config = make_config(architecture="dcgan")
    whole, cut, resumed = (make_training(config) for _ in range(3))
    for training in (whole, cut, resumed):
        tuning.apply(training, Tuning(num_threads=1, memory_layout="channels-last"))
    saved = io.BytesIO(bits(steps(cut, 3)))
    resumed.load_state_dict(torch.load(saved, weights_only=True))
    ends = []
    for training, count in ((whole, 7), (resumed, 4)):
        steps(training, count)
        ends.append({name: weight for match in training.matches.values() for name, weight in match.average.state_dict().items()})
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())


def test_compiled_networks_train_alike_and_a_penalised_discriminator_stays_plain(
    make_config: MakeConfig, make_training: MakeTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    plain = Tuning(num_threads=1, memory_layout="contiguous")
    trainings = []
    for tuned in (plain, plain.model_copy(update={"compiled": True})):
        training = make_training(make_config(penalty="r1", options={**SMALL, "dropout": 0.0}))
        tuning.apply(training, tuned)
        trainings.append(steps(training, 3))
    match = trainings[1].matches["main"]
    assert match.compiled == [match.game.generator]
    weights = [dict(training.matches["main"].average.named_parameters()) for training in trainings]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-4) for name in weights[0])


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {each.compiled for each in tuning.candidates(CPU, 1, None, compiling=True)} == {False, True}
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="--compile needs a C"):
        tuning.candidates(CPU, 1, None, compiling=True)
