"""What a plan learns from the table of finished runs: the nearest ones, on the same hardware."""

import json
from dataclasses import replace

import pytest

from launcher.plan.build import build_plan
from launcher.plan.learned import MOST_RUNS, learn
from launcher.plan.own_runs import header_line, own_row, row_line
from launcher.plan.records import Plan
from launcher.plan.report import WIDTH, render_report
from tests.factory import make_run


def plan(**groups) -> Plan:
    layout = {"tp": 2, "pp": 2, "dp": 1} | groups.pop("parallelism", {})
    return build_plan(make_run(parallelism=layout, **groups))


HERE = plan()


def row(answer: Plan, times: float, memory: float = 1.0, name: str = "run", **cells: str) -> str:
    """The line of a run that took so many times what was predicted."""
    measured = {
        "step_s": times * answer.time.step_s,
        "peak_bytes": [int(memory * answer.memory.peak_bytes)],
    }
    made = own_row(answer.run, answer.layout, answer.to_json(), measured, name)
    return row_line(made | cells)


def table(tmp_path, *lines: str):
    path = tmp_path / "measured_runs.csv"
    path.write_text(header_line() + "".join(lines))
    return path


def elsewhere(**changes) -> Plan:
    """The same plan on a device with other facts."""
    hardware = HERE.run.hardware
    gpu = hardware.gpu.model_copy(update=changes)
    run = HERE.run.model_copy(update={"hardware": hardware.model_copy(update={"gpu": gpu})})
    return replace(HERE, run=run)


def test_the_median_of_earlier_runs_corrects_the_prediction(tmp_path):
    lines = [row(HERE, times, memory) for times, memory in ((1.1, 0.9), (1.3, 1.02), (2.0, 1.0))]
    learned = learn(HERE, table(tmp_path, *lines))
    assert learned is not None
    assert learned.runs == 3
    assert learned.alike == "of this very layout"
    assert learned.step_ratio == pytest.approx(1.3)
    assert learned.step_ratio_range == pytest.approx((1.1, 2.0))
    assert learned.step_s == pytest.approx(1.3 * HERE.time.step_s)
    assert learned.tokens_per_s == pytest.approx(HERE.time.tokens_per_s / 1.3)
    # Too much memory ends a run: the worst case counts.
    assert learned.memory_ratio == pytest.approx(1.02, rel=1e-6)
    assert learned.peak_bytes == pytest.approx(1.02 * HERE.memory.peak_bytes, rel=1e-6)


def test_the_most_similar_runs_count_and_no_others(tmp_path):
    deeper = HERE.run.model.model_copy(update={"num_layers": 8})
    other_model = replace(HERE, run=HERE.run.model_copy(update={"model": deeper}))
    other_batch = plan(train={"micro_batch_size": 1, "num_microbatches": 8})
    other_axes = plan(parallelism={"tp": 1, "pp": 1, "dp": 2})
    very = row(HERE, 1.5)
    lines = [row(other_axes, 4.0), row(other_model, 3.0), row(other_batch, 2.0), very]
    for expected, alike in (
        (1.5, "of this very layout"),
        (2.0, "of this model over the same axes"),
        (3.0, "on this hardware over the same axes"),
        (4.0, "on this hardware"),
    ):
        learned = learn(HERE, table(tmp_path, *lines))
        assert learned is not None, alike
        assert (learned.runs, learned.alike) == (1, alike)
        assert learned.step_ratio == pytest.approx(expected)
        lines.pop()
    assert learn(HERE, table(tmp_path)) is None


def test_runs_of_other_hardware_say_nothing(tmp_path):
    assert learn(HERE, table(tmp_path, row(elsewhere(name="another"), 1.5))) is None
    # What measured kernels predict is another thing.
    made = HERE.run.model_dump(mode="json")
    made["hardware"]["gpu"]["kernels"] = [{"kind": "memory"}]
    line = row(HERE, 1.5, run_json=json.dumps(made))
    assert learn(HERE, table(tmp_path, line)) is None


def test_a_cpus_share_of_another_number_of_processes_is_the_same_hardware(tmp_path):
    eight = elsewhere(name="cpu (2 cores / 8 processes)")
    four = elsewhere(name="cpu (2 cores / 4 processes)")
    assert learn(four, table(tmp_path, row(eight, 1.5))) is not None


def test_the_newest_runs_count(tmp_path):
    lines = [row(HERE, 9.0)] * 30 + [row(HERE, 1.2)] * MOST_RUNS
    learned = learn(HERE, table(tmp_path, *lines))
    assert learned is not None
    assert (learned.runs, learned.step_ratio) == (MOST_RUNS, pytest.approx(1.2))


@pytest.mark.parametrize(
    "cells",
    [
        {"step_time_s": ""}, {"step_time_s": "nan"}, {"predicted_step_s": "0"},
        {"predicted_step_s": "inf"}, {"mem_gib": "much"}, {"run_json": "{"}, {"run_json": "[]"},
        {"run_json": '{"hardware": {"gpu": null}}'}, {"predicted_mem_gib": "-1"},
        {"run_json": "[" * 100_000}, {"mem_gib": "1e306"}, {"step_time_s": "1e-320"},
    ],
)  # fmt: skip
def test_a_broken_row_is_passed_over(tmp_path, cells):
    assert learn(HERE, table(tmp_path, row(HERE, 7.0, **cells))) is None
    learned = learn(HERE, table(tmp_path, row(HERE, 7.0, **cells), row(HERE, 1.5)))
    assert learned is not None
    assert (learned.runs, learned.step_ratio) == (1, pytest.approx(1.5))


@pytest.mark.parametrize("content", [b"", b"\0\1\2", b"\xff\xfe", b"id,gpu\nx,y\n"])
def test_a_file_that_is_no_such_table_says_nothing(tmp_path, content):
    path = tmp_path / "measured_runs.csv"
    path.write_bytes(content)
    assert learn(HERE, path) is None
    assert learn(HERE, tmp_path / "absent.csv") is None


def test_the_report_and_the_document_say_it(tmp_path):
    learned = learn(HERE, table(tmp_path, row(HERE, 1.25), row(HERE, 1.35)))
    answer = replace(HERE, learned=learned)
    report = render_report(answer)
    said = " ".join(report.split())
    assert "learned 2 earlier runs of this very layout took 1.30 (1.25 to 1.35) times the" in said
    assert max(map(len, report.splitlines())) <= WIDTH
    assert answer.to_json()["learned"]["step_ratio"] == pytest.approx(1.3)
    assert HERE.to_json()["learned"] is None
    assert "learned" not in render_report(HERE)
