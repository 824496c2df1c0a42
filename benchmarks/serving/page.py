"""The tables and plots of docs/performance-figures.md, written from results between two marks."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving import tables
from benchmarks.serving.subject import PROJECT
from handlers.errors import SpecError

PAGE = PROJECT / "docs/performance-figures.md"
BEGIN = "<!-- figures: written by `python -m benchmarks.serving --page RESULTS.json` -->"
END = "<!-- end of figures -->"


def markdown(results: dict[str, Any], number: int = 1) -> str:
    """The tables, with the machine and the command that they come from; ``number`` is for texts
    that name these figures."""
    machine, subject, plan = results["machine"], results["subject"], results["plan"]
    found = results["measurements"]
    others = max((one["usage"]["others"] for one in found if "usage" in one), default=0.0)
    # Where the files lay is no fact about the figures.
    command = re.sub(r"(?<=\s)/\S*/", "", results["command"])
    parts = [
        f"### Figures {number}: {subject['model']}, {_loads(plan)}",
        f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB; commit "
        f"{machine['commit']}, {results['started']}. {subject['pictures']} pictures of "
        f"{subject['kilobytes']} KB on average; {plan['rounds']} rounds of {plan['seconds']:g} s "
        f"a load; others took at most {others:.0%} of the cores.",
        f"```sh\n{command}\n```",
    ]
    if (scored := subject.get("scored", subject["pictures"])) < subject["pictures"]:
        parts.append(f"Scored are the {scored} that int8 was not calibrated with.")
    if results.get("reference") is not None:
        parts.append(f"Eager PyTorch in memory scores {results['reference']:.3f}.")
    for heading, cells in tables.every(results).items():
        parts.append(f"#### {heading}\n\n{_table(cells)}")
    return "\n\n".join(parts)


def write(files: Sequence[Path], page: Path = PAGE) -> None:
    """Put the figures of results files between the page's marks, with plots of the first one.

    Raises SpecError.
    """
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SpecError(f"{page.name} must have the lines {BEGIN} and {END} once each")
    sections: list[str] = []
    followed: dict[str, str] = {}
    versions: set[tuple[str, str]] = set()
    for number, file in enumerate(files, 1):
        try:
            results = json.loads(file.read_text(encoding="utf-8"))
            sections.append(markdown(results, number))
            if len(sections) == 1:
                sections.append(_plots(results, page))
            followed |= {name.partition("/")[0]: it for name, it in results["recommended"].items()}
            versions |= {pair for one in results["versions"].values() for pair in one.items()}
        except (OSError, ValueError, KeyError) as error:
            raise SpecError(f"{file} is no results file of this benchmark: {error!r}") from error
    listed = "\n".join(f"- **{name}**: {words}" for name, words in sorted(followed.items()))
    packages = ", ".join(f"{name} {version}" for name, version in sorted(versions))
    sections.append(f"### What each follows\n\n{listed}\n\nVersions: {packages}.")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    figures = "\n\n".join(sections)
    page.write_text(f"{before}{BEGIN}\n\n{figures}\n\n{END}{after}", encoding="utf-8")


def _plots(results: dict[str, Any], page: Path) -> str:
    """Draw into a folder beside the page, and show it there."""
    from benchmarks.serving import plots

    folder = page.parent / "images/performance"
    folder.mkdir(parents=True, exist_ok=True)
    made = [path.relative_to(page.parent) for path in plots.draw(results, folder)]
    return "\n\n".join(f"![{path.stem}]({path})" for path in made)


def _loads(plan: dict[str, Any]) -> str:
    """What a sitting is about, in words: its loads and the most connections."""
    words = {"poisson": "Poisson", "mlperf": "LoadGen", "eight": "eight a request"}
    loads = ", ".join(words.get(load, load) for load in plan["loads"])
    return f"{loads}, {max(plan['connections'])} connections"


def _table(cells: tables.Cells) -> str:
    head, *lines = [[cell.replace("|", "\\|") for cell in line] for line in cells]
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
