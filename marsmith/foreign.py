"""Pack an artifact that somebody else exported: there is no eager model to compare it with."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from handlers import plugins
from handlers.bundle import Bundle
from handlers.errors import ExportError, ParityError, RequestError, SpecError, WeightsError
from handlers.integrity import sha256
from handlers.runtimes import Arrays
from handlers.task import TaskHandler
from marsmith import parity
from marsmith.spec import ModelSpec


@dataclass(frozen=True)
class Report(parity.Report):
    """What a parity report can say without a reference."""

    reference: str = (
        "none: the artifact was exported elsewhere; its own answers to single pictures were "
        "compared with those in batches and of a second run"
    )


def copy(spec: ModelSpec, root: Path, folder: Path) -> Path:
    """Copy a spec's artifact, its sha256 checked, into ``folder``; the file it was copied from."""
    if spec.artifact is None:
        raise SpecError("artifact: Field required")
    file = root / spec.artifact.file
    if not file.is_file():
        raise WeightsError(f"no artifact at {spec.artifact.file}: put the exported file there")
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
    """
    handler = plugins.load_task(bundle.task)()
    handler.bind(bundle, folder)
    pixels = handler.preprocess(image)
    _run(handler, [pixels])
    if bundle.artifact_batch > 1:
        try:
            outputs = handler.model(np.stack([pixels] * 2))
            single = any(len(output) != 2 for output in outputs)
        # Each runtime refuses a batch that it does not take with errors of its own.
        except Exception:  # noqa: BLE001
            single = True
        if single:
            note = "the artifact takes one picture per call: export it with a batch that may vary"
            provenance = {**bundle.provenance, "notes": [note]}
            handler.bundle = replace(bundle, artifact_batch=1, provenance=provenance)
    return handler


def check(artifact: TaskHandler, images: list[Image.Image]) -> Report:
    """Compare an artifact with itself, alone and in batches; raises ParityError."""
    tolerance = artifact.bundle.closeness.outputs
    most = artifact.bundle.artifact_batch
    sizes = sorted({1, min(2, most), most})
    arrays = [artifact.preprocess(image) for image in images]
    alone = [_run(artifact, [array]) for array in arrays]
    worst = 0.0
    for size in sizes:
        for start in range(0, len(arrays), size):
            # Repeated from the front, so that the last batch is full, too.
            indices = [(start + i) % len(arrays) for i in range(size)]
            indices = [i for i in indices if arrays[i].shape == arrays[start].shape]
            outputs = _run(artifact, [arrays[i] for i in indices])
            for row, index in enumerate(indices):
                got = tuple(output[row] for output in outputs)
                expected = tuple(output[0] for output in alone[index])
                if artifact.continuous:
                    worst = max(worst, _furthest(expected, got, tolerance, index, size))
    score, spread = _answers(artifact, images, tolerance)
    return Report(len(images), sizes, tolerance, worst, score, spread)


def _run(handler: TaskHandler, arrays: list[np.ndarray]) -> Arrays:
    """Outputs of one batch, as many and as finite as they must be."""
    pixels = np.stack(arrays)
    try:
        outputs = handler.model(pixels)
    # An artifact that does not take what the spec says, or gives something else, fails in any way.
    except Exception as error:
        line = " ".join(str(error).split())[-400:]
        raise ExportError(
            f"the artifact does not fit input and outputs of the spec, for {len(pixels)} pictures "
            f"of {pixels.shape[2]}x{pixels.shape[1]} pixels: {line}"
        ) from error
    if not all(np.isfinite(output).all() for output in outputs):
        raise ParityError("the artifact's outputs are not finite: look at its file, mean and std")
    return outputs


def _furthest(expected: Arrays, got: Arrays, tolerance: float, index: int, size: int) -> float:
    """Largest difference of one picture's outputs in a batch from those alone."""
    pairs = zip(expected, got, strict=True)
    worst = max(float(np.abs(ours.astype(np.float64) - theirs).max()) for ours, theirs in pairs)
    if not worst <= tolerance:
        raise ParityError(
            f"sample {index} in a batch of {size} differs from alone by {worst:.3g} "
            f"(> {tolerance:g}): was the artifact exported in training mode, or for one picture "
            "(then say serving.batch_size 1)?"
        )
    return worst


def _answers(
    artifact: TaskHandler, images: list[Image.Image], tolerance: float
) -> tuple[float, float]:
    """Largest move of a score between answers alone and in batches, and how far pictures differ."""
    options = artifact.widest()
    try:
        alone = [artifact.answer([image], **options)[0] for image in images]
        batch = artifact.answer(images, **options)
    except RequestError as error:
        raise ParityError(f"a sample is not answered: {error}") from error
    worst = 0.0
    for index, (expected, got) in enumerate(zip(alone, batch, strict=True)):
        difference = artifact.compare(expected, got, **options)
        decided = artifact.margin(expected, **options) > 2 * tolerance
        if (decided and not difference.same) or not difference.score <= tolerance:
            raise ParityError(
                f"sample {index} is answered otherwise in a batch than alone: {difference.detail}, "
                f"scores differ by {difference.score:.3g} (> {tolerance:g})"
            )
        worst = max(worst, difference.score)
    others = [artifact.compare(alone[0], other, **options) for other in alone[1:]]
    spread = max((each.score if each.same else 1.0 for each in others), default=0.0)
    if spread <= tolerance:
        raise ParityError(
            f"the artifact's answers to {len(images)} samples differ by no more than {spread:.3g}: "
            "are mean, std, scale and color those it was made for? Give pictures of this model's "
            "kind with --samples"
        )
    return worst, spread
