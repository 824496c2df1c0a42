"""The tables of docs/performance.md, written from a results file between two marks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.serving import tables
from benchmarks.serving.subject import PROJECT
from handlers.errors import SpecError

PAGE = PROJECT / "docs/performance.md"
BEGIN = "<!-- figures: written by `python -m benchmarks.serving --page RESULTS.json` -->"
END = "<!-- end of figures -->"


def markdown(results: dict[str, Any]) -> str:
    """The tables, with the machine and the command that they come from."""
    machine, subject = results["machine"], results["subject"]
    cores = f"{machine['cores']} cores of {machine['processor']}"
    parts = [
        f"{cores}, {machine['memory_gib']} GiB; commit {machine['commit']}, {results['started']}. "
        f"Model {subject['model']}, {subject['pictures']} pictures of {subject['kilobytes']} KB on "
        f"average; {results['plan']['rounds']} rounds of {results['plan']['seconds']:g} s a load.",
        f"```sh\n{results['command']}\n```",
    ]
    if results.get("reference") is not None:
        parts.append(f"Eager PyTorch in memory scores {results['reference']:.3f}.")
    for heading, cells in tables.every(results).items():
        parts.append(f"### {heading}\n\n{_table(cells)}")
    followed = {name.partition("/")[0]: text for name, text in results["recommended"].items()}
    parts.append("### What each follows")
    parts.append("\n".join(f"- **{name}**: {text}" for name, text in sorted(followed.items())))
    listed = ", ".join(
        f"{package} {version}"
        for package, version in sorted(
            {pair for one in results["versions"].values() for pair in one.items()}
        )
    )
    return "\n\n".join([*parts, f"Versions: {listed}; {machine['wrk']}."])


def write(results: Path, page: Path = PAGE) -> None:
    """Put the figures of a results file between the page's marks; raises SpecError."""
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SpecError(f"{page.name} must have the lines {BEGIN} and {END} once each")
    try:
        figures = markdown(json.loads(results.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError) as error:
        raise SpecError(f"{results} is no results file of this benchmark: {error!r}") from error
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{figures}\n\n{END}{after}", encoding="utf-8")


def _table(cells: tables.Cells) -> str:
    head, *lines = [[cell.replace("|", "\\|") for cell in line] for line in cells]
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
