from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from tiny import ECHO, kill, pack, until

from handlers.bundle import Bundle
from handlers.errors import ServerError
from handlers.inputs import ImageInput
from marsmith import probe
from marsmith.addresses import Tokens
from marsmith.client import Client, Multipart
from marsmith.commands.status import _check
from marsmith.grpc_client import GrpcClient
from marsmith.server import TorchServe
from marsmith.status import VersionStatus, check_golden, read_status


@pytest.fixture
def client(served: TorchServe) -> Iterator[Client]:
    with served.client() as client:
        yield client


@pytest.fixture
def grpc_client(served: TorchServe) -> Iterator[GrpcClient]:
    with GrpcClient.of(served.running) as client:
        yield client


def _status(served: TorchServe, client: Client, model: str, version: str) -> VersionStatus:
    found = read_status(served.running, client)
    return next(one for one in found if (one.model, one.version) == (model, version))


def test_the_newest_version_is_the_default(served: TorchServe, client: Client) -> None:
    assert client.predict("echo", b"x").json()["version"] == "10.0"
    for version in ("1.0", "2.0", "10.0"):
        assert client.predict("echo", b"x", version=version).json()["version"] == version
    assert client.predict("echo", b"x", version="3.0").status == 404
    found = {
        one.version: one.default
        for one in read_status(served.running, client)
        if one.model == "echo"
    }
    assert found == {"1.0": False, "2.0": False, "10.0": True}


def test_set_default(client: Client) -> None:
    client.set_default("echo", "2.0")
    assert client.predict("echo", b"x").json()["version"] == "2.0"
    client.set_default("echo", "10.0")


def test_models(client: Client, grpc_client: GrpcClient) -> None:
    assert client.ping()
    assert grpc_client.ping()
    assert client.models() == ["echo", "refuses"]


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("application/octet-stream", "bytearray"),
        ("image/png", "bytearray"),
        ("text/plain", "str"),
        ("application/json", "bytearray"),  # broken JSON is passed on as it came
    ],
)
def test_what_a_handler_gets_of_a_raw_body(client: Client, content_type: str, kind: str) -> None:
    reply = client.predict("echo", b"{oops", content_type=content_type)
    assert reply.content_type == "application/json"
    assert reply.json()["kinds"] == {"body": kind}
    assert reply.json()["values"] == {"body": "{oops"}


def test_what_a_handler_gets_of_json_and_multipart(client: Client) -> None:
    answer = client.predict("echo", {"top_k": 3}).json()
    assert answer["values"] == {"body": {"top_k": 3}}
    answer = client.predict("echo", Multipart({"image": b"\x89", "top_k": "3"})).json()
    assert answer["kinds"] == {"image": "bytearray", "top_k": "bytearray"}
    assert answer["values"] == {"image": "\x89", "top_k": "3"}


def test_large_pictures_pass_and_too_large_ones_do_not(client: Client) -> None:
    assert client.predict("echo", b"x" * 30_000_000, content_type="image/png").ok
    assert client.predict("echo", b"x" * 34_000_000, content_type="image/png").status == 413


def test_grpc_predicts_like_rest(grpc_client: GrpcClient) -> None:
    reply = grpc_client.predict("echo", {"data": b"\xff", "top_k": b"3"}, version="2.0")
    assert reply.status == 200
    answer = reply.json()
    assert answer["version"] == "2.0"
    assert answer["values"] == {"data": "\xff", "top_k": "3"}
    assert grpc_client.predict("none", {"data": b""}).status == 404


def test_an_error_status_arrives_over_both(client: Client, grpc_client: GrpcClient) -> None:
    assert client.predict("echo", Multipart({"data": b"broken"})).status == 422
    assert grpc_client.predict("echo", {"data": b"broken"}).status == 422


def test_scaling_over_rest_and_grpc(
    served: TorchServe, client: Client, grpc_client: GrpcClient
) -> None:
    client.scale("echo", 2, version="1.0", timeout=60)
    assert _status(served, client, "echo", "1.0").ready_workers == 2
    grpc_client.scale("echo", 1, version="1.0", timeout=60)
    assert len(grpc_client.describe("echo", "1.0")[0]["workers"]) == 1
    with pytest.raises(ServerError, match="max_worker cannot be less than min_worker"):
        client.scale("echo", 2, 1)
    with pytest.raises(ServerError, match="404: Model not found: none"):
        grpc_client.scale("none", 1)


def test_without_the_right_token_nothing_is_answered(served: TorchServe) -> None:
    addresses, tokens = served.running.addresses, Tokens.read(served.home)
    swapped = Tokens(tokens.management, tokens.inference)
    for wrong in (Tokens(), swapped):
        with Client(addresses, wrong) as client, GrpcClient(addresses, wrong) as grpc_client:
            assert client.predict("echo", b"x").status == 400
            assert grpc_client.predict("echo", {"data": b"x"}).status == 400
            with pytest.raises(ServerError, match="Token Authorization failed"):
                client.models()
            with pytest.raises(ServerError, match="Token Authorization failed"):
                grpc_client.describe("echo")


def test_models_cannot_be_added_from_outside(served: TorchServe) -> None:
    url = f"{served.running.addresses.management}/models?url=https://example.org/x.mar"
    token = {"authorization": f"Bearer {Tokens.read(served.home).management}"}
    assert requests.post(url, headers=token, timeout=10).status_code == 405


def test_secrets_do_not_reach_a_worker_but_other_variables_do(client: Client) -> None:
    answer = client.predict("echo", b"x").json()
    assert answer["secret"] is None
    assert answer["threads"] == "passed on"


def test_a_refusal_shows_with_its_reason(served: TorchServe, client: Client) -> None:
    refused = _status(served, client, "refuses", "1.0")
    assert refused.failed == "not today"
    assert not refused.ready
    assert _status(served, client, "echo", "10.0").ready
    # TorchServe lets such a request wait, or, where it meets a worker that is dying, fails it
    with suppress(ServerError):
        assert client.predict("refuses", b"x", timeout=1).status == 500


def test_a_dead_worker_is_not_counted(served: TorchServe, client: Client) -> None:
    worker = client.describe("echo", "2.0")[0]["workers"][0]["pid"]
    kill(worker)
    assert _status(served, client, "echo", "2.0").ready_workers == 0
    served.wait_ready(60)
    assert _status(served, client, "echo", "2.0").ready_workers == 1


def test_logs_stay_small(served: TorchServe, client: Client) -> None:
    logs = served.home / "logs"
    before = sum(file.stat().st_size for file in logs.iterdir())
    for _ in range(50):
        client.predict("echo", b"x")
    time.sleep(1)
    grown = sum(file.stat().st_size for file in logs.iterdir()) - before
    assert 50 * 50 < grown < 50 * 500
    assert "/predictions/echo" not in (logs / "console.log").read_text()


def test_what_clients_send_wrong_does_not_fill_the_log_that_never_rotates(
    served: TorchServe,
) -> None:
    console = served.home / "logs/console.log"
    before = console.stat().st_size
    address = urlsplit(served.running.addresses.inference)
    for path in (b"/%zz", b"/predictions/%zz", b"/predictions/echo/%", b"/a b"):
        for _ in range(5):
            with socket.create_connection((address.hostname, address.port), 10) as client:
                client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 4")
    host, _, port = served.running.addresses.grpc_inference.rpartition(":")
    begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for body in (b"GET / HTTP/1.1\r\n\r\n", bytes(100), begin + b"\xff" * 200):
        for _ in range(5):
            with socket.create_connection((host, int(port)), 10) as client:
                client.sendall(body)
                with suppress(ConnectionError):
                    client.recv(100)
    time.sleep(1)
    assert console.stat().st_size - before < 500


@pytest.fixture
def golden() -> dict[str, str | bytes]:
    """What an archive has for two golden requests; no archive has the task of this handler."""
    bundle = Bundle("m", "1.0", "echoing", "none", "none", [], ImageInput(resize=[8, 8]))
    case = {"picture": "golden/0.png", "answer": "\x89", "tolerance": 0.5}
    return {
        "marsmith.json": json.dumps(asdict(bundle)),
        "golden/requests.json": json.dumps([case, case]),
        "golden/0.png": b"\x89",
    }


def test_golden_requests_are_asked_through_the_server(
    home: Path, golden: dict[str, str | bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(home / "model-store", extra=golden)
    asked = []

    def differs(
        bundle: Bundle, expected: object, answer: dict[str, object], limit: float
    ) -> str | None:
        asked.append((bundle.task, expected, answer["values"], limit))
        return "another answer" if len(asked) > 2 else None

    monkeypatch.setattr(probe, "task_difference", differs)
    with TorchServe(home) as server, server.client() as client:
        [status] = server.wait_ready(60)
        # What serves is asked, and not what the store has by now
        (server.model_store / status.archive).unlink()
        assert str(check_golden(client, status)) == "2 ok"
        assert asked[0] == ("echoing", "\x89", {"body": "\x89"}, 0.5)
        check = check_golden(client, status)
        assert check.problem == "golden/0.png: another answer"


def test_status_finds_the_one_worker_that_answers_wrongly(
    home: Path, golden: dict[str, str | bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ECHO.replace('"version":', '"pid": os.getpid(), "version":')
    pack(home / "model-store", source=source, extra=golden)
    wrong = 0

    def differs(_: Bundle, expected: object, answer: dict[str, object], limit: float) -> str | None:
        return "another answer" if answer["pid"] == wrong else None

    monkeypatch.setattr(probe, "task_difference", differs)
    with TorchServe(home) as server, server.client(timeout=60) as client:
        server.wait_ready(60)
        client.scale("echo", 3)
        until(lambda: len(read_status(server.running, client)[0].pids) == 3)
        [status] = read_status(server.running, client)
        assert str(_check(client, status, 30)) == "3 ok"
        for pid in status.pids:
            wrong = pid
            assert _check(client, status, 30).problem == "golden/0.png: another answer"
