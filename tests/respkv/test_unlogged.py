"""What a full disk could not log is shown to nobody: commands that could tell of it are refused."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from engine.disk import RealFile
from engine.errors import DiskFullError
from respkv.session import Session
from respkv.unlogged import UNLOGGED
from tests.respkv.commands.sessions import Sessions
from tests.respkv.serving import connect, encode, serving, until

REFUSED = b"-" + UNLOGGED.line


class Full(Sessions):
    """`Sessions` with the node's own end of a tick, on a disk that can be full."""

    def tick(self, session: Session, script: str) -> list[Any]:
        """Commands separated by ` ; `, the end of the tick, and all replies that were made."""
        commands = [
            [word.encode("latin-1") for word in shlex.split(part)] for part in script.split(" ; ")
        ]
        self.runner.serve(session, commands, self.time_ms)
        self.position = self.commit.write()
        return self.said(session)

    def said(self, session: Session) -> list[Any]:
        reader = self._readers[session]
        for part in session.out:
            reader.feed(part)
        session.out.clear()
        replies = []
        while (reply := reader.gets()) is not False:
            replies.append(reply)
        return replies

    def arrive(self) -> None:
        """Pages arrive, each sliced command has one slice, and the tick ends."""
        waiting, self._waiting = self._waiting, []
        for fault, pins, resume in waiting:
            fault.fetch()
            fault.arrive(pins)
            resume(self.time_ms, None)
        self.runner.long_way.advance(self.time_ms)
        self.commit.write()

    def fill(self) -> None:
        self.sim_disk.faults.capacity_bytes = self.sim_disk.used_bytes()

    def make_room(self) -> None:
        self.sim_disk.faults.capacity_bytes = None
        self.now_s += 1
        self.commit.write()
        self.admission.check_disk()

    @property
    def is_held(self) -> bool:
        """Whether the replies of the last tick wait for room."""
        return self.position > self.commit.releasable


@pytest.fixture
def node() -> Full:
    """`k` is 2, which is not logged; it was 1. `other` is logged."""
    node = Full()
    writer = node.open()
    assert node.tick(writer, "SET k 1 ; SET other x") == [b"OK", b"OK"]
    assert not node.is_held
    node.fill()
    assert node.tick(writer, "SET k 2 ; GET k") == [b"OK", b"2"]
    assert node.is_held
    return node


@pytest.mark.parametrize(
    "command",
    [
        "GET k", "MGET other k", "EXISTS k", "TYPE k", "TTL k", "STRLEN k", "OBJECT ENCODING k", "APPEND k 3",
        "DBSIZE", "KEYS *", "SCAN 0", "RANDOMKEY",
    ],
)  # fmt: skip
def test_what_could_show_it_is_refused(node: Full, command: str) -> None:
    reader = node.open()
    [reply] = node.tick(reader, command)
    assert reply.startswith(b"-MISCONF ")
    assert not node.is_held
    node.make_room()
    reply = node.ask(reader, command)
    assert reply is not None
    assert not isinstance(reply, bytes) or not reply.startswith(b"-")


@pytest.mark.parametrize(
    "command",
    [
        "GET other", "MGET other none", "EXISTS none", "PING", "INFO", "CONFIG GET maxmemory", "TIME",
        "CLIENT ID", "COMMAND COUNT", "SELECT 1", "OBJECT ENCODING other",
    ],
)  # fmt: skip
def test_everything_else_goes_on(node: Full, command: str) -> None:
    [reply] = node.tick(node.open(), command)
    assert not isinstance(reply, bytes) or not reply.startswith(b"-")
    assert not node.is_held


def test_writes_are_refused_as_on_any_full_disk(node: Full) -> None:
    [reply] = node.tick(node.open(), "SET other y")
    assert reply.startswith(b"-MISCONF The disk that holds the data is nearly full")


def test_it_is_shown_once_it_is_logged(node: Full) -> None:
    reader = node.open()
    assert node.tick(reader, "GET k") == [REFUSED]
    node.make_room()
    assert node.tick(reader, "GET k") == [b"2"]
    assert not node.is_held
    node.fill()
    assert node.tick(reader, "SET other y") == [b"OK"]
    assert node.tick(node.open(), "GET k ; GET other") == [b"2", REFUSED]


def test_transactions(node: Full) -> None:
    reader = node.open()
    assert node.tick(reader, "MULTI ; GET other ; GET k ; EXEC")[-1].startswith(
        b"-EXECABORT Transaction discarded because of: MISCONF The disk is full"
    )
    assert node.tick(reader, "MULTI ; GET other ; EXEC")[-1] == [b"x"]
    assert node.tick(reader, "MULTI ; DBSIZE ; EXEC")[-1].startswith(b"-EXECABORT")


@pytest.mark.parametrize("command", ["FLUSHALL", "FLUSHDB", "SWAPDB 0 1"])
def test_a_change_of_everything(command: str) -> None:
    node = Full()
    writer, reader = node.open(), node.open()
    node.tick(writer, "SET k 1")
    node.fill()
    assert node.tick(writer, command) == [b"OK"]
    assert node.is_held
    assert node.tick(reader, "GET k ; GET none ; PING") == [REFUSED, REFUSED, b"PONG"]
    node.make_room()
    assert node.tick(reader, "GET k ; PING") == [None, b"PONG"]


def test_a_command_that_is_half_done() -> None:
    node = Full()
    writer, reader, counter = node.open(), node.open(), node.open()
    for number in range(200):
        node.tick(writer, f"SET key:{number} x")
    assert node.tick(reader, "KEYS *") == []
    assert node.tick(counter, "INFO keyspace") == []
    assert reader.wait is not None
    node.fill()
    node.tick(writer, "SET key:7 y")
    for _ in range(1000):
        node.arrive()
    assert node.said(reader) == [REFUSED]
    assert len(node.said(counter)) == 1
    assert reader.wait is None
    assert not node.runner.long_way.sliced


def test_a_command_that_waits_for_a_page() -> None:
    node = Full()
    writer, reader, other = node.open(), node.open(), node.open()
    node.tick(writer, "SET k 1 ; SET other x")
    node.evict()
    assert node.tick(reader, "GET k ; PING") == []
    assert node.tick(other, "GET other") == []
    node.fill()
    assert node.tick(writer, "SET k 2") == [b"OK"]
    assert node.is_held
    for _ in range(3):
        node.arrive()
    assert node.said(reader) == [REFUSED, b"PONG"]
    assert node.said(other) == [b"x"]


async def test_whoever_reads_it_in_the_same_tick_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = RealFile.append
    is_full = False

    def append_if_there_is_room(file: RealFile, data: bytes) -> None:
        if is_full and file.name.endswith(".log"):
            raise DiskFullError(file.name, "write", 28, "No space left on device", needed=len(data))
        append(file, data)

    monkeypatch.setattr(RealFile, "append", append_if_there_is_room)
    async with serving(tmp_path) as node:
        writer, reader, other = await connect(node), await connect(node), await connect(node)
        assert await writer.ask(encode(b"SET", b"k", b"1")) == b"OK"
        is_full = True
        await writer.send(encode(b"SET", b"k", b"2") + encode(b"GET", b"k"))
        await until(lambda: node.unlogged is not None)
        assert await reader.ask(encode(b"GET", b"k")) == REFUSED
        assert await other.ask(encode(b"PING")) == b"PONG"
        assert await other.ask(encode(b"GET", b"other")) is None
        assert await writer.hears_nothing()
        is_full = False
        assert await writer.replies(2) == [b"OK", b"2"]
        assert node.unlogged is None
        assert await reader.ask(encode(b"GET", b"k")) == b"2"
