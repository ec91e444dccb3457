"""A Hugging Face folder: its weight files found and checked, its tensors under our names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launcher.checkpoint.boxes import Shape
from launcher.checkpoint.source import Array
from launcher.config.schema import Model
from launcher.convert.families import Entry, Family
from launcher.convert.tensor_file import StoredTensor, TornFile, read_header
from launcher.errors import Finding
from launcher.plan.costs import parameter_table

INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_MOST_NAMED = 20
"""Findings of one kind that are spelled out; a number stands for the rest."""


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """What the weight files of a folder hold."""

    tensors: Mapping[str, StoredTensor]
    """By the names in the files."""
    lost: frozenset[str]
    """Names that the index places in files that are missing or torn."""
    findings: tuple[Finding, ...]


def is_hf_folder(folder: Path) -> bool:
    """Whether a folder looks like a model of Hugging Face."""
    return (folder / "config.json").is_file()


def read_weight_files(folder: Path) -> WeightFiles:
    """Headers of every weight file; what is missing or torn is named, all of it."""
    places, findings = _places(folder)
    tensors: dict[str, StoredTensor] = {}
    broken = set()
    for name in sorted(set(places.values())):
        path = folder / name
        try:
            held = read_header(path)
        except TornFile as error:
            findings.append(_bad_file(path, str(error)))
            broken.add(name)
            continue
        for key, tensor in held.items():
            if key in tensors and key not in places:
                other = tensors[key].path.name
                findings.append(_bad_file(path, f"it holds {key}, and so does {other}"))
            if places.get(key, name) == name:
                tensors[key] = tensor
    lost = frozenset(key for key, name in places.items() if name in broken)
    absent = {key for key in places if not key.startswith(_UNNAMED)} - set(tensors) - lost
    for key in sorted(absent)[:_MOST_NAMED]:
        findings.append(_bad_file(folder / places[key], f"the index says that it holds {key}"))
    return WeightFiles(tensors=tensors, lost=lost, findings=tuple(findings))


_UNNAMED = "\0"
"""Before the name of a file that stands for whatever tensors it holds."""


def _places(folder: Path) -> tuple[dict[str, str], list[Finding]]:
    """Name of a tensor -> its file, by the index; without one each file under a name of its own."""
    index = folder / INDEX
    if index.is_file():
        return _index(index)
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    chosen = [name for name in found if name == "model.safetensors"]
    chosen = chosen or [name for name in found if _SHARD.fullmatch(name)] or found
    if not chosen:
        reason = "there is no *.safetensors file in it"
        if any(folder.glob("*.bin")):
            reason += "; *.bin files are pickles, which can run code, and are never read"
        return {}, [_bad_file(folder, reason)]
    # Shards tell how many there should be.
    for name in list(chosen):
        if match := _SHARD.fullmatch(name):
            stem, last = match[1], match[3]
            everyone = [f"{stem}-{n:05d}-of-{last}.safetensors" for n in range(1, int(last) + 1)]
            chosen += [other for other in everyone if other not in chosen]
    return {f"{_UNNAMED}{name}": name for name in chosen}, []


def _index(path: Path) -> tuple[dict[str, str], list[Finding]]:
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        sound = isinstance(places, dict) and all(isinstance(n, str) for n in places.values())
    except OSError as error:
        return {}, [_bad_file(path, error.strerror or str(error))]
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound or not places:
        return {}, [_bad_file(path, "it is no index: no weight_map of names to files")]
    outside = sorted({name for name in places.values() if Path(name).name != name})
    if outside:
        return {}, [_bad_file(path, f"{name} is not in the folder itself") for name in outside]
    return dict(places), []


def _bad_file(path: Path, reason: str) -> Finding:
    return Finding(field=str(path), rule="hf-weights-readable", reason=reason)


class HuggingFaceSource:
    """The tensors of a folder under our names, as a `TensorSource`."""

    def __init__(self, family: Family, model: Model, tensors: Mapping[str, StoredTensor]) -> None:
        self._tensors = tensors
        self._places = dict(_our_places(family, model, tensors))

    def names(self) -> Sequence[str]:
        """See `TensorSource`."""
        return list(self._places)

    def shape(self, name: str) -> Shape:
        """See `TensorSource`."""
        return self._places[name].shape

    def is_transposed(self, name: str) -> bool:
        """Whether a row of ours is a column of theirs, so that reading single rows is slow."""
        return self._places[name].is_transposed

    def read(self, name: str, offsets: Shape, sizes: Shape) -> Array:
        """See `TensorSource`."""
        place = self._places[name]
        stored = self._tensors[place.stored]
        start = (offsets[0] + place.first_row, *offsets[1:])
        if place.is_transposed:
            box: Array = stored.read(start[::-1], sizes[::-1]).T
            return box
        return stored.read(start, sizes)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where one of our tensors lies in theirs."""

    stored: str
    shape: Shape
    first_row: int
    """Of ours in theirs, before transposing."""
    is_transposed: bool


def _our_places(
    family: Family, model: Model, tensors: Mapping[str, StoredTensor]
) -> Iterator[tuple[str, _Place]]:
    shapes = {spec.name: spec.shape for spec in parameter_table(model)}
    for name, entry, parts in stored_entries(family, model, tensors):
        first = 0
        for part in parts:
            place = _Place(
                stored=name, shape=shapes[part], first_row=first, is_transposed=entry.is_transposed
            )
            yield part, place
            first += shapes[part][0]


def stored_entries(
    family: Family, model: Model, tensors: Mapping[str, StoredTensor] | None = None
) -> Iterator[tuple[str, Entry, tuple[str, ...]]]:
    """Every tensor of theirs that a model needs: its name, its row, our names in it.

    `tensors`: those of a folder, whose names may lack the prefix.
    """
    ours = {spec.name for spec in parameter_table(model)}
    prefix = family.prefix
    if tensors and not any(name.startswith(prefix) for name in tensors):
        prefix = ""
    for entry in family.entries:
        layers = range(model.num_layers) if "{layer}" in entry.name else range(1)
        for layer in layers:
            parts = tuple(part.format(layer=layer) for part in entry.parts)
            if parts[0] in ours:
                head = "" if entry.parts == ("head.weight",) else prefix
                yield head + entry.name.format(layer=layer), entry, parts


def stored_shape(model_shapes: Mapping[str, Shape], entry: Entry, parts: Sequence[str]) -> Shape:
    """Shape of a tensor of theirs that is made of ours."""
    shape = (sum(model_shapes[part][0] for part in parts), *model_shapes[parts[0]][1:])
    return shape[::-1] if entry.is_transposed else shape


def check_tensors(family: Family, model: Model, files: WeightFiles) -> list[Finding]:
    """Tensors that are missing, of another shape, or that nobody would read."""
    shapes = {spec.name: spec.shape for spec in parameter_table(model)}
    expected = {
        name: stored_shape(shapes, entry, parts)
        for name, entry, parts in stored_entries(family, model, files.tensors)
    }
    missing = [name for name in expected if name not in files.tensors and name not in files.lost]
    wrong = [
        name
        for name, shape in expected.items()
        if name in files.tensors and files.tensors[name].shape != shape
    ]
    tied = "lm_head.weight" if model.tie_embeddings else ""
    unread = [
        name
        for name in files.tensors
        if name not in expected and name != tied and not name.endswith(family.ignored_tensors)
    ]
    findings = [
        *_each(missing, lambda _: "no file holds it"),
        *_each(
            wrong,
            lambda name: (
                f"its shape is {list(files.tensors[name].shape)}, config.json makes it "
                f"{list(expected[name])}"
            ),
        ),
        *_each(
            unread,
            lambda _: f"{family.architecture} as it is known here has no such tensor",
        ),
    ]
    if not findings and tied in files.tensors:
        findings += _compare_tied(family, model, files.tensors)
    return findings


def _compare_tied(
    family: Family, model: Model, tensors: Mapping[str, StoredTensor]
) -> list[Finding]:
    """Files of tied models may hold the head as well; it must be the same numbers."""
    source = HuggingFaceSource(family, model, tensors)
    head, name = tensors["lm_head.weight"], "embedding.tokens.weight"
    rows, columns = source.shape(name)
    if head.shape == (rows, columns):
        step = 1024
        starts = range(0, rows, step)
        boxes = [((row, 0), (min(step, rows - row), columns)) for row in starts]
        if all(np.array_equal(head.read(*box), source.read(name, *box)) for box in boxes):
            return []
    reason = "config.json ties it to the token embedding, and it holds other numbers"
    fix = "model.tie_embeddings=false"
    return [Finding(field="lm_head.weight", rule="hf-tensor", reason=reason, fix=fix)]


def _each(names: list[str], reason: Callable[[str], str]) -> Iterator[Finding]:
    """A finding for each of the names, up to a number that can be read."""
    for name in names[:_MOST_NAMED]:
        yield Finding(field=name, rule="hf-tensor", reason=reason(name))
    if len(names) > _MOST_NAMED:
        rest = f"{len(names) - _MOST_NAMED} more tensors"
        yield Finding(field=rest, rule="hf-tensor", reason="the same as the ones above")
