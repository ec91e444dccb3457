"""The simulated step as trace events: what ui.perfetto.dev and chrome://tracing open.

One process per stage. Its threads: what the stage computes, then what it sends and receives, in as
many lanes as overlap. An arrow goes from every send to its receive.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from math import isfinite

from launcher.plan.records import Plan, Stage
from launcher.plan.timeline import Span, Timeline, build_timeline

GENERATOR = '"generator": "launch plan --trace"'
"""In the first line of every trace: how a file of ours is known."""

COMPUTE_LANE = 0
FIRST_LANE = {"send": 1, "recv": 101}
"""Thread numbers within a stage's process."""
WHAT = {
    "F": "forward", "B": "backward", "W": "weight gradient", "send_forward": "send",
    "recv_forward": "receive", "send_backward": "send", "recv_backward": "receive",
}  # fmt: skip
"""Category of the events of each kind."""


def render_trace(plan: Plan) -> str:
    """JSON in the Trace Event Format, one event a line, in the order of `ts`; microseconds.

    No events where the times are beyond any number, as of a device that computes nothing.
    """
    timeline = build_timeline(plan)
    head = json.dumps(_about(plan))[1:-1]
    found = [
        event
        for stage in (plan.stages if isfinite(timeline.step_s) else ())
        for event in (*_stage_events(stage, timeline), *_step_end(stage.stage, timeline))
    ]
    found.sort(key=lambda event: event[0])
    events = ",\n".join([text for _, text in found])
    return (
        f'{{"otherData": {{{GENERATOR}, {head}}}, "displayTimeUnit": "ms", "traceEvents": [\n'
        f"{events}\n]}}\n"
    )


Event = tuple[int, str]
"""Its start in nanoseconds, names first, and its line."""


def _about(plan: Plan) -> dict[str, object]:
    layout = plan.layout
    return {
        "model": plan.run.model.name,
        "schedule": layout.schedule,
        "stages": layout.pp,
        "num_microbatches": layout.num_microbatches,
        "step_s": plan.time.step_s if isfinite(plan.time.step_s) else None,
    }


def _stage_events(stage: Stage, timeline: Timeline) -> Iterator[Event]:
    number = stage.stage
    yield _name("process_name", number, COMPUTE_LANE, "name", _title(stage))
    yield _name("process_sort_index", number, COMPUTE_LANE, "sort_index", number)
    yield _name("thread_name", number, COMPUTE_LANE, "name", "compute")
    yield from (_event(span, number, COMPUTE_LANE) for span in timeline.compute[number])
    for direction, label in (("send", "send"), ("recv", "receive")):
        spans = [span for span in timeline.transfers[number] if span.kind.startswith(direction)]
        for index, lane in enumerate(_lanes(spans)):
            thread = FIRST_LANE[direction] + index
            title = label if index == 0 else f"{label} {index + 1}"
            yield _name("thread_name", number, thread, "name", title)
            yield _name("thread_sort_index", number, thread, "sort_index", thread)
            yield from (
                _event(span, number, thread, _arrow(span, number, timeline)) for span in lane
            )


def _title(stage: Stage) -> str:
    """`stage 0: layers 0-9, 30-39`."""
    ranges = [
        f"{piece.first_layer}-{piece.end_layer - 1}" for piece in stage.pieces if piece.num_layers
    ]
    return f"stage {stage.stage}: layers {', '.join(ranges) or 'none'}"


def _lanes(spans: Iterable[Span]) -> list[list[Span]]:
    """As few lanes as hold the spans without overlap: viewers nest what overlaps on one thread."""
    lanes: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: span.start_s):
        free = next((lane for lane in lanes if _ns(lane[-1].end_s) <= _ns(span.start_s)), None)
        if free is None:
            lanes.append([span])
        else:
            free.append(span)
    return lanes


def _arrow(span: Span, stage: int, timeline: Timeline) -> str:
    """The same number for a send and its receive: which boundary, microbatch and direction."""
    is_forward = span.kind.endswith("forward")
    is_send = span.kind.startswith("send")
    part = timeline.chain.part(stage, span.chunk)
    boundary = part if is_forward == is_send else part - 1
    number = 2 * (span.microbatch * timeline.chain.num_parts + boundary) + is_forward
    return f', "bind_id": "{number:#x}", "flow_{"out" if is_send else "in"}": true'


def _event(span: Span, stage: int, thread: int, more: str = "") -> Event:
    """A complete event; by hand, because a step may have a hundred thousand."""
    kind, microbatch, chunk, start_s, end_s = span
    start, end = _ns(start_s), _ns(end_s)
    name = f"{kind}{' ' if len(kind) > 1 else ''}{microbatch}{f'.{chunk}' if chunk else ''}"
    return start, (
        f'{{"name": "{name}", "cat": "{WHAT[kind]}", "ph": "X", "ts": {_us(start)}, '
        f'"dur": {_us(end - start)}, "pid": {stage}, "tid": {thread}{more}, '
        f'"args": {{"microbatch": {microbatch}, "chunk": {chunk}}}}}'
    )


def _step_end(stage: int, timeline: Timeline) -> Iterator[Event]:
    """What all stages do when the last one is through: reduce, and update."""
    start_s = timeline.pipeline_s
    parts: Sequence[tuple[str, str, float]] = (
        ("gradients and weights over replicas", "communication", timeline.reduction_s),
        ("optimizer", "optimizer", timeline.optimizer_s),
    )
    for name, category, took_s in parts:
        start, end = _ns(start_s), _ns(start_s + took_s)
        start_s += took_s
        if end > start:
            line = (
                f'{{"name": "{name}", "cat": "{category}", "ph": "X", "ts": {_us(start)}, '
                f'"dur": {_us(end - start)}, "pid": {stage}, "tid": {COMPUTE_LANE}, "args": {{}}}}'
            )
            yield start, line


def _name(what: str, stage: int, thread: int, key: str, value: str | int) -> Event:
    about = {"name": what, "ph": "M", "ts": 0, "pid": stage, "tid": thread, "args": {key: value}}
    return -1, json.dumps(about)


def _ns(seconds: float) -> int:
    """Whole nanoseconds, so that what touches does not overlap by a rounding error."""
    return round(seconds * 1e9)


def _us(ns: int) -> str:
    return f"{ns // 1000}.{ns % 1000:03d}"
