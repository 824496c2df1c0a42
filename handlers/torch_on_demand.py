"""Stands for the package ``torch`` until somebody uses it, and then is replaced by it.

TorchServe's worker imports torch before it knows which model it will serve: half a gigabyte and
more than a second, of which a runtime with an engine of its own needs nothing. So the archives of
such runtimes have a copy of this file as ``torch.py`` in their root, where Python looks first. What
is asked of it is asked of the package, which is loaded then. It may import nothing of ours: it runs
before anything else of the archive.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

STANDS_IN = True
# Python imports submodules of nothing but packages; ``_Submodules`` sees to them.
__path__: list[str] = []
_lock = threading.RLock()


def __getattr__(name: str) -> Any:
    # Python asks modules for these, and neither is a use of torch.
    if name in ("__wrapped__", "__warningregistry__"):
        raise AttributeError(name)
    return getattr(package(), name)


def package() -> ModuleType:
    """The real package, from wherever it is installed; imported once. Raises ImportError."""
    with _lock:
        found = sys.modules.get("torch")
        if found is not None and not stands_in(found):
            return found
        spec = _installed()
        loaded = importlib.util.module_from_spec(spec)
        sys.modules["torch"] = loaded
        try:
            assert spec.loader is not None, "a package of Python files has one"
            spec.loader.exec_module(loaded)
        except BaseException:
            if found is None:
                del sys.modules["torch"]
            else:
                sys.modules["torch"] = found
            raise
        return loaded


def stands_in(module: ModuleType | None) -> bool:
    """Whether ``module`` is a copy of this file, and not the package."""
    return getattr(module, "STANDS_IN", False) is True


def loaded() -> bool:
    """Whether the real package has been imported by anybody."""
    found = sys.modules.get("torch")
    return found is not None and not stands_in(found)


def _installed() -> importlib.machinery.ModuleSpec:
    own = Path(__file__).resolve().parent
    places = [place for place in sys.path if Path(place or ".").resolve() != own]
    spec = importlib.machinery.PathFinder.find_spec("torch", places)
    if spec is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    return spec


class _Submodules:
    """Loads the package when one of its submodules is imported before it was used itself."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith("torch.") or loaded():
            return None
        real = package()
        if name in sys.modules:
            return importlib.util.spec_from_loader(name, _Known(sys.modules[name]))
        return importlib.machinery.PathFinder.find_spec(name, real.__path__)


class _Known(importlib.abc.Loader):
    """Gives a module that the package has imported itself, as it is."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


if __name__ == "torch":
    # As in ``handlers.entry``: a worker that is started again must find no file that no record has.
    sys.dont_write_bytecode = True
    sys.meta_path.insert(0, _Submodules())
