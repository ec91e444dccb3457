"""Which schedule a run gets: the one of its name, or the one of its file."""

from __future__ import annotations

from functools import lru_cache

from launcher.config.schema import Run, is_schedule_file
from launcher.errors import Finding
from launcher.plan.records import Layout
from launcher.plan.schedule import SCHEDULES, build_schedule
from launcher.plan.schedule_file import parse_schedule
from launcher.plan.schedule_peaks import peaks_of
from launcher.plan.schedule_records import Chain, Schedule, ScheduleError
from launcher.plan.simulate import check_schedule
from launcher.plan.units import plural


def plan_schedule(run: Run, layout: Layout) -> Schedule:
    """The schedule that plan, dry run and workers read alike; the run has passed every rule."""
    if run.parallelism.schedule_lines is not None:
        return plan_file(run)
    return build_schedule(layout.schedule, layout.pp, layout.num_microbatches, layout.vpp)


def plan_chain(run: Run, layout: Layout) -> Chain:
    """Where the parts of the model sit; cheaper than the schedule."""
    if run.parallelism.schedule_lines is not None:
        return plan_schedule(run, layout).chain
    return named_chain(layout.schedule, layout.pp, layout.vpp)


def named_chain(name: str, pp: int, vpp: int) -> Chain:
    """The same of a schedule that has a name."""
    return Chain(num_stages=pp, num_chunks=vpp, placement=SCHEDULES[name].placement)


def plan_peaks(run: Run, layout: Layout) -> tuple[int, ...]:
    """Most microbatches times chunks that each stage holds; cheaper than a simulation."""
    if run.parallelism.schedule_lines is not None:
        return check_schedule(plan_schedule(run, layout))
    return peaks_of(layout.schedule, layout.pp, layout.num_microbatches, layout.vpp)


def check_schedule_file(run: Run) -> list[Finding]:
    """Whether the schedule of a file can run, and the layout is the one that it is made for."""
    degrees, train = run.parallelism, run.train
    if not is_schedule_file(degrees.schedule):
        return []
    try:
        schedule = plan_file(run)
    except ScheduleError as error:
        return [
            Finding(
                field="parallelism.schedule",
                value=degrees.schedule,
                rule="schedule-file-fits",
                reason=str(error),
            )
        ]
    wanted = (
        ("parallelism.pp", degrees.pp, schedule.num_stages, "stage"),
        ("parallelism.vpp", degrees.vpp, schedule.num_chunks, "chunk"),
        ("train.num_microbatches", train.num_microbatches, schedule.num_microbatches,
         "microbatch"),
    )  # fmt: skip
    return [
        Finding(
            field=field,
            value="null" if given is None else given,
            rule="schedule-file-fits",
            reason=f"the schedule in {degrees.schedule} has {has} {plural(what, has)}",
            legal=(has,),
            fix=f"{field}={has}",
        )
        for field, given, has, what in wanted
        if given != has
    ]


def plan_file(run: Run) -> Schedule:
    """The schedule of the run's file."""
    return _parse(run.parallelism.schedule, run.parallelism.schedule_lines or ())


@lru_cache(maxsize=1)
def _parse(name: str, lines: tuple[str, ...]) -> Schedule:
    """Kept, for check, chain, peaks and simulation of a plan all ask for the same."""
    return parse_schedule(name, "\n".join(lines))
