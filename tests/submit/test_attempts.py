"""Are the frozen files of a run that continues changed whole, and is nothing ever lost?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.errors import SubmissionRefused
from launcher.plan.run_files import RunFiles
from launcher.render.bundle import Bundle
from launcher.submit import attempts
from launcher.submit.attempts import change_frozen, complete_pending, num_attempts
from launcher.submit.write import write_bundle
from tests.submit.cases import bundled, planned

FROZEN = ("run.yaml", "plan.json", "ds_config.json", "command.sh")


@pytest.fixture
def old(tmp_path) -> Bundle:
    bundle = bundled(tmp_path / "run")
    write_bundle(bundle)
    bundle.files.summary.write_text("old summary")
    bundle.files.rank_error(2).write_text("old error")
    bundle.files.rank_log(2).write_text("old log")
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(5)]
    bundle.files.metrics.write_text("\n".join(lines) + "\n" + '{"step": 5, "lo')
    return bundle


def changed(root: Path) -> Bundle:
    return bundled(root, planned(**{"train.steps": 99}))


def texts(bundle: Bundle) -> dict[str, str]:
    return {path.name: text for path, text in bundle.texts.items()}


def in_folder(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in FROZEN}


def test_the_new_files_replace_the_old_and_those_are_kept(old):
    new = changed(old.files.root)
    assert change_frozen(new, "record 2", first_step=3) == 1
    files = old.files
    assert in_folder(files.root) == texts(new)
    assert in_folder(files.attempt(1)) == texts(old)
    assert files.resume.read_text() == "record 2"
    assert (files.attempt(1) / "summary.json").read_text() == "old summary"
    assert (files.attempt(1) / "rank_2.error.json").read_text() == "old error"
    assert not files.summary.exists()
    assert files.rank_log(2).read_text() == "old log", "logs go on"
    assert not files.pending.exists()
    assert num_attempts(files) == 1


def test_metrics_from_the_first_step_on_are_put_aside_and_torn_lines_with_them(old):
    change_frozen(changed(old.files.root), "{}", first_step=3)
    kept = old.files.metrics.read_text()
    assert [json.loads(line)["step"] for line in kept.splitlines()] == [0, 1, 2]
    aside = (old.files.attempt(1) / "metrics.jsonl").read_text()
    assert aside.startswith('{"step": 3, ')
    assert aside.endswith('{"step": 5, "lo')


def test_every_attempt_has_its_number_and_record(old):
    root = old.files.root
    for number in (1, 2, 3):
        assert change_frozen(changed(root), f"record {number + 1}", first_step=9) == number
    assert not (old.files.attempt(1) / "resume.json").exists()
    assert (old.files.attempt(2) / "resume.json").read_text() == "record 2"
    assert (old.files.attempt(3) / "resume.json").read_text() == "record 3"
    assert old.files.resume.read_text() == "record 4"


def test_what_is_named_is_put_aside(old):
    (old.files.checkpoints / "step_00000001").mkdir()
    change_frozen(changed(old.files.root), "{}", 0, (old.files.checkpoints, old.files.metrics))
    assert (old.files.attempt(1) / "checkpoints" / "step_00000001").is_dir()
    assert list(old.files.checkpoints.iterdir()) == []
    assert not old.files.metrics.exists()


class Cut(Exception):
    """The machine lost its power here."""


def is_old_or_new(files: RunFiles, old: Bundle, new: Bundle) -> bool:
    return in_folder(files.root) in (texts(old), texts(new))


def test_cut_off_at_any_instant_the_next_command_finds_all_old_or_all_new(tmp_path, monkeypatch):
    """Every change of a name is a point at which the machine may stop."""
    originals = {name: getattr(Path, name) for name in ("rename", "replace", "unlink", "rmdir")}
    for number in range(100):
        countdown = iter(range(number, -1, -1))

        def cut(name: str, countdown=countdown):
            def act(self, *arguments, **options):
                if next(countdown) == 0:
                    raise Cut
                return originals[name](self, *arguments, **options)

            return act

        old = bundled(tmp_path / f"run{number}")
        write_bundle(old)
        new = changed(old.files.root)
        with monkeypatch.context() as patch:
            for name in originals:
                patch.setattr(Path, name, cut(name))
            try:
                change_frozen(new, "record", first_step=0)
            except Cut:
                is_cut = True
            else:
                is_cut = False
        if not is_cut:
            assert number > 8, "too few points"
            return
        complete_pending(old.files)
        assert is_old_or_new(old.files, old, new)
        assert not old.files.pending.exists()
        # And the command that was cut off can be given again.
        change_frozen(new, "record", first_step=0)
        assert in_folder(old.files.root) == texts(new)
        assert in_folder(old.files.attempt(1)) == texts(old)
    raise AssertionError("it never ended")


def test_a_full_disk_leaves_the_run_as_it_was(old, monkeypatch):
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(attempts, "write_text", full)
    with pytest.raises(SubmissionRefused, match="No space left on device; the run is as it was"):
        change_frozen(changed(old.files.root), "{}", first_step=0)
    assert in_folder(old.files.root) == texts(old)


def test_the_script_of_another_launcher_goes(old):
    slurm = bundled(old.files.root, planned(launch={"name": "slurm"}))
    change_frozen(slurm, "{}", first_step=0)
    assert old.files.job.exists()
    assert not old.files.command.exists()
    assert (old.files.attempt(1) / "command.sh").exists()
