"""Why an open value was filled as it was, in words."""

from __future__ import annotations

from launcher.config.schema import Run
from launcher.plan.records import Layout, Memory

RECOMPUTE_REASONS = {
    "none": "all activations fit",
    "selective": "the attention core again, to save memory",
    "full": "whole blocks again, to save memory",
}


def describe_choices(asked: Run, layout: Layout, memory: Memory) -> tuple[str, ...]:
    """One line per value that was open."""
    per_node, degrees = layout.gpus_per_node, asked.parallelism
    fit = (
        f"fits {_gib(memory.peak_bytes)} GiB into {_gib(memory.usable_bytes)} GiB usable"
        if memory.fits
        else f"smallest memory, but {_gib(memory.peak_bytes)} GiB do not fit "
        f"{_gib(memory.usable_bytes)} GiB usable"
    )
    lines = []
    if asked.hardware.gpus_per_node is None:
        lines.append(f"gpus_per_node={per_node}: as many processes as the layout asks for")
    if degrees.tp is None:
        is_full = layout.tp == per_node and layout.tp > 1
        lines.append(f"tp={layout.tp}: " + ("fills the node" if is_full else fit))
    if degrees.pp is None:
        is_full = degrees.fill == "pp" and layout.pp * layout.tp == per_node
        reason = "fills the node" if is_full else "no pipeline needed" if layout.pp == 1 else fit
        lines.append(f"pp={layout.pp}: {reason}")
    if degrees.recompute is None:
        lines.append(f"recompute={layout.recompute}: {RECOMPUTE_REASONS[layout.recompute]}")
    if degrees.dp is None:
        lines.append(f"dp={layout.dp}: the other devices")
    for key in ("sequence_length", "micro_batch_size", "num_microbatches", "global_batch_size"):
        if getattr(asked.train, key) is None:
            lines.append(f"{key}={getattr(layout, key)}: {_batch_reason(key, asked, layout)}")
    return tuple(lines)


def _batch_reason(key: str, asked: Run, layout: Layout) -> str:
    if key == "sequence_length":
        return "the model's longest" if layout.sequence_length < 8192 else "at most 8192 by default"
    if key == "global_batch_size":
        return f"{layout.micro_batch_size} x {layout.num_microbatches} x {layout.dp} dp"
    if key == "micro_batch_size":
        return "from the other two" if asked.train.num_microbatches else "the smallest"
    if asked.train.global_batch_size:
        return "from the global batch"
    return "keeps the pipeline busy" if layout.pp > 1 else "no pipeline to keep busy"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
