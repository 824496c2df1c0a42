"""Malformed JSON, base64, multipart and headers around a picture that is whole."""

from __future__ import annotations

import base64
import itertools
import json
import random
from collections.abc import Iterator

from malformed import Case, mutated

JSON = {"content-type": "application/json"}


def documents(picture: bytes, count: int, seed: int = 1) -> Iterator[Case]:
    """JSON that is none, says something else, or whose base64 is damaged."""
    b64 = base64.b64encode(picture).decode()
    for number, value in enumerate(_wrong(b64)):
        yield Case(f"JSON {number}", json.dumps(value).encode(), JSON, refused=True)
    for number, text in enumerate(_broken()):
        yield Case(f"no JSON {number}", text, JSON, refused=True)
    chance = random.Random(seed)
    # Small, so that what is damaged is often the structure
    whole = json.dumps({"instances": [{"b64": b64[:40]}], "parameters": {"top_k": 2}}).encode()
    for number in range(count):
        how, body = mutated(whole, chance)
        yield Case(f"JSON {how} #{number}", body, JSON if number % 2 else {}, refused=True)
    for number in range(count):
        how, damaged = mutated(b64.encode(), chance)
        text = json.dumps({"data": damaged.decode("latin-1")}).encode()
        yield Case(f"base64 {how} #{number}", text, JSON)


def _wrong(b64: str) -> list[object]:
    values: list[object] = [None, True, 0, -1.5, 10**400, "text", "", [], [b64], {}, "\ud800"]
    one = {"b64": b64}
    given = {"data": b64}
    return [
        *values[:3],
        *({"data": value} for value in values),
        *({"instances": value} for value in values),
        *({"instances": [value]} for value in values),
        *({"instances": [{"b64": value}]} for value in values),
        *({**given, "parameters": value} for value in [*values[:8], ["top_k"]]),
        *({**given, "parameters": {"top_k": value}} for value in values),
        *({**given, "parameters": {name: 1}} for name in ("", "x" * 100_000, "\0", "top-k", "ä")),
        *({**given, "parameters": {"accept": value}} for value in (7, "text/html")),
        *(
            {"data": text}
            for text in (f"data:image/png,{b64}=======", f"data:{b64}", b64[:-1] + "!")
        ),
        *({"instances": value} for value in ([one] * 33, [{**one, "more": 1}], {"0": one})),
        *(one, {**given, "instances": [one]}, {**given, "x" * 1_000_000: 1}),
        {"instances": [one], "parameters": {"accept": "image/png"}},
    ]


def _broken() -> list[bytes]:
    deep = (
        b"[" * 100_000,
        b'{"data":' * 100_000,
        b'{"parameters":' + b"[" * 50_000,
        b"9" * 100_000,
    )
    cut = (b"{", b'{"data"', b'{"data":', b'{"data":"', b'"\\u00', b"nul", b"-", b"/*", b"")
    strange = (b'{"data":"\\ud800"}', b'{"data":"\\x"}', b'{"data":"\xff"}', b"\xef\xbb\xbf{}")
    twice = (b'{"data":1,"data":2}', b'{"data":"a"}{"data":"b"}', b"{}\0", b"\0{}")
    values = (b'{"data":NaN}', b'{"data":1e999999}', b"NaN", b"{'data': 1}", "{}".encode("utf-16"))
    return [*deep, *cut, *strange, *twice, *values]


def fields(picture: bytes, count: int, seed: int = 2) -> Iterator[Case]:
    """Multipart bodies whose parts or boundaries are damaged."""
    chance = random.Random(seed)
    kind = {"content-type": "multipart/form-data; boundary=edge"}
    head = b'--edge\r\nContent-Disposition: form-data; name="data"; filename="a"\r\n\r\n'
    option = b'\r\n--edge\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n2\r\n--edge--\r\n'
    for number in range(count):
        how, body = mutated(head, chance)
        yield Case(f"multipart head {how} #{number}", body + picture + option, kind)
        how, body = mutated(option, chance)
        yield Case(f"multipart option {how} #{number}", head + picture + body, kind)
        how, value = mutated(kind["content-type"].encode(), chance)
        printable = {"content-type": "".join(c for c in value.decode("latin-1") if " " <= c <= "~")}
        yield Case(f"boundary {how} #{number}", head + picture + option, printable)
    for end in range(0, len(head + picture + option), 97):
        yield Case(f"multipart cut at {end}", (head + picture + option)[:end], kind)


def headers(picture: bytes) -> Iterator[Case]:
    """Options and media types that are none, and content types that lie."""
    values = (
        "",
        "-1",
        "0",
        "1.5",
        "1e400",
        "nan",
        "x" * 6000,
        "\xff\xe9",
        "[1]",
        "true",
        "2,3",
        "%32",
    )
    for value in values:
        yield Case(f"top_k {value[:9]!r}", picture, {"x-marsmith-top-k": value}, refused=True)
    for name in (
        "x-marsmith-",
        "x-marsmith-none",
        "x-marsmith-" + "a" * 3000,
        "X-Marsmith-Top-K-2",
    ):
        yield Case(f"option {name[:20]}", picture, {name: "1"}, refused=True)
    accepts = (
        "text/html",
        "image/webp",
        "a" * 5000,
        "application/json;q=0",
        "*/*;q=0",
        "\xff/\xff",
    )
    for value in accepts:
        yield Case(f"accept {value[:20]!r}", picture, {"accept": value}, refused=True)
    plain = ("", ";", "a/b/c", "application/json", "application/x-protobuf", "text/plain", "\xff")
    strange = (*plain, "text/plain; charset=none", "image/" + "x" * 5000, "multipart/mixed")
    encodings = ("gzip", "br", "none", "identity, gzip", "\xff")
    for kind, encoding in itertools.product(strange, encodings):
        sent = {"content-type": kind, "content-encoding": encoding}
        yield Case(f"content {kind[:20]!r} {encoding!r}", picture, sent)
        yield Case(f"junk {kind[:20]!r} {encoding!r}", b"\1junk", sent, refused=True)
    for name in ("describe", "explain", "ts_stream_next", "ts_request_sequence_id", "x-request-id"):
        for value in ("True", "true", "x" * 4000, "\xff"):
            yield Case(f"{name} {value[:5]!r}", picture, {name: value})
