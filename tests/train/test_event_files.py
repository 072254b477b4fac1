"""Event files, read back as tensorboard reads them."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.contract import Metrics
from training.event_files import FOLDER, EventFiles, open_event_files
from training.export import save_grid


def opened(folder: Path, from_images: int = 0) -> EventFiles:
    files = open_event_files(folder, from_images)
    assert files is not None, "tensorboard is installed where tests are run"
    return files


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / FOLDER))
    accumulator.Reload()
    return accumulator


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def loss(images: int, value: float) -> Metrics:
    return Metrics(images=images, seconds=1.0, losses={"generator_loss": value})


def test_every_figure_has_a_tag_and_its_step_is_the_images(tmp_path: Path) -> None:
    files = opened(tmp_path)
    files.measured(Metrics(images=640, seconds=2.0, images_per_second=320.0, losses={"generator_loss": 0.5, "level-8/score_real": -1.5}))
    files.measured(Metrics(images=1280, seconds=4.0, evaluation={"kid_digits_classifier": 0.25}))
    files.close()
    assert set(read(tmp_path).Tags()["scalars"]) == {
        "losses/generator_loss",
        "losses/level-8/score_real",
        "evaluation/kid_digits_classifier",
        "speed/images_per_second",
    }
    assert scalars(tmp_path, "losses/generator_loss") == [(640, 0.5)]
    assert scalars(tmp_path, "losses/level-8/score_real") == [(640, -1.5)]
    assert scalars(tmp_path, "speed/images_per_second") == [(640, 320.0)]
    assert scalars(tmp_path, "evaluation/kid_digits_classifier") == [(1280, 0.25)]


def test_grids_of_samples_are_kept_pixel_by_pixel(tmp_path: Path) -> None:
    path = tmp_path / "samples.png"
    save_grid(path, torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    files = opened(tmp_path)
    files.sampled(5000, path)
    files.close()
    (event,) = read(tmp_path).Images("samples")
    assert event.step == 5000
    with Image.open(io.BytesIO(event.encoded_image_string)) as kept, Image.open(path) as drawn:
        np.testing.assert_array_equal(np.asarray(kept), np.asarray(drawn))


def test_what_is_written_can_be_read_at_once(tmp_path: Path) -> None:
    files = opened(tmp_path)
    files.measured(loss(20, 0.5))
    assert scalars(tmp_path, "losses/generator_loss") == [(20, 0.5)]
    files.close()


def test_a_resumed_run_writes_what_came_after_its_checkpoint_again(tmp_path: Path) -> None:
    dead = opened(tmp_path)
    for images in (10, 20, 30, 40):
        dead.measured(loss(images, float(images)))
    dead.close()
    files = opened(tmp_path, from_images=20)
    assert scalars(tmp_path, "losses/generator_loss") == [(10, 10.0), (20, 20.0)]
    for images in (30, 40, 50):
        files.measured(loss(images, images + 0.5))
    files.close()
    assert scalars(tmp_path, "losses/generator_loss") == [(10, 10.0), (20, 20.0), (30, 30.5), (40, 40.5), (50, 50.5)]


def test_without_tensorboard_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # how Python says that it is not to be found
    assert open_event_files(tmp_path, 0) is None
    assert list(tmp_path.iterdir()) == []
