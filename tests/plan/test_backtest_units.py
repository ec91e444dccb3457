"""Figures with the units and the remarks that people put into their cells."""

import pytest

from launcher.plan.backtest_cells import BadRow, read_cells, read_number
from launcher.plan.backtest_rows import read_row

from .test_backtest import FACTS
from .test_strangers_rows import llama


@pytest.mark.parametrize(
    ("column", "cell", "value"),
    [("step_time_s", "2.1 s/iter", 2.1), ("step_time_s", "350 msec", 0.35),
     ("step_time_s", "0.5 s/it", 0.5), ("step_time_s", "0.02 h", 72),
     ("mem_gib", "61 GiB allocated", 61), ("mem_gib", "peak 61", 61),
     ("mem_gib", "0.0644 TB", 0.0644e12 / 2**30), ("params_b", "7 billion", 7),
     ("tokens_per_s_per_gpu", "3.5k tokens/s", 3500), ("tokens_per_s_per_gpu", "3.5 K tok/s", 3500),
     ("ffn", "14,336", 14336)],
)  # fmt: skip
def test_units_are_read_as_people_write_them(column, cell, value):
    assert read_number(read_cells({column: cell}), column) == pytest.approx(value)


def test_a_width_that_is_said_in_multiples_is_no_width():
    with pytest.raises(BadRow, match="ffn=4x: not a number"):
        read_number(read_cells({"ffn": "4x"}), "ffn")


@pytest.mark.parametrize("remark", ["(global)", "(total)", "(all GPUs)", "(all 64 GPUs)"])
def test_a_rate_of_all_devices_that_says_so_is_one(remark):
    alone = read_row(llama(tokens_per_s_per_gpu=5000), FACTS)
    together = read_row(llama(tokens_per_s_per_gpu=f"320,000 {remark}"), FACTS)
    assert together.step_s == pytest.approx(alone.step_s)


def test_a_step_of_all_devices_is_a_step():
    assert read_row(llama(step_time_s="3.5 (all ranks)"), FACTS).step_s == 3.5


@pytest.mark.parametrize(
    ("cell", "notes", "reserved"),
    [("61 (allocated)", "", False), ("61 (max reserved)", "allocated 55", True),
     ("61 GiB allocated", "", False), ("61 (allocated 55)", "", True), ("61", "allocated", False),
     ("61", "", True)],
)  # fmt: skip
def test_the_cell_says_what_memory_is_of(cell, notes, reserved):
    found = read_row(llama(mem_gib=cell, notes=notes), FACTS)
    assert found.memory_bytes == 61 * 2**30
    assert found.job.execution.reserved is reserved
