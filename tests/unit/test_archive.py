"""Archives: the same content gives the same bytes, with a manifest that TorchServe reads."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import zipfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from handlers import integrity, plugins
from handlers.bundle import Bundle
from handlers.errors import ArchiveError, PluginError
from handlers.inputs import ImageInput
from marsmith import archive

BUNDLE = Bundle("m", "2.0", "image-classification", "eager", "model.pth", ["a"], ImageInput())
FILES = {"model.pth": b"weights" * 100, "model-config.yaml": b"minWorkers: 1\n", "z/a.txt": b"a"}


def pack(place: Path, names: list[str] | None = None) -> Path:
    """An archive of FILES, written in the order of ``names``."""
    folder = place / "staged"
    for name in names or list(FILES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(FILES[name])
    archive.pack(folder, BUNDLE, place / "m-2.0.mar")
    return place / "m-2.0.mar"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return pack(tmp_path)


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    first = pack(tmp_path / "a")
    second = pack(tmp_path / "another/folder", [*FILES][::-1])
    os.utime(tmp_path / "a/staged/model.pth", (1, 1))
    (tmp_path / "another/folder/staged/z/a.txt").chmod(0o700)
    assert first.read_bytes() == second.read_bytes()


def test_names_are_sorted_and_times_and_modes_are_fixed(packed: Path) -> None:
    with zipfile.ZipFile(packed) as content:
        entries = content.infolist()
    names = [entry.filename for entry in entries]
    assert names == sorted([*FILES, "MAR-INF/MANIFEST.json", "MAR-INF/RECORD.json"])
    for entry in entries:
        assert entry.date_time == (1980, 1, 1, 0, 0, 0)
        assert entry.external_attr >> 16 == 0o644
        assert entry.compress_type == zipfile.ZIP_STORED


def test_a_file_too_large_for_a_plain_header_gets_a_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a file of 2 GiB would, without writing one.
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 500)
    path = pack(tmp_path)
    assert len(FILES["model.pth"]) > 500
    archive.unpack(path, tmp_path / "out")
    integrity.verify(tmp_path / "out")


def test_source_date_epoch_moves_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    path = pack(tmp_path)
    with zipfile.ZipFile(path) as content:
        assert {entry.date_time for entry in content.infolist()} == {(2023, 11, 14, 22, 13, 20)}
    assert archive.read_json(path, archive.MANIFEST)["createdOn"] == "14/11/2023 22:13:20"


@pytest.mark.parametrize("moment", ["", "-1", "0", "now", "1e9", "4354819200", "9" * 20])
def test_a_moment_that_no_zip_can_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", moment)
    with pytest.raises(ArchiveError, match=f"SOURCE_DATE_EPOCH='{moment}'"):
        pack(tmp_path)


def test_the_manifest_is_what_torchserve_reads(packed: Path) -> None:
    manifest = archive.read_json(packed, "MAR-INF/MANIFEST.json")
    assert manifest["runtime"] == "python"
    assert manifest["model"] == {
        "modelName": "m",
        "modelVersion": "2.0",
        "handler": "handlers.entry",
        "serializedFile": "model.pth",
        "configFile": "model-config.yaml",
    }
    assert archive.read_header(packed) == archive.Header("m", "2.0")


def test_the_record_holds_the_digest_of_every_file(packed: Path, tmp_path: Path) -> None:
    record = archive.read_json(packed, "MAR-INF/RECORD.json")["sha256"]
    assert record.keys() == {*FILES, "MAR-INF/MANIFEST.json"}
    assert record["z/a.txt"] == hashlib.sha256(b"a").hexdigest()
    archive.unpack(packed, tmp_path / "unpacked")
    integrity.verify(tmp_path / "unpacked")


def test_the_handlers_travel_whole_but_without_caches(tmp_path: Path, project: Path) -> None:
    archive.stage_handlers(tmp_path)
    staged = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    sources = (project / "handlers").rglob("*")
    expected = {p.relative_to(project).as_posix() for p in sources if p.suffix == ".py"}
    assert expected <= staged
    assert not [name for name in staged if "__pycache__" in name or name.endswith(".pyc")]


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_archive_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.mar"
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"m\.mar is not a readable model archive"):
        archive.read_header(path)


def test_a_missing_or_cut_archive_is_refused_by_name(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"none\.mar is not a readable"):
        archive.unpack(tmp_path / "none.mar", tmp_path / "out")
    packed.write_bytes(packed.read_bytes()[:-40])
    with pytest.raises(ArchiveError, match="is not a readable"):
        archive.unpack(packed, tmp_path / "out")


def test_a_damaged_member_is_found_while_unpacking(packed: Path, tmp_path: Path) -> None:
    packed.write_bytes(packed.read_bytes().replace(b"weightsweights", b"weightsWeights", 1))
    with pytest.raises(ArchiveError, match="Bad CRC-32"):
        archive.unpack(packed, tmp_path / "out")


@pytest.mark.parametrize("manifest", [{}, {"model": {}}, {"model": {"modelName": "m"}}, [], 5])
def test_a_manifest_without_name_and_version_is_refused(tmp_path: Path, manifest: Any) -> None:
    path = tmp_path / "m.mar"
    with zipfile.ZipFile(path, "w") as content:
        content.writestr(archive.MANIFEST, json.dumps(manifest))
    with pytest.raises(ArchiveError, match="it is no model archive"):
        archive.read_header(path)


def _headed(path: Path, name: Any, version: Any) -> Path:
    with zipfile.ZipFile(path, "w") as content:
        manifest = {"model": {"modelName": name, "modelVersion": version}}
        content.writestr(archive.MANIFEST, json.dumps(manifest))
    return path


@pytest.mark.parametrize(
    "version", ["latest", "2.0-rc1", "v1_2", "1!2.0+cu128", "2026-01-02T03:04"]
)
def test_versions_that_the_archiver_gives_to_others_are_read(tmp_path: Path, version: str) -> None:
    path = _headed(tmp_path / "theirs.mar", "The-net_2.b", version)
    assert archive.read_header(path) == archive.Header("The-net_2.b", version)


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [
        ("m", 1.0, "modelVersion 1.0: accepted is a text like"),
        ("m", None, "modelVersion None: accepted"),
        ("m", "", "modelVersion '': accepted"),
        ("m", "1/../../2", "modelVersion '1/../../2': accepted"),
        ("m", "1.0\n", r"modelVersion '1.0\\n': accepted"),
        # Python makes no number of more digits than 4300.
        ("m", "9" * 5000, "modelVersion '999.*: accepted"),
        (5, "1.0", "modelName 5, which is no text"),
        (["m"], "1.0", r"modelName \['m'\], which is no text"),
        ("", "1.0", "modelName '': Model name contains special"),
        ("../../x", "1.0", r"modelName '\.\./\.\./x': Model name contains special"),
        ("m\n", "1.0", r"modelName 'm\\n': Model name contains special"),
        ("m" * 250, "1.0", "too long for the name of a file: 255 characters"),
    ],
)
def test_a_manifest_that_names_no_file_of_a_store_is_refused(
    tmp_path: Path, name: Any, version: Any, words: str
) -> None:
    path = _headed(tmp_path / "theirs.mar", name, version)
    with pytest.raises(ArchiveError, match=rf"^theirs\.mar: MAR-INF/MANIFEST\.json has .*{words}"):
        archive.read_header(path)


def test_without_torch_the_runtimes_that_need_none_are_named(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_runtime(name: str) -> Any:
        if name == "eager":
            raise PluginError("handlers.runtimes.eager cannot be imported: no module named torch")
        return SimpleNamespace(needs_torch=name == "script")

    monkeypatch.setattr(archive, "find_spec", lambda _: None)
    monkeypatch.setattr(plugins, "names", lambda _: ["a", "eager", "script", "z"])
    monkeypatch.setattr(plugins, "load_runtime", load_runtime)
    words = r"^m-2\.0\.mar: its worker needs PyTorch, .*, or build it with --runtime a or z \(a det"
    with pytest.raises(ArchiveError, match=words):
        archive.check_torch(packed)


def test_the_file_name_is_name_and_version() -> None:
    assert archive.file_name("m", "2.0") == "m-2.0.mar"


def test_a_full_disk_is_no_fault_of_the_archive(
    lenet5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def extract(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extract", extract)
    words = rf"^{tmp_path} does not take what {lenet5.name} holds \(No space left on device\)"
    with pytest.raises(ArchiveError, match=words):
        archive.unpack(lenet5, tmp_path)


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_of_what_another_packer_compressed_is_damage(kind: int, tmp_path: Path) -> None:
    path = tmp_path / "theirs.mar"
    manifest = json.dumps({"model": {"modelName": "m", "modelVersion": "1.0"}, "x": "y" * 999})
    with zipfile.ZipFile(path, "w", kind) as made:
        made.writestr("MAR-INF/MANIFEST.json", manifest)
    whole = bytearray(path.read_bytes())
    assert archive.read_header(path).name == "m"
    # Behind the name of the first member.
    start = 30 + len("MAR-INF/MANIFEST.json")
    refused = 0
    for place in range(start, start + 30):
        damaged = whole.copy()
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        # A bit that nobody reads does no harm; nothing but ArchiveError comes of the others.
        with suppress(ArchiveError):
            archive.read_header(path)
            continue
        refused += 1
    assert refused > 20


def test_names_that_no_folder_takes_are_the_archives_fault(tmp_path: Path) -> None:
    path = tmp_path / "odd.mar"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a", "file")
        made.writestr("a/b", "below it")
    with pytest.raises(ArchiveError, match=r"^odd\.mar is not a readable model archive: "):
        archive.unpack(path, tmp_path / "folder")
