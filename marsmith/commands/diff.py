"""Tell what differs between two archives."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from marsmith.model_options import caller
from marsmith.terminal import printable


@click.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(first: Path, second: Path, as_json: bool) -> None:
    """Tell what changed from the archive FIRST to SECOND; nothing of them is imported or run.

    Each is a path or a file of the store. Told are settings and versions by their keys, labels, the
    handlers' code and other files. Exits with 0 where nothing differs and with 1 where something
    does, as diff.
    """
    from marsmith import inspection, store

    sides = [inspection.read(store.locate(path, caller())) for path in (first, second)]
    found = inspection.differences(sides[0], sides[1])
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        _show(found)
    sys.exit(1 if any(found.values()) else 0)


def _show(found: dict[str, Any]) -> None:
    pairs = found["values"].items()
    lines = [f"{key}: {_text(old)} -> {_text(new)}" for key, (old, new) in pairs]
    lines += [f"labels {what}: {', '.join(names)}" for what, names in found["labels"].items()]
    lines += [f"{name}: {what}" for part in ("code", "files") for name, what in found[part].items()]
    for line in lines or ["nothing differs"]:
        click.echo(printable(line))


def _text(value: Any) -> str:
    return "not there" if value is None else json.dumps(value, ensure_ascii=False)
