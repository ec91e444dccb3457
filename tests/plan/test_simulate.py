"""The simulator: closed forms, published bubbles, and every kind of broken schedule."""

import csv
import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.plan.schedule import SCHEDULES, Action, Schedule, build_schedule
from launcher.plan.simulate import ScheduleError, StageTimes, peak_in_flight, simulate
from launcher.plan.simulate_named import simulate_named

LINES = (Path(__file__).parent / "bubble_1f1b.csv").read_text().splitlines()
BUBBLES = list(csv.DictReader(line for line in LINES if not line.startswith("#")))

CLASSIC = ("1f1b", "gpipe")
names = st.sampled_from(CLASSIC)
stages = st.integers(1, 9)
microbatches = st.integers(1, 24)
durations = st.floats(0.001, 10.0)


def uniform(num_stages, forward_s=1.0, backward_s=2.0):
    return [StageTimes(forward_s=forward_s, backward_s=backward_s)] * num_stages


@settings(deadline=None, max_examples=150)
@given(names, stages, microbatches, durations, durations)
def test_makespan_of_equal_stages_without_communication_is_the_closed_form(name, p, m, f, b):
    result = simulate(build_schedule(name, p, m), uniform(p, f, b))
    assert result.makespan_s == pytest.approx((m + p - 1) * (f + b), rel=1e-9)
    assert result.bubble_fraction == pytest.approx((p - 1) / (m + p - 1), abs=1e-9)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("m", [1, 2, 3, 7, 8, 33])
def test_one_f_one_b_keeps_at_most_p_minus_s_microbatches(p, m):
    result = simulate(build_schedule("1f1b", p, m), uniform(p))
    assert result.peak_in_flight == tuple(min(p - s, m) for s in range(p))


@pytest.mark.parametrize("p", [1, 2, 5, 8])
@pytest.mark.parametrize("m", [1, 2, 3, 7, 8, 33])
def test_gpipe_keeps_all_microbatches(p, m):
    assert simulate(build_schedule("gpipe", p, m), uniform(p)).peak_in_flight == (m,) * p


@settings(deadline=None, max_examples=100)
@given(names, microbatches, st.lists(st.tuples(durations, durations), min_size=1, max_size=7),
       st.floats(0, 3))  # fmt: skip
def test_no_stage_starts_before_its_input_and_none_is_faster_than_its_work(name, m, times, p2p_s):
    p = len(times)
    given_times = [StageTimes(forward_s=f, backward_s=b) for f, b in times]
    result = simulate(build_schedule(name, p, m), given_times, p2p_s)
    for (f, b), busy in zip(times, result.busy_s, strict=True):
        assert busy == pytest.approx(m * (f + b))
        assert result.makespan_s >= busy - 1e-9
    one_trip = sum(f + b for f, b in times) + 2 * (p - 1) * p2p_s
    assert result.makespan_s >= one_trip - 1e-9


def test_slowest_stage_sets_the_pace():
    # It starts at 2, waits once for 1 (its first B), and two stages' B come after it.
    times = [*uniform(2), StageTimes(forward_s=2.0, backward_s=4.0), *uniform(1)]
    result = simulate(build_schedule("1f1b", 4, 64), times)
    assert result.makespan_s == pytest.approx(2.0 + 1.0 + 64 * 6.0 + 4.0)


@pytest.mark.parametrize(
    "row", BUBBLES, ids=lambda row: f"p{row['stages']}-m{row['micro_batches']}"
)
def test_one_f_one_b_bubble_equals_the_published_one_to_four_digits(row):
    p, m = int(row["stages"]), int(row["micro_batches"])
    f, b, w, c = (float(row[key]) for key in ("TF_ms", "TB_ms", "TW_ms", "Tcomm_ms"))
    result = simulate(build_schedule("1f1b", p, m), uniform(p, f, b + w), c)
    assert result.bubble_fraction == pytest.approx(float(row["bubble_rate"]), abs=0.000_051)


def test_there_are_published_bubbles_to_compare_with():
    assert len(BUBBLES) == 6


def edit(schedule: Schedule, stage: int, change) -> Schedule:
    actions = list(schedule.ranks[stage])
    change(actions)
    ranks = list(schedule.ranks)
    ranks[stage] = tuple(actions)
    return dataclasses.replace(schedule, ranks=tuple(ranks))


def swap(first: Action, second: Action):
    def change(actions):
        i, j = actions.index(first), actions.index(second)
        actions[i], actions[j] = actions[j], actions[i]

    return change


def drop(action: Action):
    return lambda actions: actions.remove(action)


def move_first(action: Action):
    def change(actions):
        actions.remove(action)
        actions.insert(0, action)

    return change


def both(*changes):
    def change(actions):
        for each in changes:
            each(actions)

    return change


F, B = (lambda i: Action("F", i)), (lambda i: Action("B", i))
BROKEN = [
    (0, swap(F(0), B(0)), "stage 0: B0 comes before F0"),
    (1, drop(F(2)), "stage 1: send_forward(2) comes before F2"),
    (1, drop(B(3)), "stage 1: send_backward(3) comes before B3"),
    (2, lambda actions: actions.append(F(1)), "stage 2: F1 is there twice"),
    (2, lambda actions: actions.append(B(1)), "stage 2: B1 is there twice"),
    (0, lambda actions: actions.append(F(4)), "stage 0: F4 is beyond the 4 microbatches"),
    (0, drop(Action("send_forward", 1)), "stage 1: recv_forward(1) has no send on stage 0"),
    (1, drop(Action("recv_forward", 1)), "stage 1: F1 has no receive posted before it"),
    (2, drop(Action("send_backward", 0)), "stage 1: recv_backward(0) has no send on stage 2"),
    (1, drop(Action("recv_backward", 0)), "stage 1: B0 has no receive posted before it"),
    (2, lambda actions: actions.append(Action("send_forward", 0)),
     "stage 2: send_forward(0) has no stage 3"),
    (1, swap(Action("recv_forward", 0), Action("recv_forward", 1)),
     "stage 1: recv_forward(1) meets send_forward(0) of stage 0: a channel keeps its order"),
    (1, move_first(Action("send_forward", 0)), "stage 1: send_forward(0) comes before F0"),
    (2, both(drop(Action("recv_forward", 3)),
             lambda actions: actions.append(Action("recv_forward", 3))),
     "stage 2: F3 has no receive posted before it"),
    (0, drop(B(3)), "stage 0: B3 is missing"),
    (2, drop(F(3)), "stage 2: B3 comes before F3"),
    (2, lambda actions: actions.append(Action("recv_forward", 7)),
     "stage 2: recv_forward(7) has no send on stage 1"),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "change", "message"), BROKEN, ids=[row[2] for row in BROKEN])
def test_a_broken_schedule_is_named(stage, change, message):
    broken = edit(build_schedule("1f1b", 3, 4), stage, change)
    with pytest.raises(ScheduleError) as error:
        simulate(broken, uniform(3))
    assert str(error.value) == message


def test_stages_that_wait_for_each_other_are_a_deadlock():
    first = (
        Action("F", 0), Action("recv_backward", 0), Action("B", 0),
        Action("F", 1), Action("recv_backward", 1), Action("B", 1),
        Action("send_forward", 0), Action("send_forward", 1),
    )  # fmt: skip
    last = build_schedule("1f1b", 2, 2).ranks[1]
    schedule = Schedule(name="bad", num_stages=2, num_microbatches=2, ranks=(first, last))
    with pytest.raises(ScheduleError, match="deadlock: stage 0 waits at B0"):
        simulate(schedule, uniform(2))


def test_a_weight_gradient_action_is_timed_apart():
    ranks = ((Action("F", 0), Action("B", 0), Action("W", 0)),)
    schedule = Schedule(name="w", num_stages=1, num_microbatches=1, ranks=ranks)
    result = simulate(schedule, [StageTimes(forward_s=1, backward_s=2, weight_s=4)])
    assert result.makespan_s == 7
    assert result.peak_in_flight == (1,)


@pytest.mark.parametrize("name", CLASSIC)
@pytest.mark.parametrize(("p", "m"), [(1, 1), (1, 5), (4, 2), (4, 9), (7, 30)])
def test_the_quick_peak_is_that_of_the_whole_schedule(name, p, m):
    assert (
        peak_in_flight(name, p, m)
        == simulate(build_schedule(name, p, m), uniform(p)).peak_in_flight
    )


@pytest.mark.parametrize("name", [name for name in SCHEDULES if SCHEDULES[name].order])
@pytest.mark.parametrize(("p", "m"), [(1, 3), (3, 7), (4, 12)])
def test_a_named_schedule_is_simulated_without_its_transfers_all_the_same(name, p, m):
    schedule = build_schedule(name, p, m)
    times = [
        StageTimes(forward_s=1 + part % 3, backward_s=2.5, weight_s=0.7)
        for part in range(schedule.chain.num_parts)
    ]
    assert simulate_named(name, schedule.chain, m, times, 0.3) == simulate(schedule, times, 0.3)
