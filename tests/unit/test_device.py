from __future__ import annotations

import os

import pytest
import torch

from handlers import device
from handlers.bundle import Limits
from handlers.errors import RuntimeUnavailable


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for a GPU, which this machine need not have."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("gpu")
def test_a_worker_takes_the_gpu_that_torchserve_gave_it() -> None:
    assert device.choose("auto", 0) == "cuda:0"
    assert device.choose("gpu", 3) == "cuda:3"
    assert device.choose("cpu", 3) == "cpu"


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_auto_is_the_cpu() -> None:
    assert device.choose("auto", 0) == "cpu"
    assert device.choose("auto", None) == "cpu"


@pytest.mark.usefixtures("no_gpu")
def test_a_demanded_gpu_that_is_missing_is_an_error() -> None:
    with pytest.raises(RuntimeUnavailable, match=r"demands a GPU .* build it with serving.device"):
        device.choose("gpu", 0)


@pytest.mark.usefixtures("gpu")
def test_a_demanded_gpu_that_torchserve_did_not_give_is_an_error() -> None:
    with pytest.raises(RuntimeUnavailable, match="gpu_id is None"):
        device.choose("gpu", None)


def test_threads_are_a_share_of_the_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    assert device.threads(Limits(threads=3, workers=2)) == 3
    assert device.threads(Limits(workers=1)) == cores
    assert device.threads(Limits(workers=cores)) == 1
    assert device.threads(Limits(workers=10 * cores)) == 1
