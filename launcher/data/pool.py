"""Processes that work tasks off, and that end when the one that started them does."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from launcher.data.documents import Reading
from launcher.data.parts import Part, write_part
from launcher.data.pieces import Task
from launcher.data.tokenizer import load_tokenizer
from launcher.errors import LaunchError, RunFailed


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every process is told once."""

    folder: Path
    """Takes the parts."""
    tokenizer: str
    end_token: str | None
    reading: Reading
    strict: bool


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(tasks: Sequence[Task], work: Work, workers: int) -> Iterator[Part]:
    """Parts as they are finished, in any order.

    Raises RunFailed where a process dies.
    """
    if not tasks:
        return
    waiting = list(reversed(tasks))
    context = multiprocessing.get_context("spawn")  # a fork would copy the tokenizer's threads
    pipes: dict[Connection, Any] = {}
    try:
        for _ in range(min(workers, len(tasks))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, work), daemon=True)
            process.start()
            theirs.close()  # so that its end is seen here
            pipes[ours] = process
            ours.send(waiting.pop())
        busy = set(pipes)
        while busy:
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                yield _receive(pipe)
                if waiting:
                    pipe.send(waiting.pop())
                else:
                    busy.remove(pipe)
    finally:
        for pipe, process in pipes.items():
            pipe.close()
            process.terminate()
            process.join()


def _receive(pipe: Connection) -> Part:
    try:
        answer = pipe.recv()
    except (EOFError, OSError):
        raise RunFailed(
            "a tokenizing process was killed (out of memory?). Finished parts are kept: the same "
            "command goes on with the rest; fewer --workers need less memory"
        ) from None
    if isinstance(answer, BaseException):
        raise answer
    assert isinstance(answer, Part)
    return answer


def _serve(pipe: Connection, work: Work) -> None:
    """A process: tasks in, parts out, until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the starter's to answer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes share the cores already
    try:
        tokenizer = load_tokenizer(work.tokenizer, work.end_token)
        while True:
            task = pipe.recv()
            pipe.send(write_part(task, work.folder, tokenizer, work.reading, work.strict))
    except (EOFError, BrokenPipeError):
        return  # nobody waits for us any more
    except LaunchError as error:
        pipe.send(RunFailed(str(error)))
    except OSError as error:
        pipe.send(RunFailed(f"{error.filename or work.folder}: {error.strerror}"))
