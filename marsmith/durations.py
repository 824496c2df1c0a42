"""What options of times take: none of them is negative."""

from __future__ import annotations

import click

# A wait of no time at all would ask nobody, or without end.
POSITIVE = click.FloatRange(min=0, min_open=True)
OR_NONE = click.FloatRange(min=0)
