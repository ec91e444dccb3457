"""Hugging Face weights as a checkpoint of ours, with the model's YAML beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import yaml

from launcher.checkpoint.boxes import whole
from launcher.checkpoint.files import Entry, write_file
from launcher.checkpoint.manifest import (
    FileRecord,
    Manifest,
    Piece,
    TensorRecord,
    manifest_text,
)
from launcher.checkpoint.publish import write_durably
from launcher.config.schema import Model
from launcher.convert.companions import FOLDER, copy_companions, find_companions
from launcher.convert.source import Weights
from launcher.convert.stream import read_pieces
from launcher.plan.costs import ParameterSpec, count_parameters, parameter_table


def launch_bytes(model: Model) -> int:
    """Size of the weights: float32, each once."""
    return 4 * count_parameters(model)


def write_launch(weights: Weights, folder: Path, max_shard_bytes: int) -> None:
    """Fill a new folder: weights in float32, manifest, conf/model/NAME.yaml, tokenizer files."""
    model = weights.model
    files: dict[str, FileRecord] = {}
    tensors: dict[str, TensorRecord] = {}
    for number, specs in enumerate(_shards(parameter_table(model), max_shard_bytes), start=1):
        name = f"weights_{number:05d}.safetensors"
        entries = [Entry(key=f"weight/{spec.name}", shape=spec.shape) for spec in specs]
        files[name] = write_file(folder / name, entries, _chunks(weights, specs))
        for spec in specs:
            piece = Piece(box=whole(spec.shape), file=name, key=f"weight/{spec.name}")
            tensors[piece.key] = TensorRecord(shape=spec.shape, pieces=(piece,))
    manifest = Manifest(
        step=0, consumed_samples=0, consumed_tokens=0, number=1, saved_at=time.time(), seed=0,
        files=files, tensors=tensors, run={"model": model.model_dump(mode="json")},
    )  # fmt: skip
    options = folder / "conf" / "model"
    options.mkdir(parents=True)
    write_durably(options / f"{model.name}.yaml", model_yaml(weights))
    if found := find_companions([weights.folder]):
        copy_companions(found, folder / FOLDER)
    # Last: a folder with a manifest is complete.
    write_durably(folder / "manifest.json", manifest_text(manifest))


def model_yaml(weights: Weights) -> str:
    """The text of an option of conf/model."""
    assert weights.family is not None
    count = count_parameters(weights.model)
    head = (
        f"# From config.json of {weights.folder.resolve().name} "
        f"({weights.family.architecture}): {count:,} parameters.\n"
    )
    fields = weights.model.model_dump(mode="json")
    return head + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _shards(specs: Sequence[ParameterSpec], max_bytes: int) -> Iterator[tuple[ParameterSpec, ...]]:
    """Tensors in order, cut where a file is full; a larger tensor has a file of its own."""
    shard: list[ParameterSpec] = []
    size = 0
    for spec in specs:
        num_bytes = 4 * math.prod(spec.shape)
        if shard and size + num_bytes > max_bytes:
            yield tuple(shard)
            shard, size = [], 0
        shard.append(spec)
        size += num_bytes
    yield tuple(shard)


def _chunks(weights: Weights, specs: Sequence[ParameterSpec]) -> Iterator[memoryview]:
    for spec in specs:
        for piece in read_pieces(weights.source, spec.name, weights.is_transposed(spec.name)):
            # Reshaping makes the one copy that a transposed piece needs.
            yield piece.reshape(-1).view(np.uint8).data
        weights.release()
