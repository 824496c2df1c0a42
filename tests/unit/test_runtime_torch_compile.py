"""torch.compile: what it compiles, where that is kept, and what happens when it cannot."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from handlers import inductor, isa
from handlers.errors import LoadError, RuntimeUnavailable
from handlers.plugins import load_runtime
from handlers.runtimes import ExportRequest
from handlers.servable import Network

# Of 16 channels torch's convolutions have a memory layout of their own.
MOST = 16
PIXELS = np.random.default_rng(0).integers(0, 255, (MOST, 16, 12, 3), dtype=np.uint8)


class Plane(nn.Module):
    """Takes pictures of any size."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.factor = factor

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.tanh(self.conv(pixels) * self.factor).amax(dim=1)


class Squeezed(nn.Module):
    """Has as many channels as a batch may have pictures, where planes have one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, MOST, 3)
        self.squeeze = SqueezeExcitation(MOST, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.squeeze(self.conv(pixels)).mean((2, 3))
        return scores


def _export(folder: Path, factor: float, *axes: int, module: nn.Module | None = None) -> Path:
    path = folder / "model.pt2"
    load_runtime("torch-compile").export(  # type: ignore[attr-defined]
        ExportRequest(
            module=Network(module or Plane(factor), [0.5] * 3, [0.2] * 3).eval(),
            example=PIXELS[:2],
            dynamic={axis: (f"axis_{axis}", 1, MOST if axis == 0 else 64) for axis in axes},
            path=path,
        )
    )
    return path


def _load(path: Path, cache: Path) -> Any:
    options = {"cache": str(cache), "threads": 1, "batch": MOST, "precision": "fp32"}
    return load_runtime("torch-compile")(path, "cpu", options)


def _unbounded(folder: Path, module: nn.Module) -> Path:
    """A program as others export it: any number of pictures, captured with two."""
    pixels, network = torch.from_numpy(PIXELS[:2]), Network(module, [0.5] * 3, [0.2] * 3).eval()
    program = torch.export.export(network, (pixels,), dynamic_shapes=({0: torch.export.Dim("N")},))
    torch.export.save(program, folder / "model.pt2")
    return folder / "model.pt2"


@pytest.mark.parametrize("bounded", [True, False])
def test_a_batch_as_long_as_a_layer_has_channels(bounded: bool, tmp_path: Path) -> None:
    module = Squeezed()
    path = _export(tmp_path, 1.0, 0, module=module) if bounded else _unbounded(tmp_path, module)
    model = _load(path, tmp_path / "cache")
    network = Network(module, [0.5] * 3, [0.2] * 3).eval()
    with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
        for count in range(1, MOST + 1):
            expected = network(torch.from_numpy(PIXELS[:count])).numpy()
            np.testing.assert_allclose(model(PIXELS[:count])[0], expected, atol=1e-5)


def test_nothing_is_compiled_after_the_load(tmp_path: Path) -> None:
    network = Network(Plane(0.5), [0.5] * 3, [0.2] * 3).eval()
    model = _load(_export(tmp_path, 0.5, 0, 1, 2), tmp_path / "cache")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((1, 16, 12, 3), (5, 16, 12, 3), (3, 20, 20, 3), (1, 9, 31, 3)):
            pixels = np.random.default_rng(1).integers(0, 255, shape, dtype=np.uint8)
            with torch.inference_mode():
                expected = network(torch.from_numpy(pixels))
            np.testing.assert_allclose(model(pixels)[0], expected, atol=1e-5)


class Digits(nn.Module):
    """Of one channel: a batch of one is laid out otherwise than a batch of two."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 16, 3)
        self.last = nn.Linear(16 * 14 * 10, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.tanh(self.last(torch.flatten(self.conv(pixels), 1)))


@pytest.mark.parametrize(("bits", "near"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_one_picture_of_one_channel(tmp_path: Path, bits: str, near: float) -> None:
    network = Network(Digits(), [0.5], [0.2]).eval()
    pixels = np.ascontiguousarray(PIXELS[..., :1])
    path = tmp_path / "model.pt2"
    load_runtime("torch-compile").export(  # type: ignore[attr-defined]
        ExportRequest(
            module=network,
            example=pixels[:2],
            dynamic={0: ("batch", 1, 5)},
            path=path,
            precision=bits,
        )
    )
    model = _load(path, tmp_path / "cache")
    for count in (1, 5):
        with torch.inference_mode():
            expected = network(torch.from_numpy(pixels[:count]))
        np.testing.assert_allclose(model(pixels[:count])[0], expected, atol=near)


def test_what_is_compiled_lies_in_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _export(tmp_path, 0.6)
    monkeypatch.setenv("MARSMITH_CACHE", str(tmp_path / "mine"))
    options = {"cache": "", "threads": 1, "batch": 1, "precision": "fp32"}
    load_runtime("torch-compile")(path, "cpu", options)
    folder = tmp_path / "mine/inductor"
    assert folder.stat().st_mode & 0o777 == 0o700
    (kind,) = folder.iterdir()
    assert torch.__version__ in kind.name
    assert list(kind.rglob("*.so"))


def test_processors_share_no_compiled_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk or an image outlives the processor; another one's code would end in SIGILL."""
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(variable, "")
    here = isa.here()
    first, again = inductor.use_cache(str(tmp_path)), inductor.use_cache(str(tmp_path))
    monkeypatch.setattr(isa, "here", lambda: here | {"made_up"})
    assert first == again != inductor.use_cache(str(tmp_path))


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    path = _export(tmp_path, 0.7)
    (tmp_path / "cache/inductor").mkdir(parents=True)
    os.chmod(tmp_path / "cache/inductor", 0o777)
    with pytest.raises(RuntimeUnavailable, match=r"not private .* `chmod 700` it"):
        _load(path, tmp_path / "cache")
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeUnavailable, match=r"cannot be made .* MARSMITH_CACHE"):
        _load(path, tmp_path / "file")


def test_damage_of_what_is_kept_is_told_and_removing_it_mends_it(tmp_path: Path) -> None:
    path = _export(tmp_path, 0.55)
    _load(path, tmp_path / "cache")
    (kept,) = (tmp_path / "cache/inductor").iterdir()
    # Loaded by nobody yet, for one process imports a module once.
    copy = shutil.copytree(tmp_path / "cache", tmp_path / "copy")
    for file in copy.rglob("*.*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    torch._dynamo.reset()
    with pytest.raises(
        LoadError,
        match=f"{re.escape(kept.name)} may be damaged: remove it",
    ):
        _load(path, copy)
    shutil.rmtree(copy)
    torch._dynamo.reset()
    expected = _load(path, tmp_path / "cache")(PIXELS[:2])[0]
    np.testing.assert_array_equal(_load(path, copy)(PIXELS[:2])[0], expected)


def test_without_a_compiler_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _export(tmp_path, 0.8)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        RuntimeUnavailable, match=r"needs a C\+\+ compiler and finds no no-such-com"
    ):
        _load(path, tmp_path / "cache")


def test_a_compiler_that_fails_fails_the_load(tmp_path: Path) -> None:
    path = _export(tmp_path, 0.9)
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "false")}),
        pytest.raises(LoadError, match=r"model.pt2 cannot be compiled here: ") as refused,
    ):
        _load(path, tmp_path / "cache")
    assert "\n" not in str(refused.value)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = (_export(tmp_path / name, 0.5, 0) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert str(Path(torch.__file__).parents[1]).encode() not in one.read_bytes()
