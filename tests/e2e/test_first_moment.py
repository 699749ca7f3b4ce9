"""The first moment of a cluster: what `ready`, `joined` and `cluster ready` promise to who types a command at once.

Real processes. Nothing here waits between a line and the commands: all are sent before any reply is read, and
an error that would be gone a moment later counts. How much later a line comes is not looked at.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.clusters import NAMES, RunningCluster, new_cluster
from tests.differential.wire import Connection, Reply
from tests.servers import HOST

PATIENCE_S: Final = 30.0

# Each goes over a connection of its own, to both ports of each node. No command needs another's effect.
COMMANDS: Final = (
    ("SET key value",),
    ("GET key",),
    ("MULTI", "SET other value", "GET other", "EXEC"),
    ("PUBLISH channel message",),
    ("SCAN 0",),
    ("KV.GET key",),
    ("INCR number",),
    ("DBSIZE",),
)


class Started:
    """`respkv cluster`, and what it has said."""

    def __init__(self, cluster: RunningCluster) -> None:
        self.said = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "respkv", "cluster", str(cluster.config)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        # Closing the nodes' pipes is the supervisor's part; what a test may not do is to hang.
        self._watchdog = threading.Timer(PATIENCE_S, self.process.kill)
        self._watchdog.start()

    def read_until(self, line: str) -> None:
        """Return with the moment in which a line is there that begins so."""
        assert self.process.stderr is not None
        while not re.search(rb"^%b" % line.encode(), self.said, re.MULTILINE):
            data = os.read(self.process.stderr.fileno(), 65536)
            assert data, f"not said: {line}\n{self.said.decode()}"
            self.said += data

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.stderr is not None
        self.said += self.process.stderr.read()
        self._watchdog.cancel()
        assert self.process.wait(PATIENCE_S) == 0, self.said.decode()


@contextlib.contextmanager
def started(cluster: RunningCluster) -> Iterator[Started]:
    running = Started(cluster)
    try:
        yield running
    finally:
        running.stop()


def ask_everything_at_once(cluster: RunningCluster) -> list[str]:
    """Send each command to both ports of each node, then read; returns what was answered with an error."""
    asked = [
        (port, lines, Connection(HOST, port, timeout_s=PATIENCE_S))
        for lines in COMMANDS
        for member in cluster
        for port in (member.port, member.cluster_port)
    ]
    try:
        for _, lines, connection in asked:
            connection.send(_request(lines))
        found = []
        for port, lines, connection in asked:
            replies = _replies(connection, len(lines))
            # Where a client of Redis Cluster is sent, it goes at once, and once.
            moved = next((each for each in replies if each.text.startswith(b"MOVED ")), None)
            if moved is not None:
                port = int(moved.text.rpartition(b":")[2])
                with contextlib.closing(Connection(HOST, port, timeout_s=PATIENCE_S)) as other:
                    other.send(_request(lines))
                    replies = _replies(other, len(lines))
            found += [f"{port}: {lines}: {each}" for each in _flat(replies) if each.is_error]
    finally:
        for _, _, connection in asked:
            connection.close()
    return found


def _request(lines: tuple[str, ...]) -> bytes:
    return b"".join(line.encode() + b"\r\n" for line in lines)


def _replies(connection: Connection, count: int) -> list[Reply]:
    return [connection.receive().reply for _ in range(count)]


def _flat(replies: list[Reply]) -> Iterator[Reply]:
    """With those that EXEC answers."""
    for reply in replies:
        yield reply
        yield from reply.items


@pytest.fixture
def cluster(tmp_path: Path) -> RunningCluster:
    return new_cluster(tmp_path)


@pytest.mark.parametrize("attempt", range(3))
def test_every_command_is_served_at_once_when_the_cluster_is_ready(
    cluster: RunningCluster, attempt: int
) -> None:
    """New, and after a stop. The order in which nodes find each other differs from start to start."""
    for _ in range(2):
        with started(cluster) as running:
            running.read_until("cluster ready: ")
            assert ask_everything_at_once(cluster) == []


def test_the_cluster_is_ready_again_when_a_node_that_died_has_joined(
    cluster: RunningCluster,
) -> None:
    with started(cluster) as running:
        running.read_until("cluster ready: ")
        pid = re.search(rb"^node b: pid (\d+)", running.said, re.MULTILINE)
        assert pid is not None
        running.said = b""
        os.kill(int(pid[1]), signal.SIGKILL)
        running.read_until("cluster ready: ")
        assert ask_everything_at_once(cluster) == []
        for member in cluster:  # Also those that had joined before.
            assert f"\njoined {HOST}:{member.port}\n".encode() in running.said


def test_a_node_is_ready_without_the_others_and_has_joined_with_the_last_of_them(
    cluster: RunningCluster,
) -> None:
    first, *others = cluster
    try:
        first.start()
        _until_said(cluster, "a", "ready")
        with contextlib.closing(Connection(HOST, first.port, timeout_s=PATIENCE_S)) as connection:
            assert connection.ask(b"PING").text == b"PONG"
            assert connection.ask(b"SET", b"k", b"v").text.startswith(b"NOREPLICAS ")
        others[0].start()
        _until_said(cluster, "b", "ready")
        others[1].start()
        for name in NAMES:
            _until_said(cluster, name, "joined")
        assert ask_everything_at_once(cluster) == []
        # Not while one was missing: the last one has to be there first, and each says it once.
        for member in cluster:
            said = member.said()
            assert said.count("\njoined ") == 1
            assert said.index("\nready ") < said.index("\njoined ")
        assert first.said().count("node connected") == 2
        assert first.said().rindex("node connected") < first.said().index("\njoined ")
    finally:
        for member in cluster:
            member.stop()


def test_a_node_that_nobody_listens_to_any_more_joins_all_the_same(cluster: RunningCluster) -> None:
    first, *others = cluster
    process = subprocess.Popen(
        [sys.executable, "-m", "respkv", "serve", "--config", str(cluster.config), "--node", "a"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    first.process = process
    try:
        assert process.stderr is not None
        assert any(line.startswith(b"ready ") for line in process.stderr)
        process.stderr.close()
        for member in others:
            member.start()
        for member in others:  # So `a` has said to both that it has compared its data.
            _until_said(cluster, member.name, "joined")
        cluster.wait()
        assert ask_everything_at_once(cluster) == []
    finally:
        for member in cluster:
            member.stop()


def _until_said(cluster: RunningCluster, name: str, word: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    line = f"\n{word} {HOST}:{cluster[name].port}\n"
    while line not in cluster[name].said():
        assert time.monotonic() < deadline, cluster.said()
        time.sleep(0.01)
