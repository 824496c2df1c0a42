"""What every runtime must keep: run over all files of handlers/runtimes, whoever wrote them."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import export

from handlers import plugins
from handlers.closeness import DEFAULTS
from handlers.device import exact
from handlers.errors import LoadError, RuntimeUnavailable
from handlers.integrity import sha256
from handlers.runtimes import Array, Arrays, ExportRequest, Runtime, as_arrays, check_requirements
from handlers.servable import Servable

NAMES = plugins.names("runtimes")
CUDA = "cuda:0"


def places(gpu: bool) -> list[tuple[str, str]]:
    """Runtimes that export, each with the devices that it can be run on here.

    On a GPU only what is installed for one; without, a GPU's runtimes have tests of their own,
    with a stand-in.
    """
    found = []
    for name in NAMES:
        runtime = plugins.load_runtime(name)
        if hasattr(runtime, "export"):
            found += [(name, "cpu")] * ("cpu" in runtime.devices)
            found += [(name, CUDA)] * (gpu and "cuda" in runtime.devices and _for_cuda(name))
    return found


def _for_cuda(name: str) -> bool:
    if name == "onnx":
        import onnxruntime

        return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return all(find_spec(package) for package in plugins.load_runtime(name).requires)


PLACES = places(torch.cuda.is_available())
EXPORTING = list(dict(PLACES))
# bf16 and fp16 of a processor that has no such instructions are computed as well.
REDUCED = [
    (name, device, precision)
    for name, device in PLACES
    for precision in plugins.load_runtime(name).precisions
    if precision != "fp32"
]
MOST = 5
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NETWORK = """
import torch
from torch import Tensor, nn

class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        logits: Tensor = self.linear(self.drop(x.mean((2, 3))))
        return logits
"""
RNG = np.random.default_rng(0)
# Pictures that a network without training tells apart.
LEVELS = np.linspace(20, 235, MOST)[:, None, None, None]
PIXELS = np.clip(RNG.normal(LEVELS, 40, (MOST, 16, 12, 3)), 0, 255).astype(np.uint8)

each_runtime = pytest.mark.parametrize("name", NAMES)
each_place = pytest.mark.parametrize(
    ("name", "device"), PLACES, ids=["-".join(each).removesuffix("-cpu") for each in PLACES]
)


def servable(folder: Path) -> Servable:
    (folder / "source").mkdir()
    (folder / "source/tiny.py").write_text(NETWORK)
    torch.manual_seed(0)
    recipe = {
        "architecture": "tiny.py:Tiny",
        "arguments": {},
        "task": "image-classification",
        "decode": {},
        "mean": MEAN,
        "std": STD,
    }
    return Servable.build(recipe, folder / "source")


def options(runtime: type[Runtime]) -> dict[str, Any]:
    return {**runtime.options, "threads": 1, "batch": MOST, "precision": "fp32"}


class OneByOne:
    """A runtime that takes one picture a call, asked as those that take more."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def __call__(self, pixels: Array) -> Arrays:
        answers = [self._runtime(picture[None]) for picture in pixels]
        return tuple(map(np.concatenate, zip(*answers, strict=True)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)


class Exported:
    """One runtime's artifact of the tiny network, and eager's answers."""

    def __init__(
        self,
        name: str,
        folder: Path,
        precision: str = "fp32",
        kept: frozenset[str] = frozenset(),
        most: int = MOST,
    ) -> None:
        self.eager = servable(folder)
        self.runtime = plugins.load_runtime(name)
        self.batches = "batch" in self.runtime.varies
        self.precision = precision
        self.path = folder / f"model{self.runtime.suffix}"
        self.request = ExportRequest(
            module=self.eager,
            example=PIXELS[: 2 if self.batches else 1],
            dynamic={0: ("batch", 1, most)} if self.batches else {},
            path=self.path,
            precision=precision,
            calibration=[PIXELS[i : i + 1] for i in range(MOST)] if precision == "int8" else (),
            float_layers=kept,
            options=dict(self.runtime.options),
        )
        export(self.runtime, self.request)

    def load(self, device: str = "cpu") -> Any:
        return self.bound(self.path, device, {"precision": self.precision})

    def bound(self, path: Path, device: str, given: dict[str, Any] | None = None) -> Any:
        exact(device)
        made = self.runtime(path, device, {**options(self.runtime), **(given or {})})
        return made if self.batches else OneByOne(made)

    def expected(self, pixels: Array) -> Arrays:
        with torch.inference_mode():
            return as_arrays(self.eager(torch.from_numpy(pixels)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    made: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in made:
            made[name] = Exported(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@each_runtime
def test_a_runtime_says_whether_it_traces(name: str) -> None:
    runtime = plugins.load_runtime(name)
    assert isinstance(runtime.traces(dict(runtime.options)), bool)


def test_all_that_run_on_a_gpu_are_run_on_one_where_there_is_one() -> None:
    here, with_gpu = places(gpu=False), places(gpu=True)
    assert {device for _, device in here} == {"cpu"}
    more = [each for each in with_gpu if each not in here]
    wanted = {"eager", "torchscript", "torch-compile"} | (
        {"tensorrt"} if find_spec("tensorrt") else set()
    )
    assert wanted <= {name for name, _ in more}
    assert {device for _, device in more} == {CUDA}


def test_one_runtime_is_the_reference_of_the_others() -> None:
    assert "eager" in EXPORTING


@each_place
@pytest.mark.parametrize("count", [1, 2, MOST])
def test_it_answers_like_eager_at_every_batch_size(
    name: str, device: str, count: int, exported: Callable[[str], Exported]
) -> None:
    given = exported(name)
    expected, outputs = given.expected(PIXELS[:count]), given.load(device)(PIXELS[:count])
    assert isinstance(outputs, tuple)
    assert len(outputs) == len(expected)
    for ours, theirs in zip(expected, outputs, strict=True):
        assert isinstance(theirs, np.ndarray)
        assert (theirs.shape, theirs.dtype) == (ours.shape, ours.dtype)
        np.testing.assert_allclose(theirs, ours, atol=1e-5)


@pytest.mark.parametrize("name", EXPORTING)
def test_an_artifact_for_two_pictures_at_most_takes_one_and_two(name: str, tmp_path: Path) -> None:
    made = Exported(name, tmp_path, most=2)
    runtime = made.load()
    for count in (1, 2):
        pixels = PIXELS[:count]
        np.testing.assert_allclose(runtime(pixels)[0], made.expected(pixels)[0], atol=1e-5)


@pytest.fixture
def shared_handler() -> Iterator[logging.Handler]:
    """A handler that others share with NNCF: silencing NNCF must not silence them."""
    handler, logger = logging.NullHandler(), logging.getLogger("nncf")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.mark.parametrize(("name", "device", "precision"), REDUCED)
def test_a_reduced_precision_is_close_and_is_reduced(
    name: str, device: str, precision: str, tmp_path: Path, shared_handler: logging.Handler
) -> None:
    given = Exported(name, tmp_path, precision)
    assert shared_handler.level == logging.NOTSET
    (expected,), (scores,) = given.expected(PIXELS), given.load(device)(PIXELS)
    assert scores.dtype == expected.dtype
    difference = np.abs(scores - expected).max()
    # Closer than its tolerance, for this network is small; not as close as fp32 is.
    assert 1e-7 < difference < DEFAULTS[precision].outputs / 4


@pytest.mark.parametrize("name", sorted({each[0] for each in REDUCED if each[2] == "int8"}))
def test_layers_that_are_to_stay_in_float_do(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    layers = frozenset({"network.network.conv", "network.network.linear"})
    other = tmp_path_factory.mktemp(name)
    given, all_int8 = Exported(name, tmp_path, "int8", layers), Exported(name, other, "int8")
    expected = given.expected(PIXELS)[0]
    error, whole = (np.abs(each.load()(PIXELS)[0] - expected).max() for each in (given, all_int8))
    # What lies between layers may be of 8 bits all the same.
    assert error < whole / 2


@pytest.mark.parametrize(
    "name", [name for name in EXPORTING if "streams" in plugins.load_runtime(name).options]
)
def test_calls_at_once_answer_as_alone(name: str, exported: Callable[[str], Exported]) -> None:
    given = exported(name)
    (expected,) = given.expected(PIXELS)
    several = {**options(given.runtime), "threads": 3, "streams": "per-thread"}
    model = given.bound(given.path, "cpu", several)
    assert model.streams == 3
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda i: model(PIXELS[i % MOST][None])[0], range(60)))
    for i, scores in enumerate(found):
        np.testing.assert_allclose(scores[0], expected[i % MOST], atol=1e-5)
    with pytest.raises(LoadError, match="streams 'two': accepted are one, per-thread"):
        given.runtime(given.path, "cpu", {**several, "streams": "two"})


@each_place
def test_pictures_have_answers_of_their_own(
    name: str, device: str, exported: Callable[[str], Exported]
) -> None:
    (scores,) = exported(name).load(device)(PIXELS)
    assert np.ptp(scores, axis=0).max() > 1e-3
    (backwards,) = exported(name).load(device)(np.ascontiguousarray(PIXELS[::-1]))
    np.testing.assert_allclose(backwards[::-1], scores, atol=1e-5)


@each_place
def test_an_answer_stays_when_the_next_is_asked(
    name: str, device: str, exported: Callable[[str], Exported]
) -> None:
    model = exported(name).load(device)
    (first,) = model(PIXELS[:1])
    kept = first.copy()
    model(PIXELS[1:2])
    assert np.array_equal(first, kept)


@each_place
def test_the_pixels_are_left_as_they_are(
    name: str, device: str, exported: Callable[[str], Exported]
) -> None:
    pixels = PIXELS.copy()
    exported(name).load(device)(pixels)
    assert np.array_equal(pixels, PIXELS)


@pytest.mark.parametrize(
    ("name", "device"),
    [place for place in PLACES if hasattr(plugins.load_runtime(place[0]), "finish")],
)
def test_finishing_an_artifact_changes_no_answer(
    name: str, device: str, exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    made: Any = exported(name)
    path = tmp_path / made.path.name
    request = replace(made.request, path=path)
    made.runtime.export(request)
    before = made.bound(path, device)(PIXELS)
    raw = path.read_bytes()
    made.runtime.finish(request)
    after = made.bound(path, device)(PIXELS)
    assert path.read_bytes() != raw
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=0 if device == "cpu" else 1e-5)


SAME, BY_PROCESS = (
    [name for name in EXPORTING if plugins.load_runtime(name).reproducible == when]
    for when in ("always", "by-process")
)


def _digests(made: Exported) -> list[str]:
    """Of all files of an artifact; OpenVINO's are two."""
    return [sha256(path) for path in sorted(made.path.parent.glob("model*"))]


@each_place
def test_exporting_twice_in_one_process_gives_the_same(
    name: str, device: str, exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    again = Exported(name, tmp_path)
    found, expected = (each.load(device)(PIXELS)[0] for each in (again, exported(name)))
    # A GPU chooses among kernels by timing them.
    np.testing.assert_allclose(found, expected, rtol=0, atol=0 if device == "cpu" else 1e-5)
    if name in SAME:
        assert _digests(again) == _digests(exported(name))


def _of_another_process(name: str, precisions: list[str], folder: Path, seed: int) -> list[Any]:
    """The digests of a runtime's artifacts, in another folder and with other hashes of strings."""
    folder.mkdir()
    code = (
        "import sys; from pathlib import Path; from test_runtimes import Exported, _digests\n"
        f"for precision in {precisions}:\n"
        "    folder = Path(sys.argv[1], precision); folder.mkdir()\n"
        f"    print('digests', *_digests(Exported({name!r}, folder, precision)))\n"
    )
    here = Path(__file__)
    paths = os.pathsep.join(map(str, (here.parent, here.parents[1], here.parents[2])))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(folder)],
        env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": str(seed)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return [words for _, *words in filter(lambda words: words[:1] == ["digests"], lines)]


@pytest.mark.parametrize("name", [*SAME, *BY_PROCESS])
def test_another_process_exports_the_same_bytes(name: str, tmp_path: Path) -> None:
    able = plugins.load_runtime(name).precisions
    precisions = [each for each in ("fp32", "int8") if each in able]
    found = _of_another_process(name, precisions, tmp_path / "theirs", seed=7)
    if name in BY_PROCESS:
        expected = _of_another_process(name, precisions, tmp_path / "others", seed=8)
    else:
        folders = [tmp_path / precision for precision in precisions]
        for folder in folders:
            folder.mkdir()
        expected = [_digests(Exported(name, folder, folder.name)) for folder in folders]
    assert len(found) == len(precisions)
    assert found == expected


@each_place
def test_its_layers_are_eager_s_or_it_says_that_it_shows_none(
    name: str, device: str, exported: Callable[[str], Exported]
) -> None:
    given = exported(name)
    if given.runtime.layers is Runtime.layers:
        shown_by = given.runtime.shown_by
        assert plugins.load_runtime(shown_by).layers is not Runtime.layers
        with pytest.raises(RuntimeUnavailable, match=f"shows no layers: .* such as {shown_by}"):
            given.load(device).layers(PIXELS[:1])
        return
    some = PIXELS[: 2 if given.batches else 1]
    layers = given.load(device).layers(some)
    expected = exported("eager").load().layers(some)
    # Each of these a batch norm may be folded into, or be folded itself.
    assert {"network.network.linear", "network.network.norm"} <= layers.keys() <= expected.keys()
    for layer, array in layers.items():
        np.testing.assert_allclose(array, expected[layer], atol=1e-4, err_msg=layer)


@pytest.mark.parametrize(
    ("name", "device", "precision"),
    # They lower the module itself, and show what it computes.
    [each for each in REDUCED if each[0] in ("eager", "torchscript")],
)
def test_a_lowered_module_s_layers_have_the_names_of_eager_s(
    name: str, device: str, precision: str, tmp_path: Path, exported: Callable[[str], Exported]
) -> None:
    layers = Exported(name, tmp_path, precision).load(device).layers(PIXELS[:2])
    expected = exported("eager").load().layers(PIXELS[:2])
    assert layers.keys() == expected.keys()
    for layer, array in layers.items():
        atol = 0.02 * np.abs(expected[layer]).max()
        np.testing.assert_allclose(array, expected[layer], atol=atol, err_msg=layer)


@each_place
@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"PK\x03\x04garbage", bytes(1000), b"\x80\x02}q\x00."]
)
def test_a_garbage_artifact_is_a_load_error(
    name: str, device: str, content: bytes, tmp_path: Path
) -> None:
    runtime = plugins.load_runtime(name)
    path = tmp_path / f"model{runtime.suffix}"
    path.write_bytes(content)
    with pytest.raises(LoadError) as refused:
        runtime(path, device, options(runtime))
    assert "\n" not in str(refused.value)


@each_place
def test_a_cut_or_damaged_artifact_is_a_load_error(
    name: str, device: str, exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    given = exported(name)
    content = given.path.read_bytes()
    path = tmp_path / given.path.name
    for cut in (len(content) // 3, len(content) - 50):
        path.write_bytes(content[:cut])
        with pytest.raises(LoadError):
            given.runtime(path, device, options(given.runtime))


@each_place
def test_a_missing_artifact_is_a_load_error(name: str, device: str, tmp_path: Path) -> None:
    runtime = plugins.load_runtime(name)
    with pytest.raises(LoadError):
        runtime(tmp_path / f"none{runtime.suffix}", device, options(runtime))


@pytest.mark.parametrize("name", [n for n in NAMES if plugins.load_runtime(n).requires])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = plugins.load_runtime(name)
    provided = importlib.metadata.packages_distributions()
    for requirement in runtime.requires:
        package = re.split(r"[=<>~!\[; ]", requirement)[0]
        tops = {top for top, owners in provided.items() if package in owners} | {package}
        with monkeypatch.context() as patch:
            for module in [m for m in sys.modules if m.partition(".")[0] in tops]:
                patch.setitem(sys.modules, module, None)
            for top in tops:
                patch.setitem(sys.modules, top, None)
            with pytest.raises(RuntimeUnavailable, match=re.escape(package)):
                check_requirements(runtime, name)


def _of_exports() -> list[tuple[str, str, str]]:
    """Runtimes with the packages that only their exports need, and in which precision."""
    loaded = [(name, plugins.load_runtime(name)) for name in NAMES]
    return [
        (name, precision, package)
        for name, runtime in loaded
        for precision, packages in (
            ("fp32", runtime.export_requires),
            ("int8", runtime.int8_requires),
        )
        for package in packages
    ]


@pytest.mark.parametrize(("name", "precision", "package"), _of_exports())
def test_a_missing_package_of_the_export_is_named_to_builds_alone(
    name: str, precision: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = plugins.load_runtime(name)
    monkeypatch.setattr(runtime, "requires", ())
    monkeypatch.setitem(sys.modules, package, None)
    check_requirements(runtime, name)
    with pytest.raises(RuntimeUnavailable, match=rf"packages {package}: .*runtime-{name}`"):
        check_requirements(runtime, name, export=precision)
