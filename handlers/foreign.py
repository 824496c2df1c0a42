"""Artifacts that others exported: in Python what their graph does not do.

A graph of marsmith takes uint8 pictures (N, H, W, C) and gives what the task's ``decode`` gives.
One of others wants another layout, type or scale, and gives outputs under names of its own, which
a spec's ``outputs`` says the meaning of. ``Foreign`` stands between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handlers.errors import LoadError
from handlers.inputs import ImageInput
from handlers.runtimes import Array, Arrays, Runtime, as_arrays

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Contract:
    """What an artifact takes and gives.

    ``layout`` (nchw, nhwc, or for one picture without a batch axis chw, hwc) and ``dtype`` of its
    input; float32 and float16 get (pixels / ``scale`` - mean) / std, uint8 the pixels themselves.
    ``outputs`` names a task's ``Meaning``: by each of its names the artifact's
    output, or None for the one of that name or the only one, and settings of the meaning.
    """

    layout: str = "nchw"
    dtype: str = "float32"
    scale: float = 255.0
    outputs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """What a ``Meaning`` may need beside the outputs: of the input and the model."""

    count: int
    size: tuple[int, int]
    labels: int
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Meaning:
    """One form in which artifacts give what a task's ``decode`` gives.

    ``read`` gets the outputs in the order of ``names`` and returns those of ``decode``; ValueError
    says why they cannot be what the spec says. ``settings`` are further keys of a spec's
    ``outputs``, with their defaults. ``needs_torch`` says whether ``read`` computes with PyTorch.
    """

    names: tuple[str, ...]
    read: Callable[[Arrays, Given], Arrays]
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs_torch: bool = False


class Foreign:
    """A runtime with the artifact of others, called as one with marsmith's own."""

    def __init__(
        self, runtime: Runtime, contract: Contract, given: ImageInput, meaning: Meaning, labels: int
    ) -> None:
        self._runtime, self._contract, self._meaning = runtime, contract, meaning
        self._mean, self._std = _float32(given.mean), _float32(given.std)
        self._labels = labels
        wanted = contract.outputs
        self._settings = {key: wanted.get(key, value) for key, value in meaning.settings.items()}

    def __call__(self, *arrays: Array) -> Arrays:
        (pixels,) = arrays
        given = Given(len(pixels), pixels.shape[1:3], self._labels, self._settings)
        return self._meaning.read(tuple(self.outputs(pixels).values()), given)

    def outputs(self, pixels: Array) -> dict[str, Array]:
        """What the artifact gives for pixels (N, H, W, C), by the names of the task's meaning."""
        outputs = self._runtime.named(self._fed(pixels))
        if "n" not in self._contract.layout:
            outputs = {name: output[None] for name, output in outputs.items()}
        wanted = self._contract.outputs
        chosen = {name: _pick(outputs, name, wanted.get(name)) for name in self._meaning.names}
        # Heads and thresholds are computed in float32, whatever the artifact gives.
        return {
            name: array.astype(np.float32) if array.dtype == np.float16 else array
            for name, array in chosen.items()
        }

    def _fed(self, pixels: Array) -> Array:
        """uint8 (N, H, W, C) -> what the artifact takes."""
        layout = self._contract.layout
        if self._contract.dtype != "uint8":
            pixels = pixels.astype(np.float32) / np.float32(self._contract.scale)
            pixels = ((pixels - self._mean) / self._std).astype(self._contract.dtype)
        if layout.endswith("chw"):
            pixels = pixels.transpose(0, 3, 1, 2)
        if "n" not in layout:
            if len(pixels) > 1:
                raise ValueError(f"layout {layout} is of one picture, and here are {len(pixels)}")
            pixels = pixels[0]
        return np.ascontiguousarray(pixels)


def meaning_of(outputs: Mapping[str, Any], meanings: tuple[Meaning, ...]) -> Meaning:
    """The task's meaning that a spec's ``outputs`` names; raises LoadError."""
    if not outputs and len(meanings) == 1:
        return meanings[0]
    for meaning in meanings:
        if set(meaning.names) <= outputs.keys() <= {*meaning.names, *meaning.settings}:
            return meaning
    forms = [
        ", ".join(each.names) + (f" (and {', '.join(each.settings)})" if each.settings else "")
        for each in meanings
    ]
    came = ", ".join(outputs) or "nothing"
    raise LoadError(
        f"outputs says {came}: accepted for this task are {' or '.join(forms) or 'no artifacts'}"
    )


def flatten(outputs: Any) -> dict[str, Array]:
    """A torch module's outputs by name: those of dictionaries by key, others by position.

    What lies deeper has its path, such as "1.0" in ``(main, [aux])``, but for the positions in
    front of a key: only where a name would be of two outputs, they are told as well. A list of one
    dictionary per picture, as torchvision's detectors give (scripted ones beside their losses),
    becomes one array per key, padded with zeros to the longest.
    """
    found = [(path, as_arrays(tensor)[0]) for path, tensor in _tensors(outputs, ())]
    names = [_joined(_from_key(path)) for path, _ in found]
    return {
        _joined(path) if names.count(name) > 1 else name: array
        for name, (path, array) in zip(names, found, strict=True)
    }


# To an output: keys of dictionaries, and positions.
_Path = tuple[str | int, ...]


def _tensors(outputs: Any, path: _Path) -> Iterator[tuple[_Path, Tensor]]:
    from torch import Tensor, nn

    if isinstance(outputs, Tensor):
        yield path, outputs
        return
    # What is given in training alone, as the auxiliary logits of torchvision's Inception.
    if outputs is None:
        return
    if not isinstance(outputs, (dict, list, tuple)):
        kind, place = type(outputs).__name__, _joined(path) if path else "its own"
        raise ValueError(f"output {place} is a {kind}: export it with tensors alone")
    if _are_pictures(outputs):
        pad = nn.utils.rnn.pad_sequence
        outputs = {key: pad([each[key] for each in outputs], True) for key in outputs[0]}
    if isinstance(outputs, dict):
        outputs = {str(key): value for key, value in outputs.items()}.items()
    else:
        outputs = enumerate(outputs)
    for step, each in outputs:
        yield from _tensors(each, (*path, step))


def _are_pictures(outputs: Any) -> bool:
    """Whether this is a list of dictionaries that have the same keys."""
    return (
        isinstance(outputs, list)
        and bool(outputs)
        and all(isinstance(each, dict) and each.keys() == outputs[0].keys() for each in outputs)
    )


def _joined(path: _Path) -> str:
    return ".".join(map(str, path)) or "0"


def _from_key(path: _Path) -> _Path:
    """The path from its first key on, or all of one that has none."""
    first = next((at for at, step in enumerate(path) if isinstance(step, str)), 0)
    return path[first:]


def _float32(values: tuple[float, ...]) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def _pick(outputs: Mapping[str, Array], name: str, wanted: str | None) -> Array:
    if wanted is not None and wanted in outputs:
        return outputs[wanted]
    if wanted is None and name in outputs:
        return outputs[name]
    if wanted is None and len(outputs) == 1:
        return next(iter(outputs.values()))
    listing = ", ".join(f"{key} {array.shape}" for key, array in outputs.items())
    raise ValueError(f"no output {wanted or name!r} for {name}: the artifact gives {listing}")


def through(decode: Callable[[], nn.Module], axes: str) -> Callable[[Arrays, Given], Arrays]:
    """Reads what the task's own head, which ``decode`` makes, takes: one output with the named axes
    ("N, classes")."""
    # Made when it is first needed, which is at load, by the golden requests.
    head = cache(decode)

    def read(arrays: Arrays, given: Given) -> Arrays:
        (array,) = arrays
        if array.ndim != len(axes.split(",")) or array.shape[0] != given.count:
            raise ValueError(f"the output is {array.shape}, logits are ({axes})")
        _check_classes(array, given)
        import torch

        with torch.inference_mode():
            return as_arrays(head()(torch.from_numpy(array)))

    return read


def probabilities(arrays: Arrays, given: Given) -> Arrays:
    """Scores (N, classes) that sum to 1 already."""
    (scores,) = arrays
    if scores.ndim != 2 or scores.shape[0] != given.count:
        raise ValueError(f"the output is {scores.shape}, probabilities are (N, classes)")
    if not sums_to_one(scores, within=1e-2):
        raise ValueError("the output is not from 0 to 1 with a sum of 1: say logits")
    _check_classes(scores, given)
    return (scores.astype(np.float32),)


def sums_to_one(scores: Array, within: float) -> bool:
    """Whether scores (N, classes, ...) are from 0 to 1 with a sum of 1, as softmax gives them."""
    far = np.abs(scores.astype(np.float64).sum(axis=1) - 1).max()
    return bool(scores.min() >= -within and far <= within)


def _check_classes(array: Array, given: Given) -> None:
    if not 1 < array.shape[1] == given.labels:
        raise ValueError(
            f"the output has {array.shape[1]} classes and there are {given.labels} labels: "
            "give one label for each of at least two classes, in their order"
        )


def class_ids(arrays: Arrays, given: Given) -> Arrays:
    """Class ids (N, H, W), all of full confidence, for that is what they leave unsaid."""
    plane = arrays[0][:, 0] if arrays[0].ndim == 4 and arrays[0].shape[1] == 1 else arrays[0]
    if plane.ndim != 3 or plane.shape[0] != given.count:
        raise ValueError(f"the output is {arrays[0].shape}, ids are (N, H, W) or (N, 1, H, W)")
    if plane.min() < 0 or plane.max() >= given.labels or (plane != np.rint(plane)).any():
        raise ValueError(
            f"the output goes from {plane.min()} to {plane.max()}, ids of {given.labels} labels "
            f"are whole from 0 to {given.labels - 1}: say logits, or give all labels"
        )
    return plane.astype(np.uint8), np.full(plane.shape, 255, np.uint8)


def detections(arrays: Arrays, given: Given) -> Arrays:
    """Boxes (N, K, 4) xyxy, scores (N, K) and labels (N, K), in whatever order they are named.

    Without the batch axis for a single picture. Settings: ``normalised`` says that boxes are from
    0 to 1 of the input, ``label_offset`` is added to each label.
    """
    if arrays[0].ndim == 2 and given.count == 1:
        arrays = tuple(array[None] for array in arrays)
    boxes, scores, classes = arrays
    shape = boxes.shape[:2]
    if boxes.shape != (given.count, *shape[1:], 4) or not scores.shape == classes.shape == shape:
        raise ValueError(
            f"boxes are {boxes.shape}, scores {scores.shape}, labels {classes.shape}; wanted are "
            "(N, K, 4), (N, K), (N, K)"
        )
    boxes = boxes.astype(np.float32)
    if given.settings["normalised"]:
        height, width = given.size
        boxes = boxes * _float32((width, height, width, height))
    found = classes.astype(np.int32) + given.settings["label_offset"]
    # What is not a detection may have any label.
    _check_ids(found[scores > 0], given.labels)
    return boxes, scores.astype(np.float32), found


def _check_ids(found: NDArray[np.int32], labels: int) -> None:
    if found.size and (found.min() < 0 or found.max() >= labels):
        raise ValueError(
            f"labels go from {found.min()} to {found.max()}, there are {labels}, counted from 0: "
            "say label_offset, or give all labels"
        )
