"""Fields of a request become a model's keyword tensors: one encoder for each kind of input.

An encoder knows which fields its kind takes, and nothing of architectures. A field that a model does not take is refused.
"""

import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from app import latents
from app.errors import FieldError, Invalid, show
from training.contract import MAX_SEED, TensorSpec

MAX_LATENT = 100.0  # of an explicit latent's values: far beyond any draw, and far from overflow

Label = str | int | Mapping[str, float]


@dataclass(frozen=True)
class Fields:
    """What a request says of its images; None where it is silent.

    latents: nested lists (num_images, *latent shape). labels: one for all images or one for each; a class name, its index, or weights
    by class name, which are scaled to sum to 1.
    """

    seed: int | None = None
    latents: Sequence[object] | None = None
    truncation: float | None = None
    labels: Sequence[Label] | None = None


@dataclass(frozen=True)
class Encoded:
    """Keyword tensors (N, *shape) float32 on the CPU, and the seed of each image where latents were drawn."""

    inputs: dict[str, Tensor]
    seeds: tuple[int, ...] | None


FIELDS_OF_KIND: Mapping[str, tuple[str, ...]] = {"latent": ("seed", "latents", "truncation"), "label": ("labels",), "image": ()}


def fields_of(inputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """The request fields that a model with these inputs takes."""
    return tuple(dict.fromkeys(field for spec in inputs for field in FIELDS_OF_KIND[spec.kind]))


def encode(inputs: Sequence[TensorSpec], given: Fields, num_images: int, num_candidates: int = 1) -> Encoded:
    """Tensors for every latent and label input; an image input is the caller's to add.

    Row i has the seed `seed + i`; without seed and latents, a seed is drawn. Truncation scales drawn and given latents alike.

    Args:
        num_candidates: rows an image, one after the other, with its label.

    Raises:
        Invalid: a field that the model does not take, a value that is not allowed, or labels missing.
    """
    check_taken(inputs, given)
    tensors: dict[str, Tensor] = {}
    seeds = None
    if specs := [spec for spec in inputs if spec.kind == "latent"]:
        seeds = None if given.latents is not None else _seeds(given.seed, num_images * num_candidates)
        tensors |= latents.draw(specs, seeds) if seeds is not None else _given_latents(specs, given, num_images)
        if given.truncation is not None:
            tensors = latents.truncate(tensors, given.truncation)
    for spec in inputs:
        if spec.kind == "label":
            if given.labels is None:
                raise _wrong(
                    "/labels", f'{_allowed_labels("images", num_images)}, or "all" for a row of each class; {_classes(spec)}', None
                )
            tensors[spec.name] = encode_labels(spec, given.labels, num_images).repeat_interleave(num_candidates, 0)
    return Encoded(tensors, seeds)


def check_taken(inputs: Sequence[TensorSpec], given: Fields) -> None:
    """Refuse a field that a model with these inputs does not take.

    Raises:
        Invalid: it names what the model takes.
    """
    taken = fields_of(inputs)
    refused = [field.name for field in fields(given) if getattr(given, field.name) is not None and field.name not in taken]
    if refused:
        takes = f"this model takes {', '.join(taken)}" if taken else "this model takes no seed, latents, truncation or labels"
        raise Invalid(
            f"{', '.join(refused)}: {takes}; leave {'it' if len(refused) == 1 else 'them'} out",
            errors=tuple(FieldError(pointer=f"/{name}", message=takes) for name in refused),
        )


def _wrong(pointer: str, message: str, given: object) -> Invalid:
    field = pointer.lstrip("/").replace("/", ".")
    return Invalid(f"{field}: {message}", errors=(FieldError(pointer=pointer, message=message, given=show(given)),))


# --- latents ------------------------------------------------------------------------------------------------------------------


def first_seed(first: int | None, count: int) -> int:
    """The first of so many seeds, drawn where it is not given.

    Raises:
        Invalid: they would not all be seeds.
    """
    if first is None:
        first = secrets.randbelow(MAX_SEED - count + 2)
    if first < 0 or first + count - 1 > MAX_SEED:
        raise _wrong("/seed", f"{count} seeds from {first} on end at {first + count - 1}; seeds are 0 to {MAX_SEED}", first)
    return first


def _seeds(first: int | None, count: int) -> tuple[int, ...]:
    first = first_seed(first, count)
    return tuple(range(first, first + count))


def _given_latents(specs: Sequence[TensorSpec], given: Fields, num_images: int) -> dict[str, Tensor]:
    assert given.latents is not None
    if given.seed is not None:
        raise _wrong("/latents", "latents take the place of a seed; give one of the two", given.seed)
    if len(specs) > 1:
        raise _wrong("/latents", f"this model has {len(specs)} latents ({', '.join(spec.name for spec in specs)}); give a seed", None)
    return {specs[0].name: _numbers(given.latents, (num_images, *specs[0].shape), "/latents")}


def encode_latent(spec: TensorSpec, values: object, pointer: str) -> Tensor:
    """One explicit latent, nested lists of the shape that the input declares.

    Args:
        pointer: where it stands in the body.

    Raises:
        Invalid: another shape, what is no number, or a number beyond MAX_LATENT.
    """
    return _numbers(values, spec.shape, pointer)


def _numbers(values: object, shape: tuple[int, ...], pointer: str) -> Tensor:
    numbers: list[float] = []
    _flatten(values, shape, pointer, numbers)
    return torch.tensor(numbers, dtype=torch.float32).reshape(shape)


def _flatten(value: object, shape: tuple[int, ...], pointer: str, numbers: list[float]) -> None:
    if not shape:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_LATENT:
            raise _wrong(pointer, f"a number from {-MAX_LATENT:g} to {MAX_LATENT:g} is allowed", value)
        numbers.append(value)
        return
    size, *rest = shape
    wanted = f"a list of {size} {'numbers' if not rest else f'lists of shape {tuple(rest)}'} is allowed"
    if not isinstance(value, list | tuple):
        raise _wrong(pointer, f"{wanted}, and this is none", value)
    if len(value) != size:
        raise _wrong(pointer, f"{wanted}, and this has {len(value)} items", value)
    for index, item in enumerate(value):
        _flatten(item, tuple(rest), f"{pointer}/{index}", numbers)


# --- labels -------------------------------------------------------------------------------------------------------------------


def every_class(spec: TensorSpec, num_images: int | None, columns: int, max_images: int) -> tuple[list[int], int]:
    """A label an image, so that each class has a row of a grid, in the order of the classes.

    Args:
        num_images: how many are asked for; None is for `columns` a class, or as many as `max_images` has room for.

    Returns:
        Indices of classes, ascending, one an image; and how many images a class has.

    Raises:
        Invalid: the images are no multiple of the classes, or the classes are too many.
    """
    num_classes = spec.shape[0]
    if num_classes > max_images:
        raise _wrong("/labels", f"this model has {num_classes} classes, and {max_images} images are the most; name the labels", "all")
    num_images = num_images or num_classes * min(columns, max_images // num_classes)
    if num_images % num_classes:
        least, most = num_classes, max_images // num_classes * num_classes
        message = f'with the labels "all" it is a multiple of the {num_classes} classes, {least} to {most}'
        raise _wrong("/num_images", message, num_images)
    per_class = num_images // num_classes
    return [index for index in range(num_classes) for _ in range(per_class)], per_class


def encode_labels(spec: TensorSpec, labels: Sequence[Label] | None, count: int, of: str = "images") -> Tensor:
    """Weights over the classes, each row summing to 1: (count, number of classes) float32.

    Args:
        labels: one for all, or one for each; a text of digits that names no class is an index.
        of: what they are the labels of, in a message.

    Raises:
        Invalid: none given, another number of them, an unknown class, or weights that cannot be scaled to sum to 1.
    """
    if labels is None or len(labels) not in (1, count):
        given = len(labels or ())
        message = f"{_allowed_labels(of, count)}, and there {'is' if given == 1 else 'are'} {given}; {_classes(spec)}"
        raise _wrong("/labels", message, given)
    rows = [_weights(spec, label, f"/labels/{index}") for index, label in enumerate(labels)]
    return torch.tensor(rows * (count if len(rows) == 1 else 1), dtype=torch.float32)


def _allowed_labels(of: str, count: int) -> str:
    return f"one label for all {of}" + (f" or {count} labels" if count > 1 else "") + " can be given"


def _weights(spec: TensorSpec, label: Label, pointer: str) -> list[float]:
    parts = label if isinstance(label, Mapping) else {label: 1.0}
    row = [0.0] * spec.shape[0]
    for key, weight in parts.items():
        row[_class_index(spec, key, pointer)] = weight
    total = sum(row)
    if not all(weight >= 0 for weight in row) or not math.isfinite(total) or total <= 0:
        raise _wrong(pointer, "weights of 0 and more are allowed, with a finite sum above 0", label)
    return [weight / total for weight in row]


def _class_index(spec: TensorSpec, key: str | int, pointer: str) -> int:
    if isinstance(key, str) and key in (spec.classes or ()):
        return (spec.classes or ()).index(key)
    index = int(key) if isinstance(key, str) and re.fullmatch(r"[0-9]{1,9}", key) else key
    if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < spec.shape[0]:
        return index
    raise _wrong(pointer, f"no such class; {_classes(spec)}", key)


def _classes(spec: TensorSpec) -> str:
    last = spec.shape[0] - 1
    return f"classes: {', '.join(spec.classes)} (or 0 to {last})" if spec.classes else f"classes: 0 to {last}"
