"""One row of TorchServe's batch -> pictures and options, whichever way a client sent them.

A row arrives as ``{"body" | "data" | field name: value}``: raw bytes of any content type, parsed
JSON, multipart fields, or the entries of ``input`` of a gRPC call.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handlers.accept import ACCEPT, negotiate
from handlers.errors import BadRequest, TooLarge
from handlers.options import Option, parse_options, shown

HEADER = "x-marsmith-"
_WAYS = (
    "send the picture's bytes as the body, as multipart field 'data', or as JSON "
    '{"data": "<base64>"} or {"instances": [{"b64": "<base64>"}]}'
)


@dataclass(frozen=True)
class Request:
    """What one client asked: encoded pictures, checked options and the answer's media type.

    ``many`` tells that the pictures came as instances, so that the answer is a list even for one.
    """

    pictures: list[bytes]
    options: dict[str, Any]
    media_type: str
    many: bool = False


def read(
    row: Mapping[str, Any],
    headers: Mapping[str, Any],
    accepted: Sequence[Option],
    max_pictures: int,
    fixed: Mapping[str, str] | None = None,
) -> Request:
    """Read a row and its headers; raises a RequestError that says what is accepted.

    ``fixed`` as for ``parse_options``.
    """
    # TorchServe mixes the headers of multipart fields, which are dicts, into those of the request.
    texts = {key.lower(): value for key, value in headers.items() if isinstance(value, str)}
    given = _Given(accepted)
    for key, value in texts.items():
        if key.startswith(HEADER):
            given.set(key[len(HEADER) :].replace("-", "_"), value)
    pictures, many = _read_body(row, given)
    if not pictures:
        raise BadRequest(f"no picture came: {_WAYS}")
    if len(pictures) > max_pictures:
        raise TooLarge(
            f"{len(pictures)} pictures came in one request: at most {max_pictures} are accepted",
            max_pictures=max_pictures,
        )
    media_type = negotiate(given.accept or texts.get("accept"))
    if media_type.startswith("image/") and many:
        raise BadRequest(f"{media_type} is an answer for one picture: send it without 'instances'")
    return Request(pictures, parse_options(given.options, accepted, fixed), media_type, many)


class _Given:
    """Options as they came, each at most once, and the media type when it came as a field."""

    def __init__(self, accepted: Sequence[Option]) -> None:
        self.names = {option.name for option in accepted} | {ACCEPT}
        self.options: dict[str, object] = {}
        self.accept: str | None = None

    def set(self, name: str, value: object) -> None:
        if name in self.options or (name == ACCEPT and self.accept is not None):
            raise BadRequest(f"option {shown(name)} came twice: set it in one place")
        if name == ACCEPT:
            self.accept = _text(value)
        else:
            self.options[name] = value


def _read_body(row: Mapping[str, Any], given: _Given) -> tuple[list[bytes], bool]:
    """Pictures and options of a row: 'data' or 'body' is the picture, else the one file field."""
    pictures = {}
    for name, value in row.items():
        if name == "parameters":
            _read_parameters(value, given)
        elif name in ("data", "body"):
            pictures[name] = value
        elif name in given.names or (len(row) > 1 and _is_text(value)):
            given.set(name, value)
        else:
            pictures[name] = value
    if len(pictures) > 1:
        names = ", ".join(map(shown, sorted(pictures)[:5]))
        raise BadRequest(
            f"{len(pictures)} picture fields came ({names}): send one, or several as JSON "
            "'instances'"
        )
    for value in pictures.values():
        document = _document(value)
        return ([_bytes(value)], False) if document is None else _read_json(document, given)
    return [], False


def _document(value: Any) -> Any:
    """The JSON document a body holds, or None for a picture.

    No picture format starts with a brace, so bytes that do are JSON sent under another content
    type (or over gRPC, which has none), and JSON that TorchServe could not parse.
    """
    if isinstance(value, (bytes, bytearray, str)):
        # Editors of Windows begin a text in UTF-8 with a mark.
        raw = _bytes(value).removeprefix(codecs.BOM_UTF8)
        if raw.lstrip()[:1] != b"{":
            return None
        try:
            return json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"the body is not valid JSON ({error}): {_WAYS}") from error
    return value


def _read_json(document: Any, given: _Given) -> tuple[list[bytes], bool]:
    if not isinstance(document, dict):
        raise BadRequest(f"the JSON body is a {type(document).__name__}, not an object: {_WAYS}")
    unknown = set(document) - {"data", "instances", "parameters"}
    if unknown:
        raise BadRequest(
            f"unknown JSON key {shown(min(unknown))}: accepted are 'data', 'instances' "
            "and 'parameters' (options go into 'parameters')"
        )
    _read_parameters(document.get("parameters", {}), given)
    if ("data" in document) == ("instances" in document):
        raise BadRequest("the JSON body needs exactly one of 'data' and 'instances'")
    if "data" in document:
        return [_base64(document["data"], "data")], False
    instances = document["instances"]
    if not isinstance(instances, list):
        raise BadRequest('\'instances\' is not a list: send [{"b64": "<base64>"}, ...]')
    return [_instance(value, index) for index, value in enumerate(instances)], True


def _read_parameters(parameters: Any, given: _Given) -> None:
    if isinstance(parameters, (bytes, bytearray, str)):
        try:
            parameters = json.loads(parameters)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"'parameters' is not valid JSON ({error})") from error
    if not isinstance(parameters, dict):
        raise BadRequest("'parameters' is not a JSON object of options")
    for name, value in parameters.items():
        given.set(name, value)


def _instance(value: Any, index: int) -> bytes:
    if not isinstance(value, dict) or set(value) != {"b64"}:
        raise BadRequest(f'instances[{index}] is not {{"b64": "<base64>"}}')
    return _base64(value["b64"], f"instances[{index}].b64")


def _is_text(value: Any) -> bool:
    """Whether a field looks like an option rather than a file: short and printable."""
    if isinstance(value, (bytes, bytearray)):
        try:
            value = bytes(value[:1025]).decode("utf-8")
        except UnicodeDecodeError:
            return False
    return not isinstance(value, str) or (len(value) <= 1024 and value.isprintable())


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        # JSON text may hold half a surrogate pair, which has no bytes.
        return value.encode(errors="replace")
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    raise BadRequest(f"a picture field holds a {type(value).__name__}, not bytes: {_WAYS}")


def _base64(value: Any, where: str) -> bytes:
    if not isinstance(value, str):
        raise BadRequest(f"{where} is a {type(value).__name__}, not base64 text")
    if value.startswith("data:"):
        value = value.partition(",")[2]
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"{where} is not valid base64 ({error})") from error


def _text(value: object) -> str:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode("utf-8", "replace")
    if not isinstance(value, str):
        raise BadRequest(f"{ACCEPT!r} is a {type(value).__name__}, not a media type")
    return value
