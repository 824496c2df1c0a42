"""TorchScript files on another device than they were traced on, without a GPU.

"meta" and "cpu:0" stand in for the other device: what a tensor of "cpu" meets there is what it
would meet on a GPU. For a detector, which "meta" cannot run, ``_Places`` says where its tensors
would be. A real GPU's are the contract tests, where there is one.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import finished
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from handlers import torchscript_devices
from handlers.plugins import load_runtime
from handlers.runtimes import ExportRequest
from handlers.servable import Servable

PIXELS = np.random.default_rng(0).integers(0, 255, (1, 4, 5, 3), dtype=np.uint8)


class _Grid(nn.Module):
    """Adds columns, as the anchors of a detector are made."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(x.shape[-1], device=x.device)


class _Grids(nn.Module):
    """Called twice, and once behind a condition that is scripted."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = _Grid()
        self.sized = torch.jit.script(_Sized())

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.grid(self.grid(self.sized(images.float())))
        return found


class _Sized(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 0:
            x = x + torch.ones(x.shape[-1], device=torch.device("cpu"))
        return x


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traced") / "model.pt"
    runtime: Any = load_runtime("torchscript")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*")
        module = _Grids().eval()
    options = {"method": "trace"}
    finished(runtime, ExportRequest(module, PIXELS, {}, path, options=options))
    return path


def _loaded(path: Path, device: str) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*")
        return torch.jit.load(str(path), map_location=device).eval()


def test_a_traced_graph_makes_its_tensors_where_it_is_loaded(path: Path) -> None:
    images = torch.from_numpy(PIXELS).to("meta")
    with pytest.raises(RuntimeError, match="meta"):
        _loaded(path, "meta")(images)
    module = _loaded(path, "meta")
    torchscript_devices.move(module.graph, "meta")
    assert module(images).device.type == "meta"


def test_a_loaded_artifact_names_no_device_but_its_own(path: Path) -> None:
    named = {
        node.s("value") for node in torchscript_devices.devices(_loaded(path, "cpu").inlined_graph)
    }
    assert named == {"cpu"}
    given = {"threads": 1, "precision": "fp32", "method": "trace"}
    model: Any = load_runtime("torchscript")(path, "cpu:0", given)
    named = {node.s("value") for node in torchscript_devices.devices(model._module.graph)}
    assert named == {"cpu:0"}
    columns = torch.arange(3)
    expected = torch.from_numpy(PIXELS).float() + 1 + 2 * columns
    np.testing.assert_array_equal(model(PIXELS)[0], expected)
    assert model.layers(PIXELS)["grid"].shape == PIXELS.shape


def test_what_was_traced_on_a_gpu_runs_on_the_cpu(path: Path, tmp_path: Path) -> None:
    module = _loaded(path, "cpu")
    torchscript_devices.move(module.graph, "cuda:0")
    file = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*")
        torch.jit.save(module, str(file))
    assert {n.s("value") for n in torchscript_devices.devices(_loaded(file, "cpu").graph)} == {
        "cuda:0"
    }
    given = {"threads": 1, "precision": "fp32", "method": "trace"}
    runtime = load_runtime("torchscript")
    expected = runtime(path, "cpu", given)(PIXELS)[0]
    np.testing.assert_array_equal(runtime(file, "cpu", given)(PIXELS)[0], expected)


class _Places(TorchDispatchMode):
    """Computes on the CPU and notes on which device each tensor would be, were ``module`` loaded
    on a GPU; ``mixed`` are operators that would get tensors of both, which torch refuses."""

    def __init__(self, module: Any, images: Tensor) -> None:
        super().__init__()
        self.of, self.mixed = WeakTensorKeyDictionary(), list[str]()
        graph = module.inlined_graph
        known = [
            each for each in graph.findAllNodes("prim::Constant") if each.hasAttribute("value")
        ]
        constants = [each.t("value") for each in known if each.kindOf("value") == "t"]
        # What loading moves. Of all else torch makes unseen (sizes, numbers) it does on the CPU.
        self._moved = [*module.parameters(), *module.buffers(), *constants, images]
        for each in self._moved:
            self.of[each] = "cuda"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = [each.name for each in func._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        joins = func.name() in ("aten::cat", "aten::stack")
        places = {self.of.get(each, "cpu") for each in tensors if each.dim() or joins}
        if given.get("device") is not None:
            place = torch.device(given["device"]).type
        else:
            known = places or {self.of.get(each, "cpu") for each in tensors}
            place = "cuda" if "cuda" in known else "cpu"
            # An index may be on the CPU, and single numbers may.
            if len(places) > 1 and func.name() != "aten::index.Tensor":
                self.mixed.append(func.name())
        args, kwargs = tree_map(_here, (args, kwargs or {}))
        made = func(*args, **kwargs)
        for each in tree_leaves(made):
            if isinstance(each, Tensor):
                self.of[each] = place
        return made


def _here(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, torch.device) else value


def test_a_traced_detector_stays_on_its_gpu(tmp_path: Path) -> None:
    recipe = {
        "architecture": "torchvision:ssdlite320_mobilenet_v3_large",
        "arguments": {"num_classes": 4},
        "task": "object-detection",
        "decode": {"score_floor": 0.0, "nms_iou": None, "max_detections": 5},
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
    }
    file, pixels = tmp_path / "model.pt", np.full((1, 96, 96, 3), 99, np.uint8)
    runtime: Any = load_runtime("torchscript")
    module = Servable.build(recipe, Path())
    finished(runtime, ExportRequest(module, pixels, {}, file, options={"method": "trace"}))
    images = torch.from_numpy(pixels)
    model = _loaded(file, "cpu")
    with torch.inference_mode(), _Places(model, images) as places:
        model(images)
    assert places.mixed
    model = _loaded(file, "cpu")
    torchscript_devices.move(model.graph, "cuda:0")
    with torch.inference_mode(), _Places(model, images) as places:
        outputs = model(images)
    assert not places.mixed
    assert {places.of[each] for each in outputs} == {"cuda"}
