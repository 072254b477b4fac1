"""What is served, as the protocol tells it."""

from typing import Literal

from app.protocol.documents import IndexEntry, ModelMetadata, ModelReady
from app.protocol.signature import find, inputs_of, modules_of, name_of, outputs_of, split
from app.store import Store
from training.contract import Manifest


def metadata(store: Store, name: str, version: str | None) -> ModelMetadata:
    """What a model of the protocol takes and gives, without loading it.

    Raises:
        UnknownModel, UnknownVersion: not served.
    """
    model, module = split(name)
    spec = find(store.manifest(model, version), module)
    versions = [str(manifest.version) for manifest in store.manifests(model) if module in modules_of(manifest)]
    return ModelMetadata(name=name, versions=versions, inputs=inputs_of(spec), outputs=outputs_of(spec))


def readiness(store: Store, name: str, version: str | None) -> ModelReady:
    """Raises as `metadata` does."""
    model, module = split(name)
    manifest = store.manifest(model, version)
    find(manifest, module)
    return ModelReady(name=name, ready=_state(manifest, _loading(store)) == "READY")


def entries(store: Store, *, ready: bool) -> list[IndexEntry]:
    """Every version of every model, and of their modules; without the broken ones where `ready`."""
    loading = _loading(store)
    found = [
        IndexEntry(name=name_of(manifest.name, module), version=str(manifest.version), state=_state(manifest, loading), reason="")
        for name in store.names
        for manifest in store.manifests(name)
        for module in modules_of(manifest)
    ]
    found += [
        IndexEntry(name=broken.name, version=str(broken.version or ""), state="UNAVAILABLE", reason=broken.reason)
        for broken in store.listing().broken
    ]
    return [entry for entry in found if entry.state == "READY" or not ready]


def _loading(store: Store) -> set[tuple[str, int]]:
    """Names and versions."""
    return {(name, store.default_version(name)) for name in store.loading}


def _state(manifest: Manifest, loading: set[tuple[str, int]]) -> Literal["READY", "LOADING"]:
    """What nobody has asked for yet is ready too: it is loaded when it is asked for."""
    return "LOADING" if (manifest.name, manifest.version) in loading else "READY"
