"""`respkv cluster`: all nodes of a file on this machine, each as a child process that is kept running.

It does not know what nodes do, takes no requests, and no node needs it: they go on without it as far
as it lets them. It starts `respkv serve` for each, writes what they say under their names, starts
again those that died, and stops all of them.

    run              makes the secret, then `Supervisor.run`
      _signals       SIGTERM, SIGINT: the first stops all, the second kills them
      _keep          for each node: start it, wait for its end, decide, wait, start it again
        _relay       its standard error, line by line
      _announce      says when the cluster is ready, or that this takes long
      _end           once stopping: SIGTERM to all, and SIGKILL to those left after the grace period

What an end means (`_keep`):

    while stopping          it stopped; failed if it ended badly or had to be killed
    exit status 0           somebody stopped it (SIGTERM, SHUTDOWN): it stays down
    exit status 2           wrong configuration, which a restart does not repair: failed for good
    any other, or a signal  it died: started again after a pause, which doubles each time

**When the cluster is ready.** Each node says two things on its standard error, and the supervisor takes its word:

    ready HOST:PORT     it takes connections; commands may still be answered with NOREPLICAS
    joined HOST:PORT    it reaches all other nodes, and it and they are complete (`cluster/roll_call.py`)

`cluster ready` comes when all have said both. Who loses a peer will say `joined` again when that is back, so
with each process that ends the word of all others is void, and the next `cluster ready` waits for new ones.
Nothing else waits for it: nodes serve what they can meanwhile. If it takes long, one line says so.

**If the supervisor is killed**, children must not go on without anybody knowing. Each child's standard
input is a pipe that the supervisor never writes to. Its other end closes with the supervisor,
however that ends, and the child stops (`stop_when_stdin_ends`). The parent-death signal of Linux would
not do: it is sent when the *thread* ends that started the child, and trio starts children in
threads that come and go. Children are sessions of their own, so that Ctrl-C reaches the supervisor
only, and each child gets one signal.

Shell.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import trio

from respkv.config import Config, read_secret
from respkv.setting import ConfigError, toml_text

Command: TypeAlias = "Callable[[str], Sequence[str]]"
"""Returns the command line that runs the node of this name."""

STATUS_FAILED = 1
STATUS_MISUSED = 2

LINE_BYTES_MAX = 64 << 10
READ_BYTES = 64 << 10
TAIL_S = 1.0
"""How long what a dead child had said is waited for, if another process keeps the pipe open."""
GRACE_MARGIN_S = 5.0
"""What a node needs beyond its own grace period, to sync its log and end."""
SECRET_BYTES = 32
JOIN_S = 10.0
"""After so long it is said that nodes have not joined each other. They usually need some tenths of a second."""


@dataclass(frozen=True, slots=True)
class Pace:
    """When a node that died is started again. One that ran for `settled_s` begins anew with `first_s`."""

    first_s: float = 1.0
    max_s: float = 30.0
    settled_s: float = 60.0

    def pause_s(self, deaths: int) -> float:
        """The pause after this many deaths in a row, which is at least 1."""
        return float(min(self.first_s * 2 ** min(deaths - 1, 30), self.max_s))


@dataclass(slots=True)
class _Child:
    """One node. `process` is its process, or the last one that it had."""

    name: str
    process: trio.Process | None = None
    address: str = ""
    """Where it serves clients; empty while it does not."""
    has_joined: bool = False
    """It has said so since the last end of any node's process."""
    is_failed: bool = False
    """It ended badly and is not started again."""

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass(slots=True)
class Supervisor:
    """Runs the nodes `names`, each by its `command`, and writes all lines with `write`."""

    names: Sequence[str]
    command: Command
    write: Callable[[bytes], object]
    grace_s: float
    pace: Pace = field(default_factory=Pace)
    is_restarting: bool = True
    join_s: float = JOIN_S
    _children: list[_Child] = field(init=False)
    _stopping: trio.Event = field(init=False, default_factory=trio.Event)
    _hurried: trio.Event = field(init=False, default_factory=trio.Event)
    _news: trio.Event = field(init=False, default_factory=trio.Event)

    def __post_init__(self) -> None:
        self._children = [_Child(name) for name in self.names]

    async def run(self) -> int:
        """Run the nodes until a signal, or until none is left; returns the exit status."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._signals)
            status = await self.live()
            nursery.cancel_scope.cancel()
        return status

    async def live(self) -> int:
        """As `run`, without signals: until `stop`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end)
            nursery.start_soon(self._announce)
            async with trio.open_nursery() as nodes:
                for child in self._children:
                    nodes.start_soon(self._keep, child)
            nursery.cancel_scope.cancel()
        return STATUS_FAILED if any(child.is_failed for child in self._children) else 0

    def stop(self) -> None:
        """Stop all nodes; the second time, kill them."""
        if self._stopping.is_set():
            self._hurried.set()
        self._stopping.set()

    def pid_of(self, name: str) -> int | None:
        """The process of a node, if it has one."""
        for child in self._children:
            if child.name == name and child.is_running:
                assert child.process is not None
                return child.process.pid
        return None

    async def _signals(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                self._say(f"{signal.Signals(number).name}: stopping all nodes")
                self.stop()

    async def _end(self) -> None:
        await self._stopping.wait()
        for child in self._children:
            self._signal(child, signal.SIGTERM)
        with trio.move_on_after(self.grace_s):
            await self._hurried.wait()
        for child in self._children:
            if child.is_running:
                self._say(f"node {child.name}: is not stopped yet: killed")
                self._signal(child, signal.SIGKILL)

    def _signal(self, child: _Child, number: signal.Signals) -> None:
        if child.is_running:
            assert child.process is not None
            child.process.send_signal(number)

    async def _keep(self, child: _Child) -> None:
        deaths = 0
        while not self._stopping.is_set():
            began = trio.current_time()
            status = await self._live_once(child)
            self._void_words(child)
            ended = f"node {child.name}: {_ended(status)}"
            if self._stopping.is_set():
                child.is_failed = status not in (0, -signal.SIGTERM)
                self._say(ended)
            elif status == 0:
                self._say(f"{ended}: it was stopped, and stays down")
                return
            elif status == STATUS_MISUSED or not self.is_restarting:
                child.is_failed = True
                why = "what is wrong is said above" if status == STATUS_MISUSED else "--no-restart"
                self._say(f"{ended}: not started again ({why})")
                return
            else:
                is_settled = trio.current_time() - began >= self.pace.settled_s
                deaths = 1 if is_settled else deaths + 1
                pause_s = self.pace.pause_s(deaths)
                self._say(f"{ended}: starting again in {pause_s:g} s")
                with trio.move_on_after(pause_s):
                    await self._stopping.wait()

    async def _live_once(self, child: _Child) -> int:
        """Run a node's process once; returns its exit status, or minus the signal that ended it."""
        try:
            process = child.process = await trio.lowlevel.open_process(
                list(self.command(child.name)),
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            self._say(f"node {child.name}: no process: {error.strerror}")
            return STATUS_FAILED
        assert process.stdin is not None
        assert process.stderr is not None
        try:
            self._say(f"node {child.name}: pid {process.pid}")
            if self._stopping.is_set():  # Since `_end` looked for those to be stopped.
                process.terminate()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._relay, child, process.stderr)
                status = await process.wait()
                nursery.cancel_scope.deadline = trio.current_time() + TAIL_S
        finally:
            with trio.CancelScope(shield=True):
                if process.poll() is None:
                    process.kill()
                    await process.wait()
                await process.stdin.aclose()
                await process.stderr.aclose()
        return status

    async def _relay(self, child: _Child, stream: trio.abc.ReceiveStream) -> None:
        rest = b""
        while chunk := await stream.receive_some(READ_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE_BYTES_MAX:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._pass_on(child, line)
        if rest:
            self._pass_on(child, rest)

    def _pass_on(self, child: _Child, line: bytes) -> None:
        word, _, address = line.partition(b" ")
        if word == b"ready":
            child.address = address.decode(errors="backslashreplace")
        elif word == b"joined":
            child.has_joined = True
        else:
            self.write(child.name.encode() + b" | " + line + b"\n")
            return
        self.write(line + b"\n")
        self._tell_news()

    def _void_words(self, ended: _Child) -> None:
        """A node's process has ended: the others lose it, and will say when they have joined it again."""
        ended.address = ""
        for child in self._children:
            child.has_joined = False
        self._tell_news()

    def _tell_news(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await self._news.wait()

    def _are_serving(self) -> bool:
        return all(child.address for child in self._children)

    def _are_ready(self) -> bool:
        return self._are_serving() and all(child.has_joined for child in self._children)

    async def _announce(self) -> None:
        """Say each time that the cluster is ready, and once all nodes serve, that this takes long."""
        while True:
            await self._until(self._are_serving)
            with trio.move_on_after(self.join_s) as patience:
                await self._until(lambda: self._are_ready() or not self._are_serving())
            if patience.cancelled_caught:
                self._say(
                    f"cluster not ready after {self.join_s:g} s: some nodes do not reach each other, or still "
                    "compare their data; until they do, commands may answer NOREPLICAS (see respkv status)"
                )
                await self._until(lambda: self._are_ready() or not self._are_serving())
            if self._are_ready():
                addresses = ", ".join(f"{each.name} {each.address}" for each in self._children)
                self._say(f"cluster ready: {addresses}")
                await self._until(lambda: not self._are_ready())

    def _say(self, line: str) -> None:
        self.write(line.encode(errors="backslashreplace") + b"\n")


def _ended(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}" if status else "ended"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:  # A real-time signal.
        return f"killed by signal {-status}"


def run(config: Config, overrides: Sequence[str], *, is_restarting: bool) -> int:
    """Run all nodes of a cluster with `serve`'s own command line; returns the exit status.

    `config` holds for all of them, and names a secret, which is made if it is missing. Raises
    `ConfigError` if that cannot be.
    """
    path = config.cluster.secret_file
    assert config.path is not None
    if make_secret(path):
        _write(f"made the cluster's secret, {path}\n".encode())
    read_secret(config)
    options = [word for override in overrides for word in ("--set", override)]

    def command(name: str) -> list[str]:
        serve = [sys.executable, "-m", "respkv", "serve", "--until-stdin-ends"]
        return [*serve, "--config", str(config.path), "--node", name, *options]

    supervisor = Supervisor(
        [node.name for node in config.nodes],
        command,
        _write,
        grace_s=config.client.shutdown_grace_s + GRACE_MARGIN_S,
        is_restarting=is_restarting,
    )
    return trio.run(supervisor.run)


def _write(line: bytes) -> None:
    with contextlib.suppress(OSError, ValueError):  # Nodes must not end for an output that is gone.
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()


def make_secret(path: str) -> bool:
    """Make a file with a random secret unless there is one; says whether it did.

    Only its owner can read it. It appears whole, and what is there is never overwritten, not even
    by two who begin at once. Raises `ConfigError` if it cannot be made.
    """
    if os.path.lexists(path):
        return False
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(os.urandom(SECRET_BYTES).hex().encode() + b"\n")
                file.flush()
                os.fsync(descriptor)
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
                return True
        finally:
            os.unlink(temporary)
    except OSError as error:
        shown = f"cluster.secret_file = {toml_text(path)}"
        raise ConfigError(f"{shown}: cannot be made: {error.strerror}") from error
    return False


def stop_when_stdin_ends(grace_s: float) -> None:
    """In a child: stop this process when standard input ends, since then its supervisor is gone.

    It is asked to with SIGTERM, and killed if it is still there some seconds after the grace period.
    """

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(grace_s + GRACE_MARGIN_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="until-stdin-ends", daemon=True).start()
