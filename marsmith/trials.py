"""One model in several runtimes and precisions: built, proven and timed here, one by one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from handlers import plugins
from handlers.errors import ExportError
from marsmith.archive import file_name, unpack
from marsmith.spec import ModelSpec

BATCH = 8
Tell = Callable[[str], object]
_WORKER = Path(__file__).with_name("measure_worker.py")
_BUILD_SECONDS, _MEASURE_SECONDS = 3600.0, 600.0
REFERENCE = ("eager", "fp32")


@dataclass(frozen=True)
class Trial:
    """One pair of runtime and precision; ``problem`` says why there are no figures.

    ``archive_bytes``; ``load_seconds`` and ``megabytes`` (resident) of a worker;
    ``latency_seconds`` of one picture, ``throughput`` in pictures per second at ``BATCH``;
    ``metric`` and that of eager's fp32 on the same pictures where the model names such.
    """

    runtime: str
    precision: str
    problem: str | None = None
    archive: str = ""
    archive_bytes: int = 0
    load_seconds: float = 0.0
    megabytes: float = 0.0
    latency_seconds: float = 0.0
    batch_seconds: float = 0.0
    throughput: float = 0.0
    metric_name: str = ""
    metric: float | None = None
    reference: float | None = None
    largest_difference: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self)


def pairs(spec: ModelSpec, precisions: Sequence[str] | None = None) -> Iterator[tuple[str, str]]:
    """Runtimes and precisions that can be tried: all, or those of ``precisions``.

    int8 is left out where the model names no pictures to calibrate and to measure with.
    """
    ready = spec.calibration is not None and spec.accuracy is not None
    for name in plugins.names("runtimes"):
        runtime = plugins.load_runtime(name)
        if not hasattr(runtime, "export"):
            continue
        for precision in runtime.precisions:
            if precision == "int8" and not ready:
                continue
            if precisions is None or precision in precisions:
                yield name, precision


def run(
    spec: ModelSpec, root: Path, store: Path, chosen: Sequence[tuple[str, str]], tell: Tell
) -> Iterator[Trial]:
    """Build and time each pair, in processes of their own; a failure is a trial with a problem."""
    for runtime, precision in chosen:
        tell(f"{runtime} {precision}: build")
        folder = store / f"{runtime}-{precision}"
        built = _build(spec, root, folder, runtime, precision)
        if "problem" in built:
            yield Trial(runtime, precision, built["problem"])
            continue
        tell(f"{runtime} {precision}: measure")
        yield _measured(runtime, precision, folder / file_name(spec.name, spec.version), built)


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the largest throughput; raises ExportError where all failed."""
    good = [trial for trial in trials if trial.problem is None]
    if not good:
        why = "; ".join(f"{trial.runtime}: {trial.problem}" for trial in trials)
        raise ExportError(f"no runtime can serve this model: {why or 'none was tried'}")
    return max(good, key=lambda trial: trial.throughput)


def _build(
    spec: ModelSpec, root: Path, store: Path, runtime: str, precision: str
) -> dict[str, Any]:
    """What the build reports, or its problem."""
    fields = spec.model_dump(mode="json", exclude_unset=True)
    fields |= {"runtime": runtime, "precision": precision}
    if runtime != spec.runtime:
        fields.pop("runtime_options", None)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.yaml"
        path.write_text(yaml.safe_dump(fields), encoding="utf-8")
        command = [sys.executable, "-m", "marsmith", "build", str(path), "--json", "--force"]
        return _json([*command, "--store", str(store.absolute())], root, _BUILD_SECONDS)


def _measured(runtime: str, precision: str, archive: Path, built: dict[str, Any]) -> Trial:
    with tempfile.TemporaryDirectory(prefix="marsmith-measure-") as folder:
        unpack(archive, Path(folder))
        found = measure(Path(folder))
    if "problem" in found:
        return Trial(runtime, precision, found["problem"])
    accuracy = built.get("accuracy") or {}
    return Trial(
        runtime,
        precision,
        archive=str(archive),
        archive_bytes=archive.stat().st_size,
        metric_name=accuracy.get("metric", ""),
        metric=accuracy.get("artifact"),
        reference=accuracy.get("reference"),
        largest_difference=built["parity"]["largest_score_difference"],
        **found,
    )


def measure(folder: Path, batch: int = BATCH) -> dict[str, Any]:
    """Figures of a worker of the unpacked archive (see ``measure_worker``), or its problem."""
    return _json(
        # -P: the script's own folder, which is the pipeline, stays off the path.
        [sys.executable, "-P", str(_WORKER), str(folder), str(batch)],
        folder,
        _MEASURE_SECONDS,
        PYTHONPATH=str(folder),
        PYTHONDONTWRITEBYTECODE="1",
    )


def _json(command: list[str], cwd: Path, seconds: float, **changes: str) -> dict[str, Any]:
    """The last line of a command's output as JSON, or its last words as a problem."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **changes},
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return {"problem": f"took longer than {seconds:g} s"}
    lines = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip()
    last = (lines.splitlines() or ["no output"])[-1]
    if done.returncode:
        return {"problem": last.removeprefix("error: ")}
    found: dict[str, Any] = json.loads(last)
    return found
