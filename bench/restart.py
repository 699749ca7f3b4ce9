"""A respkv server on a folder that outlives it: started, stopped, killed, and started again (shell).

`bench.server.running` gives each server a new folder and takes it away; here the caller owns the
folder, and how far each start has come is known by the lines that the server writes to its log:

    exec - interpreter, imports, the store opens - "data folder opened" - the node - "ready HOST:PORT"

Every server is ended by its process id.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.ports import free_port
from bench.process import Pid
from bench.server import HOST, STOP_WAIT_S, ServerNotReady, command_line

OPENED = b"data folder opened"
READY = b"ready "
READY_WAIT_S = 300.0
POLL_S = 0.002
LAST_WORDS_MAX = 2000


class RunningServer:
    """One start of a server. Made by `started`, which ends it too. Times are seconds since exec, to 2 ms."""

    def __init__(
        self, folder: Path, settings: Sequence[str], log: Path, prefix: Sequence[str]
    ) -> None:
        self.address = (HOST, free_port())
        self.opened_s = 0.0
        self.ready_s = 0.0
        self._log = log
        line = [*prefix, *command_line("respkv", self.address, folder, settings)]
        with log.open("wb") as output:
            self._began_s = time.monotonic()
            self._process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=Path(__file__).resolve().parent.parent,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> Pid:
        return self._process.pid

    @property
    def last_words(self) -> str:
        return self._log.read_text(errors="replace")[-LAST_WORDS_MAX:]

    def stop(self) -> int:
        """Ask it to stop, wait, and return its exit status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """End it as a crash would."""
        self._process.kill()
        return self._process.wait()

    def _wait_until_ready(self) -> None:
        deadline_s = self._began_s + READY_WAIT_S
        while (now_s := time.monotonic()) < deadline_s and self._process.poll() is None:
            written = self._log.read_bytes()
            if not self.opened_s and OPENED in written:
                self.opened_s = now_s - self._began_s
            if any(line.startswith(READY) for line in written.splitlines()):
                self.ready_s = now_s - self._began_s
                return
            time.sleep(POLL_S)
        error = ServerNotReady("respkv")
        error.add_note(self.last_words)
        raise error


@contextlib.contextmanager
def started(
    folder: Path, *, log: Path, settings: Sequence[str] = (), prefix: Sequence[str] = ()
) -> Iterator[RunningServer]:
    """Run respkv on a folder for a `with` block; `prefix` are words that stand before its command."""
    server = RunningServer(folder, settings, log, prefix)
    try:
        yield server
    except Exception as error:
        error.add_note(server.last_words)
        raise
    finally:
        server.stop()
