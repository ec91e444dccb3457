"""Rules on pipeline schedules: chunks, microbatches, and what they cannot be combined with."""

from __future__ import annotations

from launcher.config.rule import Rule
from launcher.config.schedule_facts import (
    least_microbatches,
    most_stages,
    needs_pipeline,
    room_for_stages,
    schedule_facts,
    splits_backward,
    without_pipeline,
)
from launcher.config.schema import Run


def _vpp_schedule(run: Run) -> str | None:
    facts, vpp = schedule_facts(run), run.parallelism.vpp
    if facts is None or facts.chunks in (None, vpp):
        return None
    name = run.parallelism.schedule
    if facts.chunks == 1:
        return f"{name} has one chunk per stage; interleaved_1f1b and zb_h1 take several"
    return f"{name} has {facts.chunks} chunks per stage"


def _vpp_candidates(run: Run) -> tuple[int, ...]:
    facts = schedule_facts(run)
    if facts is not None and facts.chunks is not None:
        return (facts.chunks,)
    # At least one: where there are more stages than blocks, it goes with fewer of them.
    return tuple(range(1, max(1, run.model.num_layers // (run.parallelism.pp or 1)) + 1))


def _vpp_layers(run: Run) -> str | None:
    pp, vpp, layers = run.parallelism.pp, run.parallelism.vpp, run.model.num_layers
    if pp and vpp > 1 and pp * vpp > layers:
        return f"{pp} stages x {vpp} chunks for model.num_layers={layers} leave a chunk empty"
    return None


def _stage_layers_count(run: Run) -> str | None:
    counts, pp, vpp = run.parallelism.layers_per_stage, run.parallelism.pp, run.parallelism.vpp
    if counts is not None and pp and len(counts) != pp * vpp:
        parts = f"{pp} stages" if vpp == 1 else f"{pp} stages x {vpp} chunks"
        return f"{len(counts)} numbers for {parts}"
    return None


def _stage_layers_sum(run: Run) -> str | None:
    counts, layers = run.parallelism.layers_per_stage, run.model.num_layers
    if counts is not None and sum(counts) != layers:
        return f"they add up to {sum(counts)}, not to model.num_layers={layers}"
    return None


def _stage_layers_candidates(run: Run) -> tuple[tuple[int, ...] | None, ...]:
    """What is nearest to an even split, and no split by hand."""
    pp, layers = run.parallelism.pp, run.model.num_layers
    parts = (pp or 0) * run.parallelism.vpp
    if not 0 < parts <= layers:
        return (None,)
    even, rest = divmod(layers, parts)
    return (tuple(even + (part >= parts - rest) for part in range(parts)), None)


def _microbatches(run: Run) -> str | None:
    count, least = run.train.num_microbatches, least_microbatches(run)
    if count and count < least:
        return (
            f"{run.parallelism.schedule} on {run.parallelism.pp} stages needs at least {least} "
            "microbatches"
        )
    return None


def _needs_pipeline(run: Run) -> str | None:
    if run.parallelism.pp == 1 and needs_pipeline(run):
        return f"{run.parallelism.schedule} orders the work of several stages, and pp is 1"
    return None


def _room_for_chunks(run: Run) -> str:
    """Fewer stages, where the schedule leaves no other number of chunks."""
    facts, degrees = schedule_facts(run), run.parallelism
    if facts is None or facts.chunks in (None, 1) or not degrees.pp:
        return ""
    if degrees.pp <= most_stages(run):
        return ""
    words = room_for_stages(run)
    return words if "parallelism.vpp" in words else f"{words} parallelism.vpp={facts.chunks}"


def _no_compile(run: Run) -> str | None:
    if run.train.compile and splits_backward(run):
        return f"{run.parallelism.schedule} puts weight gradients off, which compiled blocks cannot"
    return None


PIPELINE_RULES = (
    Rule(
        id="vpp-suits-schedule",
        field="parallelism.vpp",
        says="vpp is the number of chunks that the schedule has",
        why="1f1b, gpipe, naive and zb_h2 to zb_2p have one chunk a stage, zb_v and dualpipev two.",
        broken=_vpp_schedule,
        candidates=_vpp_candidates,
        fix=_room_for_chunks,
    ),
    Rule(
        id="layers-per-stage-counts-stages",
        field="parallelism.layers_per_stage",
        says="layers_per_stage has pp x vpp numbers",
        why="Every stage, and every chunk of a stage, gets a number of blocks of its own.",
        broken=_stage_layers_count,
        candidates=_stage_layers_candidates,
    ),
    Rule(
        id="layers-per-stage-adds-up",
        field="parallelism.layers_per_stage",
        says="layers_per_stage adds up to model.num_layers",
        why="A block that no stage has, or that two have, would make another model.",
        broken=_stage_layers_sum,
        candidates=_stage_layers_candidates,
    ),
    Rule(
        id="chunks-at-most-layers",
        field="parallelism.vpp",
        says="pp x vpp is at most model.num_layers",
        why="A chunk without a block only adds a hop.",
        broken=_vpp_layers,
        candidates=_vpp_candidates,
        fix=_room_for_chunks,
    ),
    Rule(
        id="microbatches-suit-schedule",
        field="train.num_microbatches",
        says="dualpipev has at least 2 x pp microbatches",
        why="It fills the pipeline from both ends of the V before it drains it.",
        broken=_microbatches,
        candidates=lambda run: (least_microbatches(run),),
    ),
    Rule(
        id="schedule-needs-pipeline",
        field="parallelism.schedule",
        says="schedules with chunks or a split backward need pp > 1",
        why="On one stage they only cost: nothing waits.",
        broken=_needs_pipeline,
        candidates=lambda run: ("1f1b", "gpipe", "naive") if run.parallelism.vpp == 1 else (),
        fix=without_pipeline,
    ),
    Rule(
        id="split-backward-without-compile",
        field="train.compile",
        says="schedules with a split backward (zb_h1 to zb_2p, zb_v, dualpipev, files with W) are "
        "not compiled",
        why="torch.compile makes one graph of a block's backward, both kinds of gradients in it.",
        broken=_no_compile,
        candidates=lambda run: (False,),
    ),
)
