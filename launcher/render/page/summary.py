"""What the page says in words and single bars: the head, warnings, the step, traffic, decisions."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.plan.records import Plan
from launcher.plan.units import count, duration, gib, number, plural, seconds, size
from launcher.render.page.markup import Part, bar, percent, table, text


def render_head(plan: Plan) -> str:
    """Name, layout and the six figures that one looks for first."""
    layout, run, time, memory = plan.layout, plan.run, plan.time, plan.memory
    device = run.hardware.gpu.name if run.hardware.gpu else run.hardware.device
    verdict = "fits" if memory.fits else "does not fit"
    steps = run.train.steps
    facts = (
        f"{count(plan.parameters)} parameters, {text(run.precision.compute)}",
        f"{layout.nodes:,} {plural('node', layout.nodes)} &times; {layout.gpus_per_node} "
        f"{text(device)} = {layout.world_size:,} {plural('process', layout.world_size)}",
    )
    figures = (
        ("step", seconds(time.step_s), f"{_tokens(plan):,} tokens"),
        *_learned(plan),
        ("tokens/s", _short(time.tokens_per_s), f"{time.tokens_per_s_per_gpu:,.0f} per device"),
        ("MFU", f"{time.mfu:.1%}", f"{number(time.tflops_per_gpu)} TFLOP/s per device"),
        ("bubble", f"{time.bubble_fraction:.1%}", f"{seconds(time.bubble_s)} of the pipeline"),
        (
            "peak memory",
            f"{gib(memory.peak_bytes)} GiB",
            f"&plusmn; {gib(memory.error_bytes)}, of {gib(memory.usable_bytes)} usable",
        ),
        (
            "run",
            duration(steps * time.step_s),
            f"{steps:,} {plural('step', steps)}, {number(time.gpu_hours)} device h{_price(plan)}",
        ),
    )
    tiles = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd><dd class=note>{note}</dd></div>"
        for name, value, note in figures
    )
    mark = "good" if memory.fits else "bad"
    return (
        f"<header><p class=kind>launch plan <span class=spacer></span>"
        f'<span class="verdict {mark}">{verdict}</span></p>'
        f"<h1>{text(run.model.name)} <small>on {text(run.hardware.name)}</small></h1>"
        f"<p class=facts>{' · '.join(facts)}</p>"
        f'<ul class=chips aria-label="layout">{"".join(_chips(plan))}</ul>'
        f"<dl class=tiles>{tiles}</dl></header>\n"
    )


def _chips(plan: Plan) -> Iterator[str]:
    layout = plan.layout
    for axis in ("tp", "cp", "ep", "pp", "vpp", "dp"):
        degree = getattr(layout, axis)
        if degree > 1 or axis in ("tp", "pp", "dp"):
            yield f"<li>{axis} <b>{degree}</b></li>"
    for name, value in (
        ("ZeRO", layout.zero_stage),
        ("schedule", layout.schedule),
        ("recompute", layout.recompute),
        ("order", " ".join(layout.order)),
    ):
        yield f"<li>{name} <b>{text(value)}</b></li>"
    yield (
        f"<li>batch <b>{layout.global_batch_size:,}</b> = {layout.dp} dp &times; "
        f"{layout.num_microbatches} {plural('microbatch', layout.num_microbatches)} &times; "
        f"{layout.micro_batch_size}, {layout.sequence_length:,} tokens each</li>"
    )


def render_warnings(plan: Plan) -> Iterator[str]:
    """Each with what to type."""
    if not plan.warnings:
        yield "<p class=none>None.</p>"
        return
    yield "<ul class=warnings>"
    for warning in plan.warnings:
        fix = f" Try <code>{text(warning.fix)}</code>." if warning.fix else ""
        yield f"<li><code>{text(warning.id)}</code> {text(warning.message)}.{fix}</li>"
    yield "</ul>"


def render_step(plan: Plan) -> Iterator[str]:
    """The four kinds of time that add up to the step."""
    time = plan.time
    kinds = (
        ("compute", "compute", "the stage works", time.compute_s),
        ("bubble", "bubble", "it waits for other stages", time.bubble_s),
        ("communication", "communication", "it waits for data, nothing else runs",
         time.exposed_communication_s),
        ("optimizer", "optimizer", "the update of the weights", time.optimizer_s),
    )  # fmt: skip
    parts = [
        Part(key=key, name=name, value=value, shown=seconds(value)) for key, name, _, value in kinds
    ]
    said = ", ".join(f"{part.name} {part.shown}" for part in parts)
    yield bar(parts, time.step_s, f"step of {seconds(time.step_s)}: {said}")
    rows = [
        [
            f"<i class={key}></i>{name}<span class=note>{what}</span>",
            seconds(value),
            f"{percent(value, time.step_s):.1f} %",
        ]
        for key, name, what, value in kinds
    ]
    rows.append(["step", seconds(time.step_s), "100 %"])
    yield table("The step by kind of time", ("kind", "time", "share"), rows, "sum")


def render_traffic(plan: Plan) -> Iterator[str]:
    """One row per axis and operation, the slowest of them as long as its bar can be."""
    entries = plan.communication
    if not entries:
        yield "<p>One process: nothing is sent.</p>"
        return
    most_s = max(entry.seconds_per_step for entry in entries)
    rows = [
        [
            f"{text(entry.axis)}<span class=note>{text(entry.op)}</span>",
            f"{entry.group_size:,}",
            "network" if entry.crosses_nodes else "node",
            _traffic(entry.bytes_per_step),
            f"{seconds(entry.seconds_per_step)}<span class=meter><i class=communication "
            f'style="width:{percent(entry.seconds_per_step, most_s):.2f}%"></i></span>',
        ]
        for entry in entries
    ]
    yield table(
        "Traffic of the busiest rank", ("axis", "ranks", "over", "per step", "time"), rows, "flow"
    )


def render_decisions(plan: Plan) -> Iterator[str]:
    """`dp=8: the other devices`, the value set apart."""
    if not plan.decisions:
        yield "<p class=none>Nothing: every value was given.</p>"
        return
    yield "<dl class=decisions>"
    for line in plan.decisions:
        value, colon, why = line.partition(": ")
        yield f"<dt><code>{text(value)}</code></dt><dd>{text(why) if colon else ''}</dd>"
    yield "</dl>"


def _learned(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """What finished runs on this hardware let expect."""
    if learned := plan.learned:
        runs = f"{learned.runs} {plural('run', learned.runs)} {text(learned.alike)}"
        yield "as measured", seconds(learned.step_s), f"&times; {learned.step_ratio:.2f}, {runs}"


def _price(plan: Plan) -> str:
    """What the run costs, in the currency of the price; nothing without one."""
    cost = plan.time.cost
    return "" if cost is None else f", costs {cost:,.2f}" if cost < 1000 else f", costs {cost:,.0f}"


def _tokens(plan: Plan) -> int:
    return plan.layout.global_batch_size * plan.layout.sequence_length


def _traffic(size_bytes: int) -> str:
    return f"{size_bytes / 2**40:,.1f} TiB" if size_bytes >= 2**40 else size(size_bytes)


def _short(value: float) -> str:
    return count(round(value)) if value >= 1e5 else f"{value:,.0f}"
