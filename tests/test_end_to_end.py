"""The command as a user types it: processes start, train, fail and end."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from launcher.node.processes import descendants

SHORT = (
    "train.sequence_length=32",
    "train.micro_batch_size=2",
    "train.validation_batches=1",
    "model.num_layers=2",
    "model.hidden_size=32",
    "model.ffn_hidden_size=64",
)
PAIR = ("parallelism.tp=1", "hardware.gpus_per_node=2")
"""Two processes, where the others would show nothing more."""


def launch(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), cwd=cwd, capture_output=True, text=True, timeout=240)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "launcher", *words]


def start(*words: str, cwd: Path) -> subprocess.Popen[bytes]:
    """A run in the background, once its workers have taken their first step."""
    with (cwd / "out").open("wb") as out, (cwd / "err").open("wb") as err:
        process = subprocess.Popen(command(*words), cwd=cwd, stdout=out, stderr=err)
    metrics = cwd / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None, (cwd / "err").read_text()
        assert time.monotonic() < deadline, "no first step"
        time.sleep(0.1)
    return process


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a short quickstart that ended well; `out` and `err` lie beside it."""
    cwd = tmp_path_factory.mktemp("quickstart")
    result = launch("--run-dir", "run", "train.steps=4", "train.validate_every=2", *SHORT, cwd=cwd)
    (cwd / "out").write_text(result.stdout)
    (cwd / "err").write_text(result.stderr)
    assert result.returncode == 0, result.stderr
    return cwd / "run"


def test_a_run_prints_plan_progress_and_predicted_against_measured(finished):
    out, err = (finished.parent / "out").read_text(), (finished.parent / "err").read_text()
    assert "tp=2 pp=2 dp=1" in out
    assert "step 4/4" in err
    assert "ETA" in err
    for row in ("step time", "tokens/s", "MFU", "peak memory rank 3"):
        assert row in out
    assert out.rstrip().endswith(f"run directory  {finished}")


def test_every_step_is_in_the_metrics(finished):
    entries = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    steps = [entry for entry in entries if "loss" in entry]
    assert [entry["step"] for entry in steps] == [0, 1, 2, 3]
    for entry in steps:
        assert {"grad_norm", "learning_rate", "step_s", "tokens_per_s"} <= set(entry)
        assert all(math.isfinite(value) for value in entry.values())
    assert [entry["step"] for entry in entries if "validation_loss" in entry] == [1, 3]
    assert steps[0]["loss"] == pytest.approx(math.log(256), abs=0.2)


def test_the_run_directory_holds_what_the_contract_names(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"run.yaml", "plan.json", "ds_config.json", "command.sh", "logs", "checkpoints"} <= names
    assert {"metrics.jsonl", "summary.json"} <= names
    assert {f"rank_{rank}.log" for rank in range(4)} <= {
        p.name for p in (finished / "logs").iterdir()
    }
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["outcome"]["status"] == "done"
    assert len(summary["measured"]["peak_bytes"]) == 4
    (row,) = csv.DictReader((finished.parent / "measured_runs.csv").open())
    assert (row["id"], float(row["step_time_s"])) == ("run", summary["measured"]["step_s"])
    run = yaml.safe_load((finished / "run.yaml").read_text())
    plan = json.loads((finished / "plan.json").read_text())
    assert run == plan["run"]
    assert run["parallelism"]["tp"] == 2


def test_a_dry_run_shows_the_script_and_writes_nothing(tmp_path):
    result = launch("--dry-run", "--run-dir", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "torch.distributed.run" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_dry_run_and_the_run_have_the_same_script(finished):
    result = launch(
        "--dry-run", "--run-dir", "run", "train.steps=4", "train.validate_every=2", *SHORT,
        cwd=finished.parent,
    )  # fmt: skip
    assert result.stdout == (finished / "command.sh").read_text()


def test_the_last_lines_name_a_killed_rank_and_nothing_is_left(tmp_path):
    process = start("--run-dir", "run", "train.steps=100000", *SHORT, cwd=tmp_path)
    workers = _workers(process.pid)
    assert sorted(workers) == [0, 1, 2, 3]
    family = descendants(process.pid)
    started = time.monotonic()
    os.kill(workers[1], signal.SIGKILL)
    assert process.wait(timeout=30) == 1
    assert time.monotonic() - started < 15
    lines = (tmp_path / "err").read_text().splitlines()
    last = next(line for line in lines if line.startswith("rank 1 on node "))
    assert "(dp 0, pp 0, tp 1) failed: killed by signal SIGKILL" in last
    assert not [pid for pid in family if is_alive(pid)]
    assert (
        json.loads((tmp_path / "run" / "summary.json").read_text())["outcome"]["status"] == "failed"
    )


def test_ctrl_c_ends_every_process_within_five_seconds(tmp_path):
    process = start("--run-dir", "run", "train.steps=100000", *SHORT, *PAIR, cwd=tmp_path)
    family = descendants(process.pid)
    assert len(family) >= 3
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert time.monotonic() - started < 5
    assert not [pid for pid in family if is_alive(pid)]


def test_workers_die_with_a_launcher_that_was_killed(tmp_path):
    process = start("--run-dir", "run", "train.steps=100000", *SHORT, *PAIR, cwd=tmp_path)
    family = descendants(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(is_alive(pid) for pid in family):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.1)


def test_a_loss_that_is_not_a_number_ends_the_run_with_advice(tmp_path):
    result = launch(
        "train.steps=20", "optimizer.learning_rate=1e30", "optimizer.clip_grad_norm=null",
        "optimizer.warmup_steps=0", *SHORT, *PAIR, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 1
    assert "  try optimizer.learning_rate=" in result.stderr
    assert "Traceback" not in result.stderr


def test_tokens_beyond_the_vocabulary_are_a_named_mistake(tmp_path):
    (tmp_path / "tokens.bin").write_bytes(bytes([0, 3] * 4000))  # little-endian 768
    words = ("data=tokens", "data.path=tokens.bin", "train.steps=2", *SHORT, *PAIR)
    result = launch(*words, cwd=tmp_path)
    assert result.returncode == 1
    assert "[data-fits-vocabulary]" in result.stderr
    assert "model.vocab_size=769" in result.stderr


def _workers(launcher: int) -> dict[int, int]:
    """Process ids of the workers by rank, from their environment."""
    found = {}
    for pid in descendants(launcher):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        rank = [entry for entry in variables if entry.startswith(b"RANK=")]
        if b"launcher.runtime.worker" in words and rank:
            found[int(rank[0].removeprefix(b"RANK="))] = pid
    return found
