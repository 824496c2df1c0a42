from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from handlers.errors import ServerError
from marsmith import grpc_client
from marsmith.addresses import Addresses, Tokens
from marsmith.grpc_client import GrpcClient
from marsmith.grpc_messages import CLASSES


def test_a_prediction_request_on_the_wire() -> None:
    entry = CLASSES["Input"](key="data", value=b"\xff")
    request = CLASSES["PredictionsRequest"](model_name="m", model_version="1", input=[entry])
    expected = b"\x0a\x01m" + b"\x12\x011" + b"\x1a\x09" + b"\x0a\x04data" + b"\x12\x01\xff"
    assert request.SerializeToString() == expected


def test_unknown_fields_of_an_answer_are_no_error() -> None:
    answer = CLASSES["PredictionResponse"].FromString(b"\x0a\x02[]" + b"\x12\x01x")
    assert answer.prediction == b"[]"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"code":422,"type":"BrokenPicture","message":"x"}', 422),
        (b'{"code":404}', 200),
        (b'{"code":', 200),
        (b'[{"label":"cat","score":0.9}]', 200),
        (b"\x89PNG", 200),
        (b"", 200),
    ],
)
def test_the_status_that_grpc_drops_is_read_from_the_body(body: bytes, status: int) -> None:
    assert grpc_client._status(body) == status


@pytest.mark.parametrize(
    ("code", "details", "status"),
    [
        (grpc.StatusCode.INTERNAL, "Model not found: m\norg.x.ModelNotFoundException", 404),
        (grpc.StatusCode.INVALID_ARGUMENT, "max_worker cannot be less\norg.x.BadRequest", 400),
        (grpc.StatusCode.PERMISSION_DENIED, "Token Authorization failed", 400),
        (grpc.StatusCode.INTERNAL, "", 500),
    ],
)
def test_a_refusal_is_what_rest_would_answer(code: Any, details: str, status: int) -> None:
    error = SimpleNamespace(code=lambda: code, details=lambda: details)
    reply = grpc_client._refusal(error)
    assert reply.status == status
    assert reply.problem() == f"{status}: {details.partition(chr(10))[0] or code.name}"


def test_nobody_there_and_no_workers() -> None:
    nobody = Addresses("", "", "", "127.0.0.1:1", "127.0.0.1:1")
    with GrpcClient(nobody, Tokens("a", "b"), timeout=5) as client:
        with pytest.raises(ServerError, match="cannot reach TorchServe over gRPC"):
            client.predict("m", {"data": b""})
        with pytest.raises(ServerError, match="gRPC cannot scale to 0 workers: use REST"):
            client.scale("m", 0)
