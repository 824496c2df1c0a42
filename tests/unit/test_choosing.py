"""Which archives a start loads: damage and what is over are left out, each with its reason."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from handlers.errors import ServerError
from marsmith import journal, signing
from marsmith.choosing import Choice, choose
from marsmith.journal import DONE, KEPT, REMOVE, ROLLBACK, ROLLED_BACK, ROLLOUT, STARTED, Entry


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A project whose store has four versions of m, which no journal knows yet."""
    (tmp_path / "store").mkdir()
    for version in ("1.0", "2.0", "3.0", "4.0"):
        _pack(tmp_path, "m", version)
    return tmp_path


def _pack(home: Path, model: Any, version: Any, file: str = "") -> None:
    with zipfile.ZipFile(home / "store" / (file or f"{model}-{version}.mar"), "w") as archive:
        manifest = {"model": {"modelName": model, "modelVersion": version}}
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))


def _choose(home: Path, *named: str) -> Choice:
    return choose(home, home / "store", named, {})


def _loaded(home: Path, *entries: tuple[str, str, str, str]) -> list[str]:
    """The versions of m that are loaded after these operations."""
    for operation, before, after, result in entries:
        journal.append(home, Entry(operation, "m", before, after, result))
    return [header.version for header in _choose(home).archives.values() if header.name == "m"]


def test_without_a_journal_all_are_loaded(home: Path) -> None:
    assert _loaded(home) == ["4.0", "3.0", "2.0", "1.0"]


def test_what_was_replaced_is_not_loaded_again(home: Path) -> None:
    found = _loaded(home, (ROLLOUT, "1.0", "2.0", STARTED), (ROLLOUT, "1.0", "2.0", DONE))
    # The journal knows nothing of the other two
    assert found == ["2.0", "4.0", "3.0"]
    assert _choose(home).ended == ["m-1.0.mar"]
    found = _loaded(home, (ROLLOUT, "2.0", "3.0", DONE), (ROLLBACK, "3.0", "2.0", DONE))
    assert found == ["2.0", "4.0"]


def test_what_was_kept_is_loaded_until_it_is_removed(home: Path) -> None:
    rollout = (ROLLOUT, "1.0", "2.0", KEPT)
    assert _loaded(home, rollout) == ["2.0", "4.0", "3.0", "1.0"]
    assert _loaded(home, (REMOVE, "1.0", "", DONE)) == ["2.0", "4.0", "3.0"]


def test_what_did_not_go_well_is_not_loaded(home: Path) -> None:
    found = _loaded(
        home,
        (ROLLOUT, "1.0", "2.0", DONE),
        (ROLLOUT, "2.0", "3.0", ROLLED_BACK),
        (ROLLOUT, "2.0", "4.0", STARTED),
    )
    assert found == ["2.0"]


def test_a_kept_version_outlives_a_rollback_to_it_that_failed(home: Path) -> None:
    found = _loaded(home, (ROLLOUT, "1.0", "2.0", KEPT), (ROLLBACK, "2.0", "1.0", ROLLED_BACK))
    assert found == ["2.0", "4.0", "3.0", "1.0"]


def test_archives_that_are_named_are_loaded_whatever_the_journal_says(home: Path) -> None:
    _loaded(home, (ROLLOUT, "1.0", "2.0", DONE))
    assert list(_choose(home, "m-1.0.mar").archives) == ["m-1.0.mar"]


def test_a_broken_archive_stops_none_of_the_others(home: Path) -> None:
    (home / "store/cut-1.0.mar").write_bytes((home / "store/m-1.0.mar").read_bytes()[:50])
    found = _choose(home)
    assert len(found.archives) == 4
    assert found.refused.keys() == {"cut-1.0.mar"}
    with pytest.raises(ServerError, match=r"no archive may be served: cut-1\.0\.mar is not a read"):
        _choose(home, "cut-1.0.mar")


@pytest.mark.parametrize(
    ("model", "version"), [("m", 1.0), (5, "1.0"), ("../../m", "1.0"), ("m", "9" * 5000)]
)
def test_a_manifest_that_others_have_made_up_stops_none_of_the_others(
    home: Path, model: Any, version: Any
) -> None:
    _pack(home, model, version, "theirs.mar")
    found = _choose(home)
    assert len(found.archives) == 4
    assert found.refused.keys() == {"theirs.mar"}
    assert found.refused["theirs.mar"].startswith("theirs.mar: MAR-INF/MANIFEST.json has model")


def test_archives_of_others_are_loaded_by_whatever_version_they_have(home: Path) -> None:
    _pack(home, "densenet161", "latest")
    assert "densenet161-latest.mar" in _choose(home).archives


def test_a_default_version_that_is_gone_is_told_and_not_replaced_in_silence(home: Path) -> None:
    _pack(home, "other", "1.0")
    entries = [(ROLLOUT, str(one), str(one + 1), DONE) for one in range(1, 5)]
    numbered = [(o, f"{before}.0", f"{after}.0", result) for o, before, after, result in entries]
    assert _loaded(home, *numbered) == []
    found = _choose(home)
    assert list(found.archives) == ["other-1.0.mar"]
    assert found.refused == {
        "m-5.0.mar": "m-5.0.mar, the default version by the journal, is not in the store: build it"
        " again, or name the archives to serve"
    }
    (home / "store/other-1.0.mar").unlink()
    with pytest.raises(ServerError, match=r"m-5\.0\.mar, the default.*m-1\.0\.mar no longer serve"):
        _choose(home)


def test_a_default_version_that_is_damaged_is_not_called_gone(home: Path) -> None:
    (home / "store/m-2.0.mar").write_bytes(b"")
    # What was kept may take its place, and nothing that no rollout has proven
    assert _loaded(home, (ROLLOUT, "1.0", "2.0", KEPT)) == ["1.0"]
    refused = _choose(home).refused
    assert "m-2.0.mar is not a readable model archive" in refused["m-2.0.mar"]
    assert refused["m-4.0.mar"] == (
        "m-4.0.mar would be the default version in the place of 2.0, and no rollout has proven it:"
        " name the archives to serve"
    )


def test_a_model_that_was_taken_out_of_the_store_is_not_missed(home: Path) -> None:
    journal.append(home, Entry(ROLLOUT, "gone", "1.0", "2.0", DONE))
    assert _choose(home).refused == {}


def test_of_two_files_of_one_version_one_is_loaded(home: Path) -> None:
    store = home / "store"
    for copy in ("a.mar", "m-4.0-backup.mar"):
        (store / copy).write_bytes((store / "m-4.0.mar").read_bytes())
    found = _choose(home)
    assert list(found.archives) == ["m-4.0.mar", "m-3.0.mar", "m-2.0.mar", "m-1.0.mar"]
    assert found.refused == {
        name: f"{name} is m 4.0, as m-4.0.mar is: remove one of them"
        for name in ("a.mar", "m-4.0-backup.mar")
    }


def test_a_model_that_torchserve_takes_for_its_tokens_is_left_out(home: Path) -> None:
    _pack(home, "tokenizer", "1.0")
    found = _choose(home)
    assert "tokenizer-1.0.mar" not in found.archives
    assert "begins with 'token'" in found.refused["tokenizer-1.0.mar"]
    open_one = choose(home, home / "store", (), {"disable_token_authorization": "true"})
    assert "tokenizer-1.0.mar" in open_one.archives


def test_a_link_to_nothing_is_damage_and_the_others_are_loaded(home: Path) -> None:
    (home / "store/gone.mar").symlink_to(home / "nowhere.mar")
    found = _choose(home)
    assert len(found.archives) == 4
    assert found.refused["gone.mar"].startswith("gone.mar is not a readable model archive")


def test_the_version_that_is_left_is_loaded_after_another_was_removed(home: Path) -> None:
    """It served beside the default one, or in its place, without a rollout of its own."""
    journal.append(home, Entry(ROLLOUT, "m", "1.0", "2.0", DONE))
    journal.append(home, Entry(REMOVE, "m", "2.0", "", DONE, default="1.0"))
    found = [header.version for header in _choose(home).archives.values()]
    assert found[0] == "1.0"
    assert "2.0" not in found


def test_of_two_files_of_one_version_the_one_that_may_be_served_is(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = home / "store"
    (store / "m-4.0-signed.mar").write_bytes((store / "m-4.0.mar").read_bytes())

    def admitted(_: Path, order: list[str], *__: object) -> tuple[list[str], dict[str, str]]:
        return [file for file in order if file != "m-4.0.mar"], {"m-4.0.mar": "it is not signed"}

    monkeypatch.setattr(signing, "admitted", admitted)
    found = _choose(home)
    assert next(iter(found.archives)) == "m-4.0-signed.mar"
    assert found.refused == {"m-4.0.mar": "it is not signed"}
