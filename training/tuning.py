"""How fast this machine trains a run: intra-op threads, memory layout and torch.compile, chosen once by a short measurement.

Either changes the last bits of every sum, so that what was chosen is written into the run, and a resume uses it again.
"""

import logging
import math
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import product

import torch

from training.contract import MemoryLayout, Tuning, UserError
from training.files.machine import num_cores, num_training_threads
from training.loop import Training

MIN_STEPS = 1000  # a shorter run is over before a measurement has paid for itself
WARM_UP, ROUNDS, STEPS = 2, 3, 2  # for each candidate; all take turns, so that a busy moment hurts them alike
MARGIN = 0.95  # of the first candidate's time: what is hardly faster is not worth other bits
_FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
_log = logging.getLogger(__name__)


def set_up_torch() -> None:
    """What every training of a process has."""
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision("high")  # TF32, on GPUs that have it


def wait_for(device: torch.device) -> None:
    """A GPU only queues what it is given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def candidates(device: torch.device, num_threads: int | None, layout: MemoryLayout | None, *, compiling: bool = False) -> list[Tuning]:
    """What may be chosen from, the usual one first; what is given is left alone.

    Args:
        compiling: whether torch.compile is tried too, which takes up to minutes.

    Raises:
        UserError: torch.compile is to be tried, and there is nothing that it could compile with.
    """
    if compiling and device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UserError("--compile needs a C++ compiler (g++ or clang++), and none is on the PATH; install one, or leave --compile out")
    threads = [num_threads] if num_threads else [num_training_threads()]
    if num_threads is None and device.type == "cpu":
        threads += sorted({min(2**power, num_cores()) for power in range(math.ceil(math.log2(num_cores())) + 1)} - set(threads))
    layouts: Sequence[MemoryLayout] = [layout] if layout else ["contiguous", "channels-last"]
    plain = [Tuning(num_threads=number, memory_layout=each) for number, each in product(threads, layouts)]
    return plain + [each.model_copy(update={"compiled": True}) for each in plain if compiling]


def apply(training: Training, tuning: Tuning) -> None:
    """Use it from now on; the weights keep their values."""
    torch.set_num_threads(tuning.num_threads)
    for match in training.matches.values():
        for network in (match.game.generator, match.game.discriminator, match.average):
            network.to(memory_format=_FORMATS[tuning.memory_layout])
        if tuning.compiled:
            match.compile(training.rules)
    if tuning.compiled:
        torch.compiler.set_stance("default")


def fastest(training: Training, among: Sequence[Tuning]) -> Tuning:
    """The candidate whose steps take least time; the training is as it was, bit for bit.

    A step here is one of every game, as later it is played after its warm-up.
    """
    before = deepcopy(training.state_dict())
    seconds: dict[Tuning, list[float]] = {tuning: [] for tuning in among}
    for tuning, is_warm in _turns(among):
        apply(training, tuning)
        with _as_asked(tuning, among):
            begin = time.perf_counter()
            training.rehearse()
            wait_for(training.device)
            if is_warm:
                seconds[tuning].append(time.perf_counter() - begin)
    apply(training, among[0])
    training.load_state_dict(before)
    medians = {tuning: statistics.median(taken) for tuning, taken in seconds.items()}
    best = min(medians, key=lambda tuning: medians[tuning])
    chosen = best if medians[best] < MARGIN * medians[among[0]] else among[0]
    told = ", ".join(f"{_words(tuning)} {1000 * median:.3g} ms" for tuning, median in medians.items())
    _log.info("a step takes with %s; chosen: %s", told, _words(chosen))
    if any(tuning.compiled for tuning in among) and not chosen.compiled:
        torch.compiler.set_stance("force_eager")  # what was compiled stays so, and is not used
    return chosen


@contextmanager
def _as_asked(tuning: Tuning, among: Sequence[Tuning]) -> Iterator[None]:
    """Networks are compiled once, and run plain where a candidate says so."""
    if tuning.compiled or not any(each.compiled for each in among):
        yield
    else:
        with torch.compiler.set_stance("force_eager"):
            yield


def _turns(among: Sequence[Tuning]) -> Iterator[tuple[Tuning, bool]]:
    """Each candidate's steps, round by round, and whether the step counts."""
    for round_number, tuning in product(range(ROUNDS), among):
        for step in range(STEPS + (WARM_UP if round_number == 0 else 1)):
            yield tuning, step >= (WARM_UP if round_number == 0 else 1)


def _words(tuning: Tuning) -> str:
    threads = f"{tuning.num_threads} thread{'s' if tuning.num_threads > 1 else ''}"
    return ", ".join([threads, tuning.memory_layout, *(["compiled"] if tuning.compiled else [])])
