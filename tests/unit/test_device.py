from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ts.model_loader import ModelLoaderFactory

from handlers import cores, device, task, torch_on_demand
from handlers.bundle import Bundle, Limits
from handlers.entry import Service
from handlers.errors import RuntimeUnavailable
from handlers.inputs import ImageInput
from handlers.plugins import load_task
from marsmith import load_worker, smoke_worker

BOTH = ("cpu", "cuda")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for a GPU, which this machine need not have."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("gpu")
def test_a_worker_takes_the_gpu_that_torchserve_gave_it() -> None:
    assert device.choose("auto", 0, BOTH) == "cuda:0"
    assert device.choose("gpu", 3, BOTH) == "cuda:3"
    assert device.choose("cpu", 3, BOTH) == "cpu"


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_auto_is_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    assert device.choose("auto", None, BOTH) == "cpu"
    assert not caplog.text
    assert device.choose("auto", 1, BOTH) == "cpu"
    assert "GPU 1 is left idle" in caplog.text


@pytest.mark.usefixtures("no_gpu")
def test_a_demanded_gpu_that_is_missing_is_an_error() -> None:
    with pytest.raises(RuntimeUnavailable, match=r"demands a GPU .* build it with serving.device"):
        device.choose("gpu", 0, BOTH)


@pytest.mark.usefixtures("gpu")
def test_a_demanded_gpu_is_the_first_where_a_build_is_given_none() -> None:
    assert device.choose("gpu", None, BOTH) == "cuda:0"
    assert device.choose("auto", None, BOTH) == "cpu"


class _Driver:
    """Stands in for NVIDIA's driver, with ``count`` GPUs, on a host without PyTorch."""

    def __init__(self, count: int, error: int = 0) -> None:
        self.count, self.error = count, error

    def cuInit(self, flags: int) -> int:
        return self.error

    def cuDeviceGetCount(self, found: Any) -> int:
        found._obj.value = self.count
        return 0


@pytest.fixture
def torchless(monkeypatch: pytest.MonkeyPatch) -> Callable[[_Driver], None]:
    """Neither torch nor a GPU is real here: an import of torch fails, the driver is a stand-in."""

    def stand_in(driver: _Driver) -> None:
        monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(torch_on_demand, "loaded", lambda: False)
    return stand_in


def test_without_torch_the_driver_tells_of_gpus(torchless: Callable[[_Driver], None]) -> None:
    torchless(_Driver(1))
    assert device.choose("auto", 0, BOTH, by_torch=False) == "cuda:0"
    assert device.choose("gpu", 0, BOTH, by_torch=False) == "cuda:0"
    assert device.choose("auto", device.FIRST, BOTH, by_torch=False) == "cuda:0"
    device.exact("cuda:0")


@pytest.mark.usefixtures("no_gpu")
def test_what_the_runtime_computes_with_decides_and_not_what_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As in a build on a host with a GPU and a torch that was built for CPUs; the driver stands in.
    monkeypatch.setattr(ctypes, "CDLL", lambda name: _Driver(1))
    assert torch_on_demand.loaded()
    assert device.choose("auto", device.FIRST, BOTH, by_torch=False) == "cuda:0"
    assert device.choose("auto", device.FIRST, BOTH, by_torch=True) == "cpu"


@pytest.mark.parametrize("driver", [_Driver(0), _Driver(1, error=100)])
def test_without_torch_a_driver_that_has_no_gpu_gives_none(
    torchless: Callable[[_Driver], None], driver: _Driver, caplog: pytest.LogCaptureFixture
) -> None:
    torchless(driver)
    assert device.choose("auto", 0, BOTH, by_torch=False) == "cpu"
    assert "GPU 0 is left idle" in caplog.text
    with pytest.raises(RuntimeUnavailable, match=r"demands a GPU .* NVIDIA driver"):
        device.choose("gpu", 0, BOTH, by_torch=False)


def test_threads_are_a_share_of_the_cores() -> None:
    here = cores.usable()
    assert device.threads(Limits(threads=3, workers=2)) == 3
    assert device.threads(Limits(workers=1)) == here
    assert device.threads(Limits(workers=here)) == 1
    assert device.threads(Limits(workers=10 * here)) == 1


@pytest.mark.usefixtures("gpu")
def test_a_runtime_of_the_cpu_takes_no_gpu_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert device.choose("auto", None, ("cpu",)) == "cpu"
    assert device.choose("cpu", 0, ("cpu",)) == "cpu"
    assert not caplog.text
    assert device.choose("auto", 0, ("cpu",)) == "cpu"
    assert "GPU 0 is left idle" in caplog.text
    with pytest.raises(RuntimeUnavailable, match="runs on cpu alone"):
        device.choose("gpu", 0, ("cpu",))


@pytest.mark.usefixtures("gpu")
def test_a_runtime_of_gpus_takes_the_first_where_a_build_is_given_none() -> None:
    assert device.choose("auto", None, ("cuda",)) == "cuda:0"
    assert device.choose("auto", 2, ("cuda",)) == "cuda:2"
    with pytest.raises(RuntimeUnavailable, match="runs on cuda alone"):
        device.choose("cpu", 0, ("cuda",))


@pytest.mark.usefixtures("no_gpu")
def test_a_runtime_of_gpus_needs_one() -> None:
    with pytest.raises(RuntimeUnavailable, match="runtime needs a GPU .* another runtime"):
        device.choose("auto", None, ("cuda",))


class _Seen:
    """A runtime that notes whether its device would compute float32 as TF32."""

    devices, requires, streams, needs_torch = BOTH, (), 1, True

    def __init__(self, path: Path, place: str, options: dict[str, Any]) -> None:
        backends = torch.backends
        self.found = place, backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_first_is_none(caplog: pytest.LogCaptureFixture) -> None:
    assert device.choose("auto", device.FIRST, BOTH) == "cpu"
    assert device.choose("cpu", device.FIRST, BOTH) == "cpu"
    assert not caplog.text


@pytest.mark.usefixtures("gpu")
def test_the_first_gpu_is_taken_where_the_model_takes_one(caplog: pytest.LogCaptureFixture) -> None:
    assert device.choose("auto", device.FIRST, BOTH) == "cuda:0"
    assert device.choose("cpu", device.FIRST, BOTH) == "cpu"
    assert device.choose("auto", device.FIRST, ("cpu",)) == "cpu"
    assert not caplog.text


@pytest.mark.usefixtures("gpu")
def test_torch_computes_beside_an_engine_on_its_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert [device.of_torch(place) for place in ("cpu", "cuda:1")] == ["cpu", "cuda:1"]
    assert not caplog.text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.of_torch("cuda:1") == "cpu"
    assert "runs on the CPU, for this torch can use no GPU" in caplog.text


def _bundle() -> Bundle:
    given = ImageInput(resize=[8, 8])
    kind = "image-classification"
    limits = Limits(threads=1)
    return Bundle("m", "1.0", kind, "seen", "model.seen", ["one"], given, limits=limits)


def _handler() -> Any:
    return load_task("image-classification")()


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.usefixtures("gpu", "tf32")
def test_float32_is_not_tf32_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(task, "load_runtime", lambda name: _Seen)
    bundle, handler = _bundle(), _handler()
    handler.bind(bundle, tmp_path, None)
    assert handler.model.found == ("cpu", True, True)
    handler.bind(bundle, tmp_path, 1)
    assert handler.model.found == ("cuda:1", False, False)


@pytest.mark.usefixtures("gpu", "tf32")
def test_a_build_takes_the_device_that_a_worker_would(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(task, "load_runtime", lambda name: _Seen)
    bundle, handler = _bundle(), _handler()
    handler.bind(bundle, tmp_path)
    assert handler.place == handler.model.found[0] == "cuda:0"
    handler.bind(replace(bundle, limits=Limits(threads=1, device="cpu")), tmp_path)
    assert handler.place == "cpu"


@pytest.mark.parametrize("here", [True, False])
def test_clean_processes_give_a_worker_the_first_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: bool
) -> None:
    """GPU and worker are stand-ins: what the two scripts would hand over is looked at."""
    given: list[int | None] = []

    class Stopped(Exception): ...

    def initialize(self: Any, context: Any) -> None:
        given.append(context.system_properties["gpu_id"])
        raise Stopped

    def load(name: str, folder: str, handler: str, gpu_id: int | None, *more: Any) -> None:
        given.append(gpu_id)
        raise Stopped

    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    monkeypatch.setattr(Service, "initialize", initialize)
    loader = SimpleNamespace(load=load)
    monkeypatch.setattr(ModelLoaderFactory, "get_model_loader", lambda: loader)
    (tmp_path / "MAR-INF").mkdir()
    manifest = {"model": {"modelName": "m", "handler": "handlers.entry"}}
    (tmp_path / "MAR-INF/MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(Stopped):
        load_worker.main(tmp_path, None)
    with pytest.raises(Stopped):
        smoke_worker.main(tmp_path)
    # Whether a GPU is there is asked by the runtime that wants one.
    places = [device.choose("auto", each, BOTH) for each in given]
    assert places == ["cuda:0" if here else "cpu"] * 2


def test_a_gpu_is_lost_where_every_call_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronize(place: str) -> None:
        if place == "cuda:1":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    # Stands in for GPUs.
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    places = ("cpu", "cuda:0", "cuda:1")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert [device.is_lost(place) for place in places] == [False, False, True]
    # Of another engine's GPU torch knows nothing, and may not be able to ask.
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert not any(map(device.is_lost, places))
