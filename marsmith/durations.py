"""What options of times take: none of them is negative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

# A wait of no time at all would ask nobody, or without end.
POSITIVE = click.FloatRange(min=0, min_open=True)
OR_NONE = click.FloatRange(min=0)


def seconds(name: str, default: float, words: str, zero: bool = False) -> Callable[[Any], Any]:
    """The option ``name`` in seconds, above 0 or, with ``zero``, from 0; ``words`` are its help."""
    kind = OR_NONE if zero else POSITIVE
    return click.option(
        name, type=kind, default=default, show_default=True, metavar="SECONDS", help=words
    )
