"""The interpreter of schedules: what it keeps alive, what it refuses, and that it cannot hang."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.multiprocessing.reductions import StorageWeakRef

from launcher.plan.mesh import build_mesh
from launcher.plan.schedule import Action, Schedule, build_schedule
from launcher.runtime.groups import build_groups
from launcher.runtime.model import ForwardContext
from launcher.runtime.pipeline.execute import (
    Microbatch,
    average_loss,
    join_backwards,
    run_forward,
    run_schedule,
)
from launcher.runtime.pipeline.p2p import Channels, build_channels
from tests.runtime.spawn import run_ranks
from tests.runtime.stages import make_layout

STAGES, SHAPE = 4, (2, 3, 8)
RECEIVES = ("recv_forward", "recv_backward")
GRID = [(name, count) for name in ("gpipe", "1f1b") for count in (1, 2, 3, 7)]


class Toy:
    """A stage of one matrix, which notes how many activations are alive."""

    def __init__(self, stage: int) -> None:
        generator = torch.Generator().manual_seed(stage)
        self.weight = nn.Parameter(torch.randn(8, 8, generator=generator) / 8**0.5)
        self.is_first, self.is_last = stage == 0, stage == STAGES - 1
        self.num_alive = self.peak = 0
        self.outputs: list[StorageWeakRef] = []
        self.alive_at_backward: list[bool] = []

    def forward(self, x: Tensor, context: Any) -> Tensor:
        self.num_alive += 1
        self.peak = max(self.peak, self.num_alive)
        if self.is_first:
            x = x.float().unsqueeze(-1).expand(*x.shape, 8) / 10
        # Subtracting saves nothing, so the output lives no longer than its last user.
        output = x @ self.weight - 0.1
        if self.is_last:
            return output.tanh().mean()
        self.outputs.append(StorageWeakRef(output.untyped_storage()))
        return output

    def backward(self, output: Tensor | GradientEdge, gradient: Tensor | None) -> None:
        if not self.is_last:
            self.alive_at_backward.append(not self.outputs.pop(0).expired())
        torch.autograd.backward(output, gradient)
        self.num_alive -= 1


def make_stage(rank: int) -> tuple[Toy, Channels, Any]:
    layout = make_layout(pp=STAGES)
    groups = build_groups(layout, build_mesh(layout), torch.device("cpu"), tied=False)
    return Toy(groups.pp.index), build_channels(groups, SHAPE, torch.float32), groups


def make_microbatches(count: int) -> list[Microbatch]:
    context = ForwardContext(labels_BS=None, step=0, first_sample=0)
    tokens = [torch.full(SHAPE[:2], index + 1) for index in range(count)]
    return [Microbatch(tokens_BS=t, context=context) for t in tokens]


def run_grid(rank: int) -> dict[tuple[str, int], dict[str, Any]]:
    _, channels, groups = make_stage(rank)
    stage, found = groups.pp.index, {}
    for name, count in GRID:
        toy, microbatches = Toy(stage), make_microbatches(count)
        schedule = build_schedule(name, STAGES, count)
        forward = run_forward(schedule, toy, channels, stage, microbatches)
        toy.num_alive = toy.peak = 0
        toy.outputs.clear()
        loss = run_schedule(schedule, toy, channels, stage, microbatches)
        found[name, count] = {
            "peak": toy.peak,
            "alive_at_backward": toy.alive_at_backward,
            "loss": loss,
            "forward": forward,
            "shared": average_loss(loss, groups),
            "gradient": toy.weight.grad,
        }
    return found


@cache
def grid() -> list[dict[tuple[str, int], dict[str, Any]]]:
    return run_ranks(STAGES, run_grid)


def in_one_process(count: int) -> tuple[Tensor, list[Tensor]]:
    stages = [Toy(stage) for stage in range(STAGES)]
    losses = []
    for microbatch in make_microbatches(count):
        x = microbatch.tokens_BS
        for stage in stages:
            x = stage.forward(x, None)
        losses.append(x)
        x.backward()
    gradients = [stage.weight.grad for stage in stages]
    return torch.stack(losses).mean().detach(), gradients


@pytest.mark.parametrize(("name", "count"), GRID)
def test_a_stage_keeps_as_many_microbatches_as_its_schedule_says(name: str, count: int) -> None:
    peaks = [found[name, count]["peak"] for found in grid()]
    closed_form = [min(STAGES - s, count) if name == "1f1b" else count for s in range(STAGES)]
    assert peaks == closed_form


@pytest.mark.parametrize(("name", "count"), GRID)
def test_an_output_is_freed_once_it_is_sent(name: str, count: int) -> None:
    for found in grid()[:-1]:
        assert found[name, count]["alive_at_backward"] == [False] * count


@pytest.mark.parametrize(("name", "count"), GRID)
def test_stages_compute_what_one_process_does(name: str, count: int) -> None:
    loss, gradients = in_one_process(count)
    for stage, found in enumerate(grid()):
        case = found[name, count]
        assert torch.allclose(case["gradient"], gradients[stage], rtol=1e-5, atol=1e-7)
        assert torch.allclose(case["shared"], loss)
        is_last = stage == STAGES - 1
        assert (case["loss"] is not None) == (case["forward"] is not None) == is_last


def test_forward_only_gives_the_loss_of_training() -> None:
    for case in grid()[-1].values():
        assert torch.equal(case["loss"], case["forward"])


def fail_in_the_middle(rank: int) -> tuple[str, float]:
    """The third stage breaks; the others lose its messages when it is gone."""
    toy, channels, groups = make_stage(rank)
    schedule, microbatches = build_schedule("1f1b", STAGES, 4), make_microbatches(4)
    if rank == 2:
        toy.forward = None  # type: ignore[assignment]
    start = time.monotonic()
    try:
        run_schedule(schedule, toy, channels, groups.pp.index, microbatches)
    except Exception as error:
        return type(error).__name__, time.monotonic() - start
    return "none", time.monotonic() - start


def test_a_stage_sees_its_own_error_at_once_and_its_neighbours_see_it_leave() -> None:
    found = run_ranks(STAGES, fail_in_the_middle, timeout_s=30.0)
    assert found[2][0] == "TypeError"
    assert found[1][0] == found[3][0] == "RuntimeError"
    assert all(seconds < 10.0 for _, seconds in found)


def run_alone(*actions: Action) -> None:
    """These actions on the only stage of a pipeline without links."""
    schedule = Schedule(name="broken", num_stages=1, num_microbatches=1, ranks=(actions,))
    toy = Toy(0)
    toy.is_last = True
    run_schedule(schedule, toy, make_channels(), 0, make_microbatches(1))


def make_channels() -> Channels:
    return Channels(links={}, shape=SHAPE, dtype=torch.float32, device=torch.device("cpu"))


def test_a_schedule_that_forgets_a_backward_is_refused() -> None:
    run_alone(Action("F", 0), Action("B", 0))
    with pytest.raises(AssertionError, match=r"leaves .* behind"):
        run_alone(Action("F", 0))


def test_an_action_that_is_not_known_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="action X"):
        run_alone(Action("X", 0))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [torch.zeros(1), torch.zeros(SHAPE, dtype=torch.bfloat16)])
def test_a_channel_carries_one_shape_and_type(wrong: Tensor) -> None:
    with pytest.raises(AssertionError, match=r"on a channel for \(2, 3, 8\)"):
        make_channels().send_forward(wrong)


def test_a_backward_with_its_weights_right_behind_it_is_one() -> None:
    parse = {"F": "F", "B": "B", "W": "W", "r": "recv_forward", "s": "send_backward"}

    def order(text: str) -> list[Action]:
        return [Action(parse[word[0]], int(word[1:])) for word in text.split()]

    joined, whole = join_backwards(
        order("F0 r1 B0 W0 F1 B1 r2 r3 W1 F2 B2 s2 W2 F3 B3 F4 W3 B4 W5")
    )
    assert joined == order("F0 r1 B0 F1 r2 r3 B1 F2 B2 s2 W2 F3 B3 F4 W3 B4 W5")
    assert whole == {(0, 0), (1, 0)}


@pytest.mark.parametrize("name", ["zb_h1", "zb_v", "dualpipev"])
@pytest.mark.parametrize("stages", [2, 4])
def test_joining_keeps_all_but_the_joined_and_the_order_of_every_channel(
    name: str, stages: int
) -> None:
    schedule = build_schedule(name, stages, 8)
    for stage, actions in enumerate(schedule.ranks):
        joined, whole = join_backwards(actions)
        kept = [a for a in actions if a.kind != "W" or a[1:] not in whole]
        assert sorted(map(str, joined)) == sorted(map(str, kept))
        assert stage or len(whole) == 8, "all whose input gradient goes nowhere"
        for kinds in (("F", "B", "W", "send_forward", "send_backward"), RECEIVES):
            assert [a for a in joined if a.kind in kinds] == [a for a in kept if a.kind in kinds]
