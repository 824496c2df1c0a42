"""One build: spec -> weights -> module -> export -> parity -> archive -> smoke -> store."""

from __future__ import annotations

import errno
import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from handlers import plugins
from handlers.bundle import Bundle
from handlers.errors import ArchiveError, BadRequest, BuildError, SpecError, WeightsError
from handlers.integrity import sha256
from handlers.runtimes import as_arrays
from handlers.servable import SOURCE, Servable
from handlers.task import TaskHandler
from marsmith import (
    archive,
    catalogue,
    exporting,
    fitting,
    foreign,
    goldens,
    origin,
    quantise,
    resolve,
    samples,
    sbom,
    smoke,
    sources,
    weights,
)
from marsmith.accuracy import Accuracy
from marsmith.parity import Report
from marsmith.spec import ModelSpec
from marsmith.store import exclusive, publish, workspace

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "torchserve", "torch-model-archiver")
Tell = Callable[[str], None]
# A full disk, a used up quota, a file too large, a read-only place, or no right to write.
_NO_PLACE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
)


@dataclass(frozen=True)
class Built:
    """A finished build: where the archive is, its sha256, what parity and the gate of accuracy
    found (``exact``: parity of the artifact in fp32 that one in few bits is made of), and what to
    know."""

    path: Path
    sha256: str
    parity: Report
    accuracy: Accuracy | None
    unchanged: bool
    notes: list[str] = field(default_factory=list)
    exact: Report | None = None

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "unchanged": self.unchanged,
            "parity": self.parity.to_json(),
            "fp32": self.exact and self.exact.to_json(),
            "accuracy": self.accuracy and self.accuracy.to_json(),
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
        if error.errno not in _NO_PLACE:
            raise
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
        unchanged = _check_target(target, digest, force)
        publish(path, target)
    notes = bundle.provenance.get("notes", [])
    return Built(target, digest, proof.parity, proof.accuracy, unchanged, notes, proof.exact)


def _stage(spec: ModelSpec, root: Path, folder: Path, tell: Tell) -> exporting.Proven:
    """Fill ``folder`` with everything that the archive holds, proven against eager."""
    tell("weights")
    any_size = spec.artifact is None and not resolve.image_input(spec).fixed
    files = samples.files(root / spec.samples, samples.SAMPLES)
    images = samples.compared(files, spec.serving.max_pixels, any_size)
    if spec.artifact is None:
        proof = _exported(spec, root, folder, images, tell)
    else:
        bundle = bundle_of(spec, root, [], artifact=foreign.take(spec, root, folder))
        artifact = foreign.bind(_with_defaults(bundle), folder, images[0])
        tell("parity")
        report = foreign.check(artifact, images)
        proof = exporting.Proven(artifact, report, foreign.measured(spec, root, artifact))
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


def _exported(
    spec: ModelSpec, root: Path, folder: Path, images: list[Image.Image], tell: Tell
) -> exporting.Proven:
    """Export the network, proven against the eager module."""
    module, bundle = prepare(spec, root, folder)
    eager = reference(_with_defaults(bundle), module)
    _check_labels(eager, module, images[0])
    return exporting.proven(spec, root, folder, module, eager, images, tell)


def prepare(spec: ModelSpec, root: Path, folder: Path) -> tuple[Servable, Bundle]:
    """The eager module with its weights, and what the archive will say of it."""
    file = weights.locate(spec, root)
    given = resolve.image_input(spec)
    source = resolve.source_file(spec, root)
    notes: list[str] = []
    if source is not None:
        notes = sources.copy(source, folder / SOURCE)
    recipe, state = resolve.recipe(spec, given), weights.load(file)
    if spec.weights.torchvision is None:
        module = Servable.build(recipe, folder / SOURCE)
        state, unwrapped = fitting.unwrapped(state, module.bare())
        notes += unwrapped
        classes = spec.arguments.get("num_classes")
        fitting.check(state, module.bare(), spec.architecture, classes)
        module.load_weights(state)
    else:
        module = Servable.build(recipe, folder / SOURCE, catalogue.network(recipe, state))
    bundle = bundle_of(spec, root, notes, weights=file)
    settled = plugins.load_task(spec.task).settled(module.bare(), bundle.decode)
    return module, replace(bundle, decode=settled)


def bundle_of(spec: ModelSpec, root: Path, notes: list[str], **files: Path) -> Bundle:
    """What the archive will say of its model; ``files`` are what it was made of."""
    return replace(unrecorded(spec, root), provenance=_provenance(spec, root, notes, **files))


def unrecorded(spec: ModelSpec, root: Path) -> Bundle:
    """The same without its provenance, which reads every sample and asks git."""
    task, runtime = plugins.load_task(spec.task), plugins.load_runtime(spec.runtime)
    options = {**runtime.options, **spec.options}
    single = task.loops and (runtime.traces(options) or not runtime.dynamic_shapes)
    return Bundle(
        name=spec.name,
        version=spec.version,
        task=spec.task,
        runtime=spec.runtime,
        artifact="model" + runtime.suffix,
        labels=resolve.labels(spec, root),
        input=resolve.image_input(spec),
        precision=spec.precision,
        decode=resolve.decode_settings(spec),
        defaults=spec.defaults,
        runtime_options=options,
        limits=spec.serving.limits(),
        closeness=spec.parity.closeness(spec.precision),
        artifact_batch=1 if single and spec.artifact is None else spec.serving.batch_size,
        foreign=resolve.contract(spec),
    )


def reference(bundle: Bundle, module: Servable) -> TaskHandler:
    """A handler whose model is the eager module in memory."""

    def run(*arrays: Any) -> Any:
        with torch.inference_mode():
            return as_arrays(module(*map(torch.from_numpy, arrays)))

    handler = plugins.load_task(bundle.task)()
    handler.bundle, handler.model = bundle, run
    return handler


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
    """As many labels as the network has classes, and an input that it takes."""
    pixels = reference.preprocess(image)
    try:
        with torch.inference_mode():
            outputs = module.network(torch.from_numpy(np.stack([pixels])))
            module.decode(outputs)
    # A network that does not take its input may fail in any way.
    except Exception as error:
        raise SpecError(
            f"input: the network fails on pixels of shape {pixels.shape}: "
            f"{plugins.described(error)}"
        ) from error
    classes = reference.classes(module.bare(), outputs)
    if classes is not None and classes != len(reference.bundle.labels):
        raise WeightsError(
            f"{len(reference.bundle.labels)} labels for a network with {classes} classes: list "
            f"exactly {classes} labels in the order of its classes (torchvision's segmenters and "
            "detectors count the background as the first)"
        )


def _provenance(spec: ModelSpec, root: Path, notes: list[str], **files: Path) -> dict[str, Any]:
    """What the archive was made of and with; nothing that differs between two builds of it on hosts
    of one kind with the same packages.

    ``files`` by the keys of the spec that name them: their names and sha256 are recorded.
    """
    given = spec.model_dump(mode="json", exclude_defaults=True)
    holders = [(given, key) for key in ("architecture", "labels", "samples")]
    holders += [(given.get(key) or {}, "folder") for key in ("calibration", "accuracy")]
    for holder, key in holders:
        # Where it lay on the build machine is no fact about the model.
        if isinstance(holder.get(key), str) and holder[key].startswith("/"):
            holder[key] = Path(holder[key]).name
    for key, file in files.items():
        given[key] |= {"file": file.name, "sha256": sha256(file)}
    chosen = samples.spread(samples.files(root / spec.samples, samples.SAMPLES))
    return {
        "spec": given,
        "code": origin.code(),
        "data": {"samples": {"pictures": len(chosen), "data": quantise.digest(chosen)}},
        **({"notes": notes} if notes else {}),
        "licence": spec.licence,
        "description": spec.description,
        "versions": _versions(spec),
        "host": origin.host(),
    }


def _versions(spec: ModelSpec) -> dict[str, str]:
    """Those of Python and of the packages that made the artifact or will run it."""
    runtime = plugins.load_runtime(spec.runtime)
    modules = list(runtime.requires)
    if spec.artifact is None:
        modules += runtime.export_requires
        modules += runtime.int8_requires if spec.precision == "int8" else ()
    packages = [*_PACKAGES, *sbom.providing(modules)]
    return {"python": platform.python_version(), **{name: installed(name) for name in packages}}


def _check_target(target: Path, digest: str, force: bool) -> bool:
    """Whether the very same archive is there already; raises ArchiveError when another one is."""
    if not target.exists():
        return False
    if sha256(target) == digest:
        return True
    if not force:
        raise ArchiveError(
            f"{target.name} is in the store with other bytes: give the new one another --version, "
            "or replace it with --force"
        )
    return False
