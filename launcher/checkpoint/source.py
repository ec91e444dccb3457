"""Where tensors come from, whatever the files behind them are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Shape = tuple[int, ...]


class TensorSource(Protocol):
    """Named tensors by full logical name, any part of which can be read.

    Nothing is read before it is asked for, and never more of a tensor than is asked for.
    """

    def names(self) -> Sequence[str]:
        """Full logical names (`plan/costs.parameter_table`)."""

    def shape(self, name: str) -> Shape:
        """Whole shape, without padding; KeyError where there is no such tensor."""

    def read(self, name: str, offsets: Shape, sizes: Shape) -> NDArray[Any]:
        """A box of the tensor as float32; may be a read-only view of a mapped file."""
