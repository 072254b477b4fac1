"""Accept: which of the forms on offer a client wants."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import NotAcceptable
from app.negotiation import choose

PNG, JPEG, WEBP, JSON, ZIP = "image/png", "image/jpeg", "image/webp", "application/json", "application/zip"
OFFERED = (PNG, JPEG, WEBP, ZIP, JSON)


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, PNG),
        ("", PNG),
        ("*/*", PNG),
        ("image/*", PNG),
        ("application/*", ZIP),
        ("image/jpeg", JPEG),
        ("IMAGE/JPEG", JPEG),
        (" image/jpeg ", JPEG),
        ("application/json; charset=utf-8", JSON),
        ("text/html, application/json", JSON),
        ("image/jpeg, image/png", PNG),  # the client likes both as much: the server's order
        ("image/png;q=0.5, image/jpeg", JPEG),
        ("image/png;q=0.5,image/jpeg;q=0.6,image/webp;q=0.7", WEBP),
        ("image/png; q=0.5 , image/jpeg; q=0.501", JPEG),
        ("image/png;Q=0.1, image/jpeg;q=0.2", JPEG),
        ("image/*;q=0.9, application/json", JSON),
        ("*/*;q=0.1, image/webp;q=0.2", WEBP),
        ("image/png;q=0, */*", JPEG),
        ("image/*;q=0, */*", ZIP),
        ("*/*;q=0, image/png", PNG),
        ("image/*;q=0.2, image/png;q=0.1, application/json;q=0.15", JPEG),
        ("image/png;q=0.1, image/png;q=0.8, image/jpeg;q=0.5", PNG),
        ("image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", PNG),  # what a browser sends for <img>
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", PNG),
        ("image/png;q=nonsense, image/jpeg;q=0.1", JPEG),
        ("image/png;q=nan, image/jpeg;q=0.1", JPEG),
        ("image/png;q=-1, image/jpeg;q=0.1", JPEG),
        ("image/png;q=, image/jpeg;q=0.1", JPEG),
        ("image/jpeg;q=7, image/png;q=0.9", JPEG),
        (",,;,image/jpeg,", JPEG),
        ("image/jpeg;q=0.001", JPEG),
    ],
)
def test_the_best_form_is_chosen(accept: str | None, chosen: str) -> None:
    assert choose(accept, OFFERED) == chosen


@pytest.mark.parametrize("accept", ["text/html", "image/gif", "image/png;q=0", "*/*;q=0", "image", "*", "png", ";", "image/png;q=nan"])
def test_what_cannot_be_had_is_refused_with_what_can(accept: str) -> None:
    with pytest.raises(NotAcceptable) as refused:
        choose(accept, OFFERED)
    assert refused.value.detail == f"Accept is {accept!r}; this route can make {', '.join(OFFERED)}"


def test_a_long_header_is_cut_in_the_message() -> None:
    with pytest.raises(NotAcceptable) as refused:
        choose("text/html, " * 5000, OFFERED)
    assert len(refused.value.detail) < 250


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_no_header_is_a_bug(accept: str) -> None:
    with suppress(NotAcceptable):
        assert choose(accept, OFFERED) in OFFERED


@given(st.lists(st.tuples(st.sampled_from(OFFERED), st.integers(0, 1000)), min_size=1, max_size=5, unique_by=lambda pair: pair[0]))
def test_of_plain_types_the_one_of_the_highest_quality_is_chosen(wishes: list[tuple[str, int]]) -> None:
    accept = ", ".join(f"{form};q={quality / 1000:.3f}" for form, quality in wishes)
    best = max(quality for _, quality in wishes)
    if best == 0:
        with pytest.raises(NotAcceptable):
            choose(accept, OFFERED)
    else:
        equals = [form for form, quality in wishes if quality == best]
        assert choose(accept, OFFERED) == min(equals, key=OFFERED.index)
