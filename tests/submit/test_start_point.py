"""Does a resumed run go on from the newest good checkpoint, and never silently from none?"""

from __future__ import annotations

import pytest

from launcher.errors import ConfigError
from launcher.plan.run_files import RunFiles
from launcher.submit import start_point
from launcher.submit.start_point import StartPoint, find_start
from tests.checkpoint.folders import save


@pytest.fixture
def files(tmp_path) -> RunFiles:
    files = RunFiles(root=tmp_path)
    files.checkpoints.mkdir()
    return files


def test_the_newest_is_taken(files):
    save(files.checkpoints, 3)
    save(files.checkpoints, 5)
    assert find_start(files, False) == StartPoint(step=5, name="step_00000005")


@pytest.mark.parametrize("limit", [2**40, 0])
def test_one_that_does_not_verify_is_passed_over_with_the_reason(files, monkeypatch, limit):
    """A truncated file is found however large the checkpoint is."""
    monkeypatch.setattr(start_point, "_READ_LIMIT", limit)
    save(files.checkpoints, 3)
    file = save(files.checkpoints, 5) / "rank_00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    found = find_start(files, False)
    assert found.name == "step_00000003"
    ((name, reason),) = found.refused
    assert name == "step_00000005"
    assert "rank_00001.safetensors has" in reason


def test_a_run_that_never_saved_is_not_started_again_in_silence(files):
    with pytest.raises(ConfigError, match=r"\[never-saved\].*--from-scratch"):
        find_start(files, False)
    assert find_start(files, True) == StartPoint(step=0)


@pytest.mark.parametrize("damage", ["manifest", "gone"])
def test_a_run_that_has_saved_and_has_nothing_left_is_an_error_with_the_way_out(files, damage):
    folder = save(files.checkpoints, 5)
    files.has_saved.touch()
    if damage == "manifest":
        (folder / "manifest.json").write_text("{")
    else:
        folder.rename(files.root / "elsewhere")
    with pytest.raises(ConfigError, match=r"\[no-readable-checkpoint\].*--from-scratch"):
        find_start(files, False)
