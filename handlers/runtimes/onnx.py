"""ONNX Runtime: an ``.onnx`` file on the CPU or an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handlers import onnx_export
from handlers.errors import IntegrityError, RuntimeUnavailable
from handlers.runtimes import Array, Arrays, ExportRequest, Runtime


class Onnx(Runtime):
    """An inference session; its graph is optimised once, at load."""

    suffix = ".onnx"
    requires = ("onnxruntime",)
    export_requires = onnx_export.REQUIRES

    def __init__(self, path: Path, device: str, options: Mapping[str, Any]) -> None:
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options["threads"]
        settings.inter_op_num_threads = 1
        # Its warnings are about the graph's form; what matters is in its errors.
        settings.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(path, settings, providers=_providers(device))
        # Its exceptions share no base of their own.
        except Exception as error:
            line = " ".join(str(error).split())[:300]
            raise IntegrityError(f"{path.name} is no ONNX model that runs here: {line}") from error
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, *arrays: Array) -> Arrays:
        return tuple(self._session.run(None, {self._input: arrays[0]}))

    def named(self, images: Array) -> dict[str, Array]:
        return dict(zip(self._outputs, self(images), strict=True))

    @classmethod
    def traces(cls, options: Mapping[str, Any]) -> bool:
        return True

    @staticmethod
    def export(request: ExportRequest) -> None:
        onnx_export.export(request, request.path)


def _providers(device: str) -> list[Any]:
    """The CPU, or the very GPU that was asked for: a missing one is an error, not the CPU."""
    import onnxruntime as ort

    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise RuntimeUnavailable(
            "this ONNX Runtime has no CUDA provider: install onnxruntime-gpu in its place, or "
            "build the model with serving.device: cpu"
        )
    return [("CUDAExecutionProvider", {"device_id": int(device.partition(":")[2] or 0)})]
