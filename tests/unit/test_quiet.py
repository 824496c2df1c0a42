from __future__ import annotations

import logging
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from handlers.plugins import load_runtime
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


def _state() -> tuple[object, list[object], int]:
    return sys.stdout, list(warnings.filters), logging.getLogger("torch").level


def test_two_threads_that_are_quiet_at_once_leave_all_as_it_was(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _state()
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with quiet():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(10)
    with quiet():
        leave.set()
        thread.join()
        # The first one has left, and the second is quiet as before.
        print("progress")
        warnings.warn("deprecated", stacklevel=1)
        logging.getLogger("torch").warning("recompiled")
    assert _state() == before
    print("heard")
    logging.getLogger("handlers.failures").warning("marsmith: failed")
    assert caplog.messages == ["marsmith: failed"]
    assert capsys.readouterr().out == "heard\n"


def test_a_failed_conversion_to_openvino_leaves_the_root_logger_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(request: SimpleNamespace, path: Path) -> None:
        path.write_bytes(b"no model")

    monkeypatch.setattr("handlers.onnx_export.export", export)
    request = SimpleNamespace(path=tmp_path / "model.xml", precision="fp32")
    before = logging.getLogger().level, list(logging.getLogger().filters)
    with pytest.raises(Exception, match="Cannot recognize input model"):
        load_runtime("openvino").export(request)
    assert (logging.getLogger().level, logging.getLogger().filters) == before
