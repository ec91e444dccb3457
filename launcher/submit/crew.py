"""What works on a run that a command follows: processes here, on other hosts, or under mpirun."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from launcher.node.hosts import is_here
from launcher.node.lifeline import BEAT_S, END, HELD, SAVE
from launcher.node.processes import end_tree, workers_of
from launcher.node.stuck import StuckWorkers
from launcher.plan.records import Plan
from launcher.render.bundle import Bundle
from launcher.render.hosts import host_command
from launcher.render.torchrun import WORKER

_PR_SET_PDEATHSIG = 1  # prctl(2)
_OTHERS_END_S = 20.0
"""When one host has failed, the others mostly notice by themselves, and can say what they saw."""
_DONE_TOGETHER_S = 120.0
_GONE_S = 10.0
"""So long the processes of a host may take to end."""
# -T: no terminal, so that standard input is a pipe. A host that does not answer for half a minute
# is gone. Users, ports and keys stand in ~/.ssh/config.
SSH = (
    "ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=5",
    "-o", "ServerAliveCountMax=6", "--",
)  # fmt: skip


class Crew(Protocol):
    """Everything that works on one run."""

    def start(self, log: BinaryIO) -> None:
        """Start it; what it says goes to the log."""

    def poll(self) -> int | None:
        """The exit code when all of it has ended, None until then."""

    def ask(self) -> None:
        """Have the workers save and end; those that are still starting hear it the next time."""

    def end(self) -> None:
        """End what is left of it; on return it is gone."""

    def complaint(self) -> str:
        """What it knows of its own end beside what ranks tell; empty for nothing."""


def make_crew(bundle: Bundle, plan: Plan) -> Crew:
    """What runs the script of a bundle."""
    launch = plan.run.launch
    if launch.name == "mpirun":
        return MpiCrew(bundle.script)
    if launch.name == "torchrun":
        secrets = {name: os.environ.get(name, "") for name in launch.secrets}
        return HostsCrew(bundle.files.root, launch.hosts, secrets)
    stuck = StuckWorkers(bundle.files.logs, WORKER, launch.hang_timeout_s)
    return LocalCrew(bundle.script, stuck)


class LocalCrew:
    """torchrun on this machine."""

    def __init__(self, script: Path, stuck: StuckWorkers | None = None) -> None:
        """`stuck` ends what outlives a hang; agents have one of their own."""
        self._script, self._stuck = script, stuck
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, log: BinaryIO) -> None:
        """In a session of its own: signals of the terminal come to us."""
        self._process = _start(["bash", str(self._script)], log)

    def poll(self) -> int | None:
        """The exit code of torchrun."""
        assert self._process is not None
        if self._stuck is not None:
            self._stuck.look(self._process.pid)
        return self._process.poll()

    def ask(self) -> None:
        """The workers only: torchrun would give them half a minute and then kill them."""
        assert self._process is not None
        for pid in workers_of(self._process.pid, WORKER):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGUSR1)

    def end(self) -> None:
        """Politely first."""
        if self._process is not None:
            end_tree(self._process)

    def complaint(self) -> str:
        """Ranks and torchrun tell everything."""
        return ""


class MpiCrew(LocalCrew):
    """One agent per host, started by Open MPI."""

    def ask(self) -> None:
        """mpirun(1) passes USR1 on to every process of the job."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR1)

    def end(self) -> None:
        """mpirun(1) ends the job everywhere when it is asked to end."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GONE_S)
        super().end()


class HostsCrew:
    """One agent on each of a list of hosts, started by ssh; on this machine directly."""

    def __init__(self, root: Path, hosts: Sequence[str], secrets: Mapping[str, str]) -> None:
        self._root, self._hosts = root, tuple(hosts) or (None,)
        self._secrets = secrets
        self._agents: list[subprocess.Popen[bytes]] = []
        self._first_end: tuple[int, float] | None = None
        self._beat_at = time.monotonic()

    def start(self, log: BinaryIO) -> None:
        """All hosts at once; secrets go through the pipe, and stand in no command line."""
        for number, host in enumerate(self._hosts):
            command = f"{host_command(self._root, number if host else None)} {HELD}"
            words = ["bash", "-c", command]
            if host is not None and not is_here(host):
                words = [*SSH, host, command]
            agent = _start(words, log, stdin=subprocess.PIPE)
            self._agents.append(agent)
            self._tell(agent, json.dumps(dict(self._secrets)).encode())

    def poll(self) -> int | None:
        """The exit code of the first host that failed, when all have ended."""
        now = time.monotonic()
        if now - self._beat_at >= BEAT_S:
            self._beat_at = now
            self._tell_all(b"")
        ended = [n for n, agent in enumerate(self._agents) if agent.poll() is not None]
        failed = [n for n in ended if self._agents[n].returncode != 0]
        if ended and (self._first_end is None or (failed and self._is_good(self._first_end[0]))):
            self._first_end = ((failed or ended)[0], now)
        if len(ended) == len(self._agents):
            assert self._first_end is not None
            return self._agents[self._first_end[0]].returncode
        if self._first_end is not None:
            patience_s = _OTHERS_END_S if failed else _DONE_TOGETHER_S
            if failed and self._lost(self._first_end[0]):
                patience_s = 0.0  # Nobody there says anything, and the others wait for it.
            if now - self._first_end[1] > patience_s + _GONE_S:
                self._kill()
            elif now - self._first_end[1] >= patience_s:
                self._let_go()
        return None

    def ask(self) -> None:
        """The agents pass it on."""
        self._tell_all(SAVE)

    def end(self) -> None:
        """They end by themselves when they hear it, or nothing more."""
        self._tell_all(END)
        self._let_go()
        deadline = time.monotonic() + _GONE_S
        while time.monotonic() < deadline and any(a.poll() is None for a in self._agents):
            time.sleep(0.05)
        self._kill()

    def complaint(self) -> str:
        """A host that is gone, or that could not start its agent."""
        if self._first_end is None or self._is_good(number := self._first_end[0]):
            return ""
        code, host = self._agents[number].returncode, self._hosts[number] or "here"
        if code in (126, 127):
            return f"host {host} could not start its agent: does it see {self._root}?"
        if not self._lost(number):
            return ""
        return f"host {host} is lost: its connection or its agent ended (exit code {code})"

    def _is_good(self, number: int) -> bool:
        return self._agents[number].returncode == 0

    def _lost(self, number: int) -> bool:
        """ssh(1) says 255 for its own failures; an agent that was killed says nothing."""
        code = self._agents[number].returncode
        return code == 255 or code < 0 or code in (128 + signal.SIGKILL, 128 + signal.SIGTERM)

    def _tell_all(self, line: bytes) -> None:
        for agent in self._agents:
            self._tell(agent, line)

    def _tell(self, agent: subprocess.Popen[bytes], line: bytes) -> None:
        if agent.stdin is not None and not agent.stdin.closed:
            with contextlib.suppress(OSError):
                agent.stdin.write(line + b"\n")
                agent.stdin.flush()

    def _let_go(self) -> None:
        for agent in self._agents:
            if agent.stdin is not None:
                with contextlib.suppress(OSError):
                    agent.stdin.close()

    def _kill(self) -> None:
        for agent in self._agents:
            end_tree(agent)


def _start(
    words: Sequence[str], log: BinaryIO, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        words,
        stdin=stdin,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_end_with_parent() if sys.platform == "linux" else None,
    )


def _end_with_parent() -> Callable[[], None]:
    """A hook that has the kernel end what we start when we die, however that happens."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def hook() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # It died before the kernel knew of our wish.
            os._exit(1)

    return hook
