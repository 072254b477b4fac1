"""Requests that can be sent as they stand, to the models that are here now: for /docs and for the server's greeting."""

from collections.abc import Iterator

from app.store import Store
from app.transform import example_picture, is_transform
from training.contract import Manifest, TensorSpec

Example = dict[str, object]


def sampling(store: Store) -> Example | None:
    """Whom to ask for images: a model of latents alone, or else one of classes, with a label."""
    found = [_labelled(manifest, manifest.generator.inputs) for manifest in _manifests(store) if _is_drawn(manifest)]
    return min(found, key=len, default=None)


def judging(store: Store) -> Example | None:
    """Whom to ask for scores: a discriminator of pictures alone, or else one that judges labels too, with a label."""
    found = [
        _labelled(manifest, manifest.discriminator.inputs)
        for manifest in _manifests(store)
        if manifest.discriminator is not None and {spec.kind for spec in manifest.discriminator.inputs[1:]} <= {"label"}
    ]
    return min(found, key=len, default=None)


def transforming(store: Store) -> Example | None:
    """Whom to ask for a picture of a picture, and a picture."""
    found = (manifest for manifest in _manifests(store) if is_transform(manifest.generator))
    for manifest in found:
        return {"model": manifest.name, "image": example_picture(manifest.generator.inputs[0])}
    return None


def _manifests(store: Store) -> Iterator[Manifest]:
    return (store.manifest(name) for name in store.names)


def _is_drawn(manifest: Manifest) -> bool:
    kinds = {spec.kind for spec in manifest.generator.inputs}
    return "latent" in kinds and "image" not in kinds


def _labelled(manifest: Manifest, inputs: tuple[TensorSpec, ...]) -> Example:
    labels = {"labels": [0]} if any(spec.kind == "label" for spec in inputs) else {}
    return {"model": manifest.name, **labels}
