"""What modules of pictures, of any size and of many pixels, must show before they are served; and parts."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from tiny_versions import LATENT, Module, enlarging, normalising, pair_judging, picture_spec, publish, single, stages
from torch import Tensor, nn

from app.engine import BrokenVersionError, Engine
from training.contract import Probe

CPU = torch.device("cpu")


def loaded(repository: Path, generator: Module, **more: object) -> Engine:
    return Engine.load(repository / "tiny/1", publish(repository, "tiny", generator, **more), CPU)  # type: ignore[arg-type]


def reason_of(repository: Path, generator: Module, **more: object) -> str:
    with pytest.raises(BrokenVersionError) as caught:
        loaded(repository, generator, **more)
    return str(caught.value)


# --- pictures of any size -----------------------------------------------------------------------------------------------------


def test_what_makes_pictures_of_pictures_or_takes_any_size_runs_alone(repository: Path) -> None:
    engine = loaded(repository, normalising(size=8), discriminator=pair_judging())
    assert engine.buckets == {"generator": (1,), "discriminator": (1,)}
    assert engine.max_rows("generator") == 1


def test_pairs_of_one_size_are_judged_in_batches(repository: Path) -> None:
    assert loaded(repository, normalising(size=8), discriminator=pair_judging(size=8)).buckets["discriminator"][-1] == 64


@pytest.mark.parametrize("module", [enlarging(scale=4), enlarging(1, 1), normalising(), normalising(size=8)])
def test_a_network_that_is_what_its_manifest_declares_is_served(repository: Path, module: Module) -> None:
    assert loaded(repository, module).buckets == {"generator": (1,)}


def test_a_halo_that_is_too_small_is_refused(repository: Path) -> None:
    assert loaded(repository, enlarging(halo=3))
    reason = reason_of(repository / "other", enlarging(halo=1))
    assert reason.startswith("the generator's output changes by 0.")
    assert reason.endswith(" with pixels beyond its halo of 1")


def test_an_output_that_needs_all_pixels_cannot_declare_a_halo(repository: Path) -> None:
    module = normalising()
    whole = module._replace(inputs=(picture_spec(1, size_multiple=2, halo=6),))
    assert "with pixels beyond its halo of 6" in reason_of(repository, whole)


def test_a_scale_that_is_not_declared_is_refused(repository: Path) -> None:
    module = enlarging(scale=2)._replace(inputs=(picture_spec(3, halo=2),))
    assert reason_of(repository, module) == "the generator makes (2, 2) of a picture of (1, 1), and its manifest declares (1, 1)"


class NeedsFour(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.pad(image, (3, 3, 3, 3), mode="reflect")[:, :, 3:-3, 3:-3]


def test_a_size_that_is_declared_and_does_not_run_is_refused(repository: Path) -> None:
    rules = {"size_multiple": 2}
    module = Module(NeedsFour(), (picture_spec(1, **rules),), picture_spec(1))
    assert reason_of(repository, module).startswith("the generator does not run: ")
    assert loaded(repository / "other", module._replace(inputs=(picture_spec(1, size_multiple=4),)))


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        self.count += 1
        return image * 0.5 + self.count * 1e-6


class GivesInfinities(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image / (image > -0.99).float()


ANY_PROBE = Probe(seed=0, num_rows=1, expected=(0.0,) * 64, tolerance=100.0)


@pytest.mark.parametrize(
    ("network", "words"),
    [(Remembers, "output for one row changes with what ran before"), (GivesInfinities, "values that are not finite")],
)
def test_a_network_that_must_not_be_served_is_refused(repository: Path, network: Callable[[], nn.Module], words: str) -> None:
    spec = picture_spec(1, 8, 8)
    assert words in reason_of(repository, Module(network(), (spec,), spec), probe=ANY_PROBE)


# --- many pixels --------------------------------------------------------------------------------------------------------------


class Flat(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(latent[:, :1, None, None]).expand(-1, 1, self.size, self.size).contiguous()


@pytest.mark.parametrize(("size", "largest"), [(32, 64), (33, 32), (64, 16), (128, 4), (256, 4)])
def test_images_of_many_pixels_go_in_smaller_batches(repository: Path, size: int, largest: int) -> None:
    engine = loaded(repository, Module(Flat(size), (LATENT,), picture_spec(1, size, size)))
    assert engine.max_rows("generator") == largest


# --- parts --------------------------------------------------------------------------------------------------------------------


def test_parts_that_take_what_the_generator_takes_are_served(repository: Path) -> None:
    engine = loaded(repository, single(), parts={"stages": stages(), "level": enlarging(1)})
    assert set(engine.buckets) == {"generator", "stages"}
    latents = {"latent": torch.randn(5, 8)}
    wide, image = engine.run("stages", latents), engine.run("generator", latents)
    assert wide.shape == (5, 1, 8, 16)
    assert torch.equal(wide[..., 8:], image)


@pytest.mark.parametrize("part", ["stages", "level"])
def test_a_damaged_part_breaks_its_version_served_or_not(repository: Path, part: str) -> None:
    manifest = publish(repository, "tiny", single(), parts={"stages": stages(), "level": enlarging(1)})
    (repository / "tiny" / "1" / f"{part}.pt").write_bytes(b"something else")
    with pytest.raises(BrokenVersionError, match=f"{part}.pt"):
        Engine.load(repository / "tiny/1", manifest, CPU)


def test_a_part_cannot_have_the_name_of_a_network(repository: Path) -> None:
    parts: Mapping[str, Module] = {"discriminator": stages()}
    assert reason_of(repository, single(), parts=parts) == "manifest.json calls a part discriminator, which is no name for a part"
