"""A checkpoint of ours as a Hugging Face folder that `from_pretrained` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.checkpoint.publish import write_durably
from launcher.config.schema import Model
from launcher.convert.companions import copy_companions, original_config
from launcher.convert.config_json import render_config
from launcher.convert.hf_folder import INDEX, stored_entries, stored_shape
from launcher.convert.numbers import NAMES, from_float32, item_size
from launcher.convert.source import Weights
from launcher.convert.stream import read_joined
from launcher.convert.tensor_file import NewTensor, TensorFileWriter
from launcher.plan.costs import count_parameters, parameter_table


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """One tensor of theirs and what it is made of."""

    new: NewTensor
    parts: tuple[str, ...]
    is_transposed: bool


def hf_bytes(model: Model, dtype: str) -> int:
    """Size of the weights, each once."""
    return item_size(NAMES[dtype]) * count_parameters(model)


def write_hf(
    weights: Weights,
    folder: Path,
    max_shard_bytes: int,
    dtype: str,
    companions: dict[str, Path],
) -> None:
    """Fill a new folder: sharded weights, their index, config.json, tokenizer files.

    Raises ConfigError where no class of theirs computes the model.
    """
    family, config = render_config(weights.model, dtype, original_config(companions))
    shapes = {spec.name: spec.shape for spec in parameter_table(weights.model)}
    tensors = [
        _Tensor(
            new=NewTensor(name=name, dtype=NAMES[dtype], shape=stored_shape(shapes, entry, parts)),
            parts=parts,
            is_transposed=entry.is_transposed,
        )
        for name, entry, parts in stored_entries(family, weights.model)
    ]
    shards = _shards(tensors, max_shard_bytes)
    names = [_shard_name(number, len(shards)) for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_shard(weights, folder / name, shard)
    if len(shards) > 1:
        write_durably(folder / INDEX, _index_text(names, shards))
    copy_companions({n: p for n, p in companions.items() if n != "config.json"}, folder)
    write_durably(folder / "config.json", config)


def _write_shard(weights: Weights, path: Path, shard: Sequence[_Tensor]) -> None:
    writer = TensorFileWriter(path, [tensor.new for tensor in shard])
    try:
        for tensor in shard:
            for piece in read_joined(weights.source, tensor.parts, tensor.is_transposed):
                writer.append(from_float32(piece, tensor.new.dtype))
            weights.release()
        writer.close()
    finally:
        writer.abandon()


def _shards(tensors: Sequence[_Tensor], max_bytes: int) -> list[list[_Tensor]]:
    """In order, cut where a file is full; a larger tensor has a file of its own."""
    shards: list[list[_Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.new.num_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.new.num_bytes
    return shards


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _index_text(names: Sequence[str], shards: Sequence[Sequence[_Tensor]]) -> str:
    places = {
        tensor.new.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard
    }
    total = sum(tensor.new.num_bytes for shard in shards for tensor in shard)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2) + "\n"
