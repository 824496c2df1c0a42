"""Every way to send pictures and options, and every wrong one."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handlers.errors import BadRequest, NotAcceptable, RequestError, TooLarge
from handlers.options import Option
from handlers.requests import Request, read

TOP_K = Option("top_k", int, 5, "how many", minimum=1)
MASK = Option("mask", str, "png", "how the mask is encoded", choices=("png", "rle"))
PICTURE = b"\x89PNG\r\n\x1a\n and so on"
B64 = base64.b64encode(PICTURE).decode()


def ask(row: Mapping[str, Any], headers: Mapping[str, Any] | None = None, most: int = 4) -> Request:
    return read(row, headers or {}, [TOP_K, MASK], most)


def body(document: object) -> dict[str, bytes]:
    return {"body": json.dumps(document).encode()}


def refusal(row: Mapping[str, Any], headers: Mapping[str, Any] | None = None) -> BadRequest:
    with pytest.raises(BadRequest) as refused:
        ask(row, headers)
    assert "\n" not in str(refused.value)
    return refused.value


DEEP: list[Any] = []
for _ in range(5000):
    DEEP = [DEEP]
LONG = "x\n" * 1_000_000


@pytest.mark.parametrize(
    ("row", "headers"),
    [
        ({"body": {LONG: 1}}, {}),
        ({"data": PICTURE, LONG: b"\x89"}, {}),
        ({"data": PICTURE, "parameters": json.dumps({LONG: 1})}, {}),
        ({"data": PICTURE, "parameters": json.dumps({"accept": LONG})}, {}),
        ({"data": PICTURE, "parameters": {"top_k": LONG}}, {}),
        ({"data": PICTURE, "parameters": {"top_k": DEEP}}, {}),
        ({"data": PICTURE, "parameters": {"top_k": [LONG] * 9}}, {}),
        ({"data": PICTURE, "parameters": {LONG: 1}}, {"x-marsmith-" + LONG: "1"}),
    ],
)
def test_a_message_is_one_short_line_whatever_came(
    row: dict[str, Any], headers: dict[str, str]
) -> None:
    with pytest.raises(RequestError) as refused:
        ask(row, headers)
    assert len(str(refused.value)) < 300
    assert "\n" not in str(refused.value)


# Pictures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["body", "data", "file", "image", "picture"])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_raw_bytes_are_the_picture(name: str, kind: type) -> None:
    request = ask({name: kind(PICTURE)})
    assert request == Request([PICTURE], {"top_k": 5, "mask": "png"}, "application/json", False)
    assert type(request.pictures[0]) is bytes


@pytest.mark.parametrize("content_type", ["image/png", "application/json", "text/plain", ""])
def test_the_content_type_does_not_matter(content_type: str) -> None:
    assert ask({"body": PICTURE}, {"content-type": content_type}).pictures == [PICTURE]


@pytest.mark.parametrize("wrap", [json.dumps, lambda text: json.dumps(text).encode(), lambda d: d])
def test_json_with_a_picture_in_base64(wrap: Any) -> None:
    request = ask({"body": wrap({"data": B64})})
    assert (request.pictures, request.many) == ([PICTURE], False)


def test_json_sent_over_grpc_or_as_a_multipart_field() -> None:
    document = json.dumps({"data": B64, "parameters": {"top_k": 2}}).encode()
    assert ask({"data": bytearray(b" \n" + document)}).options["top_k"] == 2


@pytest.mark.parametrize("text", ["\ufeff", "\ufeff\n"])
def test_json_may_begin_with_a_byte_order_mark(text: str) -> None:
    text += json.dumps({"data": B64, "parameters": {"top_k": 2}})
    for value in (text, text.encode()):
        request = ask({"body": value})
        assert (request.pictures, request.options["top_k"]) == ([PICTURE], 2)


def test_json_instances_are_many_even_when_it_is_one() -> None:
    two = ask(body({"instances": [{"b64": B64}, {"b64": base64.b64encode(b"other").decode()}]}))
    assert (two.pictures, two.many) == ([PICTURE, b"other"], True)
    assert ask(body({"instances": [{"b64": B64}]})).many


@pytest.mark.parametrize("text", [f"data:image/png;base64,{B64}", f"{B64[:8]}\r\n {B64[8:]}\n"])
def test_base64_may_be_a_data_url_or_wrapped(text: str) -> None:
    assert ask(body({"data": text})).pictures == [PICTURE]


def test_multipart_with_the_picture_in_data_and_options_beside_it() -> None:
    request = ask({"data": PICTURE, "top_k": b"3", "mask": bytearray(b"rle")})
    assert (request.pictures, request.options) == ([PICTURE], {"top_k": 3, "mask": "rle"})


def test_multipart_with_the_picture_in_a_field_of_any_name() -> None:
    assert ask({"holiday.png": PICTURE, "top_k": b"3"}).pictures == [PICTURE]
    # Text alone, or too long for an option's value, is meant for a picture as well.
    assert ask({"holiday.svg": b"<svg/>"}).pictures == [b"<svg/>"]
    long = b"<svg>" * 205
    assert len(long) == 1025
    assert ask({"holiday.svg": long, "top_k": b"3"}).pictures == [long]
    assert "'holiday.svg'" in str(refusal({"data": PICTURE, "holiday.svg": long[:-1]}))


@pytest.mark.parametrize(
    "row",
    [{}, {"top_k": b"3"}, {"parameters": b"{}"}, body({"instances": []})],
)
def test_no_picture_is_refused_saying_how_to_send_one(row: dict[str, Any]) -> None:
    assert "send the picture's bytes as the body" in str(refusal(row))


def test_two_picture_fields_are_refused_by_name() -> None:
    assert "2 picture fields came ('data', 'other')" in str(
        refusal({"data": PICTURE, "other": PICTURE})
    )


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "is a list, not an object"),
        ({}, "exactly one of 'data' and 'instances'"),
        ({"data": B64, "instances": []}, "exactly one of 'data' and 'instances'"),
        ({"image": B64}, "unknown JSON key 'image'"),
        ({"data": B64, "top_k": 3}, "options go into 'parameters'"),
        ({"data": 5}, "data is a int, not base64 text"),
        ({"data": "not base64!"}, "data is not valid base64"),
        ({"data": "abc"}, "data is not valid base64"),
        ({"data": "QUJD!"}, "data is not valid base64"),
        ({"data": "é"}, "data is not valid base64"),
        ({"instances": {"b64": B64}}, "'instances' is not a list"),
        ({"instances": [{"b64": B64}, B64]}, "instances[1] is not"),
        ({"instances": [{"b64": B64, "top_k": 3}]}, "instances[0] is not"),
        ({"instances": [{"b64": None}]}, "instances[0].b64 is a NoneType"),
        ({"data": B64, "parameters": [3]}, "'parameters' is not a JSON object"),
    ],
)
def test_other_json_is_refused_saying_what_is_wrong(document: object, words: str) -> None:
    assert words in str(refusal({"body": document}))


@pytest.mark.parametrize("text", [b"{", b'{"data": ', b"{\xff}", b"{" * 50_000, b'{"a":1}{'])
def test_broken_json_is_refused(text: bytes) -> None:
    assert "not valid JSON" in str(refusal({"body": text}))


@pytest.mark.parametrize("value", [None, 5, 1.5, True])
def test_a_json_scalar_is_no_picture(value: object) -> None:
    refusal({"body": value})


def test_more_pictures_than_accepted_are_413() -> None:
    four = [{"b64": B64}] * 4
    assert len(ask(body({"instances": four})).pictures) == 4
    with pytest.raises(TooLarge, match="5 pictures came in one request: at most 4") as refused:
        ask(body({"instances": [*four, four[0]]}))
    assert refused.value.details == {"max_pictures": 4}


# Options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "headers"),
    [
        ({"data": PICTURE, "top_k": b"2"}, {}),
        ({"data": PICTURE, "top_k": "2"}, {}),
        ({"data": PICTURE, "parameters": b'{"top_k": 2}'}, {}),
        ({"data": PICTURE, "parameters": {"top_k": 2}}, {}),
        ({"body": PICTURE}, {"X-Marsmith-Top-K": "2"}),
        ({"body": PICTURE}, {"x-marsmith-top_k": "2"}),
        (body({"data": B64, "parameters": {"top_k": 2}}), {}),
        (body({"instances": [{"b64": B64}], "parameters": {"top_k": "2"}}), {}),
    ],
)
def test_an_option_comes_as_field_header_or_json(
    row: dict[str, Any], headers: dict[str, str]
) -> None:
    assert ask(row, headers).options == {"top_k": 2, "mask": "png"}


@pytest.mark.parametrize(
    ("row", "headers"),
    [
        ({"data": PICTURE, "topk": b"2"}, {}),
        ({"data": PICTURE, "parameters": b'{"topk": 2}'}, {}),
        ({"body": PICTURE}, {"X-Marsmith-Topk": "2"}),
        (body({"data": B64, "parameters": {"topk": 2}}), {}),
    ],
)
def test_an_unknown_option_lists_the_accepted_ones(
    row: dict[str, Any], headers: dict[str, str]
) -> None:
    error = refusal(row, headers)
    assert "unknown option 'topk': accepted are top_k: a whole number from 1" in str(error)
    assert set(error.details["accepted"]) == {"top_k", "mask"}


@pytest.mark.parametrize("value", [b"0", b"two", b"", b"\xff"])
def test_a_malformed_option_says_what_it_takes(value: bytes) -> None:
    # Every file part is a dict of headers to TorchServe's protocol, so only the value tells.
    error = refusal({"data": PICTURE, "top_k": value})
    assert "it takes a whole number from 1" in str(error)


def test_the_same_option_from_two_places_is_refused() -> None:
    error = refusal({"data": PICTURE, "top_k": b"2"}, {"X-Marsmith-Top-K": "3"})
    assert str(error) == "option 'top_k' came twice: set it in one place"


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 50_000, b"3", b"null"])
def test_broken_parameters_are_refused(text: bytes) -> None:
    assert "'parameters' is not" in str(refusal({"data": PICTURE, "parameters": text}))


def test_headers_of_multipart_fields_are_not_options() -> None:
    headers = {"x-marsmith-top-k": {"content-type": "text/plain"}, "accept": {"content-type": ""}}
    assert ask({"data": PICTURE}, headers).options["top_k"] == 5


# The media type of the answer ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "headers"),
    [
        ({"body": PICTURE}, {"Accept": "image/png"}),
        ({"body": PICTURE}, {"X-Marsmith-Accept": "image/png"}),
        ({"data": PICTURE, "accept": b"image/png"}, {"accept": "*/*"}),
        (body({"data": B64, "parameters": {"accept": "image/png"}}), {}),
    ],
)
def test_accept_comes_as_header_field_or_json(row: dict[str, Any], headers: dict[str, str]) -> None:
    assert ask(row, headers).media_type == "image/png"


def test_what_cannot_be_accepted_is_406() -> None:
    with pytest.raises(NotAcceptable):
        ask({"body": PICTURE}, {"Accept": "text/html"})


def test_a_drawn_answer_is_for_one_picture() -> None:
    row = body({"instances": [{"b64": B64}]})
    assert "without 'instances'" in str(refusal(row, {"Accept": "image/png"}))


@pytest.mark.parametrize(
    "row",
    [
        {"data": PICTURE, "accept": b"image/png"},
        body({"data": B64, "parameters": {"accept": "image/png"}}),
    ],
)
def test_a_media_type_from_two_places_is_refused(row: dict[str, Any]) -> None:
    error = refusal(row, {"X-Marsmith-Accept": "image/jpeg", "Accept": "*/*"})
    assert str(error) == "option 'accept' came twice: set it in one place"


def test_accept_that_is_not_text_is_refused() -> None:
    error = refusal(body({"data": B64, "parameters": {"accept": 5}}))
    assert "'accept' is a int, not a media type" in str(error)


# Whatever comes ----------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
KEYS = st.sampled_from(["data", "instances", "parameters", "b64", "top_k", "mask", "accept"])
DOCUMENTS = st.recursive(
    SCALARS | st.just(B64),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(), inner, max_size=4)
    ),
    max_leaves=10,
)
NAMES = st.sampled_from(["data", "body", "parameters", "top_k", "mask", "accept", "file"])
VALUES = st.binary(max_size=40) | st.binary(max_size=9).map(bytearray) | st.just(PICTURE)
HEADERS = st.dictionaries(
    st.sampled_from(["Accept", "X-Marsmith-Top-K", "x-marsmith-accept", "x-marsmith-"]) | st.text(),
    st.text(max_size=20) | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=1),
    max_size=3,
)


def only_a_request_error(row: Mapping[str, Any], headers: Mapping[str, Any]) -> None:
    try:
        request: Request | RequestError = ask(row, headers)
    except RequestError as refused:
        request = refused
    if isinstance(request, RequestError):
        assert 400 <= request.status < 500
        assert json.loads(request.body())["code"] == request.status
    else:
        assert 1 <= len(request.pictures) <= 4
        assert request.options.keys() == {"top_k", "mask"}


@given(DOCUMENTS)
@example("\ud800")
@example({"data": "\ud800"})
@example({"\ud800": 1})
@example({"data": B64, "parameters": {"\ud800": "\ud800"}})
def test_any_json_document_is_read_or_refused(document: object) -> None:
    only_a_request_error({"body": document}, {})
    only_a_request_error({"data": json.dumps(document).encode()}, {})


@given(st.dictionaries(NAMES | st.text(max_size=5), VALUES, max_size=4))
def test_any_row_of_bytes_is_read_or_refused(row: dict[str, bytes]) -> None:
    only_a_request_error(row, {})


@given(HEADERS)
@example({"X-Marsmith-Mask": "\ud800"})
def test_any_headers_are_read_or_refused(headers: dict[str, Any]) -> None:
    only_a_request_error({"body": PICTURE}, headers)
