"""A spec as the eager model that all else is compared with, and what the archive will say of it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from handlers import plugins
from handlers.bundle import Bundle
from handlers.errors import SpecError
from handlers.integrity import sha256
from handlers.runtimes import Array, Arrays, as_arrays
from handlers.servable import SOURCE, Servable
from handlers.task import TaskHandler
from marsmith import catalogue, fitting, origin, quantise, resolve, samples, sbom, sources, weights
from marsmith.spec import ModelSpec

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "torchserve", "torch-model-archiver")


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


def check_flags(spec: ModelSpec, network: nn.Module) -> None:
    """Raise SpecError where a network computes by a setting that no state_dict holds, unsaid."""
    if spec.weights.torchvision is not None:
        return
    name = "transform_input"
    ours = spec.architecture.startswith("torchvision:")
    if ours and hasattr(network, name) and name not in spec.arguments:
        raise SpecError(
            f"arguments.{name}: {spec.architecture} normalises its input again where it was made "
            f"with torchvision's weights, and its state_dict does not tell: say --arg {name}=true "
            "where yours was fine-tuned from those, false where it was trained from scratch"
        )


def bundle_of(spec: ModelSpec, root: Path, notes: list[str], **files: Path) -> Bundle:
    """What the archive will say of its model; ``files`` are what it was made of."""
    return replace(unrecorded(spec, root), provenance=_provenance(spec, root, notes, **files))


def unrecorded(spec: ModelSpec, root: Path) -> Bundle:
    """The same without its provenance, which reads every sample and asks git."""
    task, runtime = plugins.load_task(spec.task), plugins.load_runtime(spec.runtime)
    options = {**runtime.options, **spec.options}
    halved = plugins.halved(spec.task, spec.runtime, spec.precision)
    single = halved or "batch" not in runtime.varies or (task.loops and runtime.traces(options))
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


class _InMemory:
    """The eager module of a bundle as a model: uint8 pictures -> the task's outputs."""

    def __init__(self, bundle: Bundle, module: Servable) -> None:
        self._bundle, self._module = bundle, module

    def __call__(self, *arrays: Array) -> Arrays:
        try:
            with torch.inference_mode():
                return as_arrays(self._module(*map(torch.from_numpy, arrays)))
        # A network of one input size fails on others in any way.
        except Exception as error:
            raise misfit(self._bundle, arrays[0], error) from error

    def features(self, *arrays: Array) -> Arrays:
        """What a detector's backbone gives for one picture, as ``split.Halves.features`` does."""
        given: list[Any] = []
        backbone = self._module.bare().get_submodule("backbone")
        hook = backbone.register_forward_hook(lambda _, __, maps: given.append(maps))
        try:
            self(*arrays)
        finally:
            hook.remove()
        (maps,) = given
        return as_arrays(maps if isinstance(maps, Tensor) else tuple(maps.values()))


def reference(bundle: Bundle, module: Servable) -> TaskHandler:
    """A handler whose model is the eager module in memory."""
    handler = plugins.load_task(bundle.task)()
    handler.bundle, handler.model = bundle, _InMemory(bundle, module)
    return handler


def misfit(bundle: Bundle, pixels: Any, error: Exception) -> SpecError:
    """What to say of a network that fails with ``error`` on a batch of pixels (N, H, W, C)."""
    words = f"input: the network fails on pixels of shape {pixels.shape[1:]}"
    if not bundle.input.fixed:
        words += " (if it takes one size alone, say resize: [height, width], --resize H,W)"
    return SpecError(f"{words}: {plugins.described(error)}{_form(bundle)}")


def misgiven(bundle: Bundle, given: Any, error: Exception) -> SpecError:
    """What to say of a network that gives ``given``, which its task cannot read for ``error``."""
    words = f"the network gives {_described(given):.200}"
    return SpecError(f"{words}: {plugins.described(error)}{_form(bundle)}")


def _form(bundle: Bundle) -> str:
    form = plugins.load_task(bundle.task).network_form
    return f"; a network for {bundle.task} is of the form {form}" if form else ""


def _described(given: Any) -> str:
    """What a network gives, in words: types and shapes of all that it holds."""
    if isinstance(given, Tensor):
        return f"tensor {tuple(given.shape)}"
    if isinstance(given, Mapping):
        return f"{{{', '.join(f'{key}: {_described(each)}' for key, each in given.items())}}}"
    if isinstance(given, (list, tuple)):
        left, right = "[]" if isinstance(given, list) else "()"
        return f"{left}{', '.join(map(_described, given))}{right}"
    return type(given).__name__


def _provenance(spec: ModelSpec, root: Path, notes: list[str], **files: Path) -> dict[str, Any]:
    """What the archive was made of and with; nothing that differs between two builds of it on hosts
    of one kind with the same packages.

    ``files`` by the keys of the spec that name them: their names and sha256 are recorded.
    """
    given = spec.model_dump(mode="json", exclude_defaults=True)
    for key in {"mean", "std"} & (spec.input.model_fields_set if spec.input else set()):
        # Said, they hold for a task with others of its own, also where they are the usual ones.
        given.setdefault("input", {})[key] = list(getattr(spec.input, key))
    for key in ("calibration", "accuracy"):
        if (drawn := getattr(spec, key)) is not None:
            # Which pictures were drawn, and what they may lose, is so when defaults are others.
            # Of an artifact of others a drop is refused.
            left_out = {"drop"} if spec.artifact is not None else set[str]()
            given[key] = drawn.model_dump(mode="json", exclude=left_out)
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
        "versions": _versions(spec, root),
        "host": origin.host(),
    }


def _versions(spec: ModelSpec, root: Path) -> dict[str, str]:
    """Those of Python and of the packages that made the artifact or will run it, and that the
    network's own source imports."""
    runtime = plugins.load_runtime(spec.runtime)
    modules = list(runtime.requires)
    if spec.artifact is None:
        modules += runtime.export_requires
        modules += runtime.int8_requires if spec.precision == "int8" else ()
        if (source := resolve.source_file(spec, root)) is not None:
            modules += sources.imported(sources.parted(source)[0])
    packages = [*_PACKAGES, *sbom.providing(modules)]
    return {"python": platform.python_version(), **{name: installed(name) for name in packages}}
