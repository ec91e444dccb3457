"""What makes stages of a pipeline wait: too few microbatches, transfers, stages that are uneven."""

from __future__ import annotations

from launcher.config.rule import divisors
from launcher.config.schema import Run
from launcher.plan.audit_words import warn
from launcher.plan.records import Layout, Warning
from launcher.plan.step_time import StepEstimate
from launcher.plan.units import plural

MAX_BUBBLE = 0.25
"""Above this share of waiting the pipeline is starved; about three microbatches per stage."""


def starved_pipeline(layout: Layout, step: StepEstimate) -> Warning | None:
    """Where the busiest stage waits."""
    if layout.pp == 1 or step.time.bubble_fraction <= MAX_BUBBLE:
        return None
    wanted, count = 4 * layout.pp, layout.num_microbatches
    more = [f"train.num_microbatches={each}" for each in (wanted, wanted // 2, layout.pp)
            if each > count]  # fmt: skip
    if layout.schedule == "naive":
        other = "parallelism.schedule=1f1b"
        return warn(
            id="serial-pipeline",
            message="the schedule naive has one microbatch under way at a time: stages wait "
            f"{step.time.bubble_fraction:.0%} of the time",
            fixes=[*([other] if count > 1 else []), *(f"{other} {each}" for each in more), other],
        )
    if layout.num_microbatches >= wanted:
        fewer = _fewer_stages(layout)
        return warn(
            id="uneven-pipeline",
            message=f"stages wait {step.time.bubble_fraction:.0%} of the time though there are "
            f"{layout.num_microbatches} microbatches: transfers or uneven stages hold them up",
            fixes=fewer,
        )
    return warn(
        id="few-microbatches",
        message=f"{count} {plural('microbatch', count)} starve{'s' if count == 1 else ''} "
        f"{layout.pp} stages: they wait "
        f"{step.time.bubble_fraction:.0%} of the time",
        fixes=[*more, *_fewer_stages(layout)],
    )


def uneven_stages(run: Run, layout: Layout, step: StepEstimate) -> Warning | None:
    """Where one stage has so much more to do that the others wait for it; its own time, which the
    bubble is told of, shows nothing of that.
    """
    busy = step.simulation.busy_s
    if layout.pp == 1 or not max(busy):
        return None
    slowest = busy.index(max(busy))
    share = (sum(busy) - busy[slowest]) / (layout.pp - 1) / busy[slowest]
    if share >= 1 - MAX_BUBBLE:
        return None
    fixes = _fewer_stages(layout)
    if run.parallelism.layers_per_stage is not None:
        even = "parallelism.layers_per_stage=null"
        fixes = [even, *(f"{fix} {even}" for fix in fixes)]
    return warn(
        id="uneven-stages",
        message=f"stage {slowest} has so much to do that the others wait for it: they work "
        f"{share:.0%} of its time on average",
        fixes=fixes,
    )


def _fewer_stages(layout: Layout) -> list[str]:
    return [f"parallelism.pp={pp}" for pp in divisors(layout.pp)[-2::-1]]
