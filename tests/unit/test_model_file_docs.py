"""docs/model-file.md has every key that a model file may have, with its default, and no other."""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from marsmith.spec import ModelSpec

PAGE = (Path(__file__).parents[2] / "docs/model-file.md").read_text("utf-8")
ROWS = dict(re.findall(r"^\| `([\w.]+)` \| (.+?) \|", PAGE, re.MULTILINE))


def part(annotation: Any) -> type[BaseModel] | None:
    """The model of a nested key."""
    choices = typing.get_args(annotation) or (annotation,)
    found = [
        each
        for each in choices
        if isinstance(each, type)
        and not isinstance(each, types.GenericAlias)
        and issubclass(each, BaseModel)
    ]
    return found[0] if found else None


def keys(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Defaults by dotted key; ``...`` where a key is required."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        found[prefix + name] = ... if field.is_required() else field.default
        if nested := part(field.annotation):
            found |= keys(nested, f"{prefix}{name}.")
    return found


def test_every_key_is_there_and_no_other() -> None:
    assert set(ROWS) == set(keys(ModelSpec))
    assert len(ROWS) > 50


def test_a_default_that_is_shown_as_code_is_the_default() -> None:
    shown = {name: text for name, text in ROWS.items() if text.startswith("`")}
    assert len(shown) > 25
    wanted = keys(ModelSpec)
    assert {name: yaml.safe_load(text.strip("`")) for name, text in shown.items()} == {
        name: wanted[name] for name in shown
    }


def test_what_is_required_says_so() -> None:
    required = {name for name, default in keys(ModelSpec).items() if default is ...}
    assert {name for name, text in ROWS.items() if text == "required"} == required
