"""A real archive whose network gets into trouble on pictures of certain grey levels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image
from torch import save

from marsmith import spec
from marsmith.build import build
from marsmith.spec import ModelSpec

SLOW, LEAK, RAISE, HANG = 153, 178, 204, 242
SLOW_SECONDS = 0.1

# The handwritten digits of the samples are all darker than these levels.
_SOURCE = f"""
import os
import time

import torch
from torch import nn

KEPT = []


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        if os.path.exists(os.environ.get("MARSMITH_TEST_TROUBLE", "/nonexistent")):
            raise ValueError("the weights' disk is away")
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        levels = (255 * images.mean((1, 2, 3))).round()
        if (levels == {HANG}).any():
            time.sleep(3600)
        if (levels == {RAISE}).any():
            raise ValueError("it does not like this one")
        if (levels == {SLOW}).any():
            time.sleep({SLOW_SECONDS})
        if (levels == {LEAK}).any():
            KEPT.append(torch.ones(64, 1024, 1024))
        # Classes are columns of a picture, so that answers differ by picture.
        return 20 * self.scale * images.mean((1, 2)).reshape(len(images), 10, -1).mean(2)
"""


def grey(level: int) -> bytes:
    """A picture of one grey level, as PNG."""
    file = io.BytesIO()
    Image.new("L", (30, 30), level).save(file, "PNG")
    return file.getvalue()


def model(folder: Path, root: Path, **serving: Any) -> ModelSpec:
    """The model's spec, with its source and weights in ``folder``."""
    from importlib.util import module_from_spec, spec_from_file_location

    source = folder / "troubled_net.py"
    source.write_text(_SOURCE)
    found = spec_from_file_location("troubled_net", source)
    assert found is not None
    assert found.loader is not None
    module = module_from_spec(found)
    found.loader.exec_module(module)
    save(module.Net().state_dict(), folder / "troubled.pth")
    fields = {
        "name": "troubled",
        "task": "image-classification",
        "architecture": f"{source}:Net",
        "weights": {"file": str(folder / "troubled.pth")},
        "labels": [f"column {number}" for number in range(10)],
        "input": {"color": "gray", "resize": [30, 30], "mean": [0.0], "std": [1.0]},
        "samples": str(root / "samples/digits"),
        "runtime": "eager",
        "serving": {"threads": 1, **serving},
    }
    return spec.parse(fields, "troubled")


def build_troubled(folder: Path, root: Path, store: Path, **serving: Any) -> Path:
    """Build its archive into ``store`` with every stage."""
    return build(model(folder, root, **serving), root, store, tell=lambda stage: None).path
