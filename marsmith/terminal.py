"""The console that tables are printed to."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.console import Console

# Of what no terminal shows.
WIDTH = 120


def console(width: int = WIDTH, markup: bool = True) -> Console:
    """A console as wide as the terminal, or ``width`` where the output goes elsewhere."""
    given = None if sys.stdout.isatty() else width
    return Console(highlight=False, markup=markup, width=given)


def telling(console: Console, update: Callable[[str], object]) -> Callable[[str], object]:
    """What tells what a command is at: ``update`` changes a line of a terminal; elsewhere, as in a
    log, each is a line of its own."""
    if console.is_terminal:
        return update
    return lambda words: console.print(words, markup=False, soft_wrap=True)


def printable(text: str) -> str:
    """A text that steers no terminal, whoever wrote it."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
