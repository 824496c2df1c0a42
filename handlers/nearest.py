"""What somebody may have meant by a name that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Collection

# Names that are told, and how like they must be.
_MOST, _LIKENESS = 5, 0.6


def hint(name: str, known: Collection[str], listed: Collection[str] | None = None) -> str:
    """For a message: those of ``known`` that begin with ``name``, or are most like it, or else all
    ``listed`` (default: all known). Upper and lower case are the same."""
    by = {each.lower(): each for each in sorted(known)}
    wanted = name.lower()
    begin = [each for each in by if wanted and each.startswith(wanted)]
    if near := begin[:_MOST] or difflib.get_close_matches(wanted, by, _MOST, _LIKENESS):
        return f"did you mean {', '.join(by[each] for each in near)}?"
    every = sorted(known if listed is None else listed)
    return f"known are {', '.join(every)}" if every else "none are known"
