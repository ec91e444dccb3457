"""The pipeline in time: every action of every stage, or a reduction that can still be read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import floor, isfinite, log10

from launcher.plan.records import Plan
from launcher.plan.timeline import Span, Timeline, build_timeline
from launcher.plan.units import plural, seconds
from launcher.render.page.markup import chosen, legend, percent, text

MAX_ROWS = 32
"""More stages than this are shown as the first and the last."""
MAX_CELLS = 160
"""Actions per stage that can be told apart across a screen."""
WINDOW_CELLS = 56
"""Actions per stage in a part that is shown enlarged."""
BINS = 240
"""Slices of the whole step, where single actions are too thin."""
LEVELS = 4
"""Shades of one kind, from the first chunk to the last."""
WIDTH = 10000
"""Units across a drawing; it is stretched to the page."""
KINDS = {"F": "forward", "B": "backward", "W": "weight gradients"}


def render_timeline(plan: Plan) -> Iterator[str]:
    """One row per stage; above MAX_CELLS actions the start, the end and shares of the whole."""
    timeline = build_timeline(plan)
    if not isfinite(timeline.step_s) or timeline.step_s <= 0:
        yield "<p>These times are beyond what can be drawn.</p>"
        return
    num_actions = max(len(spans) for spans in timeline.compute)
    yield _legend(plan, timeline)
    roomy = bool(_roomy(plan, timeline, timeline.step_s))
    yield f"<p>{_says(plan, num_actions, roomy)}</p>"
    if num_actions <= MAX_CELLS:
        yield _chart(plan, timeline, 0.0, timeline.step_s, "The whole step")
        return
    window_s = _window_s(timeline)
    yield "<h3>The start, enlarged</h3>"
    yield _chart(plan, timeline, 0.0, window_s, "The start of the step")
    yield "<h3>The end, enlarged</h3>"
    yield _chart(plan, timeline, timeline.pipeline_s - window_s, timeline.pipeline_s,
                 "The end of the pipeline")  # fmt: skip
    yield "<h3>The whole step</h3>"
    yield _overview(plan, timeline)


def _legend(plan: Plan, timeline: Timeline) -> str:
    present = {span.kind for span in timeline.compute[0]}
    entries = [(f"{kind}0", name) for kind, name in KINDS.items() if kind in present]
    entries.append(("wait", "waiting"))
    if timeline.reduction_s > 0:
        entries.append(("communication", "gradients and weights of the replicas"))
    entries.append(("optimizer", "optimizer"))
    return legend(entries)


def _says(plan: Plan, num_actions: int, roomy: bool) -> str:
    layout = plan.layout
    words = (
        f"<code>{text(layout.schedule)}</code> on {layout.pp} {plural('stage', layout.pp)}, "
        f"{layout.num_microbatches} {plural('microbatch', layout.num_microbatches)}: "
        f"{num_actions:,} actions per stage."
    )
    if layout.vpp > 1:
        words += f" {layout.vpp} chunks per stage; later chunks are lighter."
    if num_actions > MAX_CELLS:
        words += (
            " That is more than a screen can show one by one: here are its start and its end, "
            f"action by action, and the whole in {BINS} slices, each filled by its share of work. "
            "<code>--trace</code> writes every action."
        )
    elif roomy:
        words += " Numbers are microbatches."
    return words


def _window_s(timeline: Timeline) -> float:
    """Long enough to see the pipeline fill: every stage at work, and some steady rounds."""
    mean_s = timeline.pipeline_s / max(len(spans) for spans in timeline.compute)
    filled_s = max(spans[0].start_s for spans in timeline.compute)
    return min(timeline.pipeline_s, max(WINDOW_CELLS * mean_s, 1.5 * filled_s))


def _chart(plan: Plan, timeline: Timeline, start_s: float, end_s: float, title: str) -> str:
    """Rows of actions between two times, all in one scale."""
    rows, roomy = [], _roomy(plan, timeline, end_s - start_s)
    for stage in chosen(len(timeline.compute), MAX_ROWS):
        if stage is None:
            rows.append(_gap(len(timeline.compute)))
            continue
        spans = [
            span
            for span in timeline.compute[stage]
            if span.end_s > start_s and span.start_s < end_s
        ]
        drawn = _cells(plan, spans, start_s, end_s) + _behind(timeline, start_s, end_s)
        numbers = "".join(_numbers(spans, roomy, start_s, end_s))
        rows.append(_row(stage, drawn, numbers, len(spans)))
    label = f"{title}: {len(timeline.compute)} stages from {seconds(start_s)} to {seconds(end_s)}"
    return _frame(label, rows, start_s, end_s)


def _row(stage: int, drawn: str, numbers: str, num_cells: int) -> str:
    # Lines between cells only where cells are wider than lines.
    fine = " fine" if num_cells > 64 else ""
    return (
        f"<div class=row><span class=name>stage {stage}</span><div class=lane>"
        f'<svg class="cells{fine}" viewBox="0 0 {WIDTH} 10" preserveAspectRatio="none" '
        f'aria-hidden="true">{drawn}</svg>{numbers}</div></div>'
    )


def _cells(plan: Plan, spans: Sequence[Span], start_s: float, end_s: float) -> str:
    """One path per action, with its name and its times for whoever points at it."""
    scale = WIDTH / (end_s - start_s)
    groups: dict[str, list[str]] = defaultdict(list)
    for span in spans:
        left = max(0, round((span.start_s - start_s) * scale))
        right = min(WIDTH, round((span.end_s - start_s) * scale))
        chunk = f".{span.chunk}" if span.chunk else ""
        groups[f"{span.kind}{_level(span.chunk, plan.layout.vpp)}"].append(
            f'<path d="M{left} 0h{right - left}v10H{left}z"><title>{span.kind}{span.microbatch}'
            f"{chunk} {seconds(span.start_s)} &ndash; {seconds(span.end_s)}</title></path>"
        )
    return "".join(f"<g class={key}>{''.join(paths)}</g>" for key, paths in groups.items())


def _behind(timeline: Timeline, start_s: float, end_s: float) -> str:
    """Reduction and update, the same on every stage."""
    pieces, left_s = [], timeline.pipeline_s
    for key, took_s in (
        ("communication", timeline.reduction_s),
        ("optimizer", timeline.optimizer_s),
    ):
        left = percent(left_s - start_s, end_s - start_s) * WIDTH / 100
        width = percent(took_s, end_s - start_s) * WIDTH / 100
        if left_s < end_s and width > 0:
            pieces.append(
                f'<path class={key} d="M{left:.0f} 0h{width:.0f}v10h-{width:.0f}z">'
                f"<title>{key} {seconds(took_s)}</title></path>"
            )
        left_s += took_s
    return "".join(pieces)


def _numbers(spans: Sequence[Span], roomy: Mapping[str, bool], start_s: float, end_s: float
             ) -> Iterator[str]:  # fmt: skip
    """Microbatches on the cells of the kinds that have room: everywhere, or on a wide screen."""
    for span in spans:
        if span.kind in roomy and span.start_s >= start_s and span.end_s <= end_s:
            size = "" if roomy[span.kind] else " class=wide"
            left = percent(span.start_s - start_s, end_s - start_s)
            width = percent(span.end_s - span.start_s, end_s - start_s)
            yield (
                f'<span{size} style="left:{left:.2f}%;width:{width:.2f}%">{span.microbatch}</span>'
            )


def _roomy(plan: Plan, timeline: Timeline, shown_s: float) -> dict[str, bool]:
    """Kinds whose every cell is wide enough for its number; whether even on a narrow screen."""
    digits = len(str(plan.layout.num_microbatches - 1))
    narrowest: dict[str, float] = {}
    for spans in timeline.compute:
        for span in spans:
            width = percent(span.end_s - span.start_s, shown_s)
            narrowest[span.kind] = min(width, narrowest.get(span.kind, width))
    return {
        kind: width >= 2.5 + 2.2 * digits
        for kind, width in narrowest.items()
        if width >= 0.7 + 0.55 * digits
    }


def _level(chunk: int, num_chunks: int) -> int:
    return round(chunk * (LEVELS - 1) / (num_chunks - 1)) if num_chunks > 1 else 0


def _overview(plan: Plan, timeline: Timeline) -> str:
    """Every slice of the step filled from below by the shares of its kinds of work."""
    rows = []
    for stage in chosen(len(timeline.compute), MAX_ROWS):
        if stage is None:
            rows.append(_gap(len(timeline.compute)))
            continue
        drawn = _slices(timeline.compute[stage], timeline.step_s)
        drawn += _behind(timeline, 0.0, timeline.step_s)
        rows.append(_row(stage, drawn, "", WIDTH))
    label = f"The whole step in {BINS} slices: share of work of {len(timeline.compute)} stages"
    return _frame(label, rows, 0.0, timeline.step_s)


def _slices(spans: Sequence[Span], step_s: float) -> str:
    width_s, width = step_s / BINS, WIDTH / BINS
    filled: dict[str, list[float]] = {kind: [0.0] * BINS for kind in KINDS}
    for span in spans:
        first = min(BINS - 1, int(span.start_s / width_s))
        last = min(BINS - 1, int(span.end_s / width_s))
        shares = filled[span.kind]
        for index in range(first, last + 1):
            inside_s = min(span.end_s, (index + 1) * width_s) - max(span.start_s, index * width_s)
            shares[index] += max(0.0, inside_s) / width_s
    base, drawn = [0.0] * BINS, []
    for kind, shares in filled.items():
        steps = []
        for index, share in enumerate(shares):
            if share > 0.002:
                left, right = round(index * width), round((index + 1) * width)
                top = 10 * max(0.0, 1 - base[index] - share)
                steps.append(f"M{left} {top:.1f}h{right - left}v{10 * share:.1f}H{left}z")
                base[index] += share
        if steps:
            drawn.append(f'<path class={kind}0 d="{"".join(steps)}"/>')
    return "".join(drawn)


def _gap(num_stages: int) -> str:
    return f"<p class=gap>⋮ {num_stages - MAX_ROWS} more stages</p>"


def _frame(label: str, rows: Sequence[str], start_s: float, end_s: float) -> str:
    ticks = "".join(
        f'<span style="left:{percent(tick - start_s, end_s - start_s):.2f}%">{shown}</span>'
        for tick, shown in _ticks(start_s, end_s)
    )
    return (
        f'<div class=time role=img aria-label="{text(label)}">{"".join(rows)}'
        f'<div class="row axis"><span class=name></span><div class=ticks>{ticks}</div></div></div>'
    )


def _ticks(start_s: float, end_s: float) -> Iterator[tuple[float, str]]:
    """Three to eight round times between two, in one unit."""
    raw_s = (end_s - start_s) / 8
    power = 10.0 ** floor(log10(raw_s))
    step_s = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw_s * 0.99)
    unit, name = next(
        (pair for pair in ((1.0, "s"), (1e-3, "ms")) if step_s >= pair[0] * 0.099), (1e-6, "µs")
    )
    digits = max(0, -floor(log10(step_s / unit) + 1e-9))
    index = -int(-start_s // step_s)
    while index * step_s <= end_s - 0.06 * (end_s - start_s):
        yield index * step_s, f"{index * step_s / unit:,.{digits}f} {name}"
        index += 1
