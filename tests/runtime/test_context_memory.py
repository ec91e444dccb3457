"""What the plan counts for attention over a cut sequence is what the workers hold."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import NamedTuple

import pytest
import torch

from launcher.config.schema import Run
from launcher.plan.activations import attention_width, core_bytes
from launcher.plan.context_memory import context_bytes
from launcher.plan.execution import runtime_job
from launcher.plan.operator_records import size_of
from launcher.plan.records import Layout
from launcher.runtime.model.attention import AttentionCore, AttentionTables, pack_documents
from launcher.runtime.parallel.context import meet
from launcher.runtime.parallel.sequence_cut import cut_sequence
from tests.factory import TINY, make_run
from tests.runtime.live_bytes import LiveBytes
from tests.runtime.spawn import run_ranks
from tests.runtime.stages import make_groups, make_layout

LENGTH, HEADS, WIDTH = 256, 8, 16


class Case(NamedTuple):
    mode: str
    kv_heads: int = HEADS
    window: int | None = None
    packed: bool = False


CASES = [
    *(Case(mode, kv_heads) for mode in ("ring", "all_gather", "ulysses") for kv_heads in (2, 8)),
    *(Case(mode, 2, packed=True) for mode in ("ring", "all_gather")),
    *(Case(mode, 8, window=20) for mode in ("ring", "all_gather")),
]
SIZES = (2, 4)


class Held(NamedTuple):
    """Bytes, inputs and the gradient that comes aside."""

    kept: int
    beside: int
    """At the peak of backward."""
    forward: int
    """At the peak of forward, all."""


def planned(case: Case, cp: int) -> tuple[Run, Layout]:
    model = TINY | {
        "num_heads": HEADS, "num_kv_heads": case.kv_heads, "hidden_size": HEADS * WIDTH,
        "sliding_window": case.window, "max_sequence_length": LENGTH,
    }  # fmt: skip
    packing = "documents" if case.packed else "concatenate"
    run = make_run(model=model, **{"parallelism.cp_mode": case.mode, "data.packing": packing})
    return run, make_layout(cp=cp, sequence_length=LENGTH)


def measure(case: Case, cp: int) -> Held:
    run, layout = planned(case, cp)
    cpu, dtype, size = torch.device("cpu"), torch.float32, size_of(runtime_job(run, layout))
    cut = cut_sequence(case.mode, make_groups(run, layout).cp, LENGTH, cpu)
    assert cut is not None
    core = AttentionCore(run.model, AttentionTables(run.model, LENGTH, cpu, dtype, cut))
    mix = meet(core.mix, case.mode, cut, case.window)
    shape = (size.batch, LENGTH // cp)
    q, k, v = (
        torch.randn(*shape, heads, WIDTH, requires_grad=True)
        for heads in (HEADS, case.kv_heads, case.kv_heads)
    )
    packed = None
    if case.packed:
        documents = torch.arange(LENGTH).expand(size.batch, -1) // 50
        packed = pack_documents(documents, case.window, dtype, cut)
    with LiveBytes() as live:
        out = mix(q, k, v, None, packed)
        forward, kept = live.peak, live.now
        grad = torch.ones_like(out)
        live.peak = before = live.now
        out.backward(grad)
    return Held(kept=kept, beside=live.peak - before, forward=forward)


def measure_all(rank: int, cp: int) -> dict[Case, Held]:
    """The least of several: gloo's threads let go of a message when they get to it."""
    measured = {case: [measure(case, cp) for _ in range(5)] for case in CASES}
    return {case: Held(*map(min, zip(*found, strict=True))) for case, found in measured.items()}


@cache
def ranks(cp: int) -> list[dict[Case, Held]]:
    return run_ranks(cp, measure_all, cp)


@pytest.mark.parametrize(("cp", "case"), list(product(SIZES, CASES)), ids=str)
def test_the_plan_counts_what_the_worst_rank_holds(cp: int, case: Case) -> None:
    run, layout = planned(case, cp)
    job = runtime_job(run, layout)
    size = size_of(job)
    found = [rank[case] for rank in ranks(cp)]
    kept = size.tokens * attention_width(job, size) * 4 + core_bytes(job, size)
    if case.mode != "ulysses":  # which keeps what it deals out; here the queries are an input
        kept -= size.tokens * size.queries * 4
    assert {each.kept for each in found} == {kept}
    beside = max(each.beside for each in found) / context_bytes(job)
    # Ulysses: messages may be gone before the next tensor is made.
    assert (0.5 if case.mode == "ulysses" else 0.9) < beside < 1.08
    assert max(each.forward for each in found) < kept + context_bytes(job)
