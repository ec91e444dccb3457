"""Opens, lists and verifies checkpoints; any box of any tensor, from whatever wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launcher.checkpoint.boxes import Box, Shape, intersect, whole
from launcher.checkpoint.files import TensorFile, Torn, checksum_of
from launcher.checkpoint.manifest import Malformed, Manifest, Piece, TensorRecord, read_manifest
from launcher.checkpoint.source import Array

_NAME = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A checkpoint that cannot be used."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a run continues from."""

    checkpoint: Checkpoint | None
    refused: tuple[Refusal, ...]
    """Newer ones that do not verify."""


class Checkpoint:
    """One published checkpoint; Malformed where its manifest cannot be trusted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self._files: dict[str, TensorFile] = {}
        for name, record in self.manifest.tensors.items():
            if not is_whole(record):
                raise Malformed(f"the pieces of {name} do not make up the whole tensor")

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.name

    def source(self, kind: str) -> CheckpointSource:
        """The tensors of one kind (`manifest.KINDS`) by their logical names."""
        return CheckpointSource(self, kind)

    def release(self) -> None:
        """Unmap the files: pages read through a map count as memory until then."""
        self._files.clear()

    def read(self, tensor: str, box: Box) -> Array:
        """A box of `<kind>/<name>`: a view where one piece holds it, else put together."""
        record = self.manifest.tensors[tensor]
        parts = [
            (piece, common) for piece in record.pieces if (common := intersect(piece.box, box))
        ]
        if len(parts) == 1 and parts[0][1] == box:
            return self._part(*parts[0])
        out = np.empty(box.sizes, np.float32)
        for piece, common in parts:
            out[common.slices(box.offsets)] = self._part(piece, common)
        return out

    def _part(self, piece: Piece, common: Box) -> Array:
        if piece.file not in self._files:
            self._files[piece.file] = TensorFile(self.folder / piece.file)
        stored = self._files[piece.file].tensor(piece.key)
        if stored.shape != piece.box.sizes:
            raise Torn(f"{piece.file}: {piece.key} has the shape {stored.shape}")
        return stored[common.slices(piece.box.offsets)]


class CheckpointSource:
    """A `TensorSource` of one kind of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, kind: str) -> None:
        self._checkpoint, self._prefix = checkpoint, f"{kind}/"
        self._tensors = checkpoint.manifest.tensors

    def names(self) -> Sequence[str]:
        """See `TensorSource`."""
        return [
            name.removeprefix(self._prefix)
            for name in self._tensors
            if name.startswith(self._prefix)
        ]

    def shape(self, name: str) -> Shape:
        """See `TensorSource`."""
        return self._tensors[self._prefix + name].shape

    def read(self, name: str, offsets: Shape, sizes: Shape) -> Array:
        """See `TensorSource`."""
        return self._checkpoint.read(self._prefix + name, Box(offsets=offsets, sizes=sizes))


def list_checkpoints(root: Path) -> list[str]:
    """Names of the published checkpoints under RUN/checkpoints, newest first; unverified."""
    try:
        found = [path.name for path in root.iterdir() if _NAME.fullmatch(path.name)]
    except OSError:
        return []
    return sorted(found, key=step_of, reverse=True)


def step_of(name: str) -> int:
    """Of a name.  step_of("step_00000040") -> 40."""
    match = _NAME.fullmatch(name)
    assert match is not None, name
    return int(match[1])


def checkpoint_name(step: int) -> str:
    """Of a folder.  checkpoint_name(40) -> "step_00000040"."""
    return f"step_{step:08d}"


def is_whole(record: TensorRecord) -> bool:
    """Whether the pieces lie inside, do not overlap and add up to the whole tensor.

    Pieces are sorted along the first dimension, so that only neighbours need to be compared.
    """
    boxes = sorted((piece.box for piece in record.pieces), key=lambda box: box.offsets)
    everything = whole(record.shape)
    if any(intersect(box, everything) != box for box in boxes):
        return False
    if sum(box.num_elements for box in boxes) != everything.num_elements:
        return False
    for number, box in enumerate(boxes):
        end = box.offsets[0] + box.sizes[0] if box.offsets else 1
        for other in boxes[number + 1 :]:
            if other.offsets and other.offsets[0] >= end:
                break
            if intersect(box, other):
                return False
    return True


def verify(folder: Path) -> str | None:
    """Why a checkpoint cannot be trusted, after reading all of it; None where it can."""
    try:
        checkpoint = Checkpoint(folder)
    except Malformed as error:
        return f"manifest.json: {error}"
    return verify_files(checkpoint, checkpoint.manifest.files)


def verify_files(checkpoint: Checkpoint, names: Iterable[str]) -> str | None:
    """Compare these files with what the manifest says of them; several ranks may share the work."""
    for name in names:
        expected = checkpoint.manifest.files[name]
        try:
            found = checksum_of(checkpoint.folder / name)
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found.size != expected.size:
            return f"{name} has {found.size} bytes, not {expected.size}"
        if found != expected:
            return f"{name}: its checksum does not match its content"
    return None


def newest_verified(root: Path) -> Choice:
    """The newest checkpoint that verifies, and the newer ones that do not."""
    refused: list[Refusal] = []
    for name in list_checkpoints(root):
        reason = verify(root / name)
        if reason is None:
            return Choice(checkpoint=Checkpoint(root / name), refused=tuple(refused))
        refused.append(Refusal(name=name, reason=reason))
    return Choice(checkpoint=None, refused=tuple(refused))
