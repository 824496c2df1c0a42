"""Every table of README.md and docs/ is one to a reader, and not lines that begin with a bar."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
_SEPARATOR = re.compile(r"\|( ?:?-+:? ?\|)+")
_BAR = re.compile(r"(?<!\\)\|")


def _blocks(text: str) -> list[list[str]]:
    """Lines that begin with a bar and follow each other, but for those of code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    groups = groupby(text.splitlines(), key=lambda line: line.startswith("|"))
    return [list(lines) for is_row, lines in groups if is_row]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_rows_has_a_head_and_as_many_cells_in_each(page: Path) -> None:
    for head, *rows in _blocks(page.read_text("utf-8")):
        assert rows, head
        assert _SEPARATOR.fullmatch(rows[0]), head
        assert {len(_BAR.findall(row)) for row in rows} == {len(_BAR.findall(head))}, head


def test_rows_after_a_blank_line_are_a_block_of_their_own() -> None:
    [_, cut] = _blocks("| a |\n|---|\n| 1 |\n\n| 2 |\n\n```\n| no row |\n```\n")
    assert cut == ["| 2 |"]
