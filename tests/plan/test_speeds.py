"""Unequal devices: a stage's share of the layers follows the speed of its slowest device."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.plan.build import build_plan
from launcher.plan.shrink import shrink_run
from launcher.plan.speeds import mixed_stages, stage_speeds
from launcher.plan.stages import split_layers
from tests.plan.cases import LLAMA3_8B, open_run


def planned(speeds, num_nodes=2, **keys):
    pinned = {"parallelism.tp": 2, "parallelism.pp": 4, "parallelism.recompute": "none"}
    overrides = {**pinned, "train.num_microbatches": 16, "hardware.speeds": speeds, **keys}
    return build_plan(open_run(LLAMA3_8B, num_nodes, **overrides))


def layers(plan):
    return [stage.end_layer - stage.first_layer for stage in plan.stages]


@given(
    st.integers(1, 8),
    st.lists(st.floats(0.2, 5), min_size=1, max_size=4),
    st.floats(0, 4),
    st.floats(0, 4),
)
def test_no_other_split_is_faster_on_unequal_stages(num_layers, speeds, first, last):
    def slowest(bounds):
        costs = [float(end - start) for start, end in bounds]
        costs[0] += first
        costs[-1] += last
        return max(cost / speed for cost, speed in zip(costs, speeds, strict=True))

    count = len(speeds)
    bounds = split_layers(num_layers, count, first_cost=first, last_cost=last, speeds=speeds)
    least = 1 if num_layers >= count else 0
    for cuts in itertools.combinations_with_replacement(range(num_layers + 1), count - 1):
        other = list(itertools.pairwise((0, *cuts, num_layers)))
        if all(end - start >= least for start, end in other):
            assert slowest(bounds) <= slowest(other) + 1e-9


def test_equal_speeds_change_nothing():
    assert planned((1.0, 1.0)).stages == planned(None).stages
    assert planned((1.0, 1.0)).time == planned(None).time


def test_half_the_speed_gets_half_the_layers_and_beats_an_even_split():
    unequal = planned((1.0, 0.5))
    assert stage_speeds(unequal.run.hardware, unequal.layout) == (1.0, 1.0, 0.5, 0.5)
    counts = layers(unequal)
    assert sum(counts) == 32
    assert counts[2] == pytest.approx(counts[1] / 2, abs=0.5)
    even = planned((1.0, 0.5), **{"parallelism.layers_per_stage": (8, 8, 8, 8)})
    assert unequal.time.step_s < 0.75 * even.time.step_s
    assert unequal.warnings == planned(None).warnings


def test_a_slow_device_is_worse_than_none_and_a_stage_that_mixes_is_named():
    speeds = [1.0] * 16
    speeds[5] = 0.5
    plan = planned(tuple(speeds))
    assert mixed_stages(plan.run.hardware, plan.layout) == (1,)
    assert plan.time.step_s > planned(None).time.step_s
    assert "stage-of-unequal-devices" in [warning.id for warning in plan.warnings]


def test_chunks_of_a_slow_stage_are_small_too():
    keys = {"parallelism.schedule": "zb_v", "parallelism.vpp": 2}
    counts = [[chunk[1] - chunk[0] for chunk in s.chunks] for s in planned((1, 0.4), **keys).stages]
    assert max(counts[2] + counts[3]) < min(counts[1])


def test_a_shrunk_run_keeps_an_uneven_split():
    plan = planned((1.0, 0.5))
    small = build_plan(shrink_run(plan.run, plan.layout))
    assert layers(small) == [2, 1]
