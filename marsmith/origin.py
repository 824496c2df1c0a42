"""Which code made an archive: the commit of the two packages, where they lie in a git work tree."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import handlers
import marsmith

_SECONDS = 30.0


def code() -> dict[str, Any]:
    """The last commit that changed ``handlers/`` or ``marsmith/``, and whether they are ``dirty``.

    Not the head, so that a change of a document leaves an archive's bytes as they are. Empty where
    git does not know the packages: installed ones, an export without history.
    """
    folders = [str(Path(str(package.__file__)).parent) for package in (handlers, marsmith)]
    commit = _git(folders, "log", "-1", "--format=%H")
    if not commit:
        return {}
    return {"commit": commit, "dirty": bool(_git(folders, "status", "--porcelain"))}


def _git(folders: list[str], *command: str) -> str:
    if shutil.which("git") is None:
        return ""
    done = subprocess.run(
        ["git", "--no-optional-locks", "-C", folders[0], *command, "--", *folders],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    return "" if done.returncode else done.stdout.strip()
