"""`launch convert`: which way, what is asked of the folders, and then the copying."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from launcher.convert.companions import FOLDER, TOKENIZER_FILES, find_companions
from launcher.convert.config_json import render_config
from launcher.convert.new_folder import check_destination, check_space, new_folder, size_words
from launcher.convert.source import Weights, open_weights, verify_weights, weights_folder
from launcher.convert.to_hf import hf_bytes, write_hf
from launcher.convert.to_launch import launch_bytes, write_launch
from launcher.errors import ConfigError, Finding

DEFAULT_SHARD = "5GB"


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What the command line asks for."""

    source: Path
    destination: Path
    to: Literal["hf", "launch"] | None = None
    """None: the other format than the source's."""
    step: int | None = None
    """Which checkpoint of a run; None: the newest."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of what is written for Hugging Face; None: float32."""
    max_shard_size: str | None = None
    """Largest file, as 5GB, 500MB or a number of bytes; None: 5GB."""
    tokenizer: Path | None = None
    """Folder with tokenizer files; None: those that came with the weights."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Model` that win over what the source says."""


def convert(asked: Conversion) -> str:
    """Do it; what was done, in a few lines.

    Raises ConfigError with everything that is wrong before anything is written, RunFailed where
    the disk fails.
    """
    # 1. Which way.
    folder, format = weights_folder(asked.source, asked.step)
    is_to_hf = format == "launch"
    findings = [*_refused_flags(asked, is_to_hf), *check_destination(asked.destination)]
    # 2. Headers and config of the source.
    try:
        weights = open_weights(folder, format, _name(asked), asked.overrides)
    except ConfigError as error:
        raise ConfigError([*findings, *error.findings]) from error
    # 3. What is needed to write.
    shard_bytes, refused = _shard_bytes(asked.max_shard_size or DEFAULT_SHARD)
    dtype = asked.dtype or "float32"
    size = hf_bytes(weights.model, dtype) if is_to_hf else launch_bytes(weights.model)
    findings += [*refused, *check_space(asked.destination, size)]
    companions = find_companions(_companion_folders(asked, weights))
    if asked.tokenizer and not companions.keys() & set(TOKENIZER_FILES):
        reason = "there are no tokenizer files in it"
        findings.append(_finding("--tokenizer", str(asked.tokenizer), reason))
    if is_to_hf:
        findings += _no_class(weights, dtype)
    if findings:
        raise ConfigError(findings)
    # 4. Every byte of a checkpoint is what it was; then the copy.
    verify_weights(weights)
    with new_folder(asked.destination) as partial:
        if is_to_hf:
            write_hf(weights, partial, shard_bytes, dtype, companions)
        else:
            write_launch(weights, partial, shard_bytes)
    return _report(asked, weights, size, dtype if is_to_hf else None, companions)


def _name(asked: Conversion) -> str:
    """Of the model: the destination's, in letters that can stand in a command."""
    given = asked.overrides.get("name")
    if isinstance(given, str):
        return given
    return (
        re.sub(r"[^A-Za-z0-9._-]+", "-", asked.destination.absolute().name).strip("-.") or "model"
    )


def _refused_flags(asked: Conversion, is_to_hf: bool) -> list[Finding]:
    found = []
    to = "hf" if is_to_hf else "launch"
    if asked.to not in (None, to):
        reason = f"{asked.source} has that format already"
        found.append(_finding("--to", asked.to, reason, [to]))
    for flag, value in (("--dtype", asked.dtype), ("--tokenizer", asked.tokenizer)):
        if value and not is_to_hf:
            reason = "only files for Hugging Face have it; our own weights are float32"
            if flag == "--tokenizer":
                reason = "the tokenizer's files are taken from the source"
            found.append(_finding(flag, str(value), reason))
    is_run = not (asked.source / "manifest.json").is_file() and is_to_hf
    if asked.step is not None and not is_run:
        reason = "only a run has several checkpoints to choose from"
        found.append(_finding("--step", asked.step, reason))
    name = asked.overrides.get("name")
    if isinstance(name, str) and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        reason = "it names a file: letters, digits, '.', '_' and '-'"
        found.append(_finding("model.name", name, reason))
    return found


def _shard_bytes(text: str) -> tuple[int, list[Finding]]:
    """_shard_bytes("5GB") -> 5,000,000,000"""
    units = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20}
    units["GIB"] = 2**30
    match = re.fullmatch(r"([0-9]+)\s*([KMG]I?B|)", text.upper())
    if match and int(match[1]):
        return int(match[1]) * units[match[2]], []
    reason = "a number of bytes, or with a unit"
    return 0, [_finding("--max-shard-size", text, reason, ["500MB", "5GB", "4GiB"])]


def _companion_folders(asked: Conversion, weights: Weights) -> list[Path]:
    """Where tokenizer files may be, the likeliest first."""
    if asked.tokenizer:
        return [asked.tokenizer]
    folders = [weights.folder, weights.folder / FOLDER, asked.source]
    if weights.origin:
        folders += [Path(weights.origin), Path(weights.origin) / FOLDER]
    return folders


def _no_class(weights: Weights, dtype: str) -> list[Finding]:
    try:
        render_config(weights.model, dtype)
    except ConfigError as error:
        return list(error.findings)
    return []


def _report(
    asked: Conversion, weights: Weights, size: int, dtype: str | None, companions: dict[str, Path]
) -> str:
    lines = [f"{asked.destination}  {weights.description}, {size_words(size)}"]
    kept = sorted(set(companions) - {"config.json"})
    if kept:
        lines.append(f"kept        {', '.join(kept)}")
    if dtype is None:
        path, name = asked.destination, weights.model.name
        lines.append(
            f"train with  launch --config-dir {path}/conf model={name} train.init_from={path}"
        )
    elif not set(kept) & set(TOKENIZER_FILES):
        lines.append("no tokenizer files came with it; --tokenizer FOLDER adds them")
    return "\n".join(lines)


def _finding(flag: str, value: object, reason: str, legal: list[Any] | None = None) -> Finding:
    return Finding(field=flag, value=value, rule="convert-flag", reason=reason, legal=legal or ())
