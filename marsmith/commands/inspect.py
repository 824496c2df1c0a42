"""Show all that an archive says of itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from marsmith.model_options import caller

_LISTED = 5
# Of the report: told by itself, and what parity was before the runtime rewrote the file.
_LEFT_OUT = ("accuracy", "exported")


@click.command()
@click.argument("archive", type=click.Path(path_type=Path))
@click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Public key to check the signature by; repeatable.",
)
@click.option("--files", is_flag=True, help="List every file with its size and sha256.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(archive: Path, keys: tuple[Path, ...], files: bool, as_json: bool) -> None:
    """Show all that ARCHIVE, a path or a file of the store, says of itself.

    Nothing of it is imported or run. Exits with 1 where a file is not as it was built, or none of
    the given keys has signed it.
    """
    from marsmith import inspection, store

    here = caller()
    found = inspection.read(store.locate(archive, here), [here / key for key in keys])
    wrong = inspection.problems(found)
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        _show(found, files, wrong)
    sys.exit(1 if wrong else 0)


def _show(found: dict[str, Any], files: bool, wrong: list[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    from marsmith.terminal import console, printable

    out = console()
    table = Table.grid(padding=(0, 2))
    for name, value in _rows(found).items():
        table.add_row(Text(name, "bold"), Text(printable(value)))
    out.print(table)
    if files:
        listing = Table("file", "bytes", "sha256", "state")
        for file in found["files"]:
            row = (file["name"], f"{file['bytes']:,}", file["sha256"][:16], file["state"])
            listing.add_row(*(Text(printable(cell)) for cell in row))
        out.print(listing)
    for line in wrong:
        out.print(Text(printable(line), "red"), soft_wrap=True)


def _rows(found: dict[str, Any]) -> dict[str, str]:
    origin, labels = found["provenance"], found["labels"]
    more = ["..."] if len(labels) > _LISTED else []
    parts = [file for file in found["files"] if not file["name"].startswith("handlers/")]
    return {
        "model": f"{found['name']} {found['version']}: {origin.get('description', '')}",
        "archive": f"{found['file']}, {found['bytes'] / 1e6:.1f} MB, sha256 {found['sha256']}",
        "signature": _signature(found["signature"]),
        "licence": found["licence"],
        "task": found["task"],
        "runtime": f"{found['runtime']} {found['precision']}, {_pairs(found['runtime_options'])}",
        "input": _pairs(found["input"]),
        "labels": f"{len(labels)}: {', '.join([*labels[:_LISTED], *more])}",
        "defaults": _pairs(found["defaults"]),
        "golden requests": ", ".join(case["picture"] for case in found["golden"]) or "none",
        "parity": _pairs({k: v for k, v in found["report"].items() if k not in _LEFT_OUT}),
        "accuracy": _pairs(found["report"].get("accuracy", {})),
        "limits": _pairs(found["limits"]),
        "serving": _pairs(found["serving"]),
        "weights": _pairs(_source(origin["spec"])),
        "data": _pairs(origin.get("data", {})),
        "code": _pairs(origin.get("code", {})),
        "made with": f"{_pairs(origin['versions'])} on {_pairs(origin.get('host', {}))}",
        "notes": "; ".join(origin.get("notes", [])) or "none",
        "packages": f"{len(found['packages'])} needed by a worker (sbom.cdx.json, --json)",
        "files": f"{len(found['files'])}, of which beside the handlers {len(parts)} (--files)",
    }


def _source(spec: dict[str, Any]) -> dict[str, Any]:
    source: dict[str, Any] = spec.get("weights") or spec.get("artifact") or {}
    return source


def _signature(found: dict[str, Any]) -> str:
    if found["by"]:
        return f"by {found['by']}, over every byte"
    return "there is one, not checked: give --key PUBLIC" if found["signed"] else "none"


def _pairs(values: dict[str, Any]) -> str:
    """Nested values on one line; what is not set is left out."""
    kept = {key: value for key, value in values.items() if value not in (None, "", {}, [])}
    shown = [
        f"{key} ({_pairs(value)})" if isinstance(value, dict) else f"{key} {_plain(value)}"
        for key, value in kept.items()
    ]
    return ", ".join(shown) or "none"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_plain, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
