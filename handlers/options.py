"""Options of a request: declared by a task, read from headers, fields or JSON, checked once."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handlers.errors import BadRequest

# Plain repr() of lists in lists, as deep as JSON may be, is a RecursionError.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 64


@dataclass(frozen=True)
class Option:
    """One option that a client may set.

    ``kind`` is int, float or str; ``minimum`` and ``maximum`` bound numbers, ``choices`` strings.
    """

    name: str
    kind: type
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    def parse(self, value: object) -> Any:
        """``value`` (a JSON value, text or bytes) as ``kind``; raises BadRequest."""
        try:
            parsed = _convert(self.kind, value)
        except (ValueError, TypeError, OverflowError) as error:
            raise self._refusal(value) from error
        if self.choices and parsed not in self.choices:
            raise self._refusal(value)
        if not within(parsed, self.minimum, self.maximum):
            raise self._refusal(value)
        return parsed

    def describe(self) -> dict[str, Any]:
        """The option as JSON values, for error bodies and the describe call."""
        bounds = {"minimum": self.minimum, "maximum": self.maximum, "choices": list(self.choices)}
        return {
            "type": {int: "integer", float: "number", str: "string"}[self.kind],
            "default": self.default,
            **{key: value for key, value in bounds.items() if value not in (None, [])},
            "help": self.help,
        }

    def accepted(self) -> str:
        """What values this option takes, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        words = {int: "a whole number", float: "a number", str: "text"}[self.kind]
        return words + between(self.minimum, self.maximum)

    def _refusal(self, value: object) -> BadRequest:
        return BadRequest(
            f"option {self.name}={shown(value)} is not accepted: it takes {self.accepted()}",
            option=self.name,
            accepted=self.describe(),
        )


def within(value: Any, least: float | None, most: float | None) -> bool:
    """Whether a value is in its bounds, of which None is none; NaN is in no others."""
    return (least is None or value >= least) and (most is None or value <= most)


def between(least: float | None, most: float | None) -> str:
    """Bounds in words that follow those for the kind of value: " from 0 to 1"."""
    words = "" if least is None else f" from {least:g}"
    return words + ("" if most is None else f" to {most:g}")


def parse_options(
    given: Mapping[str, object], accepted: Sequence[Option], fixed: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """All options with their values: those given, parsed, and the defaults of the others.

    ``fixed`` are names that clients may take for options, with the reason why none is. Raises
    BadRequest for an unknown name, listing the accepted ones, or a value out of range.
    """
    by_name = {option.name: option for option in accepted}
    for name in given:
        if name not in by_name:
            listing = "; ".join(f"{option.name}: {option.accepted()}" for option in accepted)
            reason = (fixed or {}).get(name)
            came = f"unknown option {shown(name)}"
            raise BadRequest(
                f"{came if reason is None else f'option {name}: {reason}'}: accepted are {listing}",
                accepted={option.name: option.describe() for option in accepted},
            )
    return {
        name: option.parse(given[name]) if name in given else option.default
        for name, option in by_name.items()
    }


def _convert(kind: type, value: object) -> Any:
    if isinstance(value, (bytes, bytearray)):
        value = bytes(value).decode("utf-8")
    if isinstance(value, bool):
        raise TypeError("a truth value is not a number")
    if kind is str:
        if not isinstance(value, str):
            raise TypeError("not text")
        return value.strip()
    if isinstance(value, str):
        value = kind(value.strip())
    if not isinstance(value, (int, float)):
        raise TypeError("not a number")
    if not math.isfinite(value):
        raise ValueError("not finite")
    if kind is int and not float(value).is_integer():
        raise ValueError("not whole")
    return kind(value)


def shown(value: object) -> str:
    """``value`` for a message, in at most 60 characters whatever it is."""
    if isinstance(value, (bytes, bytearray)):
        value = bytes(value).decode("utf-8", "replace")
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
