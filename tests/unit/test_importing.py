"""The imports of a process that loads torch."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

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
