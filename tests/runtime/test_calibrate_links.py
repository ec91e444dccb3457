"""The measurements of exchanges of `launch calibrate`, between ranks of this machine's CPU."""

import pytest
import torch
import torch.distributed as dist

from launcher.plan.links import EXCHANGES
from launcher.runtime import calibrate_links
from launcher.runtime.groups import Axis
from tests.runtime.spawn import run_ranks


def measure(rank, size):
    calibrate_links.CPU_BYTES, calibrate_links.CALLS, calibrate_links.ROUNDS = (4096,), 2, 1
    axis = Axis(name="tp", index=rank, size=size, ranks=(0, 1), group=dist.group.WORLD)
    return list(calibrate_links.measure(axis, torch.device("cpu")))


def test_every_exchange_is_measured():
    for rows in run_ranks(2, measure, 2):
        assert [row[:2] for row in rows] == [(name, 4096) for name in EXCHANGES]
        assert all(seconds > 0 for _, _, seconds in rows)


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
    assert calibrate_links.group_sizes(num_gpus) == sizes
