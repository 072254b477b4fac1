"""What a run has written, for whoever watches it: figures, sample grids, its summary and its log, as they are at this moment."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from app import encoders
from app.errors import NotFound, UnknownJob
from app.schemas.training import JobMetrics
from training.files import runs

MAX_FRAMES = 100  # of an animation; of more grids, so many are taken, evenly spread
FRAMES_PER_SECOND = 8.0
_log = logging.getLogger(__name__)


@contextmanager
def _reading(folder: Path, file: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise UnknownJob(f"job {folder.name} is damaged, or was removed: its {file} cannot be read") from error


def metrics(folder: Path, after: int | None) -> JobMetrics:
    """Lines of metrics, oldest first, of more than `after` images, and what sample grids there are."""
    with _reading(folder, runs.METRICS):
        lines = [line for line in runs.read_metrics(folder) if after is None or line.images > after]
    return JobMetrics(metrics=lines, samples=runs.sample_images(folder))


def samples(folder: Path, images: int | None = None) -> Path:
    """The grid of the fixed latents after so many images; the newest where none is named.

    Raises:
        NotFound: there is none, or not yet.
    """
    known = runs.sample_images(folder)
    if images is None and known:
        images = known[-1]
    if images in known:
        return runs.sample_path(folder, images)
    if not known:
        raise NotFound(_no_samples(folder))
    near = min(known, key=lambda count: abs(count - (images or 0)))
    raise NotFound(f"job {folder.name} has samples of {near} images, and none of {images}; GET /jobs/{folder.name}/metrics names all")


def _no_samples(folder: Path) -> str:
    return f"job {folder.name} has no samples yet; the first come when it has begun to train"


def progress(folder: Path) -> bytes:
    """The fixed latents through time: an endless GIF, whose last frame is the newest grid.

    Raises:
        NotFound: there are no samples yet.
    """
    frames = []
    for images in runs.sample_images(folder, MAX_FRAMES):
        path = runs.sample_path(folder, images)
        try:
            with Image.open(path) as picture:
                frames.append(np.atleast_3d(np.asarray(picture)))
        except (OSError, SyntaxError) as error:  # as Pillow says that a file is damaged
            _log.warning("the samples %s cannot be read and are left out of the animation: %s", path, error)
    if not frames:
        raise NotFound(_no_samples(folder))
    return encoders.gif_animation(np.stack(frames), FRAMES_PER_SECOND)


def summary(folder: Path) -> Path:
    """Raises NotFound where it is not drawn yet."""
    path = folder / runs.SUMMARY
    if not path.is_file():
        raise NotFound(f"job {folder.name} has no summary yet; it is drawn while the job trains")
    return path


def log(folder: Path, num_bytes: int) -> bytes:
    """The end of the log, in whole lines."""
    with _reading(folder, runs.LOG), (folder / runs.LOG).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - num_bytes - 1))
        tail = file.read()
    return tail if size <= num_bytes else tail.partition(b"\n")[2]
