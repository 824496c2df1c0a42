"""Put the chosen point where builds read it: the model's own file, or a profile of a host."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from handlers.errors import SpecError, one_line
from marsmith.host_profile import read
from marsmith.spec import ModelSpec, parse, parted
from marsmith.tuning.points import Point

_HEAD = "# Written by `marsmith tune`; `./build_mar.sh MODEL --profile FILE` builds by it.\n"


def changes(spec: ModelSpec, point: Point, cores: int) -> dict[str, Any]:
    """The keys of a model file that a point stands for.

    ``cores`` of the measured host go with them, so that a smaller machine can build for it; int8
    with the pictures that it needs, where their folders are known.
    """
    serving = {**point.serving(), "cores": cores}
    if spec.serving.queue_size < point.batch_size:
        serving["queue_size"] = point.batch_size
    keys: dict[str, Any] = {"runtime": point.runtime}
    if spec.artifact is None:
        keys["precision"] = point.precision
    if point.options:
        keys["runtime_options"] = dict(point.options)
    if point.precision == "int8" and spec.calibration is not None and spec.accuracy is not None:
        keys["calibration"] = spec.calibration.model_dump(mode="json", exclude_unset=True)
        keys["accuracy"] = spec.accuracy.model_dump(mode="json", exclude_unset=True)
    return {**keys, "serving": serving}


def to_model_file(path: Path, keys: Mapping[str, Any]) -> None:
    """Change ``keys`` in a model file and keep all else, comments too; raises SpecError.

    Options of a runtime that is no longer used go: another runtime would refuse them.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    editor = YAML()
    editor.preserve_quotes, editor.width = True, 100_000
    try:
        document = editor.load(path.read_text(encoding="utf-8"))
    except (OSError, YAMLError) as error:
        raise SpecError(f"{path} cannot be changed: {one_line(error)}") from error
    plain = ModelSpec.model_fields["runtime"].default
    if keys["runtime"] != document.get("runtime", plain):
        _forget_options(document)
    for key, value in keys.items():
        if isinstance(value, Mapping) and isinstance(document.get(key), Mapping):
            document[key].update(value)
        else:
            document[key] = _flow(value) if isinstance(value, Mapping) else value
    buffer = io.StringIO()
    editor.dump(document, buffer)
    parse(yaml.safe_load(buffer.getvalue()), str(path))
    _replace(path, buffer.getvalue())


def to_profile(path: Path, name: str, keys: Mapping[str, Any], host: Mapping[str, Any]) -> None:
    """Put a model's ``keys`` into the profile of a kind of host, new or with other models.

    Raises SpecError where the file is another host's.
    """
    found = read(path) if path.exists() else {"host": dict(host), "models": {}}
    if found["host"] != host:
        raise SpecError(
            f"{path} is a profile of {found['host']}, this host is {dict(host)}: give another file"
        )
    found["models"][name] = dict(keys)
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, _HEAD + yaml.safe_dump(found, sort_keys=False))


def _flow(value: Mapping[str, Any]) -> Any:
    """A mapping written in one line, as the model files of this project do."""
    from ruamel.yaml.comments import CommentedMap

    mapping = CommentedMap(value)
    mapping.fa.set_flow_style()
    return mapping


def _forget_options(document: Any) -> None:
    """Remove the options of the runtime, but not those that stand under a runtime's name.

    Comments below the last one are of what follows, and stay.
    """
    options: Any = document.get("runtime_options") or {}
    _, flat = parted(options)
    if not flat:
        return
    last = list(options)[-1]
    below = ""
    if last in flat and last in options.ca.items:
        # The first line is its own, beside it.
        below = options.ca.items[last][2].value.partition("\n")[2]
    for key in flat:
        del options[key]
    if not options:
        document["runtime_options"] = _flow({})
    keys = list(document)
    following = keys[keys.index("runtime_options") + 1 :]
    if below.strip() and following:
        text = "\n".join(line.strip().removeprefix("#").strip() for line in below.splitlines())
        document.yaml_set_comment_before_after_key(following[0], before=text.strip("\n"))


def _replace(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
