"""``python -m benchmarks.serving.mlperf JOB.json``: MLPerf's LoadGen drives the endpoint.

LoadGen chooses the samples and the times and writes its own logs; this process sends what it asks
for over HTTP with a pool of threads. Scenario Server is Poisson arrivals at a target rate, Offline
all samples at once. In accuracy mode every sample is asked once, and the answers go through
LoadGen's accuracy log as they came. It is no submission: MLPerf's rules want its own models,
pictures and durations.
"""

from __future__ import annotations

import array
import json
import queue
import re
import sys
import threading
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_THREADS = 32
_OFFLINE_THREADS = 16
_TIMEOUT_SECONDS = 60.0


class Endpoint:
    """The system under test: a queue of samples and threads that ask a server for them."""

    def __init__(self, job: dict[str, Any], threads: int) -> None:
        self.job, self.failed = job, 0
        self.bodies = [Path(file).read_bytes() for file in job["files"]]
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def issue(self, samples: Any) -> None:
        """What LoadGen calls."""
        for sample in samples:
            self._queue.put(sample)

    def close(self) -> None:
        """End the threads."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        import mlperf_loadgen as lg

        # A connection for each thread, which is kept.
        place = urlsplit(self.job["url"])
        connection = HTTPConnection(str(place.hostname), place.port, timeout=_TIMEOUT_SECONDS)
        while (sample := self._queue.get()) is not None:
            data = array.array("B", self._ask(connection, sample.index))
            lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, *data.buffer_info())])
        connection.close()

    def _ask(self, connection: HTTPConnection, index: int) -> bytes:
        """The answer to a sample; empty where there is no right one."""
        try:
            body = self.bodies[index]
            connection.request("POST", self.job["path"], body, self.job["headers"])
            reply = connection.getresponse()
            text = reply.read()
            if reply.status == 200:
                return text if self.job["mode"] == "accuracy" else b""
        except (OSError, HTTPException):
            connection.close()
        with self._lock:
            self.failed += 1
        return b""


def settings(job: dict[str, Any]) -> Any:
    """LoadGen's settings of a job."""
    import mlperf_loadgen as lg

    made = lg.TestSettings()
    offline, accuracy = job["scenario"] == "Offline", job["mode"] == "accuracy"
    made.scenario = lg.TestScenario.Offline if offline else lg.TestScenario.Server
    made.mode = lg.TestMode.AccuracyOnly if accuracy else lg.TestMode.PerformanceOnly
    made.min_duration_ms = int(job["seconds"] * 1000)
    made.min_query_count = 1
    if offline:
        made.offline_expected_qps = job["rate"]
    else:
        made.server_target_qps = job["rate"]
        made.server_target_latency_ns = int(job["latency_ms"] * 1e6)
        made.server_target_latency_percentile = 0.99
    return made


def read_summary(text: str) -> dict[str, Any]:
    """What ``mlperf_log_summary.txt`` says, numbers as numbers."""
    found: dict[str, Any] = {}
    for key, value in re.findall(r"^([^:\n]+?)\s*: (.+)$", text, re.MULTILINE):
        number = re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?", value.strip())
        found.setdefault(key.strip(), float(value) if number else value.strip())
    return found


def read_accuracy(text: str) -> dict[int, bytes]:
    """The answers in ``mlperf_log_accuracy.json`` by the index of their sample."""
    return {each["qsl_idx"]: bytes.fromhex(each["data"]) for each in json.loads(text)}


def main() -> None:
    """Run the job and print a JSON line."""
    import mlperf_loadgen as lg

    job = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(job["logs"])
    folder.mkdir(parents=True, exist_ok=True)
    output = lg.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = str(folder), False
    logs = lg.LogSettings()
    logs.log_output, logs.enable_trace = output, False
    offline = job["scenario"] == "Offline"
    endpoint = Endpoint(job, _OFFLINE_THREADS if offline else _THREADS)
    count = len(job["files"])
    sut = lg.ConstructSUT(endpoint.issue, lambda: None)
    samples = lg.ConstructQSL(count, count, lambda _: None, lambda _: None)
    try:
        lg.StartTestWithLogSettings(sut, samples, settings(job), logs)
    finally:
        endpoint.close()
        lg.DestroyQSL(samples)
        lg.DestroySUT(sut)
    found: dict[str, Any] = {"scenario": job["scenario"], "failed": endpoint.failed}
    if job["mode"] == "performance":
        found["summary"] = read_summary((folder / "mlperf_log_summary.txt").read_text())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
