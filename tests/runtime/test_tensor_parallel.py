"""Tensor-parallel stages against the same module in one process, in float64."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch

from launcher.runtime.gradients import partial_over_tp, sum_partial_gradients
from tests.runtime.spawn import run_ranks
from tests.runtime.stages import (
    GPT,
    LLAMA,
    MODELS,
    cut_of,
    loss_and_gradients,
    make_batch,
    make_groups,
    make_layout,
    make_module,
)

DROPOUT = GPT | {"dropout": 0.3}
CASES: dict[str, dict[str, Any]] = {
    **{name: {"model": model} for name, model in MODELS.items()},
    "dropout": {"model": DROPOUT},
    "full_recompute": {"model": LLAMA | {"dropout": 0.2}, "recompute": "full"},
    "selective_recompute": {"model": LLAMA, "recompute": "selective"},
    "tiny_vocabulary": {"model": GPT | {"vocab_size": 5}},
}
OVERLAP = {"overlap_tp": True}
SEQUENCE = {"sequence_parallel": True}
CASES |= {
    f"{name}{suffix}": CASES[name] | changes
    for suffix, changes in (
        ("_overlap", OVERLAP), ("_sequence", SEQUENCE), ("_both", OVERLAP | SEQUENCE),
    )
    for name in ("llama_tied", "gpt_untied", "dropout", "full_recompute")
}  # fmt: skip
TP_SIZES = (2, 4)


def run_case(tp: int, case: str, dtype: torch.dtype) -> dict[str, Any]:
    """Loss, gradients and initial weights of one rank."""
    facts = dict(CASES[case])
    model = facts.pop("model")
    layout = make_layout(tp=tp, **facts)
    module, run = make_module(model, layout)
    initial = {name: p.detach().clone() for name, p in module.named_parameters()}
    marks = {
        name: (p.model_parallel, p.ds_pipe_replicated) for name, p in module.named_parameters()
    }
    module.to(dtype)
    loss, gradients = loss_and_gradients(module, make_batch(model["vocab_size"]), 3, 40)
    partial = [p.grad for p in partial_over_tp(module.parameters())]
    assert bool(partial) == layout.sequence_parallel
    sum_partial_gradients(partial, make_groups(run, layout).tp)
    return {"loss": loss, "gradients": gradients, "initial": initial, "marks": marks}


def run_cases(rank: int, tp: int) -> dict[tuple[str, torch.dtype], dict[str, Any]]:
    wanted = [(case, torch.float64) for case in CASES] + [("llama", torch.float32)]
    return {(case, dtype): run_case(tp, case, dtype) for case, dtype in wanted}


@cache
def ranks(tp: int) -> list[dict[tuple[str, torch.dtype], dict[str, Any]]]:
    """All cases on tp processes that are started once."""
    return run_ranks(tp, run_cases, tp) if tp > 1 else [run_cases(0, 1)]


@pytest.mark.parametrize("tp", TP_SIZES)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_every_gradient_equal_one_process(tp: int, case: str) -> None:
    compare(tp, case, torch.float64, loss_rtol=1e-12, gradient_rtol=1e-10)


@pytest.mark.parametrize("tp", TP_SIZES)
def test_loss_and_every_gradient_equal_one_process_in_float32(tp: int) -> None:
    compare(tp, "llama", torch.float32, loss_rtol=1e-6, gradient_rtol=1e-5)


def compare(
    tp: int, case: str, dtype: torch.dtype, *, loss_rtol: float, gradient_rtol: float
) -> None:
    """Errors are measured against the largest element of the full gradient."""
    one = ranks(1)[0][case, dtype]
    for rank in ranks(tp):
        torch.testing.assert_close(rank[case, dtype]["loss"], one["loss"], rtol=loss_rtol, atol=0)
        assert rank[case, dtype]["gradients"].keys() == one["gradients"].keys()
        for name, (shard, gradient) in rank[case, dtype]["gradients"].items():
            full = one["gradients"][name][1]
            expected = cut_of(full, shard)
            real = gradient.narrow(0, 0, expected.shape[0])
            largest = full.abs().max().item()
            assert largest > 0 or name.endswith("k_proj.bias"), name
            torch.testing.assert_close(
                real, expected, rtol=0, atol=gradient_rtol * largest + 1e-15, msg=name
            )
            assert not gradient.narrow(0, len(real), len(gradient) - len(real)).any(), name


@pytest.mark.parametrize("tp", TP_SIZES)
@pytest.mark.parametrize("case", MODELS)
def test_initial_weights_are_the_same_bits_in_every_layout(tp: int, case: str) -> None:
    one = ranks(1)[0][case, torch.float64]["initial"]
    for rank in ranks(tp):
        result = rank[case, torch.float64]
        for name, (shard, _) in result["gradients"].items():
            expected = cut_of(one[name], shard)
            assert torch.equal(result["initial"][name].narrow(0, 0, len(expected)), expected), name


@pytest.mark.parametrize("tp", TP_SIZES)
@pytest.mark.parametrize("case", MODELS)
def test_owned_shards_tile_every_cut_parameter_once(tp: int, case: str) -> None:
    one = ranks(1)[0][case, torch.float64]["gradients"]
    for name, (full, _) in one.items():
        owned = sorted(
            (shard.start, shard.stop)
            for rank in ranks(tp)
            for shard in [rank[case, torch.float64]["gradients"][name][0]]
            if shard.owner
        )
        dim = ranks(tp)[0][case, torch.float64]["gradients"][name][0].dim
        assert owned[0][0] == 0
        assert owned[-1][1] == full.full_shape[dim or 0]
        assert all(left[1] == right[0] for left, right in pairwise(owned))


def test_copies_of_a_kv_head_are_marked_once_for_the_gradient_norm() -> None:
    marks = [rank["llama", torch.float64]["marks"] for rank in ranks(4)]
    name = "layers.0.attention.k_proj.weight"
    assert [mark[name] for mark in marks] == [(True, False), (True, True)] * 2
    assert {mark["layers.0.attention.q_proj.weight"] for mark in marks} == {(True, False)}
    assert {mark["final_norm.weight"] for mark in marks} == {(False, False)}


def test_dropout_changes_the_loss() -> None:
    one = ranks(1)[0]
    assert one["dropout", torch.float64]["loss"] != one["gpt", torch.float64]["loss"]
