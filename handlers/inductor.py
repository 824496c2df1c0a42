"""What the runtimes that compile with TorchInductor share: a compiler, a cache, its settings."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
from pathlib import Path

import torch

from handlers import isa
from handlers.errors import RuntimeUnavailable

# Where a package of AOTInductor keeps its models.
PACKAGE = "data/aotinductor/"


def check_compiler(when: str) -> None:
    """Raise RuntimeUnavailable where no C++ compiler is; ``when`` says what needs it."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise RuntimeUnavailable(
            f"{when} needs a C++ compiler and finds no {compiler}: install g++ (or name another "
            "one in CXX), or build the model with another runtime"
        )


def use_cache(folder: str) -> Path:
    """Let TorchInductor keep what it compiles in ``folder``, and return where that is.

    Inside, versions and kinds of processor are kept apart, for code is compiled for the very one
    that is here and the folder may be on a disk or in an image that another one gets. Compiled code
    is run as it is found, so that the folder must be the user's own: anything else is
    RuntimeUnavailable.
    """
    processor = hashlib.sha256(" ".join(sorted(isa.here())).encode()).hexdigest()[:8]
    kind = f"torch{torch.__version__}-{platform.python_version()}-{platform.machine()}-{processor}"
    place = private(cache_root(folder) / "inductor") / kind
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(place)
    # Triton's is inside of it only where nobody said otherwise.
    os.environ["TRITON_CACHE_DIR"] = str(place / "triton")
    return place


def package_kind(path: Path) -> str:
    """What a ``.pt2`` file is: "compiled" by AOTInductor, a "program" of torch.export, or ""."""
    try:
        names = torch._C.PyTorchFileReader(str(path)).get_all_records()
    except RuntimeError:
        return ""
    if any(name.startswith(PACKAGE) for name in names):
        return "compiled"
    return "program" if any(name.endswith(("model.json", "program.json")) for name in names) else ""


def cache_root(folder: str) -> Path:
    """``folder``, or for "" ``$MARSMITH_CACHE``, or ``~/.cache/marsmith``."""
    chosen = folder or os.environ.get("MARSMITH_CACHE", "~/.cache/marsmith")
    return Path(chosen).expanduser().absolute()


def private(folder: Path) -> Path:
    """``folder``, made with mode 700 where it is missing; raises RuntimeUnavailable."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise RuntimeUnavailable(
            f"the cache folder {folder} cannot be made ({error.strerror}): name another one in "
            "MARSMITH_CACHE or in runtime_options cache"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise RuntimeUnavailable(
            f"the cache folder {folder} is not private to user {os.getuid()}, and what lies in it "
            "is run: `chmod 700` it, or name another one in MARSMITH_CACHE"
        )
    return folder
