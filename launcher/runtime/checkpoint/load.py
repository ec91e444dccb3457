"""Fills the live state of any engine and layout from tensors by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from launcher.checkpoint.reader import Checkpoint
from launcher.checkpoint.source import TensorSource
from launcher.errors import RunFailed
from launcher.runtime.engine import Engine
from launcher.runtime.state import StatePiece


def load_checkpoint(engine: Engine, checkpoint: Checkpoint) -> list[str]:
    """Weights and optimizer state; every rank must call it.

    Returns the kinds of optimizer state that the checkpoint does not have, as after a change of
    the update rule: they start from zero, and so does the count of updates.
    """
    held = checkpoint.manifest.kinds
    missing = sorted({piece.kind for piece in engine.state()} - set(held))
    _fill(
        (piece for piece in engine.state() if piece.kind in held),
        lambda kind: checkpoint.source(kind),
    )
    engine.state_loaded(0 if missing else checkpoint.manifest.step)
    return missing


def load_weights(engine: Engine, source: TensorSource) -> None:
    """Weights alone, as of a model to start from; every rank must call it."""
    _fill((piece for piece in engine.state() if piece.kind == "weight"), lambda kind: source)
    engine.state_loaded(0)


@torch.no_grad()
def _fill(pieces: Iterable[StatePiece], source_of: Callable[[str], TensorSource]) -> None:
    problems = []
    for piece in pieces:
        source = source_of(piece.kind)
        if problem := _mismatch(piece, source):
            problems.append(problem)
            continue
        values = source.read(piece.name, piece.box.offsets, piece.box.sizes)
        if piece.tensor.device.type == "cpu":
            np.copyto(piece.tensor.numpy(), values)  # one copy, out of the mapped file
        else:
            piece.tensor.copy_(torch.from_numpy(np.array(values)))
    if problems:
        shown = "; ".join(dict.fromkeys(problems[:8]))
        raise RunFailed(f"the saved weights are of another model: {shown}")


def _mismatch(piece: StatePiece, source: TensorSource) -> str | None:
    try:
        shape = tuple(source.shape(piece.name))
    except KeyError:
        return f"there is no {piece.name}"
    if shape != piece.full_shape:
        return f"{piece.name} is {list(shape)}, here {list(piece.full_shape)}"
    return None
