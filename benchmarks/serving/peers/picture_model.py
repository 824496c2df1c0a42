"""The model as the other servers load it, in their own environments: PyTorch, or OpenVINO.

``BENCH_MODEL`` names the JSON file that ``Subject.describe`` wrote. Preprocessing is torchvision's
preset of the model's own geometry, as the tutorials of every server have it.
"""

import functools
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.models import get_model

# What ours gives by default.
TOP_K = 5
# As OpenVINO computes by itself in bf16 on processors that have it.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class TorchModel:
    """The eager network: floats in, softmax out."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.labels = told["labels"]
        self.network = get_model(told["network"], weights=None, **told["arguments"])
        self.network.load_state_dict(torch.load(told["weights"], weights_only=True))
        self.network.eval()
        steps = [*_geometry(told), transforms.ToTensor()]
        self.steps = transforms.Compose([*steps, transforms.Normalize(told["mean"], told["std"])])

    def decode(self, data: bytes) -> torch.Tensor:
        """The input (C, H, W) of one encoded picture."""
        return self.prepare(Image.open(io.BytesIO(data)))

    def prepare(self, picture: Image.Image) -> torch.Tensor:
        """The input (C, H, W) of one picture."""
        pixels: torch.Tensor = self.steps(picture.convert("RGB"))
        return pixels

    def predict(self, inputs: list[torch.Tensor]) -> list[Any]:
        """An answer for each input."""
        with torch.inference_mode():
            scores = torch.softmax(self.network(torch.stack(inputs)), dim=1).numpy()
        return _answers(scores, self.labels)


class OpenVinoModel:
    """The intermediate representation out of our archive: uint8 (N, H, W, C) in, softmax out."""

    def __init__(self, told: dict[str, Any]) -> None:
        import openvino as ov

        self.labels = told["labels"]
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": int(os.environ["OMP_NUM_THREADS"]),
            "INFERENCE_PRECISION_HINT": _HINTS[told["precision"]],
            "PERFORMANCE_HINT": "LATENCY",
            # Each worker would bind its threads to the first cores.
            "ENABLE_CPU_PINNING": False,
        }
        self.model = ov.Core().compile_model(told["openvino"], "CPU", settings)
        self.steps = transforms.Compose(_geometry(told))

    def decode(self, data: bytes) -> Any:
        """The input (H, W, C) of one encoded picture."""
        return self.prepare(Image.open(io.BytesIO(data)))

    def prepare(self, picture: Image.Image) -> Any:
        """The input (H, W, C) of one picture."""
        return np.asarray(self.steps(picture.convert("RGB")))

    def predict(self, inputs: list[Any]) -> list[Any]:
        """An answer for each input; may be called by several threads."""
        # A request of its own for each call: a shared one takes one call at a time.
        [scores] = self.model.create_infer_request().infer([np.stack(inputs)]).values()
        return _answers(scores, self.labels)


@functools.cache
def load() -> Any:
    """The model of this process."""
    told = json.loads(Path(os.environ["BENCH_MODEL"]).read_text())
    return OpenVinoModel(told) if "openvino" in told else TorchModel(told)


def _geometry(told: dict[str, Any]) -> list[Any]:
    mode = transforms.InterpolationMode(told["interpolation"])
    steps = [] if told["resize"] is None else [transforms.Resize(told["resize"], mode)]
    return steps if told["crop"] is None else [*steps, transforms.CenterCrop(told["crop"])]


def _answers(scores: Any, labels: list[str]) -> list[Any]:
    best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP_K]
    return [
        [{"label": labels[i], "score": round(float(row[i]), 6)} for i in indices]
        for row, indices in zip(scores, best, strict=True)
    ]
