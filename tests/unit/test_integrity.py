"""An archive's files are those of its record, or the first that is not is named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from handlers.errors import IntegrityError
from handlers.integrity import RECORD, sha256, verify

FILES = {"MAR-INF/MANIFEST.json": b"{}", "a/b/model.pt": b"weights", "labels.txt": b"x"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    (tmp_path / RECORD).write_text(json.dumps({"sha256": digests}))
    return tmp_path


def test_the_files_as_recorded_pass(folder: Path) -> None:
    verify(folder)


def test_sha256_is_that_of_the_content(folder: Path) -> None:
    assert sha256(folder / "labels.txt") == hashlib.sha256(b"x").hexdigest()


@pytest.mark.parametrize("name", FILES)
def test_every_changed_byte_is_found(folder: Path, name: str) -> None:
    content = FILES[name]
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1
        (folder / name).write_bytes(changed)
        with pytest.raises(IntegrityError, match=f"^{name} was changed after the build"):
            verify(folder)
    (folder / name).write_bytes(content)
    verify(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(IntegrityError, match=f"^{name} is missing from the archive"):
        verify(folder)


@pytest.mark.parametrize("name", ["json.py", "a/extra.bin", "MAR-INF/OTHER.json"])
def test_an_added_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    with pytest.raises(IntegrityError, match=f"^{name} was added to the archive"):
        verify(folder)


def test_what_python_caches_before_it_is_told_not_to_is_no_addition(folder: Path) -> None:
    (folder / "handlers/__pycache__").mkdir(parents=True)
    names = ("__init__.cpython-311.pyc", "entry.cpython-311.pyc", "entry.cpython-311.opt-1.pyc")
    for name in names:
        (folder / "handlers/__pycache__" / name).write_bytes(b"")
    verify(folder)


@pytest.mark.parametrize(
    "name",
    [
        "handlers/__pycache__/task.cpython-311.pyc",
        "handlers/tasks/__pycache__/entry.cpython-311.pyc",
        "source/__pycache__/entry.cpython-311.pyc",
        "handlers/__pycache__/entry.py",
    ],
)
def test_planted_bytecode_is_named(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(IntegrityError, match=f"^{name} was added to the archive"):
        verify(folder)


def test_a_worker_leaves_no_bytecode_that_another_would_refuse(folder: Path, project: Path) -> None:
    copy = shutil.ignore_patterns("__pycache__")
    shutil.copytree(project / "handlers", folder / "handlers", ignore=copy)
    record = json.loads((folder / RECORD).read_text())
    for path in (folder / "handlers").rglob("*.py"):
        record["sha256"][path.relative_to(folder).as_posix()] = sha256(path)
    (folder / RECORD).write_text(json.dumps(record))
    code = "import handlers.entry, handlers.bundle, handlers.task"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=clean, check=True, timeout=120)
        assert (folder / "handlers/__pycache__").is_dir()
        verify(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "\xff"])
def test_without_a_readable_record_it_is_no_whole_archive(folder: Path, text: str) -> None:
    (folder / RECORD).write_bytes(text.encode("latin-1"))
    with pytest.raises(IntegrityError, match="no whole marsmith archive"):
        verify(folder)


def test_without_any_record_it_is_no_whole_archive(folder: Path) -> None:
    (folder / RECORD).unlink()
    with pytest.raises(IntegrityError, match="no whole marsmith archive"):
        verify(folder)
