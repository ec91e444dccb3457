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


def make_case(tp: int, case: str) -> StageModule:
    model, recompute = CASES[case]
    return make_module(model, make_layout(tp=tp, recompute=recompute))[0]


def compare(eager: StageModule, compiled: StageModule) -> None:
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
            assert count_graphs() > before, "nothing was compiled"
            before = count_graphs()
    assert count_graphs() == before, "the second step compiled again"


def run_cases(rank: int, tp: int, cases: tuple[str, ...]) -> None:
    for case in cases:
        compiled = make_case(tp, case)
        apply_compile(compiled, backend="aot_eager")
        compare(make_case(tp, case), compiled)


@pytest.mark.parametrize("case", CASES)
def test_compiled_blocks_give_the_same_gradients(case: str) -> None:
    run_cases(0, 1, (case,))


def test_compiled_blocks_give_the_same_gradients_under_tensor_parallelism() -> None:
    run_ranks(2, run_cases, 2, tuple(CASES))


def test_generated_code_gives_the_same_gradients_and_serves_all_blocks() -> None:
    torch.compiler.reset()
    before = count_graphs()
    compare(make_case(1, "plain"), make_module(LLAMA, **{"train.compile": True})[0])
    assert count_graphs() == before + 1
