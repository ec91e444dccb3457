"""Learning-rate schedules and which parameters decay."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from launcher.config.schema import Optimizer
from launcher.runtime.optimizer import (
    build_optimizer,
    decay_groups,
    learning_rate,
    set_learning_rate,
)


def make(**fields: object) -> Optimizer:
    return Optimizer.model_validate({"name": "adamw", "learning_rate": 1.0} | fields)


def test_warm_up_rises_by_equal_steps_to_the_peak() -> None:
    config = make(warmup_steps=4)
    assert [learning_rate(config, step, 10) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_decay_starts_at_the_peak_and_ends_at_the_minimum_in_the_last_step(schedule: str) -> None:
    config = make(schedule=schedule, warmup_steps=2, min_learning_rate=0.1)
    rates = [learning_rate(config, step, 12) for step in range(12)]
    assert rates[2] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert learning_rate(make(schedule="cosine"), 5, 11) == pytest.approx(0.5)


def test_a_constant_rate_stays() -> None:
    assert {learning_rate(make(), step, 10) for step in range(10)} == {1.0}


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_runs_shorter_than_their_warm_up_have_a_rate(steps: int) -> None:
    config = make(schedule="cosine", warmup_steps=2)
    assert all(0 < learning_rate(config, step, steps) <= 1.0 for step in range(steps))


def test_matrices_decay_and_norms_and_biases_do_not() -> None:
    matrix, norm = Parameter(torch.ones(2, 2)), Parameter(torch.ones(2))
    groups = decay_groups([matrix, norm], 0.1)
    assert [(group["params"], group["weight_decay"]) for group in groups] == [
        ([matrix], 0.1),
        ([norm], 0.0),
    ]


def test_adamw_decay_is_decoupled_and_spares_norms() -> None:
    matrix, norm = Parameter(torch.ones(2, 2)), Parameter(torch.ones(2))
    optimizer = build_optimizer([matrix, norm], make(weight_decay=0.1))
    matrix.grad, norm.grad = torch.zeros(2, 2), torch.zeros(2)
    set_learning_rate(optimizer, 0.5)
    optimizer.step()
    assert torch.allclose(matrix, torch.full((2, 2), 0.95))
    assert torch.equal(norm, torch.ones(2))


def test_sgd_has_momentum_and_l2() -> None:
    optimizer = build_optimizer(
        [Parameter(torch.ones(2, 2))], make(name="sgd", momentum=0.9, weight_decay=0.1)
    )
    assert optimizer.param_groups[0]["momentum"] == 0.9
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
