"""No build and no worker reports to the makers of its runtime, or writes into the user's home.

ONNX Runtime, OpenVINO and NNCF do both where nothing stops them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from connections import watched
from homes import build, serving

from marsmith.samples import found

DIGITS = "samples/digits"


@dataclass(frozen=True)
class Watched:
    """The user's home, fresh, and the hosts that processes try to reach."""

    home: Path
    noted: Path

    def left(self) -> list[str]:
        """What lies in the home."""
        return sorted(str(path.relative_to(self.home)) for path in self.home.rglob("*"))

    def hosts(self) -> set[str]:
        return set(self.noted.read_text().split())


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """The environment of whatever a test starts, with caches of marsmith elsewhere."""
    variables, noted = watched(tmp_path)
    home = tmp_path / "user"
    home.mkdir()
    for name, value in {"HOME": str(home), **variables}.items():
        monkeypatch.setenv(name, value)
    # By these some of them see that they are tested.
    for name in [*os.environ]:
        if name in ("CI", "TF_BUILD", "JENKINS_URL") or name.startswith(("NNCF_", "ORT_", "XDG_")):
            monkeypatch.delenv(name)
    return Watched(home, noted)


@pytest.mark.parametrize("module", ["openvino", "onnxruntime"])
def test_what_they_do_where_nothing_stops_them_is_seen(fresh: Watched, module: str) -> None:
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, timeout=120)
    assert fresh.left()


def test_a_host_that_is_asked_for_is_seen(fresh: Watched) -> None:
    code = (
        "import socket\n"
        "for to in ('no.such.host.invalid', '127.0.0.1', 'localhost'):\n"
        "    try: socket.create_connection((to, 9), timeout=5)\n"
        "    except OSError: pass\n"
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 9))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert fresh.hosts() == {"no.such.host.invalid", "192.0.2.1"}


def test_builds_and_workers_leave_the_home_alone_and_ask_no_host(
    project: Path, fresh: Watched, make_home: Callable[[], Path], tmp_path: Path
) -> None:
    served, half = make_home(), tmp_path / "half"
    half.mkdir()
    for path in found(project / DIGITS)[::2]:
        shutil.copy(path, half)
    for version, runtime in enumerate(("openvino", "onnx"), start=1):
        words = ("--precision", "int8", "--calibrate", str(half), "--evaluate", DIGITS)
        what = ("lenet5_digits", "--runtime", runtime, "--version", f"{version}.0")
        build(project, served / "model-store", *what, *words)
    assert (fresh.left(), fresh.hosts()) == ([], set())
    picture = (project / DIGITS / "3.png").read_bytes()
    with serving(served) as server, server.client(timeout=60) as client:
        for version in ("1.0", "2.0"):
            [best, *_] = client.predict("lenet5_digits", picture, version=version).json()
            assert best["label"] == "3"
    assert (fresh.left(), fresh.hosts()) == ([], set())
