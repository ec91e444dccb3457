"""metrics.jsonl of a run that continues, and of one whose disk is full."""

from __future__ import annotations

import json
import resource

import pytest

from launcher.runtime.metrics import append_lines, keep_before, typical_times


def lines(*steps: int) -> list[str]:
    return [json.dumps({"step": step, "loss": 1.0}) + "\n" for step in steps]


def test_the_steps_that_will_be_done_again_are_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(lines(0, 1, 2, 3)) + '{"step": 3, "checkpoint": "x"}\n')
    assert [entry["step"] for entry in keep_before(path, 2)] == [0, 1]
    assert path.read_text() == "".join(lines(0, 1))


@pytest.mark.parametrize("torn", ['{"step": 1, "lo', '{"step": 1}', "\0\0\0\0\n"])
def test_a_torn_last_line_is_cut_off(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(0)[0] + torn)
    assert len(keep_before(path, 9)) == 1
    assert path.read_text() == lines(0)[0]


def test_a_run_without_metrics_has_nothing_to_cut(tmp_path):
    assert keep_before(tmp_path / "metrics.jsonl", 3) == []


def test_lines_that_do_not_fit_on_the_disk_leave_no_half_of_them(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_lines(path, lines(0))
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            append_lines(path, lines(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    append_lines(path, lines(1, 2))
    assert [entry["step"] for entry in keep_before(path, 9)] == [0, 1, 2]


def test_a_step_is_timed_in_the_layout_that_ran_last_where_that_is_long_enough():
    earlier, own = [5.0] * 30, [2.0] * 10
    assert typical_times(own, earlier + own) == [2.0] * 9
    assert set(typical_times(own[:9], earlier + own[:9])) == {5.0, 2.0}
    assert typical_times([], []) == []
