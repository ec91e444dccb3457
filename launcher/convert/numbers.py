"""Number formats of stored weights, and float32 from and to them without torch."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

STORED = {"F32": "<f4", "BF16": "<u2", "F16": "<f2"}
"""safetensors' name of a format -> how numpy holds it (bfloat16 as its 16 bits)."""

NAMES = {"float32": "F32", "bfloat16": "BF16"}
"""What a user types -> safetensors' name; what we write."""


def item_size(dtype: str) -> int:
    """Bytes of one number."""
    return np.dtype(STORED[dtype]).itemsize


def to_float32(stored: Array, dtype: str) -> Array:
    """The same values in float32; exact for every format that is read."""
    if dtype != "BF16":
        return stored.astype(np.float32, copy=False)
    # bfloat16 is the upper half of float32.
    wide = np.empty(stored.shape, dtype=np.float32)
    np.left_shift(stored, 16, out=wide.view(np.uint32), dtype=np.uint32)
    return wide


def from_float32(values: Array, dtype: str) -> Array:
    """Nearest values of the format, ties to even, as torch rounds."""
    if dtype != "BF16":
        return values.astype(STORED[dtype], copy=False)
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    rounded[np.isnan(values)] = 0x7FC0  # adding to a NaN's bits could make it infinite
    return rounded
