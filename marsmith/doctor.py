"""Is this host fit to serve this project's archives, and is its configuration closed?"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from handlers import cores
from handlers.errors import MarsmithError, ServerError
from handlers.plugins import load_runtime
from marsmith import WAIT_POLICY, doctor_settings, environment, inspection, sbom, signing
from marsmith.addresses import bind_problem, hosts, join, read_properties
from marsmith.finding import Finding, judge
from marsmith.processes import find_running

_OLDEST_JAVA = 11
# Packages whose versions may move answers.
_COMPARED = (
    *("torch", "torchvision", "numpy", "openvino", "tensorrt"),
    *("onnxruntime", "onnxruntime-gpu"),
)
# An archive is unpacked into the temp folder; this much more is for logs and sockets.
_SPARE_BYTES = 200_000_000


def examine(home: Path, config: Path) -> list[Finding]:
    """Everything that was looked at, in an order for reading.

    Raises ServerError where the configuration cannot be read.
    """
    properties = read_properties(config)
    store = home / properties.get("model_store", "model-store")
    return [
        _java(),
        *_user(),
        *_wait_policy(),
        _temp(properties, home),
        *_ports(properties, home),
        *doctor_settings.check(properties, home),
        *_places(config, store),
        *_room(store, properties, home),
        *_archives(store, properties, home),
    ]


def _java() -> Finding:
    try:
        java = environment.find_java({**os.environ, "PATH": environment.search_path(os.environ)})
    except ServerError as error:
        return Finding("wrong", "java", str(error), "install Java 11 or 17")
    done = subprocess.run(
        [java, "-version"], capture_output=True, text=True, timeout=30, check=False
    )
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr)
    text = f"{java}, version {found[1]}" if found else f"{java} does not tell its version"
    old = found is None or int(found[1]) < _OLDEST_JAVA
    return judge(old, "java", text, "install Java 11 or 17, or point JAVA_HOME at one")


def _user() -> Iterator[Finding]:
    root = os.getuid() == 0
    text = "root: an archive's code may do anything here" if root else f"user {os.getuid()}"
    yield judge(root, "user", text, "serve as a user that owns only this folder", soft=True)


def _wait_policy() -> Iterator[Finding]:
    policy = os.environ.get("OMP_WAIT_POLICY", WAIT_POLICY)
    bad = policy.upper() != WAIT_POLICY
    mend = "unset OMP_WAIT_POLICY: spinning threads stall each other on shared cores"
    yield judge(bad, "OMP_WAIT_POLICY", policy, mend, soft=True)


def _temp(properties: Mapping[str, str], home: Path) -> Finding:
    try:
        temp = environment.temp_folder(home, properties)
        return Finding("ok", "temp folder", f"{temp}, private")
    except ServerError as error:
        return Finding("wrong", "temp folder", str(error), "or name another: temp_folder=PATH")


def _ports(properties: Mapping[str, str], home: Path) -> Iterator[Finding]:
    try:
        running = find_running(environment.temp_folder(home, properties))
    except ServerError:
        # The temp folder has a finding of its own.
        running = None
    if running:
        yield Finding("ok", "ports", f"taken by this project's own server, pid {running.pid}")
        return
    for name, (host, port, _) in hosts(properties).items():
        problem = bind_problem(host, port)
        text = f"{join(host, port)} {problem or 'is free'}"
        mend = f"end what listens there, or name another {name} port; `marsmith serve --free-ports`"
        yield judge(problem is not None, f"{name} port", text, mend)


def _places(config: Path, store: Path) -> Iterator[Finding]:
    """Who may write there decides what code runs."""
    for path in (config, store, *sorted(store.glob("*.mar"))):
        if not path.exists():
            yield Finding("wrong", path.name, f"{path} is missing", "build a model first")
            continue
        found = path.stat()
        strange = found.st_uid not in (0, os.getuid())
        loose = bool(found.st_mode & 0o002)
        if strange or loose:
            who = f"user {found.st_uid}" if strange else "everybody"
            yield Finding("wrong", path.name, f"{who} may change it", f"chown it, chmod o-w {path}")


def _room(store: Path, properties: Mapping[str, str], home: Path) -> Iterator[Finding]:
    try:
        temp = environment.temp_folder(home, properties)
    except ServerError:
        # It has a finding of its own.
        return
    free, needed = shutil.disk_usage(temp).free, _SPARE_BYTES
    needed += sum(path.stat().st_size for path in store.glob("*.mar"))
    text = f"{free / 1e9:.1f} GB free in {temp}, {needed / 1e9:.1f} GB needed to unpack the store"
    yield judge(free < needed, "disk", text, "make room: archives are unpacked there")


def _archives(store: Path, properties: Mapping[str, str], home: Path) -> Iterator[Finding]:
    found = []
    for path in sorted(store.glob("*.mar")):
        try:
            signing.admit(path, properties, home)
            found.append(inspection.read(path))
        except MarsmithError as error:
            mend = "do what that says, or build it again"
            yield Finding("wrong", path.name, str(error), mend)
            continue
        wrong = inspection.problems(found[-1])
        text = "; ".join(wrong) or "every file is as built"
        yield judge(bool(wrong), path.name, text, "build or copy it again")
        yield from _packages(found[-1])
    yield from _cores(found)


def _packages(found: Mapping[str, Any]) -> Iterator[Finding]:
    if "torch" in found["packages"] and find_spec("torch") is None:
        # Without it the files of such runtimes cannot be imported, either.
        mend = "pip install -r requirements.txt"
        yield Finding("wrong", found["file"], "its workers need PyTorch", mend)
        return
    try:
        needed = load_runtime(found["runtime"]).requires
    except MarsmithError as error:
        yield Finding("wrong", found["file"], str(error), "serve it where that runtime is")
        return
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        text = f"runtime {found['runtime']} needs {', '.join(missing)}"
        mend = f"make runtime-{found['runtime']}"
        yield Finding("wrong", found["file"], text, mend)
    other = [
        f"{name} {_installed(name)} (built with {version})"
        for name, version in found["packages"].items()
        if name in _COMPARED and _installed(name) != version
    ]
    if other:
        mend = "the golden requests tell whether it answers the same; else install those versions"
        yield Finding("warning", found["file"], f"here are {', '.join(other)}", mend)


def _installed(name: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    # ONNX Runtime for GPUs is another package with the same modules.
    others = sbom.providing([name.removesuffix("-gpu")])
    return metadata.version(others[0]) if others else "none"


def _cores(found: list[dict[str, Any]]) -> Iterator[Finding]:
    here = cores.usable()
    for one in found:
        workers, threads = one["serving"]["minWorkers"], one["limits"]["threads"]
        if workers * max(threads, 1) > here:
            text = f"{workers} workers x {threads or 1} threads on {here} cores"
            yield Finding("warning", one["file"], text, "build it with fewer, or take more cores")
    workers = sum(one["serving"]["minWorkers"] for one in found)
    text = f"{workers} workers of {len(found)} archives on {here} cores"
    yield judge(workers > 4 * here, "cores", text, "serve fewer archives, or take more cores", True)
