"""Which slice of which full parameter a rank holds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from launcher.plan.costs import ParameterSpec


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One local parameter as a slice of the full one."""

    name: str
    """Full logical name, the same in every layout."""
    full_shape: tuple[int, ...]
    """Shape in one process, without padding."""
    dim: int | None
    """Dimension that is cut; None: this rank holds all of it."""
    start: int
    """First index along `dim` (0 without a cut)."""
    stop: int
    """End index; the local tensor may be longer by rows of padding, which stay zero."""
    owner: bool
    """False for a copy whose owner is another rank on the tp or pp axis."""


def cut(spec: ParameterSpec, index: int, size: int) -> Shard:
    """The shard of tp rank `index` of `size`; neighbours share a kv head where tp exceeds them."""
    if size == 1 or spec.tp_dim is None:
        stop = spec.shape[0] if spec.tp_dim is None else spec.shape[spec.tp_dim]
        return _shard(spec, None, 0, stop, owner=index == 0)
    full, local = spec.shape[spec.tp_dim], spec.local_shape(size)[spec.tp_dim]
    num_sharers = size // spec.num_units if spec.is_kv and size > spec.num_units else 1
    assert spec.is_vocabulary or local * size == full * num_sharers, f"{spec.name} by {size}"
    start = min(index // num_sharers * local, full)
    stop = min(start + local, full)
    return _shard(spec, spec.tp_dim, start, stop, owner=index % num_sharers == 0)


def local_shards(module: nn.Module) -> dict[str, Shard]:
    """The shard behind every parameter of a stage module, by its name in the module."""
    return {name: parameter.shard for name, parameter in module.named_parameters()}  # type: ignore[attr-defined]


def _shard(spec: ParameterSpec, dim: int | None, start: int, stop: int, owner: bool) -> Shard:
    return Shard(
        name=spec.name, full_shape=spec.shape, dim=dim, start=start, stop=stop, owner=owner
    )
