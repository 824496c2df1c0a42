"""Tasks and runtimes are found by the names of their files; nothing registers them."""

from __future__ import annotations

import importlib
import inspect
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from handlers.errors import MarsmithError, PluginError, one_line

if TYPE_CHECKING:
    from handlers.runtimes import Runtime
    from handlers.task import TaskHandler

T = TypeVar("T")
_HERE = Path(__file__).parent


def names(kind: str) -> list[str]:
    """Names of all plugins of ``kind`` ("tasks" or "runtimes"), sorted, as written in a spec.

    Raises PluginError for what else lies in their folder; what begins with _ or a dot may.
    """
    folder = Path(__file__).parent / kind
    found = [path for path in folder.iterdir() if path.name[0] not in "_."]
    for path in found:
        if not re.fullmatch(r"[a-z][a-z0-9_]*\.py", path.name) or not path.is_file():
            raise PluginError(
                f"handlers/{kind}/{path.name} is no {kind[:-1]}: that folder holds files named as "
                f"my_{kind[:-1]}.py (a-z, 0-9, _) alone: rename it, or move it elsewhere"
            )
    return sorted(path.stem.replace("_", "-") for path in found)


def load_task(name: str) -> type[TaskHandler]:
    """The handler class of task ``name``, such as "image-classification"."""
    from handlers.task import TaskHandler

    return _load("tasks", name, TaskHandler)  # type: ignore[type-abstract]


def load_runtime(name: str) -> type[Runtime]:
    """The class of runtime ``name``, such as "torchscript"."""
    from handlers.runtimes import Runtime

    return _load("runtimes", name, Runtime)  # type: ignore[type-abstract]


def halved(task: str, runtime: str, precision: str) -> bool:
    """Whether ``runtime`` gets only the part of the module whose shapes do not depend on data."""
    return load_task(task).loops and precision in load_runtime(runtime).static_precisions


def described(error: BaseException) -> str:
    """``KIND: WORDS (FILE:LINE)``, the innermost place in a plug-in's file, where there is one."""
    words, place = f"{type(error).__name__}: {one_line(error)}", _place(error)
    return f"{words} ({place})" if place else words


@contextmanager
def blamed() -> Iterator[None]:
    """What a plug-in's file raises that is no error of ours becomes PluginError with its place."""
    try:
        yield
    except MarsmithError:
        raise
    except Exception as error:
        if not _place(error):
            raise
        raise PluginError(described(error)) from error


def _place(error: BaseException) -> str:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.parent in (_HERE / "tasks", _HERE / "runtimes") and path.name != "__init__.py":
            return f"{path.relative_to(_HERE.parent)}:{frame.lineno}"
    return ""


def _load(kind: str, name: str, base: type[T]) -> type[T]:
    # Here, for whoever asks for names alone needs neither numpy nor Pillow.
    from handlers import contract

    known = names(kind)
    if name not in known:
        raise PluginError(f"no {kind[:-1]} {name!r}: accepted are {', '.join(known)}")
    path = f"handlers/{kind}/{name.replace('-', '_')}.py"
    try:
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    # A plug-in's file may fail at import in any way; its author needs the file and the reason.
    except Exception as error:
        raise PluginError(f"{path} cannot be imported: {described(error)}") from error
    found = list(
        dict.fromkeys(
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, base)
            and value.__module__ == module.__name__
        )
    )
    if len(found) != 1:
        which = ", ".join(each.__name__ for each in found) or "none"
        raise PluginError(
            f"{path} defines {len(found)} subclasses of {base.__name__} ({which}): exactly one is "
            "needed; what several files share belongs in handlers/, beside the folder"
        )
    contract.hold(found[0], base)
    return found[0]
