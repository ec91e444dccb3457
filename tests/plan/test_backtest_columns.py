"""Columns by the names that people give them, and those that nothing is made of."""

import json

import pytest

from launcher.cli import main
from launcher.plan.backtest_cells import column_name, column_unit
from launcher.plan.backtest_table import read_table


@pytest.mark.parametrize(
    ("header", "column", "unit"),
    [("Tokens/sec/GPU", "tokens_per_s_per_gpu", ""), ("tok/s/GPU", "tokens_per_s_per_gpu", ""),
     ("TFLOP/s/GPU", "tflops_per_gpu", ""), ("Iter time (ms)", "step_time_s", "ms"),
     ("Time per step (s)", "step_time_s", ""), ("Peak mem (GB)", "mem_gib", "GB"),
     ("Peak Memory (GiB)", "mem_gib", ""), ("max memory MiB", "mem_gib", "MIB"),
     ("Params (M)", "params_b", "M"), ("Sharding", "zero_or_fsdp", ""), ("tp_size", "tp", ""),
     ("Tensor parallel size", "tp", "")],
)  # fmt: skip
def test_columns_are_known_by_what_people_call_them(header, column, unit):
    assert (column_name(header), column_unit(header)) == (column, unit)


def test_a_column_by_its_own_name_goes_before_others_that_mean_it():
    (row,) = read_table("gpu,gpus,Peak mem (GB),mem_gib\nH100,8,70,61\n", "t.csv")
    assert row["mem_gib"] == "61"


def test_columns_that_nothing_is_made_of_are_named(tmp_path, capsys):
    path = tmp_path / "t.csv"
    path.write_text("id,model,seq,gpu,gpus,micro_batch,Tokens/s,step_time_s,from_memory\n"
                    "a,llama2-7b,2048,H100,8,1,90000,0.5,no\n")  # fmt: skip
    assert main(["backtest", str(path), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["columns_not_read"] == ["Tokens/s"]
    assert shown.err == f"launch: {path}: columns that are not read: Tokens/s\n"
    path.write_text("id,gpu,gpus,run_json\na,H100,8,\n")
    assert main(["backtest", str(path)]) == 0
    assert capsys.readouterr().err == ""
