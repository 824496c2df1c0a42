"""One model in several runtimes and precisions: built, proven and timed here, one by one."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from handlers import plugins
from handlers.errors import ExportError, SmokeError, SpecError
from marsmith import smoke
from marsmith.archive import file_name
from marsmith.leaving import clearing, failure
from marsmith.spec import ModelSpec

# Of which runtimes and precisions are compared; the fastest is chosen by the model's own.
BATCH = 8
Tell = Callable[[str], object]
BUILD_SECONDS = 3600.0
REFERENCE = ("eager", "fp32")
# What the command line begins its reason with.
_ERROR = "error: "


@dataclass(frozen=True)
class Trial:
    """One pair of runtime and precision; ``problem`` says why there are no figures.

    ``import_s``, ``load_s``, ``resident_bytes`` and ``device`` are a worker's (``load_worker``),
    ``alone_s`` seconds of one picture, ``batch_s`` of a batch, ``throughput`` pictures per second
    in such; ``metric`` and ``reference``, that of eager's fp32, where the model names pictures.
    """

    runtime: str
    precision: str
    problem: str | None = None
    archive_bytes: int = 0
    import_s: float = 0.0
    load_s: float = 0.0
    resident_bytes: int = 0
    device: str = "cpu"
    alone_s: float = 0.0
    batch_s: float = 0.0
    throughput: float = 0.0
    metric_name: str = ""
    metric: float | None = None
    reference: float | None = None
    largest_difference: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self)


def pairs(
    spec: ModelSpec, precisions: Sequence[str] = (), runtimes: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """Runtimes and precisions that can be tried, of those that are named if any are.

    Unasked, int8 is left out where the model names no pictures to calibrate and to measure with.
    Raises SpecError for a runtime that there is not, for a named precision or runtime of which no
    pair can be built, where none is left, and for an artifact of others.
    """
    if spec.artifact is not None:
        raise SpecError(
            f"{spec.name}: an artifact of others runs in the runtime of its format alone: build "
            "it, and give its archive (.mar) to `marsmith tune`, which finds its serving settings"
        )
    ready = spec.calibration is not None and spec.accuracy is not None
    known = plugins.names("runtimes")
    # As the files are named, too.
    wanted = [name.replace("_", "-") for name in runtimes] or known
    for name in wanted:
        if name not in known:
            raise SpecError(f"no runtime {name!r}: accepted are {', '.join(known)}")
    able = {
        name: plugins.load_runtime(name).precisions
        for name in known
        if name in wanted and hasattr(plugins.load_runtime(name), "export")
    }
    found = [
        (name, precision)
        for name, all_precisions in able.items()
        for precision in all_precisions
        if (precision in precisions or not precisions) and (precision != "int8" or ready)
    ]
    missing = [each for each in precisions if each not in {precision for _, precision in found}]
    if missing or not found:
        possible = dict.fromkeys(each for one in able.values() for each in one)
        accepted = ", ".join(each for each in possible if each != "int8" or ready) or "none"
        pictures = "int8" in possible and not ready
        raise SpecError(
            f"no runtime of {', '.join(wanted)} can be built in "
            f"{', '.join(missing) or 'any precision'}: accepted are {accepted}"
            f"{'; int8 needs --calibrate and --evaluate' if pictures else ''}"
        )
    tried = {name for name, _ in found}
    if runtimes and (idle := [name for name in wanted if name not in tried]):
        raise SpecError(
            f"runtime {idle[0]} can be built in {', '.join(able.get(idle[0], ())) or 'nothing'}, "
            f"not in {', '.join(precisions) or 'fp32'}: leave it out, or name a precision of it"
        )
    return found


def alone(spec: ModelSpec, batch: int = BATCH) -> ModelSpec:
    """The spec with one worker that has all cores, and an artifact for ``batch`` pictures or more.

    So runtimes are compared with all that the host has, whatever workers the model is served by.
    """
    size = max(batch, spec.serving.batch_size)
    queue = max(size, spec.serving.queue_size)
    changes = {"workers": 1, "threads": 0, "batch_size": size, "queue_size": queue}
    return spec.model_copy(update={"serving": spec.serving.model_copy(update=changes)})


def run(
    spec: ModelSpec,
    root: Path,
    store: Path,
    chosen: Sequence[tuple[str, str]],
    tell: Tell,
    seconds: float = BUILD_SECONDS,
    batch: int = BATCH,
) -> Iterator[Trial]:
    """Build and time each pair, in processes of their own; a failure is a trial with a problem.

    So is a build that takes more than ``seconds``. ``batch`` is how many pictures are timed at
    once.
    """
    for runtime, precision in chosen:
        tell(f"{runtime} {precision}: build")
        folder = store / f"{runtime}-{precision}"
        built = _build(spec, root, folder, runtime, precision, seconds)
        if "problem" in built:
            yield Trial(runtime, precision, built["problem"])
            continue
        tell(f"{runtime} {precision}: measure")
        archive = folder / file_name(spec.name, spec.version)
        yield _measured(runtime, precision, archive, built, batch)


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the largest throughput; raises ExportError where all failed."""
    good = [trial for trial in trials if trial.problem is None]
    if not good:
        why = "; ".join(f"{trial.runtime}: {trial.problem}" for trial in trials)
        raise ExportError(f"no runtime can serve this model: {why or 'none was tried'}")
    return max(good, key=lambda trial: trial.throughput)


def _build(
    spec: ModelSpec, root: Path, store: Path, runtime: str, precision: str, seconds: float
) -> dict[str, Any]:
    """What the build reports, or its problem."""
    fields = spec.on(runtime).model_dump(mode="json", exclude_unset=True)
    fields |= {"runtime": runtime, "precision": precision}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.yaml"
        path.write_text(yaml.safe_dump(fields), encoding="utf-8")
        command = [sys.executable, "-m", "marsmith", "build", str(path), "--json", "--force"]
        try:
            done = _run([*command, "--store", str(store.absolute())], root, seconds)
        except subprocess.TimeoutExpired:
            return {"problem": f"the build took longer than {seconds:.0f} s"}
    if done.returncode:
        return {"problem": _problem(done)}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _problem(done: subprocess.CompletedProcess[str]) -> str:
    said = done.stderr or done.stdout
    reason = said.strip().rpartition("\n")[2]
    if done.returncode > 0 and reason.startswith(_ERROR):
        return reason.removeprefix(_ERROR)
    return failure(done.returncode, said)


def _run(command: Sequence[str], root: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    pipe = subprocess.PIPE
    begun = subprocess.Popen(command, cwd=root, stdout=pipe, stderr=pipe, text=True)
    with begun as process, clearing(process):
        out, err = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _measured(
    runtime: str, precision: str, archive: Path, built: dict[str, Any], batch: int
) -> Trial:
    try:
        found = smoke.measured(archive, batch)
    except SmokeError as error:
        return Trial(runtime, precision, str(error))
    accuracy = built.get("accuracy") or {}
    return Trial(
        runtime,
        precision,
        archive_bytes=archive.stat().st_size,
        metric_name=accuracy.get("metric", ""),
        metric=accuracy.get("artifact"),
        reference=accuracy.get("reference"),
        largest_difference=built["parity"]["largest_score_difference"],
        throughput=batch / found["batch_s"],
        **found,
    )
