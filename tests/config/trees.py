"""A user's own conf tree, written for one test."""

from __future__ import annotations

import textwrap
from pathlib import Path


def write_tree(root: Path, **files: str) -> Path:
    """Files by `group__option`, e.g. launch__cluster=... for launch/cluster.yaml."""
    for name, text in files.items():
        path = root.joinpath(*name.split("__")).with_suffix(".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
    return root
