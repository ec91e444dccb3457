"""The plan as one screen of text: what was decided, where ranks sit, memory, time, traffic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launcher.plan.mesh import Mesh, build_mesh
from launcher.plan.records import Layout, Plan, StageMemory

MAX_STAGE_ROWS = 6
"""More stages than this are shown as the first few and the last few."""

MAX_NODE_ROWS = 2
"""Nodes whose ranks are listed."""

WIDTH = 100


def render_report(plan: Plan) -> str:
    """At most WIDTH columns and about 40 lines, without colour."""
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
    yield (
        f"{'model':<12}{run.model.name}, {plan.parameters:,} parameters, {run.precision.compute}"
    )
    yield (
        f"{'hardware':<12}{layout.nodes} {_plural('node', layout.nodes)} x {layout.gpus_per_node} "
        f"{device} = {layout.world_size:,} {_plural('process', layout.world_size)}"
    )
    yield (
        f"{'layout':<12}tp={layout.tp} pp={layout.pp} dp={layout.dp} zero_stage="
        f"{layout.zero_stage} schedule={layout.schedule} recompute={layout.recompute}"
        + (" engine=fsdp2" if layout.engine == "fsdp2" else "")
    )
    yield (
        f"{'tokens/step':<12}{layout.global_batch_size * layout.sequence_length:,} = "
        f"{layout.dp} dp x {layout.num_microbatches} "
        f"{_plural('microbatch', layout.num_microbatches)} x {layout.micro_batch_size} x "
        f"{layout.sequence_length}"
    )


def _decisions(plan: Plan) -> Iterator[str]:
    for index, line in enumerate(plan.decisions):
        yield f"{'decided' if index == 0 else '':<12}{line}"


def _placement(plan: Plan) -> Iterator[str]:
    """Rank -> coordinates of the first nodes: runs of ranks that differ in one axis together."""
    layout, mesh = plan.layout, build_mesh(plan.layout)
    shown = min(layout.nodes, MAX_NODE_ROWS)
    for node in range(shown):
        label = "placement" if node == 0 else ""
        first = node * layout.gpus_per_node
        last = min(first + layout.gpus_per_node, layout.world_size) - 1
        ranks = f"{first}-{last}" if last > first else str(first)
        yield f"{label:<12}node {node}: ranks {ranks}: {_coordinates(mesh, layout, first, last)}"
    if layout.nodes > shown:
        yield f"{'':<12}... and {layout.nodes - shown:,} more nodes"


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
        f"{'stage':<7}{'layers':>9}{'parameters':>17}{'weights':>9}{'grads':>8}{'optim':>8}"
        f"{'activ':>8}{'buffers':>9}{'other':>8}{'total':>8}  {name}"
    )
    rows = list(zip(plan.stages, memory.per_stage, strict=True))
    cut = MAX_STAGE_ROWS // 2
    for index, (stage, used) in enumerate(rows):
        if len(rows) > MAX_STAGE_ROWS and cut <= index < len(rows) - cut:
            if index == cut:
                yield f"{'...':<7}{len(rows) - 2 * cut} more stages"
            continue
        layers = "none"
        if stage.end_layer > stage.first_layer:
            layers = ",".join(f"{p.first_layer}-{p.end_layer - 1}" for p in stage.pieces)
        if len(layers) > 9:
            layers = f"{len(stage.pieces)} chunks"
        yield f"{stage.stage:<7}{layers:>9}{stage.parameters:>17,}{_kinds(used, unit)}"
    verdict = "fits" if memory.fits else "DOES NOT FIT"
    peak, usable = _gib(memory.peak_bytes), _gib(memory.usable_bytes)
    yield from _wrap(
        f"{verdict}: the fullest rank takes {peak} of {usable} GiB usable "
        f"({_gib(memory.capacity_bytes)} in all); a node's RAM "
        f"{_gib(memory.host_bytes_per_node)} GiB"
    )


def _kinds(used: StageMemory, unit: int) -> str:
    sizes = (
        (used.parameters_bytes, 9), (used.gradients_bytes, 8), (used.optimizer_bytes, 8),
        (used.activations_bytes, 8), (used.buffers_bytes, 9), (used.overhead_bytes, 8),
        (used.total_bytes, 8),
    )  # fmt: skip
    return "".join(f"{size / unit:>{width},.1f}" for size, width in sizes)


def _time(plan: Plan) -> Iterator[str]:
    time = plan.time
    yield ""
    yield (
        f"{'step':<12}{_seconds(time.step_s)} = compute {_seconds(time.compute_s)} + bubble "
        f"{_seconds(time.bubble_s)} + communication "
        f"{_seconds(time.exposed_communication_s)} + optimizer {_seconds(time.optimizer_s)}"
    )
    yield (
        f"{'speed':<12}{time.tokens_per_s:,.0f} tokens/s, {time.tokens_per_s_per_gpu:,.0f} per "
        f"device; {_number(time.tflops_per_gpu)} TFLOP/s, MFU {time.mfu:.1%}, "
        f"bubble {time.bubble_fraction:.1%}"
    )
    steps = plan.run.train.steps
    yield (
        f"{'run':<12}{steps:,} {_plural('step', steps)} take {_duration(steps * time.step_s)}, "
        f"{_number(time.gpu_hours)} device hours; a checkpoint takes "
        f"{_size(plan.checkpoint_bytes)}"
    )


def _communication(plan: Plan) -> Iterator[str]:
    if not plan.communication:
        return
    yield ""
    yield f"{'axis':<12}{'op':<16}{'ranks':>7}{'over':>10}{'MiB/step':>13}{'per step':>12}"
    for entry in plan.communication:
        where = "network" if entry.crosses_nodes else "node"
        yield (
            f"{entry.axis:<12}{entry.op:<16}{entry.group_size:>7}{where:>10}"
            f"{entry.bytes_per_step / 2**20:>13,.1f}{_seconds(entry.seconds_per_step):>12}"
        )


def _warnings(plan: Plan) -> Iterator[str]:
    if plan.warnings:
        yield ""
    for warning in plan.warnings:
        yield from _wrap(f"warning [{warning.id}]: {warning.message}. Try {warning.fix}.")


def _wrap(text: str) -> Iterator[str]:
    """Break at words; what follows is indented."""
    line = ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > WIDTH:
            yield line
            line = f"  {word}"
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


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f}" if size >= 2**30 / 20 else f"{size / 2**30:.2g}"


def _size(size: int) -> str:
    return f"{_gib(size)} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _seconds(seconds: float) -> str:
    if seconds >= 1 or seconds == 0:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.0f} us"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}es" if word.endswith(("s", "ch")) else f"{word}s"
