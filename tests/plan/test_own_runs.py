"""A finished run's row: the common columns are filled, and the backtest predicts that very run."""

import csv
import json
import os
from threading import Thread

import pytest

from launcher.plan.backtest import predict_row
from launcher.plan.backtest_rows import Facts
from launcher.plan.backtest_table import read_table
from launcher.plan.build import build_plan
from launcher.plan.own_runs import header_line, own_row, row_line
from launcher.plan.own_table import append_run, has_row, read_last_rows
from launcher.plan.run_files import RunFiles
from tests.factory import make_run

PLAN = build_plan(make_run(parallelism={"tp": 2, "pp": 2, "dp": 1}))
ANSWER = (PLAN.run, PLAN.layout, PLAN.to_json())
MEASURED = {"step_s": 0.5, "peak_bytes": [2**28, 2**29]}


def test_the_row_of_a_run_is_predicted_as_its_plan_was():
    row = own_row(*ANSWER, MEASURED, "first")
    (read,) = read_table(header_line() + row_line(row), "measured_runs.csv")
    answer = predict_row(read, Facts())
    assert answer.predicted_step_s == PLAN.time.step_s == float(row["predicted_step_s"])
    assert answer.predicted_memory_bytes == PLAN.memory.peak_bytes
    assert (answer.measured_step_s, answer.measured_memory_bytes) == (0.5, 2**29)


def test_a_row_of_another_version_falls_back_on_its_cells():
    row = own_row(*ANSWER, MEASURED, "old") | {"run_json": '{"model": 1}'}
    assert predict_row(row, Facts()).status == "unsupported"


def test_runs_append_to_one_table_beside_their_directories(tmp_path):
    for name in ("a", "b"):
        path = append_run(RunFiles(root=tmp_path / name), *ANSWER, MEASURED)
    assert path == tmp_path / "measured_runs.csv"
    rows = read_table(path.read_text(), "t")
    assert [row["id"] for row in rows] == ["a", "b"]
    assert [has_row(RunFiles(root=tmp_path / name)) for name in "abc"] == [True, True, False]
    assert float(rows[0]["mem_gib"]) == pytest.approx(0.5)


def test_a_table_with_other_columns_gets_the_cells_that_it_has_columns_for(tmp_path):
    table = tmp_path / "measured_runs.csv"
    table.write_text("id,weather,step_time_s,gpu,gpus\nold,rain,1.0,H100,8\n")
    assert append_run(RunFiles(root=tmp_path / "new"), *ANSWER, MEASURED) == table
    rows = list(csv.DictReader(table.open()))
    assert [(row["id"], row["weather"], row["step_time_s"]) for row in rows] == [
        ("old", "rain", "1.0"), ("new", "", "0.5"),
    ]  # fmt: skip
    assert None not in rows[1]


def test_a_folder_that_cannot_be_written_leaves_the_run_finished(tmp_path):
    (tmp_path / "measured_runs.csv").mkdir()
    assert append_run(RunFiles(root=tmp_path / "run"), *ANSWER, MEASURED) is None


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\n", b"\n", b"name;city\nx;y\n", b"\0\1", b"x" * 2**21]
)
def test_a_file_that_is_no_such_table_is_left_as_it_is(tmp_path, content):
    table = tmp_path / "measured_runs.csv"
    table.write_bytes(content)
    assert append_run(RunFiles(root=tmp_path / "run"), *ANSWER, MEASURED) is None
    assert table.read_bytes() == content
    assert not any("run_json" in row for row in read_last_rows(table))


def test_an_empty_file_becomes_a_table(tmp_path):
    """Another run may have made it a moment ago."""
    (tmp_path / "measured_runs.csv").touch()
    path = append_run(RunFiles(root=tmp_path / "run"), *ANSWER, MEASURED)
    assert [row["id"] for row in read_last_rows(path)] == ["run"]


def test_a_row_that_was_torn_takes_no_other_one_along(tmp_path):
    table = tmp_path / "measured_runs.csv"
    whole = row_line(own_row(*ANSWER, MEASURED, "first"))
    table.write_text(header_line() + whole + whole[: len(whole) // 2])
    append_run(RunFiles(root=tmp_path / "last"), *ANSWER, MEASURED)
    rows = [row for row in read_last_rows(table) if row.get("run_json", "").endswith("}")]
    assert [row["id"] for row in rows] == ["first", "last"]


def test_a_folder_whose_name_is_no_text_has_a_row(tmp_path):
    path = append_run(RunFiles(root=tmp_path / "run\udcff"), *ANSWER, MEASURED)
    assert [row["id"] for row in read_last_rows(path)] == ["run\\udcff"]


def test_runs_that_end_together_share_one_header(tmp_path):
    ends = [
        Thread(target=append_run, args=(RunFiles(root=tmp_path / str(end)), *ANSWER, MEASURED))
        for end in range(8)
    ]
    for end in ends:
        end.start()
    for end in ends:
        end.join()
    rows = read_table((tmp_path / "measured_runs.csv").read_text(), "t")
    assert sorted(row["id"] for row in rows) == [str(end) for end in range(8)]


def test_of_a_long_table_the_last_rows_are_read(tmp_path):
    table = tmp_path / "measured_runs.csv"
    lines = [row_line(own_row(*ANSWER, MEASURED, f"run{number}")) for number in range(900)]
    table.write_text(header_line() + "".join(lines))
    assert os.path.getsize(table) > 2 * 2**20
    names = [row["id"] for row in read_last_rows(table)]
    assert 100 < len(names) < 500
    assert names == [f"run{number}" for number in range(900 - len(names), 900)]
    assert json.loads(read_last_rows(table)[0]["run_json"])
