"""What an artifact must pass: it answers like eager, before and after it is rewritten."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from handlers import inner, plugins, split
from handlers.bundle import Bundle
from handlers.errors import AccuracyError, ParityError, SpecError
from handlers.runtimes import Array
from handlers.servable import SOURCE, Servable
from handlers.task import TaskHandler
from marsmith import accuracy, parity, quantise, samples
from marsmith.accuracy import Accuracy, Evaluation
from marsmith.exporting import Artifact, artifact
from marsmith.parity import Report
from marsmith.spec import ModelSpec
from marsmith.spec_parts import ParitySpec

Tell = Callable[[str], None]
# How many of the worst layers an error names.
_NAMED = 5


@dataclass(frozen=True)
class Proven:
    """A handler with the artifact, how far its answers are from eager's, its accuracy, the sha256
    of each picture that it was calibrated with, in few bits the same runtime's parity in fp32, and
    parity as it was exported where the runtime rewrote that.
    """

    artifact: TaskHandler
    parity: Report
    accuracy: Accuracy | None
    calibrated: Sequence[str] = ()
    exact: Report | None = None
    exported: Report | None = None

    def beside_parity(self) -> dict[str, Any]:
        """The other reports as JSON values, None for those that there are not."""
        more = {"exported": self.exported, "fp32": self.exact, "accuracy": self.accuracy}
        return {name: each and each.to_json() for name, each in more.items()}

    def to_json(self) -> dict[str, Any]:
        """The report for the archive."""
        found = {name: each for name, each in self.beside_parity().items() if each is not None}
        return {"device": self.artifact.place, **self.parity.to_json(), **found}


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

    def parity_of_exact(self, artifact: TaskHandler) -> Report:
        """What the artifact in few bits is made of, by the limits of fp32; raises ParityError."""
        limits = _limits(ParitySpec(fp32=self._spec.parity.fp32), "fp32")
        try:
            return parity.check(self._parity, artifact)
        except ParityError as error:
            raise ParityError(
                f"in fp32, before {self._spec.precision} is made of it: {error}{limits}"
            ) from error

    def parity(self, artifact: TaskHandler) -> Report:
        """How close the artifact's answers are; raises ParityError."""
        try:
            return parity.check(self._parity, artifact)
        except ParityError as error:
            limits = _limits(self._spec.parity, self._spec.precision)
            raise ParityError(f"{error}{limits}") from error

    def measured(self, proof: Proven) -> Proven:
        """With its accuracy, where the spec has pictures for that; raises AccuracyError."""
        proof = replace(proof, calibrated=self._taken)
        if self._spec.accuracy is None:
            return proof
        allowed = self._spec.accuracy.drop
        found = accuracy.compare(
            self._reference, self._expected, proof.artifact, self._evaluation, allowed
        )
        if not found.passed:
            raise AccuracyError(f"the artifact loses too much: {found}")
        return replace(proof, accuracy=found)


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
        # Where the layers are that the runtime gets.
        self.part = split.TRUNK if halved else inner.NETWORK
        self._exact: Path | None = None
        self._before: Report | None = None

    def written(self, bundle: Bundle, kept: Sequence[str]) -> Artifact:
        """An artifact as it was exported; raises ExportError, or ParityError of that in fp32."""
        if bundle.precision != "fp32" and self._exact is None:
            exact = replace(bundle, precision="fp32", closeness=self._gate.exact)
            if (self._folder / SOURCE).is_dir():
                shutil.copytree(self._folder / SOURCE, self._other / SOURCE)
            made = self._written(exact, self._other)
            _, self._before, _ = self._finished(made, self._gate.parity_of_exact)
            self._exact = self._other / bundle.artifact
        return self._written(bundle, self._folder, kept)

    def proven(self, made: Artifact) -> Proven:
        """Finish it; raises ParityError or AccuracyError."""
        handler, report, exported = self._finished(made, self._gate.parity)
        return self._gate.measured(Proven(handler, report, None, (), self._before, exported))

    def _written(self, bundle: Bundle, folder: Path, kept: Sequence[str] = ()) -> Artifact:
        words = f", {len(kept)} layers fp32" if kept else ""
        self._tell(f"export {bundle.runtime} {bundle.precision}{words}")
        few = bundle.precision != "fp32"
        made = artifact(
            bundle,
            self._module,
            self._example,
            folder,
            self._gate.calibration if few else (),
            quantise.within(self._module, kept),
            self._exact if few else None,
            self._halved,
        )
        made.write()
        return made

    def _finished(
        self, made: Artifact, check: Callable[[TaskHandler], Report]
    ) -> tuple[TaskHandler, Report, Report | None]:
        """A handler with the finished artifact, its parity, and that before it was rewritten."""
        self._tell("parity")
        handler = made.bound()
        found = check(handler)
        if not made.finish():
            return handler, found, None
        handler = made.bound()
        try:
            return handler, check(handler), found
        except ParityError as error:
            raise ParityError(
                f"right as it was exported, and wrong since runtime {made.bundle.runtime} has "
                f"rewritten it: {error}"
            ) from error


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
    twice as many at every attempt until the gate passes, half of all at the last.
    """
    wanted = spec.calibration.keep_fp32 if spec.calibration and gate.calibration else 0
    ranked: list[tuple[str, float]] = []
    count = 0 if wanted == "auto" else wanted
    while True:
        if count and not ranked:
            ranked = quantise.rank(module, gate.calibration, exports.part)
        if count > len(ranked):
            raise SpecError(
                f"calibration.keep_fp32: {count} layers in fp32, of the {len(ranked)} that int8 "
                "could compute: say fewer, or auto"
            )
        kept = [name for name, _ in ranked[:count]]
        made = exports.written(_recorded(bundle, gate.recorded, kept), kept)
        try:
            return exports.proven(made)
        except (ParityError, AccuracyError) as error:
            if spec.precision != "int8":
                raise
            ranked = ranked or quantise.rank(module, gate.calibration, exports.part)
            more = min(max(1, 2 * count), len(ranked) // 2)
            if wanted != "auto" or more == count:
                raise type(error)(f"{error}; {_advice(ranked, count, wanted)}") from error
            count = more


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
