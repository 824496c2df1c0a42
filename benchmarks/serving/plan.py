"""What a sitting measures."""

from __future__ import annotations

from dataclasses import dataclass

from handlers.errors import SpecError


@dataclass(frozen=True)
class Plan:
    """What is measured. ``loads`` are of closed, poisson, mlperf, eight and the sizes large, small.

    ``seconds`` of each load, ``shares`` of a contender's own capacity that Poisson arrivals ask
    for, ``rates`` that all contenders are asked for, ``patience`` in seconds until ready. ``warm``
    seconds of load come first and do not count: caches, lazy compilation, Java's compiler.
    """

    rounds: int = 3
    seconds: float = 5.0
    warm: float = 5.0
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
