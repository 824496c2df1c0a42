"""From the eager module to an artifact that is proven to answer like it."""

from __future__ import annotations

import copy
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from handlers import inner, plugins, split
from handlers.bundle import Bundle
from handlers.errors import AccuracyError, ExportError, ParityError, SpecError
from handlers.runtimes import Array, ExportRequest, check_requirements
from handlers.servable import SOURCE, Servable
from handlers.task import TaskHandler
from marsmith import accuracy, parity, quantise, samples
from marsmith.accuracy import Accuracy, Evaluation
from marsmith.parity import Report
from marsmith.spec import ModelSpec
from marsmith.spec_parts import ParitySpec

Tell = Callable[[str], None]
# How many of the worst layers an error names.
_NAMED = 5


@dataclass(frozen=True)
class Proven:
    """A handler with the artifact, how far its answers are from eager's, its accuracy, the sha256
    of each picture that it was calibrated with, and in few bits the same runtime's parity in fp32.
    """

    artifact: TaskHandler
    parity: Report
    accuracy: Accuracy | None
    calibrated: Sequence[str] = ()
    exact: Report | None = None

    def to_json(self) -> dict[str, Any]:
        """The report for the archive."""
        before = {} if self.exact is None else {"fp32": self.exact.to_json()}
        measured = {} if self.accuracy is None else {"accuracy": self.accuracy.to_json()}
        return {"device": self.artifact.place, **self.parity.to_json(), **before, **measured}


class _Gate:
    """What every attempt at one artifact must pass, with the pictures that it takes."""

    def __init__(
        self, spec: ModelSpec, root: Path, reference: TaskHandler, images: list[Image.Image]
    ) -> None:
        self._spec, self._reference = spec, reference
        self.exact = spec.parity.exact()
        # Before anything is exported: what is wrong with eager itself no attempt mends.
        self._parity = parity.Expected.of(reference, images)
        self.calibration: list[Array] = []
        self._taken: list[str] = []
        self.recorded: dict[str, Any] = {}
        if spec.precision == "int8" and spec.calibration is not None:
            files = quantise.calibration_files(spec.calibration, root)
            limit = reference.bundle.limits.max_pixels
            opened = (samples.opened(path, limit) for path in files)
            # Copies, for what Pillow made may not be written, of which torch warns.
            self.calibration = [np.stack([reference.preprocess(picture)]) for picture in opened]
            self._taken = quantise.digests(files)
            self.recorded = {"pictures": len(files), "data": quantise.digest(files)}
        if spec.accuracy is not None:
            self._evaluation = Evaluation.of(spec.accuracy, root, reference, without=self._taken)
            self._expected = self._evaluation.answers(reference)

    def check_exact(self, artifact: TaskHandler) -> Report:
        """What the artifact in few bits is made of, by the limits of fp32; raises ParityError."""
        task = copy.copy(self._reference)
        task.bundle = artifact.bundle
        limits = _limits(ParitySpec(fp32=self._spec.parity.fp32), "fp32")
        try:
            return parity.check(replace(self._parity, task=task), artifact)
        except ParityError as error:
            raise ParityError(
                f"in fp32, before {self._spec.precision} is made of it: {error}{limits}"
            ) from error

    def check(self, artifact: TaskHandler, exact: Report | None) -> Proven:
        """Raises ParityError or AccuracyError; ``exact`` is what ``check_exact`` found."""
        try:
            report = parity.check(self._parity, artifact)
        except ParityError as error:
            limits = _limits(self._spec.parity, self._spec.precision)
            raise ParityError(f"{error}{limits}") from error
        if self._spec.accuracy is None:
            return Proven(artifact, report, None, self._taken, exact)
        allowed = self._spec.accuracy.drop
        found = accuracy.compare(
            self._reference, self._expected, artifact, self._evaluation, allowed
        )
        if not found.passed:
            raise AccuracyError(f"the artifact loses too much: {found}")
        return Proven(artifact, report, found, self._taken, exact)


def _limits(said: ParitySpec, precision: str) -> str:
    """For an error of parity, which limits are the model file's own."""
    limits = said.own_limits(precision)
    return limits and f"; the model file itself says {limits}"


class _Exports:
    """Exports one module into ``folder``; in few bits first in fp32 into ``other``, where it is
    proven, and where exporters may start from it. What is in ``folder`` will be packed."""

    def __init__(
        self,
        gate: _Gate,
        module: Servable,
        example: Array,
        folder: Path,
        other: Path,
        halved: bool,
        tell: Tell,
    ) -> None:
        self._gate, self._module, self._example = gate, module, example
        self._folder, self._other, self._tell = folder, other, tell
        self._halved = halved
        self._exact: Path | None = None
        self.before: Report | None = None

    def artifact(self, bundle: Bundle, kept: Sequence[str]) -> TaskHandler:
        """A handler with the artifact; raises ExportError, or ParityError of that in fp32."""
        if bundle.precision != "fp32" and self._exact is None:
            exact = replace(bundle, precision="fp32", closeness=self._gate.exact)
            if (self._folder / SOURCE).is_dir():
                shutil.copytree(self._folder / SOURCE, self._other / SOURCE)
            self.before = self._gate.check_exact(self._made(exact, self._other))
            self._exact = self._other / bundle.artifact
        return self._made(bundle, self._folder, kept)

    def _made(self, bundle: Bundle, folder: Path, kept: Sequence[str] = ()) -> TaskHandler:
        words = f", {len(kept)} layers fp32" if kept else ""
        self._tell(f"export {bundle.runtime} {bundle.precision}{words}")
        few = bundle.precision != "fp32"
        export(
            bundle,
            self._module,
            self._example,
            folder / bundle.artifact,
            self._gate.calibration if few else (),
            frozenset(kept),
            self._exact if few else None,
            self._halved,
        )
        artifact = plugins.load_task(bundle.task)()
        artifact.bind(bundle, folder)
        self._tell("parity")
        return artifact


def proven(
    spec: ModelSpec,
    root: Path,
    folder: Path,
    module: Servable,
    reference: TaskHandler,
    images: list[Image.Image],
    tell: Tell,
) -> Proven:
    """Export ``module`` into ``folder``; raises ExportError, ParityError or AccuracyError.

    In few bits the same runtime's artifact in fp32 is proven first, by the limits of fp32: those of
    few bits are so wide that a wrong export could hide within them.
    """
    tell("reference")
    gate = _Gate(spec, root, reference, images)
    example = reference.preprocess(images[0])
    with tempfile.TemporaryDirectory(prefix="exact-", dir=folder.parent) as other:
        # As what is built wants it, so that the artifact in fp32 before it is of the same parts.
        halved = plugins.halved(spec.task, spec.runtime, spec.precision)
        exports = _Exports(gate, module, example, folder, Path(other), halved, tell)
        return _passing(spec, gate, exports, reference.bundle, module)


def _passing(
    spec: ModelSpec, gate: _Gate, exports: _Exports, bundle: Bundle, module: Servable
) -> Proven:
    """The first attempt that passes the gate.

    int8 leaves as many of its worst layers in floating point as the spec says, or, with "auto",
    twice as many at every attempt until the gate passes, up to half of all.
    """
    wanted = spec.calibration.keep_fp32 if spec.calibration and gate.calibration else 0
    halved = plugins.halved(spec.task, spec.runtime, spec.precision)
    part = split.TRUNK if halved else inner.NETWORK
    ranked: list[tuple[str, float]] = []
    count = 0 if wanted == "auto" else wanted
    while True:
        if count and not ranked:
            ranked = quantise.rank(module, gate.calibration, part)
        if count > len(ranked):
            raise SpecError(
                f"calibration.keep_fp32: {count} layers in fp32, of the {len(ranked)} that int8 "
                "could compute: say fewer, or auto"
            )
        kept = [name for name, _ in ranked[:count]]
        artifact = exports.artifact(_recorded(bundle, gate.recorded, kept), kept)
        try:
            return gate.check(artifact, exports.before)
        except (ParityError, AccuracyError) as error:
            if spec.precision != "int8":
                raise
            ranked = ranked or quantise.rank(module, gate.calibration, part)
            if wanted != "auto" or 2 * count > len(ranked) // 2:
                raise type(error)(f"{error}; {_advice(ranked, count, wanted)}") from error
            count = max(1, 2 * count)


def _recorded(bundle: Bundle, calibration: dict[str, Any], kept: list[str]) -> Bundle:
    """The bundle with what int8 was made with."""
    if not calibration:
        return bundle
    record = {**calibration, "float_layers": kept}
    return replace(bundle, provenance={**bundle.provenance, "calibration": record})


def _advice(ranked: list[tuple[str, float]], kept: int, wanted: int | str) -> str:
    worst = ", ".join(f"{name} ({_decibel(error):.0f} dB)" for name, error in ranked[:_NAMED])
    words = f"the layers with the least SQNR in int8 are {worst}"
    if wanted == "auto":
        return f"{words}; with {kept} of {len(ranked)} in fp32 it still fails"
    return f"{words}: leave more than {kept} of {len(ranked)} in fp32 with --keep-fp32 N or auto"


def _decibel(error: float) -> float:
    """The signal-to-quantisation-noise ratio of a share of noise."""
    return -10 * math.log10(error) if error > 0 else math.inf


def export(
    bundle: Bundle,
    module: Servable,
    example: Array,
    path: Path,
    calibration: Sequence[Array] = (),
    float_layers: frozenset[str] = frozenset(),
    exact: Path | None = None,
    halved: bool | None = None,
) -> None:
    """Write the artifact of ``module`` to ``path``; ``example`` is one picture's pixels.

    In few bits ``exact`` is where the same runtime's artifact in fp32 lies. ``halved`` tells
    whether only the part without shapes that depend on data is exported, by default as the runtime
    does it in the bundle's precision.
    """
    if halved is None:
        halved = plugins.halved(bundle.task, bundle.runtime, bundle.precision)
    runtime = plugins.load_runtime(bundle.runtime)
    check_requirements(runtime, bundle.runtime, export=True)
    write = getattr(runtime, "export", None)
    if write is None:
        raise ExportError(f"runtime {bundle.runtime} only serves artifacts that others exported")
    part: nn.Module = module
    if halved:
        part = _trunk(bundle, module, path.parent)
        float_layers = frozenset(map(split.in_trunk, float_layers))
    write(
        replace(
            request(bundle, part, example, path, halved),
            precision=bundle.precision,
            calibration=calibration,
            float_layers=float_layers,
            exact=exact,
        )
    )
    if not path.is_file():
        raise ExportError(f"runtime {bundle.runtime} did not write {path.name}")


def request(
    bundle: Bundle, module: nn.Module, example: Array, path: Path, halved: bool
) -> ExportRequest:
    """To write ``module``, which may be one that was ``halved``, in fp32 to ``path``; ``example``
    is one picture's pixels (H, W, C)."""
    return ExportRequest(
        module=module,
        # Two pictures: some exporters take an axis of length 1 for a constant.
        example=np.stack([example, example[:, ::-1]][: bundle.artifact_batch]),
        dynamic=_dynamic(bundle),
        path=path,
        loops=plugins.load_task(bundle.task).loops and not halved,
        options=bundle.runtime_options,
    )


def _trunk(bundle: Bundle, module: Servable, folder: Path) -> nn.Module:
    """The part of a module that has no shapes that depend on data; the other is saved beside it."""
    if not bundle.input.fixed:
        precisions = ", ".join(plugins.load_runtime(bundle.runtime).static_precisions)
        raise ExportError(
            f"runtime {bundle.runtime} takes no shapes that depend on data in {precisions}: give "
            "the input a fixed size, such as resize: [320, 320] with letterbox: 0"
        )
    network, rest = split.halves(module, bundle.input)
    split.save(rest, module.recipe, folder)
    return network


def _dynamic(bundle: Bundle) -> dict[int, tuple[str, int, int]]:
    """The axes of the input (N, H, W, C) that vary from call to call."""
    axes = {}
    if bundle.artifact_batch > 1:
        axes[0] = ("batch", 1, bundle.artifact_batch)
    if not bundle.input.fixed:
        axes |= {1: ("height", 1, 16384), 2: ("width", 1, 16384)}
    return axes
