"""Models of the catalogue, built and served, against plain torchvision with the same weights.

Those that are quick; ``python -m benchmarks.catalogue`` does the same with all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from homes import build, serving

from benchmarks.prepared import prepare
from benchmarks.truth import agreement
from marsmith.named import load
from marsmith.server import TorchServe

# On the runtime of their files but for a detector that is scripted. SqueezeNet has no file.
QUICK: dict[str, tuple[str, ...]] = {
    "mobilenet_v3_small": (),
    "squeezenet1_1": (),
    "lraspp_mobilenet_v3_large": (),
    "ssdlite320_mobilenet_v3_large": ("--runtime", "torchscript"),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (),
}


@pytest.fixture(scope="module")
def weights(project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    return {name: prepare(load(name, project), folder) for name in QUICK}


@pytest.fixture(scope="module")
def served(
    project: Path, weights: dict[str, Path], make_home: Callable[[], Path]
) -> Iterator[TorchServe]:
    home = make_home()
    for name, file in weights.items():
        build(project, home / "model-store", name, "--weights", str(file), *QUICK[name])
    with serving(home) as server:
        yield server


@pytest.mark.parametrize("name", QUICK)
def test_it_answers_as_torchvision_does(
    project: Path, served: TorchServe, weights: dict[str, Path], name: str
) -> None:
    found = agreement(served, load(name, project), weights[name])
    assert found.problem is None
    assert found.objects >= 16, "too little was compared to prove anything"
