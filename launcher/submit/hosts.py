"""Runs without a queue: what is checked and written before hosts are started, and after."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launcher.config.schema import Launch
from launcher.errors import Finding, SubmissionRefused
from launcher.node.hosts import PLAIN, is_here
from launcher.node.records import list_starts, write_record
from launcher.plan.records import Plan
from launcher.plan.run_files import RunFiles
from launcher.render.hosts import host_command
from launcher.submit.crew import SSH
from launcher.submit.preflight_here import (
    around_the_workers,
    place_notes,
    readable_script,
    writable,
)
from launcher.submit.space import disk_finding

_PROBE_S = 40.0
_NO_FILE, _NO_PYTHON, _NO_CONNECTION = 91, 92, 255


def is_plain(launch: Launch) -> bool:
    """Whether hosts are started without a queue."""
    return launch.name in PLAIN


def refuse_unready_hosts(
    plan: Plan, folder: Path, script: str, python: str, first_step: int = 0
) -> list[str]:
    """Raise SubmissionRefused with everything that would fail on the hosts; notes otherwise.

    Args:
        plan: what runs.
        folder: the run directory.
        script: of every host.
        python: interpreter that it calls.
        first_step: where a resumed run goes on.

    """
    findings = [*around_the_workers(plan, folder), *writable(folder), *readable_script(script)]
    if finding := disk_finding(plan, folder, first_step):
        findings.append(finding)
    launch = plan.run.launch
    others = [host for host in launch.hosts if not is_here(host)]
    program = "mpirun" if launch.name == "mpirun" else "ssh"
    is_needed = launch.name == "mpirun" or (launch.start == "ssh" and bool(others))
    if is_needed and shutil.which(program) is None:
        findings.append(
            Finding(
                field="launch",
                value=launch.name,
                rule="starter-not-here",
                reason=f"there is no {program} on this machine",
                fix="launch.start=manual" if program == "ssh" else "launch=torchrun",
            )
        )
    elif is_needed and program == "ssh" and not any(f.field == "--run-dir" for f in findings):
        findings += _probe(others, folder, python if not launch.setup else "")
    if findings:
        raise SubmissionRefused("\n".join(str(finding) for finding in findings))
    return place_notes(folder) if others else []


def _probe(hosts: Sequence[str], folder: Path, python: str) -> list[Finding]:
    """Ask all hosts at once whether they see a file that was made here a moment ago."""
    place = next((p for p in (folder, *folder.parents) if p.exists()), Path("/"))
    with (
        tempfile.NamedTemporaryFile(dir=place, prefix=".launch-") as seen,
        ThreadPoolExecutor(max_workers=min(32, len(hosts))) as pool,
    ):
        test = f"test -e {shlex.quote(seen.name)} || exit {_NO_FILE}"
        if python.startswith("/"):
            test += f"; test -x {shlex.quote(python)} || exit {_NO_PYTHON}"
        answers = list(pool.map(lambda host: _ask_host(host, test), hosts))
    found = [
        _finding(host, answer, place, python) for host, answer in zip(hosts, answers, strict=True)
    ]
    return [finding for finding in found if finding is not None]


def _ask_host(host: str, test: str) -> tuple[int, str]:
    """Exit code and the last line that ssh said."""
    try:
        done = subprocess.run(
            [*SSH, host, f"exec sh -c {shlex.quote(test)}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _NO_CONNECTION, f"no answer within {_PROBE_S:.0f} s"
    except OSError as error:
        return _NO_CONNECTION, str(error.strerror)
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return done.returncode, lines[-1]


def _finding(host: str, answer: tuple[int, str], place: Path, python: str) -> Finding | None:
    code, said = answer
    if code == 0:
        return None
    if code == _NO_FILE:
        return Finding(
            field="launch.hosts",
            value=host,
            rule="run-dir-shared",
            reason=f"it does not see what this machine writes in {place}",
            fix="--run-dir on a file system that all hosts share",
        )
    if code == _NO_PYTHON:
        return Finding(
            field="launch.hosts",
            value=host,
            rule="python-on-hosts",
            reason=f"it has no {python}",
            fix="launch.python=PATH",
        )
    return Finding(
        field="launch.hosts",
        value=host,
        rule="host-reachable",
        reason=f"ssh {host}: {said}",
        fix="launch.start=manual",
    )


def record_plain_job(files: RunFiles, kind: str) -> str:
    """Write job.json; the id by which all hosts know this start of the run."""
    at = time.time()
    job_id = str(int(at * 1000))
    write_record(
        files.submitted,
        {
            "kind": kind,
            "job_id": job_id,
            "array_task": None,
            "cluster": None,
            "submitted_at": at,
            "follow_up": None,
        },
    )
    return job_id


def close_plain_job(files: RunFiles, job_id: str, is_meant: bool, why: str) -> None:
    """Write the end of a job whose first host could not."""
    for start in list_starts(files):
        if start.job_id == job_id and start.end is None and start.files.nodes.exists():
            document = {
                "status": "stopped" if is_meant else "failed",
                "reason": "cancelled" if is_meant else "node_failure",
                "why": why,
                "bad_nodes": [],
                "ended_at": time.time(),
                "first_error": None,
            }
            write_record(start.files.end, document)


def how_to_start(launch: Launch, root: Path) -> str:
    """A line for every host: what is to be typed there."""
    if not launch.hosts:
        return f"on every host  {host_command(root, None)}"
    width = max(len(host) for host in launch.hosts)
    return "\n".join(
        f"on {host:{width}}  {host_command(root, number)}"
        for number, host in enumerate(launch.hosts)
    )
