"""One layer of a plan as lanes: what the cost model says, shared out over the layers."""

from __future__ import annotations

from collections import Counter

from dialect.pages.lanes import Slot
from dialect.planning.plan import Plan


def of_plan(plan: Plan) -> list[Slot]:
    """Arithmetic and HBM side by side; behind them the exchanges, one after the other.

    The time of all exchanges is shared out by their bytes, that of their latency by their number.
    """
    predicted = plan.predicted
    assert predicted is not None
    times: Counter[int] = Counter(exchange.times for exchange in plan.exchanges)
    layers = max((count for count, _ in times.most_common(1)), default=1)
    compute_s, hbm_s = predicted.compute_s / layers, predicted.hbm_s / layers
    slots = [Slot("compute", 0, compute_s, "products"), Slot("HBM", 0, hbm_s, "weights and caches")]
    now_s = max(compute_s, hbm_s)
    moved = sum(exchange.bytes * exchange.times for exchange in plan.exchanges) or 1
    count = sum(exchange.times for exchange in plan.exchanges) or 1
    for exchange in plan.exchanges:
        if exchange.times < layers:
            continue
        seconds = predicted.communication_s * exchange.bytes / moved + predicted.latency_s / count
        for _ in range(exchange.times // layers):
            what = f"{exchange.kind} for {exchange.part}"
            slots += [Slot(f"link {axis}", now_s, seconds, what) for axis in exchange.axes]
            now_s += seconds
    return slots
