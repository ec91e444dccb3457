"""Schedules: the order of work on each stage, before anything is timed."""

import pytest

from launcher.plan.schedule import Action, build_schedule

CLASSIC = ("1f1b", "gpipe", "naive")
GRID = [(p, m) for p in (1, 2, 3, 4, 7, 16) for m in (1, 2, 3, 5, 8, 17)]


def compute(schedule, stage):
    return "".join(str(a) for a in schedule.ranks[stage] if a.kind in ("F", "B", "W"))


def test_gpipe_does_all_forwards_then_all_backwards():
    schedule = build_schedule("gpipe", 2, 3)
    assert compute(schedule, 0) == compute(schedule, 1) == "F0F1F2B0B1B2"


def test_one_f_one_b_warms_up_by_the_stages_behind_it():
    schedule = build_schedule("1f1b", 3, 4)
    assert compute(schedule, 0) == "F0F1F2B0F3B1B2B3"
    assert compute(schedule, 1) == "F0F1B0F2B1F3B2B3"
    assert compute(schedule, 2) == "F0B0F1B1F2B2F3B3"


def test_one_f_one_b_with_fewer_microbatches_than_stages_is_all_warm_up():
    assert compute(build_schedule("1f1b", 4, 2), 0) == "F0F1B0B1"


def test_transfers_of_a_middle_stage_are_posted_early_and_sent_at_once():
    actions = [str(action) for action in build_schedule("1f1b", 3, 2).ranks[1]]
    assert actions == [
        "recv_forward(0)", "recv_forward(1)", "F0", "send_forward(0)",
        "recv_backward(0)", "F1", "send_forward(1)",
        "recv_backward(1)", "B0", "send_backward(0)", "B1", "send_backward(1)",
    ]  # fmt: skip


@pytest.mark.parametrize("name", CLASSIC)
@pytest.mark.parametrize(("p", "m"), GRID)
def test_every_microbatch_goes_forward_and_backward_once_on_every_stage(name, p, m):
    for actions in build_schedule(name, p, m).ranks:
        for kind in ("F", "B"):
            assert [a.microbatch for a in actions if a.kind == kind] == list(range(m))
        for index in range(m):
            assert actions.index(Action("F", index)) < actions.index(Action("B", index))


@pytest.mark.parametrize("name", CLASSIC)
@pytest.mark.parametrize(("p", "m"), GRID)
def test_sends_and_receives_of_neighbours_match_in_number_and_order(name, p, m):
    ranks = build_schedule(name, p, m).ranks

    def order(stage, kind):
        return [a.microbatch for a in ranks[stage] if a.kind == kind]

    for left, right in zip(range(p - 1), range(1, p), strict=True):
        assert order(left, "send_forward") == order(right, "recv_forward") == list(range(m))
        assert order(right, "send_backward") == order(left, "recv_backward") == list(range(m))
    assert not order(0, "recv_forward")
    assert not order(0, "send_backward")
    assert not order(p - 1, "send_forward")
    assert not order(p - 1, "recv_backward")


@pytest.mark.parametrize("name", CLASSIC)
@pytest.mark.parametrize(("p", "m"), GRID)
def test_a_receive_is_posted_before_and_at_most_one_compute_action_ahead(name, p, m):
    user = {"recv_forward": "F", "recv_backward": "B"}
    for actions in build_schedule(name, p, m).ranks:
        for position, action in enumerate(actions):
            if action.kind in user:
                use = actions.index(Action(user[action.kind], action.microbatch))
                between = [a for a in actions[position:use] if a.kind in ("F", "B")]
                assert use > position
                assert len(between) <= 1
