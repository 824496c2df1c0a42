"""docs/runtimes.md and docs/precision.md say of each runtime and precision what the code does."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from handlers import plugins
from handlers.closeness import DEFAULTS
from handlers.device import KINDS

DOCS = Path(__file__).parents[2] / "docs"


def table(page: str, first: str) -> dict[str, dict[str, str]]:
    """The rows of the table whose first heading is ``first``: by their first cell, in code there,
    the others by their headings."""
    lines = (DOCS / page).read_text("utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    (_, *headings), rows = _cells(lines[start]), {}
    for line in lines[start + 2 :]:
        if not line.startswith("| "):
            break
        name, *cells = _cells(line)
        rows[name.strip("`")] = dict(zip(headings, cells, strict=True))
    return rows


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def words(cell: str) -> tuple[str, ...]:
    """What a cell lists, without what it says of it in brackets."""
    return tuple(word.strip() for word in re.sub(r"\(.*?\)", "", cell).split(","))


RUNTIMES = table("runtimes.md", "runtime")


def test_no_row_is_of_a_runtime_that_there_is_not() -> None:
    assert RUNTIMES.keys() <= set(plugins.names("runtimes"))


@pytest.mark.parametrize("name", plugins.names("runtimes"))
def test_a_runtime_is_what_its_row_says(name: str) -> None:
    assert name in RUNTIMES, "it has no row in the first table of docs/runtimes.md"
    runtime, row = plugins.load_runtime(name), RUNTIMES[name]
    assert tuple(KINDS[device.lower()] for device in words(row["devices"])) == runtime.devices
    assert words(row["precisions"]) == runtime.precisions
    assert row["same bytes"] == runtime.reproducible.replace("-", " ")
    assert row["artifact"].startswith(f"`{runtime.suffix}`")
    assert tuple(re.findall("batch|height|width", row["sizes that vary"])) == runtime.varies
    halved = runtime.static_precisions
    whole = "none" if "object-detection" in runtime.excluded_tasks else "whole"
    assert row["detectors"].startswith("in two halves" if "fp32" in halved else whole)
    if "fp32" not in halved:
        said = re.findall(r"(\w+) in two halves", row["detectors"])
        assert tuple(said) == halved
    installed = f"make runtime-{name}" in row["needs"]
    # torchao is for int8 alone, so aotinductor does not require it.
    assert installed == bool(runtime.requires or "int8: " in row["needs"])


@pytest.mark.parametrize("name", plugins.names("tasks"))
def test_a_task_is_named_where_users_look_it_up(name: str) -> None:
    assert f"`{name}`" in table("model-file.md", "key")["task"]["what it says"]
    assert f"**{name}**" in (DOCS / "requests.md").read_text("utf-8"), "with what it answers"


def test_the_limits_of_each_precision_are_those_of_the_code() -> None:
    rows = table("precision.md", "key")
    for precision, closeness in DEFAULTS.items():
        cells = {key: row[precision] for key, row in rows.items()}
        said = {key: None if cell == "none" else float(cell) for key, cell in cells.items()}
        said["outputs"] = said.pop("tolerance")
        assert said == asdict(closeness)
