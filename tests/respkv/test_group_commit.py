"""The task that syncs: what comes between two syncs is on its way to the disk already."""

from __future__ import annotations

import contextlib
import ctypes
import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from engine.errors import SyncError
from engine.log import CommitLog
from respkv.group_commit import WRITE_BACK_BYTES
from tests.respkv.serving import connect, make_node, serving, until

VALUE = b"v" * (WRITE_BACK_BYTES // 4)


class Calls:
    """What is asked of the log, in order: (what, the log's end)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[str, int]] = []
        for name in ("sync", "write_back"):
            monkeypatch.setattr(CommitLog, name, self._noted(name, getattr(CommitLog, name)))

    def _noted(self, name: str, original: Callable[[CommitLog], object]) -> object:
        def call(log: CommitLog) -> object:
            self.made.append((name, log.position))
            return original(log)

        return call

    async def wait_for(self, name: str, count: int) -> None:
        await until(lambda: [made for made, _ in self.made].count(name) >= count)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


async def test_much_that_comes_between_two_syncs_is_sent_ahead(
    tmp_path: Path, calls: Calls
) -> None:
    async with serving(tmp_path) as node:
        client = await connect(node)
        for number in range(50):
            assert await client.ask(encoded(b"SET", b"%d" % number, VALUE)) == b"OK"
            await trio.sleep(0.04)
        await calls.wait_for("sync", 2)
        await calls.wait_for("write_back", 3)
    ends = [end for name, end in calls.made if name == "write_back"]
    # More may have come until its thread began, and then counts for the next.
    assert all(end >= count * WRITE_BACK_BYTES for count, end in enumerate(ends, start=1))


@pytest.mark.parametrize(("fsync", "size"), [("everysec", 10), ("no", len(VALUE))])
async def test_nothing_is_sent_where_there_is_little_or_nobody_wants_it(
    tmp_path: Path, calls: Calls, fsync: str, size: int
) -> None:
    async with serving(tmp_path, {"log.fsync": fsync}) as node:
        client = await connect(node)
        for number in range(60):
            assert await client.ask(encoded(b"SET", b"%d" % number, VALUE[:size])) == b"OK"
            await trio.sleep(0.02)
    assert "write_back" not in [name for name, _ in calls.made]


async def test_a_log_that_cannot_be_sent_ends_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_node(tmp_path)
    status: list[int] = []

    async def run() -> None:
        status.append(await node.run())

    monkeypatch.setattr("engine.disk._sync_file_range", failing)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await until(lambda: node.front.listeners.by_fd)
        client = await connect(node)
        with contextlib.suppress(EOFError, OSError):
            for number in range(60):
                await client.ask(encoded(b"SET", b"%d" % number, VALUE))
                await trio.sleep(0.02)
        await until(lambda: status)
    node.disk.close()
    assert status == [1]
    assert isinstance(node.store.log.failure, SyncError)


def failing(*arguments: int) -> int:
    ctypes.set_errno(errno.EIO)
    return -1


def encoded(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)
