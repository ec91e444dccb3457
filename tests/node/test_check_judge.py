"""Is a bad node named with what is wrong with it, and a good one never?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.node.checks.gpus import Gpu, Gpus
from launcher.node.checks.judge import (
    SLOW,
    Wanted,
    find_faults,
    is_complete,
    is_everywhere,
)
from launcher.node.checks.report import (
    NodeReport,
    RankReport,
    report_from_json,
    report_to_json,
)

GPU = Gpu(index=0, driver="550.54", max_clock_mhz=1980.0, ecc_errors=0, slowed_by=0x1)
WANTED = Wanted(nodes=("n1", "n2", "n3"), per_node=2, device="cuda", timeout_s=300.0)


def node(name: str, product_s: float = 0.002, **changes: object) -> NodeReport:
    number = int(name.removeprefix("n")) - 1
    ranks = tuple(
        RankReport(rank=2 * number + one, stage="all_reduce", product_s=product_s, all_reduce_s=0.1)
        for one in range(2)
    )
    gpus = Gpus(found=(GPU, replace(GPU, index=1)))
    return replace(NodeReport(node=name, ranks=ranks, gpus=gpus, is_final=True), **changes)


def with_gpu(name: str, **changes: object) -> NodeReport:
    """A node whose second GPU is not like the others."""
    return node(name, gpus=Gpus(found=(GPU, replace(GPU, index=1, **changes))))


def with_rank(name: str, **changes: object) -> NodeReport:
    """A node whose second rank is not like the others."""
    report = node(name)
    return replace(report, ranks=(report.ranks[0], replace(report.ranks[1], **changes)))


def found(*reports: NodeReport, is_over: bool = False, wanted: Wanted = WANTED) -> dict[str, list]:
    faults = find_faults({report.node: report for report in reports}, wanted, is_over)
    return {name: [fault.what for fault in some] for name, some in faults.items()}


def test_healthy_nodes_pass():
    reports = {name: node(name) for name in WANTED.nodes}
    assert find_faults(reports, WANTED, True) == {}
    assert is_complete(reports, WANTED)


def test_a_report_survives_its_file():
    report = with_rank("n2", error="x", stage="met")
    assert report_from_json(report_to_json(report)) == report
    assert report_from_json({"node": "n1"}) is None


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (node("n2", gpus=Gpus(found=(GPU,))), "gpu_count"),
        (node("n2", gpus=Gpus(problem="couldn't communicate with the driver")), "driver_answer"),
        (with_gpu("n2", ecc_errors=3), "gpu_memory"),
        (with_gpu("n2", slowed_by=0x41), "gpu_slowed"),
        (with_gpu("n2", max_clock_mhz=1200.0), "gpu_clock"),
        (with_rank("n2", stage="started", error="torch sees 1 GPUs"), "device"),
        (with_rank("n2", stage="product", is_right=False), "wrong_result"),
        (with_rank("n2", product_s=0.0031), "slow"),
    ],
)
def test_one_bad_device_makes_its_node_bad_and_no_other(bad, what):
    assert found(node("n1"), bad, node("n3")) == {"n2": [what]}


@pytest.mark.parametrize("bits", [0x1, 0x2, 0x4, 0x10, 0x100, None])
def test_what_slows_gpus_in_ordinary_life_is_no_fault(bits):
    assert found(node("n1"), with_gpu("n2", slowed_by=bits), node("n3")) == {}


def test_what_the_driver_does_not_tell_is_no_fault():
    unknown = with_gpu("n2", ecc_errors=None, max_clock_mhz=None, slowed_by=None)
    assert found(node("n1"), unknown, node("n3")) == {}


def test_an_ordinary_spread_of_speeds_is_no_fault():
    assert found(node("n1", 0.0020), node("n2", 0.0024), node("n3", 0.0022)) == {}


def test_of_two_nodes_the_slow_one_is_bad():
    assert found(node("n1", 0.010), node("n2", 0.002)) == {"n1": ["slow"]}


def test_on_cpus_a_node_is_as_fast_as_its_fastest_rank():
    cpu = replace(WANTED, device="cpu")
    busy = with_rank("n2", product_s=1.0)
    assert found(node("n1"), busy, node("n3"), wanted=cpu) == {}
    far_off = node("n2", 0.002 * SLOW["cpu"] * 1.1)
    assert found(node("n1"), far_off, node("n3"), wanted=cpu) == {"n2": ["slow"]}


def test_a_single_node_is_compared_with_nothing_and_keeps_absolute_conditions():
    alone = replace(WANTED, nodes=("n1",))
    assert found(node("n1", 1.0), wanted=alone, is_over=True) == {}
    assert found(with_gpu("n1", ecc_errors=1), wanted=alone) == {"n1": ["gpu_memory"]}


@pytest.mark.parametrize(
    ("drivers", "bad"),
    [
        (("550.54", "535.1", "550.54"), ["n2"]),
        (("550.54", "560.3", "550.54"), ["n2"]),
        (("535.104", "535.98"), ["n2"]),  # none is usual: the newer one runs what the older does
    ],
)
def test_the_driver_that_others_do_not_have_is_the_wrong_one(drivers, bad):
    reports = [
        node(f"n{number}", gpus=Gpus(found=(replace(GPU, driver=one),) * 2))
        for number, one in enumerate(drivers, 1)
    ]
    assert found(*reports) == {name: ["driver"] for name in bad}


def test_who_says_nothing_is_named_when_the_time_is_over_and_not_before():
    waiting = [with_rank(name, stage="product", all_reduce_s=None) for name in ("n1", "n3")]
    assert found(*waiting) == {}
    assert found(*waiting, is_over=True) == {"n2": ["no_answer"]}


def test_a_node_that_others_wait_for_is_named_when_the_time_is_over():
    met, late = "met", with_rank("n2", stage="product", error="timed out connecting to n1")
    others = [with_rank("n1", stage=met), with_rank("n3", stage=met)]
    assert found(*others, late) == {}
    assert found(*others, late, is_over=True) == {"n2": ["unreachable"]}


def test_a_node_that_most_others_cannot_reach_is_the_bad_one():
    alone = with_rank("n1", stage="met")
    others = [with_rank(name, stage="product") for name in ("n2", "n3")]
    assert found(alone, *others, is_over=True) == {"n1": ["unreachable"]}


def test_where_all_wait_for_each_other_nobody_is_blamed():
    reports = {name: with_rank(name, stage="met") for name in WANTED.nodes}
    assert find_faults(reports, WANTED, True) == {}
    assert not is_complete(reports, WANTED)


def test_errors_of_those_who_waited_for_a_bad_node_are_not_theirs():
    echo = with_rank("n1", stage="met", error="Connection closed by peer")
    bad = with_rank("n2", stage="started", error="torch sees 0 GPUs")
    assert found(echo, bad, node("n3"), is_over=True) == {"n2": ["device"]}


def test_what_every_node_has_is_no_nodes_fault():
    reports = {name: node(name, gpus=Gpus(found=(GPU,))) for name in WANTED.nodes}
    assert is_everywhere(find_faults(reports, WANTED, False), WANTED)
    reports["n3"] = with_gpu("n3", ecc_errors=1)
    assert not is_everywhere(find_faults(reports, WANTED, False), WANTED)
    alone = replace(WANTED, nodes=("n1",))
    one = {"n1": node("n1", gpus=Gpus(found=(GPU,)))}
    assert not is_everywhere(find_faults(one, alone, False), alone)
