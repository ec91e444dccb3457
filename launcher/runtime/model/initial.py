"""What weights start from: the same values, bit for bit, in every layout."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from launcher.config.schema import Model
from launcher.plan.costs import ParameterSpec
from launcher.runtime.groups import Axis
from launcher.runtime.keys import hash_key
from launcher.runtime.parallel.shard import Shard, cut

TILE = 1024
"""Rows and columns drawn at once; part of the definition of the weights, so never change it."""


def materialise(
    module: nn.Module,
    specs: dict[str, ParameterSpec],
    model: Model,
    seed: int,
    tp: Axis,
    device: torch.device,
    below: str = "",
) -> None:
    """Replace every parameter on the meta device by this rank's shard with its initial values.

    `specs` tells by local name which parameter it is. Parameters become real one at a time;
    a parameter that two modules share stays shared. Each gets the marks `shard`,
    `model_parallel` and `ds_pipe_replicated` (both of the latter are read by DeepSpeed's norm).
    `below` is the path of a part, with a dot at its end; others then stay as they are.
    """
    made: dict[int, nn.Parameter] = {}
    for path, child in module.named_modules():
        if not f"{path}.".startswith(below):
            continue
        for key, meta in list(child.named_parameters(recurse=False)):
            if not meta.is_meta:
                continue
            if id(meta) not in made:
                spec = specs[f"{path}.{key}"]
                made[id(meta)] = _build_parameter(spec, model, seed, tp, device, meta.dtype)
            setattr(child, key, made[id(meta)])


def initial_values(
    spec: ParameterSpec, shard: Shard, local_shape: tuple[int, ...], model: Model, seed: int,
    device: torch.device, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """One shard: norms 1, biases 0, matrices normal, rows of padding 0."""
    local = torch.zeros(local_shape, device=device, dtype=dtype)
    if spec.name.endswith("norm.weight"):
        return local.fill_(1.0)
    if spec.name.endswith(".bias"):
        return local
    std = model.init_std
    if spec.name.endswith(("out_proj.weight", "down_proj.weight")):
        std /= math.sqrt(2 * model.num_layers)  # GPT-2's scaling of what adds to the residual
    _fill_normal(local, spec, shard, std, seed)
    return local


def _fill_normal(local: Tensor, spec: ParameterSpec, shard: Shard, std: float, seed: int) -> None:
    """Draw the full matrix in square tiles and keep what belongs to the shard.

    Each tile has its own generator (seed, full name, place), always float32 on the CPU: a rank
    draws only the tiles that it needs a part of, and never holds more than one of them.
    """
    num_rows, num_columns = spec.shape
    kept = range(shard.start, shard.stop)
    rows = kept if shard.dim == 0 else range(num_rows)
    columns = kept if shard.dim == 1 else range(num_columns)
    generator = torch.Generator()
    for row in _tile_starts(rows):
        for column in _tile_starts(columns):
            shape = (min(TILE, num_rows - row), min(TILE, num_columns - column))
            generator.manual_seed(hash_key(seed, spec.name, row, column))
            values = torch.empty(shape).normal_(0.0, std, generator=generator)
            into_rows, from_rows = _overlap(row, shape[0], rows)
            into_columns, from_columns = _overlap(column, shape[1], columns)
            local[into_rows, into_columns].copy_(values[from_rows, from_columns])


def _tile_starts(kept: range) -> range:
    return range(kept.start - kept.start % TILE, kept.stop, TILE)


def _overlap(start: int, length: int, kept: range) -> tuple[slice, slice]:
    """Where a tile and what is kept meet: counted from what is kept, and from the tile."""
    first, end = max(start, kept.start), min(start + length, kept.stop)
    return slice(first - kept.start, end - kept.start), slice(first - start, end - start)


def _build_parameter(
    spec: ParameterSpec, model: Model, seed: int, tp: Axis, device: torch.device, dtype: torch.dtype
) -> nn.Parameter:
    shard = cut(spec, tp.index, tp.size)
    values = initial_values(spec, shard, spec.local_shape(tp.size), model, seed, device, dtype)
    parameter = nn.Parameter(values)
    parameter.shard = shard  # type: ignore[attr-defined]
    parameter.model_parallel = shard.dim is not None  # type: ignore[attr-defined]
    # A copy of a kv head. Copies over the whole tp group (norms) are told by model_parallel.
    is_copy = shard.dim is not None and not shard.owner
    parameter.ds_pipe_replicated = is_copy  # type: ignore[attr-defined]
    return parameter
