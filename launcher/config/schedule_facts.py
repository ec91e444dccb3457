"""What the rules know about pipeline schedules without making one."""

from __future__ import annotations

from launcher.config.devices import fewer_stages
from launcher.config.schema import Run
from launcher.frozen import frozen


@frozen
class ScheduleFacts:
    """What the rules know about a schedule; a test compares it with plan/schedule.py."""

    chunks: int | None = 1
    """Model chunks per stage; None: any number."""
    splits_backward: bool = False
    microbatches_per_stage: int = 0
    """At least this many times pp."""


SCHEDULE_FACTS = {
    "naive": ScheduleFacts(),
    "gpipe": ScheduleFacts(),
    "1f1b": ScheduleFacts(),
    "interleaved_1f1b": ScheduleFacts(chunks=None),
    "zb_h1": ScheduleFacts(chunks=None, splits_backward=True),
    "zb_h2": ScheduleFacts(splits_backward=True),
    "zb_1p": ScheduleFacts(splits_backward=True),
    "zb_2p": ScheduleFacts(splits_backward=True),
    "zb_v": ScheduleFacts(chunks=2, splits_backward=True),
    "dualpipev": ScheduleFacts(chunks=2, splits_backward=True, microbatches_per_stage=2),
}
"""By name; a schedule from a file is checked by the plan, which reads it."""


def schedule_facts(run: Run) -> ScheduleFacts | None:
    """Of the run's schedule; None where that is a file."""
    return SCHEDULE_FACTS.get(run.parallelism.schedule)


def splits_backward(run: Run) -> bool:
    """Whether weight gradients may come later than the rest: by name, or by the file's actions."""
    facts = schedule_facts(run)
    if facts is not None:
        return facts.splits_backward
    lines = run.parallelism.schedule_lines or ()
    return any("W" in line for line in lines if not line.startswith("#"))


def most_stages(run: Run) -> int:
    """More of them would leave a chunk of the schedule without a block."""
    facts = schedule_facts(run)
    return run.model.num_layers // ((facts.chunks if facts else run.parallelism.vpp) or 1)


def needs_pipeline(run: Run) -> bool:
    """Whether the run's schedule has a meaning on several stages only."""
    facts = schedule_facts(run)
    takes_chunks = facts is not None and facts.chunks is None and run.parallelism.vpp > 1
    return splits_backward(run) or takes_chunks


def without_pipeline(run: Run) -> str:
    """What to type on one stage: it has one chunk, whatever the schedule that is left had."""
    facts = schedule_facts(run)
    has_chunks = run.parallelism.vpp > 1 or (facts is not None and facts.chunks not in (None, 1))
    return "parallelism.schedule=1f1b" + " parallelism.vpp=1" * has_chunks


def room_for_stages(run: Run) -> str:
    """What to type for as many stages as have a block for every chunk; one stage needs another
    schedule where this one is for several.
    """
    words = fewer_stages(run, most_stages(run))
    is_alone = "parallelism.pp=1" in words.split()
    return f"{words} {without_pipeline(run)}" if is_alone and needs_pipeline(run) else words


def least_microbatches(run: Run) -> int:
    """Fewer of them cannot be put in the schedule's order; 0 where any number can."""
    facts, pp = schedule_facts(run), run.parallelism.pp
    return facts.microbatches_per_stage * pp if facts and pp else 0
