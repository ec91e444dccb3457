"""Facts of devices and models under conf/, read one by one and without Hydra."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml

from launcher.config.schema import Gpu, Model, Network, Node, Record

Kind = TypeVar("Kind", bound=Record)


def read_gpus(conf: Path) -> dict[str, Gpu]:
    """By file name."""
    return _read(conf / "hardware" / "gpu", Gpu)


def read_nodes(conf: Path) -> dict[str, Node]:
    """By file name."""
    return _read(conf / "hardware" / "node", Node)


def read_networks(conf: Path) -> dict[str, Network]:
    """By file name."""
    return _read(conf / "hardware" / "network", Network)


def read_models(conf: Path) -> dict[str, Model]:
    """By file name; options that stand for a choice of others are left out."""
    return _read(conf / "model", Model)


def _read(folder: Path, kind: type[Kind]) -> dict[str, Kind]:
    found: dict[str, Kind] = {}
    for path in sorted(folder.glob("*.yaml")):
        document: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(document, dict) and None not in (document.get("num_layers", 0),):
            found[path.stem] = kind.model_validate(document)
    return found
