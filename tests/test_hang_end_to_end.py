"""A run on this machine of which one rank hangs: it ends by itself and says which one."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from launcher.node.processes import workers_of
from tests.test_end_to_end import SHORT, is_alive, launch, start

WORKER = "launcher.runtime.worker"


def worker(process: int, rank: int) -> int:
    """The process of a rank, by the environment that torchrun gave it."""
    (pid,) = [
        pid
        for pid in workers_of(process, WORKER)
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    ]
    return pid


def test_a_stopped_rank_ends_the_run_which_names_it_and_keeps_the_others_stacks(tmp_path):
    process = start(
        "--run-dir", "run", "train.steps=100000", "launch.hang_timeout_s=8", *SHORT, cwd=tmp_path
    )
    pids = workers_of(process.pid, WORKER)
    os.kill(worker(process.pid, 2), signal.SIGSTOP)
    assert process.wait(timeout=120) == 1
    assert not [pid for pid in pids if is_alive(pid)], "a stopped process outlived the run"
    said = (tmp_path / "err").read_text()
    assert "rank 2 on node " in said
    assert "Hung: no step within 8 s after step " in said
    assert "no stacks of it: it was stopped" in said
    assert "[hang]" in said
    assert "launch.hang_timeout_s: longer" in said
    logs = tmp_path / "run" / "logs"
    assert sorted(path.name for path in logs.glob("hang_*.txt")) == [
        "hang_0.txt", "hang_1.txt", "hang_3.txt",
    ]  # fmt: skip
    assert "launcher/runtime/train.py" in (logs / "hang_0.txt").read_text()
    status = json.loads(launch("status", "run", "--json", cwd=tmp_path).stdout)
    assert status["state"] == "failed"
    assert status["failure"]["kind"] == "hang"
    assert status["failure"]["rank"] == 2
