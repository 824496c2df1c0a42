"""Which contenders there are, and which of them a command line means."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.serving.contender import Contender
from benchmarks.serving.subject import Subject
from handlers.errors import SpecError


def families() -> dict[str, type[Contender]]:
    """The contenders by the names of their files."""
    folder = Path(__file__).parent / "contenders"
    found = {}
    for module in pkgutil.iter_modules([str(folder)]):
        loaded = importlib.import_module(f"benchmarks.serving.contenders.{module.name}")
        [found[module.name]] = [
            value
            for value in vars(loaded).values()
            if inspect.isclass(value)
            and issubclass(value, Contender)
            and value.__module__ == loaded.__name__
            and not value.__name__.startswith("_")
        ]
    return found


def chosen(words: Sequence[str], subject: Subject) -> list[str]:
    """Names of contenders for parts ("stock"), files ("ray"), names and patterns ("ours/*:fp32").

    A full name need not be one of the variants that take part by themselves. Raises SpecError.
    """
    known = {name: one for name, one in families().items() if subject.spec.task in one.tasks}
    every = [
        f"{name}/{variant}" for name, one in known.items() for variant in one.variants(subject)
    ]
    names: list[str] = []
    for word in words:
        family, _, variant = word.partition("/")
        fitting = [name for name in every if fnmatch(name, word) or name.startswith(f"{word}/")]
        fitting += [name for name in every if known[name.partition("/")[0]].part == word]
        if not fitting and family in known and variant and "*" not in variant:
            fitting = [word]
        if not fitting:
            parts = sorted({one.part for one in known.values()})
            raise SpecError(
                f"no contender {word!r} for {subject.spec.task}: parts are {', '.join(parts)}; "
                f"contenders are {', '.join(every)}"
            )
        names += [name for name in fitting if name not in names]
    return names
