"""Pack an artifact that somebody else exported: there is no eager model to compare it with."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from handlers import plugins
from handlers.bundle import Bundle
from handlers.errors import (
    ExportError,
    ParityError,
    RequestError,
    SpecError,
    WeightsError,
    one_line,
)
from handlers.foreign import Foreign, sums_to_one
from handlers.integrity import sha256
from handlers.runtimes import Arrays
from handlers.task import TaskHandler
from marsmith import accuracy, parity
from marsmith.accuracy import Accuracy, Evaluation
from marsmith.spec import ModelSpec, whole


@dataclass(frozen=True)
class Report(parity.Report):
    """What a parity report can say without a reference."""

    reference: str = (
        "none: the artifact was exported elsewhere; its own answers to single pictures were "
        "compared with those in batches and of a second run"
    )

    def words(self, reference: str) -> str:
        """The report on one line; there is no ``reference``."""
        found = f"{self.pictures} pictures alone and in batches of {self.batch_sizes}"
        return f"answers {found} alike: {self.within()}"


def take(spec: ModelSpec, root: Path, folder: Path) -> Path:
    """Copy a spec's artifact, its sha256 checked, into ``folder``; the file it was copied from."""
    if spec.artifact is None:
        raise SpecError("artifact: Field required")
    file = root / spec.artifact.file
    if not file.is_file():
        place = whole(spec.artifact.file, root)
        raise WeightsError(f"no artifact at {place}: put the exported file there")
    digest = sha256(file)
    if spec.artifact.sha256 not in (None, digest):
        raise WeightsError(
            f"{spec.artifact.file} has sha256 {digest}, the spec says {spec.artifact.sha256}: get "
            "the right file, or correct the spec if the artifact was meant to change"
        )
    runtime = plugins.load_runtime(spec.runtime)
    for name, part in {f"model{runtime.suffix}": file, **runtime.parts(file)}.items():
        if not part.is_file():
            raise WeightsError(f"{file.name} needs {part.name} beside it, which is not there")
        shutil.copy(part, folder / name)
    return file


def bind(bundle: Bundle, folder: Path, image: Image.Image) -> TaskHandler:
    """A handler with the artifact, which found out how many pictures it takes per call.

    An artifact that was exported for one picture fails with two, or gives one answer for both.
    Raises ExportError for one that was exported for several and for no fewer.
    """
    handler = plugins.load_task(bundle.task)()
    handler.bind(bundle, folder)
    pixels = handler.preprocess(image)
    most = bundle.artifact_batch
    try:
        _run(handler, [pixels])
    except ExportError as error:
        if most > 1 and _takes(handler, pixels, most):
            raise ExportError(
                f"the artifact takes {most} pictures and not one, as it was exported for exactly "
                f"{most}: export it with a batch that may vary, or for one"
            ) from error
        raise
    if most > 1 and not _takes(handler, pixels, 2):
        note = "the artifact takes one picture per call: export it with a batch that may vary"
        provenance = {**bundle.provenance, "notes": [note]}
        handler.bundle = replace(bundle, artifact_batch=1, provenance=provenance)
    return handler


def alone(artifact: TaskHandler) -> TaskHandler:
    """A handler with the same artifact that gives it one picture per call."""
    single = copy.copy(artifact)
    single.bundle = replace(artifact.bundle, artifact_batch=1)
    return single


def measured(spec: ModelSpec, root: Path, artifact: TaskHandler) -> Accuracy | None:
    """The metric of an artifact, where its spec names labelled pictures; raises SpecError."""
    if spec.accuracy is None:
        return None
    return accuracy.alone(artifact, Evaluation.of(spec.accuracy, root, artifact))


def check(artifact: TaskHandler, images: list[Image.Image]) -> Report:
    """Compare an artifact with itself, alone and in batches; raises ParityError, or SpecError for
    probabilities that are said to be logits."""
    for image in images:
        _run(artifact, [artifact.preprocess(image)])
    _check_logits(artifact, np.stack([artifact.preprocess(images[0])]))
    try:
        expected = parity.Expected.of(alone(artifact), images, "the artifact alone")
        return Report(**vars(parity.check(expected, artifact)))
    except ParityError as error:
        if isinstance(error.__cause__, RequestError):
            # The answer that there is not says itself why.
            raise
        raise ParityError(
            f"{error}. Was the artifact exported in training mode, or for one picture (then say "
            "serving.batch_size 1)? Are mean, std, scale and color those it was made for?"
        ) from error


def _check_logits(handler: TaskHandler, pixels: np.ndarray) -> None:
    """Softmax of what has gone through softmax has the same order, and other scores."""
    model = handler.model
    logits = model.outputs(pixels).get("logits") if isinstance(model, Foreign) else None
    if logits is None or not sums_to_one(logits, within=1e-3):
        return
    raise SpecError(
        "outputs: what is said to be logits is from 0 to 1 with a sum of 1, and softmax would be "
        "applied to it once more: say probabilities, where the task takes them, or export it "
        "without its softmax"
    )


def _takes(handler: TaskHandler, pixels: np.ndarray, count: int) -> bool:
    """Whether one call answers ``count`` pictures, each of ``pixels`` (H, W, C)."""
    try:
        outputs = handler.model(np.stack([pixels] * count))
    # Each runtime refuses a batch that it does not take with errors of its own.
    except Exception:  # noqa: BLE001
        return False
    return all(len(output) == count for output in outputs)


def _run(handler: TaskHandler, arrays: list[np.ndarray]) -> Arrays:
    """Outputs of one batch, as many and as finite as they must be."""
    pixels = np.stack(arrays)
    try:
        outputs = handler.model(pixels)
    # An artifact that does not take what the spec says, or gives something else, fails in any way.
    except Exception as error:
        # Their reason stands behind what led there.
        line = one_line(error, None)[-400:]
        raise ExportError(
            f"the artifact does not fit input and outputs of the spec, for {len(pixels)} pictures "
            f"of {pixels.shape[2]}x{pixels.shape[1]} pixels: {line}"
        ) from error
    if not all(np.isfinite(output).all() for output in outputs):
        raise ParityError("the artifact's outputs are not finite: look at its file, mean and std")
    return outputs
