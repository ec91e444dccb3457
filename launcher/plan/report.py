"""The plan as one screen of text: what was decided, where ranks sit, memory, time, traffic."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from launcher.plan.mesh import Mesh, build_mesh
from launcher.plan.records import Layout, Plan, StageMemory, Time
from launcher.plan.units import count, duration, gib, number, plural, seconds, size

MAX_STAGE_ROWS = 6
"""More stages than this are shown as the first few and the last few."""

MAX_NODE_ROWS = 2
"""Nodes whose ranks are listed."""

WIDTH = 80
"""Columns: a terminal as it opens."""

LABEL = 12
"""Columns of the label in front of a line."""

GAP = re.compile(
    r"(?<![+])(?<!bubble)(?<!communication)(?<!optimizer) "
    r"(?!(?:s|ms|us|min|h|days|GiB|MiB|[(][0-9.]+%[)])(?![a-z]))"
)
"""A space at which a line may break."""


def render_report(plan: Plan) -> str:
    """At most WIDTH columns and about 45 lines, without colour."""
    lines = [
        *_head(plan),
        *_decisions(plan),
        *_placement(plan),
        *_stages(plan),
        *_time(plan),
        *_communication(plan),
        *_warnings(plan),
    ]
    return "\n".join(_clip(line) for line in lines) + "\n"


def _head(plan: Plan) -> Iterator[str]:
    layout, run = plan.layout, plan.run
    device = run.hardware.gpu.name if run.hardware.gpu else run.hardware.device
    yield from _labelled(
        "model", f"{run.model.name}, {plan.parameters:,} parameters, {run.precision.compute}"
    )
    yield from _labelled(
        "hardware",
        f"{layout.nodes} {plural('node', layout.nodes)} x {layout.gpus_per_node} "
        f"{device} = {layout.world_size:,} {plural('process', layout.world_size)}",
    )
    yield from _labelled(
        "layout",
        f"tp={layout.tp} "
        + (f"cp={layout.cp} cp_mode={run.parallelism.cp_mode} " if layout.cp > 1 else "")
        + (f"ep={layout.ep} " if layout.ep > 1 else "")
        + f"pp={layout.pp} "
        + (f"vpp={layout.vpp} " if layout.vpp > 1 else "")
        + f"dp={layout.dp} zero_stage="
        f"{layout.zero_stage} schedule={layout.schedule} recompute={layout.recompute}"
        + (f" recompute_every={layout.recompute_every}" if layout.recompute_every > 1 else "")
        + (f" offload={layout.offload}" if layout.offload != "none" else "")
        + (f" shard_size={run.parallelism.shard_size}" if run.parallelism.shard_size else "")
        + (" engine=fsdp2" if layout.engine == "fsdp2" else "")
        + (" sequence_parallel=true" if layout.sequence_parallel else ""),
    )
    yield from _labelled(
        "tokens/step",
        f"{layout.global_batch_size * layout.sequence_length:,} = "
        f"{layout.dp} dp x {layout.num_microbatches} "
        f"{plural('microbatch', layout.num_microbatches)} x {layout.micro_batch_size} x "
        f"{layout.sequence_length}",
    )


def _decisions(plan: Plan) -> Iterator[str]:
    for index, line in enumerate(plan.decisions):
        yield from _labelled("decided" if index == 0 else "", line)


def _placement(plan: Plan) -> Iterator[str]:
    """Rank -> coordinates of the first nodes: runs of ranks that differ in one axis together."""
    layout, mesh = plan.layout, build_mesh(plan.layout)
    shown = min(layout.nodes, MAX_NODE_ROWS)
    for node in range(shown):
        first = node * layout.gpus_per_node
        last = min(first + layout.gpus_per_node, layout.world_size) - 1
        ranks = f"{first}-{last}" if last > first else str(first)
        yield from _labelled(
            "placement" if node == 0 else "",
            f"node {node}: ranks {ranks}: {_coordinates(mesh, layout, first, last)}",
        )
    if layout.nodes > shown:
        more = layout.nodes - shown
        yield from _labelled("", f"... and {more:,} more {plural('node', more)}")


def _coordinates(mesh: Mesh, layout: Layout, first: int, last: int) -> str:
    """`pp 0, dp 0-3, tp 0-1`: what the node's ranks cover on each axis with more than one rank."""
    seen = [mesh.coordinates(rank) for rank in range(first, last + 1)]
    parts = []
    for axis in reversed(mesh.order):
        if mesh.sizes[axis] > 1:
            values = sorted({coordinates[axis] for coordinates in seen})
            parts.append(f"{axis} {_span(values)}")
    return ", ".join(parts) or "the whole model"


def _stages(plan: Plan) -> Iterator[str]:
    memory = plan.memory
    unit, name = (2**30, "GiB") if memory.peak_bytes >= 2**32 else (2**20, "MiB")
    yield ""
    yield (
        f"{'stage':<6}{'layers':>9}{'params':>9}{'weights':>8}{'grads':>7}{'optim':>7}"
        f"{'activ':>7}{'buffers':>8}{'other':>7}{'total':>7} {name}"
    )
    rows = list(zip(plan.stages, memory.per_stage, strict=True))
    cut = MAX_STAGE_ROWS // 2
    for index, (stage, used) in enumerate(rows):
        if len(rows) > MAX_STAGE_ROWS and cut <= index < len(rows) - cut:
            if index == cut:
                yield f"{'...':<6}{len(rows) - 2 * cut} more stages"
            continue
        layers = "none"
        if stage.end_layer > stage.first_layer:
            layers = ",".join(f"{p.first_layer}-{p.end_layer - 1}" for p in stage.pieces)
        if len(layers) > 9:
            layers = f"{len(stage.pieces)} chunks"
        yield f"{stage.stage:<6}{layers:>9}{count(stage.parameters):>9}{_kinds(used, unit)}"
    verdict = "fits" if memory.fits else "DOES NOT FIT"
    peak, usable = gib(memory.peak_bytes), gib(memory.usable_bytes)
    yield from _wrap(
        f"{verdict}: the fullest rank takes {peak} +- {gib(memory.error_bytes)} of "
        f"{usable} GiB usable "
        f"({gib(memory.capacity_bytes)}); node RAM {gib(memory.host_bytes_per_node)} GiB"
    )


def _kinds(used: StageMemory, unit: int) -> str:
    sizes = (
        (used.parameters_bytes, 8), (used.gradients_bytes, 7), (used.optimizer_bytes, 7),
        (used.activations_bytes, 7), (used.buffers_bytes, 8), (used.overhead_bytes, 7),
        (used.total_bytes, 7),
    )  # fmt: skip
    return "".join(_cell(size_bytes / unit, width) for size_bytes, width in sizes)


def _cell(value: float, width: int) -> str:
    """Right-aligned, with at least one space in front of it up to 99,999."""
    return f"{value:>{width}.1f}" if value < 1000 else f"{value:>{width}.0f}"


def _time(plan: Plan) -> Iterator[str]:
    time = plan.time
    yield ""
    yield from _labelled(
        "step",
        f"{seconds(time.step_s)} = compute {seconds(time.compute_s)} + bubble "
        f"{seconds(time.bubble_s)} ({time.bubble_fraction:.1%}) + communication "
        f"{seconds(time.exposed_communication_s)} + optimizer {seconds(time.optimizer_s)}",
    )
    yield from _labelled(
        "speed",
        f"{time.tokens_per_s:,.0f} tokens/s, {time.tokens_per_s_per_gpu:,.0f} per "
        f"device; {number(time.tflops_per_gpu)} TFLOP/s, MFU {time.mfu:.1%}",
    )
    yield from _learned(plan)
    steps = plan.run.train.steps
    taken = f"{'takes' if steps == 1 else 'take'} {duration(steps * time.step_s)}"
    yield from _labelled(
        "run",
        f"{steps:,} {plural('step', steps)} {taken}, "
        f"{number(time.gpu_hours)} device hours{_cost(time)}; a checkpoint takes "
        f"{size(plan.checkpoint_bytes)}",
    )


def _learned(plan: Plan) -> Iterator[str]:
    """What finished runs on this hardware let expect."""
    learned = plan.learned
    if learned is None:
        return
    low, high = learned.step_ratio_range
    spread = f" ({low:.2f} to {high:.2f})" if learned.runs > 1 else ""
    yield from _labelled(
        "learned",
        f"{learned.runs} earlier {plural('run', learned.runs)} {learned.alike} took "
        f"{learned.step_ratio:.2f}{spread} times the "
        f"predicted step and at most {learned.memory_ratio:.2f} of the memory: expect "
        f"{seconds(learned.step_s)}, {learned.tokens_per_s:,.0f} tokens/s, "
        f"{size(learned.peak_bytes)} on the fullest rank",
    )


def _cost(time: Time) -> str:
    return "" if time.cost is None else f" at a cost of {number(time.cost)}"


def _communication(plan: Plan) -> Iterator[str]:
    if not plan.communication:
        return
    yield ""
    yield f"{'axis':<12}{'op':<16}{'ranks':>7}{'over':>10}{'MiB/step':>13}{'per step':>12}"
    for entry in plan.communication:
        where = "network" if entry.crosses_nodes else "node"
        yield (
            f"{entry.axis:<12}{entry.op:<16}{entry.group_size:>7}{where:>10}"
            f"{entry.bytes_per_step / 2**20:>13,.1f}{seconds(entry.seconds_per_step):>12}"
        )


def _warnings(plan: Plan) -> Iterator[str]:
    if plan.warnings:
        yield ""
    for warning in plan.warnings:
        fix = f" Try {warning.fix}." if warning.fix else ""
        yield from _wrap(f"warning [{warning.id}]: {warning.message}.{fix}")


def _labelled(label: str, text: str) -> Iterator[str]:
    """A label, and the text beside it over as many lines as it needs."""
    for line in _wrap(text, WIDTH - LABEL, indent=""):
        yield f"{label:<{LABEL}}{line}"
        label = ""


def _wrap(text: str, width: int = WIDTH, indent: str = "  ") -> Iterator[str]:
    """Break at words, but not between a number and its unit; what follows is indented."""
    line = ""
    for word in GAP.split(text):
        if line and len(line) + 1 + len(word) > width:
            yield line
            line = f"{indent}{word}"
        else:
            line = f"{line} {word}" if line else word
    yield line


def _clip(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."


def _span(values: Sequence[int]) -> str:
    if len(values) == 1:
        return str(values[0])
    if values[-1] - values[0] == len(values) - 1:
        return f"{values[0]}-{values[-1]}"
    return f"{values[0]}..{values[-1]}"
