"""Short messages between ranks that cost nobody a collective: torch's key-value store."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

PATIENCE_S = 1800.0
"""So long a rank waits for others to write or check; one that died ends the job much earlier."""


class Board:
    """Messages under names; safe to use from a background thread beside running collectives.

    Waiting is done by asking again and again: a blocking wait would hold the connection that
    the training thread needs as well.
    """

    def __init__(self, rank: int, world_size: int, store: dist.Store | None = None) -> None:
        """Without a store of its own: the job's."""
        self.rank, self.world_size = rank, world_size
        if store is None:
            alone = world_size == 1
            store = dist.HashStore() if alone else dist.distributed_c10d._get_default_store()
        self._store = dist.PrefixStore("checkpoint", store)

    def put(self, name: str, message: Any) -> None:
        """Publish a JSON value under a name that was not used before."""
        self._store.set(name, json.dumps(message))

    def has(self, names: Sequence[str]) -> bool:
        """Whether all of these are there."""
        return self._store.check(list(names))

    def wait(self, names: Sequence[str], timeout_s: float) -> list[Any]:
        """The messages under these names; TimeoutError where one does not come."""
        deadline = time.monotonic() + timeout_s
        pause_s = 0.002
        while not self.has(names):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no message from another rank within {timeout_s:.0f} s")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.1)
        return [json.loads(text) for text in self._store.multi_get(list(names))]

    def drop(self, names: Sequence[str]) -> None:
        """Forget messages that everybody has read."""
        for name in names:
            self._store.delete_key(name)
