"""The measurements of exchanges of `launch calibrate`, between ranks of this machine's CPU."""

import time
from typing import get_args

import pytest
import torch
import torch.distributed as dist

from launcher.config.hardware_schema import ExchangeKind
from launcher.config.kernel_table import read_kernels
from launcher.config.local_hardware import core_peak_flops, detect_machine
from launcher.runtime import calibrate_links
from launcher.runtime.groups import Axis
from launcher.submit.calibrate import calibrate, group_sizes
from tests.runtime.spawn import run_ranks


def measure(rank, size):
    calibrate_links.CPU_BYTES = (2**22,)  # long enough to stand out
    axis = Axis(name="tp", index=rank, size=size, ranks=(0, 1), group=dist.group.WORLD)
    return list(calibrate_links.measure(axis, torch.device("cpu")))


def test_every_exchange_is_measured():
    for rows in run_ranks(2, measure, 2):
        assert [row[:2] for row in rows] == [(name, 2**22) for name in get_args(ExchangeKind)]
        assert all(seconds > 1e-4 for _, _, seconds in rows)


def slowly(rank, size):
    axis = Axis(name="tp", index=rank, size=size, ranks=(0, 1), group=dist.group.WORLD)
    whole = torch.zeros(1024)
    return calibrate_links.added_s(lambda x, axis: time.sleep(0.02), whole, axis)


def test_what_a_call_adds_to_computing_is_measured():
    for seconds in run_ranks(2, slowly, 2):
        assert seconds == pytest.approx(0.02, rel=0.5)


def test_a_size_that_is_lost_in_the_noise_has_no_row(monkeypatch):
    monkeypatch.setattr(calibrate_links, "added_s", lambda *_: -1e-6)
    axis = Axis(name="tp", index=0, size=2, ranks=(0, 1), group=None)
    assert list(calibrate_links.measure(axis, torch.device("cpu"))) == []


def moved(rank, size):
    axis = Axis(name="tp", index=rank, size=size, ranks=(0, 1), group=dist.group.WORLD)
    whole = torch.arange(4.0) + 10 * rank
    return {
        name: operation(whole.clone(), axis).flatten().tolist()
        for name, operation in calibrate_links.OPERATIONS.items()
    }


def test_each_moves_what_it_is_named_after():
    first, second = run_ranks(2, moved, 2)
    assert first["all_reduce"] == second["all_reduce"] == [10.0, 12.0, 14.0, 16.0]
    assert first["all_gather"] == second["all_gather"] == [0.0, 1.0, 10.0, 11.0]
    assert (first["reduce_scatter"], second["reduce_scatter"]) == ([10.0, 12.0], [14.0, 16.0])
    assert (first["all_to_all"], second["all_to_all"]) == ([0, 1, 10, 11], [2, 3, 12, 13])
    assert (first["send_recv"], second["send_recv"]) == ([10, 11, 12, 13], [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("num_gpus", "sizes"), [(0, (2, 4)), (1, ()), (2, (2,)), (6, (2, 4)), (8, (2, 4, 8))]
)
def test_groups_are_of_gpus_that_there_are(num_gpus, sizes):
    assert group_sizes(num_gpus) == sizes


def test_ranks_that_outnumber_the_cores_have_so_much_less_of_one():
    shares = [calibrate_links.share_of_core(cores, ranks) for cores, ranks in
              ((1, 2), (2, 4), (2, 2), (64, 4))]  # fmt: skip
    assert shares == [0.5, 0.5, 1.0, 1.0]


def test_the_whole_table_is_written_and_read(tmp_path, monkeypatch):
    """Real processes: two ranks, which print what libraries print."""
    monkeypatch.setattr("launcher.submit.calibrate.CPU_RANKS", (2,))
    path, machine = tmp_path / "kernels.csv", detect_machine()
    table, note = calibrate(machine, path)
    assert note is None
    assert path.read_text() == table
    peak = core_peak_flops(machine)
    whole = {row["kind"]: row for row in read_kernels(path, peak, is_cpu=True)}
    assert set(whole) >= {"matmul", "attention", "memory", "all_reduce", "send_recv"}
    halves = {row["kind"]: row for row in read_kernels(path, peak / 2, is_cpu=True)}
    for kind in ("matmul", "all_reduce"):  # of processes with half a core
        assert halves[kind]["seconds"] == pytest.approx(2 * whole[kind]["seconds"])
