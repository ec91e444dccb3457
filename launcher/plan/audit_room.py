"""What makes room for a plan that does not fit: from what costs little to what is given up."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate

from launcher.config.schema import Run
from launcher.plan.memory import USABLE_SHARE
from launcher.plan.records import Layout, Memory

MOST_TIMES = 16
"""A layout may lack more than that many times its memory for want of sharding alone."""

DOUBLINGS = 6
"""Of nodes, or halvings of the model: beyond that, no plan is the same one still."""

MOST_NODES = 20_000
"""The most that hardware.num_nodes may be."""

OPEN = "parallelism.tp=null parallelism.pp=null parallelism.dp=null"
"""Degrees left to the plan, which cuts the model until it fits."""

OPEN_ALL = f"{OPEN} parallelism.recompute=null train.micro_batch_size=1"


def room_fixes(run: Run, layout: Layout, memory: Memory) -> Iterator[str]:
    """Each by itself, then one after the other together, then other degrees and other hardware."""
    steps = [*_given_up(run), *_steps(layout)]
    yield from steps
    if len(steps) > 1:
        yield from list(accumulate(steps, _both))[1:]
    yield OPEN
    yield OPEN_ALL
    yield from (f"{OPEN_ALL} {step}" for step in steps if "zero_stage" in step)
    lacking = memory.peak_bytes / max(1, memory.usable_bytes)
    times = [2**power for power in range(1, DOUBLINGS + 1) if 2**power >= min(lacking, MOST_TIMES)]
    for beside in (list(accumulate(steps, _both))[-1] if steps else "", OPEN_ALL):
        for each in times:
            yield f"{beside} {larger_run(run, layout, each)}".strip()
    size = math.ceil(memory.peak_bytes / USABLE_SHARE) + 1
    yield f"hardware.gpu.memory_bytes={size}"


def larger_run(run: Run, layout: Layout, times: int) -> str:
    """More nodes or, where there can be none, a smaller model."""
    if run.hardware.network is None or times * layout.nodes > MOST_NODES:
        return _fewer_layers(run, times)
    return f"hardware.num_nodes={times * layout.nodes}"


def _fewer_layers(run: Run, times: int) -> str:
    """For a trial: what is left to give up on a machine of one's own."""
    return f"model.num_layers={max(1, run.model.num_layers // times)}"


def _given_up(run: Run) -> Iterator[str]:
    """What was decided by hand: an uneven split, fewer shards than there could be."""
    for key in ("layers_per_stage", "shard_size"):
        if getattr(run.parallelism, key) is not None:
            yield f"parallelism.{key}=null"


def _steps(layout: Layout) -> Iterator[str]:
    """Changes on the same devices."""
    if layout.recompute != "full":
        yield "parallelism.recompute=full"
    micro = layout.micro_batch_size
    while micro > 1:
        micro //= 2
        yield f"train.micro_batch_size={micro}"
    if layout.dp > 1:
        # Weights are sharded without a pipeline, or by FSDP2 (the rule zero3-without-pipeline).
        may_shard = layout.pp == 1 or layout.engine == "fsdp2"
        for stage in (1, 3) if may_shard else (1,):
            if stage > layout.zero_stage:
                yield f"parallelism.zero_stage={stage}"


def _both(earlier: str, later: str) -> str:
    """One beside the other; of a key, the later value."""
    key = later.partition("=")[0]
    kept = [word for word in earlier.split() if word.partition("=")[0] != key]
    return " ".join([*kept, later])
