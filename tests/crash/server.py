"""A respkv process that is killed and started again on the same folder.

`tests.servers` ends what it starts with SIGTERM; here the end is SIGKILL, and the start after it is
the test. A start that fails raises `RefusedStart`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.ports import free_port

START_TIMEOUT_S = 60.0
WORKER_GONE_S = 5.0
_READY = re.compile(rb"^ready \S+:(\d+)\s*$", re.MULTILINE)
_REPOSITORY = Path(__file__).resolve().parent.parent.parent


class RefusedStart(Exception):
    """The server did not come up. `said` is what it said, `status` how it ended (None: it did not)."""

    def __init__(self, status: int | None, said: str) -> None:
        super().__init__(f"no start, exit status {status}; it said:\n{said[-3000:]}")
        self.status = status
        self.said = said


class Server:
    """One process at a time. `module` may be a launcher that plants a bug and then runs the command line."""

    def __init__(
        self,
        folder: Path,
        settings: Sequence[str],
        *,
        data_dir: Path | None = None,
        module: str = "respkv",
    ) -> None:
        self.data_dir = folder / "data" if data_dir is None else data_dir
        self.stderr_path = folder / "stderr"
        self.port = 0
        self.starts = 0
        self._settings = settings
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Raises RefusedStart."""
        assert not self.is_running
        self.port = free_port()
        self.starts += 1
        settings = [word for setting in self._settings for word in ("--set", setting)]
        command = [sys.executable, "-m", self._module, "serve", "--port", str(self.port)]
        command += ["--data-dir", str(self.data_dir), *settings]
        with self.stderr_path.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=_REPOSITORY
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _READY.search(self.stderr_path.read_bytes()):
            status = self._process.poll()
            if status is not None or time.monotonic() > deadline:
                self.kill()
                raise RefusedStart(status, self.said())
            time.sleep(0.01)

    def stand_still(self) -> None:
        """SIGSTOP: from now on it answers nobody, until it is killed."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """SIGKILL, to this process alone."""
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def said(self) -> str:
        return self.stderr_path.read_text(errors="replace")

    def cpu_s(self) -> float:
        """What the server's own process has used."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def worker_pid(self) -> int | None:
        """The process that does the server's jobs, once it has had one."""
        if not self.is_running:
            return None
        assert self._process is not None
        try:
            pid = self._process.pid
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            found = " ".join((task / "children").read_text() for task in tasks).split()
            # Not before it has become the worker: until then it holds up the server, which has
            # forked and waits.
            workers = [
                int(child)
                for child in found
                if b"engine.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
            ]
        except OSError:
            return None
        return workers[0] if workers else None

    def job(self) -> str:
        """What the worker is doing just now: "flush", "compaction" or ""."""
        pid = self.worker_pid()
        if pid is None:
            return ""
        names = []
        for link in _links(Path(f"/proc/{pid}/fd")):
            names.append(os.path.basename(link))
        if any(name.endswith(".sst") for name in names):
            return "compaction"
        return "flush" if any(name.endswith((".log", ".tmp")) for name in names) else ""


def is_gone(pid: int) -> bool:
    """Whether a process has ended, waiting a little. (A zombie has.)"""
    deadline = time.monotonic() + WORKER_GONE_S
    while time.monotonic() < deadline:
        try:
            if ") Z " in Path(f"/proc/{pid}/stat").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.005)
    return False


def _links(folder: Path) -> list[str]:
    found = []
    try:
        for entry in folder.iterdir():
            try:
                found.append(os.readlink(entry))
            except OSError:
                continue
    except OSError:
        pass
    return found
