"""Is every difference between two checkpoints found, and its size right, in any layout?"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from launcher.checkpoint import diff
from launcher.checkpoint.diff import diff_checkpoints
from launcher.checkpoint.reader import Checkpoint
from tests.checkpoint import folders
from tests.checkpoint.folders import save, values


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks that end inside rows."""
    monkeypatch.setattr(diff, "_BLOCK", 4)


def test_the_same_state_cut_in_another_way_is_equal(tmp_path):
    one, other = save(tmp_path / "one", 3), save(tmp_path / "other", 3, num_files=7)
    result = diff_checkpoints(Checkpoint(one), Checkpoint(other))
    assert result.is_equal
    assert result.num_tensors == 4


def test_differences_are_measured_largest_first(tmp_path):
    one, other = save(tmp_path / "one", 3), save(tmp_path / "other", 4, num_files=2)
    result = diff_checkpoints(Checkpoint(one), Checkpoint(other))
    assert not result.is_equal
    assert (result.steps, len(result.different)) == ((3, 4), 4)
    for entry in result.different:
        a, b = values(3)[entry.name].astype(float), values(4)[entry.name].astype(float)
        assert entry.max_abs == pytest.approx(np.abs(b - a).max(), rel=1e-12)
        assert entry.relative == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-12)
    sizes = [entry.relative for entry in result.different]
    assert sizes == sorted(sizes, reverse=True)


def test_what_only_one_has_or_another_shape_is_named(tmp_path, monkeypatch):
    one = save(tmp_path / "one", 3)
    monkeypatch.setattr(
        folders, "SHAPES", {"weight/a": (7, 5), "exp_avg/a": (7, 5), "weight/b": (12,), "new": (2,)}
    )
    result = diff_checkpoints(Checkpoint(one), Checkpoint(save(tmp_path / "other", 3)))
    assert result.only_one == ("exp_avg/b",)
    assert result.only_other == ("new",)
    assert result.reshaped == ("weight/b",)
    assert not result.is_equal


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_a_difference_and_still_json(tmp_path, monkeypatch, bad):
    one = save(tmp_path / "one", 3)
    original = values(3)
    original["weight/a"][2, 2] = bad
    monkeypatch.setattr(folders, "values", lambda step: original)
    result = diff_checkpoints(Checkpoint(one), Checkpoint(save(tmp_path / "other", 3)))
    (entry,) = result.different
    assert entry.name == "weight/a"
    assert not math.isfinite(entry.max_abs)
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["equal"] is False


def test_a_torn_file_is_an_error_and_no_answer(tmp_path):
    one, other = save(tmp_path / "one", 3), save(tmp_path / "other", 3)
    file = other / "rank_00001.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match="rank_00001"):
        diff_checkpoints(Checkpoint(one), Checkpoint(other))
