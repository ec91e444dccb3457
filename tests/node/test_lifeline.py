"""Does a host without a queue hear what it is to do, and that nobody follows the run any more?"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.errors import RunFailed
from launcher.node.hosts import hosts_here, is_here, plain_place
from launcher.plan.run_files import RunFiles
from tests.factory import h100
from tests.submit.cases import bundled, planned

# What an agent does: it holds the line, and says which signals come.
AGENT = """\
import os, pathlib, signal, sys, threading
from launcher.node import lifeline as module
from launcher.plan.run_files import RunFiles
module.SILENCE_S = float(sys.argv[2])
line = module.Lifeline(RunFiles(root=pathlib.Path(sys.argv[1])), sys.stdin.buffer)
signal.signal(signal.SIGUSR1, lambda *_: print("asked", flush=True))
try:
    line.hold()
    print("token", os.environ.get("TOKEN"), flush=True)
    threading.Event().wait(30)
except KeyboardInterrupt:
    print("ended" + line.why, line.is_asked, line.is_cut_off, flush=True)
"""
ONE = {"tp": 1, "pp": 1, "dp": None}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def agent(tmp_path):
    """Starts one; what is left of it ends with the test."""
    started = []

    def start(silence_s: float = 60.0) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", AGENT, str(tmp_path), str(silence_s)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            # As in the background of a shell.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )  # fmt: skip
        started.append(process)
        process.stdin.write(json.dumps({"TOKEN": "s3cret"}) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "token s3cret\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def rest(process: subprocess.Popen[str]) -> str:
    """The last line of what it says."""
    return process.stdout.read().splitlines()[-1]


def test_a_wish_to_save_is_a_signal_that_comes_again_and_again(agent):
    process = agent()
    process.stdin.write("save\n")
    process.stdin.flush()
    assert [process.stdout.readline() for _ in range(2)] == ["asked\n"] * 2


def test_a_wish_to_end_ends_it_at_once(agent):
    process = agent()
    process.stdin.write("\nend\n")
    process.stdin.flush()
    assert rest(process) == "ended, since somebody wished so True False"


def test_the_end_of_the_line_ends_it(agent):
    process = agent()
    process.stdin.close()
    assert rest(process) == "ended, since the command that follows the run is gone False True"


def test_silence_ends_it(agent):
    said = rest(agent(silence_s=0.5))
    assert said == "ended, since nothing was heard of it for 0 s False True"


def test_a_note_in_the_run_directory_is_heard_too(agent, tmp_path):
    process = agent()
    (tmp_path / "cancelled.json").write_text('{"now": false}')
    assert process.stdout.readline() == "asked\n"
    (tmp_path / "cancelled.json").write_text('{"now": true}')
    assert rest(process) == "ended, since somebody wished so True False"


# Which host is this?


def test_a_machine_knows_its_own_names_and_addresses():
    assert is_here("localhost")
    assert not is_here("192.0.2.77")
    assert not is_here("no-such-host.invalid")
    assert hosts_here(("192.0.2.77", "127.0.0.1")) == [1]


def place(root: Path, number: int | None, hosts: tuple[str, ...], **launch: object):
    files = RunFiles(root=root)
    launch |= {"name": "torchrun", "hosts": hosts}
    hardware = h100(num_nodes=max(1, len(hosts)))
    bundle = bundled(root, planned(hardware=hardware, launch=launch, parallelism=ONE))
    root.mkdir()
    files.run.write_text(bundle.texts[files.run])
    files.submitted.write_text('{"kind": "torchrun", "job_id": "17"}')
    return plain_place(root, number)


def test_a_host_takes_its_number_or_finds_it(tmp_path):
    hosts = ("192.0.2.77", socket.gethostname())
    assert place(tmp_path / "a", None, hosts).index == 1
    found = place(tmp_path / "b", 0, hosts)
    assert (found.node, found.index, found.job_id) == ("192.0.2.77", 0, "17")
    with pytest.raises(RunFailed, match="no host 2; they are counted from 0"):
        place(tmp_path / "c", 2, hosts)


def test_a_host_that_cannot_know_its_number_is_told_all_of_them(tmp_path):
    with pytest.raises(RunFailed, match=r"none of launch\.hosts is this machine.*: 0 for 192"):
        place(tmp_path / "a", None, ("192.0.2.77", "192.0.2.78"))


def test_without_a_list_the_first_host_is_where_all_meet(tmp_path):
    own = {"start": "manual"}
    assert place(tmp_path / "a", None, (), rendezvous_endpoint="127.0.0.1:99", **own).index == 0
    assert place(tmp_path / "b", None, (), rendezvous_endpoint="192.0.2.7:99", **own).index == 1


def test_a_job_of_the_queue_is_no_plain_host(tmp_path):
    (tmp_path / "job.json").write_text('{"kind": "slurm", "job_id": "17"}')
    assert plain_place(tmp_path, None) is None
    assert plain_place(tmp_path / "nothing", None) is None
