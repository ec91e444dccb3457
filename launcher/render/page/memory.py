"""Memory of every stage as a bar against the device, and the figures behind it."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.plan.records import Plan, Stage, StageMemory
from launcher.plan.units import count, gib
from launcher.render.page.markup import Part, bar, chosen, legend, percent, table

MAX_ROWS = 32
"""More stages than this are shown as the first, the fullest and the last."""

KINDS = (
    ("parameters_bytes", "parameters", "weights"),
    ("gradients_bytes", "gradients", "gradients"),
    ("optimizer_bytes", "optimizer", "optimizer"),
    ("activations_bytes", "activations", "activations"),
    ("buffers_bytes", "buffers", "buffers"),
    ("overhead_bytes", "overhead", "context and reserve"),
)
"""Field, class in the style, name."""


def render_memory(plan: Plan) -> Iterator[str]:
    """Bars, their legend, and a table."""
    memory = plan.memory
    fullest = max(memory.per_stage, key=lambda used: used.total_bytes).stage
    rows = chosen(len(plan.stages), MAX_ROWS, always=(fullest,))
    scale = 1.02 * max(memory.capacity_bytes, memory.peak_bytes)
    yield legend([*((key, name) for _, key, name in KINDS), ("error", "error bar")])
    yield "<div class=bars>"
    for row in rows:
        if row is None:
            yield "<p class=gap>⋮</p>"
        else:
            yield _row(plan, plan.stages[row], memory.per_stage[row], scale)
    yield _axis(plan, scale) + "</div>"
    if len(rows) < len(plan.stages):
        hidden = len(plan.stages) - sum(row is not None for row in rows)
        yield f"<p class=lead>{hidden} stages between these are left out.</p>"
    yield table(
        "Bytes by kind, in GiB" if memory.peak_bytes >= 2**32 else "Bytes by kind, in MiB",
        ("stage", "layers", "parameters", *(name for _, _, name in KINDS), "total"),
        [_figures(plan, row) for row in rows if row is not None],
    )


def _row(plan: Plan, stage: Stage, used: StageMemory, scale: float) -> str:
    parts = [
        Part(key=key, name=name, value=getattr(used, field), shown=_size(getattr(used, field)))
        for field, key, name in KINDS
    ]
    memory = plan.memory
    lines = (
        f'<b class=usable style="left:{percent(memory.usable_bytes, scale):.3f}%"></b>'
        f'<b class=capacity style="left:{percent(memory.capacity_bytes, scale):.3f}%"></b>'
        + _whisker(plan, used, scale)
    )
    over = used.total_bytes > memory.usable_bytes
    said = ", ".join(f"{part.name} {part.shown}" for part in parts)
    error = _size(_error_bytes(plan, used))
    label = f"stage {stage.stage}, {_size(used.total_bytes)} plus or minus {error}: {said}"
    return (
        f"<div class=row><span class=name>stage {stage.stage}<span class=note>{_layers(stage)}"
        f"</span></span>{bar(parts, scale, label, lines)}"
        f'<span class="value{" bad" if over else ""}">{_size(used.total_bytes)}</span></div>'
    )


def _error_bytes(plan: Plan, used: StageMemory) -> int:
    """The error bar of one stage: the same share as of the fullest."""
    memory = plan.memory
    return memory.error_bytes * used.total_bytes // max(1, memory.peak_bytes)


def _whisker(plan: Plan, used: StageMemory, scale: float) -> str:
    """From the least to the most that the estimate may mean."""
    error = _error_bytes(plan, used)
    left = percent(used.total_bytes - error, scale)
    width = percent(used.total_bytes + error, scale) - left
    return (
        f'<b class=error style="left:{left:.3f}%;width:{width:.3f}%" '
        f'title="error bar: {_size(used.total_bytes)} &plusmn; {_size(error)}"></b>'
    )


def _axis(plan: Plan, scale: float) -> str:
    """What the two lines mean, under their ends."""
    memory = plan.memory
    right = 100 - percent(memory.capacity_bytes, scale)
    return (
        "<div class=row><span class=name></span><p class=lines>"
        f'<span style="margin-right:{right:.2f}%"><b class=usable></b>usable '
        f"{_size(memory.usable_bytes)} <b class=capacity></b>device "
        f"{_size(memory.capacity_bytes)}</span></p><span class=value></span></div>"
    )


def _figures(plan: Plan, row: int) -> list[str]:
    stage, used = plan.stages[row], plan.memory.per_stage[row]
    unit = 2**30 if plan.memory.peak_bytes >= 2**32 else 2**20
    sizes = [getattr(used, field) for field, _, _ in KINDS]
    return [
        str(stage.stage), _layers(stage).removeprefix("layers "), count(stage.parameters),
        *(f"{value / unit:,.1f}" for value in (*sizes, used.total_bytes)),
    ]  # fmt: skip


def _layers(stage: Stage) -> str:
    ranges = [
        f"{piece.first_layer}&ndash;{piece.end_layer - 1}"
        for piece in stage.pieces
        if piece.num_layers
    ]
    if len(ranges) > 2:
        return f"{stage.num_layers} layers in {len(ranges)} chunks"
    return f"layers {', '.join(ranges)}" if ranges else "no layers"


def _size(size_bytes: int) -> str:
    """One unit for a whole device: GiB, but for toys."""
    return f"{gib(size_bytes)} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:,.0f} MiB"
