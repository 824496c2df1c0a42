from __future__ import annotations

import logging
import threading
import warnings

import pytest

from handlers.quiet import quiet


def test_exporters_are_quiet_and_everybody_else_is_heard(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    torchs = logging.getLogger("torch.export.some_part")
    level = torchs.level
    with quiet():
        torchs.warning("recompiled")
        warnings.warn("deprecated", stacklevel=1)
        print("progress")
        torchs.error("broken")
        logging.getLogger("handlers.failures").warning("marsmith: failed")
    assert caplog.messages == ["broken", "marsmith: failed"]
    assert capsys.readouterr().out == ""
    assert torchs.level == level


def test_two_threads_that_are_quiet_at_once_leave_other_loggers_as_they_were(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with quiet():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    with quiet():
        leave.set()
        thread.join()
    logging.getLogger("handlers.failures").warning("marsmith: failed")
    assert caplog.messages == ["marsmith: failed"]
