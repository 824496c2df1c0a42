"""Archives of runtimes that need no torch, served from an environment that has none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest
from tiny import PROJECT, ending

from marsmith.client import Client
from marsmith.environment import temp_folder
from marsmith.processes import find_running

ASKED = {
    "mobilenet_v2_shapes": "shapes/star.jpg",
    "lraspp_shapes": "scenes/scene1.jpg",
    "ssdlite_shapes": "scenes/scene1.jpg",
}
RUNTIMES = ("openvino", "onnxruntime")
NEED_IT = ("cifar_net_shapes", "lenet5_digits")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the packages of this one, but torch and what is made of it."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    [packages] = folder.glob("lib/python*/site-packages")
    for each in Path(np.__file__).parents[1].iterdir():
        ours = each.name.startswith(("torchserve", "torch_model_archiver"))
        if each.suffix != ".pth" and (ours or not each.name.startswith("torch")):
            (packages / each.name).symlink_to(each)
    launcher = folder / "bin/torchserve"
    launcher.write_text(f"#!{folder}/bin/python\nfrom ts.model_server import start\nstart()\n")
    launcher.chmod(0o755)
    return folder / "bin/python"


def _marsmith(bare: Path, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [bare, "-m", "marsmith", *words],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def stocked(home: Path, archives: Path) -> Path:
    """A project folder whose store has archives that need torch, and such as do not."""
    for name in (*ASKED, *NEED_IT):
        shutil.copy(archives / f"{name}-1.0.mar", home / "model-store")
    return home


def test_all_tasks_are_served_and_what_needs_torch_is_refused(
    bare: Path, stocked: Path, project: Path
) -> None:
    code = "from importlib.util import find_spec as f; print(f('torch'), f('torchvision'))"
    asked = [bare, "-c", code]
    found = subprocess.run(asked, timeout=60, capture_output=True, text=True, check=True)
    assert found.stdout == "None None\n"
    answers = {}
    with ending([str(bare), "-m", "marsmith", "serve"], stocked, stderr=subprocess.STDOUT) as serve:
        assert serve.stdout
        said = ""
        while "Ctrl-C" not in (line := serve.stdout.readline()):
            assert line, f"it ended: {said}"
            said += line
        running = find_running(temp_folder(stocked))
        assert running
        with Client.of(running, timeout=60) as client:
            for name, picture in ASKED.items():
                reply = client.predict(name, (project / "samples" / picture).read_bytes())
                assert reply.status == 200
                answers[name] = reply.json()
        for name in ASKED:
            words = ("verify", f"{name}-1.0.mar", "--against", "itself", "--served")
            proven = _marsmith(bare, stocked, *words)
            assert proven.returncode == 0, proven.stdout + proven.stderr
            assert "agrees with the server, 16 at once: 16 of 16 decisions" in proven.stdout
        status = _marsmith(bare, stocked, "status", "--json")
        assert _marsmith(bare, stocked, "stop").returncode == 0
    assert answers["mobilenet_v2_shapes"][0]["label"] == "star"
    assert answers["lraspp_shapes"]["classes"][0]["label"] == "background"
    assert {each["label"] for each in answers["ssdlite_shapes"]} >= {"triangle", "circle", "star"}
    rows = {row["model"]: row for row in json.loads(status.stdout)}
    assert rows.keys() == ASKED.keys()
    assert all(row["golden"]["problem"] is None for row in rows.values())
    for name in NEED_IT:
        assert f"{name}-1.0.mar: its worker needs PyTorch, which is not installed here" in said


def test_an_archive_that_needs_torch_is_named_by_doctor_and_alone_cannot_be_served(
    bare: Path, home: Path, archives: Path
) -> None:
    shutil.copy(archives / f"{NEED_IT[0]}-1.0.mar", home / "model-store")
    done = _marsmith(bare, home, "serve")
    assert done.returncode == 1
    assert "install requirements.txt, or build it with --runtime onnx or openvino" in done.stderr
    assert "Traceback" not in done.stderr
    checked = _marsmith(bare, home, "doctor")
    assert "its workers need PyTorch" in checked.stdout


def test_the_requirements_of_serving_are_those_of_the_project() -> None:
    pins: dict[str, set[str]] = {}
    for name in ("", "-serve", "-openvino", "-onnx"):
        lines = (PROJECT / f"requirements{name}.txt").read_text().splitlines()
        pins[name] = {line for line in lines if line and not line.startswith("#")}
    runtimes = {pin for pin in pins["-openvino"] | pins["-onnx"] if _name(pin) in RUNTIMES}
    torch = {pin for pin in pins[""] if _name(pin) in ("torch", "torchvision", "torchmetrics")}
    assert len(torch) == 3
    assert pins["-serve"] == pins[""] - torch | runtimes


def _name(pin: str) -> str:
    return pin.partition("==")[0]
