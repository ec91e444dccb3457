"""Files of plain values as OmegaConf reads them, by the YAML parser that is written in C."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# A float needs no dot in front of its exponent, other than in YAML 1.1 (1e5, 3e-4).
_FLOAT = re.compile(r"^[-+]?[0-9]+(?:_[0-9]+)*[eE][-+]?[0-9]+$")
_FLOAT_TAG, _DATE_TAG = "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"


class NotPlain(Exception):
    """Something that only Hydra knows how to read, or to refuse."""


class _Loader(_Parser):  # type: ignore[misc]
    """Floats and dates as in OmegaConf; no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        """A dictionary whose keys are texts."""
        keys = [key.value for key, _ in node.value]
        if len(set(keys)) < len(keys) or any(key.tag != _TEXT_TAG for key, _ in node.value):
            raise NotPlain(f"keys {keys}")
        return super().construct_mapping(node, deep=deep)


_TEXT_TAG = yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG
_Loader.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+0123456789"))
_Loader.yaml_implicit_resolvers = {
    key: [pair for pair in pairs if pair[0] != _DATE_TAG]
    for key, pairs in _Loader.yaml_implicit_resolvers.items()
}


@cache
def read_plain(path: Path) -> tuple[str, Any]:
    """The text in front of the first key, and the values.

    Raises NotPlain for what cannot be read or needs more than a parser: interpolations and
    missing values (`???`).
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.load(text, Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise NotPlain(str(path)) from error
    if "${" in text or "???" in text or not isinstance(values, dict):
        raise NotPlain(str(path))
    header = text.split("\n", 1)[0] if "@package" in text else ""
    return header, values
