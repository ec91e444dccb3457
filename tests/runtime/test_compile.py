"""Compiled blocks give the numbers of eager ones, in one process and under tensor parallelism.

Most cases stop before code generation (`aot_eager`), which costs seconds and changes no graph.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from launcher.runtime.model import StageModule
from launcher.runtime.parallel.apply import apply_compile
from tests.runtime.spawn import run_ranks
from tests.runtime.stages import LLAMA, loss_and_gradients, make_batch, make_layout, make_module

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "plain": (LLAMA, "none"),
    "dropout": (LLAMA | {"dropout": 0.2, "attention_dropout": 0.2}, "none"),
    "selective": (LLAMA, "selective"),
    "full": (LLAMA | {"dropout": 0.2}, "full"),
}


def count_graphs() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def make_case(case: str, cp_mode: str = "ring", **degrees: int) -> StageModule:
    model, recompute = CASES[case]
    layout = make_layout(recompute=recompute, **degrees)
    return make_module(model, layout, **{"parallelism.cp_mode": cp_mode})[0]


def compare(eager: StageModule, compiled: StageModule, is_new: bool = True) -> None:
    """Two steps, so that what is keyed by the step is compared and may not compile again."""
    before = count_graphs()
    for step in range(2):
        module_results = []
        for module in (eager, compiled):
            module.zero_grad()
            module_results.append(loss_and_gradients(module, make_batch(257), step))
        (loss, gradients), (other_loss, other_gradients) = module_results
        torch.testing.assert_close(other_loss, loss, rtol=1e-6, atol=0)
        for name, (_, gradient) in gradients.items():
            atol = 1e-5 * gradient.abs().max().item()
            other = other_gradients[name][1]
            torch.testing.assert_close(other, gradient, rtol=0, atol=atol, msg=name)
        if step == 0:
            assert (count_graphs() > before) == is_new, "compiled, or not"
            before = count_graphs()
    assert count_graphs() == before, "the second step compiled again"


def run_case(case: str, is_new: bool = True, **layout: Any) -> None:
    compiled = make_case(case, **layout)
    apply_compile(compiled, backend="aot_eager")
    compare(make_case(case, **layout), compiled, is_new)


def run_parallel(rank: int) -> None:
    for case in CASES:
        run_case(case, tp=2)
    torch.compiler.reset()
    for mode in ("ring", "all_gather", "ulysses"):  # the second uses the first one's graphs
        run_case("plain", is_new=mode != "all_gather", cp=2, cp_mode=mode)


@pytest.mark.parametrize("case", CASES)
def test_compiled_blocks_give_the_same_gradients(case: str) -> None:
    run_case(case)


def test_compiled_blocks_give_the_same_gradients_under_tensor_and_context_parallelism() -> None:
    run_ranks(2, run_parallel, timeout_s=400.0)


def test_generated_code_gives_the_same_gradients_and_serves_all_blocks() -> None:
    torch.compiler.reset()
    before = count_graphs()
    compare(make_case("plain"), make_module(LLAMA, **{"train.compile": True})[0])
    assert count_graphs() == before + 1
