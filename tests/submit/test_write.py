"""Is a run directory complete or absent, and is nothing that exists ever touched?"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from launcher.errors import SubmissionRefused
from launcher.submit import write
from launcher.submit.write import new_run_dir, write_bundle, write_new
from tests.submit.cases import bundled


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_a_bundle_is_written_whole(tmp_path):
    bundle = bundled(tmp_path / "deep" / "run")
    write_bundle(bundle)
    root = bundle.files.root
    assert names(root) == {
        "run.yaml", "plan.json", "ds_config.json", "command.sh", "logs", "checkpoints"
    }  # fmt: skip
    for path, text in bundle.texts.items():
        assert path.read_text(encoding="utf-8") == text
    assert os.access(root / "command.sh", os.X_OK)
    assert yaml.safe_load((root / "run.yaml").read_text())["model"]["name"] == "tiny"
    assert json.loads((root / "plan.json").read_text())["layout"]["world_size"] == 4


def test_an_empty_directory_is_used(tmp_path):
    (tmp_path / "run").mkdir()
    write_bundle(bundled(tmp_path / "run"))
    assert (tmp_path / "run" / "run.yaml").exists()


@pytest.mark.parametrize("existing", ["run.yaml", "logs/rank_0.log", ".hidden"])
def test_a_directory_with_content_is_never_touched(tmp_path, existing):
    path = tmp_path / "run" / existing
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    before = names(tmp_path / "run")
    with pytest.raises(SubmissionRefused, match=r"\[run-dir-exists\]: it is not empty"):
        write_bundle(bundled(tmp_path / "run"))
    assert names(tmp_path / "run") == before
    assert path.read_text() == "precious"


def test_a_file_in_its_place_is_never_touched(tmp_path):
    (tmp_path / "run").write_text("precious")
    with pytest.raises(SubmissionRefused, match=r"\[run-dir-exists\]"):
        write_bundle(bundled(tmp_path / "run"))
    assert (tmp_path / "run").read_text() == "precious"


def test_two_launches_that_chose_the_same_directory_do_not_share_it(tmp_path, monkeypatch):
    """Both found it empty; the second stops at the first thing that the other made."""
    second = bundled(tmp_path / "run")
    write_bundle(bundled(tmp_path / "run"))
    before = (tmp_path / "run" / "run.yaml").stat().st_mtime_ns
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(()))
    with pytest.raises(SubmissionRefused, match=r"\[run-dir-exists\]: something else is there"):
        write_bundle(second)
    assert (tmp_path / "run" / "run.yaml").stat().st_mtime_ns == before


def test_a_launch_that_chose_no_directory_takes_the_next_one(tmp_path, monkeypatch):
    """Both have the name of the same second; the other one was quicker."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda words: "20260101-000000")
    root = new_run_dir("tiny", None)
    mine = bundled(root)
    write_bundle(bundled(root))
    written = write_new(mine, "tiny", None, bundled)
    assert written.files.root == root.with_name("tiny-20260101-000000-2")
    assert names(written.files.root) == names(root)
    with pytest.raises(SubmissionRefused, match=r"\[run-dir-exists\]"):
        write_new(mine, "tiny", str(root), bundled)


@pytest.mark.parametrize("root", ["/proc/run", "/dev/null/run", "x" * 300])
def test_a_directory_that_cannot_be_made_is_refused_with_the_reason(root):
    with pytest.raises(SubmissionRefused, match=r"\[run-dir-(not-writable|exists)\]: \w"):
        write_bundle(bundled(Path(root).absolute()))


def test_a_full_disk_leaves_no_name_with_half_a_file(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write.os, "fsync", full)
    with pytest.raises(SubmissionRefused, match=r"not-writable\]: No space left on device"):
        write_bundle(bundled(tmp_path / "run"))
    assert not (tmp_path / "run" / "run.yaml").exists()


# Names


def test_the_default_name_says_what_and_when(tmp_path):
    path = new_run_dir("quickstart", None)
    assert path.parent == tmp_path / "runs"
    assert re.fullmatch(r"quickstart-\d{8}-\d{6}", path.name)


@pytest.mark.parametrize(
    ("name", "safe"),
    [("a b/c", "a-b-c"), ("../../etc", "etc"), ("", "run"), ("...", "run"), ("é", "run"),
     ("-rf", "rf"), ("x" * 500, "x" * 80), ("$(id)", "id")],
)  # fmt: skip
def test_the_default_name_is_safe_everywhere(tmp_path, name, safe):
    path = new_run_dir(name, None)
    assert path.parent == tmp_path / "runs"
    assert path.name.startswith(safe + "-2")


def test_names_of_the_same_second_differ(monkeypatch):
    monkeypatch.setattr(write.time, "strftime", lambda text: "20260101-000000")
    seen = []
    for _ in range(3):
        seen.append(new_run_dir("a", None))
        seen[-1].mkdir(parents=True)
    assert [path.name for path in seen] == [
        "a-20260101-000000", "a-20260101-000000-2", "a-20260101-000000-3"
    ]  # fmt: skip


def test_a_chosen_directory_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert new_run_dir("a", "here") == tmp_path / "here"
    assert new_run_dir("a", "/there") == Path("/there")
    assert new_run_dir("a", "~/there") == Path("/home/someone/there")
    assert new_run_dir("a", "~nobody-at-all/x") == tmp_path / "~nobody-at-all" / "x"


@pytest.mark.parametrize("bad", ["a\nb", "a\x1b", "a\udcff"])
def test_a_path_that_would_break_a_script_is_refused(bad):
    with pytest.raises(SubmissionRefused, match=r"\[run-dir-on-one-line\]"):
        new_run_dir("a", bad)
