"""The model store's archives, in the order that TorchServe has to load them."""

from __future__ import annotations

import re
from pathlib import Path

from marsmith.archive import read_header


def version_key(version: str) -> tuple[tuple[int, str], ...]:
    """Sorts versions by their numbers: 10.0 after 2.0, and 2.0 after 2.0-rc1."""
    parts = re.findall(r"\d+|[A-Za-z]+", version)
    keys = [(int(part), "") if part.isdecimal() else (-2, part) for part in parts]
    return (*keys, (-1, ""))


def archives_newest_first(store: Path) -> list[str]:
    """The store's archives as bare file names by model, each model's newest version first.

    TorchServe makes the first version that it loads the default one.
    """
    found = [(read_header(path), path.name) for path in sorted(store.glob("*.mar"))]
    found.sort(key=lambda item: version_key(item[0].version), reverse=True)
    found.sort(key=lambda item: item[0].name)
    return [file for _, file in found]
