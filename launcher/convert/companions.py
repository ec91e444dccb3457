"""The small files that travel with weights: tokenizer, generation settings, the original config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOLDER = "huggingface"
"""Where our own format keeps them."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
_KEPT = (*TOKENIZER_FILES, "generation_config.json", "config.json")


def find_companions(folders: Iterable[Path]) -> dict[str, Path]:
    """Name -> file, from the first of the folders that has any; empty where none has."""
    for folder in folders:
        found = {name: folder / name for name in _KEPT if (folder / name).is_file()}
        if found:
            return found
    return {}


def original_config(found: dict[str, Path]) -> dict[str, Any]:
    """The config.json that the weights once came with; empty where there is none."""
    try:
        document = json.loads(found["config.json"].read_text(encoding="utf-8"))
    except (KeyError, OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def copy_companions(found: dict[str, Path], into: Path) -> None:
    """Copy their content; links are followed, as in the cache of the hub."""
    into.mkdir(exist_ok=True)
    for name, path in found.items():
        shutil.copyfile(path, into / name)
