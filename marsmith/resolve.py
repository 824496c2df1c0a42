"""From a spec to what the servable module and the archive are made of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from handlers import plugins
from handlers.errors import SpecError, WeightsError
from handlers.foreign import Contract
from handlers.inputs import ImageInput
from marsmith.model_options import SHAPE
from marsmith.spec import ModelSpec, whole
from marsmith.spec_parts import InputSpec
from marsmith.weights import torchvision_weights


def image_input(spec: ModelSpec) -> ImageInput:
    """The input of the spec, or of the preset that came with torchvision's weights."""
    default = plugins.load_task(spec.task).default_input
    if spec.input is None and default is not None and spec.weights.torchvision is None:
        return default
    given = spec.input or _preset_input(spec)
    fields = given.model_dump(exclude={"layout", "dtype", "scale"})
    for key in ("resize", "crop"):
        if isinstance(fields[key], tuple):
            fields[key] = list(fields[key])
    mean, std = given.mean, given.std
    if default is not None:
        # Detectors normalise by themselves, also what is of another size.
        said = given.model_fields_set
        mean = mean if "mean" in said else list(default.mean)
        std = std if "std" in said else list(default.std)
    if given.dtype == "uint8":
        # Such an artifact gets the pixels themselves.
        mean, std = [0.0] * given.channels, [1.0] * given.channels
    return ImageInput(**{**fields, "mean": tuple(mean), "std": tuple(std)})


def own_input(spec: ModelSpec) -> dict[str, Any] | None:
    """The keys of ``input`` that hold for a spec, whoever says them; None where nothing does."""
    if spec.input is not None:
        return told(spec.input)
    if spec.weights.torchvision is not None:
        return told(preset_input(torchvision_weights(spec)))
    default = plugins.load_task(spec.task).default_input
    return None if default is None else _without_none(asdict(default))


def kept(own: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """What stays of a model's ``own`` input where some of its keys are ``said`` anew.

    A crop belongs to the resize before it, and so does a letterbox: they go together.
    """
    shape = (*SHAPE, "letterbox_position") if said.keys() & set(SHAPE) else ()
    return {key: value for key, value in own.items() if key not in {*said, *shape}}


def told(given: InputSpec) -> dict[str, Any]:
    """The keys that an input says, as a model file has them."""
    return _without_none(given.model_dump(mode="json", exclude_unset=True))


def _without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def contract(spec: ModelSpec) -> Contract | None:
    """What an artifact of others takes and gives; None for an architecture."""
    if spec.artifact is None:
        return None
    given = spec.input or InputSpec()
    return Contract(given.layout, given.dtype, given.scale, spec.outputs)


def _preset_input(spec: ModelSpec) -> InputSpec:
    if spec.weights.torchvision is None:
        raise SpecError(
            "input: say what becomes of a picture, at least one of --resize, --crop, --mean, --std "
            "(resize: [224, 224] in YAML); only torchvision's weights bring theirs"
        )
    return preset_input(torchvision_weights(spec))


def preset_input(entry: Any) -> InputSpec:
    """The input of the preset of one of torchvision's weights."""
    preset = entry.transforms()
    # A detector's preset only scales to 0..1: it resizes and normalises by itself.
    interpolation = getattr(preset, "interpolation", None)
    return InputSpec(
        resize=_first(preset, "resize_size"),
        crop=_first(preset, "crop_size"),
        interpolation=interpolation.value if interpolation else "bilinear",
        mean=list(getattr(preset, "mean", [0.0, 0.0, 0.0])),
        std=list(getattr(preset, "std", [1.0, 1.0, 1.0])),
    )


def _first(preset: Any, name: str) -> int | None:
    sizes = getattr(preset, name, None)
    return int(sizes[0]) if sizes else None


def labels(spec: ModelSpec, root: Path) -> list[str]:
    """Class names in the order of the network's outputs; none for a task that tells no classes."""
    if plugins.load_task(spec.task).most_labels == 0 and not spec.labels:
        return []
    names = _labels(spec, root)
    classes = spec.arguments.get("num_classes", len(names))
    # The arguments of a network of one's own may mean anything.
    if spec.architecture.startswith("torchvision:") and classes != len(names):
        raise WeightsError(
            f"{len(names)} labels for num_classes {classes}: list exactly {classes} labels in the "
            "order of the classes (torchvision's segmenters and detectors count the background as "
            "the first)"
        )
    task = plugins.load_task(spec.task)
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if task.distinct_labels and twice:
        raise WeightsError(
            f"labels: {', '.join(twice[:5])} more than once: task {spec.task} tells classes by "
            "their labels, give each another one"
        )
    most = task.most_labels
    if most is not None and len(names) > most:
        raise WeightsError(
            f"{len(names)} labels: task {spec.task} can tell {most} classes apart, and no more"
        )
    return names


def _labels(spec: ModelSpec, root: Path) -> list[str]:
    if isinstance(spec.labels, list):
        return _checked(spec.labels, "labels")
    if spec.labels is None:
        if spec.weights.torchvision is None:
            raise SpecError("labels: list them, or name a file with one label a line")
        return list(torchvision_weights(spec).meta["categories"])
    path = root / spec.labels
    suffix = path.suffix.lower()
    if suffix not in ("", ".txt", ".json"):
        raise SpecError(
            f"labels: {spec.labels}: a file of labels is .txt with one label a line, or .json with "
            "a list or index_to_name: write one of these (one label a line by any other suffix: "
            "rename it .txt)"
        )
    try:
        # Windows' editors may begin a file with a byte order mark.
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"labels: {spec.labels} cannot be read ({error})") from error
    if suffix == ".json":
        return _checked(_from_json(text, spec.labels), spec.labels)
    return _checked([line.strip() for line in text.splitlines() if line.strip()], spec.labels)


def _from_json(text: str, where: str) -> list[Any]:
    """A list, or TorchServe's index_to_name: {"0": name} or {"0": [id, name]}."""
    try:
        document = json.loads(text)
        if isinstance(document, dict):
            document = [document[str(index)] for index in range(len(document))]
        if not isinstance(document, list):
            raise TypeError(f"it is a {type(document).__name__}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SpecError(f"labels: {where} is not a JSON list or index_to_name ({error})") from error
    return [value[-1] if isinstance(value, list) and value else value for value in document]


def _checked(names: list[Any], where: str) -> list[str]:
    if not names:
        raise SpecError(f"{where}: there are none: give one for each class")
    if not all(isinstance(name, str) and name for name in names):
        raise SpecError(f"{where}: labels must be texts, one per class")
    return names


def decode_settings(spec: ModelSpec) -> dict[str, Any]:
    """The task's settings that are fixed in the exported module, all with their values."""
    return plugins.load_task(spec.task).decode_settings | spec.decode


def recipe(spec: ModelSpec, given: ImageInput) -> dict[str, Any]:
    """What ``Servable.build`` makes the module of."""
    architecture = spec.architecture
    if not architecture.startswith("torchvision:"):
        file, _, name = architecture.rpartition(":")
        architecture = f"{Path(file).name}:{name}"
    entry = spec.weights.torchvision
    return {
        "architecture": architecture,
        "arguments": spec.arguments,
        **({} if entry is None else {"entry": entry}),
        "task": spec.task,
        "decode": decode_settings(spec),
        "mean": list(given.mean),
        "std": list(given.std),
    }


def source_file(spec: ModelSpec, root: Path) -> Path | None:
    """The file, or package folder, with the network's own source, None for torchvision's."""
    if spec.architecture.startswith("torchvision:"):
        return None
    file = spec.architecture.rpartition(":")[0]
    path = root / file
    if path.suffix != ".py" and not (path / "__init__.py").is_file():
        raise SpecError(
            f"architecture: no package folder {whole(file, root)}: it needs an __init__.py"
        )
    if path.suffix == ".py" and not path.is_file():
        raise SpecError(f"architecture: no file {whole(file, root)}")
    return path
