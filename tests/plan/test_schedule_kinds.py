"""All schedules over grids: complete, in order, without deadlock, within their memory."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.plan.schedule import SCHEDULES, Action, ScheduleError, build_schedule
from launcher.plan.schedule_orders import round_sizes
from launcher.plan.simulate import StageTimes, peak_in_flight, simulate
from tests.plan.work import growth

durations = st.floats(0.05, 4.0)
CASES = [(name, v) for name, recipe in sorted(SCHEDULES.items())
         for v in ((1, 2, 3) if recipe.chunks is None else (recipe.chunks,))]  # fmt: skip


def equal(count, f=1.0, b=1.0, w=1.0):
    return [StageTimes(forward_s=f, backward_s=b, weight_s=w)] * count


def fewest(name, p):
    return max(1, SCHEDULES[name].microbatches_per_stage * p)


@settings(deadline=None, max_examples=250)
@given(st.sampled_from(CASES), st.integers(1, 7), st.integers(0, 20), durations, durations,
       durations, st.floats(0, 2))  # fmt: skip
def test_every_schedule_runs_and_none_is_faster_than_its_work(case, p, extra, f, b, w, p2p_s):
    name, v = case
    m, times = fewest(name, p) + extra, equal(p * v, f, b, w)
    schedule = build_schedule(name, p, m, v, times=times, p2p_s=p2p_s)
    result = simulate(schedule, times, p2p_s)  # checks completeness, order, channels, deadlock
    work = f + b + (w if SCHEDULES[name].splits_backward else 0)
    assert result.busy_s == pytest.approx([m * v * work] * p)
    hops = (p - 1) if schedule.placement == "v" else 0
    hops = 2 * hops if hops else (p * v - 1 if p > 1 else 0)
    assert result.makespan_s >= p * v * (f + b) + 2 * hops * p2p_s - 1e-9
    assert max(result.peak_in_flight) <= m * v


@pytest.mark.parametrize(("name", "v"), CASES)
@pytest.mark.parametrize("p", [1, 2, 4, 5])
@pytest.mark.parametrize("extra", [0, 1, 6, 13])
def test_order_on_each_stage_is_forward_backward_weights(name, v, p, extra):
    m = fewest(name, p) + extra
    kinds = "FBW" if SCHEDULES[name].splits_backward else "FB"
    for actions in build_schedule(name, p, m, v).ranks:
        at = {action: position for position, action in enumerate(actions)}
        for i in range(m):
            for chunk in range(v):
                places = [at[Action(kind, i, chunk)] for kind in kinds]
                assert places == sorted(places)


@pytest.mark.parametrize("p", [1, 2, 4, 8])
@pytest.mark.parametrize("m", [1, 3, 8, 21])
def test_naive_has_one_microbatch_in_flight(p, m):
    times = [StageTimes(forward_s=1.0, backward_s=2.0)] * p
    result = simulate(build_schedule("naive", p, m), times, 0.5)
    assert result.makespan_s == pytest.approx(m * (3 * p + 2 * 0.5 * (p - 1)))
    assert result.peak_in_flight == (1,) * p


@pytest.mark.parametrize(("p", "v"), [(2, 2), (4, 2), (4, 3), (8, 4)])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_interleaving_divides_the_bubble_by_the_chunks(p, v, rounds):
    m = p * rounds
    result = simulate(build_schedule("interleaved_1f1b", p, m, v), equal(p * v, 1.0, 2.0))
    assert result.makespan_s == pytest.approx(3 * (m * v + p - 1))


@pytest.mark.parametrize(("p", "m"), [(4, 4), (4, 7), (4, 9), (3, 11), (8, 30)])
def test_uneven_rounds_are_at_least_as_long_as_the_pipeline(p, m):
    sizes = round_sizes(p, m)
    assert sum(sizes) == m
    assert min(sizes) >= p
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("p", [1, 2, 4, 8])
@pytest.mark.parametrize("extra", [0, 5, 24])
def test_zero_bubble_h1_has_a_third_of_the_bubble_in_the_memory_of_1f1b(p, extra):
    m = 2 * p + extra
    result = simulate(build_schedule("zb_h1", p, m), equal(p))
    assert result.makespan_s == pytest.approx(3 * m + (p - 1))
    assert max(result.peak_in_flight) == p


@pytest.mark.parametrize("p", [1, 2, 4, 8])
def test_zero_bubble_h2_and_v_have_none_where_all_take_equally_long(p):
    m = 4 * p
    twice = simulate(build_schedule("zb_h2", p, m), equal(p))
    assert twice.unsynchronised_bubble_fraction == pytest.approx(0, abs=1e-9)
    assert max(twice.peak_in_flight) == 2 * p - 1
    vee = simulate(build_schedule("zb_v", p, m), equal(2 * p))
    assert vee.unsynchronised_bubble_fraction == pytest.approx(0, abs=1e-9)
    assert max(vee.peak_in_flight) == 2 * p  # halves of 1F1B's


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 8), st.integers(1, 40), durations, durations, durations, st.floats(0, 1))
def test_made_for_its_times_is_never_slower_than_h1_and_keeps_its_limit(p, m, f, b, w, p2p_s):
    times = equal(p, f, b, w)
    known = simulate(build_schedule("zb_h1", p, m), times, p2p_s)
    made = simulate(build_schedule("zb_1p", p, m, times=times, p2p_s=p2p_s), times, p2p_s)
    assert made.makespan_s <= known.makespan_s * (1 + 1e-8)
    assert max(made.peak_in_flight) <= p
    twice = simulate(build_schedule("zb_2p", p, m, times=times, p2p_s=p2p_s), times, p2p_s)
    assert max(twice.peak_in_flight) <= 2 * p


def test_uneven_stages_are_served_by_what_is_made_for_them():
    times = [*equal(3), StageTimes(forward_s=2.0, backward_s=2.0, weight_s=2.0)]
    known = simulate(build_schedule("zb_h1", 4, 16), times)
    made = simulate(build_schedule("zb_1p", 4, 16, times=times), times)
    assert made.makespan_s <= known.makespan_s


@pytest.mark.parametrize("p", [2, 4])
def test_dualpipev_says_how_many_microbatches_it_needs(p):
    with pytest.raises(ScheduleError, match=f"at least {2 * p} microbatches"):
        build_schedule("dualpipev", p, 2 * p - 1)


@pytest.mark.parametrize(("name", "v"), [("1f1b", 2), ("zb_v", 3), ("zb_h2", 2), ("zb_v", 1)])
def test_a_wrong_number_of_chunks_is_refused(name, v):
    with pytest.raises(ScheduleError, match="per stage, not"):
        build_schedule(name, 4, 8, v)


@pytest.mark.parametrize(("name", "v"), CASES)
@pytest.mark.parametrize(("p", "m"), [(1, 2), (4, 9), (3, 30)])
def test_the_quick_peak_is_that_of_the_whole_schedule(name, v, p, m):
    whole = simulate(build_schedule(name, p, m, v), equal(p * v)).peak_in_flight
    assert peak_in_flight(name, p, m, v) == whole


@pytest.mark.parametrize("name", ["zb_h1", "zb_v", "interleaved_1f1b"])
@pytest.mark.parametrize("kind", ["F", "B", "W", "send_forward", "recv_backward"])
def test_whatever_is_dropped_is_missed(name, kind):
    schedule = build_schedule(name, 3, 6, 2)
    for stage in range(3):
        positions = [i for i, action in enumerate(schedule.ranks[stage]) if action.kind == kind]
        for position in positions[::4]:
            actions = schedule.ranks[stage]
            ranks = list(schedule.ranks)
            ranks[stage] = (*actions[:position], *actions[position + 1 :])
            with pytest.raises(ScheduleError):
                simulate(replace(schedule, ranks=tuple(ranks)), equal(6))


@pytest.mark.parametrize(("name", "v"), [
    ("naive", 1), ("gpipe", 1), ("1f1b", 1), ("zb_h1", 1), ("zb_h2", 1), ("interleaved_1f1b", 2),
    ("zb_v", 2), ("dualpipev", 2), ("zb_1p", 1), ("zb_2p", 1),
])  # fmt: skip
def test_the_work_for_four_times_the_microbatches_is_four_times_the_work(name, v):
    def work(num_microbatches: int) -> None:
        simulate(build_schedule(name, 16, num_microbatches, v), equal(16 * v))

    assert growth(work, 64, 4) < 4.4
