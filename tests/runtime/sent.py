"""How many bytes a rank sends over one group: counted where torch is asked to send."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch.distributed as dist

from launcher.runtime.groups import Axis


@contextmanager
def count_sent(axis: Axis) -> Iterator[dict[str, int]]:
    """By operation, while the context is open; a collective sends what a ring of ranks would."""
    sent: dict[str, int] = {}
    with ExitStack() as stack:
        for name, op in OPERATIONS.items():
            if hasattr(dist, name):
                counted = _counting(getattr(dist, name), op, axis, sent)
                stack.enter_context(patch.object(dist, name, counted))
        yield sent


OPERATIONS = {
    "all_gather_single": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_single": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_to_all_single": "all_to_all",
    "batch_isend_irecv": "send_recv",
}


def _counting(function: Any, op: str, axis: Axis, sent: dict[str, int]) -> Any:
    def counted(*args: Any, **kwargs: Any) -> Any:
        num_bytes = 0
        if axis.size > 1 and op == "send_recv":
            num_bytes = sum(
                each.tensor.nbytes
                for each in args[0]
                if each.group is axis.group and each.op is dist.isend
            )
        elif axis.size > 1 and kwargs.get("group") is axis.group:
            _, given = args
            whole = given.nbytes * (axis.size if op == "all_gather" else 1)
            num_bytes = whole * (axis.size - 1) // axis.size
        if num_bytes:
            sent[op] = sent.get(op, 0) + num_bytes
        return function(*args, **kwargs)

    return counted
