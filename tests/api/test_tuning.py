"""What `ganserve tune` measures, and what it makes of that."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from app import choices
from app.choices import Backend, Choice
from app.settings import Settings
from app.tuning import Row, Tuning, _fastest_backends, _thread_numbers, measure
from training.contract import Manifest

MakeVersion = Callable[..., Manifest]
Console = Callable[..., object]


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before, "whoever measures puts things back"


def row(backend: Backend, *seconds: float, module: str = "generator") -> Row:
    """Of batches of 4, 16 and 64."""
    return Row("tiny", module, backend, 1, dict(zip((4, 16, 64), seconds, strict=True)))


def test_every_module_is_measured_by_every_back_end_that_can_run_it(make_version: MakeVersion, repository: Path) -> None:
    make_version(repository, "tiny", network="conv")
    make_version(repository, "blind", with_discriminator=False)
    (repository / "broken/1").mkdir(parents=True)
    tuned = measure(Settings(models=(repository,), state=repository.parent / "state", threads=1), 20)
    by_torch: list[Backend] = ["torchscript", "torchscript-channels-last", "torchscript-frozen"]
    modules = [("blind", "generator"), ("tiny", "discriminator"), ("tiny", "generator")]
    assert sorted((*key, row.backend) for row in tuned.rows for key in [(row.model, row.module)]) == [
        (*module, backend) for module in modules for backend in by_torch
    ]
    assert all(seconds > 0 for row in tuned.rows for seconds in row.seconds.values())
    assert sorted((row.model, row.module) for row in tuned.chosen) == modules
    assert tuned.choices.threads == 1, "as it was asked for"
    [sentence] = tuned.left_out
    assert sentence.startswith("broken is not measured: ")


def test_other_numbers_of_threads_are_measured_with_what_was_chosen(make_version: MakeVersion, repository: Path) -> None:
    make_version(repository, "tiny", with_discriminator=False)
    tuned = measure(Settings(models=(repository,), state=repository.parent / "state"), 20, cores=3)
    assert {row.threads for row in tuned.rows} == {1, 2}
    assert {row.threads for row in tuned.chosen} == {tuned.threads or 1}


def test_what_there_is_no_time_for_stays_as_usual_and_is_told(make_version: MakeVersion, repository: Path) -> None:
    make_version(repository, "tiny")
    tuned = measure(Settings(models=(repository,), state=repository.parent / "state", threads=1), 0)
    assert (tuned.rows, tuned.choices.models) == ([], {})
    assert tuned.left_out == ["tiny is not measured: there was no time for it; give more --seconds"]


def test_another_back_end_is_chosen_only_where_it_is_clearly_faster() -> None:
    usual, hardly, clearly = row("torchscript", 4, 4, 4), row("torchscript-frozen", 3.8, 3.8, 3.8), row("onnxruntime", 3, 3, 3)
    assert _fastest_backends([usual, hardly]) == [usual]
    assert _fastest_backends([usual, hardly, clearly]) == [clearly]
    judge = row("torchscript", 1, 1, 1, module="discriminator")
    assert _fastest_backends([usual, judge, clearly]) == [clearly, judge], "module by module"


def test_one_image_counts_as_much_as_many() -> None:
    assert row("torchscript", 4, 8, 16).cost == pytest.approx((4 * 16 / 64) ** 0.5)


def test_batches_are_kept_smaller_where_that_is_clearly_faster_an_image() -> None:
    assert row("torchscript", 4, 8, 32).choice == Choice()
    assert row("torchscript", 4, 7.8, 32).choice == Choice(), "hardly faster"
    assert row("torchscript", 4, 8, 48).choice == Choice(max_rows=16)


def test_the_file_holds_what_is_not_as_usual() -> None:
    rows = [row("torchscript", 4, 8, 32), row("onnxruntime", 1, 2, 3, module="discriminator")]
    tuned = Tuning(rows, rows, threads=2).choices
    assert tuned.models == {"tiny": {"discriminator": Choice(backend="onnxruntime")}}
    assert (tuned.threads, tuned.of("tiny", "generator"), tuned.backends) == (2, Choice(), {"onnxruntime"})


def test_one_core_is_left_to_everything_else() -> None:
    assert [sorted(_thread_numbers(cores)) for cores in (1, 2, 3, 4, 8)] == [[], [1], [1, 2], [1, 2, 3], [1, 2, 4, 7]]


def test_a_choice_is_read_back_and_forgotten(tmp_path: Path) -> None:
    assert choices.read(tmp_path / "state") == choices.Choices()
    chosen = choices.Choices(threads=3, models={"tiny": {"generator": Choice(backend="torchscript-frozen", max_rows=8)}})
    choices.write(tmp_path / "state", chosen)
    assert choices.read(tmp_path / "state") == chosen
    assert Settings(choices=chosen).engine_threads == 3
    assert Settings(choices=chosen, threads=1).engine_threads == 1, "a flag goes before it"
    assert (choices.forget(tmp_path / "state"), choices.forget(tmp_path / "state")) == (True, False)
