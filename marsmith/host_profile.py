"""A serving profile: what ``marsmith tune`` found for models on one kind of host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from handlers.errors import SpecError, one_line
from handlers.nearest import hint

KEYS = ("runtime", "runtime_options", "precision", "calibration", "accuracy", "serving")


def read(path: Path) -> dict[str, Any]:
    """The mapping of a profile, with ``host`` and ``models``; raises SpecError."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SpecError(f"{path}: cannot be read: {one_line(error)}") from error
    models = found.get("models") if isinstance(found, dict) else None
    if not isinstance(models, dict) or not isinstance(found.get("host"), dict):
        raise SpecError(f"{path}: is no profile of `marsmith tune --profile`, with host and models")
    return dict(found)


def overrides(path: Path, name: str) -> dict[str, Any]:
    """The keys of model ``name`` that a profile says; raises SpecError where it says none."""
    models = read(path)["models"]
    if name not in models:
        raise SpecError(
            f"{path}: has no model {name} ({hint(name, models)}): add it with "
            f"`marsmith tune {name} --profile {path}`"
        )
    keys = models[name]
    if not isinstance(keys, dict) or set(keys) - set(KEYS):
        raise SpecError(f"{path}: models.{name} is {keys!r:.60}: accepted are {', '.join(KEYS)}")
    return keys
