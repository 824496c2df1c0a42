"""The imports of a process that loads torch."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from marsmith import smoke_worker
from marsmith.importing import for_good


@pytest.fixture(autouse=True)
def _collecting() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_nothing_is_collected_while_modules_come_and_none_of_them_later() -> None:
    with for_good():
        assert not gc.isenabled()
        made = ["a module's object"]
        assert any(one is made for one in gc.get_objects())
    assert gc.isenabled()
    assert not any(one is made for one in gc.get_objects())


def test_an_import_that_fails_leaves_the_collector_on() -> None:
    with pytest.raises(ImportError), for_good():
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    with for_good():
        pass
    assert not gc.isenabled()


def test_the_clean_process_imports_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a_runtimes_package.py").touch()
    smoke_worker.get_ready(["is_not_installed", "a_runtimes_package"])
    assert sys.modules.pop("a_runtimes_package").__file__ == str(tmp_path / "a_runtimes_package.py")
    assert "is_not_installed" not in sys.modules
