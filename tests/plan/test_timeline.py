"""The timeline shows the very simulation that the plan's times come from."""

from itertools import pairwise

import pytest

from launcher.plan.build import build_plan
from launcher.plan.timeline import build_timeline
from tests.factory import make_run

KINDS = {
    "1f1b": {},
    "gpipe": {},
    "zb_h1": {},
    "interleaved_1f1b": {"vpp": 2},
    "dualpipev": {"vpp": 2},
}


@pytest.fixture(scope="module", params=list(KINDS))
def plan(request):
    pipeline = {"pp": 2, "schedule": request.param, **KINDS[request.param]}
    return build_plan(make_run(parallelism=pipeline, **{"train.num_microbatches": 6}))


def test_it_ends_when_the_plan_says(plan):
    timeline = build_timeline(plan)
    ends = [span.end_s for stage in timeline.compute for span in stage]
    assert max(ends) == timeline.pipeline_s == plan.simulation.makespan_s
    assert timeline.step_s == pytest.approx(plan.time.step_s)
    assert timeline.optimizer_s == pytest.approx(plan.time.optimizer_s)


def test_a_stage_computes_one_action_at_a_time_and_as_long_as_simulated(plan):
    for stage, spans in enumerate(build_timeline(plan).compute):
        assert all(a.end_s <= b.start_s for a, b in pairwise(spans))
        busy_s = sum(span.end_s - span.start_s for span in spans)
        assert busy_s == pytest.approx(plan.simulation.busy_s[stage])


def test_every_microbatch_passes_every_chunk(plan):
    layout = plan.layout
    for spans in build_timeline(plan).compute:
        for kind in {span.kind for span in spans}:
            seen = {(span.microbatch, span.chunk) for span in spans if span.kind == kind}
            assert len(seen) == layout.num_microbatches * layout.vpp


def test_what_is_sent_is_received_and_then_used(plan):
    timeline = build_timeline(plan)
    moved = {"send": [], "recv": []}
    for stage, spans in enumerate(timeline.transfers):
        for span in spans:
            direction, _, way = span.kind.partition("_")
            part = timeline.chain.part(stage, span.chunk)
            boundary = part if (way == "forward") == (direction == "send") else part - 1
            moved[direction].append((way, span.microbatch, boundary, round(span.end_s, 12)))
    assert sorted(moved["send"]) == sorted(moved["recv"]) != []
    for stage, spans in enumerate(timeline.transfers):
        starts = {(s.kind, s.microbatch, s.chunk): s.start_s for s in timeline.compute[stage]}
        for span in spans:
            if span.kind.startswith("recv"):
                user = "F" if span.kind == "recv_forward" else "B"
                assert span.end_s <= starts[user, span.microbatch, span.chunk] + 1e-12
