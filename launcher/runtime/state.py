"""The training state of a rank as views on live storage: what is saved, and filled on loading.

Every engine only enumerates its pieces; which box of which logical tensor they are is all that
saving and loading need, so that what one engine and layout saved any other can load.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from launcher.checkpoint.boxes import Box, Shape, flat_range_boxes, intersect, whole
from launcher.runtime.parallel.shard import Shard

OPTIMIZER_KINDS = {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "momentum": "momentum_buffer"}
"""Kind of a piece and torch's name of it in an optimizer's state."""


@dataclass(frozen=True, kw_only=True)
class StatePiece:
    """A box of one logical tensor, in float32, as this rank holds it."""

    kind: str
    """weight, exp_avg, exp_avg_sq or momentum (`checkpoint/manifest.KINDS`)."""
    name: str
    """Full logical name."""
    full_shape: Shape
    """Of the logical tensor."""
    box: Box
    """Which part of it."""
    tensor: Tensor
    """A view on the live storage, of shape `box.sizes`; writing to it changes the state."""
    is_owner: bool
    """False: a rank elsewhere on the tp or pp axis has the same and saves it."""
    copy: int = 0
    """Which of `num_copies` ranks this is that hold the very same piece and share its saving."""
    num_copies: int = 1


def shard_pieces(
    kind: str,
    shard: Shard,
    local_shape: Shape,
    values: Tensor,
    start: int = 0,
    *,
    copy: int = 0,
    num_copies: int = 1,
) -> Iterator[StatePiece]:
    """The pieces of a flat range of a rank's local parameter; rows of padding are left out.

    Args:
        kind: of the state.
        shard: which slice of the logical tensor the local parameter is.
        local_shape: of the local parameter, padding included.
        values: live and flat: elements [start, start + len(values)) of the local parameter, and
            perhaps more, which are ignored.
        start: see `values`.
        copy: see `StatePiece`.
        num_copies: see `StatePiece`.

    """
    assert values.dim() == 1
    assert values.dtype == torch.float32
    size = math.prod(local_shape)
    held, origin = _held_part(shard, tuple(local_shape))
    position = 0
    for box in flat_range_boxes(tuple(local_shape), start, min(size, start + values.numel())):
        block = values[position : position + box.num_elements].view(box.sizes)
        position += box.num_elements
        real = intersect(box, held)
        if real is None:
            continue
        yield StatePiece(
            kind=kind,
            name=shard.name,
            full_shape=shard.full_shape,
            box=real.moved(origin),
            tensor=block[real.slices(box.offsets)],
            is_owner=shard.owner,
            copy=copy,
            num_copies=num_copies,
        )


def prepare_optimizer_state(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """Make the state that torch would make in its first step, so that it can be filled before."""
    for parameter in parameters:
        state = optimizer.state[parameter]
        if isinstance(optimizer, torch.optim.AdamW):
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for key in ("exp_avg", "exp_avg_sq"):
                if key not in state:
                    state[key] = torch.zeros_like(parameter)
        elif optimizer.defaults.get("momentum") and state.get("momentum_buffer") is None:
            # A first step from zero is torch's own first step: 0 x momentum + gradient.
            state["momentum_buffer"] = torch.zeros_like(parameter)


def set_optimizer_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """How many updates the moments have seen: AdamW's bias correction depends on it."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].fill_(step)


def held_kinds(optimizer: torch.optim.Optimizer) -> list[tuple[str, str]]:
    """Kinds of state beside the weights, with torch's names."""
    if isinstance(optimizer, torch.optim.AdamW):
        return [(kind, OPTIMIZER_KINDS[kind]) for kind in ("exp_avg", "exp_avg_sq")]
    if optimizer.defaults.get("momentum"):
        return [("momentum", OPTIMIZER_KINDS["momentum"])]
    return []


def shard_of(parameter: Parameter) -> Shard:
    """Which slice of which logical tensor a parameter is."""
    shard = parameter.shard  # type: ignore[attr-defined]
    assert isinstance(shard, Shard)
    return shard


def _held_part(shard: Shard, local_shape: Shape) -> tuple[Box, Shape]:
    """The local box without padding, and where the local origin lies in the logical tensor."""
    if shard.dim is None:
        return whole(local_shape), (0,) * len(local_shape)
    sizes, origin = list(local_shape), [0] * len(local_shape)
    sizes[shard.dim], origin[shard.dim] = shard.stop - shard.start, shard.start
    return Box(offsets=(0,) * len(sizes), sizes=tuple(sizes)), tuple(origin)
