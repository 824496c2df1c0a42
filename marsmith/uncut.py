"""Tables of many figures that a narrow terminal does not cut, and what failed of their rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich import box
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table


class Problems:
    """What failed of the rows of a table, told below it: a column would have what little room the
    figures leave."""

    def __init__(self) -> None:
        self._said: list[str] = []

    def mark(self, problem: str) -> str:
        """What stands in the row of one that failed."""
        if problem not in self._said:
            self._said.append(problem)
        return f"failed ({self._said.index(problem) + 1})"

    def print(self, console: Console) -> None:
        """A line for each problem."""
        for number, problem in enumerate(self._said, 1):
            console.print(f"({number}) {problem}", markup=False, highlight=False, soft_wrap=True)


def print_uncut(
    console: Console,
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Collection[str],
    marked: Collection[int] = (),
) -> None:
    """A table with every word whole, however narrow the terminal or the file is.

    Headings in ``left`` have words below them, and all others figures. Rows whose number is in
    ``marked`` are red.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    needed = 0
    for number, heading in enumerate(headings):
        words = " ".join([heading, *(row[number] for row in rows)]).split()
        least = max(map(len, words), default=0)
        justify: JustifyMethod = "left" if heading in left else "right"
        table.add_column(heading, justify=justify, min_width=least)
        # With what stands between columns.
        needed += least + 3
    if needed > console.width:
        # Else rich would leave columns out.
        table.width = needed
    for number, row in enumerate(rows):
        table.add_row(*map(escape, row), style="red" if number in marked else "")
    console.print(table, crop=False)
