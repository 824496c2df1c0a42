"""One search: pairs built, proven and timed in process, the fastest of them served and loaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from handlers import plugins
from handlers.errors import ExportError
from handlers.integrity import sha256
from marsmith import trials
from marsmith.archive import file_name
from marsmith.spec import ModelSpec
from marsmith.trials import Trial
from marsmith.tuning import fingerprint, search, serving
from marsmith.tuning.points import BATCHES, Measured, Objective, Point
from marsmith.tuning.record import Record
from marsmith.tuning.search import Pair, Room

FOLDER = Path("build/tune")
FINALISTS = 3
# Of the budget; what is left is for serving.
_BUILD_SHARE = 0.6
_MEMORY_SHARE = 0.8
# A GPU computes a batch at a time, and each worker takes memory of it that nobody here measures.
_WORKERS_OF_A_GPU = 4
# Where the time does not suffice for all, these are tried first: mostly the fastest.
_LIKELY = ("tensorrt", "openvino", "onnx")


@dataclass
class Session:
    """What was found so far is in ``tried`` and ``measured``, also when it is interrupted.

    ``budget`` in seconds: nothing is begun after it. ``tell`` hears what is done now, ``advance``
    how many steps are done and how many there are at most. ``untried`` says what is not tried
    however long it takes, and why.
    """

    spec: ModelSpec
    root: Path
    load: serving.Load
    objective: Objective
    budget: float
    tell: Callable[[str], object]
    advance: Callable[[int, int], object]
    tried: list[Trial] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    skipped: list[Pair] = field(default_factory=list)
    complete: bool = False
    untried: str = ""

    def __post_init__(self) -> None:
        # One artifact for all points: it takes the largest batch.
        self._built = trials.alone(self.spec, max(BATCHES))
        self._store = self.root / FOLDER / self.spec.name
        self._record = Record(self.root / FOLDER / f"{self.spec.name}.jsonl")
        self._host = fingerprint.host()
        self._deadline = time.monotonic() + self.budget

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self._deadline - time.monotonic()

    def run(self, pairs: Sequence[Pair]) -> None:
        """Search; raises ExportError where no pair can serve the model."""
        ahead = self._ahead(pairs)
        for number, pair in enumerate(self._ordered(pairs)):
            self.advance(number, len(pairs) + ahead)
            self._try(pair)
        finalists = {
            pair: self._room(pair, trial.resident_bytes, trial.device)
            for pair, trial in self._finalists().items()
        }
        self.tried.sort(key=lambda trial: (trial.problem is not None, -trial.throughput))
        self._serve(finalists, len(pairs))

    def _serve(
        self, finalists: dict[Pair, Room], before: int, sizes: Sequence[int] = BATCHES
    ) -> None:
        """Measure the points of the finalists; ``before`` steps are done."""
        cores, count = self._host["cores"], 0
        ahead = self._ahead(finalists, sizes)
        archives = {pair: sha256(self._archive(pair)) for pair in finalists}
        common = {"host": self._host, "seconds": self.load.seconds}
        common["pictures"] = fingerprint.of_pictures(self.load.pictures)

        def measure(point: Point, **which: Any) -> Measured | None:
            nonlocal count
            self.advance(before + count, before + ahead)
            count += 1
            archive = archives[point.runtime, point.precision]
            return self._measure(
                point, {"archive": archive, "point": asdict(point), **common, **which}
            )

        for point in search.points(finalists, cores, self.objective, self.measured, sizes):
            if (one := measure(point)) is None:
                return
            self.measured.append(one)
        twice: set[Point] = set()
        while (one := search.unsure(self.measured, self.objective, twice)) is not None:
            if (second := measure(one.point, again=1)) is None:
                return
            self.measured[self.measured.index(one)] = one.averaged(second)
            twice.add(one.point)
        self.complete = True

    def _measure(self, point: Point, key: dict[str, Any]) -> Measured | None:
        """The figures of a point, from the record where it has them; None: there is no time."""
        if (found := self._record.get(key)) is not None:
            return Measured.from_json(found)
        if self.left <= 0:
            return None
        self.tell(f"{point}{', again' if 'again' in key else ''}")
        pair = (point.runtime, point.precision)
        one = serving.measure(self._archive(pair), self.spec, self.root, point, self.load)
        # A problem may be mended when the search goes on.
        if one.problem is None:
            self._record.add(key, one.to_json())
        return one

    def _ordered(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The model file's own pair first, for it is known to work; then the likely ones."""
        own = (self.spec.runtime, self.spec.precision)
        return sorted(pairs, key=lambda pair: (pair != own, pair[0] not in _LIKELY))

    def _try(self, pair: Pair) -> None:
        key: dict[str, Any] = {
            "trial": fingerprint.of_pair(self._built, self.root, *pair),
            "host": self._host,
        }
        kept, archive = self._record.get(key), self._archive(pair)
        if kept is not None:
            trial = Trial(**kept["trial"])
            if archive.is_file() and sha256(archive) == kept["archive"]:
                self.tried.append(trial)
                return
        good = any(trial.problem is None for trial in self.tried)
        seconds = self.left - (1 - _BUILD_SHARE) * self.budget * good
        if seconds <= 0:
            self.skipped.append(pair)
            return
        start = time.monotonic()
        (trial,) = trials.run(self._built, self.root, self._store, [pair], self.tell, seconds)
        if trial.problem and time.monotonic() - start >= seconds:
            # The budget's fault: with more time it may succeed.
            self.skipped.append(pair)
            return
        self.tried.append(trial)
        if trial.problem is None:
            self._record.add(key, {"trial": trial.to_json(), "archive": sha256(archive)})

    def _finalists(self) -> dict[Pair, Trial]:
        """The fastest pairs, with what was found of each."""
        good = [trial for trial in self.tried if trial.problem is None]
        if not good and self.skipped:
            raise ExportError("no archive was built in this time: give more with --budget MINUTES")
        trials.best(self.tried)
        good.sort(key=lambda trial: -trial.throughput)
        return {(trial.runtime, trial.precision): trial for trial in good[:FINALISTS]}

    def _room(self, pair: Pair, worker: int, device: str) -> Room:
        """For how many workers of so many bytes there is memory, at least one; other options."""
        free = _MEMORY_SHARE * psutil.virtual_memory().available
        workers = max(1, int(free / worker))
        if device != "cpu":
            workers = min(workers, _WORKERS_OF_A_GPU)
        return Room(workers, self._options(pair))

    def _options(self, pair: Pair) -> list[dict[str, Any]]:
        """What may be chosen at load, one after the other, beside what the archive has."""
        runtime = plugins.load_runtime(pair[0])
        has = {**runtime.options, **self.spec.on(pair[0]).options}
        choices = runtime.load_choices.items()
        return [{key: one} for key, values in choices for one in values if one != has[key]]

    def _ahead(self, pairs: Collection[Pair], sizes: Sequence[int] = BATCHES) -> int:
        """At most so many measurements, once the finalists of ``pairs`` are known."""
        options = max((len(self._options(pair)) for pair in pairs), default=0)
        count = min(FINALISTS, len(pairs))
        return search.most(count, self._host["cores"], options, sizes) + search.AGAIN

    def _archive(self, pair: Pair) -> Path:
        name = file_name(self.spec.name, self.spec.version)
        return self._store / "-".join(pair) / name
