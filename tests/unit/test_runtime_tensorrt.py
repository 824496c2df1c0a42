"""TensorRT, without a GPU: a stand-in for its Python module, whose engines ONNX Runtime runs.

It keeps the rules of the real one that matter here: shapes out of the profile are refused, bytes
are made of nothing but floats, outputs are written to the addresses given. Real engines are not
tested here.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.external_data_helper import load_external_data_for_model
from torch import Tensor, nn

from handlers.errors import IntegrityError, LoadError, RuntimeUnavailable, TooLarge
from handlers.plugins import load_runtime
from handlers.runtimes import ExportRequest, check_requirements
from handlers.runtimes import tensorrt as runtime_module
from handlers.runtimes.tensorrt import TensorRt
from handlers.servable import Network

PIXELS = np.random.default_rng(0).integers(0, 255, (4, 12, 10, 3), dtype=np.uint8)
KINDS = {"float": "FLOAT", "float16": "HALF", "int32": "INT32", "int64": "INT64", "uint8": "UINT8"}
TYPES = {f"tensor({name})": kind for name, kind in KINDS.items()}


class StandIn(ModuleType):
    """``tensorrt`` as this project uses it."""

    __version__ = "10.0.stand-in"
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    BuilderFlag = SimpleNamespace(TF32="TF32")
    NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})

    def __init__(self) -> None:
        super().__init__("tensorrt")
        self.built: list[Any] = []
        self.fail = ""

        class ILogger:
            Severity = IntEnum("Severity", {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2})

        self.ILogger = ILogger
        self.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})

    def Builder(self, log: Any) -> Any:
        def build(network: Any, config: Any) -> bytes | None:
            assert config.cleared == ["TF32"]
            if self.fail:
                log.log(self.ILogger.Severity.ERROR, self.fail)
                return None
            self.built.append(config.shapes)
            return repr(config.shapes).encode() + b"\n" + bytes(network.content)

        return SimpleNamespace(
            create_network=lambda flags: SimpleNamespace(flags=flags),
            create_builder_config=_Config,
            create_optimization_profile=_Profile,
            build_serialized_network=build,
        )

    def OnnxParser(self, network: Any, log: Any) -> Any:
        def parse(content: bytes, path: str) -> bool:
            model = onnx.load_from_string(content)
            load_external_data_for_model(model, str(Path(path).parent))
            network.content = model.SerializeToString()
            return network.flags == 2 and self.fail != "parse"

        return SimpleNamespace(parse=parse, num_errors=1, get_error=lambda index: "no such node")

    def Runtime(self, log: Any) -> Any:
        return SimpleNamespace(
            deserialize_cuda_engine=lambda content: _Engine(content) if b"\n" in content else None
        )


class _Profile(dict[str, Any]):
    def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
        self[name] = (least, best, most)


class _Config:
    def __init__(self) -> None:
        self.cleared: list[str] = []
        self.shapes: dict[str, Any] = {}

    def clear_flag(self, flag: str) -> None:
        self.cleared.append(flag)

    def add_optimization_profile(self, profile: _Profile) -> None:
        self.shapes = dict(profile)


class _Engine:
    def __init__(self, content: bytes) -> None:
        shapes, _, model = content.partition(b"\n")
        self.shapes = eval(shapes)
        self.session = onnxruntime.InferenceSession(model)
        self.inputs = {each.name: each for each in self.session.get_inputs()}
        self.outputs = {each.name: each for each in self.session.get_outputs()}
        self.num_io_tensors = len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=TYPES[(self.inputs | self.outputs)[name].type])

    def takes(self) -> np.dtype[Any]:
        (given,) = self.inputs.values()
        return np.dtype(np.uint8 if TYPES[given.type] == "UINT8" else np.float16)

    def create_execution_context(self) -> _Context:
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine, self.addresses = engine, dict[str, int]()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.shapes[name]
        self.shape = shape
        return all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def get_tensor_shape(self, name: str) -> list[int]:
        """Known without the input's values, but for what depends on them."""
        if self.engine.outputs[name].type == "tensor(int64)":
            return [2, -1]
        return list(self._run(np.zeros(self.shape, self.engine.takes()))[name].shape)

    def execute_async_v3(self, stream: int) -> bool:
        (name,) = self.engine.inputs
        dtype = self.engine.takes()
        size = int(np.prod(self.shape)) * dtype.itemsize
        content = (ctypes.c_uint8 * size).from_address(self.addresses[name])
        pixels = np.frombuffer(content, dtype).reshape(self.shape)
        for name, found in self._run(pixels).items():
            ctypes.memmove(self.addresses[name], found.ctypes.data, found.nbytes)
        return True

    def _run(self, pixels: Any) -> dict[str, Any]:
        (name,) = self.engine.inputs
        found = self.engine.session.run(None, {name: pixels})
        return dict(zip(self.engine.outputs, found, strict=True))


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A host with TensorRT and a GPU, neither of which is real."""

    @contextlib.contextmanager
    def stream(given: Any) -> Iterator[None]:
        yield

    module = StandIn()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(runtime_module, "_use", lambda device: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Stand-in 1/2 GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return module


class Masks(nn.Module):
    """Scores and bytes, as the tasks' outputs are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        best, ids = torch.softmax(self.conv(pixels), dim=1).max(dim=1)
        return ids.to(torch.uint8), best


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, and before the stand-in is there: torch.export asks torch.cuda."""
    return _exported(tmp_path_factory.mktemp("fp32"))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As its exporter left it."""
    request = _request(tmp_path_factory.mktemp("raw"), "fp32", {0: ("batch", 1, 4)})
    TensorRt.export(request)
    return request.path


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _exported(tmp_path_factory.mktemp("sizes"), sizes=True)


def _exported(folder: Path, precision: str = "fp32", sizes: bool = False) -> Path:
    dynamic = {0: ("batch", 1, 4)}
    if sizes:
        dynamic |= {1: ("height", 1, 16384), 2: ("width", 1, 16384)}
    request = _request(folder, precision, dynamic)
    TensorRt.export(request)
    TensorRt.finish(request)
    return request.path


def _request(folder: Path, precision: str, dynamic: Any) -> ExportRequest:
    return ExportRequest(
        module=Network(Masks(), [0.5] * 3, [0.2] * 3).eval(),
        example=PIXELS[:2],
        dynamic=dynamic,
        path=folder / "model.onnx",
        precision=precision,
    )


def _foreign(folder: Path, operator: str, takes: int = onnx.TensorProto.UINT8) -> Path:
    """The floats of an input of any batch, and what one operator makes of them."""
    given = onnx.helper.make_tensor_value_info("images", takes, ["batch", 3])
    kind = onnx.TensorProto.INT64 if operator == "NonZero" else onnx.TensorProto.FLOAT
    made = onnx.helper.make_tensor_value_info("found", kind, ["a", "b"])
    nodes = [
        onnx.helper.make_node("Cast", ["images"], ["floats"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node(operator, ["floats"], ["found"]),
    ]
    graph = onnx.helper.make_graph(nodes, "graph", [given], [made])
    opset = onnx.helper.make_opsetid("", 17)
    path = folder / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
    return path


def _load(path: Path, cache: Path, **options: Any) -> Any:
    given = {"cache": str(cache), "largest": 64, "threads": 1, "batch": 4, "precision": "fp32"}
    return load_runtime("tensorrt")(path, "cuda:0", given | options)


@pytest.mark.parametrize("count", [1, 3])
def test_answers_are_those_of_the_network(
    exported: Path, trt: StandIn, tmp_path: Path, count: int
) -> None:
    model = _load(exported, tmp_path / "cache")
    network = Network(Masks(), [0.5] * 3, [0.2] * 3).eval()
    with torch.inference_mode():
        expected = [each.numpy() for each in network(torch.from_numpy(PIXELS[:count]))]
    found = model(PIXELS[:count])
    assert [each.dtype for each in found] == [np.uint8, np.float32]
    assert (found[0] == expected[0]).all()
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
    assert len(model.named(PIXELS)) == 2


def test_finishing_a_file_names_its_nodes_and_changes_no_answer(
    raw: Path, exported: Path, trt: StandIn, tmp_path: Path
) -> None:
    before, after = (_load(each, tmp_path / "cache")(PIXELS) for each in (raw, exported))
    for one, other in zip(before, after, strict=True):
        assert np.array_equal(one, other)
    first, finished = onnx.load(raw), onnx.load(exported)
    assert any(node.metadata_props for node in first.graph.node)
    assert not any(node.metadata_props for node in finished.graph.node)
    assert "inner.network.conv" in {node.name for node in finished.graph.node}
    # What tells shapes and bytes stays.
    assert first.metadata_props == finished.metadata_props


def test_nothing_is_done_with_bytes_but_to_convert_them(exported: Path) -> None:
    graph = onnx.load(exported).graph
    uses = {node.op_type for node in graph.node if graph.input[0].name in node.input}
    assert uses == {"Cast"}
    makes = {attribute.i for node in graph.node for attribute in node.attribute}
    assert onnx.TensorProto.UINT8 not in makes
    assert not [e for e in graph.output if e.type.tensor_type.elem_type == onnx.TensorProto.UINT8]


def test_in_half_precision_the_weights_are_and_the_outputs_are_not(tmp_path: Path) -> None:
    graph = onnx.load(_exported(tmp_path, "fp16")).graph
    assert onnx.TensorProto.FLOAT16 in {each.data_type for each in graph.initializer}
    kinds = {each.type.tensor_type.elem_type for each in graph.output}
    assert kinds == {onnx.TensorProto.INT32, onnx.TensorProto.FLOAT}


def test_an_engine_is_built_once_for_a_gpu_a_version_and_a_model(
    exported: Path, trt: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = exported, tmp_path / "cache"
    for _ in range(2):
        _load(path, cache)
    assert len(trt.built) == 1
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Another")
    _load(path, cache)
    monkeypatch.setattr(trt, "__version__", "10.1.stand-in")
    _load(path, cache)
    assert len(trt.built) == 3
    assert (cache / "tensorrt").stat().st_mode & 0o777 == 0o700
    names = sorted(file.name for file in (cache / "tensorrt").glob("*.engine"))
    assert len(names) == 3
    assert names[-1].startswith("Stand-in-1-2-GB-10.0.stand-in-")


def test_the_profile_has_the_batch_of_the_archive_and_sizes_up_to_largest(
    sizes: Path, trt: StandIn, tmp_path: Path
) -> None:
    model = _load(sizes, tmp_path / "cache")
    (shapes,) = trt.built
    assert list(shapes.values()) == [([1, 1, 1, 3], [4, 12, 10, 3], [4, 64, 64, 3])]
    assert model(np.zeros((1, 64, 20, 3), np.uint8))[0].shape == (1, 64, 20)
    with pytest.raises(TooLarge, match=r"axis 1 .* is 65, .* 1 to 64: see runtime_options largest"):
        model(np.zeros((1, 65, 20, 3), np.uint8))


def test_an_artifact_of_others_takes_as_many_pictures_as_are_served(
    trt: StandIn, tmp_path: Path
) -> None:
    path = _foreign(tmp_path, "Relu")
    model = _load(path, tmp_path / "cache", batch=12)
    assert list(trt.built[0].values()) == [([1, 3], [12, 3], [12, 3])]
    assert model(np.zeros((12, 3), np.uint8))[0].shape == (12, 3)
    with pytest.raises(TooLarge, match=r"axis 0 .* is 13, .* 1 to 12: see serving.batch_size"):
        model(np.zeros((13, 3), np.uint8))


def test_an_input_of_others_is_given_no_other_dtype(trt: StandIn, tmp_path: Path) -> None:
    """An engine gets an address, and would read whatever lies there."""
    path = _foreign(tmp_path, "Relu", onnx.TensorProto.FLOAT16)
    model = _load(path, tmp_path / "cache")
    with pytest.raises(ValueError, match="takes float16 and was given float32: write dtype: float"):
        model.named(np.ones((2, 3), np.float32))
    assert model.named(np.ones((2, 3), np.float16))["found"].tolist() == [[1] * 3] * 2


def test_weights_beside_the_file_are_read_and_are_part_of_the_engine_s_name(
    exported: Path, trt: StandIn, tmp_path: Path
) -> None:
    path, data = tmp_path / "model.onnx", tmp_path / "weights.data"
    settings = {"save_as_external_data": True, "location": data.name, "size_threshold": 0}
    onnx.save(onnx.load(exported), path, **settings)
    assert load_runtime("tensorrt").parts(path) == {data.name: data}
    (expected, _), (found, _) = (
        _load(each, tmp_path / "cache")(PIXELS) for each in (exported, path)
    )
    assert np.array_equal(found, expected)
    data.write_bytes(bytes(len(data.read_bytes())))
    assert not np.array_equal(_load(path, tmp_path / "cache")(PIXELS)[0], expected)
    data.unlink()
    with pytest.raises(IntegrityError, match="weights.data cannot be read: No such file"):
        _load(path, tmp_path / "cache")


def test_an_output_whose_shape_depends_on_data_is_refused_by_name(
    trt: StandIn, tmp_path: Path
) -> None:
    path = _foreign(tmp_path, "NonZero")
    with pytest.raises(LoadError, match="model.onnx: the shape of output found depends on what is"):
        _load(path, tmp_path / "cache")


def test_what_tensorrt_says_is_in_the_error(exported: Path, trt: StandIn, tmp_path: Path) -> None:
    trt.fail = "out of\nmemory"
    with pytest.raises(LoadError, match="cannot build an engine of model.onnx here: out of memory"):
        _load(exported, tmp_path / "cache")
    trt.fail = "parse"
    with pytest.raises(IntegrityError, match="cannot read model.onnx: no such node"):
        _load(exported, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.engine"))


def test_a_kept_engine_that_does_not_load_is_built_again(
    exported: Path, trt: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    _load(exported, cache)
    (kept,) = cache.rglob("*.engine")
    kept.write_bytes(b"damaged")
    with caplog.at_level("WARNING"):
        model = _load(exported, cache)
    assert f"the kept engine {kept} does not load" in caplog.text
    assert model(PIXELS)[0].shape == (4, 12, 10)
    assert len(trt.built) == 2
    caplog.clear()
    _load(exported, cache)
    assert (caplog.text, len(trt.built)) == ("", 2)


def test_a_new_engine_that_does_not_load_is_an_error(
    exported: Path, trt: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = SimpleNamespace(deserialize_cuda_engine=lambda content: None)
    monkeypatch.setattr(trt, "Runtime", lambda log: never)
    with pytest.raises(LoadError, match="built here just now, does not load"):
        _load(exported, tmp_path / "cache")


def test_a_garbage_or_missing_artifact_is_an_integrity_error(trt: StandIn, tmp_path: Path) -> None:
    for content in (b"", b"garbage", bytes(1000)):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(IntegrityError, match="model.onnx is no ONNX model with one input"):
            _load(tmp_path / "model.onnx", tmp_path / "cache")
    with pytest.raises(IntegrityError, match="none.onnx cannot be read: No such file"):
        _load(tmp_path / "none.onnx", tmp_path / "cache")


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="tensorrt serves on an NVIDIA GPU and was given"):
        load_runtime("tensorrt")(tmp_path / "model.onnx", "cpu", {})


def test_without_tensorrt_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(RuntimeUnavailable, match="tensorrt: install them with `make runtime-tenso"):
        check_requirements(load_runtime("tensorrt"), "tensorrt")
