"""What a folder with weights is, and its tensors under our names, whatever format it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launcher.checkpoint.manifest import Malformed
from launcher.checkpoint.reader import Checkpoint, list_checkpoints, step_of, verify_files
from launcher.checkpoint.source import TensorSource
from launcher.config.model_fields import build_model
from launcher.config.schema import Model
from launcher.convert.config_json import read_config
from launcher.convert.families import Family
from launcher.convert.hf_folder import (
    HuggingFaceSource,
    check_tensors,
    is_hf_folder,
    read_weight_files,
)
from launcher.errors import ConfigError, Finding
from launcher.plan.costs import parameter_table

Format = Literal["hf", "launch"]
_MOST_NAMED = 20
FOLDERS = "a folder of Hugging Face weights, a checkpoint or a run directory"
"""What weights are read from, for those who gave something else."""
"""Tensors that are spelled out; a number stands for the rest."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A folder with weights, opened and checked; no weight has been read for it."""

    folder: Path
    """The one that holds them: of a run, that of its newest checkpoint."""
    format: Format
    model: Model
    source: TensorSource
    num_bytes: int
    """Of the files that hold the weights."""
    family: Family | None = None
    """The class in config.json; None for our own format."""
    is_transposed: Callable[[str], bool] = lambda name: False
    """Which tensors are read faster many rows at once."""
    release: Callable[[], None] = lambda: None
    """Gives up the memory through which files were read."""
    origin: str | None = None
    """What the run behind a checkpoint started from."""

    @property
    def description(self) -> str:
        """`LlamaForCausalLM, 291 tensors`"""
        kind = self.family.architecture if self.family else f"checkpoint of {self.model.name}"
        return f"{kind}, {len(self.source.names())} tensors"


def weights_folder(path: Path, step: int | None = None) -> tuple[Path, Format]:
    """The folder that holds the weights, and its format.

    Args:
        path: a Hugging Face folder, a checkpoint, a run directory or its folder of checkpoints.
        step: which checkpoint of a run; None: the newest.

    Raises ConfigError where there are no weights.

    """
    if not path.is_dir():
        reason = "not a folder" if path.exists() else "there is no such folder"
        raise ConfigError([_finding(path, reason, fix=FOLDERS)])
    if (path / "manifest.json").is_file():
        return path, "launch"
    if is_hf_folder(path):
        return path, "hf"
    for root in (path / "checkpoints", path):
        if names := list_checkpoints(root):
            by_step = {step_of(name): name for name in names}
            if step is not None and step not in by_step:
                legal = sorted(by_step)
                raise ConfigError([_finding(path, f"no checkpoint of step {step}", legal)])
            return root / (names[0] if step is None else by_step[step]), "launch"
    if (path / "run.yaml").is_file():
        raise ConfigError(
            [
                _finding(
                    path, "this run has no checkpoint", fix="checkpoint.every_steps=100 in a run"
                )
            ]
        )
    reason = "neither a Hugging Face folder (config.json), a checkpoint (manifest.json) nor a run"
    raise ConfigError([_finding(path, reason, fix=FOLDERS)])


def open_weights(
    folder: Path,
    format: Format,
    name: str = "",
    overrides: Mapping[str, Any] | None = None,
) -> Weights:
    """Open a folder that `weights_folder` found; every mistake in its headers at once.

    Args:
        folder: with the weights.
        format: of the folder.
        name: of the model; empty: the folder's, or the one in the checkpoint.
        overrides: fields of `Model` that win over what the folder says.

    """
    changes = dict(overrides or {})
    if format == "hf":
        return _open_hf(folder, name or folder.resolve().name or "model", changes)
    return _open_launch(folder, changes)


def _open_hf(folder: Path, name: str, overrides: dict[str, Any]) -> Weights:
    files = read_weight_files(folder)
    described, findings = read_config(folder / "config.json", name, overrides)
    findings += files.findings
    if described is not None and files.tensors:
        findings += check_tensors(described.family, described.model, files)
    if findings or described is None:
        raise ConfigError(findings)
    source = HuggingFaceSource(described.family, described.model, files.tensors)
    return Weights(
        folder=folder,
        format="hf",
        model=described.model,
        source=source,
        num_bytes=sum(tensor.num_bytes for tensor in files.tensors.values()),
        family=described.family,
        is_transposed=source.is_transposed,
    )


def _open_launch(folder: Path, overrides: dict[str, Any]) -> Weights:
    try:
        checkpoint = Checkpoint(folder)
    except Malformed as error:
        raise ConfigError([_finding(folder / "manifest.json", str(error))]) from error
    run = checkpoint.manifest.run
    model, refused = build_model({**_model_fields(run), **overrides})
    if model is None:
        reasons = [f"model.{'.'.join(field.location)}: {field.reason}" for field in refused]
        raise ConfigError([_finding(folder, reason) for reason in reasons])
    source = checkpoint.source("weight")
    if findings := compare_shapes(source, model):
        raise ConfigError(findings)
    return Weights(
        folder=folder,
        format="launch",
        model=model,
        source=source,
        num_bytes=checkpoint.manifest.total_bytes,
        release=checkpoint.release,
        origin=(run.get("train") or {}).get("init_from"),
    )


def _model_fields(run: Mapping[str, Any]) -> dict[str, Any]:
    fields = run.get("model")
    return fields if isinstance(fields, dict) else {}


def verify_weights(weights: Weights) -> None:
    """Read a checkpoint once and compare its checksums; every file that differs is named."""
    if weights.format == "hf":
        return  # Hugging Face keeps no checksums in the folder.
    checkpoint = Checkpoint(weights.folder)
    reasons = (verify_files(checkpoint, [name]) for name in checkpoint.manifest.files)
    if findings := [_finding(weights.folder, reason) for reason in reasons if reason]:
        raise ConfigError(findings)


def compare_shapes(source: TensorSource, model: Model) -> list[Finding]:
    """A finding for every tensor of the model that the source lacks or has in another shape."""
    there = {name: tuple(source.shape(name)) for name in source.names()}
    wanted = {spec.name: spec.shape for spec in parameter_table(model)}
    wrong = {name: "the weights have no such tensor" for name in wanted if name not in there}
    wrong |= {
        name: f"its shape is {list(there[name])} there and {list(shape)} in this model"
        for name, shape in wanted.items()
        if name in there and there[name] != shape
    }
    wrong |= {name: "this model has no such tensor" for name in there if name not in wanted}
    named = list(wrong.items())[:_MOST_NAMED]
    if len(wrong) > _MOST_NAMED:
        named.append((f"{len(wrong) - _MOST_NAMED} more tensors", "like the ones above"))
    return [Finding(field=name, rule="weights-fit-model", reason=reason) for name, reason in named]


def _finding(path: Path, reason: str, legal: Iterable[object] = (), fix: str = "") -> Finding:
    return Finding(
        field=str(path), rule="weights-readable", reason=reason, legal=list(legal), fix=fix
    )
