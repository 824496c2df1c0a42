"""The console that tables are printed to."""

from __future__ import annotations

import sys

from rich.console import Console

# Of what no terminal shows.
WIDTH = 120


def console() -> Console:
    """A console as wide as the terminal, or ``WIDTH`` where the output goes elsewhere."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def printable(text: str) -> str:
    """A text that steers no terminal, whoever wrote it."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
