"""What of the catalogue goes together: an architecture, a loss, a penalty and the tricks beside them, or the reasons why not."""

from collections.abc import Iterator
from dataclasses import dataclass

from training.game import Architecture, Norm
from training.losses import AdversarialLoss
from training.penalties import Penalty


@dataclass(frozen=True)
class Combination:
    """What a config asks for."""

    architecture: Architecture
    loss: AdversarialLoss
    penalty: Penalty | None = None
    spectral_norm: bool = False
    diff_augment: bool = False

    @property
    def penalties(self) -> tuple[Penalty, ...]:
        """The one that the loss cannot do without, and the one that was asked for."""
        return tuple(each for each in (self.loss.penalty(), self.penalty) if each is not None)

    @property
    def norm(self) -> Norm:
        """The strongest normalisation that the discriminator may hold.

        A penalty wants every image judged by itself. Spectral norm bounds the slope of each layer, which any norm would undo.
        """
        if self.spectral_norm:
            return "none"
        return "sample" if self.penalties else "batch"

    def refusals(self) -> list[tuple[str, str]]:
        """(pointer into the config, sentence) for each part that does not go with another; empty where it can be trained."""
        return list(self._refusals())

    def _refusals(self) -> Iterator[tuple[str, str]]:
        architecture, loss = self.architecture, self.loss
        asked = {"loss": loss.key}
        if self.penalty is not None:
            asked["penalty"] = self.penalty.key
        asked |= {trick: trick for trick in ("spectral_norm", "diff_augment") if getattr(self, trick)}
        for by in (architecture, loss):
            for field, name in asked.items():
                if name in by.refused:
                    yield f"/{field}", f"{name} cannot be used with {by.key}: {by.refused[name]}"
