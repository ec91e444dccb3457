"""Initial weights of matrices larger than what is drawn at once: shards are cuts of the whole."""

from __future__ import annotations

import pytest
import torch

from launcher.config.schema import Model
from launcher.plan.costs import ParameterSpec
from launcher.runtime.model.initial import TILE, initial_values
from launcher.runtime.parallel.shard import cut
from tests.factory import TINY

SHAPE = (TILE + 200, 2 * TILE + 40)


def draw(spec: ParameterSpec, index: int, size: int) -> torch.Tensor:
    shard, model = cut(spec, index, size), Model.model_validate(TINY)
    device, dtype = torch.device("cpu"), torch.float32
    return initial_values(spec, shard, spec.local_shape(size), model, 5, device, dtype)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_shards_put_together_are_the_whole_matrix(dim: int, size: int) -> None:
    spec = ParameterSpec(name="x.weight", shape=SHAPE, tp_dim=dim, num_units=SHAPE[dim])
    parts = [draw(spec, index, size) for index in range(size)]
    assert torch.equal(torch.cat(parts, dim), draw(spec, 0, 1))


def test_rows_of_padding_are_zero_and_the_others_are_not() -> None:
    spec = ParameterSpec(
        name="x.weight", shape=(10, 4), tp_dim=0, is_vocabulary=True, num_units=10
    )  # fmt: skip
    parts = [draw(spec, index, 4) for index in range(4)]
    assert [len(part) for part in parts] == [3, 3, 3, 3]
    assert torch.equal(torch.cat(parts)[:10], draw(spec, 0, 1))
    assert not torch.cat(parts)[10:].any()


def test_no_two_tiles_are_alike() -> None:
    spec = ParameterSpec(name="x.weight", shape=(2 * TILE, 2 * TILE))
    whole = draw(spec, 0, 1)
    tiles = [whole[r:, c:][:8, :8] for r in (0, TILE) for c in (0, TILE)]
    assert all(not torch.equal(a, b) for i, a in enumerate(tiles) for b in tiles[:i])
