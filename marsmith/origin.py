"""Which code and which host made an archive: the commit of the two packages, where they lie in a
git work tree, and the kind of the processor and the GPUs."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

import handlers
import marsmith

_CPU_INFO = Path("/proc/cpuinfo")
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


def host() -> dict[str, Any]:
    """The kind of this host: machine, processor, and its GPUs where it has any."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    machine = {"machine": platform.machine(), "processor": processor()}
    return {**machine, "gpus": gpus} if gpus else machine


def processor() -> str:
    """The processor's name, as Linux has it."""
    lines = _CPU_INFO.read_text("utf-8").splitlines() if _CPU_INFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


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
