"""Data that was replaced under its old path is noticed, without reading its tokens."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from launcher.config.data_content import content_changes, data_content
from launcher.config.schema import Data
from tests.data.made import make_documents, make_store


def write_store(root: Path, first: int) -> str:
    shutil.rmtree(root / "store", ignore_errors=True)
    return str(make_store(root / "store", make_documents(5 + first)))


def write_tokens(root: Path, first: int) -> str:
    np.arange(first, first + 9, dtype="<u2").tofile(root / "tokens")
    return str(root / "tokens")


@pytest.mark.parametrize(("kind", "write"), [("store", write_store), ("tokens", write_tokens)])
def test_replaced_data_changes_the_numbers(tmp_path: Path, kind, write) -> None:
    path = write(tmp_path, 0)
    data = Data(name=kind, kind=kind, path=path)
    saved = data_content(data)
    write(tmp_path, 0)
    assert content_changes(saved, data) == (), "the same again"
    write(tmp_path, 1)
    (change,) = content_changes(saved, data)
    assert change.kind == "numerics"
    assert str(change).startswith(f"content of {path}: {saved[path]} -> ")


def test_what_cannot_be_read_or_was_not_recorded_is_not_compared(tmp_path: Path) -> None:
    data = Data(name="tokens", kind="tokens", path=str(tmp_path / "none"))
    assert data_content(data) == {}
    assert content_changes({data.path: "x"}, data) == ()
    there = Data(name="tokens", kind="tokens", path=write_tokens(tmp_path, 0))
    assert content_changes({}, there) == ()
