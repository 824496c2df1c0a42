"""What a sitting measures."""

from __future__ import annotations

from dataclasses import dataclass

from handlers.errors import SpecError


@dataclass(frozen=True)
class Plan:
    """What is measured. ``loads`` are of closed, poisson, mlperf, eight and the sizes large, small.

    ``seconds`` of each load, ``shares`` of a contender's own capacity that Poisson arrivals ask
    for, ``rates`` that all contenders are asked for, ``patience`` in seconds until ready.

    What comes first does not count: caches, lazy compilation, Java's compiler. That is at the
    start ``warm`` seconds of a closed loop, and more until ``warm_requests`` are answered, of which
    the slow are spared after ``warm_most`` seconds; then ``warm_each`` seconds of each closed and
    each Poisson load before it counts.
    """

    rounds: int = 3
    seconds: float = 5.0
    warm: float = 5.0
    warm_requests: int = 20_000
    warm_most: float = 60.0
    warm_each: float = 2.0
    connections: tuple[int, ...] = (1, 8, 32)
    loads: tuple[str, ...] = ("closed", "poisson")
    shares: tuple[float, ...] = (0.6,)
    rates: tuple[float, ...] = ()
    latency_ms: float = 100.0
    patience: float = 180.0
    seed: int = 1

    def __post_init__(self) -> None:
        open_loops = {"poisson", "mlperf"} & set(self.loads)
        if open_loops and "closed" not in self.loads and not self.rates:
            raise SpecError(
                f"--load {min(open_loops)} needs a rate: give --rates, or --load closed as well, "
                "which tells the capacity that --shares are of"
            )
