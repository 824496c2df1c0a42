from __future__ import annotations

from pathlib import Path

import pytest

from marsmith.log_lines import Chosen, Follower, by_time

LINES = """\
2026-11-21T04:00:00,001 [INFO ] main org.pytorch.serve.ModelServer - Initialize Inference server
2026-11-21T04:00:00,002 [WARN ] W-9000-m_1.0 org.pytorch.serve.wlm.WorkerThread - worker of m_1.0
java.lang.InterruptedException
\tat java.base/x(Y.java:1)
2026-11-21T04:00:00,003 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - Torch worker started.
2026-11-21T04:00:00,004 [INFO ] W-9001-m_tiny_1.0-stdout MODEL_LOG - Traceback (most recent call):
2026-11-21T04:00:00,005 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - a line of another worker
2026-11-21T04:00:00,006 [INFO ] W-9001-m_tiny_1.0-stdout MODEL_LOG -   File "x.py", line 1
2026-11-21T04:00:00,007 [INFO ] W-9001-m_tiny_1.0-stdout MODEL_LOG - KeyError: 'y'
2026-11-21T04:00:00,008 [INFO ] W-9001-m_tiny_1.0-stdout MODEL_LOG - all is well again
""".replace("most recent call)", "most recent call last)").splitlines()


def _shown(**given: object) -> list[int]:
    """Numbers of the lines that are shown."""
    chosen = Chosen(**given)  # type: ignore[arg-type]
    return [LINES.index(line) for line in chosen.pick(LINES)]


def test_all_lines() -> None:
    assert _shown() == list(range(10))


def test_lines_of_one_model() -> None:
    assert _shown(model="m") == [1, 2, 3, 4, 6]
    assert _shown(model="m_tiny") == [5, 7, 8, 9]
    assert _shown(model="tiny") == []


def test_errors_with_their_stacks() -> None:
    assert _shown(errors=True) == [1, 2, 3, 5, 7, 8]
    assert _shown(errors=True, model="m_tiny") == [5, 7, 8]


def test_a_warning_of_a_worker_is_trouble() -> None:
    line = LINES[4].replace("Torch worker started.", "marsmith: warning: GPU 0 is left idle")
    assert list(Chosen(errors=True).pick([line, LINES[4]])) == [line]


def test_files_are_merged_by_time() -> None:
    first, second = LINES[0:1] + LINES[5:6], LINES[1:5]
    assert by_time([*first, *second]) == LINES[0:6]


@pytest.mark.parametrize("from_end", [True, False])
def test_a_file_that_grows_and_rotates(tmp_path: Path, from_end: bool) -> None:
    path = tmp_path / "a.log"
    path.write_text("old\n")
    follower = Follower(path, from_end=from_end)
    assert follower.lines() == ([] if from_end else ["old"])
    with path.open("a") as file:
        file.write("one\ntw")
        file.flush()
        assert follower.lines() == ["one"]
        path.rename(tmp_path / "a.old")
        assert follower.lines() == ["tw"]
        path.write_text("three\n")
        assert follower.lines() == ["three"]
    follower.close()


def test_a_file_that_comes_later(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    follower = Follower(path, from_end=True)
    assert follower.lines() == []
    path.write_text("one\n")
    assert follower.lines() == ["one"]
    follower.close()


def test_a_file_that_was_emptied_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "ts_log.log"
    path.write_text("one\ntwo\n")
    follower = Follower(path, from_end=False)
    assert follower.lines() == ["one", "two"]
    path.write_text("3\n")
    assert follower.lines() == ["3"]
    assert follower.lines() == []
    assert follower.opened == 2
