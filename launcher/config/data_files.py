"""Checks the run's data where its files lie on this machine: what a job would find out too late."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from launcher.config.schema import Run
from launcher.data.store_info import (
    StoreInfo,
    Unreadable,
    megatron_prefix,
    read_megatron_header,
    read_store_info,
)
from launcher.errors import Finding
from launcher.frozen import frozen


@frozen
class _Place:
    """One path of the configuration."""

    field: str
    kind: str
    path: str


def check_data_files(run: Run) -> list[Finding]:
    """Findings on every file of token ids that is here, or should be (hardware=local)."""
    findings: list[Finding] = []
    stores: list[tuple[_Place, StoreInfo]] = []
    for place in _places(run):
        if not place.path.strip():
            if place.field != "data.path":  # That one has a rule of its own.
                findings.append(unreadable(place.field, place.kind, "''", "the path is empty"))
            continue
        if not _exists(place) and run.hardware.name != "local":
            continue  # The cluster has it, this machine does not.
        try:
            if place.kind == "store":
                stores.append((place, read_store_info(Path(place.path))))
            elif place.kind == "megatron":
                read_megatron_header(Path(megatron_prefix(place.path) + ".idx"))
            elif not os.path.isfile(place.path):
                raise Unreadable("no such file")
        except Unreadable as error:
            findings.append(unreadable(place.field, place.kind, place.path, str(error)))
    findings += vocabulary_findings(run, [info for _, info in stores])
    return findings + _tokenizers_differ(stores)


def with_absolute_paths(run: Run) -> Run:
    """The run with paths of data that mean the same in every directory.

    It is started and continued from others than the one in which the paths were typed. What only
    another machine has stays as typed.
    """
    is_local = run.hardware.name == "local"
    found = {
        place.field: os.path.abspath(os.path.expanduser(place.path))
        for place in _places(run)
        if place.path.strip() and (is_local or _exists(place))
    }
    data = run.data
    sources = tuple(
        source.model_copy(update={"path": found.get(f"data.sources.{number}.path", source.path)})
        for number, source in enumerate(data.sources)
    )
    path = found.get("data.path", data.path)
    closed = data.model_copy(update={"path": path, "sources": sources})
    return run.model_copy(update={"data": closed})


_WANTED = {
    "store": "the folder that `launch tokenize` wrote",
    "megatron": "the common beginning of a .bin and an .idx file",
    "tokens": "a file of token ids",
}


def unreadable(field: str, kind: str, path: str | None, reason: str) -> Finding:
    """The finding on a path that does not hold what it should."""
    fix = f"{field}= with {_WANTED[kind]}" if kind in _WANTED else ""
    return Finding(field=field, value=path, rule="data-readable", reason=reason, fix=fix)


def vocabulary_findings(run: Run, stores: list[StoreInfo]) -> list[Finding]:
    """A tokenizer with more ids than the model has rows makes tokens without an embedding."""
    largest = max((info.tokenizer.vocab_size for info in stores), default=0)
    if largest <= run.model.vocab_size:
        return []
    return [
        Finding(
            field="model.vocab_size",
            value=run.model.vocab_size,
            rule="data-fits-vocabulary",
            reason=f"the token store was made with a tokenizer of {largest} ids",
            fix=f"model.vocab_size={largest}",
        )
    ]


def _tokenizers_differ(stores: list[tuple[_Place, StoreInfo]]) -> list[Finding]:
    hashes = {info.tokenizer.sha256 for _, info in stores}
    if len(hashes) < 2:
        return []
    made = ", ".join(
        f"{place.path} with {info.tokenizer.name} ({info.tokenizer.sha256[:8]})"
        for place, info in stores
    )
    return [
        Finding(
            field="data.sources",
            rule="mixture-one-tokenizer",
            reason=f"the stores were made with different tokenizers: {made}",
        )
    ]


def missing_data(run: Run, seen: Callable[[str], str] = str) -> list[Finding]:
    """Findings on data that this machine does not see; `seen` maps a path of the workers to it."""
    findings = []
    for place in _places(run):
        path = seen(os.path.expanduser(place.path))
        names = [path]
        if place.kind == "megatron":
            names = [megatron_prefix(path) + end for end in (".idx", ".bin")]
        for name in names:
            if not os.access(name, os.R_OK):
                is_there = os.path.exists(name)
                reason = f"{name} " + ("cannot be read" if is_there else "is not there")
                findings.append(
                    Finding(
                        field=place.field,
                        value=place.path,
                        rule="data-visible",
                        reason=f"{reason}, on this machine, which sees what the nodes see",
                    )
                )
                break
    return findings


def _places(run: Run) -> Iterator[_Place]:
    data = run.data
    if data.path is not None and data.kind in ("store", "megatron", "tokens"):
        yield _Place(field="data.path", kind=data.kind, path=data.path)
    for number, source in enumerate(data.sources if data.kind == "mixture" else ()):
        yield _Place(field=f"data.sources.{number}.path", kind=source.kind, path=source.path)


def _exists(place: _Place) -> bool:
    path = os.path.expanduser(place.path)
    if place.kind == "megatron":
        prefix = megatron_prefix(path)
        return os.path.exists(prefix + ".idx") or os.path.exists(prefix + ".bin")
    return os.path.exists(path)
