"""What a checkpoint says of itself: manifest.json as records.

The document carries a checksum of its own, so that a flipped digit in it is found too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from launcher.checkpoint.boxes import Box, Shape

VERSION = 1
"""Of the format. A reader refuses versions that it does not know."""
KINDS = ("weight", "exp_avg", "exp_avg_sq", "momentum")
"""Float32 weights; AdamW's first and second moment; SGD's momentum."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A box of a tensor, and where it lies."""

    box: Box
    file: str
    """Name of the file inside the checkpoint's folder."""
    key: str
    """Name inside that safetensors file."""


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """One logical tensor, stored in pieces that tile it."""

    shape: Shape
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """What a file must be."""

    size: int
    """Bytes."""
    checksum: str
    """`xxh3_128:` and the digest of all bytes in hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about one checkpoint except the tensors' values."""

    step: int
    """Optimizer steps done: training goes on with this step, counted from 0."""
    consumed_samples: int
    """Samples that these steps have read."""
    consumed_tokens: int
    number: int
    """Counts the checkpoints of a run from 1."""
    saved_at: float
    """Seconds since the epoch."""
    seed: int
    """All random numbers are functions of it, the step and the sample: their whole state."""
    files: Mapping[str, FileRecord]
    tensors: Mapping[str, TensorRecord]
    """By `<kind>/<full logical name>`."""
    run: Mapping[str, Any] = field(default_factory=dict)
    """Resolved configuration of the run."""
    layout: Mapping[str, Any] = field(default_factory=dict)
    """Layout that wrote it, for people; readers do not need it."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Digest by path of the data that was read; empty where nobody recorded it."""

    @property
    def total_bytes(self) -> int:
        """Of all files but the manifest."""
        return sum(file.size for file in self.files.values())

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of tensors that it holds."""
        held = {name.partition("/")[0] for name in self.tensors}
        return tuple(kind for kind in KINDS if kind in held)


class Malformed(ValueError):
    """A manifest that is not what it should be."""


def manifest_text(manifest: Manifest) -> str:
    """The content of manifest.json: one line, keys sorted, the checksum among them."""
    document = _document(manifest)
    return _canonical({**document, "checksum": _checksum(document)}) + "\n"


def parse_manifest(text: str) -> Manifest:
    """The records of manifest.json; Malformed, with the reason, where it cannot be trusted."""
    try:
        document: dict[str, Any] = json.loads(text)
        stated = document.pop("checksum")
        if document["version"] != VERSION:
            raise Malformed(f"its format is version {document['version']}, not {VERSION}")
        if stated != _checksum(document):
            raise Malformed("its checksum does not match its content")
        return _records(document)
    except Malformed:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise Malformed(f"it is no manifest ({type(error).__name__}: {error})") from error


def read_manifest(folder: Path) -> Manifest:
    """Of a checkpoint's folder; Malformed where it is missing, too."""
    try:
        text = (folder / "manifest.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Malformed(f"it cannot be read ({error})") from error
    return parse_manifest(text)


def _document(manifest: Manifest) -> dict[str, Any]:
    names = sorted(manifest.files)
    index = {name: number for number, name in enumerate(names)}
    return {
        "version": VERSION,
        "step": manifest.step,
        "consumed_samples": manifest.consumed_samples,
        "consumed_tokens": manifest.consumed_tokens,
        "number": manifest.number,
        "saved_at": manifest.saved_at,
        "seed": manifest.seed,
        "run": dict(manifest.run),
        "layout": dict(manifest.layout),
        "data": dict(manifest.data),
        "files": [
            {
                "name": name,
                "size": manifest.files[name].size,
                "checksum": manifest.files[name].checksum,
            }
            for name in names
        ],
        # A piece is [index of its file, its key, offsets, sizes].
        "tensors": {
            name: {
                "shape": list(record.shape),
                "dtype": "F32",
                "pieces": [
                    [index[p.file], p.key, list(p.box.offsets), list(p.box.sizes)]
                    for p in record.pieces
                ],
            }
            for name, record in manifest.tensors.items()
        },
    }


def _records(document: dict[str, Any]) -> Manifest:
    names = [str(entry["name"]) for entry in document["files"]]
    tensors = {}
    for name, entry in document["tensors"].items():
        pieces = tuple(
            Piece(
                box=Box(offsets=tuple(offsets), sizes=tuple(sizes)), file=names[file], key=str(key)
            )
            for file, key, offsets, sizes in entry["pieces"]
        )
        tensors[name] = TensorRecord(shape=tuple(entry["shape"]), pieces=pieces)
    scalars = ("step", "consumed_samples", "consumed_tokens", "number", "saved_at", "seed")
    return Manifest(
        **{key: document[key] for key in scalars},
        run=document["run"],
        layout=document["layout"],
        data=document.get("data", {}),
        files={
            str(entry["name"]): FileRecord(size=int(entry["size"]), checksum=str(entry["checksum"]))
            for entry in document["files"]
        },
        tensors=tensors,
    )


def _canonical(document: dict[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _checksum(document: dict[str, Any]) -> str:
    return "xxh3_128:" + xxhash.xxh3_128_hexdigest(_canonical(document).encode())
