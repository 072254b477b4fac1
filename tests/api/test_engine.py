"""What an engine promises: nothing broken is loaded, and a row has the same bits in any company."""

import logging
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from app import pixels
from app.engine import BUCKETS, RUNS_TO_KNOW, BrokenVersionError, Engine, ModuleName
from training.contract import FileSpec, Manifest, ModuleSpec, Probe

CPU = torch.device("cpu")
MakeVersion = Callable[..., Manifest]


def rows(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed))


def loaded(make_version: MakeVersion, repository: Path, **options: object) -> Engine:
    manifest = make_version(repository, "tiny", **options)
    return Engine.load(repository / "tiny/1", manifest, CPU)


def reason_of(make_version: MakeVersion, repository: Path, **options: object) -> str:
    with pytest.raises(BrokenVersionError) as caught:
        loaded(make_version, repository, **options)
    reason = str(caught.value)
    assert "\n" not in reason
    return reason


@pytest.fixture(params=["linear", "conv"])
def engine(request: pytest.FixtureRequest, make_version: MakeVersion, repository: Path) -> Engine:
    return loaded(make_version, repository, network=request.param, channels=3)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


# --- running ------------------------------------------------------------------------------------------------------------------


def test_generator_gives_pixels_of_what_the_network_gives(engine: Engine, repository: Path) -> None:
    latents = rows(5, (8,))
    images = engine.run("generator", {"latent": latents})
    assert (images.dtype, tuple(images.shape), images.device) == (torch.uint8, (5, 3, 8, 8), CPU)
    network = torch.jit.load(repository / "tiny/1/generator.pt").eval()
    difference = images.int() - pixels.to_uint8(network(latents)).int()
    assert difference.abs().max() <= 1


def test_discriminator_gives_one_score_a_row_and_averages_a_map(engine: Engine, repository: Path) -> None:
    images = rows(6, (3, 8, 8))
    scores = engine.run("discriminator", {"image": images})
    assert (scores.dtype, tuple(scores.shape)) == (torch.float32, (6,))
    network = torch.jit.load(repository / "tiny/1/discriminator.pt").eval()
    assert torch.allclose(scores, network(images).reshape(6, -1).mean(1), atol=1e-6)


@pytest.mark.parametrize("module", ["generator", "discriminator"])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(threads: None, engine: Engine, module: ModuleName) -> None:
    name, shape = ("latent", (8,)) if module == "generator" else ("image", (3, 8, 8))
    values = rows(64, shape)
    together = engine.run(module, {name: values})
    for count in (1, 2, 3, 4, 7, 16, 33, 63):
        for start in range(0, 65 - count, max(1, count // 2)):
            part = engine.run(module, {name: values[start : start + count]})
            assert torch.equal(part, together[start : start + count]), (count, start)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(engine.run(module, {name: values[order]}), together[order])


def test_the_largest_bucket_is_kept_and_batches_of_one_and_two_are_never_run(engine: Engine) -> None:
    for buckets in engine.buckets.values():
        assert buckets[-1] == 64
        assert set(buckets) <= set(BUCKETS)
        assert min(buckets) >= 4
    assert set(engine.buckets) == {"generator", "discriminator"}


def test_a_turn_is_the_largest_batch_that_is_not_known_to_take_too_long(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(size: int) -> None:
        engine.run("generator", {spec.name: rows(size, spec.shape) for spec in engine.inputs("generator")})

    for _ in range(RUNS_TO_KNOW):
        assert engine.turn_rows("generator") == 64, "not known yet, or short enough"
        run(64)
    monkeypatch.setattr("app.engine.TURN_SECONDS", 0.0)
    sizes = engine.buckets["generator"]
    assert engine.turn_rows("generator") == sizes[-2]
    for size in sizes:
        for _ in range(RUNS_TO_KNOW):
            run(size)
    assert engine.turn_rows("generator") == sizes[0]


def test_reloading_gives_the_same_bits(engine: Engine, repository: Path) -> None:
    again = Engine.load(repository / "tiny/1", engine.manifest, CPU)
    values = {"image": rows(9, (3, 8, 8))}
    assert torch.equal(again.run("discriminator", values), engine.run("discriminator", values))
    assert again.buckets == engine.buckets


def test_the_order_of_the_keyword_tensors_does_not_matter(make_version: MakeVersion, repository: Path) -> None:
    engine = loaded(make_version, repository, classes=("shirt", "shoe"))
    latent, label = rows(3, (8,)), torch.tensor([[1.0, 0.0]] * 3)
    assert torch.equal(
        engine.run("generator", {"latent": latent, "label": label}), engine.run("generator", {"label": label, "latent": latent})
    )


def test_a_version_without_discriminator_loads(make_version: MakeVersion, repository: Path) -> None:
    engine = loaded(make_version, repository, with_discriminator=False)
    assert list(engine.buckets) == ["generator"]
    assert len(engine.run("generator", {"latent": rows(1, (8,))})) == 1


# --- networks that must not be served -----------------------------------------------------------------------------------------


class Wrong(nn.Module):
    """A generator of (N, 1, 8, 8) that a subclass spoils."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 64)
        nn.init.normal_(self.project.weight, generator=torch.Generator().manual_seed(3))


class BatchMean(Wrong):
    def forward(self, latent: Tensor) -> Tensor:
        images = self.project(latent).reshape(-1, 1, 8, 8)
        return torch.tanh(images - images.mean(0, keepdim=True))


class LeaksALittle(Wrong):
    def forward(self, latent: Tensor) -> Tensor:
        images = self.project(latent).reshape(-1, 1, 8, 8)
        return torch.tanh(images + 1e-6 * images.flip(0))


class KnowsItsPlace(Wrong):
    def forward(self, latent: Tensor) -> Tensor:
        images = self.project(latent).reshape(-1, 1, 8, 8)
        return torch.tanh(images + 1e-6 * torch.arange(len(images)).reshape(-1, 1, 1, 1))


class FavoursAPlace(Wrong):
    def forward(self, latent: Tensor) -> Tensor:
        images = self.project(latent).reshape(-1, 1, 8, 8)
        return torch.tanh(images + 1e-6 * (torch.arange(len(images)) == 5).float().reshape(-1, 1, 1, 1))


class DrawsItself(Wrong):
    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(self.project(latent) + 1e-6 * torch.rand(64)).reshape(-1, 1, 8, 8)


class CountsItsCalls(Wrong):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, latent: Tensor) -> Tensor:
        self.calls += 1e-3
        return torch.tanh(self.project(latent) + self.calls).reshape(-1, 1, 8, 8)


class KnowsTheBatchSize(Wrong):
    """Right in the largest bucket, wrong in the last bits of 4 and 16."""

    def forward(self, latent: Tensor) -> Tensor:
        scale = 1.0000002 if latent.size(0) in (4, 16) else 1.0
        return torch.tanh(self.project(latent)).reshape(-1, 1, 8, 8) * scale


class OtherNames(Wrong):
    def forward(self, noise: Tensor) -> Tensor:
        return torch.tanh(self.project(noise)).reshape(-1, 1, 8, 8)


class OneMoreArgument(Wrong):
    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        return torch.tanh(self.project(latent)).reshape(-1, 1, 8, 8)


class OtherShape(Wrong):
    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(self.project(latent)).reshape(-1, 1, 4, 16)


class OtherType(Wrong):
    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(self.project(latent)).reshape(-1, 1, 8, 8).double()


class TwoTensors(Wrong):
    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        images = torch.tanh(self.project(latent)).reshape(-1, 1, 8, 8)
        return images, images


class NaNWeights(Wrong):
    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.project.bias, float("nan"))

    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(self.project(latent)).reshape(-1, 1, 8, 8)


class SometimesInfinite(Wrong):
    """Finite on the probe, and not on every latent."""

    def forward(self, latent: Tensor) -> Tensor:
        return self.project(latent).reshape(-1, 1, 8, 8) / (latent[:, :1] < 2.0).float().reshape(-1, 1, 1, 1)


class Raises(Wrong):
    def forward(self, latent: Tensor) -> Tensor:
        if latent.size(0) > 8:
            raise ValueError("no more than eight")
        return torch.tanh(self.project(latent)).reshape(-1, 1, 8, 8)


class WrongWidth(Wrong):
    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(self.project(latent[:, :7])).reshape(-1, 1, 8, 8)


ANY_PROBE = Probe(seed=0, num_rows=4, expected=(0.0,) * 64, tolerance=100.0)


@pytest.mark.parametrize("spoiled", [BatchMean, LeaksALittle, KnowsItsPlace, FavoursAPlace, DrawsItself, CountsItsCalls])
def test_a_row_that_depends_on_its_company_is_refused(spoiled: type[Wrong], make_version: MakeVersion, repository: Path) -> None:
    reason = reason_of(make_version, repository, generator=spoiled(), probe=ANY_PROBE)
    assert reason == "the generator's output for one row changes with its place in the batch or with its batch-mates"


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        (OtherNames, "the generator takes (noise), and its manifest declares (latent)"),
        (OneMoreArgument, "the generator takes (latent, label), and its manifest declares (latent)"),
        (OtherShape, "the generator gives torch.float32 (1, 4, 16) a row, and its manifest declares torch.float32 (1, 8, 8)"),
        (OtherType, "the generator gives torch.float64 (1, 8, 8) a row"),
        (TwoTensors, "the generator gives tuple a row"),
        (NaNWeights, "the generator gives 4096 values that are not finite"),
        (SometimesInfinite, "values that are not finite"),
        (Raises, "the generator does not run: "),
        (WrongWidth, "the generator does not run: "),
    ],
)
def test_a_network_that_is_not_what_its_manifest_declares_is_refused(
    spoiled: type[Wrong], words: str, make_version: MakeVersion, repository: Path
) -> None:
    assert words in reason_of(make_version, repository, generator=spoiled(), probe=ANY_PROBE)


def test_a_discriminator_is_examined_too(make_version: MakeVersion, repository: Path) -> None:
    class LooksAside(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            scores = image.flatten(1).sum(1)
            return scores + 1e-6 * scores.flip(0)

    assert "the discriminator's output for one row changes" in reason_of(make_version, repository, discriminator=LooksAside())


def test_a_bucket_that_differs_is_dropped_and_told(make_version: MakeVersion, repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        engine = loaded(make_version, repository, generator=KnowsTheBatchSize(), with_discriminator=False)
    kept = engine.buckets["generator"]
    assert not {4, 16} & set(kept)
    assert {32, 64} <= set(kept)
    assert "batches of 4" in caplog.text
    values = rows(64, (8,))
    together = engine.run("generator", {"latent": values})
    assert torch.equal(engine.run("generator", {"latent": values[:3]}), together[:3])


# --- probes and files ---------------------------------------------------------------------------------------------------------


def with_generator(manifest: Manifest, **changes: object) -> Manifest:
    return manifest.model_copy(update={"generator": manifest.generator.model_copy(update=changes)})


def with_probe(manifest: Manifest, **changes: object) -> Manifest:
    return with_generator(manifest, probe=manifest.generator.probe.model_copy(update=changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"expected": (0.5,) * 64}, "where 0.5 was published, more than 0.0001 apart"),
        ({"expected": (0.5,) * 63}, "probe holds 63 values, and its output gives 64"),
        ({"seed": 1}, "was published, more than"),
        ({"num_rows": 65}, "probe has 65 rows; 1 to 64 are allowed"),
        ({"num_rows": 0}, "probe has 0 rows"),
    ],
)
def test_a_probe_that_is_not_met_is_refused(changes: dict[str, object], words: str, make_version: MakeVersion, repository: Path) -> None:
    manifest = with_probe(make_version(repository, "tiny"), **changes)
    with pytest.raises(BrokenVersionError) as caught:
        Engine.load(repository / "tiny/1", manifest, CPU)
    assert words in str(caught.value)


def test_a_difference_within_the_probes_tolerance_is_allowed(make_version: MakeVersion, repository: Path) -> None:
    manifest = make_version(repository, "tiny")
    expected = tuple(value + 5e-5 for value in manifest.generator.probe.expected)
    Engine.load(repository / "tiny/1", with_probe(manifest, expected=expected), CPU)


def test_a_module_without_torchscript_file_is_refused(make_version: MakeVersion, repository: Path) -> None:
    manifest = with_generator(make_version(repository, "tiny"), files={})
    with pytest.raises(BrokenVersionError, match="names no TorchScript file of the generator"):
        Engine.load(repository / "tiny/1", manifest, CPU)


def test_a_file_that_is_no_torchscript_is_refused_though_its_hash_is_right(
    make_version: MakeVersion, repository: Path, tmp_path: Path
) -> None:
    manifest = make_version(repository, "tiny")
    samples = manifest.samples
    with pytest.raises(BrokenVersionError, match="the generator does not run: "):
        Engine.load(repository / "tiny/1", with_generator(manifest, files={"torchscript": samples}), CPU)


FILES = ["generator.pt", "discriminator.pt", "samples.png"]


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_refused_by_name(file: str, make_version: MakeVersion, repository: Path) -> None:
    manifest = make_version(repository, "tiny")
    (repository / "tiny/1" / file).unlink()
    with pytest.raises(BrokenVersionError, match=f"{file} is missing"):
        Engine.load(repository / "tiny/1", manifest, CPU)


def spoil(content: bytes, dice: random.Random) -> bytes:
    """One byte flipped, a tail cut off, or a run of zeros."""
    place = dice.randrange(len(content))
    match dice.randrange(3):
        case 0:
            return content[:place] + bytes([content[place] ^ (1 << dice.randrange(8))]) + content[place + 1 :]
        case 1:
            return content[:place]
        case _:
            zeros = content[:place] + bytes(min(64, len(content) - place)) + content[place + 64 :]
            return zeros if zeros != content else content + b"\0"


@pytest.mark.parametrize("file", FILES)
def test_sixty_corruptions_of_a_file_are_all_refused_before_anything_is_opened(
    file: str, make_version: MakeVersion, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_version(repository, "tiny")
    folder = repository / "tiny/1"
    path, whole, dice = folder / file, (folder / file).read_bytes(), random.Random(7)  # noqa: S311
    opened: list[object] = []
    monkeypatch.setattr(torch.jit, "load", lambda *args, **_: opened.append(args))
    for _ in range(60):
        path.write_bytes(spoil(whole, dice))
        with pytest.raises(BrokenVersionError, match=file):
            Engine.load(folder, manifest, CPU)
    assert opened == []


def test_a_link_is_no_file_of_a_version(make_version: MakeVersion, repository: Path) -> None:
    manifest = make_version(repository, "tiny")
    folder = repository / "tiny/1"
    shutil.move(folder / "generator.pt", repository / "elsewhere.pt")
    (folder / "generator.pt").symlink_to(repository / "elsewhere.pt")
    with pytest.raises(BrokenVersionError, match=r"generator\.pt is missing"):
        Engine.load(folder, manifest, CPU)


def test_a_wrong_hash_in_the_manifest_is_refused(make_version: MakeVersion, repository: Path) -> None:
    manifest = make_version(repository, "tiny")
    file: FileSpec = manifest.generator.files["torchscript"]
    module: ModuleSpec = manifest.generator.model_copy(update={"files": {"torchscript": file.model_copy(update={"sha256": "0" * 64})}})
    with pytest.raises(BrokenVersionError, match="sha256"):
        Engine.load(repository / "tiny/1", manifest.model_copy(update={"generator": module}), CPU)


def test_a_file_that_is_replaced_after_all_were_hashed_is_not_opened(make_version: MakeVersion, repository: Path) -> None:
    manifest = make_version(repository, "tiny")
    steps = Engine.loading(repository / "tiny/1", manifest, CPU)
    next(steps)  # the generator is open, the discriminator is not
    other = repository / "tiny/1/discriminator.pt"
    other.write_bytes(other.read_bytes()[::-1])
    with pytest.raises(BrokenVersionError, match=r"discriminator\.pt does not have the sha256"):
        list(steps)
