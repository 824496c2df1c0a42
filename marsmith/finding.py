"""What ``marsmith doctor`` found in one place, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line for a person. ``mend`` is empty where nothing has to be done.

    ``wrong``: it does not work, or is open to others. ``warning``: it works, and may not for long
    or not well.
    """

    level: Literal["ok", "warning", "wrong"]
    subject: str
    text: str
    mend: str = ""

    def to_json(self) -> dict[str, str]:
        """The same as JSON values."""
        return asdict(self)


def judge(bad: bool, subject: str, text: str, mend: str, soft: bool = False) -> Finding:
    """A finding that is ok, or else wrong (``soft``: a warning) with what to do."""
    if not bad:
        return Finding("ok", subject, text)
    return Finding("warning" if soft else "wrong", subject, text, mend)
