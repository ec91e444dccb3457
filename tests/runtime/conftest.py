"""What the tests of the runtime share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _leaves_no_process_group() -> Iterator[None]:
    """An engine of one process meets itself; the next test starts without."""
    yield
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()
