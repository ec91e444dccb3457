"""Do the agents of a job meet, whatever happens to the port, and end what must not go on?"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from launcher.node import torchrun
from launcher.node.agent import Agent
from launcher.node.processes import descendants, words_of
from launcher.node.records import read_record, write_record
from launcher.node.rendezvous import Endpoint, free_port, publish, published
from launcher.plan.run_files import RunFiles
from tests.node.places import add_error, add_start, add_steps, make_files, make_place

WORKERS = torchrun.Workers(module="x", arguments=(), nodes=2, per_node=2, max_restarts=0)
# In the place of torchrun: port 1 is taken; at port 2 the training is done at once; at port 3 it
# goes on for ever, at port 4 it ends badly. Who is not the host waits for it where it was taken.
TORCHRUN = """
import sys, time
port, is_host = int(sys.argv[1]), sys.argv[2] == "1"
if port == 1 and is_host:
    sys.exit("DistNetworkError: failed to listen. EADDRINUSE: address already in use")
print("at port", port, flush=True)
time.sleep({1: 60, 2: 0, 3: 60, 4: 0}[port])
sys.exit(9 if port == 4 else 0)
"""


@pytest.fixture
def files(tmp_path) -> RunFiles:
    files = make_files(tmp_path / "run")
    add_start(files)
    return files


@pytest.fixture
def no_torchrun(monkeypatch) -> None:
    def words(workers, endpoint: Endpoint, name: str, node: str, is_host: bool) -> list[str]:
        return [sys.executable, "-c", TORCHRUN, str(endpoint.port), str(int(is_host))]

    monkeypatch.setattr(torchrun, "words", words)
    monkeypatch.setattr("launcher.node.agent.name_of_this_node", lambda node: node)


def ports(*numbers: int) -> Callable[[], int]:
    chosen: Iterator[int] = iter(numbers)
    return lambda: next(chosen)


def run_both(files: RunFiles, *chosen: int, workers: torchrun.Workers = WORKERS) -> list[int]:
    """Exit codes of the agents of two nodes."""
    codes = [-1, -1]

    def run(index: int) -> None:
        agent = Agent(make_place(files, index=index), workers, ports(*chosen))
        codes[index] = agent.run()

    threads = [threading.Thread(target=run, args=(index,)) for index in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return codes


def run_one(files: RunFiles, port: int, then: Callable[[], object], index: int = 0) -> int:
    """The exit code of an agent to whose job something happens as soon as it trains."""
    agent = Agent(make_place(files, index=index), WORKERS, ports(port))
    log = files.start("7", 0).torchrun_log(f"n{index + 1}")

    def happen() -> None:
        deadline = time.monotonic() + 30
        while not (log.exists() and b"at port" in log.read_bytes()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        then()

    thread = threading.Thread(target=happen)
    thread.start()
    code = agent.run()
    thread.join()
    return code


def agent_record(files: RunFiles, node: str = "n1") -> dict:
    return read_record(files.start("7", 0).agent(node)) or {}


def test_a_free_port_is_no_one_elses():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        assert free_port() != taken.getsockname()[1]


def test_agents_meet_where_the_first_one_says(files, no_torchrun):
    assert run_both(files, 2) == [0, 0]
    assert published(files.start("7", 0).rendezvous) == Endpoint(host="n1", port=2, round=1)
    assert agent_record(files)["exit_code"] == 0


def test_where_the_port_was_taken_meanwhile_all_agents_try_another(files, no_torchrun):
    assert run_both(files, 1, 1, 2) == [0, 0]
    assert published(files.start("7", 0).rendezvous).round == 3


def test_ports_that_are_always_taken_end_the_job(files, no_torchrun):
    agent = Agent(make_place(files), WORKERS, ports(*[1] * 9))
    assert agent.run() == 1
    assert published(files.start("7", 0).rendezvous).round == 5


def test_another_failure_is_not_tried_at_another_port(files, no_torchrun):
    assert run_both(files, 4) == [9, 9]
    assert published(files.start("7", 0).rendezvous).round == 1


@pytest.mark.parametrize("index", [0, 1])
def test_where_a_torchrun_was_killed_all_agents_meet_again_as_often_as_is_allowed(
    files, no_torchrun, index
):
    stop = threading.Event()

    def kill_at_port_3() -> None:
        log = files.start("7", 0).torchrun_log(f"n{index + 1}")
        while not stop.wait(0.05):
            if log.exists() and log.read_bytes().endswith(b"at port 3\n"):
                log.open("ab").write(b"killed\n")
                for pid in descendants(os.getpid()):
                    if words_of(pid)[-3:-1] == ["3", str(int(index == 0))]:
                        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_at_port_3)
    killer.start()
    workers = replace(WORKERS, max_restarts=2)
    assert run_both(files, 3, 3, 2, workers=workers) == [0, 0]
    assert published(files.start("7", 0).rendezvous).round == 3
    stop.set()
    killer.join()


def test_a_killed_torchrun_ends_a_job_that_is_not_to_restart(files, no_torchrun):
    def happen() -> None:
        for pid in descendants(os.getpid()):
            os.kill(pid, signal.SIGKILL)

    assert run_one(files, 3, happen) == 137


def test_torchrun_itself_says_a_taken_port_in_the_words_that_are_known(files, monkeypatch):
    """Beside the fake: the real torchrun, whose port a real program has."""
    workers = torchrun.Workers(module="platform", arguments=(), nodes=1, per_node=1, max_restarts=0)
    monkeypatch.setattr("launcher.node.agent.name_of_this_node", lambda node: "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        agent = Agent(make_place(files), workers, ports(taken.getsockname()[1], free_port()))
        assert agent.run() == 0
    assert published(files.start("7", 0).rendezvous).round == 2


# What must not go on.


def test_processes_of_a_start_that_another_has_followed_are_ended(files, no_torchrun):
    assert run_one(files, 3, lambda: add_start(files, restart=1)) == 1
    assert "started again elsewhere" in agent_record(files)["ended_by"]


def test_an_agent_that_still_waits_when_the_job_goes_on_elsewhere_ends(files, no_torchrun):
    add_start(files, restart=1)
    begin = time.monotonic()
    assert Agent(make_place(files, index=1), WORKERS).run() == 1
    assert time.monotonic() - begin < 30


def test_an_error_that_comes_again_ends_torchrun_with_its_restarts(files, no_torchrun):
    error = "ConfigError: model.num_layers [wrong-type]: no"
    assert run_one(files, 3, lambda: add_error(files, error)) == 1
    assert "not tried again" in agent_record(files)["ended_by"]


def test_an_error_that_may_pass_is_left_to_torchrun(files, no_torchrun):
    def happen() -> None:
        add_steps(files, 1)
        add_error(files, "connection reset by peer")
        time.sleep(2.5)  # the agent looks every second
        publish(files.start("7", 0).rendezvous, Endpoint(host="n1", port=2, round=2))

    publish(files.start("7", 0).rendezvous, Endpoint(host="n1", port=3, round=1))
    assert run_one(files, 3, happen, index=1) == 0
    assert agent_record(files, "n2")["ended_by"] is None


def test_what_does_not_end_before_the_time_limit_is_ended(files, no_torchrun):
    start = files.start("7", 0)
    write_record(start.nodes, read_record(start.nodes) | {"ends_at": time.time() + 1})
    agent = Agent(make_place(files), WORKERS, ports(3), reserve_s=5.0)
    agent._hear(10, None)
    assert agent.run() == 1
    assert "time limit" in agent_record(files)["ended_by"]
    assert agent_record(files)["signal"] == "SIGUSR1"


def test_the_first_step_of_a_start_is_on_record(files, no_torchrun):
    def happen() -> None:
        add_steps(files, 1)
        time.sleep(2.5)
        add_start(files, restart=1)

    run_one(files, 3, happen)
    assert agent_record(files)["first_step_at"] >= agent_record(files)["started_at"]
