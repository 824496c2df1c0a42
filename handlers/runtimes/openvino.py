"""OpenVINO: intermediate representation (``.xml`` and ``.bin``), the fastest on Intel-like CPUs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handlers import onnx_export
from handlers.errors import IntegrityError, RuntimeUnavailable
from handlers.runtimes import Array, Arrays, ExportRequest, Runtime

# Left alone, OpenVINO computes in bf16 on processors that have it, whatever the model is.
_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVino(Runtime):
    """A compiled model; ``.bin`` with the weights lies beside the ``.xml``."""

    suffix = ".xml"
    requires = ("openvino",)
    export_requires = onnx_export.REQUIRES
    precisions = tuple(_HINTS)

    def __init__(self, path: Path, device: str, options: Mapping[str, Any]) -> None:
        import openvino as ov

        if device != "cpu":
            raise RuntimeUnavailable("openvino serves on the CPU: build with serving.device: cpu")
        settings = {
            "INFERENCE_NUM_THREADS": options["threads"],
            "INFERENCE_PRECISION_HINT": _HINTS[options["precision"]],
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            self._model = ov.Core().compile_model(str(path), "CPU", settings)
        except RuntimeError as error:
            line = " ".join(str(error).split())[:300]
            raise IntegrityError(
                f"{path.name} is no OpenVINO model that runs here: {line}"
            ) from error
        self._request = self._model.create_infer_request()

    def __call__(self, *arrays: Array) -> Arrays:
        # Shared memory for the input alone: outputs are overwritten by the next call.
        found = self._request.infer([arrays[0]], share_inputs=True)
        return tuple(found.values())

    def named(self, images: Array) -> dict[str, Array]:
        names = [min(output.names, default=str(i)) for i, output in enumerate(self._model.outputs)]
        return dict(zip(names, self(images), strict=True))

    @classmethod
    def parts(cls, path: Path) -> dict[str, Path]:
        return {"model.bin": path.with_suffix(".bin")}

    @classmethod
    def traces(cls, options: Mapping[str, Any]) -> bool:
        return True

    @staticmethod
    def export(request: ExportRequest) -> None:
        import openvino as ov

        onnx = request.path.with_suffix(".onnx")
        onnx_export.export(request, onnx)
        try:
            ov.save_model(ov.convert_model(onnx), request.path, compress_to_fp16=False)
        finally:
            onnx.unlink()
