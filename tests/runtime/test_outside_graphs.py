"""Where nothing is compiled no rank imports torch's compiler, and optimizers step as torch's do."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from launcher.config.schema import Optimizer
from launcher.runtime.optimizer import build_optimizer

PROGRAM = """
import sys
from launcher.runtime.optimizer import build_optimizer
from tests.runtime.stages import GPT, loss_and_gradients, make_batch, make_module

module, run = make_module(GPT, **{"model.attention_dropout": 0.1})
loss_and_gradients(module, make_batch(257))
optimizer = build_optimizer(module.parameters(), run.optimizer)
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
optimizer.zero_grad()
assert "torch._dynamo" not in sys.modules
"""


def test_a_rank_that_compiles_nothing_imports_no_compiler():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def make_weights() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (3,)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_optimizer_steps_bit_for_bit_as_by_torchs_own_step(name):
    ours, plain = make_weights(), make_weights()
    config = Optimizer(name=name, learning_rate=0.1, weight_decay=0.1, momentum=0.9)
    optimizers = [build_optimizer(weights, config) for weights in (ours, plain)]
    del optimizers[1].step  # back to that of its class
    for step in range(3):
        for weights, optimizer in zip((ours, plain), optimizers, strict=True):
            loss = sum((weight.sin() * (step + 1)).sum() for weight in weights)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
