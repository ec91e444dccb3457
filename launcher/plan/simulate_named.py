"""The simulation of a schedule that has a name: its order is right by construction, so nothing is
checked, and transfers, which stand right behind what they send, are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from launcher.plan.schedule import SCHEDULES, build_orders
from launcher.plan.schedule_clock import Durations, Timing, walk
from launcher.plan.schedule_peaks import peaks_of
from launcher.plan.schedule_records import Action, Chain, StageTimes
from launcher.plan.simulate import Simulation, record_simulation


def simulate_named(
    name: str, chain: Chain, num_microbatches: int, times: Sequence[StageTimes], p2p_s: float
) -> Simulation:
    """What `simulate` says of `build_schedule(...)`, at a fraction of the time."""
    return record_simulation(
        chain,
        num_microbatches,
        times,
        p2p_s,
        timing=time_named(name, chain, num_microbatches, tuple(times), p2p_s),
        peaks=peaks_of(name, chain.num_stages, num_microbatches, chain.num_chunks),
        splits=SCHEDULES[name].splits_backward,
    )


@lru_cache(maxsize=256)
def time_named(
    name: str, chain: Chain, num_microbatches: int, times: tuple[StageTimes, ...], p2p_s: float
) -> Timing:
    """When its stages start and end; a search asks for some of them twice."""
    orders = named_orders(name, chain, num_microbatches)
    durations = Durations(times=times, p2p_s=p2p_s)
    return walk(chain, num_microbatches, orders, durations, has_transfers=False)


def named_orders(name: str, chain: Chain, count: int) -> tuple[tuple[Action, ...], ...]:
    """What every stage does, without transfers."""
    return _orders(name, chain.num_stages, count, chain.num_chunks)


@lru_cache(maxsize=8)
def _orders(name: str, stages: int, count: int, chunks: int) -> tuple[tuple[Action, ...], ...]:
    return tuple(tuple(order) for order in build_orders(name, stages, count, chunks))
