"""Which form a client wants: the Accept header against what a route can make (RFC 9110, section 12.5.1)."""

import re
from functools import lru_cache

from app.errors import NotAcceptable, show


@lru_cache(256)  # of a few clients' headers; it is asked at each request
def choose(accept: str | None, offered: tuple[str, ...]) -> str:
    """The offered media type that the client likes best; the first one where it has no preference.

    Args:
        accept: the header's value, or None where it was not sent.
        offered: in the server's order of preference.

    Raises:
        NotAcceptable: none of them; the message lists what can be had.
    """
    ranges = _ranges(accept or "*/*")
    best = max(offered, key=lambda media_type: _quality(media_type, ranges))  # the first of equals
    if _quality(best, ranges) > 0:
        return best
    raise NotAcceptable(f"Accept is {show(accept)}; this route can make {', '.join(offered)}")


def _ranges(accept: str) -> list[tuple[str, float]]:
    ranges = []
    for part in accept.split(","):
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name == "q":
                quality = _number(value)
        ranges.append((media_range, quality))
    return ranges


def _number(text: str) -> float:
    return min(float(text), 1.0) if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{0,9})?", text) else 0.0


def _quality(media_type: str, ranges: list[tuple[str, float]]) -> float:
    """The quality of the most specific range that matches."""
    kind = media_type.split("/", maxsplit=1)[0]
    for pattern in (media_type, f"{kind}/*", "*/*"):
        qualities = [quality for media_range, quality in ranges if media_range == pattern]
        if qualities:
            return max(qualities)
    return 0.0
