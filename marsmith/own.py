"""A model of one's own from command line options, without a model file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from handlers import plugins, vision
from handlers.errors import SpecError, one_line
from handlers.integrity import sha256
from marsmith import named
from marsmith.model_options import as_option, input_said, place
from marsmith.resolve import kept, preset_input, told
from marsmith.spec import ModelSpec, foreign_runtimes, renaming, runtimes_for

# Options that make a model without a file; others change one with a file, too.
KEYS = (
    "name",
    "arch",
    "arg",
    "num_classes",
    "decode",
    "artifact",
    "outputs",
    "labels",
    "task",
)


def fields(given: Mapping[str, Any], here: Path, root: Path) -> tuple[dict[str, Any], list[str]]:
    """The keys of a model file that says what the options say, and notes on what they left unsaid.

    Paths of ``given`` are relative to ``here``, those of the result to the project folder ``root``
    where they lie in it. Raises SpecError for options that are missing or contradict each other.
    """
    for option in ("name", "task"):
        if not given.get(option):
            raise SpecError(f"--{option} is missing: a model without a model file needs it")
    keys: dict[str, Any] = {"name": given["name"], "task": given["task"]}
    if bool(given.get("arch")) == bool(given.get("artifact")):
        raise SpecError(
            "give --arch with --weights for a PyTorch network, or --artifact for a file that "
            "somebody else exported"
        )
    keys |= (_artifact if given.get("artifact") else _architecture)(given, here, root)
    keys["labels"] = _labels(given, here, root)
    said, notes = _input(given)
    if said:
        keys["input"] = said
    return keys, notes


def save(spec: ModelSpec, path: Path, force: bool) -> None:
    """Write a model file that builds the same archive; raises SpecError where there is one."""
    check(spec, path, force)
    try:
        path.write_text(_text(spec), encoding="utf-8")
    except OSError as error:
        raise SpecError(f"--save-yaml: {path} cannot be written: {error.strerror}") from error


def check(spec: ModelSpec | None, path: Path, force: bool) -> None:
    """Raise SpecError where ``save`` would, before anything is built.

    None is a spec that is not known yet, for what ``--runtime auto`` chooses is part of it.
    """
    if not path.parent.is_dir():
        raise SpecError(f"--save-yaml: there is no folder {path.parent}")
    if force or not path.exists():
        return
    if spec is None:
        raise SpecError(
            f"--save-yaml: {path} is there, and what --runtime auto chooses is not in it yet: "
            "--force replaces it"
        )
    if path.read_text(encoding="utf-8") != _text(spec):
        raise SpecError(
            f"--save-yaml: {path} is there and says something else: --force replaces it"
        )


def _text(spec: ModelSpec) -> str:
    fields = spec.model_dump(mode="json", exclude_unset=True)
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _architecture(given: Mapping[str, Any], here: Path, root: Path) -> dict[str, Any]:
    _refuse(given, ("outputs", "layout", "dtype", "scale"), "--artifact")
    if not given.get("weights"):
        raise SpecError("--weights is missing: give the network's state_dict")
    weights = _file("--weights", given["weights"], here)
    arguments = _pairs("--arg", given.get("arg") or ())
    decode = _pairs("--decode", given.get("decode") or ())
    if (classes := given.get("num_classes")) is not None:
        if "num_classes" in arguments:
            raise SpecError(
                f"--num-classes {classes} is short for --arg num_classes={classes}, and there is "
                f"--arg num_classes={arguments['num_classes']} as well: give one of them"
            )
        arguments["num_classes"] = classes
    origin, _, name = given["arch"].rpartition(":")
    if origin and origin != "torchvision":
        # "./" tells a folder of one's own from the origins that a model file knows.
        origin = place(here / origin, root)
        origin = origin if "/" in origin or origin.endswith(".py") else f"./{origin}"
    return {
        "architecture": f"{origin}:{name}" if origin else given["arch"],
        **({"arguments": arguments} if arguments else {}),
        "weights": {"file": place(weights, root), "sha256": sha256(weights)},
        **({"decode": decode} if decode else {}),
    }


def _artifact(given: Mapping[str, Any], here: Path, root: Path) -> dict[str, Any]:
    _refuse(given, ("arg", "num_classes", "decode", "weights"), "--arch")
    file = _file("--artifact", given["artifact"], here)
    keys: dict[str, Any] = {"artifact": {"file": place(file, root), "sha256": sha256(file)}}
    if given.get("outputs"):
        keys["outputs"] = _outputs(given["outputs"], given["task"])
    if not given.get("runtime"):
        fitting = [
            name for name in runtimes_for(file.suffix) if plugins.load_runtime(name).holds(file)
        ]
        # One that needs a GPU is asked for by its name.
        fitting = [n for n in fitting if "cpu" in plugins.load_runtime(n).devices] or fitting
        if not fitting:
            known = ", ".join(sorted({each.suffix for each in foreign_runtimes().values()}))
            raise SpecError(
                f"--artifact: no runtime here reads {file.name}: files are {known}"
                f"{renaming(file.suffix)}"
            )
        if len(fitting) > 1:
            raise SpecError(
                f"--runtime is missing: for {file.suffix} there are {', '.join(fitting)}"
            )
        keys["runtime"] = fitting[0]
    return keys


def _labels(given: Mapping[str, Any], here: Path, root: Path) -> str | list[str]:
    """The file of ``--labels``, or none for a task that tells no classes."""
    if given.get("labels"):
        return place(_file("--labels", given["labels"], here), root)
    task = given["task"]
    if task in plugins.names("tasks") and plugins.load_task(task).most_labels == 0:
        return []
    raise SpecError("--labels is missing: give a file with one label a line, in their order")


def _input(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The key ``input``: what was said, over the preset of torchvision's architecture."""
    said = input_said(given)
    origin, _, name = (given.get("arch") or "").partition(":")
    if origin != "torchvision":
        unsaid = [key for key in ("mean", "std") if key not in said]
        # An artifact must say them; see the model file's own checks.
        note = f"input: {_usual(unsaid, given['task'])}, for none were given"
        return said, [note] if said and unsaid and given.get("arch") else []
    try:
        entry = vision.torchvision().models.get_model_weights(name).DEFAULT
    except ValueError as error:
        near = vision.nearest(name)
        raise SpecError(f"--arch: torchvision has no {name} ({error}); {near}") from error
    kinds, task = named.torchvision_names(), given["task"]
    # A task of one's own may take them all.
    if name in kinds and kinds[name] != task and task in kinds.values():
        raise SpecError(f"--task {task}: torchvision's {name} is a network for {kinds[name]}")
    taken = kept(told(preset_input(entry)), said)
    values = ", ".join(f"{key} {value}" for key, value in taken.items())
    note = f"input: as the preset of torchvision's {entry} has it: {values}"
    return taken | said, [note] if taken else []


def _usual(keys: Sequence[str], task: str) -> str:
    """Which mean and std hold where a network of one's own leaves them unsaid, in words."""
    default = plugins.load_task(task).default_input if task in plugins.names("tasks") else None
    if default is None:
        return f"{' and '.join(keys)} of ImageNet"
    values = (f"{key} {list(getattr(default, key))}" for key in keys)
    return f"{' and '.join(values)} of task {task}"


def _refuse(given: Mapping[str, Any], keys: Sequence[str], partner: str) -> None:
    for key in keys:
        if given.get(key) not in (None, ()):
            raise SpecError(f"{as_option(key)} goes with {partner} alone")


def _file(option: str, given: Path | str, here: Path) -> Path:
    path = here / given
    if not path.is_file():
        raise SpecError(f"{option}: no file {given}, which would be {path.absolute()}")
    return path


def _pairs(option: str, given: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE of an option, values as YAML has them: 3, 0.5, true, null, [1, 2], text."""
    made: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (equals and key.isidentifier()):
            raise SpecError(f"{option} {text!r}: write KEY=VALUE, the value as YAML has it")
        if key in made:
            raise SpecError(f"{option} {text!r}: {key} is {made[key]!r} already: give it once")
        made[key] = _value(f"{option} {text}", value)
    return made


def _outputs(text: str, task: str) -> dict[str, Any]:
    """``logits``, or ``boxes=dets,scores=conf,labels,normalised=true``."""
    known = plugins.load_task(task).meanings if task in plugins.names("tasks") else ()
    settings = {key for meaning in known for key in meaning.settings}
    made: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = part.strip().partition("=")
        if key in made:
            raise SpecError(f"--outputs {text!r}: {key} stands there twice: say it once")
        made[key] = _value("--outputs", value) if key in settings else value or None
    return made


def _value(option: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    # PyYAML meets a date of month 13 with ValueError, other tags of its own with more.
    except Exception as error:
        raise SpecError(f"{option}: {text!r} is no YAML value: {one_line(error)}") from error
