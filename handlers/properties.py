"""What stands in a ``config.properties``, as TorchServe's front end reads it.

That is java.util.Properties: a key ends at ``=``, at ``:`` or at a space, a backslash escapes, and
a line with one at its end goes on in the next.
"""

from __future__ import annotations

import re

_SPACE = " \t\f"
_CONTINUES = re.compile(r"(?<!\\)(\\\\)*\\\Z")
_PAIR = re.compile(r"((?:\\.|[^\\=: \t\f])*)[ \t\f]*[=:]?[ \t\f]*(.*)")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)")
_NAMED = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


def parse(text: str) -> dict[str, str]:
    """The settings of a text, the last of a key; raises ValueError for a malformed ``\\uXXXX``.

    Space around a value is left out, where Java keeps it at the end: no setting takes it.
    """
    found = {}
    lines = iter(re.split(r"\r\n|\r|\n", text))
    for natural in lines:
        line = natural.lstrip(_SPACE)
        if line in ("", "\\") or line[0] in "#!":
            continue
        while _CONTINUES.search(line):
            line = line[:-1] + next(lines, "").lstrip(_SPACE)
        pair = _PAIR.match(line)
        assert pair, "all parts of it may be empty"
        key, value = map(_unescaped, pair.groups())
        found[key] = value.strip()
    return found


def _unescaped(text: str) -> str:
    plain = _ESCAPE.sub(_meant, text)
    # A character beyond the first 65,536 is written as two, as Java has it.
    return plain.encode("utf-16", "surrogatepass").decode("utf-16")


def _meant(escape: re.Match[str]) -> str:
    name = escape[1]
    if name == "u":
        raise ValueError(r"\u without four hexadecimal digits after it")
    return chr(int(name[1:], 16)) if len(name) > 1 else _NAMED.get(name, name)
