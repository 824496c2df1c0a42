"""Downloads against a real server: once, continued after a break, and only the right file."""

from __future__ import annotations

import hashlib
import resource
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from handlers.errors import WeightsError
from marsmith.download import download

CONTENT = bytes(range(256)) * 16384
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT as /file, with byte ranges unless ``ranges`` is off.

    ``breaks`` answers end after a third of what they promised.
    """

    ranges = True
    breaks = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.asked.append(wanted)
        if self.path != "/file":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if not self.server.ranges:
            start = 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        part = CONTENT[start:]
        if self.server.breaks:
            self.server.breaks -= 1
            part = part[: len(part) // 3]
        self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new/folder/file.pth"


def part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def test_a_file_is_downloaded_once(
    server: Server, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert download(server.url, path, DIGEST) == path
    # A command's own output may be JSON.
    assert capsys.readouterr().out == ""
    assert path.read_bytes() == CONTENT
    assert not part_of(path).exists()
    assert download(server.url, path, DIGEST) == path
    assert server.asked == [None]


def test_the_start_of_a_digest_is_enough(server: Server, path: Path) -> None:
    assert download(server.url, path, DIGEST[:8]).read_bytes() == CONTENT


def test_a_broken_download_is_continued_where_it_broke(server: Server, path: Path) -> None:
    server.breaks = 1
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        download(server.url, path, DIGEST)
    assert not path.exists()
    have = part_of(path).stat().st_size
    assert 0 < have < len(CONTENT)
    assert download(server.url, path, DIGEST).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={have}-"]


def test_it_starts_again_where_the_server_knows_no_ranges(server: Server, path: Path) -> None:
    server.ranges = False
    part_of(path).parent.mkdir(parents=True)
    part_of(path).write_bytes(CONTENT[:1000])
    assert download(server.url, path, DIGEST).read_bytes() == CONTENT


def test_a_part_that_is_whole_already_is_taken(server: Server, path: Path) -> None:
    part_of(path).parent.mkdir(parents=True)
    part_of(path).write_bytes(CONTENT)
    assert download(server.url, path, DIGEST).read_bytes() == CONTENT


def test_a_part_of_another_file_is_thrown_away(server: Server, path: Path) -> None:
    part_of(path).parent.mkdir(parents=True)
    part_of(path).write_bytes(b"of another file")
    with pytest.raises(WeightsError, match="came with sha256"):
        download(server.url, path, DIGEST)
    assert download(server.url, path, DIGEST).read_bytes() == CONTENT


def test_two_at_once_download_it_once(server: Server, path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        ends = [pool.submit(download, server.url, path, DIGEST) for _ in range(4)]
    assert [end.result() for end in ends] == [path] * 4
    assert path.read_bytes() == CONTENT
    assert server.asked == [None]
    assert list(path.parent.iterdir()) == [path]


def test_without_room_it_says_so_and_goes_on_later(server: Server, path: Path) -> None:
    allowed, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on files' size stands for a full disk: both fail a write in its middle.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, most))
    try:
        with pytest.raises(WeightsError, match="cannot be written .*: make room there"):
            download(server.url, path, DIGEST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, most))
    assert download(server.url, path, DIGEST).read_bytes() == CONTENT
    assert server.asked[1] == f"bytes={2 << 20}-"


def test_a_file_with_another_digest_is_not_kept(server: Server, path: Path) -> None:
    with pytest.raises(WeightsError, match=f"came with sha256 {DIGEST}, expected 00000000"):
        download(server.url, path, "00000000")
    assert list(path.parent.iterdir()) == []


def test_a_damaged_file_is_downloaded_again(server: Server, path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    assert download(server.url, path, DIGEST).read_bytes() == CONTENT


def test_a_page_not_found_says_where_to_put_the_file(server: Server, path: Path) -> None:
    with pytest.raises(WeightsError) as refused:
        download(server.url + "s", path, DIGEST)
    assert f"{server.url}s cannot be downloaded" in str(refused.value)
    assert f"put it at {path}" in str(refused.value)
    assert list(path.parent.iterdir()) == []


def test_no_server_says_where_to_put_the_file(path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/file"
        with pytest.raises(WeightsError, match="ConnectionError") as refused:
            download(url, path, DIGEST)
    assert f"put it at {path}" in str(refused.value)


def test_a_wrong_file_in_its_place_is_told_where_the_server_has_none(
    server: Server, path: Path
) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:1000])
    with pytest.raises(WeightsError) as refused:
        download(server.url + "s", path, DIGEST)
    came = hashlib.sha256(CONTENT[:1000]).hexdigest()
    assert str(refused.value).startswith(f"{path} has sha256 {came} and {DIGEST}... is wanted")
