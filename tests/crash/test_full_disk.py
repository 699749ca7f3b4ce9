"""A full disk: writes are refused in words, reads go on, nothing acknowledged is lost.

A real server on a small tmpfs, which another file fills and leaves. Needs root, to mount it.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.mounted import missing, tmpfs
from tests.crash.server import RefusedStart, Server
from tests.crash.workload import Connection, Refused, Writer, info

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
    pytest.mark.timeout(300),
]

SIZE_BYTES = 64 << 20
WAIT_S = 15.0


class Small:
    """A server on a small file system, with a file that takes the room."""

    def __init__(self, folder: Path, mounted: Path, fsync: str) -> None:
        self.filler = mounted / "filler"
        self.server = Server(
            folder,
            [f"log.fsync={fsync}", "memory.bytes_max=16MiB"],
            data_dir=mounted / "data",
        )
        self.writers: list[Writer] = []

    def fill(self, left_bytes: int) -> None:
        """Take all room but so much."""
        with self.filler.open("ab", buffering=0) as file:
            try:
                while file.write(bytes(1 << 16)) == 1 << 16:
                    pass
            except OSError:
                pass
            file.truncate(max(0, file.tell() - left_bytes))

    def make_room(self) -> None:
        self.filler.unlink()

    def start_writers(self, count: int) -> None:
        self.writers = [
            Writer(b"w%d" % n, random.Random(f"full-{n}"), pause_s=0.002) for n in range(count)
        ]
        for writer in self.writers:
            writer.start(self.server.port)

    def stop_writers(self) -> None:
        for writer in self.writers:
            writer.stop()
        for writer in self.writers:
            writer.join()

    def ask(self, *command: bytes) -> object:
        # Short, because a write that waits for room gets no answer at all.
        connection = Connection(self.server.port, timeout_s=1.5)
        try:
            return connection.ask(*command)
        finally:
            connection.close()

    def await_refusal(self) -> str:
        """Write until the server says no."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            try:
                self.ask(b"SET", b"probe", b"x" * 100)
            except Refused as refused:
                return str(refused)
            except (
                TimeoutError
            ):  # It waits for room: not answered, which is right, and not refused yet.
                continue
        raise AssertionError("writes are not refused")

    def await_writes(self) -> None:
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                assert self.ask(b"SET", b"probe", b"y") == b"OK"
                return
            except (Refused, TimeoutError):
                assert time.monotonic() < deadline, "writes do not come back"
                time.sleep(0.05)

    def check(self) -> None:
        """With all writers stopped."""
        connection = Connection(self.server.port)
        for writer in self.writers:
            writer.check(connection)
        connection.close()


@pytest.fixture(params=["always", "everysec"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Small]:
    with tmpfs(tmp_path, SIZE_BYTES) as mounted:
        made = Small(tmp_path, mounted, request.param)
        made.server.start()
        try:
            yield made
        finally:
            made.server.kill()


def test_a_nearly_full_disk_refuses_writes_and_serves_reads(small: Small) -> None:
    assert small.ask(b"SET", b"key", b"value") == b"OK"
    small.fill(left_bytes=SIZE_BYTES // 40)
    assert small.await_refusal().startswith("MISCONF The disk that holds the data is nearly full")
    assert small.ask(b"GET", b"key") == b"value"
    transaction = Connection(small.server.port)
    assert transaction.ask(b"MULTI") == b"OK"
    with pytest.raises(Refused, match="MISCONF"):
        transaction.ask(b"SET", b"key", b"other")
    with pytest.raises(Refused, match="EXECABORT"):
        transaction.ask(b"EXEC")
    transaction.close()
    small.make_room()
    small.await_writes()
    assert small.ask(b"GET", b"key") == b"value"


def test_a_transaction_that_was_queued_in_time_is_refused_too(small: Small) -> None:
    transaction = Connection(small.server.port)
    assert transaction.ask(b"MULTI") == b"OK"
    assert transaction.ask(b"SET", b"key", b"other") == b"QUEUED"
    small.fill(left_bytes=SIZE_BYTES // 40)
    small.await_refusal()
    with pytest.raises(Refused, match=r"^EXECABORT Transaction discarded because of: MISCONF"):
        transaction.ask(b"EXEC")
    assert transaction.ask(b"GET", b"key") is None
    transaction.close()


def test_a_disk_that_fills_up_under_load_loses_nothing(small: Small) -> None:
    rng = random.Random("full disk")
    small.start_writers(3)
    assert small.ask(b"SET", b"kept", b"value") == b"OK"
    for left_bytes in (0, 100_000, 2 << 20, 5 << 20, 0):
        time.sleep(rng.uniform(0.3, 1))
        small.fill(left_bytes)
        if "the commit log cannot be written" not in small.server.said():
            # More than it has reserved; unless writes are refused already, since the disk was looked at.
            with contextlib.suppress(Refused, TimeoutError):
                small.ask(b"SET", b"large", bytes(4 << 20))
        if left_bytes < SIZE_BYTES // 20:
            small.await_refusal()
        time.sleep(rng.uniform(0.3, 1.5))
        assert small.ask(b"GET", b"kept") == b"value", "reads do not go on"
        assert small.server.is_running
        small.make_room()
        small.await_writes()
    small.stop_writers()
    # What is under way when the log cannot be written waits, and is not refused; what comes after is.
    assert all(writer.last_refusal.startswith(b"MISCONF ") for writer in small.writers)
    assert sum(writer.acknowledged for writer in small.writers) > 1000
    assert "the commit log cannot be written" in small.server.said()
    assert "the commit log can be written again" in small.server.said()
    small.check()
    small.server.kill()
    small.server.start()
    small.check()


def test_nobody_is_shown_what_a_kill_would_take_back(small: Small) -> None:
    old, new = b"old" * 20_000, b"new" * 1_000_000  # More than the log has reserved.
    for _ in range(20):
        small.await_writes()
        assert small.ask(b"SET", b"key", old) == b"OK"
        assert small.ask(b"SET", b"other", b"value") == b"OK"
        small.fill(left_bytes=0)
        with contextlib.suppress(Refused):  # The server had noticed already: again.
            with pytest.raises(TimeoutError):
                small.ask(b"SET", b"key", new)
            break
        small.make_room()
    else:
        raise AssertionError("no write came while the disk was full")
    for name, argument in ((b"GET", b"key"), (b"STRLEN", b"key"), (b"KEYS", b"*")):
        with pytest.raises(
            Refused, match=r"^MISCONF The disk is full, and the last change of what"
        ):
            small.ask(name, argument)
    assert small.ask(b"GET", b"other") == b"value"
    assert small.ask(b"PING") == b"PONG"
    small.server.kill()
    small.make_room()
    small.server.start()
    assert small.ask(b"GET", b"key") == old


def test_a_flush_that_finds_no_room_does_not_end_the_server(small: Small) -> None:
    """The memtable is written again and again, until it has to be flushed to a disk that cannot take it."""
    small.start_writers(4)
    small.fill(left_bytes=6 << 20)  # Room for the log for a while, and hardly for a table.
    small.await_refusal()
    with contextlib.suppress(Refused):  # If the log has no room for the last one either.
        assert small.ask(b"GET", b"probe") in (None, b"x" * 100)
    time.sleep(1.5)
    small.make_room()
    small.await_writes()
    deadline = time.monotonic() + WAIT_S
    while True:
        connection = Connection(small.server.port)
        fields = info(connection)
        connection.close()
        if int(fields["flushes"]) and fields["is_stalled"] == "0":
            break
        assert time.monotonic() < deadline, "what could not be flushed is not flushed later"
        time.sleep(0.1)
    small.stop_writers()
    small.check()
    small.server.kill()
    small.server.start()
    small.check()


def test_a_kill_on_a_full_disk_loses_nothing(small: Small) -> None:
    small.start_writers(3)
    time.sleep(1)
    small.fill(left_bytes=0)
    small.await_refusal()
    time.sleep(0.3)
    small.server.kill()
    for writer in small.writers:
        writer.join()
    small.fill(left_bytes=0)  # A flush that found no room has given back what it had written.
    with pytest.raises(RefusedStart) as caught:
        small.server.start()
    assert caught.value.status == 1
    assert "No space left on device" in caught.value.said
    assert len(caught.value.said.splitlines()) == 1
    small.make_room()
    small.server.start()
    connection = Connection(small.server.port)
    for writer in small.writers:
        writer.settle(connection)
    connection.close()


def test_a_stop_on_a_full_disk_says_what_is_wrong(small: Small) -> None:
    small.start_writers(3)
    time.sleep(0.5)
    small.fill(left_bytes=0)
    small.await_refusal()
    small.server.stop()
    assert "Traceback" not in small.server.said()
    for writer in small.writers:
        writer.stop()
        writer.join()
    small.make_room()
    small.server.start()
    connection = Connection(small.server.port)
    for writer in small.writers:
        writer.settle(connection)
    connection.close()
