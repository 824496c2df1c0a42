"""ONNX Runtime: an ``.onnx`` file on the CPU or an NVIDIA GPU."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from handlers import onnx_data, onnx_export
from handlers.errors import IntegrityError, RuntimeUnavailable, one_line
from handlers.layer_names import is_result
from handlers.quiet import quiet
from handlers.runtimes import (
    Array,
    Arrays,
    ExportRequest,
    Runtime,
    fits,
    wrong_dtype,
    wrong_shape,
)

# It reports to its maker, and keeps a number for this user in the home, from its import on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Types of an input by ONNX's names, where numpy has others.
_DTYPES = {"float": "float32", "double": "float64"}
_CUDA = "CUDAExecutionProvider"


class Onnx(Runtime):
    """An inference session; its graph is optimised once, at load."""

    suffix = ".onnx"
    requires = ("onnxruntime",)
    export_requires = onnx_export.REQUIRES
    precisions = ("fp32", "fp16", "int8")
    # What converts a graph to 16 bits does not reach into the branches of a detector.
    static_precisions = ("fp16",)
    needs_torch = False

    def __init__(self, path: Path, device: str, options: Mapping[str, Any]) -> None:
        self._providers = _providers(device)
        try:
            self._session = self._open(path, options["threads"])
        # Its exceptions share no base of their own.
        except Exception as error:
            line = one_line(error)
            raise IntegrityError(f"{path.name} is no ONNX model that runs here: {line}") from error
        _check_provider(self._session.get_providers()[0], self._providers[0][0])
        self._path, self._threads = path, options["threads"]
        given = self._session.get_inputs()
        if len(given) != 1:
            came = ", ".join(each.name for each in given) or "nothing"
            raise IntegrityError(
                f"{path.name} takes {came}, and pictures come as one input: export it with that "
                "alone"
            )
        self._input, self._shape = given[0].name, given[0].shape
        kind = given[0].type.removeprefix("tensor(").removesuffix(")")
        self._dtype = _DTYPES.get(kind, kind)
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, *arrays: Array) -> Arrays:
        (images,) = arrays
        if images.dtype != self._dtype:
            raise wrong_dtype(self._dtype, images.dtype)
        # Of an input without a declared shape it tells the shape of a scalar.
        if self._shape and not fits(self._shape, images.shape):
            raise wrong_shape(self._shape, images.shape)
        return tuple(self._session.run(None, {self._input: images}))

    def named(self, images: Array) -> dict[str, Array]:
        return dict(zip(self._outputs, self(images), strict=True))

    def layers(self, images: Array) -> dict[str, Array]:
        import onnx

        model = onnx.load(self._path)
        made = (value for node in model.graph.node for value in node.output)
        names = [name for name in made if is_result(name)]
        known = {output.name for output in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
        with tempfile.TemporaryDirectory() as folder:
            # A file, for a model in memory may have no more than 2 GiB.
            path = Path(folder) / "layers.onnx"
            onnx.save(model, path)
            session = self._open(path, self._threads)
        return dict(zip(names, session.run(names, {self._input: images}), strict=True))

    def _open(self, path: Path, threads: int) -> Any:
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        # Threads that wait in a loop take the cores that decode the next pictures.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Its warnings are about the graph's form; what matters is in its errors.
        settings.log_severity_level = 3
        # Its Python side would try again on the CPU what fails on the GPU, at any later call, too.
        return ort.InferenceSession(path, settings, providers=self._providers, enable_fallback=0)

    @classmethod
    def parts(cls, path: Path) -> dict[str, Path]:
        return onnx_data.parts(path)

    @classmethod
    def traces(cls, options: Mapping[str, Any]) -> bool:
        return True

    @staticmethod
    def export(request: ExportRequest) -> None:
        if request.precision == "fp32":
            onnx_export.write(request, request.path)
        elif request.precision == "int8":
            _quantise(request)
        else:
            _to_float16(request)

    @staticmethod
    def finish(request: ExportRequest) -> None:
        # That of few bits is made of a finished one.
        if request.precision == "fp32":
            onnx_export.finish(request, request.path)


def _providers(device: str) -> list[tuple[str, dict[str, int]]]:
    """The CPU, or the very GPU that was asked for: a missing one is an error, not the CPU."""
    import onnxruntime as ort

    if device == "cpu":
        return [("CPUExecutionProvider", {})]
    if _CUDA not in ort.get_available_providers():
        raise RuntimeUnavailable(
            "this ONNX Runtime has no CUDA provider: install onnxruntime-gpu in its place, or "
            "build the model with serving.device: cpu"
        )
    if (preload := getattr(ort, "preload_dlls", None)) is not None:
        # CUDA's libraries that came as packages, which importing torch would have loaded.
        with quiet():
            preload()
    # TF32 is its default, and float32 with the precision of 10 bits.
    return [(_CUDA, {"device_id": int(device.partition(":")[2] or 0), "use_tf32": 0})]


def _check_provider(found: str, wanted: str) -> None:
    """Providers that are compiled in and do not load are left out with a line in the log alone."""
    if found != wanted:
        raise RuntimeUnavailable(
            f"ONNX Runtime took {found} in the place of {wanted}, which does not load here: its "
            "log names the library of CUDA or cuDNN that is missing; install what onnxruntime-gpu "
            "needs, or build the model with serving.device: cpu"
        )


def _to_float16(request: ExportRequest) -> None:
    """Compute in float16 what lies between the network's first layer and its last one.

    A CPU without float16 kernels casts there and back.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(request.basis)
    names = {node.name for node in model.graph.node}
    chosen = set(onnx_export.inner_nodes(model, frozenset(), loops=False))
    with quiet():
        made = convert_float_to_float16(
            model, keep_io_types=True, node_block_list=sorted(names - chosen)
        )
    known: set[str] = set()
    for node in list(made.graph.node):
        if node.output[0] in known:
            # It casts a value anew, under the same name, for each node that reads it.
            made.graph.node.remove(node)
        known.add(node.output[0])
    onnx_export.order(made.graph)
    # Those of casts tell the other type; nobody needs them.
    del made.graph.value_info[:]
    onnx.save(made, request.path)


class _Pictures:
    """Calibration batches as ONNX Runtime reads them."""

    def __init__(self, name: str, batches: Sequence[Array]) -> None:
        self._feeds = iter([{name: batch} for batch in batches])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


def _quantise(request: ExportRequest) -> None:
    """QDQ nodes around what lies between the network's first layer and its last one.

    Unsigned activations and signed weights, per channel: what VNNI multiplies.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = request.path.with_suffix(".prepared.onnx")
    try:
        with quiet():
            quant_pre_process(request.basis, prepared, skip_symbolic_shape=True)
            model = onnx.load(prepared)
            quantize_static(
                model,
                request.path,
                _Pictures(model.graph.input[0].name, request.calibration),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=onnx_export.inner_nodes(
                    model, request.float_layers, request.loops
                ),
            )
    finally:
        prepared.unlink(missing_ok=True)
