from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from certificates import self_signed

from handlers.errors import ServerError
from marsmith.addresses import Addresses, Tokens
from marsmith.client import Client, Multipart, Refused, Reply


class _Server(BaseHTTPRequestHandler):
    """Answers as TorchServe would, and remembers what it was asked."""

    asked: list[tuple[str, str, dict[str, str], bytes]]

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.asked.append((self.command, self.path, headers, body))
        status, answer = self._content()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        with suppress(BrokenPipeError):  # the client that had too little patience
            self.wfile.write(answer)

    def _content(self) -> tuple[int, bytes]:
        if "slow" in self.path:
            time.sleep(1)
        if "missing" in self.path:
            return 404, b'{"code": 404, "message": "Model not found: missing"}'
        if self.path == "/models?limit=100&next_page_token=0":
            return 200, b'{"nextPageToken": "100", "models": [{"modelName": "a"}]}'
        if self.path == "/models?limit=100&next_page_token=100":
            return 200, b'{"nextPageToken": "200", "models": [{"modelName": "b"}]}'
        if "closed" in self.path:
            return 405, b'{"code": 405, "message": "Requested method is not allowed"}'
        if self.path == "/metrics":
            return 200, b"metric 1.0"
        if self.command == "GET" and self.path.startswith("/models?"):
            return 200, b'{"models": []}'
        return 200, b'{"status": "done"}'

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def asked() -> list[tuple[str, str, dict[str, str], bytes]]:
    return []


@pytest.fixture
def server(asked: list[Any]) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (_Server,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def client_of(server: ThreadingHTTPServer, scheme: str = "http") -> Client:
    url = f"{scheme}://127.0.0.1:{server.server_port}"
    return Client(Addresses(url, url, url, "", ""), Tokens("in", "man"), timeout=5)


@pytest.fixture
def client(server: ThreadingHTTPServer) -> Iterator[Client]:
    with client_of(server) as client:
        yield client


def test_a_picture_is_not_sent_as_a_form(client: Client, asked: list[Any]) -> None:
    reply = client.predict("a model", b"\xff\xd8", version="1/0", accept="image/png")
    assert reply.ok
    assert reply.json() == {"status": "done"}
    command, path, headers, body = asked[0]
    assert (command, path, body) == ("POST", "/predictions/a%20model/1%2F0", b"\xff\xd8")
    assert headers["content-type"] == "application/octet-stream"
    assert headers["accept"] == "image/png"
    assert headers["authorization"] == "Bearer in"


def test_json_and_multipart(client: Client, asked: list[Any]) -> None:
    client.predict("m", {"top_k": 3})
    client.predict("m", Multipart({"image": b"\x89PNG", "top_k": "3"}), headers={"x-a": "b"})
    client.predict("m", b"\xff\xd8", headers={"content-type": "image/jpeg"})
    assert asked.pop()[2]["content-type"] == "image/jpeg"
    _, _, headers, body = asked[0]
    assert (headers["content-type"], json.loads(body)) == ("application/json", {"top_k": 3})
    _, _, headers, body = asked[1]
    assert headers["content-type"].startswith("multipart/form-data")
    assert headers["x-a"] == "b"
    assert b'name="image"; filename="image"\r\n' in body
    assert b'; name="top_k"\r\n' in body


def test_models_reads_every_page(client: Client, asked: list[Any]) -> None:
    assert client.models() == ["a", "b"]
    assert len(asked) == 3
    assert asked[0][2]["authorization"] == "Bearer man"


def test_management(client: Client, asked: list[Any]) -> None:
    assert client.scale("m", 2) == "done"
    assert client.scale("m", 1, 3, version="2.0", synchronous=False) == "done"
    assert client.set_default("m", "2.0") == "done"
    client.describe("m", "all", customized=True)
    assert client.register("m-2.0 a.mar") == "done"
    assert client.unregister("m", "1.0") == "done"
    assert [(command, path) for command, path, _, _ in asked] == [
        ("PUT", "/models/m?min_worker=2&max_worker=2&synchronous=true"),
        ("PUT", "/models/m/2.0?min_worker=1&max_worker=3&synchronous=false"),
        ("PUT", "/models/m/2.0/set-default"),
        ("GET", "/models/m/all?customized=true"),
        ("POST", "/models?url=m-2.0%20a.mar&synchronous=false"),
        ("DELETE", "/models/m/1.0"),
    ]


def test_the_model_api_is_off(client: Client) -> None:
    with pytest.raises(Refused, match="start it with `marsmith serve --model-api`"):
        client.register("closed.mar")


def test_metrics_need_no_token(client: Client, asked: list[Any]) -> None:
    assert client.metrics() == "metric 1.0"
    assert "authorization" not in asked[0][2]


def test_an_error_status_is_a_reply_of_predict_and_an_error_elsewhere(client: Client) -> None:
    reply = client.predict("missing", b"")
    assert not reply.ok
    assert reply.problem() == "404: Model not found: missing"
    with pytest.raises(ServerError, match="GET models/missing: 404: Model not found"):
        client.describe("missing")


def test_every_call_has_a_timeout(client: Client) -> None:
    with pytest.raises(ServerError, match=r"no answer within 0.1 s .* `marsmith status`"):
        client.predict("slow", b"", timeout=0.1)
    with pytest.raises(ServerError, match=r"no answer within 0.2 s .*url=slow"):
        client.register("slow.mar", timeout=0.2)


def test_no_proxy_and_no_netrc_of_the_user_is_taken(
    client: Client, asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert client.ping()
    assert asked[0][2]["authorization"] == "Bearer in"


def test_nobody_there_says_how_to_start() -> None:
    nobody = Addresses(*["http://127.0.0.1:1"] * 5)
    with (
        Client(nobody, Tokens()) as client,
        pytest.raises(ServerError, match="start it with `marsmith serve`"),
    ):
        client.ping()


def test_only_a_server_that_proves_who_it_is_gets_the_token(
    server: ThreadingHTTPServer,
    asked: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    for trusted, problem in [("", "CERTIFICATE_VERIFY_FAILED"), ("none.pem", "name the PEM file")]:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", trusted)
        with client_of(server, "https") as client, pytest.raises(ServerError, match=problem):
            client.ping()
    assert asked == []
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "server.pem"))
    with client_of(server, "https") as client:
        assert client.ping()


def test_a_body_that_is_not_json_is_shown() -> None:
    reply = Reply(503, "", b"\xffoops")
    assert reply.problem() == r"503: b'\xffoops'"
    with pytest.raises(ServerError, match=r"\(503, no content type, 5 bytes\) is not JSON"):
        reply.json()
