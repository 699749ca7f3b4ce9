"""Starting and ending the servers that are measured (shell).

It measures nothing. Each server gets a free port on 127.0.0.1 and its own temporary directory,
which is removed afterwards. Both keep every write in a log that is synced once a second, respkv
by default, Redis by `appendonly yes` and `appendfsync everysec`, so they promise the same. A
server is ended by its process id.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.connection import Address, Connection, ConnectionEnded, ErrorAnswered
from bench.ports import free_port
from respkv.version import VERSION

HOST = "127.0.0.1"
READY_WAIT_S = 60.0
STOP_WAIT_S = 30.0
POLL_S = 0.02
LAST_WORDS_MAX = 2000


@dataclass(eq=False)
class ServerNotReady(Exception):
    """A server did not come up. A note of the exception holds the end of what it wrote."""

    name: str

    def __str__(self) -> str:
        return f"{self.name} did not become ready"


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    name: str
    version: str
    address: Address
    pid: int


@contextlib.contextmanager
def running(name: str, *, settings: Sequence[str] = ()) -> Iterator[Server]:
    """Run `respkv` or `redis` for the length of a `with` block.

    `settings` are respkv's `section.name=value`, or Redis' `--name value` options.
    """
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as directory:
        data, log = Path(directory) / "data", Path(directory) / "log"
        data.mkdir()
        address = (HOST, free_port())
        line = command_line(name, address, data, settings)
        with log.open("wb") as output:
            process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=_working_directory(),
            )
        try:
            _wait_until_ready(name, process, address, log)
            yield Server(name, version_of(name), address, process.pid)
        except Exception as error:
            # The directory goes away, and what the server wrote is often the cause.
            error.add_note(_last_words(name, process, log))
            raise
        finally:
            _stop(process)


def command_line(name: str, address: Address, data: Path, settings: Sequence[str]) -> list[str]:
    """Return the command that starts a server."""
    host, port = address
    if name == "respkv":
        overrides = [word for setting in settings for word in ("--set", setting)]
        serve = [sys.executable, "-m", "respkv", "serve", "--port", str(port)]
        return [*serve, "--data-dir", str(data), *overrides]
    log = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
    return [
        "redis-server",
        "--bind",
        host,
        "--port",
        str(port),
        "--dir",
        str(data),
        *log,
        *settings,
    ]


def version_of(name: str) -> str:
    if name == "respkv":
        return VERSION
    text = subprocess.run(
        ["redis-server", "--version"], capture_output=True, text=True, check=True
    ).stdout
    return next((word[2:] for word in text.split() if word.startswith("v=")), text.strip())


def _working_directory() -> Path:
    """Where `python -m respkv` finds the package when it is not installed."""
    return Path(__file__).resolve().parent.parent


def _wait_until_ready(
    name: str, process: subprocess.Popen[bytes], address: Address, log: Path
) -> None:
    deadline = time.monotonic() + READY_WAIT_S
    while time.monotonic() < deadline and process.poll() is None:
        if (name != "respkv" or _says_ready(log)) and _answers_ping(address):
            return
        time.sleep(POLL_S)
    raise ServerNotReady(name)


def _last_words(name: str, process: subprocess.Popen[bytes], log: Path) -> str:
    status = process.poll()
    state = "still runs" if status is None else f"ended with status {status}"
    written = log.read_text(errors="replace")[-LAST_WORDS_MAX:]
    return f"{name} {state}; it wrote:\n{written or '(nothing)'}"


def failure_text(error: BaseException) -> str:
    """Return what went wrong, with the last words of the servers that ran."""
    return "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])


def _says_ready(log: Path) -> bool:
    return any(line.startswith(b"ready ") for line in log.read_bytes().splitlines())


def _answers_ping(address: Address) -> bool:
    try:
        with Connection(address, timeout_s=1.0) as connection:
            return connection.command(b"PING") == b"PONG"
    except (OSError, ConnectionEnded, ErrorAnswered):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
