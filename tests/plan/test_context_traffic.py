"""Context parallelism in the plan: what travels, and what of it shows."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.plan.build import build_plan
from launcher.plan.collectives import SLOWDOWN, PassTimes
from launcher.plan.context_traffic import cp_times
from launcher.plan.execution import runtime_job
from launcher.plan.records import Communication, Plan
from launcher.plan.ring_reach import ring_hops, ring_reach
from launcher.plan.step_time import find_links
from tests.factory import CPU, LLAMA3_70B, h100, make_run


def plan(mode: str, window: int | None = None, **parallelism: Any) -> Plan:
    degrees = {"tp": 8, "pp": 1, "cp": 8, "dp": 1, "cp_mode": mode, "recompute": "none"}
    model = LLAMA3_70B | {"num_layers": 4, "max_sequence_length": 2**17, "sliding_window": window}
    return build_plan(
        make_run(
            model=model, hardware=h100(), parallelism=degrees | parallelism,
            precision={"name": "bf16", "compute": "bf16"},
            train={"micro_batch_size": 1, "num_microbatches": 1, "sequence_length": 2**17},
        )
    )  # fmt: skip


def over_cp(made: Plan) -> dict[str, Communication]:
    return {entry.op: entry for entry in made.communication if entry.axis == "cp"}


TOKENS, BLOCKS = 2**17 // 8, 4
HEAD = 128
"""Width; with tp=8 a rank has one key/value head and eight of queries."""


@pytest.mark.parametrize(
    ("cp", "window", "reach"),
    [
        (2, None, None), (4, 64, None), (4, 1, 0), (4, 2, 1), (4, 9, 1), (4, 10, None),
        (8, 9, 2), (8, 13, 3), (8, 14, None), (3, 2, 1),
    ],
)  # fmt: skip
def test_a_window_is_as_many_neighbours_wide_as_it_has_chunks(
    cp: int, window: int | None, reach: int | None
) -> None:
    """64 tokens: chunks of 16, 8, 4 for 2, 4, 8 ranks."""
    assert ring_reach(cp, 64, window) == reach
    assert ring_hops(cp, 64, window) == (cp - 1 if reach is None else 2 * reach)


def test_a_rank_sees_no_keys_beyond_its_reach() -> None:
    """Against the definition: which rank holds which token, which token sees which."""
    for cp, window in ((4, 9), (5, 4), (8, 9), (8, 13), (7, 20)):
        length = 8 * cp
        home = [min(chunk, 2 * cp - 1 - chunk) for chunk in (t // 4 for t in range(length))]
        far = max(
            abs(home[token] - home[seen])
            for token in range(length)
            for seen in range(max(0, token - window + 1), token + 1)
        )
        reach = ring_reach(cp, length, window)
        assert reach is None or reach == far


def test_keys_go_round_twice_and_their_gradients_once() -> None:
    found = over_cp(plan("ring"))
    block = 2 * HEAD * TOKENS
    assert found["send_recv"].bytes_per_step == BLOCKS * 7 * (2 * 2 * block + 4 * block)


def test_ulysses_deals_out_a_key_head_for_every_rank() -> None:
    found = over_cp(plan("ulysses"))
    # Eight query heads there and back, and eight copies of one head's keys and values.
    moved = (8 + 8 + 2 * 8) * HEAD * TOKENS * 2
    assert found["all_to_all"].bytes_per_step == BLOCKS * 2 * moved * 7 // 8


def test_a_window_saves_the_hops_that_it_makes_empty() -> None:
    whole, narrow = over_cp(plan("ring")), over_cp(plan("ring", window=4096))
    # Two neighbours instead of seven ranks.
    assert narrow["send_recv"].bytes_per_step == whole["send_recv"].bytes_per_step * 2 / 7


@pytest.mark.parametrize("mode", ["ring", "all_gather", "ulysses"])
def test_hops_hide_behind_attention_and_dealing_out_does_not(mode: str) -> None:
    made = plan(mode)
    job = runtime_job(made.run, made.layout)
    link = find_links(job).cp
    sent_s = sum(entry.seconds_per_step for entry in over_cp(made).values()) / BLOCKS

    def waits_s(attention_s: float) -> float:
        found = cp_times(
            job, link, PassTimes(forward_s=attention_s, backward_s=attention_s), "none"
        )
        return found.forward_s + found.backward_s

    # Nothing to hide behind; far more than enough, which a collective beside it slows a little.
    assert waits_s(0.0) == pytest.approx(sent_s)
    # A ring hides two rounds of keys and one of gradients, twice as wide, all but its last hop;
    # two gathers hide, the scatter of four-byte gradients behind them does not.
    hidden = {"ring": 1 - 2 / (7 * (1 + 1 + 2)), "all_gather": 0.5, "ulysses": 0.0}[mode]
    assert waits_s(1e3) == pytest.approx((1 - hidden + SLOWDOWN * hidden) * sent_s, rel=0.02)


def test_recomputing_attention_sends_keys_again() -> None:
    kept, again = (over_cp(plan("all_gather", recompute=r)) for r in ("none", "selective"))
    assert again["all_gather"].bytes_per_step == 1.5 * kept["all_gather"].bytes_per_step
    assert again["reduce_scatter"] == kept["reduce_scatter"]


def test_documents_are_masked_block_by_block_where_keys_come_in_parts() -> None:
    def activations(mode: str, packing: str) -> int:
        degrees = {"tp": 1, "pp": 1, "cp": 4, "dp": 1, "cp_mode": mode}
        data = {"data.packing": packing}
        run = make_run(parallelism=degrees, train={"sequence_length": 64}, **data)
        return build_plan(run).memory.per_stage[0].activations_bytes

    for mode in ("ring", "all_gather"):
        assert activations(mode, "documents") == activations(mode, "concatenate")
    assert activations("ulysses", "documents") > activations("ulysses", "concatenate")


@pytest.mark.parametrize("mode", ["ring", "all_gather"])
def test_cores_that_move_the_data_themselves_hide_nothing_behind_attention(mode: str) -> None:
    degrees = {"tp": 1, "pp": 1, "cp": 4, "dp": 1, "cp_mode": mode}
    made = build_plan(make_run(parallelism=degrees))
    job = runtime_job(made.run, made.layout)
    link = find_links(job).cp
    long = PassTimes(forward_s=1e3, backward_s=1e3)
    assert cp_times(job, link, long, "none") == cp_times(job, link, PassTimes(), "none")


def test_cores_hide_no_gather_of_weights_where_gpus_do() -> None:
    def overlaps(hardware: dict[str, Any]) -> bool:
        degrees = {"tp": 1, "pp": 1, "dp": None, "zero_stage": 3}
        made = build_plan(make_run(hardware=hardware, parallelism=degrees))
        return runtime_job(made.run, made.layout).execution.overlap_dp

    assert overlaps(h100())
    assert not overlaps(CPU | {"gpus_per_node": 2})
