"""A ZIP that is sent while it is made: what has been written of it is taken away, piece by piece, and never gone back to."""

import zipfile
from collections.abc import Iterable, Iterator


class Archive:
    """Files are stored as they are (pictures do not compress again) and dated 1980-01-01, so that the same files give the same bytes."""

    def __init__(self) -> None:
        self._out = _Outbox()
        self._zip = zipfile.ZipFile(self._out, "w")

    def add(self, name: str, pieces: Iterable[bytes], num_bytes: int) -> Iterator[bytes]:
        """Bytes to send for one more file.

        Args:
            num_bytes: that it will have, about; a file of gigabytes has more room for its size.
        """
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, 0o644 << 16  # the same on every system
        info.file_size = num_bytes
        with self._zip.open(info, "w") as entry:
            for piece in pieces:
                entry.write(piece)
                yield self._out.take()

    def end(self) -> bytes:
        """What is left to send: the table of contents."""
        self._zip.close()
        return self._out.take()


class _Outbox:
    """No more of a file than a ZIP needs that is not gone back to; one that is given up may end itself into it."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        self._written += data
        return len(data)

    def flush(self) -> None:
        """There is nowhere else to go."""

    def close(self) -> None:
        """Nothing is held."""

    def take(self) -> bytes:
        taken = bytes(self._written)
        self._written.clear()
        return taken
