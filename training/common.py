"""What the training scripts share: the command line, the loop, saving, accuracy.

The learning rate follows the steps, so a run is repeatable from its seed. Only where the machine
is too slow for all the steps in `--minutes` does the clock take over and shorten the run.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SEED = 20240607


@dataclass(frozen=True)
class Options:
    """The command line: where the weights go, the most minutes, and whether to go on from them."""

    out: Path
    minutes: float
    resume: bool


@dataclass(frozen=True)
class Phase:
    """A part of a training: side of the pictures in pixels, and share of the minutes.

    Most can be learnt from small pictures, which cost little; the last phase sees what is served.
    """

    side: int
    steps: int
    learning_rate: float
    share: float


def options(description: str, weights: str, minutes: float, resumable: bool = False) -> Options:
    """Parse the command line and fix the seeds; `resumable` trainings go in phases."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("weights") / weights)
    parser.add_argument("--minutes", type=float, default=minutes, help="most time for training")
    if resumable:
        last = "go on from the weights at --out, with the last phase"
        parser.add_argument("--resume", action="store_true", help=last)
    given = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    return Options(given.out, given.minutes, resumable and given.resume)


def phases_left(model: nn.Module, phases: Sequence[Phase], given: Options) -> Sequence[Phase]:
    """All phases; when resuming, only the last one, after loading the weights at `given.out`."""
    if not given.resume:
        return phases
    model.load_state_dict(torch.load(given.out, weights_only=True))
    return [replace(phases[-1], share=1.0)]


def batches(count: int, size: int) -> Callable[[int], Tensor]:
    """Indices of the batch for a step, so that each epoch sees each of `count` records once."""
    per_epoch = count // size
    order = torch.empty(0, dtype=torch.long)

    def indices(step: int) -> Tensor:
        nonlocal order
        if step % per_epoch == 0:
            order = torch.randperm(count)
        start = step % per_epoch * size
        return order[start : start + size]

    return indices


def fit(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    steps: int,
    minutes: float,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.02,
) -> None:
    """Minimise `loss(step)` with AdamW, warm-up and a cosine decay; leaves `model` in eval mode."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, learning_rate, weight_decay=weight_decay)
    begin = time.monotonic()
    recent: list[float] = []
    model.train()
    for step in range(steps):
        elapsed = (time.monotonic() - begin) / 60
        progress = max(step / steps, elapsed / minutes)
        if progress >= 1:
            print(f"shortened by the clock to {step} of {steps} steps")
            break
        rate = min(1.0, progress / 0.05) * (1 + np.cos(np.pi * progress)) / 2
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * max(rate, 1e-3)
        value = loss(step)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        recent.append(value.item())
        if len(recent) == max(1, steps // 20):
            print(
                f"step {step + 1}/{steps}, {elapsed:.1f} min, loss {np.mean(recent):.4f}",
                flush=True,
            )
            recent.clear()
    model.eval()


def save(model: nn.Module, path: Path) -> None:
    """Write the state_dict, weights of convolutions and linear layers in half precision.

    The model takes over what was written, so that it is judged as it will be served. Vectors
    (batch norm, biases) cost little and keep their precision.
    """
    state = {
        name: tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor.clone()
        for name, tensor in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    model.load_state_dict(torch.load(path, weights_only=True))
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


@torch.inference_mode()
def accuracy(
    model: nn.Module,
    inputs: Tensor,
    labels: Sequence[int],
    prepare: Callable[[Tensor], Tensor] = torch.Tensor.float,
) -> float:
    """Share of the inputs [count, ...], each passed through `prepare`, whose top logit is right."""
    top = torch.cat([model(prepare(part)).argmax(1) for part in inputs.split(100)])
    return float((top == torch.tensor(labels)).float().mean())
