"""Every layout against plain torch in one process: loss, gradient norm, gradients, weights.

Cases of a world size share processes, a dozen at a time. Tolerances are float32 rounding
with room for another order of summation; they are never to be relaxed.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import cycle
from typing import Any

import pytest

from tests.runtime.parity import Case, Gap, measure, plan_traffic
from tests.runtime.spawn import run_ranks

SCALARS = 1e-5
GRADIENTS = 1e-4
WEIGHTS = 1e-5

SCHEDULES = ("gpipe", "1f1b")
AXES: tuple[dict[str, int], ...] = (
    {"tp": 2}, {"pp": 2}, {"dp": 2}, {"tp": 2, "pp": 2}, {"tp": 2, "pp": 2, "dp": 2},
)  # fmt: skip


def grid() -> list[Case]:
    """Axes x schedule x ZeRO stage; model and microbatch count take turns, odd counts only."""
    turns: Any = cycle((count, model) for count in (3, 1, 5) for model in ("tied", "untied"))
    cases = []
    for axes in AXES:
        for schedule in SCHEDULES:
            for zero in (0, 1, 2) if axes.get("pp", 1) > 1 else (0, 1, 2, 3):
                count, model = next(turns)
                shared = {"zero": zero, "schedule": schedule, "num_microbatches": count}
                cases.append(Case(**axes, **shared, model=model))
                if axes == {"pp": 2}:
                    other = "tied" if model == "untied" else "untied"
                    cases.append(Case(**axes, **shared, model=other))
    return cases


EXTRA = [
    # More microbatches than stages, fewer, and as many; a tied weight on the outer stages of four.
    Case(pp=4, zero=1, num_microbatches=3, model="tied"),
    Case(pp=4, zero=2, num_microbatches=5, model="untied", schedule="gpipe"),
    Case(pp=4, zero=0, num_microbatches=4, model="tied_llama"),
    Case(pp=4, zero=1, num_microbatches=1, model="untied"),
    # Key/value heads that several ranks hold: the norm must count them once.
    *(Case(tp=2, zero=zero, model="one_kv_head") for zero in (0, 1, 2, 3)),
    *(Case(tp=4, zero=zero, model="untied") for zero in (0, 1, 2, 3)),
    Case(tp=2, dp=2, zero=3, model="one_kv_head"),
    Case(tp=2, dp=2, zero=2, model="tied", schedule="gpipe"),
    Case(pp=2, dp=2, zero=2, model="tied_llama"),
    Case(pp=2, dp=2, zero=1, model="tied", num_microbatches=5),
    # Schedules with chunks, a split backward, or both; gradients that wait under every ZeRO stage.
    Case(pp=2, schedule="naive", model="untied"),
    *(
        Case(pp=2, zero=zero, schedule="interleaved_1f1b", vpp=2, num_microbatches=5)
        for zero in (0, 1, 2)
    ),
    *(Case(pp=2, zero=zero, schedule="zb_h1", num_microbatches=4) for zero in (0, 1, 2)),
    Case(pp=2, zero=1, schedule="zb_h1", vpp=2, model="untied"),
    Case(pp=2, zero=0, schedule="zb_h2", num_microbatches=1),
    *(
        Case(pp=2, zero=zero, schedule="zb_v", vpp=2, model=model)
        for zero, model in ((0, "tied"), (1, "untied"), (2, "tied_llama"))
    ),
    Case(pp=2, zero=1, schedule="dualpipev", vpp=2, num_microbatches=5, recompute="full"),
    Case(pp=2, zero=0, schedule="zb_h1", recompute="full", model="untied"),
    Case(pp=2, dp=2, zero=1, schedule="zb_v", vpp=2),
    Case(tp=2, pp=2, zero=0, schedule="zb_h1", model="one_kv_head"),
    Case(tp=2, pp=2, zero=1, schedule="zb_v", vpp=2, model="untied"),
    Case(pp=4, zero=1, schedule="zb_h2", num_microbatches=9, model="tied"),
    Case(pp=2, zero=0, schedule="zb_1p", num_microbatches=5, model="untied"),
    Case(pp=4, zero=1, schedule="zb_2p", num_microbatches=9, model="tied"),
    Case(pp=4, zero=0, schedule="zb_v", vpp=2, num_microbatches=3, model="deep"),
    Case(pp=4, zero=2, schedule="dualpipev", vpp=2, num_microbatches=8, model="deep"),
    Case(pp=4, zero=1, schedule="interleaved_1f1b", vpp=2, num_microbatches=6, model="deep"),
    Case(pp=4, zero=1, schedule="zb_h1", vpp=2, num_microbatches=5, model="deep"),
    Case(tp=2, pp=2, dp=2, zero=1, schedule="dualpipev", vpp=2, num_microbatches=4),
    # Sequence parallelism under every ZeRO stage, kind of schedule and recomputation; overlap.
    *(Case(tp=2, dp=2, zero=zero, sp=True, micro=2, overlap=zero == 1) for zero in (0, 1, 2, 3)),
    *(Case(tp=2, pp=2, zero=zero, sp=True, num_microbatches=4) for zero in (0, 1, 2)),
    Case(tp=4, zero=0, sp=True, overlap=True, model="one_kv_head", recompute="full"),
    Case(tp=4, zero=2, sp=True, model="one_kv_head", recompute="selective", micro=2),
    Case(tp=4, zero=3, sp=True, overlap=True, model="tied", recompute="full"),
    Case(tp=2, zero=3, sp=True, model="dropout"),
    Case(tp=2, zero=0, sp=True, overlap=True, model="dropout", recompute="full", micro=2),
    Case(tp=2, pp=2, zero=1, sp=True, schedule="interleaved_1f1b", vpp=2, overlap=True),
    Case(tp=2, pp=2, zero=0, sp=True, schedule="zb_h1", model="one_kv_head", recompute="full"),
    Case(tp=2, pp=2, zero=1, sp=True, schedule="zb_v", vpp=2, micro=2, model="dropout"),
    Case(tp=2, pp=2, zero=2, sp=True, schedule="dualpipev", vpp=2, num_microbatches=4),
    Case(tp=2, pp=2, zero=0, sp=True, schedule="gpipe", overlap=True, model="untied"),
    Case(tp=2, pp=2, zero=1, overlap=True, schedule="zb_h1", model="untied"),
    Case(tp=2, pp=2, dp=2, zero=1, sp=True, overlap=True, model="dropout"),
    *(Case(tp=2, dp=2, zero=zero, sp=True, engine="fsdp2") for zero in (2, 3)),
    # Receives that are posted when they are needed.
    Case(pp=4, p2p=False, num_microbatches=8),
    Case(pp=4, p2p=False, schedule="gpipe", num_microbatches=5),
    Case(pp=4, p2p=False, schedule="interleaved_1f1b", vpp=2, num_microbatches=6, model="deep"),
    Case(pp=4, p2p=False, schedule="zb_v", vpp=2, num_microbatches=6, model="deep"),
    Case(pp=4, p2p=False, schedule="dualpipev", vpp=2, num_microbatches=8, model="deep"),
    Case(tp=2, pp=2, zero=1, sp=True, overlap=True, engine="fsdp2", model="one_kv_head"),
    # One process: the engines alone.
    *(Case(zero=zero, model="tied") for zero in (0, 1, 2, 3)),
]
FSDP2 = [
    *(Case(dp=2, zero=zero, model="tied") for zero in (1, 2, 3)),
    *(Case(dp=2, zero=zero, model="untied", schedule="gpipe") for zero in (1, 2, 3)),
    # 97 rows of the vocabulary over 4 ranks: uneven, and norms of the one head's bias are empty.
    *(Case(dp=4, zero=zero, model="one_kv_head") for zero in (1, 2, 3)),
    Case(dp=4, zero=1, num_microbatches=1),
    *(Case(tp=2, dp=2, zero=zero, model="one_kv_head") for zero in (1, 3)),
    Case(tp=2, dp=2, zero=2, model="tied"),
    *(
        Case(pp=2, dp=2, zero=zero, model=model, schedule=schedule)
        for zero, model, schedule in ((1, "tied", "1f1b"), (2, "untied", "gpipe"))
    ),
    # Parameters sharded inside a pipeline, which DeepSpeed cannot.
    *(Case(pp=2, dp=2, zero=3, model="tied", schedule=schedule) for schedule in SCHEDULES),
    *(
        Case(pp=2, zero=zero, schedule="interleaved_1f1b", vpp=2, num_microbatches=5,
             recompute=recompute)
        for zero in (1, 3) for recompute in ("none", "full")
    ),
    Case(pp=4, zero=3, model="tied_llama", num_microbatches=5),
    Case(dp=2, zero=3, recompute="selective"),
    Case(dp=2, zero=3, recompute="full"),
    *(Case(tp=2, pp=2, dp=2, zero=zero) for zero in (1, 3)),
    *(Case(zero=zero, model="tied") for zero in (1, 2, 3)),
]  # fmt: skip
FSDP2 = [replace(case, engine="fsdp2") for case in FSDP2]
MODES = ("ring", "all_gather", "ulysses")
LLAMA3_ORDER = ("tp", "cp", "pp", "dp")
CONTEXT = [
    # Learned positions and rotary ones, heads that several ranks need, a window.
    *(
        Case(cp=2, cp_mode=mode, model=model)
        for mode in MODES for model in ("tied", "one_kv_head", "window")
    ),
    *(Case(cp=4, cp_mode=mode, model="untied", num_microbatches=1) for mode in MODES),
    # A window that makes most hops of a ring empty; at cp=8, too.
    *(Case(cp=4, cp_mode=mode, model="narrow_window") for mode in ("ring", "all_gather")),
    # Documents that begin and end on any rank.
    *(Case(cp=2, cp_mode=mode, micro=2, packed=True, model="window") for mode in MODES),
    *(Case(cp=4, cp_mode=mode, packed=True, zero=1) for mode in MODES),
    # What is sharded over cp like over dp; masks of dropout; what is computed again.
    *(
        Case(cp=2, cp_mode=mode, zero=zero, model=model, recompute=recompute)
        for mode, zero, model, recompute in (
            ("ring", 1, "dropout", "none"), ("all_gather", 2, "dropout", "full"),
            ("ulysses", 3, "dropout", "none"), ("ring", 3, "untied", "full"),
            ("all_gather", 1, "tied", "selective"), ("ulysses", 2, "untied", "selective"),
        )
    ),
    Case(cp=2, dp=2, zero=0, num_microbatches=1),
    Case(cp=2, dp=2, zero=1, cp_mode="ulysses", order=("tp", "dp", "cp", "pp")),
    Case(cp=2, dp=2, zero=2, cp_mode="all_gather", packed=True, model="tied_llama"),
    Case(cp=2, dp=2, zero=3, packed=True),
    *(
        Case(cp=2, dp=dp, zero=zero, cp_mode=mode, engine="fsdp2", packed=zero == 2)
        for dp, zero, mode in ((1, 1, "ulysses"), (2, 2, "all_gather"), (2, 3, "ring"))
    ),
    # With tensor and sequence parallelism, and with every kind of schedule.
    Case(tp=2, cp=2, zero=0, overlap=True, model="one_kv_head"),
    Case(tp=2, cp=2, zero=1, sp=True, model="dropout", micro=2, packed=True),
    Case(tp=2, cp=2, zero=2, sp=True, cp_mode="all_gather", overlap=True),
    Case(tp=2, cp=2, zero=3, sp=True, cp_mode="ulysses", model="one_kv_head", packed=True),
    Case(pp=2, cp=2, zero=1, schedule="zb_v", vpp=2, model="tied_llama"),
    Case(pp=2, cp=2, zero=0, schedule="dualpipev", vpp=2, num_microbatches=4, packed=True),
    Case(pp=2, cp=2, zero=2, schedule="interleaved_1f1b", vpp=2, cp_mode="ulysses",
         recompute="full"),
    Case(pp=2, cp=2, zero=1, schedule="zb_h1", cp_mode="all_gather", model="untied"),
    Case(pp=2, cp=2, zero=3, engine="fsdp2", cp_mode="all_gather", p2p=False),
    *(
        Case(tp=2, cp=2, pp=2, zero=1, sp=True, cp_mode=mode, order=LLAMA3_ORDER)
        for mode in ("ring", "ulysses")
    ),
    *(Case(cp=2, pp=2, dp=2, zero=2, cp_mode=mode, order=LLAMA3_ORDER) for mode in MODES[:2]),
    Case(cp=8, zero=1, num_microbatches=1, model="narrow_window"),
]  # fmt: skip
CASES = list(dict.fromkeys(grid() + EXTRA + FSDP2 + CONTEXT))


def measure_all(rank: int, cases: list[Case]) -> dict[Case, Gap]:
    return {case: measure(case) for case in cases}


# Few enough to end in time on a slow machine, many enough to be worth a start of processes.
TOGETHER = 12


@cache
def gaps(world_size: int, part: int) -> list[dict[Case, Gap]] | Exception:
    """Of every rank; a failure is kept, or each case would wait for it anew."""
    cases = [case for case in CASES if case.world_size == world_size]
    try:
        return run_ranks(world_size, measure_all, cases[part :: _parts(cases)], timeout_s=300.0)
    except Exception as error:
        return error


def _parts(cases: list[Case]) -> int:
    return -(-len(cases) // TOGETHER)


def gaps_of(case: Case) -> list[Gap]:
    """Of one case on every rank."""
    cases = [other for other in CASES if other.world_size == case.world_size]
    found = gaps(case.world_size, cases.index(case) % _parts(cases))
    if isinstance(found, Exception):
        raise found
    return [gaps[case] for gaps in found]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_layout_trains_as_one_process_does(case: Case) -> None:
    for rank, gap in enumerate(gaps_of(case)):
        assert gap.loss < SCALARS, f"rank {rank}"
        assert gap.grad_norm < SCALARS, f"rank {rank}"
        assert gap.validation < SCALARS, f"rank {rank}"
        assert gap.gradients, f"rank {rank}"
        far = {name: gap for name, gap in gap.gradients.items() if not gap < GRADIENTS}
        assert not far, f"gradients on rank {rank}"
        far = {name: gap for name, gap in gap.weights.items() if not gap < WEIGHTS}
        assert not far, f"weights on rank {rank}"


@pytest.mark.parametrize("case", CONTEXT, ids=str)
def test_the_plan_knows_every_byte_that_cp_sends(case: Case) -> None:
    planned = {entry.op: entry.bytes_per_step for entry in plan_traffic(case) if entry.axis == "cp"}
    found = [gap.sent_over_cp for gap in gaps_of(case)]
    busiest = {op: max(sent.get(op, 0) for sent in found) for op in planned}
    assert planned == busiest
    assert all(sent.keys() <= planned.keys() for sent in found)


def test_the_grid_holds_every_pair_of_schedule_and_zero_stage_on_every_mesh() -> None:
    seen = {(case.tp, case.pp, case.dp, case.schedule, case.zero) for case in CASES}
    assert {(2, 2, 2, schedule, zero) for schedule in SCHEDULES for zero in (0, 1, 2)} <= seen
    assert {(1, 1, 2, schedule, 3) for schedule in SCHEDULES} <= seen
