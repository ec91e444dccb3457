"""Our orders against torch.distributed.pipelining's: never longer, never more in flight."""

import math
from itertools import accumulate, cycle, product

import pytest

from launcher.plan.schedule import SCHEDULES, build_schedule
from launcher.plan.schedule_clock import Durations, walk
from launcher.plan.simulate import StageTimes, simulate
from tests.plan.oracles import CLASSES, accepts, torch_orders

TIMES = [(1, 1, 1), (1, 1, 0.5), (1, 2, 1), (2, 1, 1.5)]
CHUNKS = {"interleaved_1f1b": (2, 3, 4), "zb_h1": (1, 2, 3), "zb_v": (2,), "dualpipev": (2,)}
CASES = [
    (name, ours, p, v)
    for name, p in product(CLASSES, (1, 2, 3, 4, 8))
    for v in CHUNKS.get(name, (1,))
    for ours in ((name, "zb_1p") if (name, v) == ("zb_h1", 1) else (name,))
]
MICROBATCHES = (1, 2, 3, 5, 8, 12, 16, 17, 33)


def peaks(orders, splits):
    signs = {"F": 1, "B": 0 if splits else -1, "W": -1}
    return [max(accumulate(signs[action.kind] for action in order)) for order in orders]


def stage_times(f, b, w, splits, shares):
    return [
        StageTimes(
            forward_s=f * share,
            backward_s=(b if splits else b + w) * share,
            weight_s=w * share if splits else 0,
        )
        for share in shares
    ]


def unequal(kind, count):
    """Shares of the parts: alike; an embedding and a head; one slow device; any."""
    shares = [1.0] * count
    if kind == "ends":
        shares[0], shares[-1] = 1.1, 1.6 if count > 1 else 1.1
    if kind == "slow":
        shares[count // 2] = 2.0
    if kind == "any":
        shares = [1 + 0.4 * math.sin(7 * part) for part in range(count)]
    return shares


@pytest.mark.parametrize(("name", "ours", "p", "v"), CASES)
def test_no_longer_and_no_more_in_flight_than_torch(name, ours, p, v):
    splits, compared = SCHEDULES[ours].splits_backward, 0
    kinds = cycle(("alike", "ends", "slow", "any", "alike"))
    for m in MICROBATCHES:
        if not accepts(name, p, m):
            continue
        for (f, b, w), p2p_s in product(TIMES, (0.0, 0.25)):
            times = stage_times(f, b, w, splits, unequal(next(kinds), p * v))
            schedule = build_schedule(ours, p, m, v, times=times, p2p_s=p2p_s)
            theirs = torch_orders(name, schedule.chain, m)
            result = simulate(schedule, times, p2p_s)
            durations = Durations(times=times, p2p_s=p2p_s)
            timing = walk(schedule.chain, m, theirs, durations, has_transfers=False)
            assert result.makespan_s <= timing.makespan_s + 1e-9, (m, f, b, w, p2p_s)
            # One more rule than theirs for those that are made for the times: depth x p.
            limits = [p] * p if ours == "zb_1p" else peaks(theirs, splits)
            assert all(a <= b for a, b in zip(result.peak_in_flight, limits, strict=True)), m
            compared += 1
    assert compared >= 16
