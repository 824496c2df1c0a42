from __future__ import annotations

import os

import pytest
import torch

from handlers import device
from handlers.bundle import Limits
from handlers.errors import RuntimeUnavailable

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


def test_threads_are_a_share_of_the_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    assert device.threads(Limits(threads=3, workers=2)) == 3
    assert device.threads(Limits(workers=1)) == cores
    assert device.threads(Limits(workers=cores)) == 1
    assert device.threads(Limits(workers=10 * cores)) == 1


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
