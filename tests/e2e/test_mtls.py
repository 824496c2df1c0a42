"""The nginx of docs/security.md that wants clients' certificates, as it is written there."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
import requests
from tiny import PROJECT, ending

from marsmith.addresses import Tokens, bearer, free_addresses
from marsmith.grpc_messages import CLASSES
from marsmith.server import TorchServe

# Who is not root has no sbin in the path of many a system.
_NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin") or ""
pytestmark = pytest.mark.skipif(
    not (_NGINX and shutil.which("openssl")),
    reason="no nginx or openssl here, which the documentation names: apt-get install nginx openssl",
)
_PREDICTIONS = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
# Larger than what nginx keeps of a body in memory.
_BODY = b"x" * 300_000


def _documented(language: str, word: str) -> str:
    """The one block of the documentation in a language that has a word."""
    text = (PROJECT / "docs/security.md").read_text()
    blocks = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    [found] = [block for block in blocks if word in block]
    return str(found)


def _replaced(text: str, values: dict[str, str]) -> str:
    for old, new in values.items():
        assert text.count(old) == 1, f"{old} is not in the documentation once"
        text = text.replace(old, new)
    return text


def _certificates(folder: Path) -> None:
    """Make a clients' authority and a client's certificate as the documentation does."""
    folder.mkdir()
    commands = _documented("sh", "clients-ca.pem")
    subprocess.run(
        ["bash", "-ec", commands], cwd=folder, timeout=60, capture_output=True, check=True
    )


def _server_certificate(folder: Path) -> None:
    made = ["-keyout", "server.key", "-out", "server.pem", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *made]
    subprocess.run(command, cwd=folder, timeout=60, capture_output=True, check=True)


@dataclass(frozen=True)
class Proxy:
    """A running nginx in ``folder``, in whose ``right`` and ``strange`` are clients."""

    folder: Path
    address: str
    tokens: Tokens

    def post(self, client: str, token: str, path: str = "predictions/echo") -> requests.Response:
        """A POST with the certificate of a folder; the empty name is no certificate."""
        own = self.folder / client
        return requests.post(
            f"https://{self.address}/{path}",
            _BODY,
            headers={"content-type": "application/octet-stream", **bearer(token)},
            cert=(str(own / "client.pem"), str(own / "client.key")) if client else None,
            verify=str(self.folder / "server.pem"),
            timeout=30,
        )

    def call(self, client: str, method: str, request: str, answer: str, **fields: object) -> object:
        """A gRPC call with the certificate of a folder; raises ``grpc.RpcError``."""
        own = self.folder / client
        pair = [
            (own / name).read_bytes() if client else None for name in ("client.key", "client.pem")
        ]
        proof = grpc.ssl_channel_credentials((self.folder / "server.pem").read_bytes(), *pair)
        metadata = tuple(bearer(self.tokens.inference).items())
        with grpc.secure_channel(self.address, proof, [("grpc.enable_http_proxy", 0)]) as channel:
            return channel.unary_unary(
                method,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=CLASSES[answer].FromString,
            )(CLASSES[request](**fields), timeout=30, metadata=metadata)

    def predict(self, client: str) -> str:
        """A prediction over gRPC."""
        entries = [CLASSES["Input"](key="data", value=_BODY)]
        fields = {"model_name": "echo", "input": entries}
        answer = self.call(
            client, _PREDICTIONS, "PredictionsRequest", "PredictionResponse", **fields
        )
        return str(answer.prediction)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def proxy(served: TorchServe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("nginx")
    _certificates(folder / "right")
    _certificates(folder / "strange")
    _server_certificate(folder)
    shutil.copy(folder / "right/clients-ca.pem", folder)
    addresses = served.running.addresses
    port = urlsplit(free_addresses()["inference_address"]).port
    site = _replaced(
        _documented("nginx", "ssl_verify_client"),
        {
            "listen 443": f"listen 127.0.0.1:{port}",
            "127.0.0.1:8080": urlsplit(addresses.inference).netloc,
            "127.0.0.1:7070": addresses.grpc_inference,
        },
    )
    temps = "".join(
        f"{kind}_temp_path {kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # As root it would serve as a user who may not enter the tests' folder.
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; pid nginx.pid; events {{}}\nhttp {{ access_log off;\n{temps}{site}}}\n"
    )
    with ending([_NGINX, "-p", str(folder), "-c", "nginx.conf", "-e", "error.log"], folder):
        _wait_for(int(port or 0), folder / "error.log")
        yield Proxy(folder, f"localhost:{port}", Tokens.read(served.home))


def _wait_for(port: int, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return
        time.sleep(0.1)
    pytest.fail(f"nginx does not listen: {log.read_text()}")


def test_a_client_with_a_certificate_is_answered(proxy: Proxy) -> None:
    reply = proxy.post("right", proxy.tokens.inference)
    assert reply.status_code == 200, reply.text[:200]
    assert reply.json()["values"] == {"body": _BODY.decode()}
    assert _BODY.decode() in proxy.predict("right")


@pytest.mark.parametrize(
    ("client", "why"), [("", "No required SSL certificate"), ("strange", "SSL certificate error")]
)
def test_a_client_without_one_or_with_a_strange_one_is_refused(
    proxy: Proxy, client: str, why: str
) -> None:
    reply = proxy.post(client, proxy.tokens.inference)
    # By nginx: TorchServe's own errors are JSON.
    assert (reply.status_code, why in reply.text) == (400, True), reply.text[:200]
    with pytest.raises(grpc.RpcError) as refused:
        proxy.predict(client)
    assert refused.value.code() == grpc.StatusCode.INTERNAL
    assert "400" in refused.value.details()


def test_a_certificate_is_no_token_and_opens_predictions_alone(proxy: Proxy) -> None:
    refused = proxy.post("right", "")
    assert (refused.status_code, refused.json()["type"]) == (400, "InvalidKeyException")
    assert proxy.post("right", proxy.tokens.management, "models").status_code == 404
    ping = _PREDICTIONS.replace("Predictions", "Ping")
    with pytest.raises(grpc.RpcError) as closed:
        proxy.call("right", ping, "Empty", "TorchServeHealthResponse")
    assert closed.value.code() == grpc.StatusCode.UNIMPLEMENTED
