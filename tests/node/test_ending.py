"""Does a start of a job end as it should: done, back to the queue, stopped or failed?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.failure.causes import CAUSES, UNKNOWN, find_cause
from launcher.node.ending import (
    Facts,
    Limits,
    Past,
    decide,
    failures_without_progress,
    is_final,
)

LIMITS = Limits(max_requeues=None, max_failures_without_progress=3, signal_seconds=120)
KILLED = Facts(
    exit_code=1, outcome=None, first_step=40, trained_step=70, saved_step=60,
    cause=find_cause("killed by signal SIGKILL"), error="rank 1 on n1: killed by signal SIGKILL",
)  # fmt: skip
"""A rank was killed after it had trained and saved."""
NO_STEP = replace(KILLED, first_step=60, trained_step=60)
MESSAGES = {
    "configuration": "ConfigError: parallelism.tp [unknown-key]: no such key",
    "not_a_number": "RunFailed: the loss is nan at step 7",
    "out_of_memory": "CUDA out of memory",
    "missing_file": "FileNotFoundError: x",
    "code": "ValueError: x",
    "disk_full": "No space left on device",
    "network": "connection reset by peer",
    "bad_gpu": "GPU is lost",
    "crashed": "killed by signal SIGSEGV",
}


def ended(facts: Facts, limits: Limits = LIMITS, **changes: object) -> tuple[str, str]:
    ending = decide(replace(facts, **changes), limits)  # type: ignore[arg-type]
    return ending.status, ending.reason


def by(kind: str, facts: Facts = KILLED) -> Facts:
    """The same end by another error."""
    cause = find_cause(MESSAGES[kind])
    assert cause.kind == kind
    return replace(facts, cause=cause, error=f"rank 1 on n1: {MESSAGES[kind]}")


def test_a_run_whose_steps_are_done_is_done_whatever_else_is_known():
    rest = {"is_cancelled": True, "is_preempted": True, "was_asked": True, "hung": True}
    assert ended(by("configuration"), outcome="done", **rest) == ("done", "finished")


def test_a_cancelled_job_does_not_come_back():
    rest = {"is_preempted": True, "was_asked": True, "left_s": 1.0}
    assert ended(KILLED, is_cancelled=True, **rest) == ("stopped", "cancelled")


@pytest.mark.parametrize(
    ("fact", "reason"),
    [
        ({}, "worker_failed"),
        ({"cause": None}, "unknown"),
        ({"cause": UNKNOWN}, "worker_failed"),
        ({"cause": find_cause("address already in use")}, "port"),
        ({"is_preempted": True}, "preempted"),
        ({"is_preempted": True, "was_asked": True, "outcome": "stopped"}, "preempted"),
        ({"was_asked": True, "left_s": 100.0}, "time_limit"),
        ({"outcome": "stopped", "left_s": 179.0}, "time_limit"),  # Slurm asks up to 60 s early
        ({"is_cut_off": True}, "node_failure"),
        ({"hung": True}, "hang"),
        ({"bad_nodes": ["n2"]}, "bad_node"),
    ],
)
def test_what_happens_to_a_job_sends_it_back_to_the_queue(fact, reason):
    assert ended(KILLED, **fact) == ("requeued", reason)


@pytest.mark.parametrize("left_s", [None, 3600.0])
def test_a_request_to_end_far_from_the_time_limit_is_a_persons(left_s):
    asked = {"was_asked": True, "outcome": "stopped", "left_s": left_s, "cause": None}
    assert ended(KILLED, **asked) == ("stopped", "cancelled")


# What is never tried again.


@pytest.mark.parametrize("kind", ["configuration", "not_a_number", "out_of_memory"])
@pytest.mark.parametrize("facts", [KILLED, NO_STEP])
def test_what_comes_again_whenever_it_comes_is_never_tried_again(kind, facts):
    ending = decide(by(kind, facts), LIMITS)
    assert ending.status == "failed"
    assert "not tried again" in ending.why
    assert MESSAGES[kind] in ending.why


@pytest.mark.parametrize("kind", ["missing_file", "disk_full", "code"])
def test_a_useless_error_is_final_only_before_the_first_step(kind):
    assert ended(by(kind, NO_STEP)) == ("failed", "configuration")
    assert ended(by(kind, KILLED)) == ("requeued", "worker_failed")


def test_a_lost_node_counts_before_what_its_loss_does_to_ranks_and_to_the_script():
    facts = replace(by("code", NO_STEP), is_cut_off=True, was_asked=True)
    assert ended(facts) == ("requeued", "node_failure")


def test_a_notice_does_not_hide_an_error_that_comes_again():
    facts = by("configuration", NO_STEP)
    assert ended(facts, is_preempted=True, was_asked=True) == ("failed", "configuration")


def test_a_directory_that_the_start_before_still_holds_is_no_reason_to_give_up():
    (cause,) = (cause for cause in CAUSES if cause.kind == "run_in_use")
    assert not is_final(cause, has_trained=False)


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.kind)
def test_no_cause_that_another_start_may_help_is_final(cause):
    if cause.again != "useless":
        assert not is_final(cause, has_trained=False)


# Nodes to stay away from.


def test_nodes_that_failed_their_checks_are_excluded():
    ending = decide(replace(KILLED, bad_nodes=["n2", "n3"]), LIMITS)
    assert ending.bad_nodes == ("n2", "n3")
    assert "n2, n3" in ending.why


def test_a_node_whose_gpu_is_broken_is_excluded_and_one_whose_process_crashed_is_not():
    assert decide(replace(by("bad_gpu"), failed_node="n2"), LIMITS).bad_nodes == ("n2",)
    assert decide(replace(by("crashed"), failed_node="n2"), LIMITS).bad_nodes == ()
    assert decide(by("bad_gpu"), LIMITS).bad_nodes == ()  # nobody knows which


# Limits.


def past(*reasons: str, first_step: int = 60) -> tuple[Past, ...]:
    return tuple(Past(reason=reason, first_step=first_step) for reason in reasons)


LOST = Past(reason="node_failure", first_step=20, lost=("n2",))
KILLED_WITHOUT_A_STEP = replace(
    NO_STEP, exit_code=137, cause=None, error="", nodes=("n1", "n2"), past=[LOST]
)


@pytest.mark.parametrize("exit_code", [137, 143])
def test_a_node_that_was_lost_and_came_back_to_kill_the_job_is_excluded(exit_code):
    ending = decide(replace(KILLED_WITHOUT_A_STEP, exit_code=exit_code), LIMITS)
    assert (ending.status, ending.reason, ending.bad_nodes) == ("requeued", "node_failure", ("n2",))
    assert "n2 had been lost" in ending.why


@pytest.mark.parametrize(
    "change",
    [{"nodes": ("n1", "n3")}, {"trained_step": 61}, {"exit_code": 1}, {"past": []}],
)
def test_a_kill_that_has_nothing_to_do_with_a_lost_node_excludes_none(change):
    ending = decide(replace(KILLED_WITHOUT_A_STEP, **change), LIMITS)
    assert (ending.reason, ending.bad_nodes) == ("unknown", ())


def test_failures_in_a_row_without_a_further_saved_step_end_the_run():
    lost = past("worker_failed", "node_failure")
    ending = decide(replace(NO_STEP, past=lost), LIMITS)
    assert (ending.status, ending.reason) == ("failed", "no_progress")
    assert "launch.max_failures_without_progress=3" in ending.why
    assert "killed by signal SIGKILL" in ending.why
    assert ended(NO_STEP, past=lost[1:]) == ("requeued", "worker_failed")


def test_a_saved_step_starts_the_count_anew():
    before = past(*["worker_failed"] * 9, first_step=40)
    assert failures_without_progress(replace(KILLED, past=before), "worker_failed") == 0
    assert failures_without_progress(replace(NO_STEP, past=before), "worker_failed") == 1
    assert ended(NO_STEP, past=before) == ("requeued", "worker_failed")


def test_what_the_queue_takes_for_itself_is_no_failure():
    assert ended(NO_STEP, is_preempted=True, past=past(*["preempted"] * 9)) == (
        "requeued",
        "preempted",
    )
    mixed = past("worker_failed", "preempted", "preempted")
    assert failures_without_progress(replace(NO_STEP, past=mixed), "hang") == 2


def test_a_time_limit_too_short_for_one_save_ends_the_run():
    facts = replace(NO_STEP, cause=None, was_asked=True, left_s=10.0)
    assert ended(facts, past=past("time_limit")) == ("requeued", "time_limit")
    assert ended(facts, past=past("time_limit", "time_limit")) == ("failed", "no_progress")


def test_a_run_is_requeued_as_often_as_is_allowed_and_then_can_be_resumed():
    limits = replace(LIMITS, max_requeues=2)
    before = past("preempted", "preempted", first_step=20)
    ending = decide(replace(KILLED, past=before, bad_nodes=["n2"]), limits)
    assert (ending.status, ending.reason) == ("stopped", "bad_node")
    assert "launch.max_requeues=2" in ending.why
    assert ending.bad_nodes == ("n2",)
    assert ended(KILLED, limits, past=before[1:]) == ("requeued", "worker_failed")
    assert ended(KILLED, replace(LIMITS, max_requeues=0)) == ("stopped", "worker_failed")


def test_progress_before_a_loss_that_is_not_a_number_does_not_bring_it_back():
    assert ended(by("not_a_number")) == ("failed", "worker_failed")
