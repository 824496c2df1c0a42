"""What int8 needs of a model: pictures to calibrate with, and which layers suffer most.

torch is imported where layers are looked at: who measures an archive again asks for its pictures
alone, and may have none.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handlers.errors import SpecError
from handlers.inner import NETWORK
from handlers.integrity import sha256
from handlers.runtimes import Array
from marsmith import samples
from marsmith.spec_parts import CalibrationSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from handlers.servable import Servable

FILE = "calibration.json"


def calibration_files(spec: CalibrationSpec, root: Path) -> list[Path]:
    """The pictures to calibrate with, drawn by the spec's seed from its folder and those below."""
    found = samples.files(root / spec.folder, samples.CALIBRATION, deep=True)
    if spec.count >= len(found):
        return found
    return sorted(random.Random(spec.seed).sample(found, spec.count))


def write(taken: Sequence[str], folder: Path) -> None:
    """Write the sha256 of each picture that an archive was calibrated with: whoever measures it
    again leaves them out, and they are too many for what a worker tells."""
    (folder / FILE).write_text(json.dumps(taken, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> list[str]:
    """What ``write`` wrote into an archive, now unpacked; raises SpecError where it did not."""
    if not (folder / FILE).is_file():
        raise SpecError(
            f"this int8 archive has no {FILE}, which tells the pictures it was calibrated with, "
            "and none of them may measure it: build it again"
        )
    taken: list[str] = json.loads((folder / FILE).read_text("utf-8"))
    return taken


def digests(files: Sequence[Path]) -> list[str]:
    """The sha256 of each picture's bytes."""
    return [sha256(path) for path in files]


def digest(files: Sequence[Path]) -> str:
    """One sha256 of the pictures' bytes."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests(files)))).hexdigest()


def kinds() -> tuple[type[nn.Module], ...]:
    """The layers that int8 computes."""
    from torch import nn

    return nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.MultiheadAttention


def layers(module: Servable, part: str = NETWORK) -> list[str]:
    """Names of the convolutions, transposed ones too, linear layers and attention in ``part``,
    which int8 computes.

    Attention is one layer: it calls its projections as functions.
    """
    computed = kinds()
    found = {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, computed) and name.startswith(part)
    }
    return [name for name in found if name.rpartition(".")[0] not in found]


def within(module: Servable, names: Sequence[str]) -> frozenset[str]:
    """``names`` of layers and of what lies inside them, as exported graphs name it."""
    return frozenset(
        f"{name}.{inner}".removesuffix(".")
        for name in names
        for inner, _ in module.get_submodule(name).named_modules()
    )


def rank(
    module: Servable, batches: Sequence[Array], part: str = NETWORK
) -> list[tuple[str, float]]:
    """Layers of ``part`` by what int8 does to them alone, on some of the batches, the worst first.

    The error is that of a layer's output, with its input as 8 bits per tensor between the extremes
    of one batch and its weights as 8 bits per output channel, given the exact input: the share of
    the output's energy, sum((q - y)^2) / sum(y^2), which is the inverse of the SQNR.
    """
    import torch
    from torch import nn

    names = {module.get_submodule(name): name for name in layers(module, part)}
    noise, signal = dict.fromkeys(names.values(), 0.0), dict.fromkeys(names.values(), 0.0)
    busy = False

    def measure(layer: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> None:
        nonlocal busy
        if busy:
            return
        busy = True
        axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        # Attention's are its query, key and value; a mask or a size is behind them.
        count = 3 if isinstance(layer, nn.MultiheadAttention) else 1
        given = (*map(_by_tensor, inputs[:count]), *inputs[count:])
        weights = {
            name: _by_channel(weight, axis)
            for name, weight in layer.named_parameters()
            if name.endswith("weight")
        }
        coarse = torch.func.functional_call(layer, weights, given, named)
        if isinstance(output, tuple):
            output, coarse = output[0], coarse[0]
        busy = False
        noise[names[layer]] += float((coarse - output).square().sum())
        signal[names[layer]] += float(output.square().sum())

    hooks = [layer.register_forward_hook(measure, with_kwargs=True) for layer in names]
    try:
        with torch.no_grad():
            # The order needs fewer than the ranges. The first alone may be of one folder, and so of
            # one class.
            for batch in samples.spread(batches):
                module(torch.from_numpy(batch))
    finally:
        for hook in hooks:
            hook.remove()
    if not any(signal.values()):
        raise SpecError(
            "int8: no convolution, linear layer or attention of this network was called"
        )
    errors = {name: noise[name] / signal[name] for name in signal if signal[name] > 0}
    return sorted(errors.items(), key=lambda each: (-each[1], each[0]))


def _by_channel(weight: Tensor, axis: int) -> Tensor:
    """Symmetric signed 8 bits, with a scale for each output channel, which are on ``axis``."""
    others = [each for each in range(weight.ndim) if each != axis]
    scale = weight.abs().amax(others, keepdim=True).clamp(min=1e-12) / 127
    return (weight / scale).round().clamp(-127, 127) * scale


def _by_tensor(values: Tensor) -> Tensor:
    """Unsigned 8 bits between the least and the largest value, zero among them."""
    low, high = values.amin().clamp(max=0), values.amax().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    zero = (-low / scale).round()
    return ((values / scale + zero).round().clamp(0, 255) - zero) * scale
