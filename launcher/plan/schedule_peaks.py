"""How many microbatches the stages of a named schedule hold, in closed form where there is one."""

from __future__ import annotations

from functools import lru_cache

from launcher.plan.schedule import SCHEDULES
from launcher.plan.schedule_orders import round_sizes
from launcher.plan.simulate import peak_in_flight


@lru_cache(maxsize=4096)
def peaks_of(name: str, stages: int, count: int, chunks: int) -> tuple[int, ...]:
    """`peak_in_flight`, at once where there is a closed form; of schedules that are made for given
    times the most that they hold for any.
    """
    return _peaks(name, stages, count, chunks) or peak_in_flight(name, stages, count, chunks)


def _peaks(name: str, stages: int, count: int, chunks: int) -> tuple[int, ...] | None:
    """Of the schedules that have a closed form."""
    total = count * chunks
    if name == "naive":
        return (1,) * stages
    if name == "gpipe":
        return (count,) * stages
    if name == "1f1b":
        return tuple(min(stages - stage, count) for stage in range(stages))
    if name in ("interleaved_1f1b", "zb_h1", "zb_h2"):
        ahead = (chunks - 1) * round_sizes(stages, count)[0] + 1
        steps, late = {"interleaved_1f1b": (2, 0), "zb_h1": (1, 1), "zb_h2": (2, 2)}[name]
        return tuple(
            min(total, ahead + steps * (stages - 1 - stage) + late * stage)
            for stage in range(stages)
        )
    if name in SCHEDULES and SCHEDULES[name].order is None:
        return (min(count, SCHEDULES[name].depth * stages),) * stages
    if stages > 1 and name == "zb_v":
        return tuple(min(total, count + 1 + stage, 2 * stages) for stage in range(stages))
    if stages > 1 and name == "dualpipev":
        return (2 * stages + 1,) * stages
    return None
