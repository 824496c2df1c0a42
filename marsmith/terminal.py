"""The console that tables are printed to."""

from __future__ import annotations

import sys

from rich.console import Console

# Of what no terminal shows.
WIDTH = 120


def console(width: int = WIDTH, markup: bool = True) -> Console:
    """A console as wide as the terminal, or ``width`` where the output goes elsewhere."""
    given = None if sys.stdout.isatty() else width
    return Console(highlight=False, markup=markup, width=given)


def printable(text: str) -> str:
    """A text that steers no terminal, whoever wrote it."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
