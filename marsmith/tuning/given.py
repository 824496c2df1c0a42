"""Search for how to serve an archive that is there: its artifact stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from handlers.bundle import Bundle
from handlers.errors import ArchiveError
from marsmith import artifacts
from marsmith.subject import Subject
from marsmith.tuning.points import BATCHES
from marsmith.tuning.search import Pair
from marsmith.tuning.session import Session


@dataclass(kw_only=True)
class ArchiveSession(Session):
    """A search of workers, threads, batch size, delay and what may be chosen at load.

    ``of`` is an archive, unpacked for as long as the search takes.
    """

    of: Subject

    def __post_init__(self) -> None:
        # An archive tells no place of its pictures: what is written leaves them to the model file.
        self.spec = self.spec.model_copy(update={"calibration": None, "accuracy": None})
        super().__post_init__()
        assert self.of.path is not None
        assert self.of.folder is not None
        self.path, self.bundle = self.of.path, Bundle.read(self.of.folder)
        self._most = max(self.bundle.limits.batch_size, self.bundle.artifact_batch)
        self.untried = (
            f"not tried: other runtimes and precisions, and batches above {self._most}, for the "
            f"artifact of {self.path.name} is served as it was built; `marsmith tune` of the model "
            "builds others"
        )

    def search(self) -> None:
        """Raises ArchiveError where the archive does not load on this host."""
        self.tell(f"{self.path.name}: load")
        loaded = artifacts.describe(self.path, load=True)
        if loaded.resident_bytes is None:
            raise ArchiveError(f"{self.path.name} does not load: {loaded.refused}")
        pair = (self.bundle.runtime, self.bundle.told_precision)
        sizes = (self._most, *(size for size in BATCHES if size < self._most))
        room = self._room(pair, loaded.resident_bytes, loaded.device or "cpu")
        self._serve({pair: room}, 1, sizes)

    def _archive(self, pair: Pair) -> Path:
        return self.path
