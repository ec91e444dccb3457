"""What is asked of one rank, all ranks do after the same step."""

from __future__ import annotations

import os
import signal

import torch

from launcher.runtime.control import Control, Wish
from tests.runtime.spawn import run_ranks

CPU = torch.device("cpu")


def listen_and_step(rank: int, asked: int, at_step: int, num_steps: int) -> list[tuple[bool, bool]]:
    control = Control(CPU, rank, 3)
    control.listen()
    wishes = []
    for step in range(num_steps):
        if rank == asked and step == at_step:
            os.kill(os.getpid(), signal.SIGTERM)
        wishes.append(control.agree(is_last=step == num_steps - 1))
    return [(wish.stop, wish.save) for wish in wishes]


def test_a_signal_to_one_rank_stops_all_after_the_next_step():
    found = run_ranks(3, listen_and_step, 2, 3, 6)
    assert found == [[(False, False)] * 4 + [(True, False)] * 2] * 3


def test_a_request_is_answered_once_and_its_file_is_gone(tmp_path):
    request, now = tmp_path / ".save_now", 0.0
    control = Control(CPU, 0, 1, request=request, clock=lambda: now)
    assert control.agree() == Wish()
    request.touch()
    now = 10.0
    assert control.agree() == Wish(), "seen now, agreed on with the next step"
    assert control.agree() == Wish(save=True)
    assert not request.exists()
    now = 20.0
    assert [control.agree() for _ in range(3)] == [Wish()] * 3


def test_minutes_count_from_the_last_save_on_the_first_ranks_clock_only():
    now = 0.0
    first, other = (Control(CPU, rank, 1, every_s=60.0, clock=lambda: now) for rank in range(2))
    seen = []
    for now in (0.0, 59.0, 61.0, 62.0, 63.0, 121.0, 122.0, 123.0, 124.0):  # noqa: B007
        seen.append(first.agree().save)
        assert not other.agree().save
    assert seen == [False, False, False, True, False, False, False, True, False]


def test_a_save_for_another_reason_starts_the_clock_anew():
    now = 0.0
    control = Control(CPU, 0, 1, every_s=60.0, clock=lambda: now)
    now = 50.0
    control.saved()
    now = 70.0
    assert not any(control.agree().save for _ in range(3))
