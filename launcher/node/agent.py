"""One agent per node: starts torchrun there, passes signals on, and ends what must not go on."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType

from launcher.config.run_yaml import read_run
from launcher.errors import RunFailed
from launcher.failure.causes import find_cause
from launcher.failure.first import Traces, first_failure
from launcher.node import torchrun
from launcher.node.checks.together import NodeCheck, wait_to_see
from launcher.node.ending import is_final
from launcher.node.place import Place
from launcher.node.processes import end_tree
from launcher.node.records import read_record, write_record
from launcher.node.rendezvous import (
    Endpoint,
    ask_again,
    free_port,
    is_asked_again,
    name_of_this_node,
    publish,
    published,
)
from launcher.node.steps import last_sign_at, saved_step, trained_steps
from launcher.node.stuck import StuckWorkers
from launcher.plan.records import layout_from_json

WORKER = "launcher.runtime.worker"
_POLL_S = 0.1
_ASK_AGAIN_S = 1.0
_LOOK_S = 1.0
_MEET_S = 600.0
_ROUNDS = 5
_RESERVE_S = 20.0
_STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


def run_agent(place: Place, choose_port: Callable[[], int] = free_port) -> int:
    """Train on this node; the exit code of torchrun, or 1 where the agent itself ended it."""
    if read_record(place.start.end) is not None:  # `start` has found nothing to do.
        return 0
    if not wait_to_see(place):
        return 1
    plan = json.loads(place.files.plan.read_text(encoding="utf-8"))
    layout, run = layout_from_json(plan), read_run(place.files.run)
    launch = run.launch
    workers = torchrun.Workers(
        module=WORKER,
        arguments=(str(place.files.root), str(place.start.root)),
        nodes=layout.nodes,
        per_node=layout.gpus_per_node,
        max_restarts=launch.max_restarts,
    )
    reserve_s = min(_RESERVE_S, launch.signal_seconds / 3)
    agent = Agent(
        place, workers, choose_port, reserve_s, launch.rendezvous_endpoint, launch.hang_timeout_s
    )
    agent.listen()
    if launch.check_nodes and not NodeCheck(place, run, layout, agent.is_asked).passes():
        return agent.refuse("checks of the nodes before the training failed")
    return agent.run()


class Agent:
    """Looks after the torchrun of one node, from meeting the others to its end."""

    def __init__(
        self,
        place: Place,
        workers: torchrun.Workers,
        choose_port: Callable[[], int] = free_port,
        reserve_s: float = 20.0,
        endpoint: str | None = None,
        hang_timeout_s: float | None = None,
    ) -> None:
        """`reserve_s` before the time limit the workers are ended, whatever they do.

        `endpoint`: HOST:PORT of the first node where all meet; None: chosen there.
        """
        self._place, self._workers, self._choose_port = place, workers, choose_port
        self._reserve_s, self._endpoint = reserve_s, endpoint
        self._node = name_of_this_node(place.node)
        self._log = place.start.torchrun_log(place.node)
        self._heard: signal.Signals | None = None
        self._noted: signal.Signals | None = None
        self._asked_at = 0.0
        self._looked_at = 0.0
        self._num_restarts = 0
        self._started_at = time.time()
        self._first_step_at: float | None = None
        self._ended_by: str | None = None
        self._stuck = StuckWorkers(place.start.root, workers.module, hang_timeout_s)
        self._hung_at: float | None = None

    def listen(self) -> None:
        """From now on the queue's signals ask the workers to save and end."""
        for number in _STOP_SIGNALS:
            signal.signal(number, self._hear)

    def is_asked(self) -> bool:
        """Whether this start of the job is to end."""
        return self._heard is not None or self._place.is_superseded

    def refuse(self, why: str) -> int:
        """Do not train; the exit code."""
        self._ended_by = why
        with contextlib.suppress(OSError):  # what is wrong may be the directory
            self._write(exit_code=1)
        return 1

    def run(self) -> int:
        """Meet and train; meet again where a port was taken or a torchrun killed; the exit code."""
        code, tried = 1, 0
        self._write()
        while tried < _ROUNDS:
            endpoint = self._meet(tried + 1)
            if endpoint is None:
                break
            tried = endpoint.round
            code, is_tried_again = self._train(endpoint)
            if not is_tried_again:
                break
        self._write(exit_code=code)
        return code

    def _meet(self, round_number: int) -> Endpoint | None:
        """Publish where to meet, or read it; None where there is nothing left to meet for."""
        path = self._place.start.rendezvous
        if self._place.index == 0:
            endpoint = self._choose_endpoint(round_number)
            publish(path, endpoint)
            return endpoint
        deadline = time.monotonic() + _MEET_S
        while time.monotonic() < deadline:
            endpoint = published(path)
            if endpoint is not None and endpoint.round >= round_number:
                return endpoint
            if self._heard is not None or self._place.is_superseded or self._has_ended():
                return None
            time.sleep(_POLL_S)
        raise RunFailed(f"the first node has not said within {_MEET_S:.0f} s where to meet")

    def _choose_endpoint(self, round_number: int) -> Endpoint:
        host, port = self._node, 0
        if self._endpoint is not None:
            host, _, given = self._endpoint.rpartition(":")
            port = int(given)
        return Endpoint(host=host, port=port or self._choose_port(), round=round_number)

    def _has_ended(self) -> bool:
        """The first node has ended before it said where to meet: there was nothing to do."""
        return read_record(self._place.start.end) is not None

    def _train(self, endpoint: Endpoint) -> tuple[int, bool]:
        """Exit code, and whether the agents are to meet again."""
        place = self._place
        is_host = place.index == 0
        name = f"{place.job_id}.{place.restart}.{endpoint.round}"
        command = torchrun.words(self._workers, endpoint, name, self._node, is_host)
        echo, said = torchrun.Echo(self._log), b""
        with self._log.open("ab") as log:
            process = torchrun.start(command, log)
        try:
            while process.poll() is None:
                said = (said + echo.copy())[-65536:]
                self._pass_on(process)
                self._look(process, endpoint)
                time.sleep(_POLL_S)
        finally:
            end_tree(process)
        said = (said + echo.copy())[-65536:]
        # A port that is given is the only one.
        is_chosen = is_host and self._endpoint is None
        taken = is_chosen and process.returncode != 0 and _is_port_taken(said)
        again = taken or self._is_killed(process, endpoint) or self._is_over(endpoint)
        return self._exit_code(process), again

    def _is_killed(self, process: subprocess.Popen[bytes], endpoint: Endpoint) -> bool:
        """Whether torchrun alone was killed here: its workers are gone with it, the node is not.

        The others, whose torchrun would wait for this one, are asked to meet once more.
        """
        if process.returncode != -signal.SIGKILL or self._ended_by or self._heard is not None:
            return False
        if self._is_over(endpoint) or self._num_restarts >= self._workers.max_restarts:
            return False
        self._num_restarts += 1
        print(f"torchrun on {self._place.node} was killed: all meet again", flush=True)
        if self._place.index != 0:
            ask_again(self._place.start, self._place.node, endpoint.round)
        return True

    def _is_over(self, endpoint: Endpoint) -> bool:
        """Whether another try has begun or, to the first node's agent, was asked for."""
        newer = published(self._place.start.rendezvous)
        if newer is not None and newer.round > endpoint.round:
            return True
        return self._place.index == 0 and is_asked_again(self._place.start, endpoint.round)

    def _exit_code(self, process: subprocess.Popen[bytes]) -> int:
        code = process.returncode or 0
        if self._ended_by is not None:
            print(f"agent on {self._place.node}: {self._ended_by}", file=sys.stderr, flush=True)
            return 1
        return 128 - code if code < 0 else code

    def _pass_on(self, process: subprocess.Popen[bytes]) -> None:
        """A signal reaches the workers again and again: one that starts does not hear it."""
        if self._heard is not None and time.monotonic() - self._asked_at >= _ASK_AGAIN_S:
            if self._noted is not self._heard:
                # At once: the next start asks for it where this one is killed before its end.
                self._noted = self._heard
                self._write()
            self._asked_at = time.monotonic()
            torchrun.ask_to_stop(process.pid, self._workers.module)

    def _look(self, process: subprocess.Popen[bytes], endpoint: Endpoint) -> None:
        """Now and then: is what runs here still wanted?"""
        if time.monotonic() - self._looked_at < _LOOK_S:
            return
        self._looked_at = time.monotonic()
        self._note_first_step()
        self._note_hang(process.pid)
        if self._place.is_superseded:
            self._ended_by = "the job was started again elsewhere, so its processes here are ended"
            end_tree(process, patience_s=0.0)
        elif self._is_over(endpoint):
            end_tree(process, patience_s=0.0)  # nothing that it could still do is wanted
        elif self._must_end_now():
            self._ended_by = "the time limit is here, and the workers have not ended"
            end_tree(process, patience_s=0.0)
        elif (reason := self._final_error()) is not None:
            self._ended_by = f"not tried again: {reason}"
            end_tree(process)

    def _final_error(self) -> str | None:
        """An error that comes again however often the workers are started."""
        failure = first_failure(Traces(files=self._place.files, since=self._started_at))
        if failure is None or failure.is_echo:
            return None
        has_trained = (last_sign_at(self._place.files) or 0.0) > self._started_at
        if not is_final(find_cause(failure.error), has_trained):
            return None
        return f"rank {failure.rank}: {failure.error}"

    def _must_end_now(self) -> bool:
        """The time limit comes before the save does: what is left is needed to requeue the job."""
        ends_at = (read_record(self._place.start.nodes) or {}).get("ends_at")
        if self._heard is None or ends_at is None:
            return False
        return time.time() > float(ends_at) - self._reserve_s

    def _note_first_step(self) -> None:
        """When training went on, for the record of how long that took."""
        if self._place.index == 0 and self._first_step_at is None:
            at = last_sign_at(self._place.files)
            before = (read_record(self._place.start.nodes) or {}).get("first_step", 0)
            is_new = at is not None and at > self._started_at
            if at is not None and is_new and trained_steps(self._place.files) > before:
                self._first_step_at = at
                self._write()
                self._say_recovery(at)

    def _note_hang(self, torchrun_pid: int) -> None:
        """Ranks that hang end by themselves, and torchrun starts them again where it may."""
        if self._stuck.look(torchrun_pid) and self._hung_at is None:
            self._hung_at = last_sign_at(self._place.files) or self._started_at
            if self._place.index == 0:
                print("a rank hangs: stacks of all ranks are being written", flush=True)
        at = last_sign_at(self._place.files)
        is_new = self._hung_at is not None and at is not None and at > self._hung_at
        # A run that goes on cuts its metrics first, which is no step.
        if is_new and trained_steps(self._place.files) > saved_step(self._place.files):
            if self._place.index == 0:
                print(f"training again {at - self._hung_at:.1f} s after the last step", flush=True)
            self._hung_at = None

    def _say_recovery(self, at: float) -> None:
        before = (read_record(self._place.start.nodes) or {}).get("last_sign_at")
        if before is not None:
            print(f"training again {at - before:.1f} s after the last step before", flush=True)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard = signal.Signals(number)
        self._asked_at = 0.0

    def _write(self, exit_code: int | None = None) -> None:
        document = {
            "node": self._place.node,
            "started_at": self._started_at,
            "first_step_at": self._first_step_at,
            "exit_code": exit_code,
            "signal": self._heard.name if self._heard else None,
            "ended_by": self._ended_by,
            "ended_at": None if exit_code is None else time.time(),
        }
        write_record(self._place.start.agent(self._place.node), document)


def _is_port_taken(said: bytes) -> bool:
    return find_cause(said.decode(errors="replace")).kind == "port_taken"
