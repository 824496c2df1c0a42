"""gRPC messages, metadata and streams that are malformed, sent to a real TorchServe."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from flood import MODEL, Neighbour

from marsmith.addresses import Tokens, bearer
from marsmith.client import Reply
from marsmith.grpc_client import GrpcClient
from marsmith.grpc_messages import CLASSES
from marsmith.server import TorchServe

pytestmark = pytest.mark.usefixtures("survivor")

SERVICE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/"


def message(model: bytes = MODEL.encode(), version: bytes = b"", **fields: bytes) -> bytes:
    """A PredictionsRequest, with what protobuf would not write."""
    entries = [_field(1, key.encode()) + _field(2, value) for key, value in fields.items()]
    return _field(1, model) + _field(2, version) + b"".join(_field(3, entry) for entry in entries)


def _field(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size > 127:
        size, length = size >> 7, length + bytes([size & 127 | 128])
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


ENTRY = _field(1, b"\xff\xfe") + _field(2, b"a")
MESSAGES: dict[str, tuple[bytes, int]] = {
    "unknown model": (message(b"none", data=b"a"), 404),
    "no model": (b"", 500),
    "unknown version": (message(version=b"9"), 404),
    "a version of a null": (message(version=b"\n\0"), 404),
    "no entries": (message(), 400),
    "an empty entry": (message(data=b""), 415),
    "another key": (message(picture=b"junk"), 415),
    "two pictures": (message(a=b"\xff", b=b"\xff"), 400),
    "a key of a megabyte": (message(**{"k" * 1_000_000: b"\xff", "data": b"a"}), 400),
    "20 MB": (message(data=b"x" * 20_000_000), 415),
    "an option that is not UTF-8": (message(data=b"a", top_k=b"\xff\xfe"), 400),
    "parameters that are no JSON": (message(data=b"a", parameters=b"{"), 400),
    "no message": (b"\xff" * 50, 500),
    "half a message": (message(data=b"junk")[:-2], 500),
    "a length of 4 GB": (b"\x0a\xff\xff\xff\xff\x0fabc", 500),
    "a model that is not UTF-8": (message(b"\xff\xfe"), 500),
    "a key that is not UTF-8": (message() + _field(3, ENTRY), 500),
}


def _call(
    server: TorchServe, method: str, data: bytes, more: tuple[tuple[str, str], ...] = ()
) -> Reply:
    """The first answer of any gRPC method, whose request may be any bytes."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
    tokens = tuple(bearer(Tokens.read(server.home).inference).items())
    with grpc.insecure_channel(server.running.addresses.grpc_inference, options) as channel:
        kind = {"Predictions": channel.unary_stream, "StreamPredictions": channel.unary_stream}
        ask = kind.get(method, channel.stream_stream)(
            SERVICE + method,
            request_serializer=lambda one: one,
            response_deserializer=CLASSES["PredictionResponse"].FromString,
        )
        sent: Any = data if method in kind else iter([data])
        return Reply(
            200, "", next(iter(ask(sent, timeout=30, metadata=(*tokens, *more)))).prediction
        )


@pytest.mark.parametrize("name", MESSAGES)
def test_grpc_messages_that_are_malformed(one_worker: TorchServe, name: str) -> None:
    """What protobuf cannot read, TorchServe answers with UNKNOWN and no reason."""
    data, expected = MESSAGES[name]
    if expected not in (404, 500):
        assert json.loads(_call(one_worker, "Predictions", data).body)["code"] == expected
        return
    with pytest.raises(grpc.RpcError) as refused:
        _call(one_worker, "Predictions", data)
    assert refused.value.code().name in ("INTERNAL", "UNKNOWN")
    assert ("NotFoundException" in refused.value.details()) == (expected == 404)


def test_grpc_metadata_of_any_size(one_worker: TorchServe) -> None:
    _call(one_worker, "Predictions", message(data=b"junk"), (("x-a", "a" * 6000),))
    with pytest.raises(grpc.RpcError) as refused:
        _call(one_worker, "Predictions", message(data=b"junk"), (("x-a", "a" * 9000),))
    assert refused.value.code().name in ("UNKNOWN", "INTERNAL")


def test_a_message_beyond_the_limit_is_cut_off(one_worker: TorchServe) -> None:
    with GrpcClient.of(one_worker.running) as client:
        reply = client.predict(MODEL, {"data": bytes(34_000_000)})
    assert not reply.ok


def test_streams_end_no_worker(one_worker: TorchServe, neighbour: Neighbour) -> None:
    """TorchServe ended it at every one of them, until answers said that nothing follows."""
    for _ in range(5):
        body = _call(one_worker, "StreamPredictions", message(data=neighbour.picture)).body
        assert json.loads(body) == neighbour.answer
        body = _call(one_worker, "StreamPredictions", message(data=b"junk")).body
        assert json.loads(body)["code"] == 415
    # Only for models of sequences, which ours are not
    assert _call(one_worker, "StreamPredictions2", message(data=neighbour.picture)).body == b""
