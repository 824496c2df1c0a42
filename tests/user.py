"""Somebody who has a network of his own, and builds it from options alone, or an artifact."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from marsmith import build, cli

PROJECT = Path(__file__).parents[1]

# Model files of artifacts that somebody else exported.
ARTIFACT: dict[str, Any] = {
    "name": "m",
    "task": "image-classification",
    "artifact": {"file": "m.pt"},
    "outputs": "logits",
    "input": {"resize": [32, 32], "mean": [0, 0, 0], "std": [1, 1, 1]},
}
THEIRS = {
    "name": "theirs",
    "task": "image-classification",
    "artifact": {"file": "m.onnx"},
    "runtime": "onnx",
    "labels": ["a", "b"],
    "outputs": "logits",
    "input": {"resize": [32, 32], "mean": [0, 0, 0], "std": [1, 1, 1]},
}

NET = """
import torch
from torch import nn
{imports}

class Net(nn.Module):
    def __init__(self, width=4, classes=2):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.linear = nn.Linear(width, classes)

    def forward(self, x):
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))
"""


def standing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of somebody who has a network, weights and labels, and stands in it."""
    folder = tmp_path / "user"
    (folder / "mynet").mkdir(parents=True)
    (folder / "my_model.py").write_text(NET.format(imports=""))
    (folder / "mynet/__init__.py").write_text("from .models import Net\n")
    (folder / "mynet/models.py").write_text(NET.format(imports="from . import parts"))
    (folder / "mynet/parts.py").write_text("import json\n")
    (folder / "labels.txt").write_text("cat\ndog\n")
    torch.manual_seed(3)
    state = {
        "conv.weight": torch.randn(6, 3, 3, 3),
        "conv.bias": torch.zeros(6),
        "linear.weight": torch.randn(2, 6) * 0.3,
        "linear.bias": torch.zeros(2),
    }
    torch.save(state, folder / "net.pth")
    monkeypatch.setenv("MARSMITH_CALLER", str(folder))
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(build.smoke, "prepared", lambda *_: nullcontext(lambda path: None))
    return folder


def run(*arguments: str | Path) -> Result:
    """``marsmith build`` with these arguments, into the folder ``store`` beside the caller."""
    command = ["build", *map(str, arguments), "--store", "store"]
    return CliRunner().invoke(cli.group, command)


OWN = ("--name", "own", "--task", "image-classification", "--labels", "labels.txt")
SQUARE = ("--resize", "32,32", "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2")


def labelled(folder: Path, count: int) -> None:
    """Write so many labels in the place of the user's own."""
    (folder / "labels.txt").write_text("".join(f"class {index}\n" for index in range(count)))
