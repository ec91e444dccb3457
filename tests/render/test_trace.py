"""The trace of a plan: what a viewer needs, and every action once."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from launcher.plan.build import build_plan
from launcher.plan.timeline import build_timeline
from launcher.render.page import render_page
from launcher.render.trace import render_trace
from tests.factory import LLAMA3_70B, TINY, h100, make_run

PLANS = {
    "one stage": lambda: make_run(),
    "1f1b": lambda: make_run(parallelism={"tp": 2, "pp": 4, "dp": 2}),
    "v": lambda: make_run(model=LLAMA3_70B, hardware=h100(8), parallelism={"tp": 8, "pp": 4,
        "dp": 2, "vpp": 2, "schedule": "dualpipev"}, **{"train.num_microbatches": 16}),
    "slow links": lambda: make_run(model=TINY | {"name": 'a"b\\c\n'}, parallelism={"pp": 4,
        "vpp": 1}, **{"train.num_microbatches": 8, "hardware.node": {"name": "modem",
        "bandwidth": 1e6, "latency_s": 0.05, "host_memory_bytes": 2**34}}),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(PLANS))
def plan(request):
    return build_plan(PLANS[request.param]())


@pytest.fixture(scope="module")
def events(plan):
    return json.loads(render_trace(plan))["traceEvents"]


def complete(events):
    return [event for event in events if event["ph"] == "X"]


def test_every_event_has_what_the_format_asks_for(events):
    for event in events:
        assert event["ph"] in ("X", "M")
        assert {"name", "ts", "pid", "tid", "args"} <= set(event)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
    for event in complete(events):
        assert event["ts"] >= 0
        assert event["dur"] >= 0


def test_events_come_in_the_order_of_their_start_behind_all_names(events):
    starts = [(event["ph"] != "M", event["ts"]) for event in events]
    assert starts == sorted(starts)


def test_every_stage_is_named_and_in_its_place(plan, events):
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    order = {e["pid"]: e["args"]["sort_index"] for e in events if e["name"] == "process_sort_index"}
    assert set(names) == set(order) == set(range(plan.layout.pp))
    for stage, name in names.items():
        assert name.startswith(f"stage {stage}: layers ")
        assert order[stage] == stage
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    assert named == {(e["pid"], e["tid"]) for e in complete(events)}


def test_every_action_is_there_once_with_its_microbatch_and_chunk(plan, events):
    timeline = build_timeline(plan)
    wanted = sorted(
        (stage, span.kind, span.microbatch, span.chunk)
        for spans in (timeline.compute, timeline.transfers)
        for stage, actions in enumerate(spans)
        for span in actions
    )
    found = sorted(
        (e["pid"], e["name"].split(" ")[0].rstrip("0123456789."), e["args"]["microbatch"],
         e["args"]["chunk"])
        for e in complete(events) if e["args"]
    )  # fmt: skip
    assert found == wanted


def test_times_are_the_plan_s_in_microseconds(plan, events):
    ends = [event["ts"] + event["dur"] for event in complete(events)]
    assert max(ends) == pytest.approx(plan.time.step_s * 1e6, rel=1e-6)
    forward = next(e for e in complete(events) if e["cat"] == "forward")
    span = build_timeline(plan).compute[0][0]
    assert forward["dur"] == pytest.approx((span.end_s - span.start_s) * 1e6, abs=2e-3)


def test_nothing_overlaps_on_one_track(events):
    """Viewers take what overlaps on a thread for calls within calls, and draw it wrong."""
    tracks = {}
    for event in complete(events):
        tracks.setdefault((event["pid"], event["tid"]), []).append(event)
    for track in tracks.values():
        track.sort(key=lambda event: (event["ts"], event["dur"]))
        for one, other in pairwise(track):
            assert one["ts"] + one["dur"] <= other["ts"] + 1e-6


def test_an_arrow_goes_from_every_send_to_its_receive(plan, events):
    out, into = {}, {}
    for event in complete(events):
        if "bind_id" in event:
            side = out if event.get("flow_out") else into
            assert event["bind_id"] not in side
            side[event["bind_id"]] = event
    assert set(out) == set(into)
    assert bool(out) == (plan.layout.pp > 1)
    for number, send in out.items():
        receive = into[number]
        assert send["args"]["microbatch"] == receive["args"]["microbatch"]
        assert send["pid"] != receive["pid"]
        assert receive["ts"] + receive["dur"] == pytest.approx(send["ts"] + send["dur"], abs=1e-2)


def test_the_step_ends_with_the_update(events):
    last = max(complete(events), key=lambda event: event["ts"] + event["dur"])
    assert last["name"] == "optimizer"


def test_a_device_that_computes_nothing_has_a_trace_without_events():
    run = make_run()  # no configuration has such a device
    peak = run.hardware.gpu.peak_flops.model_copy(update={"fp32": 1e-310, "bf16": 1e-310})
    gpu = run.hardware.gpu.model_copy(update={"peak_flops": peak})
    hardware = run.hardware.model_copy(update={"gpu": gpu})
    plan = build_plan(run.model_copy(update={"hardware": hardware}))
    document = json.loads(render_trace(plan))
    assert document["traceEvents"] == []
    assert document["otherData"]["step_s"] is None
    assert "beyond what can be drawn" in render_page(plan)
