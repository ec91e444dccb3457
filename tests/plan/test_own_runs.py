"""A finished run's row: the common columns are filled, and the backtest predicts that very run."""

import json

import pytest

from launcher.plan.backtest import predict_row
from launcher.plan.backtest_rows import Facts
from launcher.plan.backtest_table import read_table
from launcher.plan.build import build_plan
from launcher.plan.own_runs import header_line, own_row, row_line
from launcher.plan.run_files import RunFiles
from launcher.submit.own_runs import append_run
from tests.factory import make_run

PLAN = build_plan(make_run(parallelism={"tp": 2, "pp": 2, "dp": 1}))
MEASURED = {"step_s": 0.5, "peak_bytes": [2**28, 2**29]}


def test_the_row_of_a_run_is_predicted_as_its_plan_was():
    row = own_row(PLAN, MEASURED, "first")
    (read,) = read_table(header_line() + row_line(row), "measured_runs.csv")
    answer = predict_row(read, Facts())
    assert answer.predicted_step_s == PLAN.time.step_s
    assert answer.predicted_memory_bytes == PLAN.memory.peak_bytes
    assert (answer.measured_step_s, answer.measured_memory_bytes) == (0.5, 2**29)


def test_a_row_of_another_version_falls_back_on_its_cells():
    row = own_row(PLAN, MEASURED, "old") | {"run_json": '{"model": 1}'}
    assert predict_row(row, Facts()).status == "unsupported"


def test_runs_append_to_one_table_beside_their_directories(tmp_path):
    for name in ("a", "b"):
        files = RunFiles(root=tmp_path / name)
        files.root.mkdir()
        files.summary.write_text(json.dumps({"measured": MEASURED}))
        path = append_run(files, PLAN)
    assert path == tmp_path / "measured_runs.csv"
    rows = read_table(path.read_text(), "t")
    assert [row["id"] for row in rows] == ["a", "b"]
    assert float(rows[0]["mem_gib"]) == pytest.approx(0.5)


def test_a_folder_that_cannot_be_written_leaves_the_run_finished(tmp_path):
    files = RunFiles(root=tmp_path / "gone" / "run")
    files.root.mkdir(parents=True)
    files.summary.write_text(json.dumps({"measured": MEASURED}))
    (tmp_path / "gone" / "measured_runs.csv").mkdir()
    assert append_run(files, PLAN) is None
