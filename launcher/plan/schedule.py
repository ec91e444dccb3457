"""In which order each pipeline stage works: schedules as data, read by plan and run alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from launcher.frozen import frozen
from launcher.plan import schedule_orders as orders
from launcher.plan import schedule_v
from launcher.plan.schedule_auto import auto_orders
from launcher.plan.schedule_records import (
    COMPUTE,
    Action,
    Chain,
    Kind,
    Orders,
    Placement,
    Problem,
    Schedule,
    ScheduleError,
    StageTimes,
    equal_times,
)
from launcher.plan.schedule_transfers import finish_schedule

__all__ = [
    "COMPUTE", "SCHEDULES", "Action", "Kind", "Recipe", "Schedule", "ScheduleError", "StageTimes",
    "build_orders", "build_schedule", "finish_schedule",
]  # fmt: skip


@frozen
class Recipe:
    """How the schedules of one name are made, and for what."""

    order: Callable[..., list[Action]] | None = None
    """(action, stage, num_stages, num_microbatches[, num_chunks]) -> actions of the stage; None:
    made for the given times, all stages at once."""
    chunks: int | None = 1
    """Chunks per stage; None: any number."""
    placement: Placement = "loop"
    splits_backward: bool = False
    """Whether it has W actions."""
    microbatches_per_stage: int = 0
    """It needs at least num_stages times this many microbatches."""
    depth: int = 1
    """Memory, in those of 1F1B's first stage; only for those made for the given times."""


SCHEDULES: dict[str, Recipe] = {
    "naive": Recipe(order=orders.naive),
    "gpipe": Recipe(order=orders.gpipe),
    "1f1b": Recipe(order=orders.one_f_one_b),
    "interleaved_1f1b": Recipe(order=orders.interleaved, chunks=None),
    "zb_h1": Recipe(order=orders.zb_h1, chunks=None, splits_backward=True),
    "zb_h2": Recipe(order=orders.zb_h2, splits_backward=True),
    "zb_1p": Recipe(splits_backward=True, depth=1),
    "zb_2p": Recipe(splits_backward=True, depth=2),
    "zb_v": Recipe(order=schedule_v.zb_v, chunks=2, placement="v", splits_backward=True),
    "dualpipev": Recipe(
        order=schedule_v.dualpipev, chunks=2, placement="v", splits_backward=True,
        microbatches_per_stage=2,
    ),
}  # fmt: skip
"""Every schedule that has a name."""


def build_schedule(
    name: str,
    num_stages: int,
    num_microbatches: int,
    num_chunks: int | None = None,
    times: Sequence[StageTimes] | None = None,
    p2p_s: float = 0.0,
    weight_share: float = 1.0,
) -> Schedule:
    """The schedule of this name, transfers included.

    num_chunks: None takes the number that the schedule asks for (1 where it takes any).
    times, p2p_s, weight_share (of a microbatch's activations, what W still needs after B): read by
    zb_1p and zb_2p only, which are made for them; all others are the same whatever they are.
    Raises ScheduleError with what would be legal.
    """
    chain = _chain(name, num_stages, num_chunks)
    action = cache(Action)  # all stages share equal actions: a third of the time and memory
    compute = build_orders(
        name, num_stages, num_microbatches, num_chunks, times, p2p_s, weight_share, action
    )
    return finish_schedule(name, chain, num_microbatches, compute, action)


def build_orders(
    name: str,
    num_stages: int,
    num_microbatches: int,
    num_chunks: int | None = None,
    times: Sequence[StageTimes] | None = None,
    p2p_s: float = 0.0,
    weight_share: float = 1.0,
    action: Callable[..., Action] | None = None,
) -> Orders:
    """The compute actions alone, stage by stage."""
    assert num_stages >= 1, f"num_stages={num_stages}"
    assert num_microbatches >= 1, f"num_microbatches={num_microbatches}"
    chain, recipe = _chain(name, num_stages, num_chunks), SCHEDULES[name]
    least = recipe.microbatches_per_stage * num_stages
    if num_microbatches < least:
        raise ScheduleError(
            f"{name} on {num_stages} stages needs at least {least} microbatches, "
            f"and there {'is' if num_microbatches == 1 else 'are'} {num_microbatches}"
        )
    if recipe.order is None:
        problem = Problem(
            chain=chain,
            num_microbatches=num_microbatches,
            times=tuple(times) if times is not None else equal_times(chain.num_parts),
            p2p_s=p2p_s,
        )
        return auto_orders(problem, recipe.depth, weight_share)
    arguments = (chain.num_chunks,) if recipe.chunks is None else ()
    action = action or cache(Action)
    return [
        recipe.order(action, stage, num_stages, num_microbatches, *arguments)
        for stage in range(num_stages)
    ]


def _chain(name: str, num_stages: int, num_chunks: int | None) -> Chain:
    recipe = SCHEDULES[name]
    wanted = recipe.chunks
    chunks = num_chunks if num_chunks is not None else wanted or 1
    if wanted is not None and chunks != wanted:
        raise ScheduleError(f"{name} has {wanted} chunks per stage, not {chunks}")
    return Chain(num_stages=num_stages, num_chunks=chunks, placement=recipe.placement)
