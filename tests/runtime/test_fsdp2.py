"""What FSDP2 promises beside parity: traffic as planned, little held whole, compiled blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from launcher.plan.memory_fsdp2 import gathered_per_microbatch
from launcher.runtime.model import StageModule
from launcher.runtime.parallel.apply import apply_compile
from tests.runtime.parity import Case, build_worker, measure
from tests.runtime.spawn import run_ranks
from tests.runtime.stages import make_stage

CALLS = {  # by their names before and after torch 2.12
    "gather": ("all_gather_into_tensor", "all_gather_single"),
    "reduce": ("reduce_scatter_tensor", "reduce_scatter_single"),
}
TRAFFIC = [
    Case(dp=2, zero=zero, model=model, schedule=schedule, engine="fsdp2")
    for zero in (1, 2, 3)
    for model, schedule in (("tied", "1f1b"), ("untied", "gpipe"))
]


@contextmanager
def counted_elements() -> Iterator[Counter[str]]:
    """Elements of whole groups that are gathered and reduced."""
    found: Counter[str] = Counter()

    def wrap(kind: str, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            tensors = [*args, *kwargs.values()]
            sizes = [value.numel() for value in tensors if isinstance(value, torch.Tensor)]
            found[kind] += max(sizes)
            return original(*args, **kwargs)

        return call

    with ExitStack() as stack:
        for kind, names in CALLS.items():
            for name in names:
                if hasattr(dist, name):
                    call = wrap(kind, getattr(dist, name))
                    stack.enter_context(mock.patch.object(dist, name, call))
        yield found


def count_traffic(rank: int, cases: list[Case]) -> dict[Case, tuple[int, int, int]]:
    """Elements gathered and reduced in the second step, and the parameters."""
    found = {}
    for case in cases:
        worker = build_worker(case)
        for step in range(2):
            with counted_elements() as elements:
                worker.accumulate(step)
            worker.engine.step(1e-3)
        size = sum(weight.numel() for weight in worker.engine.weights().values())
        found[case] = elements["gather"], elements["reduce"], size
    return found


def test_groups_are_gathered_and_reduced_as_often_as_the_plan_says() -> None:
    for found in run_ranks(2, count_traffic, TRAFFIC):
        for case, (gathered, reduced, size) in found.items():
            model = case.run().model
            stage = make_stage(model.num_layers)
            count = case.num_microbatches
            each = gathered_per_microbatch(model, stage, 1, size)
            planned = size if case.zero < 3 else count * each
            # Rows are padded to a multiple of dp: 97 of the vocabulary, here.
            assert planned <= gathered < 1.01 * planned, str(case)
            planned = size * (1 if case.zero == 1 else count)
            assert planned <= reduced < 1.01 * planned, str(case)


def test_no_rank_ever_holds_more_than_one_group_whole() -> None:
    held: list[int] = []

    def watch(group: Any, **kwargs: Any) -> Any:
        parameters = [] if root is None else list(root.parameters())
        held.append(sum(p.numel() for p in parameters if not p.is_meta and not is_cut(p)))
        return fully_shard(group, **kwargs)

    def is_cut(parameter: Any) -> bool:
        return hasattr(parameter, "placements")

    case = Case(zero=3, model="untied", engine="fsdp2")
    root = None
    original = StageModule.__init__

    def remember(self: StageModule, *args: Any) -> None:
        nonlocal root
        original(self, *args)
        root = self

    with (
        mock.patch("launcher.runtime.engine_fsdp2.fully_shard", watch),
        mock.patch.object(StageModule, "__init__", remember),
    ):
        worker = build_worker(case)
    sizes = {name: weight.numel() for name, weight in worker.engine.weights().items()}
    groups = ["embedding.", *(f"layers.{layer}." for layer in worker.engine.module.layers)]
    expected = [sum(n for name, n in sizes.items() if name.startswith(group)) for group in groups]
    assert held[:-2] == expected
    assert held[-1] == 0, "the root has nothing left to cut"


def compile_case(rank: int, case: Case) -> Any:
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    with mock.patch(
        "launcher.runtime.model.stage.apply_compile",
        lambda module: apply_compile(module, backend="aot_eager"),
    ):
        gap = measure(case, **{"train.compile": True})
    return gap, counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_compiled_blocks_are_gathered_around(recompute: str) -> None:
    case = Case(dp=2, zero=3, model="small", recompute=recompute, engine="fsdp2")
    for gap, num_graphs in run_ranks(2, compile_case, case):
        assert num_graphs > 0, "nothing was compiled"
        assert gap.loss < 1e-5
        assert gap.grad_norm < 1e-5
        assert max(gap.gradients.values()) < 1e-4
        assert max(gap.weights.values()) < 1e-5


def test_initial_weights_are_those_of_every_other_engine() -> None:
    ours = Case(zero=3, engine="fsdp2", precision="bf16")
    plain = replace(ours, zero=0, engine="deepspeed")
    mine, theirs = (build_worker(case).engine.weights() for case in (ours, plain))
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():
        assert torch.equal(weight, theirs[name]), name
