"""How a host without a queue hears of the others: words on standard input, and a file."""

from __future__ import annotations

import json
import os
import select
import signal
import threading
import time
from typing import BinaryIO

from launcher.node.records import read_record
from launcher.plan.run_files import RunFiles

BEAT_S = 5.0
"""So often the command that started a host says that it is there."""
SILENCE_S = 120.0
"""After so long without a word that command, or the network to it, is gone."""
SAVE = b"save"
"""The workers save and end."""
END = b"end"
"""Everything ends at once, since the user wishes so."""
HELD = "--held"
"""Word of the agent's command: standard input is such a line."""
_POLL_S = 0.5
_HEAD_S = 30.0


class Lifeline:
    """Turns what is heard into signals to this process: USR1 to save and end, INT to end at once.

    Lines on the stream: first a JSON object of variables that are secret, then `save` or `end`, and
    an empty line now and then. The end of the stream, or a long silence, means that nobody follows
    the run any more.
    """

    def __init__(self, files: RunFiles, stream: BinaryIO | None) -> None:
        self._cancelled, self._stream = files.cancelled, stream
        self._over = threading.Event()
        self._buffer = b""
        self.is_asked = False
        """Somebody wishes the end of the job."""
        self.is_cut_off = False
        """Nobody follows the run any more."""
        self.why = ""
        """Why it was ended at once, to be put behind a sentence."""

    def hold(self) -> None:
        """Take the secrets into the environment, then listen until `let_go`."""
        if self._stream is not None:
            os.environ.update(json.loads(self._first_line() or b"{}"))
        # What a shell starts in the background ignores the signal by which this ends the job.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=self._listen, daemon=True).start()

    def let_go(self) -> None:
        """Listen no more."""
        self._over.set()

    def _first_line(self) -> bytes:
        deadline = time.monotonic() + _HEAD_S
        while b"\n" not in self._buffer and time.monotonic() < deadline:
            if self._read() == b"":
                break
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _listen(self) -> None:
        heard_at = time.monotonic()
        while not self._over.is_set():
            if self._stream is None:
                self._over.wait(_POLL_S)
            elif (new := self._read()) == b"":
                return self._cut_off("since the command that follows the run is gone")
            elif new is not None:
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > SILENCE_S:
                return self._cut_off(f"since nothing was heard of it for {SILENCE_S:.0f} s")
            *lines, self._buffer = self._buffer.split(b"\n")
            wish = read_record(self._cancelled)
            if END in lines or (wish or {}).get("now"):
                self.is_asked = True
                return self._end("since somebody wished so")
            if SAVE in lines or wish is not None:
                self.is_asked = True
            if self.is_asked:  # Again and again: who is still starting does not hear it.
                os.kill(os.getpid(), signal.SIGUSR1)

    def _read(self) -> bytes | None:
        """What is new: nothing at the end of the stream, None where nothing has come."""
        assert self._stream is not None
        handle = self._stream.fileno()
        if not select.select([handle], [], [], _POLL_S)[0]:
            return None
        new = os.read(handle, 65536)
        self._buffer += new
        return new

    def _cut_off(self, why: str) -> None:
        self.is_cut_off = not self._over.is_set()
        self._end(why)

    def _end(self, why: str) -> None:
        if not self._over.is_set():
            self.why = f", {why}"
            os.kill(os.getpid(), signal.SIGINT)
