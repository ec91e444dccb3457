"""Small checkpoints made by hand, for tests without torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from launcher.checkpoint.boxes import Box, Shape, flat_range_boxes
from launcher.checkpoint.files import Entry, write_file
from launcher.checkpoint.manifest import FileRecord, Manifest, Piece, TensorRecord
from launcher.checkpoint.publish import begin, publish

SHAPES: dict[str, Shape] = {
    "weight/a": (7, 5), "exp_avg/a": (7, 5), "weight/b": (11,), "exp_avg/b": (11,),
}  # fmt: skip


def values(step: int) -> dict[str, np.ndarray]:
    """What a checkpoint of this step holds."""
    made = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        generator = np.random.default_rng([step, number])
        made[name] = generator.standard_normal(shape, dtype=np.float32)
    return made


def save(
    root: Path, step: int, *, num_files: int = 3, permanent: bool = False, nonce: str = "n",
    fault: Callable[[str], None] = lambda point: None,
) -> Path:  # fmt: skip
    """Publish a checkpoint whose files cut every tensor like a flat ZeRO partition."""
    folder = begin(root, step, nonce)
    files: dict[str, FileRecord] = {}
    pieces: dict[str, list[Piece]] = {name: [] for name in SHAPES}
    for rank in range(num_files):
        file, entries, chunks = f"rank_{rank:05d}.safetensors", [], []
        for name, array in values(step).items():
            start, stop = (array.size * part // num_files for part in (rank, rank + 1))
            for box in flat_range_boxes(array.shape, start, stop):
                key = f"{name}@{','.join(map(str, box.offsets))}"
                entries.append(Entry(key=key, shape=box.sizes))
                chunks.append(array[box.slices()].tobytes())
                pieces[name].append(Piece(box=box, file=file, key=key))
        files[file] = write_file(folder / file, entries, chunks, fault)
        fault("rank-done")
    return publish(folder, manifest(step, files, pieces), permanent, fault)


def manifest(step: int, files: dict[str, FileRecord], pieces: dict[str, list[Piece]]) -> Manifest:
    """Of a checkpoint with the shapes above."""
    return Manifest(
        step=step, consumed_samples=8 * step, consumed_tokens=64 * step, number=step,
        saved_at=time.time(), seed=1, files=files, run={"train": {"steps": 9}}, layout={"dp": 3},
        tensors={
            name: TensorRecord(shape=SHAPES[name], pieces=tuple(held))
            for name, held in pieces.items()
        },
    )  # fmt: skip


def box_of(shape: Shape) -> Box:
    return Box(offsets=(0,) * len(shape), sizes=shape)
