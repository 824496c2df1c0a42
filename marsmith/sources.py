"""The source of a network of one's own: which files travel, and what they may import."""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from handlers.errors import SpecError

PACKED = (".py", ".json", ".yaml", ".yml", ".txt", ".csv")
LARGEST = 1 << 20


def copy(source: Path, target: Path) -> list[str]:
    """Copy what travels of a file, or a package folder, into the folder ``target``; what was left
    out, in words.

    Raises SpecError for imports that mean something else in the archive.
    """
    target.mkdir()
    taken, left = parted(source)
    for path in taken:
        if path.suffix == ".py":
            _check_imports(path, source if source.is_dir() else source.parent)
        place = target / path.relative_to(source.parent)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    if not left:
        return []
    kinds = f"of a package only {', '.join(PACKED)} up to {LARGEST >> 20} MiB travel"
    names = ", ".join(path.relative_to(source.parent).as_posix() for path in left)
    return [f"left out of the archive, for {kinds}: {names}"]


def parted(source: Path) -> tuple[list[Path], list[Path]]:
    """Of a file, or a package folder, the files that travel, and those that are left out.

    Of a package travel Python files and small data (``PACKED``, up to a MiB each); caches, hidden
    files and links never do.
    """
    if source.is_file():
        return [source], []
    taken, left = list[Path](), list[Path]()
    for path in sorted(source.rglob("*")):
        parts = path.relative_to(source).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if hidden or (path.is_dir() and not path.is_symlink()):
            continue
        packed = not path.is_symlink() and path.suffix in PACKED
        (taken if packed and path.stat().st_size <= LARGEST else left).append(path)
    return taken, left


def imported(files: Iterable[Path]) -> set[str]:
    """Top-level names of the modules that Python files import, without the standard library's."""
    trees = (ast.parse(path.read_bytes(), path.name) for path in files if path.suffix == ".py")
    return {name for tree in trees for name, _ in _absolute(tree)} - sys.stdlib_module_names


def _check_imports(path: Path, package: Path) -> None:
    """No absolute import may mean a file of the user's own: in the archive it finds another one.

    The source is imported under a name of its own, and its folder is not on Python's path.
    """
    try:
        tree = ast.parse(path.read_bytes(), path.name)
    except (SyntaxError, ValueError) as error:
        raise SpecError(f"architecture: {path.name} is not Python: {error}") from error
    for name, line in _absolute(tree):
        if name == path.stem and path.parent == package and path.name != "__init__.py":
            continue
        beside = [folder / name for folder in {path.parent, package}]
        if (package / "__init__.py").is_file() and name == package.name:
            beside.append(package)
        for found in beside:
            if found.with_name(found.name + ".py").is_file() or (found / "__init__.py").is_file():
                raise SpecError(_ambiguous(path, package, name, line))


def _ambiguous(path: Path, package: Path, name: str, line: int) -> str:
    place = f"architecture: {path.name} line {line} imports {name}"
    if (package / "__init__.py").is_file():
        return (
            f"{place}, which lies in the package {package.name} and would shadow or miss another "
            f"module of that name: write a relative import (from . import module, from .module "
            f"import Name), or rename it if Python's or a library's {name} is meant"
        )
    return (
        f"{place}, which lies beside it and does not travel: make their folder a package with "
        f"__init__.py and relative imports, and name it as architecture (./{package.name}:Net); or "
        f"rename it if Python's or a library's {name} is meant"
    )


def _absolute(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Top-level names of all absolute imports, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0], node.lineno
