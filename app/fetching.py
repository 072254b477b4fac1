"""A version on its way out, as one archive."""

import asyncio
from collections.abc import Iterator

from app.errors import NotFound
from app.repository import Entry
from training.files.archives import zipped
from training.files.directories import DamagedFileError


async def archive(entry: Entry) -> Iterator[bytes]:
    """The pieces of one ZIP of all its files, verified before the first.

    Raises:
        NotFound: a file is no longer what the manifest says.
    """
    try:
        return await asyncio.to_thread(zipped, entry.folder, entry.digest)
    except (DamagedFileError, OSError) as error:
        raise NotFound(f"{entry.name} version {entry.number} is damaged or gone: {error}; other versions may be whole") from error
