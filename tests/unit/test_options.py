"""Options: values of every kind a client may send, within bounds, or a refusal that helps."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.errors import BadRequest
from handlers.options import Option, parse_options

TOP_K = Option("top_k", int, 5, "how many", minimum=1)
MIN_SCORE = Option("min_score", float, 0.5, "least score", minimum=0.05, maximum=1.0)
MASK = Option("mask", str, "png", "how the mask is encoded", choices=("png", "rle", "none"))
ALL = [TOP_K, MIN_SCORE, MASK]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("option", "value", "parsed"),
    [
        (TOP_K, 3, 3),
        (TOP_K, 3.0, 3),
        (TOP_K, "3", 3),
        (TOP_K, " 3 ", 3),
        (TOP_K, b"3", 3),
        (TOP_K, bytearray(b"3"), 3),
        (TOP_K, 10**30, 10**30),
        (MIN_SCORE, 1, 1.0),
        (MIN_SCORE, "0.25", 0.25),
        (MIN_SCORE, b"5e-2", 0.05),
        (MASK, "rle", "rle"),
        (MASK, b" none ", "none"),
    ],
)
def test_a_value_is_taken_as_json_text_or_bytes(option: Option, value: object, parsed: Any) -> None:
    taken = option.parse(value)
    assert taken == parsed
    assert type(taken) is option.kind


@pytest.mark.parametrize(
    ("option", "value"),
    [
        (TOP_K, 0),
        (TOP_K, -1),
        (TOP_K, 2.5),
        (TOP_K, "2.5"),
        (TOP_K, "three"),
        (TOP_K, ""),
        (TOP_K, True),
        (TOP_K, None),
        (TOP_K, [3]),
        (TOP_K, {"top_k": 3}),
        (TOP_K, math.inf),
        (TOP_K, math.nan),
        (TOP_K, b"\xff"),
        (TOP_K, "9" * 5000),
        (MIN_SCORE, 0.04),
        (MIN_SCORE, 1.01),
        (MIN_SCORE, "nan"),
        (MIN_SCORE, "inf"),
        (MIN_SCORE, 10**400),
        (MIN_SCORE, False),
        (MASK, "PNG"),
        (MASK, 1),
        (MASK, None),
    ],
)
def test_any_other_value_is_refused(option: Option, value: object) -> None:
    with pytest.raises(BadRequest) as refused:
        option.parse(value)
    assert option.name in str(refused.value)
    assert option.accepted() in str(refused.value)
    assert refused.value.details == {"option": option.name, "accepted": option.describe()}


def test_a_refusal_shows_the_value_but_not_all_of_a_long_one() -> None:
    with pytest.raises(BadRequest, match=r"top_k='two'.* a whole number from 1$"):
        TOP_K.parse("two")
    with pytest.raises(BadRequest) as refused:
        TOP_K.parse("x" * 100_000)
    assert len(str(refused.value)) < 200


def test_options_left_out_have_their_defaults() -> None:
    assert parse_options({}, ALL) == {"top_k": 5, "min_score": 0.5, "mask": "png"}
    assert parse_options({"mask": "rle"}, ALL) == {"top_k": 5, "min_score": 0.5, "mask": "rle"}


def test_an_unknown_option_is_refused_listing_the_accepted_ones() -> None:
    with pytest.raises(BadRequest) as refused:
        parse_options({"topk": 3}, ALL)
    assert str(refused.value) == (
        "unknown option 'topk': accepted are top_k: a whole number from 1; min_score: a number "
        "from 0.05 to 1; mask: one of png, rle, none"
    )
    assert set(refused.value.details["accepted"]) == {"top_k", "min_score", "mask"}


def test_a_description_is_json_without_bounds_that_do_not_apply() -> None:
    assert TOP_K.describe() == {"type": "integer", "default": 5, "minimum": 1, "help": "how many"}
    assert MASK.describe()["choices"] == ["png", "rle", "none"]
    assert json.loads(json.dumps(MIN_SCORE.describe()))["maximum"] == 1.0


@given(option=st.sampled_from(ALL), value=JSON | st.binary(max_size=20))
def test_no_value_raises_anything_else(option: Option, value: object) -> None:
    try:
        parsed = option.parse(value)
    except BadRequest as refused:
        json.loads(refused.body())
    else:
        assert type(parsed) is option.kind
        if isinstance(parsed, (int, float)):
            assert (option.minimum or 0) <= parsed <= (option.maximum or math.inf)
        else:
            assert parsed in option.choices


@given(st.dictionaries(st.text(max_size=8) | st.sampled_from(["top_k", "mask"]), JSON, max_size=3))
def test_no_document_of_options_raises_anything_else(document: dict[str, object]) -> None:
    try:
        assert parse_options(document, ALL).keys() == {"top_k", "min_score", "mask"}
    except BadRequest as refused:
        json.loads(refused.body())
