"""The supervisor, with real child processes: small scripts in the place of nodes, and twice real nodes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from bench.ports import free_ports
from respkv import supervisor as module
from respkv.setting import ConfigError
from respkv.supervisor import LINE_BYTES_MAX, Pace, Supervisor, make_secret

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0
QUICK = Pace(first_s=0.01, max_s=0.02, settled_s=60)

# Says that it is ready and has joined the others, and ends with status 0 at SIGTERM or when its standard input ends.
SERVE = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
for word in ("ready", "joined"):
    print(word, "127.0.0.1:" + sys.argv[1], file=sys.stderr, flush=True)
while os.read(0, 100): pass
os._exit(0)
"""
# Does not end at SIGTERM, nor when its standard input ends.
STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for word in ("ready", "joined"):
    print(word, sys.argv[1], file=sys.stderr, flush=True)
while True: time.sleep(100)
"""
# Says that it is ready, and at each SIGUSR1 that it has joined the others.
LATE = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
say = lambda word: os.write(2, f"{word} 127.0.0.1:{sys.argv[1]}\\n".encode())
signal.signal(signal.SIGUSR1, lambda *_: say("joined"))
say("ready")
while os.read(0, 100): pass
os._exit(0)
"""


class Output:
    """Takes the lines of a supervisor, and lets a test wait for them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._news = trio.Event()

    def write(self, line: bytes) -> None:
        assert line.endswith(b"\n")
        self.lines.append(line.decode().removesuffix("\n"))
        self._news.set()
        self._news = trio.Event()

    async def until(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Wait until so many lines match wholly, and return the last of these matches."""
        with trio.fail_after(PATIENCE_S):
            while len(found := self.matches(pattern)) < count:
                await self._news.wait()
        return found[count - 1]

    def matches(self, pattern: str) -> list[re.Match[str]]:
        return [found for line in self.lines if (found := re.fullmatch(pattern, line))]


class Nodes:
    """A supervisor of scripts. `scripts` gives the code of each node; its argument is its name."""

    def __init__(self, scripts: dict[str, str], **options: object) -> None:
        self.output = Output()
        self.scripts = scripts
        settings: dict[str, object] = {"grace_s": PATIENCE_S, "pace": QUICK, **options}
        self.supervisor = Supervisor(
            list(scripts),
            self.command,
            self.output.write,
            **settings,  # type: ignore[arg-type]
        )
        self.status: int | None = None

    def command(self, name: str) -> Sequence[str]:
        return [sys.executable, "-I", "-S", "-c", self.scripts[name], name]

    async def live(self) -> int:
        with trio.fail_after(PATIENCE_S):
            self.status = await self.supervisor.live()
        return self.status

    def pid_of(self, name: str) -> int:
        pid = self.supervisor.pid_of(name)
        assert pid is not None
        return pid


@contextlib.asynccontextmanager
async def running(nodes: Nodes) -> AsyncIterator[Output]:
    """Run a supervisor beside the block, and stop it after the block."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(nodes.live)
        try:
            yield nodes.output
        finally:
            nodes.supervisor.stop()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


# Starting and stopping


async def test_nodes_start_say_that_they_are_ready_and_stop() -> None:
    nodes = Nodes({"a": SERVE, "b": SERVE})
    async with running(nodes) as output:
        await output.until("cluster ready: a 127.0.0.1:a, b 127.0.0.1:b")
        pids = [nodes.pid_of("a"), nodes.pid_of("b")]
        assert all(map(is_alive, pids))
        assert [os.getpgid(pid) for pid in pids] == pids  # So that Ctrl-C does not reach them.
    assert nodes.status == 0
    assert not any(map(is_alive, pids))
    for name, pid in zip("ab", pids, strict=True):
        assert output.lines.count(f"node {name}: pid {pid}") == 1
        assert output.lines.count(f"ready 127.0.0.1:{name}") == 1
        assert output.lines.count(f"joined 127.0.0.1:{name}") == 1
        assert output.lines.count(f"node {name}: ended") == 1
    ready = [line for line in output.lines if "ready" in line]
    assert ready[-1].startswith("cluster ready: ")
    assert len(ready) == 3


async def test_the_cluster_is_ready_when_all_nodes_have_joined_and_not_before() -> None:
    nodes = Nodes({"a": SERVE, "b": LATE})
    async with running(nodes) as output:
        await output.until("joined 127.0.0.1:a")
        await output.until("ready 127.0.0.1:b")
        await trio.testing.wait_all_tasks_blocked()
        assert not output.matches("cluster .*")
        os.kill(nodes.pid_of("b"), signal.SIGUSR1)
        await output.until("cluster ready: a 127.0.0.1:a, b 127.0.0.1:b")
        os.kill(nodes.pid_of("b"), signal.SIGUSR1)  # It had lost somebody for a moment: no news.
        await output.until("joined 127.0.0.1:b", count=2)
    assert len(output.matches("cluster .*")) == 1


async def test_nodes_that_do_not_join_are_told_of_once_and_waited_for() -> None:
    nodes = Nodes({"a": SERVE, "b": LATE}, join_s=0.05)
    async with running(nodes) as output:
        await output.until("cluster not ready after 0.05 s: .* NOREPLICAS .*")
        assert output.matches("ready 127.0.0.1:b")
        await trio.sleep(0.2)
        os.kill(nodes.pid_of("b"), signal.SIGUSR1)
        await output.until("cluster ready: .*")
    assert len(output.matches("cluster .*")) == 2


async def test_a_node_that_dies_while_it_is_waited_for_begins_the_wait_anew() -> None:
    nodes = Nodes({"a": SERVE, "b": LATE}, join_s=0.05)
    async with running(nodes) as output:
        await output.until("cluster not ready .*")
        os.kill(nodes.pid_of("b"), signal.SIGKILL)
        await output.until("cluster not ready .*", count=2)
        assert len(output.matches("ready 127.0.0.1:b")) == 2
    assert not output.matches("cluster ready: .*")


async def test_lines_of_a_node_begin_with_its_name() -> None:
    script = (
        "import sys; e = sys.stderr.buffer\n"
        "e.write(b'one\\ntw'); e.flush(); e.write(b'o\\n\\xff\\n'); e.write(b'rest')"
    )
    nodes = Nodes({"n1": script})
    written: list[bytes] = []
    nodes.supervisor.write = written.append
    assert await nodes.live() == 0
    assert written[1:5] == [b"n1 | one\n", b"n1 | two\n", b"n1 | \xff\n", b"n1 | rest\n"]


async def test_a_line_without_an_end_is_passed_on_in_parts() -> None:
    length = 20 * LINE_BYTES_MAX
    nodes = Nodes({"a": f"import sys; sys.stderr.write('x' * {length})"})
    assert await nodes.live() == 0
    parts = [line for line in nodes.output.lines if line.startswith("a | ")]
    assert sum(line.count("x") for line in parts) == length
    assert max(map(len, parts)) <= 3 * LINE_BYTES_MAX


async def test_what_does_not_stop_in_time_is_killed_and_has_failed() -> None:
    nodes = Nodes({"a": SERVE, "b": STUBBORN}, grace_s=0.3)
    async with running(nodes) as output:
        await output.until("cluster ready: .*")
    assert nodes.status == 1
    assert "node b: is not stopped yet: killed" in output.lines
    assert "node b: killed by SIGKILL" in output.lines
    assert "node a: ended" in output.lines


async def test_a_second_stop_does_not_wait() -> None:
    nodes = Nodes({"a": STUBBORN}, grace_s=1000)
    async with running(nodes) as output:
        await output.until("cluster ready: .*")
        nodes.supervisor.stop()  # The block's end is the second.
    assert nodes.status == 1
    assert "node a: killed by SIGKILL" in output.lines


async def test_a_stop_during_the_start_is_a_stop() -> None:
    nodes = Nodes({"a": SERVE})
    command = nodes.command

    def stopping(name: str) -> Sequence[str]:
        nodes.supervisor.stop()  # The process does not exist yet, and is being made from now on.
        return command(name)

    nodes.supervisor.command = stopping
    assert await nodes.live() == 0
    assert nodes.output.matches(r"node a: pid \d+")
    assert nodes.supervisor.pid_of("a") is None


async def test_a_cancelled_supervisor_leaves_no_process() -> None:
    nodes = Nodes({"a": STUBBORN})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(nodes.supervisor.live)
        await nodes.output.until("cluster ready: .*")
        pid = nodes.pid_of("a")
        nursery.cancel_scope.cancel()
    assert not is_alive(pid)


async def test_signals_are_passed_on() -> None:
    nodes = Nodes({"a": SERVE})
    statuses: list[int] = []

    async def run() -> None:
        statuses.append(await nodes.supervisor.run())

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await nodes.output.until("cluster ready: .*")
            os.kill(os.getpid(), signal.SIGINT)
    assert statuses == [0]
    assert "SIGINT: stopping all nodes" in nodes.output.lines


# Restarts


async def test_a_node_that_was_killed_is_started_again() -> None:
    nodes = Nodes({"a": SERVE, "b": LATE})
    async with running(nodes) as output:
        for name in "ab":
            await output.until(f"ready 127.0.0.1:{name}")
        first, other = nodes.pid_of("a"), nodes.pid_of("b")
        os.kill(other, signal.SIGUSR1)
        await output.until("cluster ready: .*")
        os.kill(first, signal.SIGKILL)
        await output.until("joined 127.0.0.1:a", count=2)
        await trio.testing.wait_all_tasks_blocked()
        assert len(output.matches("cluster ready: .*")) == 1  # `b` has not said that it is back.
        os.kill(other, signal.SIGUSR1)
        await output.until("cluster ready: .*", count=2)
        assert nodes.pid_of("a") != first
        assert nodes.pid_of("b") == other
    assert nodes.status == 0
    killed = output.lines.index("node a: killed by SIGKILL: starting again in 0.01 s")
    again = output.lines.index(f"node a: pid {first}")
    assert again < killed
    assert re.fullmatch(r"node a: pid \d+", output.lines[killed + 1])


async def test_pauses_grow_while_a_node_keeps_dying() -> None:
    nodes = Nodes({"a": "raise SystemExit(3)"})
    async with running(nodes) as output:
        await output.until("node a: ended with exit status 3: .*", count=4)
    pauses = [found[1] for found in output.matches(r".*: starting again in (\S+) s")]
    assert pauses[:4] == ["0.01", "0.02", "0.02", "0.02"]
    assert nodes.status == 0  # It was about to be started again.


async def test_a_node_that_ran_for_long_begins_anew_with_its_pauses() -> None:
    nodes = Nodes({"a": "raise SystemExit(3)"}, pace=Pace(0.01, 0.02, settled_s=0))
    async with running(nodes) as output:
        await output.until("node a: ended .*", count=3)
    assert {found[1] for found in output.matches(r".*: starting again in (\S+) s")} == {"0.01"}


async def test_a_stop_ends_the_pause() -> None:
    nodes = Nodes({"a": "raise SystemExit(3)"}, pace=Pace(first_s=1000, max_s=1000))
    async with running(nodes) as output:
        await output.until("node a: ended .*")
    assert nodes.status == 0


async def test_a_wrong_configuration_is_not_tried_again_and_others_go_on() -> None:
    nodes = Nodes({"a": "raise SystemExit(2)", "b": SERVE})
    async with running(nodes) as output:
        await output.until("ready 127.0.0.1:b")
        await output.until("node a: ended with exit status 2: not started again .*")
        assert is_alive(nodes.pid_of("b"))
    assert nodes.status == 1
    assert len(output.matches(r"node a: pid \d+")) == 1
    assert not output.matches("cluster ready: .*")


async def test_the_supervisor_ends_when_all_nodes_failed_for_good() -> None:
    assert await Nodes({"a": "raise SystemExit(2)", "b": "raise SystemExit(2)"}).live() == 1


async def test_a_node_that_somebody_stopped_stays_down() -> None:
    nodes = Nodes({"a": SERVE, "b": SERVE})
    async with running(nodes) as output:
        await output.until("cluster ready: .*")
        os.kill(nodes.pid_of("a"), signal.SIGTERM)
        await output.until("node a: ended: it was stopped, and stays down")
        os.kill(nodes.pid_of("b"), signal.SIGTERM)
        with trio.fail_after(PATIENCE_S):
            while nodes.status is None:  # noqa: ASYNC110  It ends by itself.
                await trio.sleep(0.01)
    assert nodes.status == 0


async def test_without_restarts_a_node_that_died_stays_down() -> None:
    nodes = Nodes({"a": SERVE}, is_restarting=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(nodes.live)
        await nodes.output.until("cluster ready: .*")
        os.kill(nodes.pid_of("a"), signal.SIGKILL)
    assert nodes.status == 1
    assert nodes.output.lines[-1] == "node a: killed by SIGKILL: not started again (--no-restart)"


async def test_a_process_that_cannot_be_made_is_tried_again(tmp_path: Path) -> None:
    nodes = Nodes({"a": SERVE})
    command = nodes.command
    missing = [str(tmp_path / "none")]
    nodes.supervisor.command = lambda name: (
        missing if not nodes.output.matches("node a: no process: .*") else command(name)
    )
    async with running(nodes) as output:
        await output.until("cluster ready: .*")
    assert output.lines[0] == "node a: no process: No such file or directory"
    assert nodes.status == 0


async def test_a_process_that_a_node_leaves_behind_does_not_hold_it_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TAIL_S", 0.05)
    script = (
        "import subprocess, sys\n"
        "left = subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import time; time.sleep(60)'])\n"
        "print(left.pid, file=sys.stderr)\n"
    )
    nodes = Nodes({"a": script})
    began = trio.current_time()
    assert await nodes.live() == 0
    assert trio.current_time() - began < 20
    os.kill(int(nodes.output.matches(r"a \| (\d+)")[0][1]), signal.SIGKILL)


def test_pauses_double_up_to_a_limit() -> None:
    pace = Pace(first_s=1, max_s=30)
    assert [pace.pause_s(deaths) for deaths in (1, 2, 3, 5, 6, 10**9)] == [1, 2, 4, 16, 30, 30]


# The secret


def test_a_secret_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "secret"
    assert make_secret(str(path))
    first = path.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}\n", first)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not make_secret(str(path))
    assert path.read_text() == first
    assert os.listdir(path.parent) == ["secret"]
    other = tmp_path / "other"
    assert make_secret(str(other))
    assert other.read_text() != first


def test_a_secret_is_not_overwritten_by_one_who_came_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret"
    path.write_text("first")
    monkeypatch.setattr(os.path, "lexists", lambda path: False)  # It looked a moment too early.
    assert not make_secret(str(path))
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["secret"]


def test_a_secret_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = f"{tmp_path}/file/secret"
    with pytest.raises(ConfigError) as error:
        make_secret(path)
    assert error.value.line.startswith(f'cluster.secret_file = "{path}": cannot be made: ')


# A child whose supervisor is gone


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", -signal.SIGTERM),
        ("signal.signal(signal.SIGTERM, lambda *_: os._exit(7))", 7),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", -signal.SIGKILL),
    ],
)
def test_a_process_stops_when_its_standard_input_ends(before: str, expected: int) -> None:
    code = (
        "import os, signal, time\nfrom respkv import supervisor\n"
        f"supervisor.GRACE_MARGIN_S = 0.1\n{before}\n"
        "supervisor.stop_when_stdin_ends(0.1)\nprint('up', flush=True)\n"
        "while True: time.sleep(0.05)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            process.stdin.write(b"this is no end")
            process.stdin.flush()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1)
            process.stdin.close()
            assert process.wait(PATIENCE_S) == expected
        finally:
            process.kill()


# Real nodes


class RealCluster:
    """`respkv cluster` as a process, with two nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = free_ports(2)
        self.file = folder / "cluster.toml"
        self.file.write_text(
            "".join(
                f'[[node]]\nname = "{name}"\nhost = "127.0.0.1"\nport = {port}\n'
                f'data_dir = "{folder}/data/{name}"\n'
                for name, port in zip("ab", self.ports, strict=True)
            )
        )
        self.stderr = folder / "stderr"
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "respkv", "cluster", str(self.file)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stderr=stderr,
            )

    def until(self, pattern: str, count: int = 1) -> str:
        """Wait until so many lines begin with a pattern; returns the last one's group, or all of it."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            found = re.findall(f"^{pattern}", self.stderr.read_text(), re.MULTILINE)
            if len(found) >= count:
                return str(found[count - 1])
            time.sleep(0.02)
        raise AssertionError(f"not said: {pattern}\n{self.stderr.read_text()}")

    def answers(self, port: int) -> bool:
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client:
            client.sendall(b"PING\r\n")
            return client.recv(100) == b"+PONG\r\n"


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RealCluster]:
    cluster = RealCluster(tmp_path)
    try:
        yield cluster
    finally:
        cluster.process.kill()
        cluster.process.wait()


def test_real_nodes_come_back_after_kill_9_and_stop_with_their_supervisor(
    real: RealCluster,
) -> None:
    ready = real.until("cluster ready: .*$")
    assert ready == "cluster ready: " + ", ".join(
        f"{name} 127.0.0.1:{port}" for name, port in zip("ab", real.ports, strict=True)
    )
    secret = real.folder / "data" / "cluster.secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert all(map(real.answers, real.ports))
    os.kill(int(real.until(r"node a: pid (\d+)$")), signal.SIGKILL)
    real.until("cluster ready: ", count=2)
    assert all(map(real.answers, real.ports))
    real.process.send_signal(signal.SIGTERM)
    assert real.process.wait(PATIENCE_S) == 0
    assert real.until("node a: ended$")
    assert real.until("node b: ended$")


def test_real_nodes_do_not_outlive_their_supervisor(real: RealCluster) -> None:
    real.until("cluster ready: ")
    pids = [int(real.until(rf"node {name}: pid (\d+)$")) for name in "ab"]
    real.process.kill()
    deadline = time.monotonic() + PATIENCE_S
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for name in "ab":
        assert (real.folder / "data" / name).is_dir()
