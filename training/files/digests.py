"""The manifests that were published or confirmed here, by their SHA-256: no other version's modules are loaded.

A model file is code, and a hash that lies beside it proves nothing: whoever changes the one can change the other. What is trusted is
told apart from all repositories, in the state folder: `digests/<sha256 of manifest.json>`, a file that says of what, and since when. The
manifest holds the hashes of all other files.
"""

import hashlib
import json
import re
from pathlib import Path

from training.contract import now
from training.files.directories import make_folder, write_atomically

FOLDER = "digests"
# of the models that come with this program; `sha256sum models/*/*/manifest.json`
SHIPPED = {
    "24a2aa22581aa7e1ce93f1f04dd537ffd37b093b523db8c5f26630b48dc9f3ba": "digits/1",
    "acbf826462de8ad5dc70ea40ccca227763d8d912b9fd39308e62d9db75d2b82b": "fashion/1",
}


def digest_of(manifest: bytes) -> str:
    """Of the bytes of a manifest.json, as they lie on disk."""
    return hashlib.sha256(manifest).hexdigest()


def known(folder: Path) -> frozenset[str]:
    """Every digest that is trusted here."""
    found = folder.iterdir() if folder.is_dir() else ()
    return frozenset(path.name for path in found if re.fullmatch(r"[0-9a-f]{64}", path.name)) | SHIPPED.keys()


def remember(folder: Path, digest: str, version: str, how: str) -> None:
    """Trust a manifest from now on; durable when this returns.

    Args:
        version: `name/number`, for people.
        how: published, imported, ...: for people too.
    """
    content = {"version": version, "how": how, "at": now()}
    write_atomically(make_folder(folder) / digest, json.dumps(content).encode() + b"\n")


def forget(folder: Path, digest: str) -> None:
    (folder / digest).unlink(missing_ok=True)


def unknown(digest: str, version: str) -> str:
    """Why a version is not loaded, and what to do; `version`: `name/number`."""
    return (
        f"its manifest (sha256 {digest}) was neither published nor confirmed here, and a model file is code: if you know where it is from,"
        f" confirm it with `ganserve models trust {version}`"
    )
