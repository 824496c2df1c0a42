from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from handlers.errors import ArchiveError, IntegrityError
from marsmith import keys
from marsmith.archive import Header
from marsmith.store import (
    admit,
    locate,
    name_in,
    newest_first,
    readable,
    verify,
    version_key,
    workspace,
)


def _archive(store: Path, file: str, model: str, version: str) -> None:
    with zipfile.ZipFile(store / file, "w") as archive:
        manifest = {"model": {"modelName": model, "modelVersion": version}}
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))


def _newest_first(store: Path, first: dict[str, str] | None = None) -> list[str]:
    headers, reasons = readable(store)
    assert reasons == {}
    return newest_first(headers, first)


def test_newest_version_of_each_model_comes_first(tmp_path: Path) -> None:
    for version in ("2.0", "10.0", "1.0", "9.1.1"):
        _archive(tmp_path, f"m-{version}.mar", "m", version)
    # The manifest's name counts and not the file's
    _archive(tmp_path, "z.mar", "a", "1.0")
    (tmp_path / "note.txt").touch()
    expected = ["z.mar", "m-10.0.mar", "m-9.1.1.mar", "m-2.0.mar", "m-1.0.mar"]
    assert _newest_first(tmp_path) == expected


def test_versions_sort_by_number() -> None:
    versions = ["10.0", "2.0", "2.0-rc1", "1.0", "2.0.1", "2.10", "2.9", "latest"]
    ordered = ["latest", "1.0", "2.0-rc1", "2.0", "2.0.1", "2.9", "2.10", "10.0"]
    assert sorted(versions, key=version_key) == ordered


def test_what_is_no_archive_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "empty.mar").write_bytes(b"")
    (tmp_path / "text.mar").write_bytes(b"no zip")
    with zipfile.ZipFile(tmp_path / "bare.mar", "w") as archive:
        archive.writestr("weights.pt", b"")
    _archive(tmp_path, "m-1.0.mar", "m", "1.0")
    headers, reasons = readable(tmp_path)
    assert headers == {"m-1.0.mar": Header("m", "1.0")}
    assert list(reasons) == ["bare.mar", "empty.mar", "text.mar"]
    for file, reason in reasons.items():
        assert reason.startswith(f"{file} is not a readable model archive: ")
        assert reason.endswith(": build it again, or remove it")
    assert readable(tmp_path, ["text.mar"])[0] == {}
    with pytest.raises(ArchiveError, match=r"no none\.mar in .*: did you mean "):
        readable(tmp_path, ["m-1.0.mar", "none.mar"])


def test_an_archive_is_a_path_or_a_file_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    here, there = tmp_path / "m-1.0.mar", tmp_path / "store" / "m-1.0.mar"
    named = Path("m-1.0.mar")
    there.touch()
    assert locate(named, tmp_path, tmp_path / "store") == there
    here.touch()
    assert locate(named, tmp_path, tmp_path / "store") == here
    assert locate(there, tmp_path, tmp_path / "none") == there
    words = r"no archive at .*/m\.mar, nor in .*/store: did you mean m-1\.0\.mar\?"
    with pytest.raises(ArchiveError, match=words):
        locate(Path("m.mar"), tmp_path, tmp_path / "store")


def test_a_chosen_version_comes_before_the_newest(tmp_path: Path) -> None:
    for version in ("1.0", "2.0", "3.0"):
        _archive(tmp_path, f"m-{version}.mar", "m", version)
    expected = ["m-2.0.mar", "m-3.0.mar", "m-1.0.mar"]
    assert _newest_first(tmp_path, {"m": "2.0", "other": "1.0"}) == expected
    assert _newest_first(tmp_path, {"m": "gone"})[0] == "m-3.0.mar"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """An archive with a record, outside the store."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    _archive(folder, "built.mar", "m", "2.0")
    path = folder / "built.mar"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("weights.pt", b"weights")
        digests = {n: hashlib.sha256(archive.read(n)).hexdigest() for n in archive.namelist()}
        archive.writestr("MAR-INF/RECORD.json", json.dumps({"sha256": digests}))
    return path


def test_an_archive_is_admitted_once_under_its_own_name(tmp_path: Path, whole: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    assert name_in(store, whole) == "m-2.0.mar"
    assert admit(whole, store)
    assert not admit(whole, store)
    assert not admit(store / "m-2.0.mar", store)
    assert [path.name for path in store.iterdir()] == ["m-2.0.mar"]
    assert (store / "m-2.0.mar").read_bytes() == whole.read_bytes()
    assert (store / "m-2.0.mar").stat().st_mode == whole.stat().st_mode


def test_other_bytes_of_the_same_name_are_refused(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "m-2.0.mar").write_bytes(b"another")
    with pytest.raises(ArchiveError, match=r"the store has another m-2\.0\.mar already"):
        admit(whole, tmp_path / "store")
    assert (tmp_path / "store" / "m-2.0.mar").read_bytes() == b"another"


def test_a_damaged_archive_is_not_admitted(tmp_path: Path, whole: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    with zipfile.ZipFile(whole, "a") as archive:
        archive.writestr("added.py", "")
    with pytest.raises(IntegrityError, match=r"added\.py was added"):
        admit(whole, store)
    with pytest.raises(IntegrityError, match=r"added\.py was added"):
        verify(whole)
    assert list(store.iterdir()) == []
    shutil.copy(whole, store / "m-2.0.mar")
    with pytest.raises(IntegrityError, match=r"added\.py was added"):
        admit(store / "m-2.0.mar", store)


@pytest.mark.parametrize("named", [("../../x", "1.0"), ("m", "/../../x")])
def test_a_manifest_leads_no_archive_out_of_the_store(
    tmp_path: Path, named: tuple[str, str]
) -> None:
    store = tmp_path / "a" / "store"
    (store / "m-").mkdir(parents=True)
    _archive(tmp_path, "built.mar", *named)
    with zipfile.ZipFile(tmp_path / "built.mar", "a") as archive:
        digest = hashlib.sha256(archive.read("MAR-INF/MANIFEST.json")).hexdigest()
        record = {"sha256": {"MAR-INF/MANIFEST.json": digest}}
        archive.writestr("MAR-INF/RECORD.json", json.dumps(record))
    before = sorted(tmp_path.rglob("*"))
    for work in (admit, lambda archive, store: name_in(store, archive)):
        with pytest.raises(ArchiveError, match=r"^built\.mar: MAR-INF/MANIFEST\.json has model"):
            work(tmp_path / "built.mar", store)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_archive_whose_workers_cannot_start_here_is_not_admitted(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(path: Path) -> None:
        raise ArchiveError(f"{path.name} needs another torch")

    monkeypatch.setattr("marsmith.store.check_torch", check)
    (tmp_path / "store").mkdir()
    with pytest.raises(ArchiveError, match="built.mar needs another torch"):
        admit(whole, tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []


_KILLED = """
import os, sys
from pathlib import Path
from marsmith import archive, keys, signing, store
store.verify = archive.zip_folder = lambda *_: os._exit(9)
{0}(*map(Path, sys.argv[1:]))
"""


@pytest.mark.parametrize("work", ["store.admit", "signing.sign"])
def test_what_a_killed_rollout_or_signing_left_is_removed_by_the_next(
    tmp_path: Path, whole: Path, work: str
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    secret, _ = keys.generate(tmp_path / "release")
    shutil.copy(whole, store / "other.mar")
    given = {"store.admit": (whole, store), "signing.sign": (store / "other.mar", secret)}[work]
    done = subprocess.run([sys.executable, "-c", _KILLED.format(work), *given], timeout=60)
    assert done.returncode == 9
    assert len(list(store.iterdir())) == 2
    assert admit(whole, store)
    assert sorted(path.name for path in store.iterdir()) == ["m-2.0.mar", "other.mar"]


def test_two_workspaces_that_end_and_begin_do_not_meet(tmp_path: Path) -> None:
    def build(_: int) -> None:
        with workspace(tmp_path) as folder:
            (folder / "x").touch()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(build, range(200)))
    assert [path.name for path in tmp_path.iterdir()] == []
