"""Real servers for tests: redis-server and respkv, each in a directory of its own, on a port of its own.

Not a cluster harness: one process each, and nothing is shared between two uses. Each function is a context manager that
yields a `RunningServer` and ends, by its process id, the one process that it started:

    with redis_server() as redis, respkv_server() as respkv:
        socket.create_connection((respkv.host, respkv.port))

A server that does not come up raises `ServerDidNotStart` with what it said on standard error.
"""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.ports import free_port

HOST = "127.0.0.1"
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
_POLL_S = 0.02
_PORT_ATTEMPTS = 5
_READY = re.compile(rb"^ready (\S+):(\d+)\s*$", re.MULTILINE)
_REPOSITORY = Path(__file__).resolve().parent.parent


class ServerDidNotStart(Exception):
    """A server ended or stayed silent before it took connections. `said` is the end of its standard error."""

    def __init__(self, command: list[str], said: str) -> None:
        super().__init__(f"{' '.join(command)} did not start; it said:\n{said}")
        self.command = command
        self.said = said


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that takes connections at `host`:`port`. Its files are in `directory`."""

    host: str
    port: int
    process: subprocess.Popen[bytes]
    directory: Path

    def stderr(self) -> str:
        """What the server has said so far on standard error (for Redis, its log)."""
        return _tail(self.directory / "stderr")


@contextlib.contextmanager
def redis_server(*args: str, binary: str = "redis-server") -> Iterator[RunningServer]:
    """A Redis without persistence. `args` are further settings, such as `"--databases", "4"`.

    DEBUG is allowed, and the internal clock runs fast, so that a finished background save is noticed in milliseconds.
    """

    def command(port: int, directory: Path) -> list[str]:
        return [
            *(binary, "--port", str(port), "--bind", HOST, "--dir", str(directory)),
            *("--save", "", "--appendonly", "no", "--enable-debug-command", "local", "--hz", "500"),
            *args,
        ]

    with _running(command, _answers_ping) as server:
        yield server


@contextlib.contextmanager
def respkv_server(*args: str, data_dir: Path | None = None) -> Iterator[RunningServer]:
    """A single respkv node. `args` are further arguments of `respkv serve`; `data_dir` keeps data between two uses."""

    def command(port: int, directory: Path) -> list[str]:
        kept_in = data_dir if data_dir is not None else directory / "data"
        serve = [sys.executable, "-m", "respkv", "serve", "--port", str(port)]
        return [*serve, "--data-dir", str(kept_in), *args]

    with _running(command, _said_ready) as server:
        yield server


@contextlib.contextmanager
def _running(
    command: Callable[[int, Path], list[str]], is_ready: Callable[[RunningServer], bool]
) -> Iterator[RunningServer]:
    """Start the command, wait until it is ready, yield, end it. A taken port is tried again with another one."""
    with tempfile.TemporaryDirectory(prefix="respkv-test-", ignore_cleanup_errors=True) as name:
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            directory = Path(name) / str(attempt)
            directory.mkdir()
            port = free_port()
            argv = command(port, directory)
            with (directory / "stderr").open("wb") as log:
                process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=_REPOSITORY
                )
            server = RunningServer(HOST, port, process, directory)
            try:
                if _wait(server, is_ready):
                    yield server
                    return
                said = server.stderr()
            finally:
                _stop(process)
            if "in use" not in said or attempt == _PORT_ATTEMPTS:
                raise ServerDidNotStart(argv, said)


def _wait(server: RunningServer, is_ready: Callable[[RunningServer], bool]) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            return False
        if is_ready(server):
            return True
        time.sleep(_POLL_S)
    return False


def _answers_ping(server: RunningServer) -> bool:
    try:
        with socket.create_connection((server.host, server.port), timeout=1) as client:
            client.sendall(b"PING\r\n")
            return client.recv(64) == b"+PONG\r\n"
    except OSError:
        return False


def _said_ready(server: RunningServer) -> bool:
    said = _READY.search((server.directory / "stderr").read_bytes())
    return said is not None and int(said[2]) == server.port


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end; kill it when it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tail(path: Path, bytes_max: int = 4000) -> str:
    return path.read_bytes()[-bytes_max:].decode(errors="replace")
