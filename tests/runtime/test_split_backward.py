"""A backward in two parts gives the gradients of a whole one, and the second part really waits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from launcher.runtime.parallel.split_backward import WeightQueue, split_backward
from tests.runtime.stages import MODELS, loss_and_gradients, make_batch, make_module


def test_a_linear_layer_is_what_it_was() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3, bias=False)).double()
    x = torch.randn(2, 4, 5, dtype=torch.double, requires_grad=True)
    plain(x).square().sum().backward()
    expected = [x.grad, *(p.grad for p in plain.parameters())]
    x.grad = None
    for parameter in plain.parameters():
        parameter.grad = None
    names = [name for name, _ in plain.named_parameters()]
    queue = split_backward(plain)
    assert [name for name, _ in plain.named_parameters()] == names
    with queue.collect("one"):
        plain(x).square().sum().backward()
    assert torch.allclose(x.grad, expected[0])
    assert plain[0].weight.grad is None
    assert plain[2].weight.grad is None
    assert torch.allclose(plain[0].bias.grad, expected[2])
    queue.compute("one")
    found = [x.grad, *(p.grad for p in plain.parameters())]
    assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))
    assert len(queue) == 0


def test_gradients_of_several_backwards_wait_apart_and_add_up() -> None:
    linear = nn.Sequential(nn.Linear(3, 3, bias=False)).double()
    queue = split_backward(linear)
    inputs = torch.eye(3, dtype=torch.double)
    for key in range(3):
        with queue.collect(key):
            linear(inputs[key : key + 1]).sum().backward()
    assert len(queue) == 3
    queue.compute(1)
    assert linear[0].weight.grad.sum(0).tolist() == [0, 3, 0]
    queue.compute(0)
    queue.compute(2)
    assert linear[0].weight.grad.tolist() == [[1, 1, 1]] * 3


def test_hooks_on_gradients_run_when_the_gradient_is_made() -> None:
    linear = nn.Sequential(nn.Linear(2, 2, bias=False))
    queue, seen = split_backward(linear), []
    linear[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    with queue.collect(0):
        linear(torch.ones(1, 2)).sum().backward()
    assert seen == []
    queue.compute(0)
    assert len(seen) == 1


def test_an_engine_without_hooks_has_products_added_to_the_gradient_itself() -> None:
    linear, seen = nn.Sequential(nn.Linear(2, 2, bias=False)), []
    queue = split_backward(linear)
    queue.adds_in_place = True
    linear[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))
    for key in range(3):
        with queue.collect(key):
            linear(torch.ones(4, 2)).sum().backward()
    queue.compute(0)
    first = linear[0].weight.grad
    queue.compute(1)
    queue.compute(2)
    assert linear[0].weight.grad is first
    assert first.tolist() == [[12, 12], [12, 12]]
    assert seen == [], "not even the first goes through autograd"


def test_a_failed_backward_leaves_nothing_behind() -> None:
    queue = WeightQueue()
    with pytest.raises(ZeroDivisionError), queue.collect(0):
        raise ZeroDivisionError
    assert len(queue) == 0
    x, weight = torch.ones(1, 2), nn.Parameter(torch.ones(2, 2))
    with pytest.raises(AssertionError, match="stands in `collect`"):
        queue.linear(x, weight).sum().backward()


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_whole_model_gets_the_same_gradients(name: str, recompute: str) -> None:
    from launcher.runtime.parallel.apply import apply_recompute

    plain, run = make_module(MODELS[name])
    window = make_batch(run.model.vocab_size)
    loss, expected = loss_and_gradients(plain, window)
    module, _ = make_module(MODELS[name])
    apply_recompute(module, recompute)
    queue = split_backward(module)
    with queue.collect("all"):
        split_loss, first = loss_and_gradients(module, window)
    waiting = [n for n, (_, gradient) in first.items() if gradient is None]
    assert {n.rsplit(".", 2)[-2] for n in waiting} >= {"q_proj", "out_proj", "up_proj", "down_proj"}
    queue.compute("all")
    assert torch.allclose(loss, split_loss, rtol=1e-6)
    for key, parameter in module.named_parameters():
        assert torch.allclose(parameter.grad, expected[key][1], rtol=1e-5, atol=1e-7), key


def test_outside_of_collect_products_are_added_up_at_once() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3, bias=False)).double()
    inputs = torch.randn(3, 2, 4, 5, dtype=torch.double)
    for x in inputs:
        plain(x).square().sum().backward()
    expected = [p.grad for p in plain.parameters()]
    for parameter in plain.parameters():
        parameter.grad = None
    queue = split_backward(plain)
    queue.adds_in_place = True
    plain(inputs[0]).square().sum().backward()
    first = plain[2].weight.grad
    with queue.collect("later"):
        plain(inputs[1]).square().sum().backward()
    plain(inputs[2]).square().sum().backward()
    queue.compute("later")
    assert plain[2].weight.grad is first, "no gradient of its own after the first"
    found = [p.grad for p in plain.parameters()]
    assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))
