"""One build: spec -> weights -> module -> export -> parity -> archive -> smoke -> store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from handlers import plugins
from handlers.bundle import Bundle
from handlers.errors import (
    ArchiveError,
    BadRequest,
    BuildError,
    MarsmithError,
    SpecError,
    WeightsError,
)
from handlers.foreign import sums_to_one
from handlers.integrity import sha256
from handlers.runtimes import check_requirements
from handlers.servable import Servable
from handlers.task import TaskHandler
from marsmith import (
    archive,
    foreign,
    goldens,
    preparing,
    proving,
    quantise,
    resolve,
    samples,
    sbom,
    smoke,
)
from marsmith.spec import ModelSpec
from marsmith.store import exclusive, publish, workspace

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """A finished build: where the archive is, its sha256, whether it was there already, and what
    was proven of its artifact."""

    path: Path
    sha256: str
    unchanged: bool
    proof: proving.Proven

    @property
    def notes(self) -> list[str]:
        """What to know of the archive."""
        notes: list[str] = self.proof.artifact.bundle.provenance.get("notes", [])
        return notes

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        bundle = self.proof.artifact.bundle
        return {
            "model": bundle.name,
            "version": bundle.version,
            "runtime": bundle.runtime,
            "precision": bundle.told_precision,
            "path": str(self.path),
            "bytes": self.path.stat().st_size,
            "sha256": self.sha256,
            "unchanged": self.unchanged,
            "parity": self.proof.parity.to_json(),
            **self.proof.beside_parity(),
            "notes": self.notes,
        }


def build(
    spec: ModelSpec, root: Path, store: Path, force: bool = False, tell: Tell = print
) -> Built:
    """Build ``spec``'s archive into ``store``; any failure leaves the store as it was.

    ``root`` is the project folder that the spec's paths are relative to. An archive of the same
    name and version with other bytes is replaced only with ``force``.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
        with workspace(store) as temporary:
            return _built(spec, root, store, temporary, force, tell)
    except OSError as error:
        if error.errno not in archive.NO_PLACE:
            raise
        place = Path(error.filename) if isinstance(error.filename, str) else store
        if not place.absolute().is_relative_to(store.absolute()):
            raise BuildError(
                f"{place}: {error.strerror}: make room or give rights there"
            ) from error
        raise BuildError(
            f"{store} does not take the archive ({error.strerror}): make room or give rights there,"
            " or name another folder with --store"
        ) from error


def _built(
    spec: ModelSpec, root: Path, store: Path, temporary: Path, force: bool, tell: Tell
) -> Built:
    """The build in a folder of its own, up to the archive's name in the store."""
    folder = temporary / "archive"
    folder.mkdir()
    with smoke.prepared(plugins.load_runtime(spec.runtime).needs_torch) as check:
        proof = _stage(spec, root, folder, tell)
        bundle = proof.artifact.bundle
        path = temporary / archive.file_name(spec.name, spec.version)
        tell("archive")
        archive.pack(folder, bundle, path)
        tell("smoke")
        check(path)
    digest = sha256(path)
    target = store / path.name
    with exclusive(store):
        unchanged = _check_target(target, digest, force, spec.runtime)
        publish(path, target)
    return Built(target, digest, unchanged, proof)


def _stage(spec: ModelSpec, root: Path, folder: Path, tell: Tell) -> proving.Proven:
    """Fill ``folder`` with everything that the archive holds, proven against eager."""
    _check_new(spec)
    tell("weights")
    any_size = spec.artifact is None and not resolve.image_input(spec).fixed
    files = samples.files(root / spec.samples, samples.SAMPLES)
    images = samples.compared(files, spec.serving.max_pixels, any_size)
    if spec.artifact is None:
        proof = _exported(spec, root, folder, images, tell)
    else:
        bundle = preparing.bundle_of(spec, root, [], artifact=foreign.take(spec, root, folder))
        artifact = foreign.bind(_with_defaults(bundle), folder, images[0])
        tell("parity")
        report = foreign.check(artifact, images)
        proof = proving.Proven(artifact, report, foreign.measured(spec, root, artifact))
    bundle = proof.artifact.bundle
    fresh = plugins.load_task(spec.task)()
    fresh.bind(bundle, folder)
    goldens.write(proof.artifact, fresh, images, folder)
    (folder / "parity.json").write_text(json.dumps(proof.to_json(), indent=1) + "\n", "utf-8")
    if proof.calibrated:
        quantise.write(proof.calibrated, folder)
    (folder / "model-config.yaml").write_text(spec.serving.model_config_yaml(), "utf-8")
    bundle.write(folder)
    sbom.write(bundle, folder)
    archive.stage_handlers(folder, fresh.needs_torch(bundle))
    # Python writes these where it imports the network's source.
    for cache in list(folder.rglob("__pycache__")):
        shutil.rmtree(cache)
    return proof


def _check_new(spec: ModelSpec) -> None:
    """Raise SpecError for what archives that are there already may have, and no new one."""
    if spec.name.startswith(archive.TOKEN):
        raise SpecError(
            f"name: TorchServe takes a model whose name begins with {archive.TOKEN!r} for its "
            "token API: name it otherwise"
        )
    if spec.artifact is None and spec.input and max(spec.input.mean) > 1:
        raise SpecError(
            f"input.mean: {spec.input.mean} is for pixels from 0 to 255; mean and std are for "
            "pixels from 0 to 1 here: divide both by 255"
        )


def _exported(
    spec: ModelSpec, root: Path, folder: Path, images: list[Image.Image], tell: Tell
) -> proving.Proven:
    """Export the network, proven against the eager module."""
    # Before eager answers all pictures, which may take minutes.
    check_requirements(plugins.load_runtime(spec.runtime), spec.runtime, spec.precision)
    _check_taken(spec)
    module, bundle = preparing.prepare(spec, root, folder)
    preparing.check_flags(spec, module.bare())
    eager = preparing.reference(_with_defaults(bundle), module)
    _check_labels(eager, module, images[0])
    return proving.proven(spec, root, folder, module, eager, images, tell)


def _check_taken(spec: ModelSpec) -> None:
    """Raise SpecError for a model that is beyond what its runtime says it exports."""
    runtime = plugins.load_runtime(spec.runtime)
    if (reason := runtime.excluded_tasks.get(spec.task)) is not None:
        raise SpecError(
            f"runtime {spec.runtime} takes no models of task {spec.task} ({reason}): choose another"
        )
    if "height" not in runtime.varies and not resolve.image_input(spec).fixed:
        raise SpecError(
            f"runtime {spec.runtime} takes pictures of one size alone: give the input a fixed one, "
            "resize: [height, width] (--resize H,W) or a crop, or choose another runtime"
        )


def _with_defaults(bundle: Bundle) -> Bundle:
    """The bundle with the spec's defaults as the task's options read them ("3" is 3).

    Raises SpecError for one that is no option of the task, and for a value that a client could not
    send.
    """
    task = plugins.load_task(bundle.task)()
    task.bundle = replace(bundle, defaults={})
    options = {option.name: option for option in task.options()}
    defaults, mistakes = {}, []
    for name, value in bundle.defaults.items():
        if name not in options:
            accepted = ", ".join(options) or "none for this task"
            mistakes.append(f"defaults has the unknown key {name!r}: accepted are {accepted}")
            continue
        try:
            defaults[name] = options[name].parse(value)
        except BadRequest as error:
            mistakes.append(f"defaults.{name}: {error}")
    if mistakes:
        raise SpecError("; ".join(mistakes))
    return replace(bundle, defaults=defaults)


def _check_labels(reference: TaskHandler, module: Servable, image: Image.Image) -> None:
    """As many labels as the network has classes, an input that it takes and outputs that its task
    takes."""
    bare, pixels = module.bare(), np.stack([reference.preprocess(image)])
    given: list[Any] = []

    def keep(each: nn.Module, _: Any, outputs: Any) -> None:
        if each is bare:
            given.append(outputs)

    try:
        # Of all modules, since one that is scripted takes no hook of its own.
        with register_module_forward_hook(keep), torch.inference_mode():
            outputs = module.network(torch.from_numpy(pixels))
            module.decode(outputs)
            classes = reference.classes(bare, outputs)
    except MarsmithError:
        raise
    # A network that does not take its input, or gives something else, may fail in any way.
    except Exception as error:
        if given:
            raise preparing.misgiven(reference.bundle, given[-1], error) from error
        raise preparing.misfit(reference.bundle, pixels, error) from error
    gives_logits = any("logits" in each.names for each in reference.meanings)
    scores = outputs.numpy() if isinstance(outputs, torch.Tensor) else None
    if gives_logits and scores is not None and sums_to_one(scores, within=1e-4):
        raise WeightsError(
            "the network gives probabilities, and softmax is applied to what it gives: leave out "
            "the softmax at its end, so that it gives logits"
        )
    if classes is not None and classes < reference.least_classes:
        raise SpecError(
            "the network tells one class alone, as one with a sigmoid at its end does: let it give "
            "a score for each of two classes, of which the other may be 0"
        )
    if classes is not None and classes != len(reference.bundle.labels):
        raise WeightsError(
            f"{len(reference.bundle.labels)} labels for a network with {classes} classes: list "
            f"exactly {classes} labels in the order of its classes (torchvision's segmenters and "
            "detectors count the background as the first)"
        )


def _check_target(target: Path, digest: str, force: bool, runtime: str) -> bool:
    """Whether the very same archive is there already; raises ArchiveError when another one is."""
    if not target.exists():
        return False
    if sha256(target) == digest:
        return True
    if not force:
        never = plugins.load_runtime(runtime).reproducible == "never"
        raise ArchiveError(
            f"{target.name} is in the store with other bytes"
            f"{f' (runtime {runtime} gives others at every build)' if never else ''}: give the new "
            "one another --version, or replace it with --force"
        )
    return False
