"""Workers that died, told from those that were scaled away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from marsmith.status import VersionStatus

Version = tuple[str, str]


class Losses:
    """Counts workers that died, by comparing each status with the one before.

    TorchServe replaces a dead worker within seconds, mostly between two scrapes: the process ids
    tell all the same. What was lost by asking for fewer workers does not count, nor what a version
    had that is registered anew, whose workers have other ids.
    """

    def __init__(self) -> None:
        self.lost: Counter[Version] = Counter()
        self._before: dict[Version, VersionStatus] = {}
        self._server: int | None = None

    def see(self, server: int, statuses: Sequence[VersionStatus]) -> None:
        """Take the statuses of the server with a process id; another one begins anew."""
        if server != self._server:
            self._before = {}
            self._server = server
        for one in statuses:
            version = one.model, one.version
            self.lost[version] += 0
            before = self._before.get(version)
            if before and set(before.worker_ids) & set(one.worker_ids):
                gone = len(set(before.pids) - set(one.pids))
                fewer = max(0, before.min_workers - one.min_workers)
                self.lost[version] += max(0, gone - fewer)
        self._before = {(one.model, one.version): one for one in statuses}
