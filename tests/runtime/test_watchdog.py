"""Does a rank that takes no step end, with its stacks on disk, and does no other rank end?"""

from __future__ import annotations

import json
import threading

import pytest

from launcher.failure.causes import find_cause
from launcher.failure.hang import find_behind, read_stacks
from launcher.plan.patience import first_step_s, others_s
from launcher.plan.run_files import RunFiles
from launcher.runtime.process import Place
from launcher.runtime.pulse import SAVING_S, Pulse
from launcher.runtime.watchdog import Watchdog, put_aside
from launcher.runtime.worker import collective_timeout_s


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def files(tmp_path) -> RunFiles:
    made = RunFiles(root=tmp_path)
    made.logs.mkdir()
    return made


def place(rank: int, world_size: int = 1) -> Place:
    return Place(rank=rank, local_rank=rank, world_size=world_size, node=f"n{rank}")


def trained(clock: Clock, timeout_s: float | None = 1000.0) -> Pulse:
    """A pulse that has seen a step."""
    pulse = Pulse(timeout_s, clock)
    pulse.begin("training")
    pulse.step_done(1)
    return pulse


def overdue_after(pulse: Pulse, clock: Clock) -> float:
    """Seconds from now at which it begins to be overdue, by bisection."""
    start, low, high = clock.now, 0.0, 1e6
    while high - low > 0.5:
        clock.now = start + (low + high) / 2
        low, high = (low, (low + high) / 2) if pulse.is_overdue() else ((low + high) / 2, high)
    clock.now = start
    return high


def test_a_step_may_take_as_long_as_the_key_says(clock):
    assert overdue_after(trained(clock), clock) == pytest.approx(1000, abs=1)


def test_every_step_starts_the_clock_anew(clock):
    pulse = trained(clock)
    for step in range(2, 6):
        clock.now += 999
        assert not pulse.is_overdue()
        pulse.step_done(step)
    clock.now += 1001
    assert pulse.is_overdue()


@pytest.mark.parametrize("what", ["building", "loading", "training", "validation"])
def test_what_is_done_for_the_first_time_may_take_longer(clock, what):
    pulse = Pulse(1000.0, clock)
    pulse.begin(what)
    assert overdue_after(pulse, clock) == pytest.approx(first_step_s(1000.0), abs=1)


def test_a_validation_is_progress_batch_by_batch(clock):
    pulse = trained(clock)
    pulse.begin("validation")
    pulse.done("validation")
    clock.now += 900
    pulse.done("validation")
    clock.now += 900
    assert not pulse.is_overdue()
    clock.now += 200
    assert pulse.is_overdue()


def test_a_save_may_wait_for_a_slow_disk_and_no_longer_than_it_lasts(clock):
    pulse = trained(clock)
    with pulse.saving():
        assert overdue_after(pulse, clock) == pytest.approx(SAVING_S, abs=1)
    assert overdue_after(pulse, clock) == pytest.approx(1000, abs=1)


def test_without_a_timeout_nothing_hangs(clock):
    pulse = trained(clock, timeout_s=None)
    clock.now += 1e9
    assert not pulse.is_overdue()


@pytest.mark.parametrize("timeout_s", [1.0, 600.0, 1800.0, 1e5])
def test_a_collective_waits_longer_than_any_watchdog(timeout_s):
    longest = max(first_step_s(timeout_s), SAVING_S, timeout_s) + others_s(timeout_s)
    assert collective_timeout_s(timeout_s) > longest


def test_a_rank_that_hangs_leaves_its_stacks_its_step_and_a_reason(files, clock):
    pulse, codes = Pulse(5.0, clock), []
    pulse.begin("training")
    pulse.step_done(57)
    clock.now += 6
    stacks = files.logs / "hang_3.txt"
    Watchdog(files, place(3), pulse, stacks, codes.append).fire()
    assert codes == [1]
    (stuck,) = read_stacks(files.logs)
    assert (stuck.rank, stuck.node, stuck.steps) == (3, "n3", 57)
    assert any("test_watchdog.py" in frame for frame in stuck.frames)
    reason = json.loads(files.rank_error(3).read_text())
    assert reason["error"] == ("Hung: no step within 5 s after step 57; launch.hang_timeout_s=5")
    assert reason["stacks"] == "logs"
    assert find_cause(reason["error"]).kind == "hang"


def test_a_watchdog_ends_a_process_whose_clock_runs_out_and_only_then(files, clock):
    ended = threading.Event()
    pulse = trained(clock, timeout_s=1.0)
    dog = Watchdog(files, place(0), pulse, files.logs / "hang_0.txt", lambda code: ended.set())
    dog.start()
    assert not ended.wait(0.3)
    clock.now += 2
    assert ended.wait(30)
    assert dog.has_fired


def test_a_watchdog_that_was_stopped_ends_nothing(files, clock):
    ended = threading.Event()
    pulse = trained(clock, timeout_s=0.05)
    dog = Watchdog(files, place(0), pulse, files.logs / "hang_0.txt", lambda code: ended.set())
    dog.start()
    dog.stop()
    dog._thread.join(30)
    clock.now += 2
    assert not ended.is_set()


def test_a_process_that_was_suspended_gets_its_time_again(clock):
    pulse = trained(clock)
    clock.now += 5000
    pulse.forgive()
    assert overdue_after(pulse, clock) == pytest.approx(1000, abs=1)


def test_stacks_of_an_earlier_attempt_are_kept_and_not_taken_for_new_ones(files):
    stacks = files.logs / "hang_0.txt"
    stacks.write_text("old")
    put_aside(stacks)
    put_aside(stacks)  # nothing is there any more
    assert list(files.logs.glob("hang_*.txt")) == []
    assert [path.read_text() for path in files.logs.glob("earlier_*_hang_0.txt")] == ["old"]


def test_a_rank_that_sleeps_is_told_from_one_that_waits(files, clock):
    """Written by the real faulthandler: this thread is not in a collective."""
    pulse = trained(clock, timeout_s=5.0)
    files.rank_nodes.write_text('["n0"]')
    Watchdog(files, place(0), pulse, files.logs / "hang_0.txt", lambda code: None).fire()
    behind = find_behind(files, files.logs)
    assert behind is not None
    assert "it did not wait for others but was in " in behind.why
