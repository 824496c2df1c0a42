"""TensorRT: the archive's ONNX, made into an engine by the NVIDIA GPU that serves it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from handlers import onnx_data, onnx_export, precision, trt_engine
from handlers.errors import LoadError, RuntimeUnavailable, TooLarge
from handlers.runtimes import Array, Arrays, ExportRequest, Runtime, as_arrays, wrong_dtype

_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorRt(Runtime):
    """An engine and its context.

    Option ``cache`` is the folder of the engines (as ``inductor.cache_root`` has it), ``largest``
    the most rows or columns of a picture where the input has no fixed size.
    """

    suffix = ".onnx"
    requires = ("tensorrt", "onnx")
    export_requires = onnx_export.REQUIRES
    devices = ("cuda",)
    precisions = ("fp32", "bf16", "fp16")
    static_precisions = precisions
    options: ClassVar[Mapping[str, Any]] = {"cache": "", "largest": 1024}

    def __init__(self, path: Path, device: str, options: Mapping[str, Any]) -> None:
        if not device.startswith("cuda"):
            raise RuntimeUnavailable(
                f"tensorrt serves on an NVIDIA GPU and was given {device}: serve the model on a "
                "host with one, or build it with another runtime"
            )
        self._device = _use(device)
        self._stream = torch.cuda.Stream(self._device)
        loaded = trt_engine.load(path, self._device, options)
        # TensorRT's own runtime must live as long as its engine.
        self._runtime, self._engine, self._profile, told = loaded
        self._bytes = told.get("bytes", [])
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise LoadError(f"{path.name}: the GPU has no memory left for a context of its engine")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = trt_engine.inputs(self._engine, names)
        (self._input,) = inputs
        kind = self._engine.get_tensor_dtype(self._input).name
        self._dtype = _DTYPES.get(kind, kind)
        self._outputs = [name for name in names if name not in inputs]
        self._check_outputs(path.name)

    def __call__(self, *arrays: Array) -> Arrays:
        with torch.cuda.stream(self._stream):
            return as_arrays(self._run(torch.from_numpy(arrays[0])))

    def named(self, images: Array) -> dict[str, Array]:
        return dict(zip(self._outputs, self(images), strict=True))

    @classmethod
    def parts(cls, path: Path) -> dict[str, Path]:
        return onnx_data.parts(path)

    @classmethod
    def traces(cls, options: Mapping[str, Any]) -> bool:
        return True

    @staticmethod
    def export(request: ExportRequest) -> None:
        import onnx

        onnx_export.write(_lowered(request), request.path)
        model = onnx.load(request.path)
        ranges = {axis: [least, most] for axis, (_, least, most) in request.dynamic.items()}
        example = list(request.example.shape)
        told = {"ranges": ranges, "example": example, "bytes": _widen_bytes(model)}
        model.metadata_props.add(key=trt_engine.METADATA, value=json.dumps(told, sort_keys=True))
        onnx.save(model, request.path)

    @staticmethod
    def finish(request: ExportRequest) -> None:
        onnx_export.finish(_lowered(request), request.path)

    def _check_outputs(self, name: str) -> None:
        """Outputs are given their memory before the engine runs, and so their sizes."""
        self._context.set_input_shape(self._input, tuple(self._profile[0]))
        unknown = [
            each for each in self._outputs if -1 in tuple(self._context.get_tensor_shape(each))
        ]
        if unknown:
            raise LoadError(
                f"{name}: the shape of output {', '.join(unknown)} depends on what is in the "
                "picture, which tensorrt cannot serve: export it without, or take runtime onnx"
            )

    def _run(self, images: Tensor) -> list[Tensor]:
        if images.dtype != self._dtype:
            # It gets an address, and reads there what it takes.
            taken, given = (
                str(each).removeprefix("torch.") for each in (self._dtype, images.dtype)
            )
            raise wrong_dtype(taken, given)
        images = images.to(self._device).contiguous()
        if not self._context.set_input_shape(self._input, tuple(images.shape)):
            raise TooLarge(_out_of_range(tuple(images.shape), self._profile))
        self._context.set_tensor_address(self._input, images.data_ptr())
        found = {}
        for name in self._outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            dtype = _DTYPES[self._engine.get_tensor_dtype(name).name]
            found[name] = torch.empty(shape, dtype=dtype, device=self._device)
            self._context.set_tensor_address(name, found[name].data_ptr())
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the engine: its log says why")
        narrow = {name: found[name].to(torch.uint8) for name in self._bytes}
        return list((found | narrow).values())


def _lowered(request: ExportRequest) -> ExportRequest:
    """The request for a module as TensorRT takes it, in the request's precision."""
    module = copy.deepcopy(request.module)
    precision.lower(module, request.precision)
    return replace(request, module=_Floats(module))


def _widen_bytes(model: Any) -> list[str]:
    """Let outputs of bytes be int32: TensorRT makes bytes of floats alone. Returns their names."""
    import onnx

    kinds = onnx.TensorProto
    outputs = [each.type.tensor_type for each in model.graph.output]
    names = [each.name for each in model.graph.output]
    found = [n for n, kind in zip(names, outputs, strict=True) if kind.elem_type == kinds.UINT8]
    for node in model.graph.node:
        if node.op_type == "Cast" and node.output[0] in found:
            (target,) = (each for each in node.attribute if each.name == "to")
            target.i = kinds.INT32
            outputs[names.index(node.output[0])].elem_type = kinds.INT32
    return found


def _out_of_range(shape: tuple[int, ...], profile: trt_engine.Profile) -> str:
    """Which axis of (N, H, W, C) or what else an artifact of others takes, and what to do."""
    least, _, most = profile
    for axis, length in enumerate(shape):
        if not least[axis] <= length <= most[axis]:
            advice = (
                "serving.batch_size, and build it again" if axis == 0 else "runtime_options largest"
            )
            return (
                f"axis {axis} of the pixels is {length}, and the engine takes {least[axis]} to "
                f"{most[axis]}: see {advice}"
            )
    return f"the engine does not take pixels of shape {shape}: its log says why"


def _use(device: str) -> torch.device:
    """Make ``device`` the current one, which is the one that TensorRT takes."""
    place = torch.device(device)
    torch.cuda.set_device(place)
    return place


class _Floats(nn.Module):
    """Converts the pixels first of all: TensorRT takes bytes, and can do nothing else with them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Any:
        return self.inner(images.float())
