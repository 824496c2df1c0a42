"""One build: spec -> weights -> module -> export -> parity -> archive -> smoke -> store."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from handlers import plugins, split
from handlers.bundle import Bundle, Limits
from handlers.errors import ArchiveError, BadRequest, ExportError, SpecError, WeightsError
from handlers.integrity import sha256
from handlers.runtimes import Array, ExportRequest, as_arrays, check_requirements
from handlers.servable import SOURCE, Servable
from handlers.task import TaskHandler
from marsmith import (
    archive,
    catalogue,
    fitting,
    foreign,
    goldens,
    parity,
    resolve,
    samples,
    smoke,
    sources,
    weights,
)
from marsmith.spec import ModelSpec

SAMPLES = 8
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """A finished build: where the archive is, its sha256, what parity found, and what to know."""

    path: Path
    sha256: str
    parity: parity.Report
    unchanged: bool
    notes: list[str] = field(default_factory=list)


def build(
    spec: ModelSpec, root: Path, store: Path, force: bool = False, tell: Tell = print
) -> Built:
    """Build ``spec``'s archive into ``store``; any failure leaves the store as it was.

    ``root`` is the project folder that the spec's paths are relative to. An archive of the same
    name and version with other bytes is replaced only with ``force``.
    """
    store.mkdir(parents=True, exist_ok=True)
    # Hidden, so that TorchServe does not take it for a model; in the store, so that the rename at
    # the end is atomic.
    with tempfile.TemporaryDirectory(prefix=".build-", dir=store) as temporary:
        folder = Path(temporary) / "archive"
        folder.mkdir()
        report, bundle = _stage(spec, root, folder, tell)
        path = Path(temporary) / archive.file_name(spec.name, spec.version)
        tell("archive")
        archive.pack(folder, bundle, path)
        tell("smoke")
        smoke.check(path)
        digest = sha256(path)
        target = store / path.name
        unchanged = _check_target(target, digest, force)
        path.replace(target)
    return Built(target, digest, report, unchanged, bundle.provenance.get("notes", []))


def _stage(spec: ModelSpec, root: Path, folder: Path, tell: Tell) -> tuple[parity.Report, Bundle]:
    """Fill ``folder`` with everything that the archive holds, proven against eager."""
    tell("weights")
    images = samples.load(root / spec.samples, SAMPLES, spec.serving.max_pixels)
    tolerance = spec.parity.tolerance or parity.TOLERANCE[spec.precision]
    if spec.artifact is None:
        artifact, report = _export_proven(spec, root, folder, images, tolerance, tell)
    else:
        bundle = _bundle(spec, root, [], artifact=foreign.copy(spec, root, folder))
        artifact = foreign.bind(bundle, folder, images[0])
        _check_defaults(artifact)
        _check_labels(artifact, images[0])
        tell("parity")
        report = foreign.check(artifact, images, tolerance)
    bundle = artifact.bundle
    golden_tolerance = spec.parity.golden or parity.GOLDEN_TOLERANCE[spec.precision]
    fresh = plugins.load_task(spec.task)()
    fresh.bind(bundle, folder)
    goldens.write(artifact, fresh, images, golden_tolerance, folder)
    (folder / "parity.json").write_text(json.dumps(report.to_json(), indent=1) + "\n", "utf-8")
    (folder / "model-config.yaml").write_text(spec.serving.model_config_yaml(), "utf-8")
    bundle.write(folder)
    archive.stage_handlers(folder)
    # Python writes these where it imports the network's source.
    for cache in list(folder.rglob("__pycache__")):
        shutil.rmtree(cache)
    return report, bundle


def _export_proven(
    spec: ModelSpec,
    root: Path,
    folder: Path,
    images: list[Image.Image],
    tolerance: float,
    tell: Tell,
) -> tuple[TaskHandler, parity.Report]:
    """Export the network; a handler with the artifact, and how far its answers are from eager's."""
    module, bundle = _prepare(spec, root, folder)
    reference = _reference(bundle, module)
    _check_defaults(reference)
    _check_labels(reference, images[0])
    tell(f"export {spec.runtime}")
    _export(bundle, module, reference.preprocess(images[0]), folder / bundle.artifact)
    tell("parity")
    artifact = plugins.load_task(spec.task)()
    artifact.bind(bundle, folder)
    return artifact, parity.check(reference, artifact, images, tolerance)


def _prepare(spec: ModelSpec, root: Path, folder: Path) -> tuple[Servable, Bundle]:
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
    return module, _bundle(spec, root, notes, weights=file)


def _bundle(spec: ModelSpec, root: Path, notes: list[str], **files: Path) -> Bundle:
    """What the archive will say of its model; ``files`` are what it was made of."""
    task, runtime = plugins.load_task(spec.task), plugins.load_runtime(spec.runtime)
    options = {**runtime.options, **spec.runtime_options}
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
        limits=_limits(spec),
        artifact_batch=1 if single and spec.artifact is None else spec.serving.batch_size,
        foreign=resolve.contract(spec),
        provenance=_provenance(spec, notes, **files),
    )


def _limits(spec: ModelSpec) -> Limits:
    serving = spec.serving
    return Limits(
        batch_size=serving.batch_size,
        max_pixels=serving.max_pixels,
        max_pictures=serving.max_pictures,
        workers=serving.workers,
        threads=serving.threads,
        device=serving.device,
    )


def _reference(bundle: Bundle, module: Servable) -> TaskHandler:
    """A handler whose model is the eager module in memory."""

    def run(*arrays: Any) -> Any:
        with torch.inference_mode():
            return as_arrays(module(*map(torch.from_numpy, arrays)))

    handler = plugins.load_task(bundle.task)()
    handler.bundle, handler.model = bundle, run
    return handler


def _check_defaults(reference: TaskHandler) -> None:
    """The spec's defaults are options of the task with values that a client might send."""
    plain = type(reference)()
    plain.bundle = replace(reference.bundle, defaults={})
    options = {option.name: option for option in plain.options()}
    for name, value in reference.bundle.defaults.items():
        if name not in options:
            accepted = ", ".join(options) or "none for this task"
            raise SpecError(f"defaults has the unknown key {name!r}: accepted are {accepted}")
        try:
            options[name].parse(value)
        except BadRequest as error:
            raise SpecError(f"defaults.{name}: {error}") from error


def _check_labels(reference: TaskHandler, image: Image.Image) -> None:
    """As many labels as the network has classes, and an input that it takes."""
    pixels = reference.preprocess(image)
    try:
        outputs = reference.model(np.stack([pixels]))
    # A network that does not take its input may fail in any way.
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        raise SpecError(
            f"input: the network fails on pixels of shape {pixels.shape}: {line}"
        ) from error
    classes = reference.classes(outputs)
    if classes is not None and classes != len(reference.bundle.labels):
        raise WeightsError(
            f"{len(reference.bundle.labels)} labels for a network with {classes} outputs: list "
            f"exactly {classes} labels in the order of its classes"
        )


def _export(bundle: Bundle, module: Servable, example: Array, path: Path) -> None:
    runtime = plugins.load_runtime(bundle.runtime)
    check_requirements(runtime, bundle.runtime, export=True)
    export = getattr(runtime, "export", None)
    if export is None:
        raise ExportError(f"runtime {bundle.runtime} only serves artifacts that others exported")
    loops = plugins.load_task(bundle.task).loops
    part: nn.Module = module
    if loops and not runtime.dynamic_shapes:
        part, loops = _trunk(bundle, module, path.parent), False
    export(
        ExportRequest(
            module=part,
            # Two pictures: some exporters take an axis of length 1 for a constant.
            example=np.stack([example, example[:, ::-1]][: bundle.artifact_batch]),
            dynamic=_dynamic(bundle),
            path=path,
            precision=bundle.precision,
            loops=loops,
            options=bundle.runtime_options,
        )
    )
    if not path.is_file():
        raise ExportError(f"runtime {bundle.runtime} did not write {path.name}")


def _trunk(bundle: Bundle, module: Servable, folder: Path) -> nn.Module:
    """The part of a module that has no shapes that depend on data; the other is saved beside it."""
    if not bundle.input.fixed:
        raise ExportError(
            f"runtime {bundle.runtime} takes no shapes that depend on data: give the input a fixed "
            "size, such as resize: [320, 320] with letterbox: 0"
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


def _provenance(spec: ModelSpec, notes: list[str], **files: Path) -> dict[str, Any]:
    """What the archive was made of and with; nothing that differs between two builds of it.

    ``files`` by the keys of the spec that name them: their names and sha256 are recorded.
    """
    given = spec.model_dump(mode="json", exclude_defaults=True)
    for key in ("architecture", "labels", "samples"):
        # Where it lay on the build machine is no fact about the model.
        if isinstance(given.get(key), str) and given[key].startswith("/"):
            given[key] = Path(given[key]).name
    for key, file in files.items():
        given[key] |= {"file": file.name, "sha256": sha256(file)}
    packages = ("torch", "torchvision", "numpy", "pillow", "torchserve", "torch-model-archiver")
    return {
        "spec": given,
        **({"notes": notes} if notes else {}),
        "licence": spec.licence,
        "description": spec.description,
        "versions": {"python": platform.python_version(), **{p: installed(p) for p in packages}},
        "built_on": platform.machine(),
    }


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
