"""The cores that a process may use: its affinity, and its cgroup's quota. All cgroups are fake."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from handlers import cores, device
from handlers.bundle import Limits


@pytest.fixture
def cgroups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The root of cgroups of a host of 64 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path)
    monkeypatch.setattr(cores, "_OWN", tmp_path / "own")
    return tmp_path


def _write(root: Path, **files: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text + "\n")


@pytest.mark.parametrize(
    ("quota", "usable"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", 64)],
)
def test_a_containers_quota_counts(cgroups: Path, quota: str, usable: int) -> None:
    _write(cgroups, own="0::/", cpu__max=quota)
    assert cores.usable() == usable
    assert device.threads(Limits(workers=1)) == usable


def test_more_than_there_are_is_no_more(cgroups: Path) -> None:
    _write(cgroups, own="0::/", cpu__max="6500000 100000")
    assert cores.usable() == 64


def test_outside_of_a_container_the_least_of_all_levels_counts(cgroups: Path) -> None:
    _write(cgroups, own="0::/system.slice/marsmith.service")
    _write(cgroups / "system.slice", cpu__max="400000 100000")
    _write(cgroups / "system.slice/marsmith.service", cpu__max="max 100000")
    assert cores.usable() == 4


@pytest.mark.parametrize("path", ["/", "/docker/0123"])
@pytest.mark.parametrize(("quota", "usable"), [("300000", 3), ("-1", 64)])
def test_version_1_has_a_tree_for_the_cpu(
    cgroups: Path, path: str, quota: str, usable: int
) -> None:
    _write(cgroups, own=f"4:memory:/x\n3:cpu,cpuacct:{path}\n0::/")
    _write(cgroups / "cpu", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert cores.usable() == usable


def test_without_cgroups_the_affinity_counts(cgroups: Path) -> None:
    assert cores.usable() == 64
