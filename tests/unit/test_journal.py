from __future__ import annotations

import resource
from pathlib import Path

import pytest

from handlers.errors import ServerError
from marsmith import journal
from marsmith.journal import DONE, KEPT, ROLLBACK, ROLLED_BACK, ROLLOUT, STARTED, Entry


def _write(home: Path, *entries: tuple[str, str, str, str]) -> None:
    for operation, before, after, result in entries:
        journal.append(home, Entry(operation, "m", before, after, result, sha256=f"of {after}"))


def test_an_entry_is_read_as_written(tmp_path: Path) -> None:
    assert journal.read(tmp_path) == []
    entry = Entry(ROLLOUT, "m", "1.0", "2.0", ROLLED_BACK, reason="größer als zuvor\nzweite Zeile")
    journal.append(tmp_path, entry)
    journal.append(tmp_path, Entry(ROLLOUT, "other", "", "1.0", DONE))
    assert journal.read(tmp_path, "m") == [entry]
    assert len(journal.read(tmp_path)) == 2
    assert entry.user
    assert entry.time.endswith("+00:00")


def test_a_user_without_a_name_is_written_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    # As `podman --user 12345`: above every user that this host knows.
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_001)
    assert Entry(ROLLOUT, "m", "1.0", "2.0", DONE).user == "#4000000001"


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    _write(tmp_path, (ROLLOUT, "1.0", "2.0", DONE))
    with (tmp_path / journal.FILE).open("a") as file:
        file.write('{"operation": "rollout"\n')
    with pytest.raises(ServerError, match=r"journal.jsonl, line 2, is no entry"):
        journal.read(tmp_path)


def test_a_line_that_a_crash_left_half_is_no_entry(tmp_path: Path) -> None:
    _write(tmp_path, (ROLLOUT, "1.0", "2.0", DONE))
    with (tmp_path / journal.FILE).open("a") as file:
        file.write('{"operation": "rollout", "after": "3')
    assert journal.defaults(tmp_path) == {"m": "2.0"}
    _write(tmp_path, (ROLLOUT, "2.0", "4.0", DONE))
    assert [one.after for one in journal.read(tmp_path)] == ["2.0", "4.0"]


def test_without_room_it_is_as_it_was(tmp_path: Path) -> None:
    _write(tmp_path, (ROLLOUT, "1.0", "2.0", DONE))
    before = (tmp_path / journal.FILE).read_bytes()
    allowed, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on files' size stands for a full disk: both fail a write in its middle.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, most))
    try:
        with pytest.raises(ServerError, match="cannot write the journal .*: File too large"):
            _write(tmp_path, (ROLLOUT, "2.0", "3.0", DONE))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, most))
    assert (tmp_path / journal.FILE).read_bytes() == before


def test_the_default_is_what_went_well_last(tmp_path: Path) -> None:
    _write(
        tmp_path,
        (ROLLOUT, "1.0", "2.0", STARTED),
        (ROLLOUT, "1.0", "2.0", KEPT),
        (ROLLOUT, "2.0", "3.0", STARTED),
        (ROLLOUT, "2.0", "3.0", ROLLED_BACK),
        (journal.REMOVE, "1.0", "", DONE),
    )
    assert journal.defaults(tmp_path) == {"m": "2.0"}


@pytest.mark.parametrize("results", [(STARTED,), (STARTED, ROLLED_BACK)])
def test_what_never_went_well_is_not_the_default(tmp_path: Path, results: tuple[str, ...]) -> None:
    _write(tmp_path, *((ROLLOUT, "1.0", "2.0", result) for result in results))
    assert journal.defaults(tmp_path) == {"m": "1.0"}
    _write(tmp_path, (ROLLOUT, "1.0", "3.0", STARTED), (ROLLOUT, "1.0", "3.0", DONE))
    _write(tmp_path, *((ROLLOUT, "3.0", "4.0", result) for result in results))
    assert journal.defaults(tmp_path) == {"m": "3.0"}


@pytest.mark.parametrize("result", [STARTED, ROLLED_BACK])
def test_a_first_version_that_failed_leaves_no_default(tmp_path: Path, result: str) -> None:
    _write(tmp_path, (ROLLOUT, "", "1.0", result))
    assert journal.defaults(tmp_path) == {}


def test_what_somebody_else_made_the_default_is_not_proven(tmp_path: Path) -> None:
    _write(tmp_path, (ROLLOUT, "1.0", "2.0", DONE), (ROLLOUT, "9.0", "3.0", ROLLED_BACK))
    assert journal.defaults(tmp_path) == {"m": "2.0"}


def test_a_version_that_was_kept_serves_though_it_did_not_become_the_default_again(
    tmp_path: Path,
) -> None:
    _write(tmp_path, (ROLLOUT, "1.0", "2.0", KEPT), (ROLLOUT, "2.0", "1.0", ROLLED_BACK))
    assert journal.serving(tmp_path) == {("m", "1.0"): True, ("m", "2.0"): True}


def test_each_rollback_leads_further_back(tmp_path: Path) -> None:
    _write(tmp_path, (ROLLOUT, "1.0", "2.0", DONE), (ROLLOUT, "2.0", "3.0", DONE))
    back = journal.before(tmp_path, "m", "3.0")
    assert (back.after, back.sha256) == ("2.0", "of 2.0")
    _write(tmp_path, (ROLLBACK, "3.0", "2.0", DONE))
    back = journal.before(tmp_path, "m", "2.0")
    # 1.0 was there before the journal
    assert (back.after, back.sha256) == ("1.0", "")
    for version in ("1.0", "9.0"):
        with pytest.raises(ServerError, match=f"no version of m before {version}"):
            journal.before(tmp_path, "m", version)


def test_the_way_back_leads_to_the_bytes_that_served_last(tmp_path: Path) -> None:
    for after, digest in (("2.0", "first"), ("3.0", ""), ("2.0", "second"), ("4.0", "")):
        before = journal.defaults(tmp_path).get("m", "1.0")
        journal.append(tmp_path, Entry(ROLLOUT, "m", before, after, DONE, sha256=digest))
    assert journal.before(tmp_path, "m", "4.0").sha256 == "second"
    assert journal.before(tmp_path, "m", "3.0").sha256 == "first"


def test_one_operation_at_a_time(tmp_path: Path) -> None:
    with (
        journal.exclusive(tmp_path),
        pytest.raises(ServerError, match="another rollout, rollback"),
        journal.exclusive(tmp_path),
    ):
        pytest.fail("entered twice")
    with journal.exclusive(tmp_path):
        pass


def test_where_the_lock_cannot_be_written_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with (
        pytest.raises(ServerError, match=r"cannot write .*/state/lock: (File exists|Not a dir)"),
        journal.exclusive(tmp_path),
    ):
        pytest.fail("entered without a lock")


def test_a_beginning_is_left_out_where_the_end_is_known(tmp_path: Path) -> None:
    _write(
        tmp_path,
        (ROLLOUT, "1.0", "2.0", STARTED),
        (ROLLOUT, "1.0", "2.0", DONE),
        (ROLLOUT, "2.0", "3.0", STARTED),
        (ROLLOUT, "2.0", "4.0", STARTED),
    )
    shown = [(one.after, one.result) for one in journal.ended(journal.read(tmp_path))]
    assert shown == [("2.0", DONE), ("3.0", STARTED), ("4.0", STARTED)]


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\udce4", "\n"])
def test_an_entry_bears_any_character(tmp_path: Path, odd: str) -> None:
    entry = Entry(ROLLOUT, "m", "1.0", "2.0", ROLLED_BACK, reason=f"a{odd}b")
    journal.append(tmp_path, entry)
    _write(tmp_path, (ROLLOUT, "1.0", "3.0", DONE))
    assert journal.read(tmp_path)[0] == entry
    assert journal.defaults(tmp_path) == {"m": "3.0"}


def test_the_way_back_to_a_version_before_the_journal_knows_its_bytes(tmp_path: Path) -> None:
    known = {"before_archive": "shapes.mar", "before_sha256": "of 1.0"}
    journal.append(tmp_path, Entry(ROLLOUT, "m", "1.0", "2.0", DONE, **known))
    found = journal.before(tmp_path, "m", "2.0")
    assert (found.after, found.archive, found.sha256) == ("1.0", "shapes.mar", "of 1.0")


def test_what_was_refused_says_nothing_of_a_version(tmp_path: Path) -> None:
    _write(
        tmp_path,
        (ROLLOUT, "1.0", "2.0", STARTED),
        (ROLLOUT, "1.0", "2.0", journal.REFUSED),
        (ROLLOUT, "1.0", "3.0", STARTED),
        (ROLLOUT, "1.0", "3.0", ROLLED_BACK),
    )
    assert journal.serving(tmp_path) == {("m", "1.0"): True, ("m", "3.0"): False}
    assert journal.defaults(tmp_path) == {"m": "1.0"}
