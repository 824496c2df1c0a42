"""The Accept header: the best of what is offered, JSON when nothing is preferred."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.accept import JSON, OFFERED, negotiate
from handlers.errors import NotAcceptable

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("*", JSON),
        (BROWSER, JSON),
        ("application/json", JSON),
        ("application/json; charset=utf-8", JSON),
        ("application/*", JSON),
        ("image/png", "image/png"),
        ("IMAGE/PNG", "image/png"),
        ("image/*", "image/png"),
        ("image/jpg", "image/jpeg"),
        ("image/jpeg, image/png", "image/png"),
        ("image/jpeg, image/png;q=0.9", "image/jpeg"),
        ("image/*;q=0.5, image/jpeg", "image/jpeg"),
        ("image/png;q=0, image/*", "image/jpeg"),
        ("application/json;q=0.1, image/png;q=0.2", "image/png"),
        ("application/json;q=0, */*", "image/png"),
        ("text/html, image/png;level=1;q=0.3", "image/png"),
        ("image/png;q=7", "image/png"),
        ("image/png;q=7, application/json", JSON),
    ],
)
def test_the_best_offered_type_is_chosen(accept: str | None, chosen: str) -> None:
    assert negotiate(accept) == chosen


@pytest.mark.parametrize(
    "accept",
    ["text/html", "image/webp", "image/png;q=0", "*/*;q=0", "image/png;q=high", "image/png;q=nan"],
)
def test_nothing_acceptable_is_406_listing_the_offers(accept: str) -> None:
    with pytest.raises(NotAcceptable) as refused:
        negotiate(accept)
    assert refused.value.status == 406
    assert refused.value.details == {"accepted": list(OFFERED)}
    assert all(offered in str(refused.value) for offered in OFFERED)


@given(st.text(max_size=40) | st.text(alphabet="imagepnjsoq/*;,=.01 ", max_size=40))
def test_no_header_raises_anything_else(accept: str) -> None:
    try:
        assert negotiate(accept) in OFFERED
    except NotAcceptable as refused:
        json.loads(refused.body())
