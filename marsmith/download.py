"""Download a file once: with progress, continued after a break, checked, then put in place."""

from __future__ import annotations

from pathlib import Path

import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from handlers.errors import WeightsError
from handlers.integrity import sha256
from marsmith.locks import alone

TIMEOUT = (10, 60)
_CHUNK = 1 << 20


def download(url: str, path: Path, digest: str) -> Path:
    """``path``, downloaded from ``url`` unless it is there; ``digest`` is the start of its sha256.

    A broken download is continued from its ``.part`` file, and one of another process awaited.
    Raises WeightsError that says where to put the file when it cannot be had.
    """
    if _is_there(path, digest):
        return path
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone(part):
            if not _is_there(path, digest):
                _download(url, part, path, digest)
    except requests.RequestException as error:
        raise WeightsError(
            f"{_wrong(path, digest)}{url} cannot be downloaded ({type(error).__name__}): get the "
            f"file on a machine with network and put it at {path}"
        ) from error
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be written ({error.strerror}): make room there; what was downloaded is "
            "kept, and the next try continues"
        ) from error
    return path


def _is_there(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path).startswith(digest)


def _wrong(path: Path, digest: str) -> str:
    """What is to be said of a file that somebody put there and that is not the right one."""
    if not path.is_file():
        return ""
    return f"{path} has sha256 {sha256(path)} and {digest}... is wanted, and "


def _download(url: str, part: Path, path: Path, digest: str) -> None:
    _fetch(url, part)
    actual = sha256(part)
    if not actual.startswith(digest):
        part.unlink()
        raise WeightsError(f"{url} came with sha256 {actual}, expected {digest}...: try again")
    part.replace(path)


def _fetch(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as reply:
        if reply.status_code == requests.codes.requested_range_not_satisfiable:
            # The part is whole already, or not of this file: the digest tells.
            return
        reply.raise_for_status()
        continued = reply.status_code == requests.codes.partial_content
        total = int(reply.headers.get("Content-Length", 0)) + (have if continued else 0)
        with part.open("ab" if continued else "wb") as file, _progress() as progress:
            bar = progress.add_task(part.stem, total=total or None, completed=have * continued)
            for chunk in reply.iter_content(_CHUNK):
                file.write(chunk)
                progress.advance(bar, len(chunk))


def _progress() -> Progress:
    # A command's own output, maybe JSON, goes to the other one.
    told = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress("{task.description}", *columns, console=told)
