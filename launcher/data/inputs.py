"""Which files are tokenized, and how each is read: paths, folders and globs in, files out."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launcher.data.store_info import STORE_FILE
from launcher.errors import ConfigError, Finding

Kind = Literal["text", "jsonl", "parquet", "arrow"]
KINDS: tuple[Kind, ...] = ("text", "jsonl", "parquet", "arrow")
SUFFIXES: dict[str, Kind] = {
    ".txt": "text", ".text": "text", ".md": "text",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
"""How a file is read; .gz and .zst may follow that of text and JSONL."""
COMPRESSED = (".gz", ".zst")
_SAVED = "state.json"  # in a folder that datasets.save_to_disk wrote
_SAVED_SPLITS = "dataset_dict.json"  # in one with several splits


@dataclass(frozen=True)
class InputFile:
    """One file to be read."""

    path: Path
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """All files, each once, in the order of the command line and then of their names."""

    files: tuple[InputFile, ...]
    skipped: tuple[Path, ...]
    """Files of given folders that have no known suffix."""


def find_inputs(given: Sequence[str], kind: Kind | None = None) -> Inputs:
    """Expand what was typed; with a kind all files are read as such.

    Raises ConfigError where something is not there or nothing is found.
    """
    findings: list[Finding] = []
    files: dict[Path, InputFile] = {}
    skipped: list[Path] = []
    for text in given:
        paths = [Path(text)] if os.path.exists(text) else _globbed(text)
        if not paths:
            findings.append(_absent(text))
        for path in paths:
            if path.is_dir():
                found = list(_in_folder(path, kind, skipped))
            else:
                found = [InputFile(path, kind or kind_of(path) or "text")]
            for file in found:
                files.setdefault(file.path.absolute(), file)
    findings += [_unusable(path, reason) for path in files if (reason := _why_not(path))]
    if not findings and not files:
        findings.append(_nothing(skipped))
    if findings:
        raise ConfigError(findings)
    return Inputs(files=tuple(files.values()), skipped=tuple(skipped))


def kind_of(path: Path) -> Kind | None:
    """By the suffix; None where it is unknown.  kind_of(Path("a.jsonl.zst")) -> "jsonl"."""
    name = path.name.lower()
    for suffix in COMPRESSED:
        if name.endswith(suffix):
            inner = SUFFIXES.get(Path(name.removesuffix(suffix)).suffix)
            return inner if inner in ("text", "jsonl") else None
    return SUFFIXES.get(Path(name).suffix)


def _globbed(pattern: str) -> list[Path]:
    return [Path(found) for found in sorted(glob.glob(pattern, recursive=True))]


def _in_folder(folder: Path, kind: Kind | None, skipped: list[Path]) -> Iterator[InputFile]:
    """Every file below a folder; of a saved data set only what its state.json names."""
    if (folder / _SAVED_SPLITS).is_file():
        for split in _read_list(folder / _SAVED_SPLITS, "splits"):
            yield from _in_folder(folder / str(split), kind, skipped)
        return
    if (folder / _SAVED).is_file():
        for entry in _read_list(folder / _SAVED, "_data_files"):
            name = entry.get("filename") if isinstance(entry, dict) else None
            if not isinstance(name, str):
                raise ConfigError([_no_data_set(folder / _SAVED, "its files have no names")])
            yield InputFile(folder / name, "arrow")
        return
    if (folder / STORE_FILE).is_file():
        raise ConfigError([_unusable(folder, "it holds a token store, which is ready to train on")])
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise ConfigError([_unusable(folder, error.strerror or str(error))]) from None
    for path in paths:
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _in_folder(path, kind, skipped)
        elif found := kind or kind_of(path):
            yield InputFile(path, found)
        else:
            skipped.append(path)


def _read_list(path: Path, key: str) -> list[Any]:
    """A list in a file that datasets.save_to_disk wrote."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError([_no_data_set(path, str(error))]) from None
    found = document.get(key) if isinstance(document, dict) else None
    if not isinstance(found, list):
        raise ConfigError([_no_data_set(path, f"it has no list {key!r}")])
    return found


def _why_not(path: Path) -> str | None:
    """Why a file cannot be opened: links may lead nowhere, and data sets may lack files."""
    try:
        with path.open("rb"):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _no_data_set(path: Path, reason: str) -> Finding:
    return _unusable(path, f"not a data set: {reason}")


_READABLE = "a file or folder of text that can be read here"


def _unusable(path: Path, reason: str) -> Finding:
    return Finding(
        field="INPUT", value=str(path), rule="input-readable", reason=reason, fix=_READABLE
    )


def _absent(text: str) -> Finding:
    is_glob = any(letter in text for letter in "*?[")
    reason = "no file matches" if is_glob else "no such file or folder"
    fix = "a wider pattern" if is_glob else _READABLE
    return Finding(field="INPUT", value=text, rule="input-readable", reason=reason, fix=fix)


def _nothing(skipped: Sequence[Path]) -> Finding:
    names = ", ".join(path.name for path in skipped[:3])
    seen = f": {len(skipped)} files have no known suffix ({names})" if skipped else ""
    return Finding(
        field="INPUT",
        rule="input-readable",
        reason=f"no file to read{seen}",
        legal=tuple(SUFFIXES),
        fix="--format text",
    )
