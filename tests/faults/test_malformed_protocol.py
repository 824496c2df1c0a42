"""HTTP that is malformed itself: what TorchServe's front end makes of it."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from flood import MODEL, Neighbour

from marsmith.addresses import Tokens, bearer
from marsmith.client import Client
from marsmith.server import TorchServe

pytestmark = pytest.mark.usefixtures("survivor")

PATH = f"/predictions/{MODEL}"
# What TorchServe does not answer at all: it waits, or closes the connection.
NOTHING = 0


def send(server: TorchServe, data: bytes, *, patience: float = 20) -> tuple[int, bytes]:
    """Status and body that come back for raw bytes; NOTHING where nothing does.

    A slot for the token is filled in.
    """
    address = urlsplit(server.running.addresses.inference)
    token = bearer(Tokens.read(server.home).inference)["authorization"]
    got = b""
    with socket.create_connection((address.hostname, address.port), timeout=patience) as connection:
        connection.sendall(data.replace(b"TOKEN", token.encode()))
        try:
            while not _whole(got) and (more := connection.recv(1 << 16)):
                got += more
        except (TimeoutError, ConnectionResetError):
            pass
    head, _, body = got.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else NOTHING), body


def _whole(got: bytes) -> bool:
    head, end, body = got.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(end and lengths) and len(body) >= int(lengths[0].split(b":")[1])


def post(
    *lines: bytes, path: bytes = PATH.encode(), body: bytes = b"junk", length: bool = True
) -> bytes:
    """A request with some header lines more."""
    head = [b"POST " + path + b" HTTP/1.1", b"Host: x", b"Authorization: TOKEN", *lines]
    head += [b"Content-Length: %d" % len(body)] * length
    return b"\r\n".join(head) + b"\r\n\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked"
FORM = b"Content-Type: application/x-www-form-urlencoded"
HUGE, FOUR = b"Content-Length: 4294967296", b"Content-Length: 4"
MALFORMED: dict[str, tuple[bytes, int]] = {
    "no HTTP": (b"hello\r\n\r\n", 400),
    "noise": (bytes(range(256)) * 20, 400),
    "HTTP/2 without asking": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a length that is no number": (post(b"Content-Length: abc", length=False), 400),
    "two lengths": (post(b"Content-Length: 5", body=b"1234567"), 400),
    "a length beyond 64 bits": (post(b"Content-Length: " + b"9" * 30, length=False), 400),
    "4 GB": (post(HUGE, length=False), 413),
    "4 GB, asking first": (post(HUGE, b"Expect: 100-continue", length=False), 413),
    "another expectation": (post(b"Expect: nothing"), 417),
    "a chunk of no length": (post(CHUNKED, body=b"ZZZ\r\nx", length=False), 400),
    "a chunk of 64 bits": (post(CHUNKED, body=b"f" * 16 + b"\r\nx", length=False), 400),
    "chunks and a length": (post(CHUNKED, FOUR, body=b"4\r\nabcd\r\n0\r\n\r\n", length=False), 415),
    "no body": (post(body=b""), 415),
    "a header of 20 KB": (post(b"X-A: " + b"a" * 20_000), 400),
    "4000 headers": (post(*(b"X-%d: a" % number for number in range(4000))), 400),
    "a header with a null": (post(b"X-A: a\0b"), 400),
    "a header without a colon": (post(b"XABC"), 400),
    "a header outside ASCII": (post(b"X-\xff: a"), 400),
    "an option outside ASCII": (post(b"X-Marsmith-Top-K: \xff"), 400),
    "a line of 5 KB": (post(path=b"/predictions/" + b"a" * 5000), 400),
    "a name of 3 KB": (post(path=b"/predictions/" + b"a" * 3000), 404),
    "a name that is not UTF-8": (post(path=b"/predictions/%ff%fe"), 404),
    "a name of a null": (post(path=b"/predictions/%00"), 404),
    "a path upwards": (post(path=b"/predictions/../../etc/passwd"), 404),
    "a version of line ends": (post(path=PATH.encode() + b"/%0d%0a"), 404),
    "no model": (post(path=b"/predictions/"), 404),
    "half an escape": (post(path=b"/predictions/%zz"), 403),
    "no token": (post().replace(b"TOKEN", b""), 400),
    "a token outside ASCII": (post().replace(b"TOKEN", b"Bearer \xff"), 400),
    "explanations": (post(path=f"/explanations/{MODEL}".encode()), 400),
    "another method": (post().replace(b"POST", b"DELETE"), 415),
    "another protocol": (post().replace(b"HTTP/1.1", b"HTTP/9.9"), 415),
    "a form of its own": (post(FORM, body=b"data=%zz"), 500),
    "a chunk of negative length": (post(CHUNKED, body=b"-5\r\nx", length=False), NOTHING),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_http_that_is_malformed(one_worker: TorchServe, name: str) -> None:
    data, expected = MALFORMED[name]
    status, body = send(one_worker, data)
    assert status == expected, body
    # TorchServe says nothing where it refuses by the header alone.
    if status not in (413, 417, NOTHING):
        fields = json.loads(body)
        assert fields["code"] == status
        assert fields["type"]
        assert fields["message"]


def test_clients_that_never_finish_hold_up_nobody(
    one_worker: TorchServe, asker: Client, neighbour: Neighbour
) -> None:
    """TorchServe waits for them as long as they stay: a proxy in front must not."""
    unfinished = [
        post(b"Content-Length: 99999", length=False),
        post(b"Content-Length: -5", length=False),
        post(CHUNKED, body=b"5\r\nab", length=False),
        post()[:60],
        b"\x16\x03\x01\0\xc8\x01\0\0\xc4\x03\x03" + bytes(200),
        b"",
    ]
    with ThreadPoolExecutor(30) as pool:
        waiting = [pool.submit(send, one_worker, data, patience=3) for data in unfinished * 5]
        for _ in range(50):
            assert asker.predict(MODEL, neighbour.picture).json() == neighbour.answer
        assert {future.result() for future in waiting} == {(NOTHING, b"")}
