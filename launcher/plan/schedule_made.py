"""Schedules that are made for a job's own times: zb_1p and zb_2p."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.plan.execution import Job
from launcher.plan.records import Stage
from launcher.plan.schedule import SCHEDULES, build_schedule
from launcher.plan.schedule_records import Chain, Schedule
from launcher.plan.step_time import cost_parts, find_links, free_p2p_s, part_times


def is_made(name: str) -> bool:
    """Whether the order of this schedule depends on how long its actions take."""
    return name in SCHEDULES and SCHEDULES[name].order is None


def make_schedule(job: Job, stages: Sequence[Stage], chain: Chain) -> Schedule:
    """The order for the predicted times; the run freezes it, so all ranks work by the same."""
    layout, links = job.layout, find_links(job)
    times = part_times(job, cost_parts(job, stages, chain, links), True, links)
    p2p_s = free_p2p_s(job, links)
    return build_schedule(layout.schedule, layout.pp, layout.num_microbatches, None, times, p2p_s)
