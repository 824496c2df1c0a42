from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from handlers.errors import ArchiveError
from marsmith.store import archives_newest_first, version_key


def _archive(store: Path, file: str, model: str, version: str) -> None:
    with zipfile.ZipFile(store / file, "w") as archive:
        manifest = {"model": {"modelName": model, "modelVersion": version}}
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))


def test_newest_version_of_each_model_comes_first(tmp_path: Path) -> None:
    for version in ("2.0", "10.0", "1.0", "9.1.1"):
        _archive(tmp_path, f"m-{version}.mar", "m", version)
    # The manifest's name counts and not the file's
    _archive(tmp_path, "z.mar", "a", "1.0")
    (tmp_path / "note.txt").touch()
    expected = ["z.mar", "m-10.0.mar", "m-9.1.1.mar", "m-2.0.mar", "m-1.0.mar"]
    assert archives_newest_first(tmp_path) == expected


def test_versions_sort_by_number() -> None:
    versions = ["10.0", "2.0", "2.0-rc1", "1.0", "2.0.1", "2.10", "2.9", "latest"]
    ordered = ["latest", "1.0", "2.0-rc1", "2.0", "2.0.1", "2.9", "2.10", "10.0"]
    assert sorted(versions, key=version_key) == ordered


@pytest.mark.parametrize("content", [b"", b"no zip"])
def test_what_is_no_archive_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.mar").write_bytes(content)
    with pytest.raises(ArchiveError, match=r"x.mar is not a readable model archive"):
        archives_newest_first(tmp_path)


def test_a_zip_without_manifest_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.mar", "w") as archive:
        archive.writestr("weights.pt", b"")
    with pytest.raises(ArchiveError, match=r"x.mar is not a readable model archive"):
        archives_newest_first(tmp_path)
