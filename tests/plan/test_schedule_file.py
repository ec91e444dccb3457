"""Schedules in files: read, checked, and refused with a reason."""

import pytest

from launcher.plan.schedule import SCHEDULES, ScheduleError, build_schedule
from launcher.plan.schedule_file import parse_schedule, write_schedule
from launcher.plan.simulate import StageTimes, simulate

ONE_F_ONE_B = "# two stages\nF0, F1, B0, B1\nF0, B0, F1, B1\n"


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize(("p", "m"), [(1, 2), (2, 4), (4, 8), (3, 7)])
def test_what_is_written_is_read_back(name, p, m):
    schedule = build_schedule(name, p, m)
    read = parse_schedule("mine.csv", write_schedule(schedule))
    assert read.ranks == schedule.ranks
    assert (read.num_chunks, read.num_microbatches) == (schedule.num_chunks, m)


def test_json_and_csv_say_the_same():
    text = '{"stages": [["F0", "F1", "B0", "B1"], ["F0", "B0", "F1", "B1"]]}'
    assert parse_schedule("a.json", text).ranks == parse_schedule("a.csv", ONE_F_ONE_B).ranks
    assert parse_schedule("a.csv", ONE_F_ONE_B).ranks == build_schedule("1f1b", 2, 2).ranks


def test_a_v_turns_back_on_the_last_stage():
    schedule = parse_schedule("v.csv", "# placement: v\nF0,F0.1,B0.1,B0\nF0,F0.1,B0.1,B0\n")
    sends = [str(action) for action in schedule.ranks[1] if action.kind.startswith("send")]
    assert sends == ["send_forward(0.1)", "send_backward(0)"]
    simulate(schedule, [StageTimes(forward_s=1, backward_s=1)] * 4)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "the file has no stage"),
        ("a.csv", "F0, X1, B0", "stage 0: 'X1' is no action"),
        ("a.csv", "F0, B00", "stage 0: 'B00' is no action"),
        ("a.csv", "F0,,B0", "stage 0: '' is no action"),
        ("a.csv", "F0", "stage 0: B0 is missing"),
        ("a.csv", "F1, B1", "stage 0: F0 is missing"),
        ("a.csv", "F0, B0\nF0, B0, F1, B1", "stage 0: F1 is missing"),
        ("a.csv", "F0, F0, B0", "stage 0: F0 is there twice"),
        ("a.csv", "B0, F0", "stage 0: B0 comes before F0"),
        ("a.csv", "F0, W0, B0", "stage 0: W0 comes before B0"),
        ("a.csv", "F0, B0, W0\nF0, B0", "stage 1: W0 is missing"),
        (
            "a.csv",
            "F0, B0, F1, B1\nF1, B1, F0, B0",
            "deadlock: stage 0 waits at B0 for stage 1, stage 1 waits at F1 for stage 0",
        ),
        ("a.csv", "# placement: w\nF0, B0", "placement is loop or v, not 'w'"),
        ("a.json", "{", "not JSON"),
        ("a.json", "[]", 'an object with "stages"'),
        ("a.json", '{"stages": [[1]]}', "stage 0: a list of actions"),
        ("a.json", '{"stages": [["F0", "B0"]], "x": 1}', "no such key: 'x'"),
    ],
)
def test_a_broken_file_is_refused_with_its_reason(name, text, message):
    with pytest.raises(ScheduleError) as error:
        parse_schedule(name, text)
    assert message in str(error.value)
