"""What comes before a contender is measured: the same rule for all of them."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.serving.plan import Plan


def warm(load: Callable[[float], int], plan: Plan) -> tuple[int, float]:
    """Load until ``plan.warm`` seconds and ``plan.warm_requests`` answers are over, at most
    ``plan.warm_most`` seconds; the answers and seconds that it took.

    ``load`` is asked for so many seconds of load and says how many answers came. Java compiles its
    hottest code only after thousands of requests, and what it interprets until then costs 0.5 ms of
    CPU time each; a server that answers ten a second would take half an hour for as many.
    """
    answers, spent, step = 0, 0.0, plan.warm
    most = max(plan.warm, plan.warm_most)
    while spent < plan.warm or (answers < plan.warm_requests and spent < most):
        answers += load(step)
        spent += step
        left = (plan.warm_requests - answers) * spent / max(1, answers)
        # Whole seconds, as wrk takes them.
        step = min(max(1.0, float(round(left))), max(1.0, most - spent))
    return answers, spent
