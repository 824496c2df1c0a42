"""A torchvision detector in two parts, for runtimes that take no shapes that depend on data.

Resize, backbone and feature pyramid have fixed shapes for a fixed input: ``Trunk`` is exported.
Proposals, heads, box decoding and NMS are torchvision's own code, which ``Rest`` runs eagerly in
the handler on the trunk's features. The build compares both together with the whole detector, and
the features with those of its backbone.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from handlers import saving
from handlers.bundle import DECODE_FILE
from handlers.errors import IntegrityError, PluginError, RuntimeUnavailable
from handlers.inputs import ImageInput
from handlers.runtimes import Array, Arrays, Runtime, as_arrays
from handlers.servable import SOURCE, Network, Servable, freeze_batch_norms

# What the layers that ``Trunk`` has are called in the whole ``Servable``, and in what is exported.
TRUNK, _EXPORTED = "network.network.network.backbone.", "network.backbone."


class Trunk(nn.Module):
    """Pixels (1, 3, H, W) from 0 to 1 -> feature maps, as the detector computes them itself."""

    def __init__(self, detector: nn.Module, height: int, width: int) -> None:
        super().__init__()
        if not hasattr(detector, "transform") or not hasattr(detector, "backbone"):
            raise PluginError(
                f"{type(detector).__name__} has no transform and backbone as torchvision's have: "
                "choose a runtime that takes shapes that depend on data, such as torchscript"
            )
        # The detector's own transform says the sizes; they are constants from here on.
        images, _ = _transform(detector)([torch.zeros(3, height, width)])
        self.size: list[int] = list(images.image_sizes[0])
        self.padded: list[int] = list(images.tensors.shape[-2:])
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(_transform(detector).image_mean).reshape(shape))
        self.register_buffer("std", torch.tensor(_transform(detector).image_std).reshape(shape))
        self.backbone = detector.get_submodule("backbone")

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        images = (pixels - self.get_buffer("mean")) / self.get_buffer("std")
        images = functional.interpolate(images, self.size, mode="bilinear", align_corners=False)
        spare = [self.padded[axis] - self.size[axis] for axis in (0, 1)]
        features = self.backbone(functional.pad(images, (0, spare[1], 0, spare[0])))
        return (features,) if isinstance(features, Tensor) else tuple(features.values())


class Rest(nn.Module):
    """Feature maps -> what ``decode`` gives for them; ``adapted`` is the task's ``Adapter``."""

    def __init__(self, adapted: nn.Module, decode: nn.Module, height: int, width: int) -> None:
        super().__init__()
        detector = adapted.network
        assert isinstance(detector, nn.Module)
        self._shape = (1, 3, height, width)
        images, _ = _transform(detector)([torch.zeros(self._shape[1:])])
        names = detector.get_submodule("backbone")(images.tensors)
        self._names = ["0"] if isinstance(names, Tensor) else list(names)
        detector.backbone = self._given = _Given()
        detector.transform = _Known(_transform(detector), images)
        self.adapted, self.decode = adapted, decode

    def forward(self, *features: Tensor) -> Any:
        self._given.features = OrderedDict(zip(self._names, features, strict=True))
        # Of the pixels only the shape is read from here on.
        return self.decode(self.adapted(features[0].new_zeros(1).expand(self._shape)))


def _transform(detector: nn.Module) -> Any:
    return detector.get_submodule("transform")


class _Given(nn.Module):
    """Stands for the backbone whose features are known already."""

    features: OrderedDict[str, Tensor]

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return self.features


class _Known(nn.Module):
    """Stands for a transform whose result, but for the pixels, is always the same."""

    def __init__(self, transform: Any, images: Any) -> None:
        super().__init__()
        self.postprocess = transform.postprocess
        self._images = images

    def forward(self, images: Any, targets: Any = None) -> Any:
        return self._images, targets


def halves(module: Servable, given: ImageInput) -> tuple[nn.Module, Rest]:
    """What to export of ``module`` and what to run in the handler, both copies.

    ``given`` has a fixed size. Raises PluginError for other detectors than torchvision's.
    """
    width, height = given.place((1, 1)).canvas
    adapted, decode = copy.deepcopy(module.network.network), copy.deepcopy(module.decode)
    recipe = module.recipe
    with torch.no_grad():
        trunk = Trunk(copy.deepcopy(module.bare()), height, width)
        rest = Rest(adapted, decode, height, width)
    return Network(trunk, recipe["mean"], recipe["std"]).eval(), rest.eval()


def in_trunk(name: str) -> str:
    """The name, in what is exported of a module, of its layer ``name`` below ``TRUNK``."""
    return _EXPORTED + name.removeprefix(TRUNK)


def in_whole(name: str) -> str:
    """What ``in_trunk`` undoes, for names of layers; any other name stays as it is."""
    return TRUNK + name.removeprefix(_EXPORTED) if name.startswith(_EXPORTED) else name


def save(rest: Rest, recipe: dict[str, Any], folder: Path) -> None:
    """Write what ``load`` needs beside the artifact; no weights of the trunk are in it."""
    saved = {"recipe": recipe, "state": rest.state_dict()}
    saving.write(lambda file: torch.save(saved, file), folder / DECODE_FILE)


def load(folder: Path, given: ImageInput, place: str) -> Rest:
    """The part that ``save`` wrote, on the torch device ``place``; raises IntegrityError."""
    saved = torch.load(folder / DECODE_FILE, map_location="cpu", weights_only=True)
    _, rest = halves(Servable.build(saved["recipe"], folder / SOURCE), given)
    freeze_batch_norms(rest, saved["state"])
    try:
        rest.load_state_dict(saved["state"])
    except RuntimeError as error:
        raise IntegrityError(f"{DECODE_FILE} does not fit its own recipe: {error}") from error
    return rest.to(place)


class Halves:
    """The exported trunk and the eager rest as one model: uint8 pictures -> the task's outputs.

    ``place`` is the torch device that the rest lies on.
    """

    def __init__(self, runtime: Runtime, rest: nn.Module, place: str) -> None:
        self._runtime, self._rest, self._place = runtime, rest, place

    def __call__(self, *arrays: Array) -> Arrays:
        features = [torch.from_numpy(array).to(self._place) for array in self.features(*arrays)]
        with torch.inference_mode():
            return as_arrays(self._rest(*features))

    def features(self, *arrays: Array) -> Arrays:
        """What the trunk gives for uint8 pictures: feature maps (1, C, H, W)."""
        return self._runtime(*arrays)

    def layers(self, images: Array) -> dict[str, Array]:
        """``Runtime.layers`` of the trunk, under the names that they have in the whole module.

        Raises RuntimeUnavailable where it shows none of the backbone's.
        """
        shown = self._runtime.layers(images)
        found = {in_whole(name): each for name, each in shown.items() if name.startswith(_EXPORTED)}
        if not found:
            raise RuntimeUnavailable(
                "the exported half of this detector shows no layers, for torch.export keeps no "
                "names of those that compute in bf16 or fp16: bisect between eager and this "
                "runtime in fp32, or torchscript in these bits"
            )
        return found
