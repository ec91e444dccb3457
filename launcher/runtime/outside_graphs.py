"""Calls that torch.compile leaves alone, and that do not import it where nothing is compiled.

`torch._disable_dynamo` imports Dynamo, and with it parts of Inductor, at the first such call, also
in a run that compiles nothing: two seconds of a processor on every rank at every start. torch's
optimizers do so as they are made, and once more as they step.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer

Function = TypeVar("Function", bound=Callable[..., Any])
_OUTSIDE = "__dynamo_disable"
"""Where torch keeps what it calls instead of such a function; without it, it imports Dynamo."""


def outside_graphs(function: Function) -> Function:
    """Keep a function out of compiled graphs; it is called as it is while there is no compiler."""
    _call_as_it_is(function)
    return torch._disable_dynamo(function)  # type: ignore[attr-defined,no-any-return]


def spare_compiler_when_made() -> None:
    """Call before an optimizer is made."""
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        plain = inspect.unwrap(getattr(Optimizer, name))
        if not hasattr(plain, _OUTSIDE):
            _call_as_it_is(plain)


def spare_compiler_when_stepping(optimizer: Optimizer) -> Optimizer:
    """The same optimizer; its step is the bare rule of its kind, of which no gradient is taken."""
    rule = functools.partial(inspect.unwrap(type(optimizer).step), optimizer)
    optimizer.step = torch.no_grad()(rule)  # type: ignore[method-assign]
    return optimizer


def _call_as_it_is(function: Callable[..., Any]) -> None:
    setattr(function, _OUTSIDE, functools.partial(_call, function))


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """As torch does once the compiler is there; before, nobody follows this call."""
    if "torch._dynamo" not in sys.modules:
        return function(*args, **kwargs)
    outside = sys.modules["torch._dynamo"].disable(function, wrapping=False)
    setattr(function, _OUTSIDE, outside)
    return outside(*args, **kwargs)
