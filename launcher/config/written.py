"""What a person wrote before YAML read it: `007` where the composed value is 7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from launcher.config.assets import conf_dir
from launcher.frozen import frozen


@frozen
class Written:
    """One value as typed."""

    text: str
    """Letter by letter, without quotes."""
    file: Path | None
    """Where it stands; None: on the command line."""


def find_written(
    field: str,
    given: object,
    overrides: Sequence[str],
    choices: Mapping[str, str | None],
    config_dirs: Sequence[Path],
) -> Written | None:
    """The text behind a dotted key: the last override, else the recipe's or the option's line.

    Values that come by other ways (a default of a default, an interpolation) are not found.
    """
    for line in reversed(overrides):
        key, equals, text = line.partition("=")
        if equals and key.lstrip("+") == field:
            return Written(text=text, file=None)
    group, _, key = field.partition(".")
    recipe = Path("recipe", f"{choices.get('recipe')}.yaml")
    option = Path(group, f"{choices.get(group)}.yaml")
    for name, inside in ((recipe, field), (option, key)):
        for folder in (conf_dir(), *config_dirs):
            found = _scalar(folder / name, inside)
            if found is not None and _read(found) == given:
                return Written(text=found, file=folder / name)
    return None


def _read(text: str) -> object:
    """What YAML makes of a text; itself where it makes nothing of it."""
    from omegaconf import OmegaConf  # slow to import, and only for what is wrong
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.create(f"value: {text}").value
    except (OmegaConfBaseException, yaml.YAMLError):
        return text


def _scalar(path: Path, field: str) -> str | None:
    """The text at a dotted key of a YAML file, nothing converted."""
    try:
        node: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    for part in field.split("."):
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict) and part in node:
            node = node[part]
        else:
            return None
    return node if isinstance(node, str) else None
