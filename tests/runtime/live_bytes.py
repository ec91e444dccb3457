"""How many bytes of tensors are alive at most while something runs: every storage counted once."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Sees the storage of every result; what was there before is not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._meet(tensor, is_new=False)
        result = function(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._meet(tensor, is_new=True)
        return result

    def _meet(self, tensor: torch.Tensor, is_new: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        num_bytes = storage.nbytes() if is_new else 0
        self.now += num_bytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._part, key, num_bytes)

    def _part(self, key: int, num_bytes: int) -> None:
        self._seen.discard(key)
        self.now -= num_bytes


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
