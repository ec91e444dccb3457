"""Is it said when a job runs other code than what was submitted?"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from launcher.node.code import changed_code
from launcher.node.place import Place
from launcher.node.start import begin
from launcher.plan.run_files import RunFiles
from launcher.submit.code import describe_code, read_code, record_code
from launcher.submit.write import write_bundle
from tests.submit.cases import bundled, planned


def git(folder: Path, *words: str) -> str:
    own = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *own, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path) -> Path:
    """A launcher's folder in a repository of its own."""
    folder = tmp_path / "code" / "launcher"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("a = 1\n")
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "-qm", "first")
    return folder


@pytest.fixture
def files(tmp_path) -> RunFiles:
    found = RunFiles(root=tmp_path / "run")
    found.root.mkdir()
    return found


def test_the_same_code_is_not_worth_a_word(package, files):
    assert changed_code(files, package) is None, "nothing is on record"
    record_code(files, package)
    assert changed_code(files, package) is None


@pytest.mark.parametrize("change", ["edit", "new file", "commit"])
def test_code_that_changed_after_the_submission_is_said_with_its_commit(package, files, change):
    record_code(files, package)
    commit = git(package, "rev-parse", "HEAD")
    (package / ("new.py" if change == "new file" else "__init__.py")).write_text("a = 2\n")
    if change == "commit":
        git(package.parent, "commit", "-qam", "second")
    said = changed_code(files, package)
    assert said.startswith(f"CHANGED CODE: this job runs {package}, which is not what was")
    assert f"commit {commit[:12]}" in said
    assert str(files.code) in said


def test_a_job_says_changed_code_when_it_starts(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm answers
    bundle = bundled(tmp_path / "run", planned(launch={"name": "slurm"}))
    write_bundle(bundle)
    place = Place(
        files=bundle.files, job_id="7", restart=0, node="n1", index=0, nodelist="n1"
    )  # fmt: skip
    bundle.files.code.write_text(
        json.dumps({"package_sha256": "0" * 64, "commit": "1234567890abcdef", "version": "0"})
    )
    bundle.files.submitted.write_text(json.dumps({"submitted_at": time.time()}))
    assert begin(place) == 0
    said = capsys.readouterr().out
    assert "CHANGED CODE: this job runs " in said
    assert "commit 1234567890ab, sha256 000000000000 then" in said


def test_the_patch_of_a_changed_tree_is_kept_and_named_in_the_script(package, files):
    assert describe_code(package) == f"commit {git(package, 'rev-parse', 'HEAD')[:12]}"
    (package / "__init__.py").write_text("a = 3\n")
    (package / ".env").write_text("TOKEN=s3cret\n")
    (package / "new.py").write_text("password = 's3cret'\n")
    assert ", changed (patch " in describe_code(package)
    assert describe_code(package).endswith(", 1 new files")
    record_code(files, package)
    record = json.loads(files.code.read_text())
    assert (record["dirty"], record["untracked"]) == (True, ["new.py"])
    assert "+a = 3" in files.code_patch.read_text()
    everything = files.code.read_text() + files.code_patch.read_text()
    assert "s3cret" not in everything, "files that git does not track are never read"
    git(package.parent, "checkout", "-q", ".")
    (package / "new.py").unlink()
    record_code(files, package)
    assert not files.code_patch.exists()


def test_an_installed_package_has_no_commit(tmp_path):
    (tmp_path / "launcher").mkdir()
    assert read_code(tmp_path / "launcher").commit is None
    assert describe_code(tmp_path / "launcher").startswith("launch ")
