"""Chunks and schedule files in a run's plan: layers, JSON, refusals, and what a schedule gains."""

import json
from typing import get_args

import pytest

from launcher.config.reopen import reopen_values
from launcher.config.schedule_facts import SCHEDULE_FACTS
from launcher.config.schema import ScheduleName
from launcher.errors import ConfigError
from launcher.plan.build import build_plan
from launcher.plan.records import stages_from_json
from launcher.plan.schedule import SCHEDULES, build_schedule
from launcher.plan.schedule_choice import plan_schedule
from launcher.plan.schedule_file import write_schedule
from launcher.plan.shrink import VERIFY_RATES, shrink_run
from launcher.plan.simulate import simulate
from tests.plan.cases import LLAMA3_8B, open_run


def planned(**parallelism):
    keys = {f"parallelism.{key}": value for key, value in parallelism.items()}
    pinned = {"parallelism.tp": 2, "parallelism.pp": 4, "parallelism.recompute": "none"}
    return build_plan(open_run(LLAMA3_8B, 8, **{**pinned, "train.num_microbatches": 16, **keys}))


def test_rules_and_plan_know_the_same_about_every_schedule():
    assert tuple(SCHEDULE_FACTS) == get_args(ScheduleName)
    for name, facts in SCHEDULE_FACTS.items():
        recipe = SCHEDULES[name]
        assert (facts.chunks, facts.splits_backward, facts.microbatches_per_stage) == (
            recipe.chunks, recipe.splits_backward, recipe.microbatches_per_stage,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "vpp"),
    [("interleaved_1f1b", 2), ("interleaved_1f1b", 3), ("zb_h1", 2), ("zb_v", 2), ("dualpipev", 2)],
)
def test_every_block_is_in_one_chunk_and_chunks_follow_the_model(schedule, vpp):
    plan = planned(schedule=schedule, vpp=vpp)
    chain = plan_schedule(plan.run, plan.layout).chain
    homes = [chain.home(part) for part in range(chain.num_parts)]
    pieces = [plan.stages[stage].pieces[chunk] for stage, chunk in homes]
    layers = [layer for p in pieces for layer in range(p.first_layer, p.end_layer)]
    assert layers == list(range(32))
    assert [p.is_first for p in pieces] == [True] + [False] * (4 * vpp - 1)
    assert [p.is_last for p in pieces] == [False] * (4 * vpp - 1) + [True]
    assert sum(stage.parameters for stage in plan.stages) == plan.parameters
    assert stages_from_json(json.loads(json.dumps(plan.to_json()))) == plan.stages


def test_a_v_has_both_ends_of_the_model_on_the_first_stage():
    stages = planned(schedule="zb_v", vpp=2).stages
    assert [(stage.is_first, stage.is_last) for stage in stages] == [(True, True)] + [
        (False, False)
    ] * 3


def test_better_schedules_have_smaller_bubbles():
    bubbles = [
        planned(schedule=schedule, vpp=vpp).time.bubble_s
        for schedule, vpp in (("naive", 1), ("1f1b", 1), ("zb_h1", 1), ("zb_v", 2))
    ]
    assert bubbles == sorted(bubbles, reverse=True)
    assert bubbles[-1] < bubbles[1] / 2


def with_file(text, **parallelism):
    lines = tuple(text.splitlines())
    return planned(schedule="mine.csv", schedule_lines=lines, **parallelism)


def test_a_schedule_from_a_file_is_planned_as_if_it_had_a_name():
    text = write_schedule(build_schedule("zb_v", 4, 16))
    mine, named = with_file(text, vpp=2), planned(schedule="zb_v", vpp=2)
    assert mine.time == named.time
    assert mine.memory == named.memory
    assert mine.stages == named.stages


@pytest.mark.parametrize(("name", "depth"), [("zb_1p", 1), ("zb_2p", 2)])
def test_a_schedule_made_for_the_run_is_frozen_in_it(name, depth):
    plan = planned(schedule=name)
    assert "\n".join(plan.run.parallelism.schedule_lines) + "\n" == write_schedule(
        plan_schedule(plan.run, plan.layout)
    )
    again = simulate(
        plan_schedule(plan.run, plan.layout), plan.simulation.times, plan.simulation.p2p_s
    )
    assert again == plan.simulation
    assert max(again.peak_in_flight) <= depth * 4
    assert plan.time.step_s <= planned(schedule=("zb_h1", "zb_h2")[depth - 1]).time.step_s


def test_a_schedule_made_for_the_run_is_made_again_for_another():
    plan = planned(schedule="zb_2p")
    frozen = plan.run.model_dump(mode="json")
    values = reopen_values(frozen, frozen, set())
    assert values["parallelism"]["schedule_lines"] is None
    small = build_plan(shrink_run(plan.run, plan.layout))
    assert (small.layout.schedule, small.layout.pp) == ("zb_2p", 2)
    assert len(small.run.parallelism.schedule_lines) == 2


def test_a_shrunk_run_keeps_the_schedule_of_its_file():
    plan = with_file(write_schedule(build_schedule("1f1b", 4, 16)))
    small = build_plan(shrink_run(plan.run, plan.layout))
    assert (small.layout.pp, small.layout.num_microbatches) == (4, 16)
    assert small.layout.schedule == "mine.csv"


@pytest.mark.parametrize(("stages", "tp"), [(4, 2), (8, 4)])
def test_many_stages_of_a_file_leave_no_room_for_other_axes(stages, tp):
    text = write_schedule(build_schedule("1f1b", stages, 16))
    plan = with_file(text, pp=stages, tp=tp, sequence_parallel=True)
    small = build_plan(shrink_run(plan.run, plan.layout)).layout
    assert (small.pp, small.world_size) == (stages, 8)
    assert small.sequence_parallel == (small.tp > 1)


def test_a_shrunk_run_takes_steps_that_leave_rounding_noise_small():
    plan = planned()
    fast = plan.run.optimizer.model_copy(update={"learning_rate": 0.05})
    small = shrink_run(plan.run.model_copy(update={"optimizer": fast}), plan.layout)
    assert small.optimizer.learning_rate == VERIFY_RATES["adamw"]


@pytest.mark.parametrize(("schedule", "vpp"), [("interleaved_1f1b", 4), ("dualpipev", 2)])
def test_a_shrunk_run_keeps_its_chunks(schedule, vpp):
    plan = planned(schedule=schedule, vpp=vpp)
    small = build_plan(shrink_run(plan.run, plan.layout))
    assert small.layout.vpp == vpp
    assert all(len(stage.chunks) == vpp for stage in small.stages)


@pytest.mark.parametrize(
    ("stages", "count", "vpp", "field"),
    [(2, 16, 1, "parallelism.pp"), (4, 8, 1, "train.num_microbatches"),
     (4, 16, 2, "parallelism.vpp")],
)  # fmt: skip
def test_a_file_for_another_layout_is_refused_with_what_it_needs(stages, count, vpp, field):
    with pytest.raises(ConfigError) as error:
        with_file(write_schedule(build_schedule("1f1b", stages, count)), vpp=vpp)
    (finding,) = error.value.findings
    assert (finding.field, finding.rule) == (field, "schedule-file-fits")
    assert finding.fix == f"{field}={finding.legal[0]}"


def test_a_file_that_cannot_run_is_refused_with_the_reason():
    with pytest.raises(ConfigError) as error:
        with_file("F0, B0, F1, B1\nF1, B1, F0, B0\n")
    (finding,) = error.value.findings
    assert "deadlock: stage 0 waits at B0" in finding.reason
