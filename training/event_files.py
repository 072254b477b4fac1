"""A run's curves and samples as tensorboard's event files, below `<run>/events`; the extra `tensorboard` reads and writes them.

A step is an image shown to the discriminator. Everything in them is also in the run's own files.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from training.contract import Metrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "events"


class EventFiles:
    """What is written is on disk when a method returns: who looks sees it, and no death takes it back."""

    def __init__(self, writer: "SummaryWriter") -> None:
        self._writer = writer
        writer.flush()  # so that what it hides is hidden now

    def measured(self, metrics: Metrics) -> None:
        """`losses/generator_loss`, `losses/level-8/score_real`, `evaluation/kid_efficientnet_lite0`, `speed/images_per_second`."""
        scalars = {f"losses/{name}": value for name, value in metrics.losses.items()}
        scalars |= {f"evaluation/{name}": value for name, value in metrics.evaluation.items()}
        if metrics.images_per_second is not None:
            scalars["speed/images_per_second"] = metrics.images_per_second
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, metrics.images)
        self._writer.flush()

    def sampled(self, images: int, path: Path) -> None:
        """A grid of samples, a PNG, as `samples`."""
        with Image.open(path) as picture:
            self._writer.add_image("samples", np.asarray(picture.convert("RGB")), images, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def open_event_files(folder: Path, from_images: int) -> EventFiles | None:
    """Event files of a run directory, beside those of earlier attempts; None where tensorboard is not installed.

    Args:
        from_images: where the run begins or goes on. What a dead process wrote beyond is hidden, since it is written again.
    """
    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    # what is purged begins with its step, and the line at the checkpoint itself stays
    return EventFiles(SummaryWriter(str(folder / FOLDER), purge_step=from_images + 1))
