"""Names of what the modules of a network give: a module's qualified name, ``#1`` behind it at a
second call.

Nodes of an ONNX graph that are no module's result have their own kind after a slash: see
``onnx_names``.
"""

from __future__ import annotations

import re
from collections import Counter


def numbered(name: str, call: int) -> str:
    """The name of a module's result in one of its calls, which count from 0."""
    return f"{name}#{call}" if call else name


class Calls:
    """Names of what modules give, called again and again."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def next(self, name: str) -> str:
        """The name of what this call of module ``name`` gives."""
        self._seen[name] += 1
        return numbered(name, self._seen[name] - 1)


def module_of(name: str) -> str:
    """The qualified name of the module that a node or a value is named after."""
    return name.partition("/")[0].partition("#")[0]


def is_result(name: str) -> bool:
    """Whether a value of an artifact of ours is named after the module that gives it."""
    return re.fullmatch(r"(network|decode)(\.\w+)*(#\d+)?", name) is not None
