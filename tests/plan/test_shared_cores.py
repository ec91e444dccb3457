"""Stages that take turns on too few cores: who waits leaves its cores to the others."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.config.schema import Hardware
from launcher.plan.build import build_plan
from launcher.plan.schedule import SCHEDULES, build_orders
from launcher.plan.schedule_choice import named_chain
from launcher.plan.schedule_clock import Durations, walk
from launcher.plan.schedule_records import StageTimes
from launcher.plan.shared_cores import quickening, takes_turns
from launcher.plan.timeline import build_timeline
from tests.factory import CPU, make_run

CHUNKS = {"interleaved_1f1b": 2, "zb_v": 2}


def hardware(share):
    return Hardware.model_validate(CPU | {"gpu": CPU["gpu"] | {"core_share": share}})


def quicker(share, pp, count, name="1f1b", forward_s=1.0, p2p_s=0.0):
    """(makespan on busy cores, by how much it is quicker)."""
    vpp = CHUNKS.get(name, 1)
    chain, orders = named_chain(name, pp, vpp), build_orders(name, pp, count, vpp)
    times = [StageTimes(forward_s=forward_s, backward_s=2.0, weight_s=0.5)] * chain.num_parts
    durations = Durations(times=times, p2p_s=p2p_s)
    makespan_s = walk(chain, count, orders, durations, has_transfers=False).makespan_s
    found = quickening(hardware(share), chain, count, orders, durations, has_transfers=False)
    return makespan_s, found


def test_nobody_takes_turns_on_devices_of_ones_own_or_in_one_stage():
    assert quicker(None, 4, 4)[1] == 1.0
    assert quicker(0.5, 1, 4)[1] == 1.0


def test_one_microbatch_is_with_one_stage_at_a_time_and_that_has_its_core_whole():
    assert quicker(0.5, 2, 1)[1] == pytest.approx(2.0)
    assert quicker(0.25, 4, 1)[1] == pytest.approx(4.0)


def test_two_stages_on_one_core_take_what_both_have_to_do():
    # 2 x 4 microbatches of 3 s on busy cores, of which each stage then had a half.
    makespan_s, found = quicker(0.5, 2, 4)
    assert makespan_s == pytest.approx(15.0)
    assert makespan_s / found == pytest.approx(12.0)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["gpipe", "1f1b", "interleaved_1f1b", "zb_h1", "zb_v"]),
    st.integers(2, 5), st.integers(1, 3), st.floats(0.1, 1.0), st.floats(0.2, 4),
    st.floats(0, 1),
)  # fmt: skip
def test_it_is_between_work_without_pause_and_cores_that_are_always_busy(
    name, pp, rounds, share, forward_s, p2p_s
):
    makespan_s, found = quicker(share, pp, rounds * pp, name, forward_s, p2p_s)
    chunks = CHUNKS.get(name, 1)
    backward_s = 2.5 if SCHEDULES[name].splits_backward else 2.0
    work_s = chunks * rounds * pp * (forward_s + backward_s)  # of a stage, with its share of a core
    step_s = makespan_s / found
    assert 1 - 1e-9 <= found <= 1 / share + 1e-9
    assert step_s >= share * makespan_s - 1e-9
    # All cores together do no more than all stages did with their shares.
    assert step_s >= work_s - 1e-9


def planned(share, **keys):
    gpu = CPU["gpu"] | {"core_share": share}
    hardware = CPU | {"gpus_per_node": 4, "gpu": gpu}
    values = {"pp": 4, "tp": 1, "dp": 1, "name": "pp"} | keys
    train = {"steps": 1, "num_microbatches": 4, "sequence_length": 64}
    return build_plan(make_run(hardware=hardware, parallelism=values, train=train))


def test_a_plan_has_less_of_a_bubble_and_what_is_drawn_is_the_step_that_is_said():
    alone, turns = planned(1.0), planned(0.5)
    assert turns.time.step_s < alone.time.step_s
    assert turns.time.compute_s < alone.time.compute_s
    (sent,), (of_busy,) = turns.communication, alone.communication
    assert sent.axis == "pp"
    times = turns.simulation.makespan_s / alone.simulation.makespan_s
    assert sent.seconds_per_step == pytest.approx(times * of_busy.seconds_per_step)
    assert build_timeline(turns).step_s == pytest.approx(turns.time.step_s)
    time = turns.time
    parts = (time.compute_s, time.bubble_s, time.exposed_communication_s, time.optimizer_s)
    assert sum(parts) == pytest.approx(time.step_s)


def test_a_gpu_has_no_turns_to_take():
    chain = named_chain("1f1b", 4, 1)
    gpu = Hardware.model_validate(CPU | {"device": "cuda", "gpu": CPU["gpu"] | {"core_share": 0.5}})
    assert not takes_turns(gpu, chain)
    assert takes_turns(hardware(0.5), chain)
