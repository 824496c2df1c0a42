"""Faults are tried on the servers of tests/e2e, in project folders of their own."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from homes import home, make_home
from survivors import asker, neighbour, one_worker, survivor

__all__ = ["asker", "home", "make_home", "neighbour", "one_worker", "survivor"]
