"""Do `resume`, `checkpoints` and `checkpoint` answer, refuse and record as they promise?

No process is started here: the script is replaced by a function, checkpoints are made by hand.
tests/test_resume_end_to_end.py trains.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from launcher.checkpoint.lock import hold
from launcher.checkpoint.manifest import manifest_text, read_manifest
from launcher.checkpoint.publish import set_aside
from launcher.plan.run_files import RunFiles
from launcher.render.bundle import Bundle
from tests.checkpoint.folders import save
from tests.test_cli import launch

SUMMARY = {
    "outcome": {"status": "done", "steps": 9, "loss": 1.0, "validation_loss": None},
    "predicted": {"step_s": 1, "tokens_per_s": 1, "mfu": 1, "peak_bytes": [1]},
    "measured": {"step_s": 1, "tokens_per_s": 1, "mfu": 1, "peak_bytes": [1]},
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def started(monkeypatch) -> list[Bundle]:
    """Bundles whose script was started."""
    bundles: list[Bundle] = []

    def run_script(bundle: Bundle, *_: object, **__: object) -> None:
        bundles.append(bundle)
        bundle.files.summary.write_text(json.dumps(SUMMARY))

    monkeypatch.setattr("launcher.submit.local.run_script", run_script)
    return bundles


@pytest.fixture
def run(tmp_path) -> RunFiles:
    """runs/a: 9 steps wanted, checkpoints at 3 and 5, killed after that."""
    assert launch("--run-dir", "runs/a", "train.steps=9", "hardware.device=cpu")[0] == 0
    files = RunFiles(root=tmp_path / "runs" / "a")
    files.summary.unlink()
    save(files.checkpoints, 3)
    save(files.checkpoints, 5)
    files.has_saved.touch()
    lines = [json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(7)]
    files.metrics.write_text("".join(lines))
    return files


def frozen(files: RunFiles) -> dict[str, dict[str, object]]:
    return yaml.safe_load(files.run.read_text())


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


# Resume


@pytest.mark.parametrize("word", ["a", "runs/a", "./runs/a/", "~/runs/a"])
def test_a_run_is_named_by_its_directory_or_its_name(run, started, word, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    code, out, err = launch("resume", word)
    assert code == 0, err
    assert started[-1].files.root == run.root
    assert "continuing after step 5 from step_00000005" in err
    assert "loss 1.0000 after 9 steps" in out


def test_without_changes_the_frozen_run_is_the_same_and_the_attempt_is_on_record(run):
    before = run.run.read_text()
    assert launch("resume", "a")[0] == 0
    assert run.run.read_text() == before
    record = json.loads(run.resume.read_text())
    assert (record["attempt"], record["first_step"], record["changes"]) == (2, 5, [])
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [
        0, 1, 2, 3, 4
    ]  # fmt: skip
    assert launch("resume", "a", "train.steps=20")[0] == 0
    assert json.loads(run.resume.read_text())["attempt"] == 3


def test_changes_of_every_allowed_class_are_done_said_and_recorded(run):
    code, _, err = launch(
        "resume", "a", "train.log_every=3", "optimizer.learning_rate=0.5",
        "parallelism.tp=4", "parallelism.pp=1",
    )  # fmt: skip
    assert code == 0, err
    assert "CHANGES THE NUMBERS  optimizer.learning_rate: 0.003 -> 0.5" in err
    assert "from step 6 on the loss is not the one that the run would have had" in err
    assert "resharding  parallelism.tp: 2 -> 4" in err
    assert "safe  train.log_every: 1 -> 3" in err
    now = frozen(run)
    assert (now["parallelism"]["tp"], now["optimizer"]["learning_rate"]) == (4, 0.5)
    assert json.loads(run.plan.read_text())["run"] == now
    changes = {c["key"]: c for c in json.loads(run.resume.read_text())["changes"]}
    assert changes["optimizer.learning_rate"] == {
        "key": "optimizer.learning_rate", "class": "numerics", "old": 0.003, "new": 0.5
    }  # fmt: skip
    assert changes["parallelism.pp"]["class"] == "resharding"
    old = yaml.safe_load((run.attempt(1) / "run.yaml").read_text())
    assert old["parallelism"]["tp"] == 2


def test_a_change_that_is_not_of_the_numbers_is_not_said_loudly(run):
    _, _, err = launch("resume", "a", "train.log_every=3", "parallelism.zero_stage=0")
    assert "NUMBERS" not in err


def test_forbidden_changes_are_refused_with_both_values_and_nothing_is_touched(run, started):
    before, count = snapshot(run.root), len(started)
    code, out, err = launch("resume", "a", "model.vocab_size=512", "optimizer=sgd")
    assert (code, out) == (2, "")
    assert "model.vocab_size=512 [forbidden-on-resume]: the run was started with 256" in err
    assert "optimizer.name=sgd [forbidden-on-resume]: the run was started with adamw" in err
    assert snapshot(run.root) == before
    assert len(started) == count


def remember(run: RunFiles, name: str, values: dict[str, object]) -> None:
    """Let a checkpoint say that it was saved under this configuration."""
    folder = run.checkpoints / name
    manifest = replace(read_manifest(folder), run=values)
    (folder / "manifest.json").write_text(manifest_text(manifest))


def test_an_edited_run_yaml_is_compared_with_what_was_saved(run):
    """By hand, behind our back: the checkpoint knows better."""
    saved = frozen(run)
    remember(run, "step_00000005", saved)
    original = run.run.read_text()
    run.run.write_text(original.replace("seed: 1234", "seed: 77"))
    code, _, err = launch("resume", "a")
    assert code == 0, err
    assert "CHANGES THE NUMBERS  train.seed: 1234 -> 77" in err
    run.summary.unlink()
    run.run.write_text(original.replace("vocab_size: 256", "vocab_size: 512"))
    code, _, err = launch("resume", "a")
    assert code == 2
    assert "model.vocab_size=512 [forbidden-on-resume]: the run was started with 256" in err


def test_a_dry_run_says_what_would_change_prints_the_script_and_writes_nothing(run):
    before = snapshot(run.root)
    code, out, err = launch("resume", "a", "--dry-run", "parallelism.dp=2")
    assert code == 0
    assert out.startswith("#!/usr/bin/env bash\n# 8 workers")
    assert "resharding  parallelism.dp: 1 -> 2" in err
    assert snapshot(run.root) == before


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(run):
    file = run.checkpoints / "step_00000005" / "rank_00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    code, _, err = launch("resume", "a")
    assert code == 0
    assert "step_00000005 is refused: rank_00000.safetensors: its checksum" in err
    assert "continuing after step 3 from step_00000003" in err
    refused = json.loads(run.resume.read_text())["refused"]
    assert [entry["checkpoint"] for entry in refused] == ["step_00000005"]


def test_a_torn_manifest_and_nothing_else_is_an_error_with_the_way_out(run, started):
    for name in ("step_00000003", "step_00000005"):
        (run.checkpoints / name / "manifest.json").write_text('{"version"')
    count = len(started)
    code, _, err = launch("resume", "a")
    assert code == 2
    assert "[no-readable-checkpoint]" in err
    assert "--from-scratch" in err
    assert len(started) == count


def test_from_scratch_puts_the_past_aside_and_loses_nothing(run, started):
    code, _, err = launch("resume", "a", "--from-scratch")
    assert code == 0
    assert "starting from scratch" in err
    assert list(run.checkpoints.iterdir()) == []
    assert not run.has_saved.exists()
    assert not run.metrics.exists()
    aside = run.attempt(1)
    assert (aside / "checkpoints" / "step_00000005").is_dir()
    assert len((aside / "metrics.jsonl").read_text().splitlines()) == 7
    assert (aside / "has_saved").exists()


def test_a_finished_run_says_so_and_is_no_error(run, started):
    save(run.checkpoints, 9)
    count = len(started)
    assert launch("resume", "a") == (
        0, "finished: 9 of 9 steps are done; train.steps=18 goes on\n", ""
    )  # fmt: skip
    assert len(started) == count
    assert launch("resume", "a", "train.steps=12")[0] == 0
    assert len(started) == count + 1


@pytest.mark.parametrize("overrides", [["train.log_every=2"], ["train.steps=4"]])
def test_overrides_without_a_step_left_are_a_mistake(run, overrides):
    save(run.checkpoints, 9)
    code, _, err = launch("resume", "a", *overrides)
    assert code == 2
    assert "[nothing-to-do]: 9 steps are done" in err
    assert "Try train.steps=18" in err


def test_two_at_once_the_second_is_refused_by_name(run, started):
    count = len(started)
    with hold(run.launch_lock):
        code, _, err = launch("resume", "a")
    assert code == 4
    assert f"[run-in-use]: process {os.getpid()} on " in err
    assert len(started) == count
    assert launch("resume", "a")[0] == 0


def test_a_running_job_without_its_launcher_is_waited_for_and_then_refused(run, monkeypatch):
    monkeypatch.setattr("launcher.jobs._OTHER_JOB_ENDS_S", 0.3)
    with hold(run.job_lock):
        code, _, err = launch("resume", "a")
    assert code == 4
    assert err.startswith(f"waiting up to 0 s for process {os.getpid()} on ")
    assert launch("resume", "a")[0] == 0


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("[", "line 1 is not YAML"),
        ("", "it holds no configuration"),
        ("a: 1\n", "model [run-readable]"),
        ("\udcff", "it is not YAML"),
    ],
)
def test_a_corrupted_run_yaml_is_an_error_that_names_a_copy(run, damage, reason):
    launch("resume", "a")
    run.run.write_text(damage, "utf-8", "surrogateescape")
    code, _, err = launch("resume", "a")
    assert code == 2
    assert reason in err
    assert f"e.g. {run.attempt(1) / 'run.yaml'}" in err


def test_a_change_that_was_cut_off_is_completed_first(run):
    launch("resume", "a", "train.log_every=3")
    run.pending.mkdir()
    text = run.run.read_text().replace("log_every: 3", "log_every: 4")
    (run.pending / "run.yaml").write_text(text)
    launch("resume", "a")
    assert frozen(run)["train"]["log_every"] == 4


def test_hardware_that_is_not_here_is_refused_before_anything_is_written(run):
    before = snapshot(run.root)
    code, _, err = launch("resume", "a", "hardware=h100x8", "parallelism.dp=null")
    assert code == 4, err
    assert "[not-this-machine]" in err
    assert snapshot(run.root) == before


def test_what_does_not_fit_is_refused(run):
    words = ["hardware.gpu.memory_bytes=1000000", "parallelism.zero_stage=0"]
    code, _, err = launch("resume", "a", *words)
    assert code == 3
    assert "does not fit" in err


def test_a_full_disk_is_seen_before_the_start(run, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")(0, 0, 10)
    monkeypatch.setattr("launcher.submit.space.shutil.disk_usage", lambda path: usage)
    code, _, err = launch("resume", "a", "checkpoint.every_steps=1")
    assert code == 4
    assert "[checkpoints-fit-disk]" in err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["resume"], "launch resume RUN [missing-operand]: RUN not given."),
        (["resume", "train.steps=3"], "launch resume RUN [missing-operand]: RUN not given."),
        (["resume", "b"], "RUN=b [no-such-run]: neither a run directory nor a name under runs/. "
                          "Legal here: a. Try runs/a."),
        (["resume", "runs"], "RUN=runs [no-such-run]: no run directory: it has no run.yaml. "
                             "Legal here: a. Try runs/a."),
        (["resume", "a", "-m", "train.seed=1,2"], "--multirun [unused-flag]: `launch resume` has "
         "no such flag. Legal here: --config-dir, --dry-run, --from-scratch."),
        (["checkpoints", "a", "x=1"], "x=1 [unused-override]: `launch checkpoints` takes no "
                                      "overrides."),
        (["checkpoints", "a", "--diff", "3", "4"], "--diff=4 [no-such-checkpoint]: the run has no "
         "such checkpoint. Legal here: 3, 5, latest. Try --diff 3 5."),
        (["checkpoint", "a", "--timeout", "x"], "--timeout [flag-value]: invalid float value: 'x'. "
                                                "Try launch --help."),
    ],
)  # fmt: skip
def test_a_mistaken_command_line_is_explained(run, words, text):
    code, _, err = launch(*words)
    assert (code, err.rstrip("\n")) == (2, text)


@pytest.mark.parametrize("word", ["", ".", "/", "a\0b"[:1], "\n", "x" * 300, "-", "../a", "=", "~"])
@pytest.mark.parametrize("verb", ["resume", "checkpoints", "checkpoint"])
def test_no_name_of_a_run_ends_in_a_traceback(verb, word):
    assert launch(verb, "--", word)[0] in (2, 4)


# List, verify, compare


def test_checkpoints_are_listed_oldest_first(run):
    code, out, err = launch("checkpoints", "a")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["step", "saved", "size", "layout", "state"]
    assert [line.split()[0] for line in lines[1:]] == ["3", "5"]
    assert "dp3" in lines[1]
    assert lines[2].endswith("latest")
    assert "verified" not in out


def test_a_run_without_checkpoints_says_so(run):
    run.checkpoints.rename(run.root / "elsewhere")
    code, out, _ = launch("checkpoints", "a")
    assert (code, out) == (0, f"no checkpoints in {run.checkpoints}\n")


def test_what_a_job_has_set_aside_is_listed_with_its_reason(run):
    set_aside(run.checkpoints, "step_00000003", "rank_00000.safetensors: torn")
    code, out, _ = launch("checkpoints", "a")
    assert code == 0
    assert out.endswith("set aside: refused_step_00000003.1  rank_00000.safetensors: torn\n")
    document = json.loads(launch("checkpoints", "a", "--json")[1])
    assert [entry["name"] for entry in document["set_aside"]] == ["refused_step_00000003.1"]


def test_the_list_as_json_is_one_document(run):
    save(run.checkpoints, 8, permanent=True)
    code, out, err = launch("checkpoints", "a", "--json", "--verify")
    assert (code, err) == (0, "")
    rows = json.loads(out)["checkpoints"]
    assert [(row["step"], row["is_verified"], row["is_latest"]) for row in rows] == [
        (3, True, False), (5, True, False), (8, True, True)
    ]  # fmt: skip
    assert [row["is_permanent"] for row in rows] == [False, False, True]
    assert all(row["bytes"] > 100 and row["saved_at"] > 1e9 for row in rows)


def test_verifying_finds_one_flipped_bit_that_listing_does_not_read(run):
    file = run.checkpoints / "step_00000003" / "rank_00002.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)
    assert launch("checkpoints", "a")[0] == 0
    code, out, _ = launch("checkpoints", "a", "--verify")
    assert code == 1
    assert "BROKEN: rank_00002.safetensors: its checksum does not match" in out
    assert "verified, latest" in out


@pytest.mark.parametrize("damage", ["truncated", "gone", "manifest"])
def test_listing_finds_what_needs_no_reading(run, damage):
    folder = run.checkpoints / "step_00000003"
    if damage == "truncated":
        os.truncate(folder / "rank_00000.safetensors", 10)
    elif damage == "gone":
        (folder / "rank_00000.safetensors").unlink()
    else:
        (folder / "manifest.json").write_text("{}")
    code, out, _ = launch("checkpoints", "a", "--json")
    assert code == 1
    reasons = [row["reason"] for row in json.loads(out)["checkpoints"]]
    assert reasons[0]
    assert reasons[1] is None


def test_two_checkpoints_are_compared(run):
    code, out, _ = launch("checkpoints", "a", "--diff", "3", "latest")
    assert code == 1
    assert out.splitlines()[-1] == "4 of 4 tensors differ"
    code, out, _ = launch("checkpoints", "a", "--diff", "5", "step_00000005", "--json")
    assert code == 0
    assert json.loads(out)["equal"] is True


def test_a_checkpoint_of_another_run_is_compared_by_its_path(run, tmp_path):
    other = save(tmp_path / "elsewhere", 3, num_files=1)
    code, out, _ = launch("checkpoints", "a", "--diff", "3", str(other))
    assert code == 0
    assert out.endswith("equal, bit by bit\n")


@pytest.mark.parametrize("file", ["manifest.json", "rank_00001.safetensors"])
def test_comparing_a_damaged_checkpoint_is_an_error(run, file):
    os.truncate(run.checkpoints / "step_00000003" / file, 30)
    code, _, err = launch("checkpoints", "a", "--diff", "3", "5")
    assert code == 2
    assert "[checkpoint-readable]" in err


# Save now


def test_a_running_job_saves_when_it_is_asked(run):
    def job() -> None:
        while not run.save_request.exists():
            time.sleep(0.01)
        run.save_request.unlink()
        save(run.checkpoints, 7)

    thread = threading.Thread(target=job)
    with hold(run.job_lock):
        thread.start()
        code, out, _ = launch("checkpoint", "a")
        thread.join()
    assert (code, out) == (0, f"{run.checkpoints / 'step_00000007'}\n")


def test_a_save_that_fails_is_an_error_with_its_reason(run):
    def job() -> None:
        while not run.save_request.exists():
            time.sleep(0.01)
        with run.metrics.open("a") as stream:
            stream.write('{"step": 7, "checkpoint_error": "No space left on device"}\n')

    thread = threading.Thread(target=job)
    with hold(run.job_lock):
        thread.start()
        code, _, err = launch("checkpoint", "a", "--timeout", "20")
        thread.join()
    assert (code, err) == (1, "the checkpoint was not written: No space left on device\n")


def test_a_job_that_does_not_answer_is_not_waited_for_forever(run):
    with hold(run.job_lock):
        code, _, err = launch("checkpoint", "a", "--timeout", "0.3")
    assert code == 1
    assert err.startswith("no checkpoint within 0.3 s")


def test_nobody_is_asked_where_no_job_runs(run):
    code, _, err = launch("checkpoint", "a")
    assert code == 4
    assert "[not-running]" in err
    assert not run.save_request.exists()
