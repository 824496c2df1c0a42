"""What a result depends on: code, model, pictures and host. A changed one is measured anew."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from handlers import cores, plugins, truths
from marsmith import origin, resolve, samples, sbom, sources, weights
from marsmith.spec import ModelSpec

PROJECT = Path(__file__).parents[2]


@functools.cache
def code_digest() -> bytes:
    """A digest of the code that builds archives and travels in them."""
    digest = hashlib.sha256()
    for package in ("handlers", "marsmith"):
        for path in sorted((PROJECT / package).rglob("*.py")):
            digest.update(path.relative_to(PROJECT).as_posix().encode() + path.read_bytes())
    return digest.digest()


def host() -> dict[str, Any]:
    """The kind of this host: its processor, the cores that this process may use, and its GPUs."""
    found = {"cpu": origin.processor(), "cores": cores.usable()}
    gpus = origin.host().get("gpus")
    return {**found, "gpus": gpus} if gpus else found


def of_pictures(files: Iterable[Path]) -> str:
    """A digest of the pictures that a load sends."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def of_pair(spec: ModelSpec, root: Path, runtime: str, precision: str) -> str:
    """A digest of what a trial of a pair is made of, files by their times and sizes."""
    loaded = plugins.load_runtime(runtime)
    modules = {*loaded.requires, *loaded.export_requires, *loaded.int8_requires}
    packages = ("torch", "torchvision", "torchserve", *sbom.providing(modules))
    made_of = {
        "spec": spec.model_dump(mode="json", exclude_unset=True),
        "pair": [runtime, precision],
        "versions": {name: _installed(name) for name in sorted(set(packages))},
        "files": [_stamp(path) for path in _files(spec, root)],
        "host": host(),
        "code": code_digest().hex(),
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _files(spec: ModelSpec, root: Path) -> Sequence[Path]:
    found = [weights.locate(spec, root)]
    source = resolve.source_file(spec, root)
    if source is not None:
        found += sources.parted(source)[0]
    if isinstance(spec.labels, str):
        found.append(root / spec.labels)
    found += samples.files(root / spec.samples, samples.SAMPLES)
    parts = ((samples.CALIBRATION, spec.calibration), (samples.ACCURACY, spec.accuracy))
    for option, part in parts:
        if part is not None:
            folder = root / part.folder
            found += samples.files(folder, option, deep=True)
            found += filter(Path.is_file, (folder / truths.TABLE, folder / truths.BOXES))
            found += sorted((folder / truths.MASKS).glob("*.png"))
    return found


def _stamp(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
