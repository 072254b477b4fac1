"""A labelled set of a conditional model's images, for the classes of a data set: as an archive that is sent while it is made, or as a new
set. The images are asked for in pieces, as by /generate, so that others take their turns; a few pieces are in memory at a time."""

import asyncio
import itertools
import json
import re
import shutil
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app import encoders, inference, signature, visits
from app.archives import Archive
from app.errors import Conflict, FieldError, Invalid, Overloaded, UnknownDataset
from app.forms import Made
from app.pools import give_way
from app.schemas.augmentation import MAX_GENERATED, AugmentRequest
from app.schemas.inference import GenerateRequest
from app.service import Service
from training import datasets
from training.contract import DatasetCard, Manifest
from training.datasets import (
    About,
    Batch,
    DamagedDatasetError,
    Dataset,
    DatasetError,
    DatasetNameError,
    OtherDatasetError,
    UnknownDatasetError,
)

PIECE_IMAGES = 64  # with the best of 64 they are all the candidates that a request may have
SECONDS_TO_WAIT = 0.25  # for room in a full queue, once the answer has begun
METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Plan:
    """What is to be made: of each class of the set so many images, with seeds from `seed` on, class after class."""

    dataset: Dataset
    manifest: Manifest
    counts: tuple[int, ...]
    seed: int
    body: AugmentRequest

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.dataset.card.class_names or ()

    def requests(self) -> Iterator[tuple[int, GenerateRequest]]:
        """The pieces: the number of a class, and what is asked for."""
        seed, best_of = self.seed, self.body.best_of
        for label, count in enumerate(self.counts):
            for start in range(0, count, PIECE_IMAGES):
                size = min(PIECE_IMAGES, count - start)
                request = GenerateRequest(
                    model=self.manifest.name,
                    version=self.manifest.version,
                    num_images=size,
                    seed=seed,
                    labels=[self.class_names[label]],
                    truncation=self.body.truncation,
                    best_of=best_of,
                )
                yield label, request
                seed += size * (best_of or 1)


async def plan(service: Service, name: str, body: AugmentRequest) -> Plan:
    """Raises UnknownDataset, UnknownModel, UnknownVersion; Conflict, where the set is damaged or the new name is taken; Invalid, where the
    set has no classes, the model has others or does not take what is asked for, the images have other shapes, or nothing would be made. The
    set's bytes are verified once nothing else is wrong, on a thread of its own: that takes as long as the set is large."""
    folder = service.settings.datasets
    try:
        if body.save_as is not None:
            await asyncio.to_thread(datasets.check_free, body.save_as, folder)
        seen = await asyncio.to_thread(datasets.look, name, folder)
        engine = await service.store.engine(body.model, body.version)
        manifest = engine.manifest
        _check_classes(seen.card, manifest)
        _check_images(seen.card, manifest, include_real=body.include_real)
        counts = await asyncio.to_thread(_counts, seen, body)
        seed = signature.first_seed(body.seed, sum(counts) * (body.best_of or 1))
        inference.check(engine, next(request for _, request in Plan(seen, manifest, counts, seed, body).requests()))
        dataset = await asyncio.to_thread(datasets.load, name, folder, seen.card.content_sha256)
    except UnknownDatasetError as error:
        raise UnknownDataset(str(error)) from error
    except (DatasetNameError, DamagedDatasetError, OtherDatasetError) as error:
        raise Conflict(str(error)) from error
    return Plan(dataset, manifest, counts, seed, body)


def _check_classes(card: DatasetCard, manifest: Manifest) -> None:
    spec = next((spec for spec in manifest.generator.inputs if spec.kind == "label"), None)
    model = f"{manifest.name} version {manifest.version}"
    if card.class_names is None:
        raise Invalid(f"data set {card.name} has no classes that images could be made for; name a set of classes")
    if spec is None:
        raise _wrong("model", f"{model} takes no labels; name a model that was trained with classes")
    if sorted(spec.classes or ()) != sorted(card.class_names):
        theirs, ours = ", ".join(spec.classes or ("no names",)), ", ".join(card.class_names)
        raise _wrong("model", f"the classes of {model} are {theirs}, and those of data set {card.name} are {ours}; they must be the same")


def _check_images(card: DatasetCard, manifest: Manifest, *, include_real: bool) -> None:
    shape = manifest.generator.output.shape
    if shape != card.shape:
        made, real = (" x ".join(map(str, each)) for each in (shape, card.shape))
        raise _wrong(
            "model", f"{manifest.name} makes images of {made}, and those of data set {card.name} are {real}; they must be the same"
        )
    if include_real and (card.source_shape is not None or card.num_groups is not None):
        what = "sources" if card.source_shape is not None else "groups"
        raise _wrong("include_real", f"the images of {card.name} have {what}, which generated ones have not; leave include_real out")


def _counts(dataset: Dataset, body: AugmentRequest) -> tuple[int, ...]:
    assert dataset.labels is not None, "a set of classes has labels"
    num_classes = len(dataset.card.class_names or ())
    if body.images_per_class is not None:
        counts = (body.images_per_class,) * num_classes
    elif body.num_images is not None:
        if body.num_images % num_classes:
            raise _wrong("num_images", f"{body.num_images} images are no multiple of the {num_classes} classes; give one")
        counts = (body.num_images // num_classes,) * num_classes
    else:
        present = np.bincount(dataset.labels, minlength=num_classes)
        counts = tuple(int(count) for count in present.max() - present)
        if not any(counts):
            raise Invalid(f"each class of {dataset.card.name} has {present.max()} images already; say images_per_class or num_images")
    if sum(counts) > MAX_GENERATED:
        raise Invalid(f"{sum(counts):,} images are wanted, and at most {MAX_GENERATED:,} are made at a time; ask for fewer")
    return counts


def _wrong(field: str, message: str) -> Invalid:
    return Invalid(f"{field}: {message}", errors=(FieldError(pointer=f"/{field}", message=message),))


# --- making -------------------------------------------------------------------------------------------------------------------


async def _pieces(service: Service, plan: Plan, *, has_begun: bool = False) -> AsyncGenerator[tuple[int, Made]]:
    """Images of one class at a time. The first piece is refused as any request is, unless the answer has begun; the others
    wait for room."""
    for label, request in plan.requests():
        while True:
            try:
                made = await inference.generate(service, request)
                break
            except Overloaded:
                if not has_begun or visits.current().refused == "stopping":
                    raise
                visits.current().refused = None  # this piece was, and the visit goes on
                await asyncio.sleep(SECONDS_TO_WAIT)
        has_begun = True
        yield label, made


def _real(plan: Plan) -> Iterator[tuple[NDArray[np.uint8], list[int]]]:
    """The set's own images and labels, so many at a time as a piece has; none where they are not asked for."""
    images, labels = plan.dataset.images, plan.dataset.labels
    assert labels is not None, "a set of classes has labels"
    for start in range(0, len(images) if plan.body.include_real else 0, PIECE_IMAGES):
        yield np.array(images[start : start + PIECE_IMAGES]), labels[start : start + PIECE_IMAGES].tolist()


# --- as an archive ------------------------------------------------------------------------------------------------------------


async def zipped(service: Service, plan: Plan) -> AsyncGenerator[bytes]:
    """A folder a class, a picture a seed, and at the end a line of metadata for each; `real-<row>` are the set's own."""
    archive, folders = Archive(), folder_names(plan.class_names)
    told: list[_File] = []

    async def packed(files: Sequence[_File], images: NDArray[np.uint8]) -> bytes:
        told.extend(files)
        return await service.in_pool(lambda: _packed(archive, plan, files, images), "encode", len(files))

    real = _real(plan)
    for row in itertools.count():
        if (piece := await asyncio.to_thread(next, real, None)) is None:  # the disk is read on a thread
            break
        images, labels = piece
        numbers = range(row * PIECE_IMAGES, row * PIECE_IMAGES + len(images))
        yield await packed([_File(f"{folders[label]}/real-{at}.png", label) for at, label in zip(numbers, labels, strict=True)], images)
    async for label, made in _pieces(service, plan, has_begun=plan.body.include_real):
        assert made.seeds is not None, "nothing but seeds is asked for"
        yield await packed([_File(f"{folders[label]}/{seed}.png", label, seed) for seed in made.seeds], made.images.numpy())
    yield await service.in_pool(lambda: _end(archive, plan, told), "encode", len(told))


class _File(NamedTuple):
    """A picture in the archive; a real one has no seed."""

    name: str
    label: int
    seed: int | None = None


def _packed(archive: Archive, plan: Plan, files: Sequence[_File], images: NDArray[np.uint8]) -> bytes:
    """Bytes of the archive for so many images (N, C, H, W)."""
    rows = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    sent: list[bytes] = []
    for file, pixels in zip(files, rows, strict=True):
        picture = encoders.png(pixels, {name: str(value) for name, value in _origin(plan, file).items()})
        sent += archive.add(file.name, [picture], len(picture))
    return b"".join(sent)


def _origin(plan: Plan, file: _File) -> dict[str, str | int]:
    """What a picture says of itself, and its line says of it."""
    label = plan.class_names[file.label]
    if file.seed is None:
        return {"label": label}
    return {"label": label, "seed": file.seed, "model": plan.manifest.name, "version": plan.manifest.version}


def _end(archive: Archive, plan: Plan, files: Sequence[_File]) -> bytes:
    lines = b"".join(json.dumps({"file_name": file.name, **_origin(plan, file)}).encode() + b"\n" for file in files)
    return b"".join([*archive.add(METADATA, [lines], len(lines)), archive.end()])


def folder_names(class_names: Sequence[str]) -> list[str]:
    """A folder for each class, which no system takes amiss; with the class's number where two would be one."""
    plain = [re.sub(r"[^\w -]+", "-", name, flags=re.ASCII).strip() or "-" for name in class_names]
    counts = Counter(name.lower() for name in plain)
    return [name if counts[name.lower()] == 1 else f"{name}-{index}" for index, name in enumerate(plain)]


# --- as a data set ------------------------------------------------------------------------------------------------------------


async def registered(service: Service, plan: Plan) -> DatasetCard:
    """The card of the new set. Where the caller is cancelled, none comes of it.

    Raises:
        Conflict: the name was taken meanwhile, or the disk does not take the set.
        Overloaded: too many are being made.
    """
    name, folder = plan.body.save_as, service.settings.datasets
    assert name is not None, "it has a name"
    pull = _Pull(_batches(service, plan))
    # a thread of its own, which waits for images most of the time: those that all share are for what is soon done
    with service.augmentations.holding(1), ThreadPoolExecutor(1, "augment", initializer=give_way) as thread:
        writing = asyncio.get_running_loop().run_in_executor(thread, datasets.write, name, folder, _about(plan), pull)
        try:
            return await asyncio.shield(writing)
        except DatasetError as error:
            raise Conflict(str(error)) from error
        except asyncio.CancelledError:
            pull.end()
            await asyncio.wait([writing])
            if not writing.cancelled() and writing.exception() is None:  # behind the last image it was too late to end it
                shutil.rmtree(datasets.take_away(name, folder))
            raise
        finally:
            pull.end()


def _about(plan: Plan) -> About:
    card, manifest, seeds = plan.dataset.card, plan.manifest, sum(plan.counts) * (plan.body.best_of or 1)
    channels, height, width = card.shape
    made = f"{sum(plan.counts):,} images generated by {manifest.name} version {manifest.version}"
    made += f" with seeds {plan.seed} to {plan.seed + seeds - 1}"
    made += f", the best of {plan.body.best_of} each" if plan.body.best_of else ""
    made += f", truncation {plan.body.truncation:g}" if plan.body.truncation is not None else ""
    trained = f"which was trained on {manifest.dataset.name} ({manifest.dataset.content_sha256[:12]})"
    of = f"for the classes of {card.name} ({card.content_sha256[:12]})"
    after = f", after its {card.num_images:,} real images" if plan.body.include_real else ""
    licences = dict.fromkeys([manifest.dataset.licence, *([card.licence] if plan.body.include_real else [])])
    return About((channels, height, width), f"{made}, {trained}, {of}{after}", "; ".join(licences), card.class_names)


async def _batches(service: Service, plan: Plan) -> AsyncGenerator[Batch]:
    real = _real(plan)
    while (piece := await asyncio.to_thread(next, real, None)) is not None:  # as above
        images, labels = piece
        yield Batch(images, np.array(labels, np.int64))
    async for label, made in _pieces(service, plan):
        yield Batch(made.images.numpy(), np.full(len(made.images), label, np.int64))


class _Pull:
    """What comes on the event loop, for a thread that wants one after the other."""

    def __init__(self, coming: AsyncIterator[Batch]) -> None:
        self._coming = coming
        self._loop = asyncio.get_running_loop()
        self._has_ended = False
        self._awaited: Future[Batch | None] | None = None

    def __iter__(self) -> Iterator[Batch]:
        """On the thread; raises CancelledError once nobody wants it any more."""
        while not self._has_ended:
            self._awaited = asyncio.run_coroutine_threadsafe(self._next(), self._loop)
            if (batch := self._awaited.result()) is None:
                return
            yield batch
        raise asyncio.CancelledError

    async def _next(self) -> Batch | None:
        if self._has_ended:
            raise asyncio.CancelledError
        return await anext(self._coming, None)

    def end(self) -> None:
        """On the event loop."""
        self._has_ended = True
        if self._awaited is not None:
            self._awaited.cancel()
