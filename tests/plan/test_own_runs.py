"""A finished run's row: the common columns are filled, and the backtest predicts that very run."""

import json
from types import SimpleNamespace

import pytest

from launcher.cli import main
from launcher.config.load import load_run
from launcher.errors import ConfigError
from launcher.plan.backtest import predict_row
from launcher.plan.backtest_rows import Facts
from launcher.plan.backtest_table import read_table
from launcher.plan.build import build_plan
from launcher.plan.own_runs import header_line, own_row, row_line
from launcher.plan.run_files import RunFiles
from launcher.runtime.own_runs import append_run
from tests.factory import make_run

PLAN = build_plan(make_run(parallelism={"tp": 2, "pp": 2, "dp": 1}))
MEASURED = {"step_s": 0.5, "peak_bytes": [2**28, 2**29]}
DONE = {"outcome": {"status": "done"}, "measured": MEASURED}


def frozen(plan):
    return SimpleNamespace(run=plan.run, layout=plan.layout, plan=plan.to_json())


def row_of(plan, name="first", measured=MEASURED):
    return own_row(plan.run, plan.layout, plan.to_json(), measured, name)


def append(folder, name, plan=PLAN, summary=DONE):
    files = RunFiles(root=folder / name)
    files.root.mkdir(parents=True)
    files.summary.write_text(json.dumps(summary))
    return append_run(files, frozen(plan))


def test_the_row_of_a_run_is_predicted_as_its_plan_was():
    row = row_of(PLAN)
    (read,) = read_table(header_line() + row_line(row), "measured_runs.csv")
    answer = predict_row(read, Facts())
    assert answer.predicted_step_s == PLAN.time.step_s
    assert answer.predicted_memory_bytes == PLAN.memory.peak_bytes
    assert (answer.measured_step_s, answer.measured_memory_bytes) == (0.5, 2**29)


def test_a_row_of_another_version_falls_back_on_its_cells():
    row = row_of(PLAN) | {"run_json": '{"model": 1}'}
    assert predict_row(row, Facts()).status == "unsupported"


def test_runs_append_to_one_table_beside_their_directories(tmp_path):
    path = [append(tmp_path, name) for name in ("a", "b")][-1]
    assert path == tmp_path / "measured_runs.csv"
    rows = read_table(path.read_text(), "t")
    assert [row["id"] for row in rows] == ["a", "b"]
    assert float(rows[0]["mem_gib"]) == pytest.approx(0.5)


def test_a_folder_that_cannot_be_written_leaves_the_run_finished(tmp_path):
    (tmp_path / "measured_runs.csv").mkdir()
    assert append(tmp_path, "run") is None


@pytest.mark.parametrize("summary", [
    {"outcome": {"status": "stopped"}, "measured": MEASURED},
    {"outcome": {"status": "done"}, "measured": {"step_s": None, "peak_bytes": [1]}},
])  # fmt: skip
def test_a_run_that_did_not_finish_or_logged_no_step_has_no_row(tmp_path, summary):
    assert append(tmp_path, "run", summary=summary) is None
    assert not (tmp_path / "measured_runs.csv").exists()


def test_a_table_of_an_earlier_version_keeps_its_columns(tmp_path):
    (tmp_path / "measured_runs.csv").write_text("id,gpu,gpus,step_time_s\n")
    rows = read_table(append(tmp_path, "a").read_text(), "t")
    assert [(row["id"], row["step_time_s"]) for row in rows] == [("a", "0.5")]


# What the next plan learns.

H100 = ("hardware=h100x8", "model=llama3_8b", "parallelism=zero1", "train.sequence_length=4096")


def h100_plan(*more):
    return build_plan(load_run([*H100, *more]).run)


def learned(tmp_path, *ratios, more=()):
    plan = h100_plan(*more)
    for number, ratio in enumerate(ratios):
        measured = MEASURED | {"step_s": ratio * plan.time.step_s}
        append(tmp_path, f"{number}-{len(list(tmp_path.iterdir()))}", plan,
               DONE | {"measured": measured})  # fmt: skip
    return f"hardware.measured_runs={tmp_path / 'measured_runs.csv'}"


def test_the_next_plan_takes_as_much_longer_as_the_runs_on_these_devices_did(tmp_path):
    table = learned(tmp_path, 1.5, 9.0, 1.4)
    before, after = h100_plan(), h100_plan(table)
    assert after.run.hardware.slowdown == pytest.approx(1.5, rel=1e-3)
    assert after.time.step_s == pytest.approx(1.5 * before.time.step_s, rel=0.01)
    assert after.time.mfu == pytest.approx(before.time.mfu / 1.5, rel=0.01)
    assert after.memory == before.memory
    assert any(f"hardware.slowdown=1.5: as runs in {tmp_path}" in line for line in
               load_run([*H100, table]).decisions)  # fmt: skip
    assert after.run.hardware.gpu == before.run.hardware.gpu


def test_a_run_that_had_learned_counts_on_top_of_what_it_knew(tmp_path):
    table = learned(tmp_path, 2.0)
    for _ in range(8):
        plan = h100_plan(table)
        append(tmp_path, f"later-{len(list(tmp_path.iterdir()))}", plan,
               DONE | {"measured": MEASURED | {"step_s": plan.time.step_s}})  # fmt: skip
    assert h100_plan(table).run.hardware.slowdown == pytest.approx(2.0, rel=1e-3)


def test_what_a_run_has_learned_it_keeps_and_a_typed_number_wins(tmp_path):
    table = learned(tmp_path, 2.0)
    assert h100_plan(table, "hardware.slowdown=3").run.hardware.slowdown == 3
    assert h100_plan("hardware.slowdown=0.5").time.step_s < h100_plan().time.step_s


@pytest.mark.parametrize(
    ("text", "reason"),
    [(None, "No such file"), ("id,gpu\n", "it has no runs"),
     ("id,gpu\na,A100\n", "80GB without measured kernels; its runs are on A100")],
)  # fmt: skip
def test_a_table_that_teaches_nothing_is_named(tmp_path, text, reason):
    path = tmp_path / "measured_runs.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        h100_plan(f"hardware.measured_runs={path}")
    (finding,) = raised.value.findings
    assert (finding.rule, finding.fix) == ("measured-runs-usable", "hardware.measured_runs=null")
    assert reason in finding.reason


def test_a_search_says_of_a_learned_cluster_what_its_plans_say(capsys):
    words = ["model=gpt_1.7b", "hardware=a100x8", "hardware.slowdown=1.7"]
    assert main(["search", "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)["candidates"]
    assert main(["plan", "--json", *found[0]["command"].split()[2:]]) == 0
    assert json.loads(capsys.readouterr().out)["time"] == found[0]["time"]
    assert main(["search", "--json", *words[:2]]) == 0
    plain = json.loads(capsys.readouterr().out)["candidates"]
    assert [one["layout"] for one in plain] == [one["layout"] for one in found]
