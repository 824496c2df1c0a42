"""Where the time of a request goes: the handler's stage timers and TorchServe's own counters."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.serving.rows import Measurements, names
from handlers.metrics import BATCH_REQUESTS, STAGE_SECONDS

# In the order in which a batch goes through them.
STAGES = ("decode", "preprocess", "inference", "postprocess", "encode")
_COUNTERS = {
    "ts_inference_requests": ("asked", 1.0),
    "ts_queue_latency_microseconds": ("queue", 1e-3),
    "ts_inference_latency_microseconds": ("whole", 1e-3),
    f"{BATCH_REQUESTS.name}_count": ("batches", 1.0),
    f"{BATCH_REQUESTS.name}_sum": ("batched", 1.0),
}


def read(text: str) -> dict[str, float]:
    """Sums since the server's start, out of a scrape of its metrics.

    ``asked`` are requests; ``queue`` and ``whole`` their milliseconds until a worker took them and
    until they were answered; ``batches`` those of the handler and ``batched`` the requests in them;
    each of ``STAGES`` the milliseconds of all batches. What nobody has told yet is 0.
    """
    found = dict.fromkeys(("asked", "queue", "whole", "batches", "batched", *STAGES), 0.0)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"{STAGE_SECONDS.name}_sum":
                found[sample.labels["Stage"]] += 1e3 * sample.value
            elif (name := sample.name.removesuffix("_total")) in _COUNTERS:
                key, scale = _COUNTERS[name]
                found[key] += scale * sample.value
    return found


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What came between two scrapes."""
    return {key: after[key] - before[key] for key in after}


def table(measurements: Measurements) -> list[list[str]]:
    """For each load of a contender that has timers: the means of a request and of a batch, in ms.

    A request waits in the queue by itself, and then in each stage for its whole batch. ``rest`` is
    what is left of the time from its arrival to its answer: front end, protocol, and what larger
    batches take longer than the mean one.
    """
    head = ["contender", "load", "requests a batch", "queue ms"]
    lines = [[*head, *(f"{stage} ms" for stage in STAGES), "rest ms", "arrival to answer ms"]]
    for name in names(measurements):
        groups: dict[str, list[dict[str, float]]] = {}
        for one in measurements:
            if one["contender"] == name and one.get("spent", {}).get("batches"):
                groups.setdefault(_load(one), []).append(_means(one["spent"]))
        for load, group in groups.items():
            means = [median(one[key] for one in group) for key in group[0]]
            lines.append([name, load, *(f"{value:.1f}" for value in means)])
    return lines


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    """In the order of the table's columns."""
    asked = max(1.0, sums["asked"])
    whole, queue = sums["whole"] / asked, sums["queue"] / asked
    stages = {stage: sums[stage] / sums["batches"] for stage in STAGES}
    rest = whole - queue - sum(stages.values())
    batch = {"batch": sums["batched"] / sums["batches"], "queue": queue}
    return {**batch, **stages, "rest": rest, "whole": whole}


def _load(one: Mapping[str, Any]) -> str:
    """A load in the words of its table."""
    if one["kind"] == "mlperf":
        return f"LoadGen, {one['scenario']}"
    if one["kind"] == "poisson":
        share = one["share"]
        return f"Poisson, {one['rate']:.0f}/s" if share is None else f"Poisson, {share:.0%}"
    pictures = "" if one["per_request"] == 1 else f"{one['per_request']} a request, "
    size = "" if one["size"] == "real" else f"{one['size']}, "
    return f"closed, {size}{pictures}{one['connections']}"
