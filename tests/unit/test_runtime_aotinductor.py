"""AOTInductor: for which processors a package is, what it holds, and int8."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import finished
from torch import Tensor, nn
from torch._inductor import cpu_vec_isa

from handlers import isa
from handlers.errors import ExportError, RuntimeUnavailable
from handlers.plugins import load_runtime
from handlers.runtimes import ExportRequest, aotinductor
from handlers.runtimes.aotinductor import AotInductor
from handlers.servable import Network

PIXELS = np.random.default_rng(0).integers(0, 255, (6, 16, 12, 3), dtype=np.uint8)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, stride=2)
        self.second = nn.Conv2d(16, 16, 3)
        self.last = nn.Linear(16, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = torch.relu(self.second(torch.relu(self.first(pixels))))
        return torch.tanh(self.last(hidden.mean((2, 3))))


MODULE = Network(Small(), [0.5] * 3, [0.2] * 3).eval()


def _export(folder: Path, **changes: Any) -> Path:
    path = folder / "model.pt2"
    given: dict[str, Any] = {
        "module": MODULE,
        "example": PIXELS[:2],
        "dynamic": {0: ("batch", 1, 6)},
        "path": path,
        "options": {"isa": ""},
    }
    finished(load_runtime("aotinductor"), ExportRequest(**given | changes))
    return path


def _load(path: Path, precision: str = "fp32") -> Any:
    options = {"isa": "", "threads": 1, "precision": precision}
    return load_runtime("aotinductor")(path, "cpu", options)


def _expected() -> Any:
    with torch.inference_mode():
        return MODULE(torch.from_numpy(PIXELS)).numpy()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _export(tmp_path_factory.mktemp("package"))


def test_it_names_no_folder_of_the_machine_that_built_it(package: Path) -> None:
    content = package.read_bytes()
    for folder in (Path(torch.__file__).parents[1], Path.home(), Path.cwd()):
        assert str(folder).encode() + b"/" not in content
    assert b"torchinductor" not in content
    assert b".cpp -D" not in content


def test_a_full_disk_is_an_error_and_does_not_end_the_process(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        _export(tmp_path)


def test_nothing_is_left_in_the_folder_for_temporary_files(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(Path("/tmp").glob("aotinductor*"))
    model = _load(package)
    assert list(tmp_path.iterdir()) == []
    assert set(Path("/tmp").glob("aotinductor*")) == before
    np.testing.assert_allclose(model(PIXELS)[0], _expected(), atol=1e-5)


def test_a_processor_that_lacks_an_instruction_refuses(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stands in for an older processor.
    older = isa.here() - {"avx512bw", "fma"}
    monkeypatch.setattr(isa, "here", lambda: older)
    with pytest.raises(RuntimeUnavailable, match=r"a processor with .*fma, which this one lacks"):
        _load(package)


def test_another_kind_of_machine_refuses(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(RuntimeUnavailable, match="compiled for x86_64, this host is riscv64"):
        _load(package)


def test_it_is_compiled_for_the_processor_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _export(tmp_path, options={"isa": "x86-64-v3"})
    older = frozenset(each for each in isa.here() if not each.startswith("avx512"))
    monkeypatch.setattr(isa, "here", lambda: older)
    np.testing.assert_allclose(_load(path)(PIXELS)[0], _expected(), atol=1e-5)
    with pytest.raises(ExportError, match="this host's processor has no x86-64-v4"):
        _export(tmp_path, options={"isa": "x86-64-v4"})
    with pytest.raises(ExportError, match="isa 'avx': accepted are x86-64-v3, x86-64-v4"):
        _export(tmp_path, options={"isa": "avx"})


avx512 = pytest.mark.skipif(isa.best() != "x86-64-v4", reason="a processor without AVX-512")


@avx512
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_package_for_a_level_needs_no_more_than_that_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Where the building host has VNNI or AMX besides, torch would take them, too."""
    given = {"precision": precision, "calibration": [PIXELS], "options": {"isa": "x86-64-v4"}}
    path = _export(tmp_path, **given)
    level = isa.LEVELS["x86-64-v4"]
    monkeypatch.setattr(isa, "here", lambda: level)
    np.testing.assert_allclose(_load(path, precision)(PIXELS)[0], _expected(), atol=0.02)


@avx512
def test_the_compiler_is_told_of_no_more_than_the_level_has() -> None:
    with aotinductor._vectors("x86-64-v4"), torch._inductor.config.patch({"cpp.simdlen": 512}):
        flags = cpu_vec_isa.pick_vec_isa().build_arch_flags()
    assert flags == "-mavx512f -mavx512dq -mavx512vl -mavx512bw -mfma"


def test_without_a_compiler_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeUnavailable, match=r"build for runtime aotinductor needs a C\+\+"):
        _export(tmp_path)


def test_int8_is_near_and_its_float_layers_are_exact(tmp_path: Path) -> None:
    errors = []
    layers = frozenset({"network.first", "network.second", "network.last"})
    for index, kept in enumerate((frozenset[str](), layers)):
        folder = tmp_path / str(index)
        folder.mkdir()
        given = {"precision": "int8", "calibration": [PIXELS], "float_layers": kept}
        found = _load(_export(folder, **given), "int8")(PIXELS)[0]
        assert found.dtype == np.float32
        errors.append(np.abs(found - _expected()).max())
    assert 1e-5 < errors[0] < 0.02
    assert errors[1] < 1e-5


def test_int8_needs_pictures(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="int8 needs calibration pictures"):
        _export(tmp_path, precision="int8")


def test_one_picture_of_a_wrong_size_leaves_the_others_as_they_were() -> None:
    # Stands in for compiled files of others: of exactly one picture, and of two or more.
    for least, most in ((1, 1), (2, 9)):
        model = AotInductor.__new__(AotInductor)
        model._pairs = False

        def checked(batch: torch.Tensor, least: int = least, most: int = most) -> Any:
            if batch.shape[1] != 4 or not least <= len(batch) <= most:
                raise RuntimeError("Error in dim: unmatched shape")
            return {"0": batch.numpy()}

        model._checked = checked  # type: ignore[method-assign]
        for _ in range(2):
            with pytest.raises(RuntimeError, match="unmatched shape"):
                model.named(np.zeros((1, 5), np.uint8))
            assert model.named(np.zeros((1, 4), np.uint8))["0"].shape == (1, 4)
        assert model._pairs is (most > 1)
