"""OpenVINO: intermediate representation (``.xml`` and ``.bin``), the fastest on Intel-like CPUs."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar

import numpy as np

from handlers import inner, onnx_export
from handlers.errors import ExportError, IntegrityError, LoadError, one_line
from handlers.layer_names import is_result, module_of
from handlers.quiet import quiet
from handlers.runtimes import Array, Arrays, ExportRequest, Runtime, wrong_dtype

# Through this package OpenVINO and NNCF report imports and conversions to their maker, and keep a
# number for this user in the home. Where it is missing both have a stand-in that does nothing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
# What ONNX's layers with weights (``onnx_names.WEIGHTED``) become.
_LAYERS = {
    *("Convolution", "ConvolutionBackpropData", "MatMul"),
    *("GroupConvolution", "GroupConvolutionBackpropData"),
}
# Left alone, OpenVINO computes in bf16 on processors that have it, whatever the model is.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
# Types of an input that pictures are given as: ours is u8.
_DTYPES = {"u8": "uint8", "f16": "float16", "f32": "float32"}
# An operation's own name, such as Constant_229; those of our modules have a dot or a slash.
_NUMBERED = re.compile(r'(?P<layer><layer id="\d+" name=")(?P<name>(?P<kind>[A-Z]\w*?)(_\d+)+)"')
# Of the option ``streams``: whether a call has all threads, or each thread a call of its own.
_ALL_THREADS, _EACH_THREAD = "one", "per-thread"


class OpenVino(Runtime):
    """A compiled model; ``.bin`` with the weights lies beside the ``.xml``."""

    suffix = ".xml"
    requires = ("openvino",)
    export_requires = (*onnx_export.REQUIRES, "nncf")
    devices = ("cpu",)
    precisions = tuple(_HINTS)
    # NNCF corrects no bias inside of branches, which detectors have, and what it makes of a graph
    # with some does not load.
    static_precisions = ("int8",)
    needs_torch = False
    options: ClassVar[Mapping[str, Any]] = {"streams": _ALL_THREADS}
    load_choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "streams": (_ALL_THREADS, _EACH_THREAD)
    }

    def __init__(self, path: Path, device: str, options: Mapping[str, Any]) -> None:
        import openvino as ov

        self._path = path
        self.streams = _streams(options)
        self._settings = {
            "INFERENCE_NUM_THREADS": options["threads"],
            "INFERENCE_PRECISION_HINT": _HINTS[options["precision"]],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": self.streams,
            # Each process would bind its threads to the first cores, and workers share those.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            self._model = ov.Core().compile_model(str(path), "CPU", self._settings)
        except RuntimeError as error:
            line = one_line(error)
            raise IntegrityError(
                f"{path.name} is no OpenVINO model that runs here: {line}"
            ) from error
        self._dtype = _dtype(self._model.inputs, path.name)
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(self.streams):
            self._idle.put(self._model.create_infer_request())

    def __call__(self, *arrays: Array) -> Arrays:
        if arrays[0].dtype != self._dtype:
            # It would convert floats to bytes.
            raise wrong_dtype(self._dtype, arrays[0].dtype)
        request = self._idle.get()
        try:
            # Shared memory for the input alone: outputs are overwritten by the next call.
            found = request.infer([arrays[0]], share_inputs=True)
            return tuple(found.values())
        finally:
            self._idle.put(request)

    def named(self, images: Array) -> dict[str, Array]:
        names = [min(output.names, default=str(i)) for i, output in enumerate(self._model.outputs)]
        return dict(zip(names, self(images), strict=True))

    def layers(self, images: Array) -> dict[str, Array]:
        import openvino as ov

        core = ov.Core()
        model = core.read_model(self._path)
        names = [
            name
            for operation in model.get_ordered_ops()
            if operation.get_type_name() != "Constant"
            for output in operation.outputs()
            for name in output.get_names()
            if is_result(name)
        ]
        ends = {name for output in model.outputs for name in output.get_names()}
        model.add_outputs([name for name in names if name not in ends])
        found = core.compile_model(model, "CPU", self._settings)([images])
        return {name: found[name] for name in names}

    @classmethod
    def parts(cls, path: Path) -> dict[str, Path]:
        return {"model.bin": path.with_suffix(".bin")}

    @classmethod
    def traces(cls, options: Mapping[str, Any]) -> bool:
        return True

    @staticmethod
    def export(request: ExportRequest) -> None:
        import openvino as ov

        if request.precision == "fp32":
            model = _converted(request)
        else:
            # In bf16 it is the same file, computed otherwise.
            model = ov.Core().read_model(request.basis)
            if request.precision == "int8":
                model = _quantised(model, request)
        ov.save_model(model, request.path, compress_to_fp16=False)

    @staticmethod
    def finish(request: ExportRequest) -> None:
        _number_anew(request.path)


def _dtype(inputs: Any, name: str) -> Any:
    """What the only input takes; raises IntegrityError, as one that is given nothing would have
    whatever lies in its memory."""
    if len(inputs) != 1:
        came = ", ".join(min(each.names, default="an input") for each in inputs) or "nothing"
        raise IntegrityError(
            f"{name} takes {came}, and pictures come as one input: export it with that alone"
        )
    kind = inputs[0].get_element_type().get_type_name()
    if kind not in _DTYPES:
        raise IntegrityError(
            f"{name} takes {kind}, and pictures are given as {', '.join(_DTYPES)}: export it for "
            "one of these"
        )
    return np.dtype(_DTYPES[kind])


def _converted(request: ExportRequest) -> Any:
    """The model in fp32, by way of ONNX."""
    import openvino as ov

    onnx = request.path.with_suffix(".onnx")
    onnx_export.export(request, onnx)
    try:
        with _root_logger():
            return ov.convert_model(onnx)
    finally:
        onnx.unlink()


def _number_anew(path: Path) -> None:
    """Number operations that have no name of ours by their places in the file.

    OpenVINO numbers them through all models that a process has made.
    """
    numbers: dict[str, int] = {}

    def named(found: re.Match[str]) -> str:
        number = numbers.setdefault(found["name"], len(numbers))
        return f'{found["layer"]}{found["kind"]}_{number}"'

    text = path.read_text("utf-8")
    path.write_text(_NUMBERED.sub(named, text), "utf-8")


def _streams(options: Mapping[str, Any]) -> int:
    """How many calls run at once; raises LoadError where the option is none of the two."""
    accepted = {_ALL_THREADS: 1, _EACH_THREAD: int(options["threads"])}
    if options["streams"] not in accepted:
        raise LoadError(f"streams {options['streams']!r}: accepted are {', '.join(accepted)}")
    return accepted[options["streams"]]


@contextmanager
def _root_logger() -> Iterator[None]:
    """OpenVINO's converter sets the root logger to ERROR, and where it fails leaves it so."""
    root = logging.getLogger()
    level, filters = root.level, list(root.filters)
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:] = filters


def _quantised(model: Any, request: ExportRequest) -> Any:
    """The model with 8-bit activations and weights where NNCF finds that they pay.

    Raises ExportError for a graph with branches.
    """
    operations = model.get_ordered_ops()
    if any(each.get_type_name() == "If" for each in operations):
        raise ExportError(
            "the graph of this network has branches, which NNCF cannot quantise for OpenVINO: "
            "take bf16, or int8 on runtime onnx"
        )
    with quiet():
        import nncf

    chosen = _inner(operations, request)
    known = (each for each in operations if each.get_type_name() != "Constant")
    ignored = {each.get_friendly_name() for each in known} - chosen
    with quiet():
        return nncf.quantize(
            model,
            nncf.Dataset(request.calibration),
            subset_size=len(request.calibration),
            # Slower to build, and a point better on MobileNetV2.
            fast_bias_correction=False,
            ignored_scope=nncf.IgnoredScope(names=sorted(ignored), validate=False),
        )


def _inner(operations: Any, request: ExportRequest) -> set[str]:
    """Names of the operations that int8 may compute: layers, and what lies between them."""
    graph = {
        each.get_friendly_name(): {
            value.get_node().get_friendly_name() for value in each.input_values()
        }
        for each in operations
    }
    modules = {
        each.get_friendly_name(): module_of(_named(each))
        for each in operations
        if each.get_type_name() in _LAYERS
    }
    layers = {name for name, module in modules.items() if module.startswith(inner.NETWORK)}
    kept = {name for name in layers if modules[name] in request.float_layers}
    return inner.between(graph, layers) - kept


def _named(layer: Any) -> str:
    """The name of a layer; of a transposed convolution with a bias only what adds that has it."""
    name: str = layer.get_friendly_name()
    readers = [each.get_node() for each in layer.output(0).get_target_inputs()]
    lost = re.fullmatch(rf"{layer.get_type_name()}_\d+", name) and len(readers) == 1
    return str(readers[0].get_friendly_name()) if lost else name
