"""What one layout would take, memory and time together: the plan's arithmetic as one pure function.

`build_plan` and the search share it. Nothing is validated here: the run has passed every rule, and
records are only read, so thousands of layouts of one run are cheap. Costs of operators are kept per
size (`kernels.gemm_s`), so layouts that differ in dp, pp or ZeRO only cost their simulation.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

from launcher.config.schema import Run
from launcher.frozen import frozen
from launcher.plan.execution import runtime_job
from launcher.plan.memory import estimate_job_memory
from launcher.plan.records import Layout, Memory, Stage
from launcher.plan.schedule_choice import plan_chain, plan_peaks, plan_schedule
from launcher.plan.schedule_made import is_made, make_schedule
from launcher.plan.schedule_records import Schedule
from launcher.plan.speeds import stage_speeds
from launcher.plan.stage_time import estimate_parts
from launcher.plan.stages import make_stages, split_stages
from launcher.plan.step_time import StepEstimate, estimate_job


@frozen
class Estimate:
    """One layout, predicted."""

    stages: tuple[Stage, ...]
    schedule: Schedule | None
    """Of a file, or made for this layout; None: the one of the layout's name."""
    step: StepEstimate
    memory: Memory


def estimate_layout(run: Run, layout: Layout) -> Estimate:
    """Memory and time of a closed layout of this run, along the schedule that it would run.

    `layout` decides every degree, the batch and the schedule; of `run` model, hardware, precision,
    optimizer and the switches that the layout has not are read.
    """
    job = runtime_job(run, layout)
    stages, chain = plan_stages(run, layout), plan_chain(run, layout)
    schedule: Schedule | None = None
    if is_made(layout.schedule):
        schedule = make_schedule(job, stages, chain)
    elif run.parallelism.schedule_lines is not None:
        schedule = plan_schedule(run, layout)
    step = estimate_job(job, stages, chain, schedule)
    memory = estimate_job_memory(job, stages, step.simulation.peak_in_flight)
    return Estimate(stages=stages, schedule=schedule, step=step, memory=memory)


def estimate_layout_memory(run: Run, layout: Layout) -> Memory:
    """Memory alone: no simulation, for layouts that mostly do not fit."""
    job = runtime_job(run, layout)
    return estimate_job_memory(job, plan_stages(run, layout), plan_peaks(run, layout))


def plan_stages(run: Run, layout: Layout) -> tuple[Stage, ...]:
    """The split of a closed layout: by hand, or by the time of blocks, embedding and head."""
    if run.parallelism.layers_per_stage is not None:
        ends = list(accumulate(run.parallelism.layers_per_stage, initial=0))
        return make_stages(run.model, plan_chain(run, layout), list(pairwise(ends)))
    parts = estimate_parts(runtime_job(run, layout))
    speeds = stage_speeds(run.hardware, layout)
    return split_stages(run.model, layout.pp, parts, plan_chain(run, layout), speeds)
