"""The contract of a runtime: one file in this folder, found by its name.

A runtime loads an artifact and runs it. One that can also make the artifact has the methods of
``Exporting``; without them it only serves artifacts that others exported.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from handlers.errors import ExportError, RuntimeUnavailable

if TYPE_CHECKING:
    from torch import nn

Array = NDArray[Any]
Arrays = tuple[Array, ...]


class Exporting:
    """What a runtime has as well that makes artifacts."""

    @staticmethod
    def export(request: ExportRequest) -> None:
        """Write ``request.path``; raises ExportError for a module that the runtime cannot take."""

    @staticmethod
    def finish(request: ExportRequest) -> None:
        """Change of ``request.path`` what an exporter has left in it (names, traces of the
        machine), where that is needed: a build proves the artifact before and after it."""


class Runtime(ABC):
    """An artifact ready to answer.

    ``suffix`` is the artifact's file name ending, ``requires`` the packages to install beside the
    base requirements (``export_requires`` those that only a build needs, ``int8_requires`` those
    that only a build for int8 needs), ``devices`` the kinds of device that it runs on,
    ``precisions`` what it can compute in, ``static_precisions`` those of them in which no shape may
    depend on data (of a module with such shapes the runtime is given the part without, and the
    other runs in the handler), ``options`` the keys a spec's ``runtime_options`` may have with
    their defaults, ``load_choices`` values of those that the artifact does not depend on, so that
    ``marsmith tune`` can try them.
    ``needs_source`` says whether a worker builds the network from its source, which no artifact of
    others has.
    ``streams`` is how many calls, from as many threads, it computes at once. ``needs_torch`` says
    whether PyTorch computes anything of a call; the workers of a runtime that says no do not import
    it, unless something else of theirs does.

    ``varies`` are the axes of the input that may differ from call to call: without "batch" a call
    has one picture, without "height" and "width" a model's input has a fixed size.
    ``excluded_tasks`` are tasks whose models ``export`` cannot take, by name, with the reason.
    ``reproducible`` says when ``export`` of the same request gives the same bytes, on hosts of one
    kind: always, where each is the first of its process ("by-process"), or never.
    """

    required: ClassVar[tuple[str, ...]] = ("suffix",)
    optional: ClassVar[tuple[type, ...]] = (Exporting,)
    suffix: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()
    export_requires: ClassVar[tuple[str, ...]] = ()
    int8_requires: ClassVar[tuple[str, ...]] = ()
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    static_precisions: ClassVar[tuple[str, ...]] = ()
    needs_torch: ClassVar[bool] = True
    needs_source: ClassVar[bool] = False
    varies: ClassVar[tuple[str, ...]] = ("batch", "height", "width")
    excluded_tasks: ClassVar[Mapping[str, str]] = {}
    reproducible: ClassVar[Literal["always", "by-process", "never"]] = "always"
    options: ClassVar[Mapping[str, Any]] = {}
    load_choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    # For the error of one that shows no layers: which runtime shows those of the same graph.
    shown_by: ClassVar[str] = "onnx"
    streams: int = 1

    @abstractmethod
    def __init__(self, path: Path, device: str, options: Mapping[str, Any]) -> None:
        """Load the artifact at ``path`` onto ``device`` ("cpu" or "cuda:0"), one of ``devices``.

        ``options`` holds ``threads`` (native threads of this worker, at least 1), ``batch`` (the
        most pictures of a call), ``precision`` (one of ``precisions``) and the keys of the class's
        own ``options``. Raises RuntimeUnavailable or another LoadError.
        """

    @classmethod
    def traces(cls, options: Mapping[str, Any]) -> bool:
        """Whether export follows one example, so that a Python loop keeps its number of rounds."""
        return False

    @abstractmethod
    def __call__(self, *arrays: Array) -> Arrays:
        """Outputs for one batch of uint8 pictures (N, H, W, C); each output's axis 0 is N."""

    def named(self, images: Array) -> dict[str, Array]:
        """Outputs by name for one batch as an artifact of others takes it (``handlers.foreign``).

        The names are the artifact's own; positions ("0", "1") where it has none.
        """
        return {str(index): output for index, output in enumerate(self(images))}

    def layers(self, images: Array) -> dict[str, Array]:
        """What each module inside gives for one batch, in the order of computing.

        Keys are qualified names of the eager module's submodules, ``#1`` behind at a second call;
        see ``handlers.layer_names``. Only submodules that give one tensor, and that the artifact
        still computes, are there. Raises RuntimeUnavailable where the runtime shows nothing of its
        inside.
        """
        raise RuntimeUnavailable(
            f"a {self.suffix} artifact of {type(self).__name__} shows no layers: bisect between "
            f"eager and a runtime that does, such as {self.shown_by}"
        )

    @classmethod
    def holds(cls, path: Path) -> bool:
        """Whether a file with this runtime's suffix is of its kind, where other runtimes have the
        same suffix; it is not loaded."""
        return True

    @classmethod
    def parts(cls, path: Path) -> dict[str, Path]:
        """Files that an artifact of others at ``path`` needs beside it, by the names they need
        there once the artifact itself is named model and its suffix."""
        return {}


@dataclass(frozen=True)
class ExportRequest:
    """What a runtime's ``export`` is asked to write.

    ``module`` in evaluation mode on the CPU, ``example`` its input (uint8, batch of 2 or more),
    ``dynamic`` the input axes that vary at serving time with their (name, minimum, maximum),
    ``path`` where the artifact goes, ``options`` the runtime's options. ``loops`` tells that the
    module goes through the pictures of a batch one by one and that its shapes depend on data.

    ``precision`` is one of the runtime's. For int8 ``calibration`` holds batches of pixels as
    ``example`` is one, from whose activations the ranges come, and ``float_layers`` the names of
    the submodules of ``module`` (``network.network.features.0.0``) that stay in floating point, as
    do the normalisation in front of the network and ``decode`` behind it.

    ``exact`` is None in fp32; else it is where this runtime's own ``export`` of the same module in
    fp32 lies, which parity has proven. An export that makes its artifact of that one may start from
    it, and must leave it as it is.
    """

    module: nn.Module
    example: Array
    dynamic: dict[int, tuple[str, int, int]]
    path: Path
    precision: str = "fp32"
    loops: bool = False
    calibration: Sequence[Array] = ()
    float_layers: frozenset[str] = frozenset()
    exact: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def basis(self) -> Path:
        """``exact``, for an export that starts from it; raises ExportError where there is none."""
        if self.exact is None:
            raise ExportError(f"{self.precision} is made of an artifact in fp32, which is missing")
        return self.exact


def check_requirements(runtime: type[Runtime], name: str, export: str | None = None) -> None:
    """Raise RuntimeUnavailable naming what is to be installed to serve, or to ``export`` in that
    precision."""
    packages = [*runtime.requires, *(runtime.export_requires if export else ())]
    packages += runtime.int8_requires if export == "int8" else ()
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise RuntimeUnavailable(
            f"runtime {name} needs the Python packages {', '.join(missing)}: install them with "
            f"`make runtime-{name}` in marsmith's folder"
        )


def wrong_dtype(taken: object, given: object) -> ValueError:
    """Why pictures of dtype ``given`` are not for an artifact that takes ``taken``: for runtimes
    whose library would convert them, or read their bytes as others, without a word."""
    return ValueError(
        f"the artifact takes {taken} and was given {given}: write dtype: {taken} for its input "
        "(--dtype; accepted are float32, float16, and uint8, which goes without mean and std)"
    )


def wrong_shape(taken: Sequence[int | str], given: tuple[int, ...]) -> ValueError:
    """Why pictures of shape ``given`` are not for an artifact of others whose input is ``taken``,
    in which an axis that varies is a name: in the place of the library's own words."""
    words = f"the artifact takes ({', '.join(map(str, taken))}) and was given {given}"
    wanted, layout = _layout(taken), _layout(given)
    if wanted is None or layout is None:
        return ValueError(
            f"{words}: export it for pictures of 1 or 3 channels, as nchw, nhwc, chw or hwc "
            "(--layout)"
        )
    ours = dict(zip(layout, given, strict=True))
    theirs = dict(zip(wanted, taken, strict=True))
    options = [] if wanted == layout else [f"--layout {wanted}"]
    if theirs["c"] != ours["c"]:
        options.append(f"--color {'gray' if theirs['c'] == 1 else 'rgb'}")
    size = [theirs[side] if isinstance(theirs[side], int) else ours[side] for side in "hw"]
    if size != [ours["h"], ours["w"]]:
        options.append(f"--resize {size[0]},{size[1]}")
    if not options:
        return ValueError(f"{words}: export it for one picture, or with a batch that may vary")
    return ValueError(f"{words}: give {' '.join(options)}, or the same keys of its input")


def fits(taken: Sequence[int | str], given: tuple[int, ...]) -> bool:
    """Whether an input of shape ``taken``, in which an axis that varies is a name, takes that."""
    return len(taken) == len(given) and all(
        not isinstance(theirs, int) or theirs == ours
        for theirs, ours in zip(taken, given, strict=True)
    )


def _layout(shape: Sequence[int | str]) -> str | None:
    """Which axis is which, by where the 1 or 3 channels are; None where they are nowhere."""
    for layout in ("nchw", "nhwc", "chw", "hwc"):
        if len(shape) == len(layout) and shape[layout.index("c")] in (1, 3):
            return layout
    return None


def as_arrays(outputs: Any) -> Arrays:
    """Torch outputs (a tensor, a list or a tuple) as a tuple of numpy arrays."""
    if not isinstance(outputs, (tuple, list)):
        outputs = (outputs,)
    return tuple(np.asarray(output.detach().cpu().numpy()) for output in outputs)
