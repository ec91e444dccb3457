"""Which update rule runs, on which parameters with decay, and at which learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import Parameter

from launcher.config.schema import Optimizer
from launcher.runtime.outside_graphs import (
    spare_compiler_when_made,
    spare_compiler_when_stepping,
)


def build_optimizer(parameters: Iterable[Parameter], config: Optimizer) -> torch.optim.Optimizer:
    """The torch optimizer; its learning rate is set anew before every step."""
    groups = decay_groups(parameters, config.weight_decay)
    spare_compiler_when_made()
    return spare_compiler_when_stepping(_build(groups, config))


def _build(groups: list[dict[str, Any]], config: Optimizer) -> torch.optim.Optimizer:
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def decay_groups(parameters: Iterable[Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases, all of one dim, do not.

    Without decay there is one group, which spares ZeRO a second set of collectives.
    """
    parameters = list(parameters)
    if weight_decay == 0.0:
        return [{"params": parameters, "weight_decay": 0.0}]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def learning_rate(config: Optimizer, step: int, total_steps: int) -> float:
    """Learning rate of a step (the first is 0): linear warm-up, then the schedule.

    The last warm-up step runs at the peak, and the last step of a decay at its end value.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = step - config.warmup_steps
    progress = min(1.0, done / max(1, total_steps - 1 - config.warmup_steps))
    share = 1.0 - progress
    if config.schedule == "cosine":
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.min_learning_rate + share * (config.learning_rate - config.min_learning_rate)


def set_learning_rate(optimizer: Any, value: float) -> None:
    """Give every parameter group this learning rate (also through a ZeRO wrapper)."""
    for group in optimizer.param_groups:
        group["lr"] = value
