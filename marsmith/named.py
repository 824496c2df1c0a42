"""Models by name: a file of ``models/``, or a network of torchvision, which needs no file.

Which of torchvision's networks a task takes, and what a model file of one says, is the task's to
tell (``TaskHandler.torchvision``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from handlers import plugins, vision
from handlers.errors import PluginError, SpecError
from handlers.nearest import hint
from marsmith import spec
from marsmith.model_options import MODELS, as_option, model_file
from marsmith.spec import ModelSpec

# Keys of ``input`` that say nothing where the key after them is not there.
_NEEDED = {
    **dict.fromkeys(("interpolation", "antialias", "backend"), "resize"),
    "letterbox_position": "letterbox",
}


def load(
    name: str,
    here: Path,
    overrides: dict[str, Any] | None = None,
    tell: Callable[[str], object] | None = None,
) -> ModelSpec:
    """The spec of a model's name or of the path of a YAML file, relative to ``here``.

    ``overrides`` replace its keys; those of ``input`` change what the model has, and ``tell`` hears
    where the network gets other pixels by them. Raises SpecError, which names the nearest where
    there is no such model.
    """
    path, said = model_file(name, here), overrides or {}
    if path is not None:
        fields, where = spec.read(path), str(path)
    else:
        found = torchvision_names()
        if name not in found:
            raise SpecError(_unknown(name, here, found))
        fields, where = _fields(name, found[name]), f"torchvision's {name}"
    if "input" not in said:
        return spec.merged(fields, said, where)
    return _with_input(fields, said, where, tell or (lambda words: None))


def _with_input(
    fields: dict[str, Any], overrides: dict[str, Any], where: str, tell: Callable[[str], object]
) -> ModelSpec:
    """The spec of the ``fields`` of a model, whose input is its own but for what is said of it."""
    # Here, since it imports torch, which a spec needs for nothing else.
    from marsmith import resolve

    said = overrides["input"]
    others = {key: value for key, value in overrides.items() if key != "input"}
    plain = spec.merged(fields, others, where)
    own = resolve.own_input(plain)
    given = {**resolve.kept(own or {}, said), **said}
    made = spec.merged(
        fields, {**others, "input": given}, f"{where} with {', '.join(map(as_option, said))}"
    )
    for key, needed in _NEEDED.items():
        if key in said and given.get(needed) is None:
            raise SpecError(
                f"{as_option(key)}: the input of {made.name} has no {needed} that it is for: give "
                f"{as_option(needed)}, too, or leave it out"
            )
    if own is not None and resolve.image_input(made) != resolve.image_input(plain):
        values = ", ".join(f"{key} {value}" for key, value in said.items())
        tell(
            f"input: {values} in the place of its own: {made.name} gets other pixels, and may "
            "answer otherwise. The build does not notice, for it compares answers to the same "
            "pixels; --evaluate with labelled pictures shows it"
        )
    return made


def torchvision_names() -> dict[str, str]:
    """torchvision's networks that a task takes, sorted: by name the task."""
    models = vision.torchvision().models
    found: dict[str, str] = {}
    for task in plugins.names("tasks"):
        if not (module := plugins.load_task(task).torchvision):
            continue
        theirs = models.list_models(module=importlib.import_module(module))
        if taken := found.keys() & theirs:
            other = found[min(taken)]
            raise PluginError(f"tasks {other} and {task} both take {module}: one of them alone may")
        found |= dict.fromkeys(theirs, task)
    return dict(sorted(found.items()))


def _fields(name: str, task: str) -> dict[str, Any]:
    """What a model file says of one of torchvision's networks with its best weights."""
    entry = vision.torchvision().models.get_model_weights(name).DEFAULT
    classes = len(entry.meta["categories"])
    return {
        "name": name,
        "description": f"torchvision's {name}, {classes} classes, its weights {entry.name}",
        "task": task,
        "architecture": f"torchvision:{name}",
        "weights": {"torchvision": entry.name},
        # Where torchvision names none, it is torchvision's own.
        "licence": entry.meta.get("license", "BSD-3-Clause"),
        **plugins.load_task(task).torchvision_keys,
    }


def _unknown(name: str, here: Path, found: dict[str, str]) -> str:
    files = sorted(path.stem for path in MODELS.glob("*.yaml"))
    if name.endswith((".yaml", ".yml")):
        near = hint(Path(name).stem, files)
        return f"no model {name}: there is no {here / name}; {near}"
    if name.endswith(".mar"):
        return (
            f"{name} is an archive, and no model to build from: name its model; `marsmith inspect` "
            "and `marsmith verify` look at an archive"
        )
    if name in vision.torchvision().models.list_models():
        tasks = ", ".join(sorted({*found.values()}))
        return f"no model {name}: torchvision has it, but it is for none of the tasks {tasks}"
    return (
        f"no model {name}: there is no {MODELS / name}.yaml, and torchvision has no such network; "
        f"{hint(name, {*files, *found}, files)} (./build_mar.sh --list has all)"
    )
