"""Detectors and segmenters on ONNX Runtime and OpenVINO, served, against plain torchvision.

The repository's own trained models; ``python -m benchmarks.catalogue NAME --runtime onnx`` does the
same with those of the catalogue.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from homes import build, serving
from PIL import Image

from benchmarks.truth import agreement
from marsmith.server import TorchServe
from marsmith.spec import load

NAMES = ("lraspp_shapes", "ssdlite_shapes")
SCENE = Path(__file__).parents[2] / "samples/scenes/scene1.jpg"
# The default archives are on OpenVINO.
VERSIONS = {"openvino": "1.0", "onnx": "2.0"}


@pytest.fixture(scope="module")
def served(project: Path, archives: Path, make_home: Callable[[], Path]) -> Iterator[TorchServe]:
    """One TorchServe with both models on both runtimes, as versions of one name."""
    home = make_home()
    for name in NAMES:
        assert load(project / f"models/{name}.yaml").runtime == "openvino"
        shutil.copy(archives / f"{name}-1.0.mar", home / "model-store")
    words = (*NAMES, "--runtime", "onnx", "--version", VERSIONS["onnx"])
    build(project, home / "model-store", *words)
    with serving(home) as server:
        yield server


@pytest.mark.parametrize("runtime", VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_it_answers_as_torchvision_does(
    project: Path, served: TorchServe, name: str, runtime: str
) -> None:
    given = {"runtime": runtime, "version": VERSIONS[runtime]}
    spec = load(project / f"models/{name}.yaml", given)
    found = agreement(served, spec, project / str(spec.weights.file))
    assert found.problem is None
    assert found.objects >= 16, "too little was compared to prove anything"


@pytest.mark.parametrize("runtime", VERSIONS)
def test_a_picture_of_nothing_has_no_boxes(served: TorchServe, runtime: str) -> None:
    body = io.BytesIO()
    Image.new("RGB", (320, 200), (90, 90, 90)).save(body, "PNG")
    with served.client(timeout=60) as client:
        reply = client.predict("ssdlite_shapes", body.getvalue(), version=VERSIONS[runtime])
    assert (reply.status, reply.json()) == (200, [])


@pytest.mark.parametrize("runtime", VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_no_worker_has_loaded_torch(served: TorchServe, name: str, runtime: str) -> None:
    """After it answered: nothing on the way of a request needs it."""
    with served.client(timeout=60) as client:
        reply = client.predict(name, SCENE.read_bytes(), version=VERSIONS[runtime])
        [found] = client.describe(name, VERSIONS[runtime])
    assert reply.status == 200
    assert len(found["workers"]) == 2
    for worker in found["workers"]:
        maps = Path(f"/proc/{worker['pid']}/maps").read_text()
        libraries = {Path(line.split()[-1]).name for line in maps.splitlines() if ".so" in line}
        assert any(runtime in library for library in libraries)
        assert not [library for library in libraries if "torch" in library]


@pytest.mark.parametrize("runtime", VERSIONS)
def test_no_thread_of_a_worker_is_bound_to_a_core(served: TorchServe, runtime: str) -> None:
    """Workers of a host, which know nothing of each other, would be bound to the same ones."""
    with served.client(timeout=60) as client:
        [found] = client.describe("lraspp_shapes", VERSIONS[runtime])
    pids = [worker["pid"] for worker in found["workers"]]
    assert len(pids) == 2
    for task in [task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]:
        # A thread may end meanwhile.
        with suppress(ProcessLookupError):
            assert os.sched_getaffinity(int(task.name)) == os.sched_getaffinity(0)
