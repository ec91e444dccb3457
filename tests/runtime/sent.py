"""How many bytes a rank sends over one group: counted where `runtime/collectives.py` asks torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch.distributed as dist

from launcher.runtime import collectives
from launcher.runtime.groups import Axis


@contextmanager
def count_sent(axis: Axis) -> Iterator[dict[str, int]]:
    """By operation, while the context is open; a collective sends what a ring of ranks would."""
    sent: dict[str, int] = {}
    counting = _Counting(axis, sent)
    scatter = counting.scatter(collectives._scatter_by_exchange)
    with (
        patch.object(collectives, "dist", counting),
        patch.object(collectives, "_scatter_by_exchange", scatter),
    ):
        yield sent


class _Counting:
    """torch.distributed as that module sees it."""

    def __init__(self, axis: Axis, sent: dict[str, int]) -> None:
        self._axis, self._sent = axis, sent

    def scatter(self, by_exchange: Callable[..., Any]) -> Callable[..., Any]:
        """A reduce-scatter that is made of an all-to-all counts as what it is for."""

        def counted(parts: Any, axis: Axis) -> Any:
            before = self._sent.copy()
            pending = by_exchange(parts, axis)
            moved = self._sent.pop("all_to_all", 0) - before.get("all_to_all", 0)
            self._sent |= {"all_to_all": before["all_to_all"]} if "all_to_all" in before else {}
            return self._count("reduce_scatter", moved, lambda: pending)

        return counted

    def __getattr__(self, name: str) -> Any:
        found = getattr(dist, name)
        if name == "batch_isend_irecv":
            return lambda transfers: self._count(
                "send_recv", _sends(transfers, self._axis), lambda: found(transfers)
            )
        op = OPERATIONS.get(name)
        if op is None:
            return found

        def counted(into: Any, given: Any, **kwargs: Any) -> Any:
            size = self._axis.size
            whole = given.nbytes * (size if op == "all_gather" else 1)
            is_here = kwargs["group"] is self._axis.group
            share = whole * (size - 1) // size if is_here else 0
            return self._count(op, share, lambda: found(into, given, **kwargs))

        return counted

    def _count(self, op: str, num_bytes: int, call: Callable[[], Any]) -> Any:
        if num_bytes:
            self._sent[op] = self._sent.get(op, 0) + num_bytes
        return call()


OPERATIONS = {
    "all_gather_single": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_single": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_to_all_single": "all_to_all",
}


def _sends(transfers: list[Any], axis: Axis) -> int:
    return sum(
        each.tensor.nbytes
        for each in transfers
        if each.group is axis.group and each.op is dist.isend
    )
