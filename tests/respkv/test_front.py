"""The front with real sockets: what is held back, what is bounded, and how it ends."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel

from engine.store import PageFault, Pins
from respkv.connection import READ_BYTES
from respkv.front import UNPARSED_BYTES_MAX
from respkv.output import SEND_BYTES_PER_TICK, _gathered
from respkv.pages import Resume
from respkv.parser import LargeBulk
from respkv.poller import READ
from respkv.session import CLOSING, LARGE_REPLY_BYTES, WAITING, Session
from tests.respkv.serving import Client, connect, encode, serving, until

KIB = 1024
MIB = KIB * KIB
SMALL_WINDOW = 16 * KIB
PING = encode(b"PING")


def get(key: bytes) -> bytes:
    return encode(b"GET", key)


def set_(key: bytes, value: bytes) -> bytes:
    return encode(b"SET", key, value)


# Idleness


async def test_idle_clients(tmp_path: Path) -> None:
    async with serving(tmp_path, {"client.idle_timeout_s": 60}) as node:
        idle, busy, blocked, monitor = [await connect(node) for _ in range(4)]
        assert await idle.ask(PING) == b"PONG"
        assert await monitor.ask(encode(b"MONITOR")) == b"OK"
        await blocked.send(encode(b"WAIT", b"1", b"0"))
        await until(lambda: len(node.runner.long_way.waiting) == 1)
        node.later(50)
        assert await busy.ask(PING) == b"PONG"
        node.later(20)
        node.front.check_clients()
        assert await idle.rest() == b""
        assert len(node.front.connections) == 3
        assert await busy.ask(PING) == b"PONG"


# The protocol at the edges of packets


@pytest.mark.parametrize("cut", [1, 2, 7, 4095, 4096, 4097])
async def test_commands_cut_anywhere(tmp_path: Path, cut: int) -> None:
    async with serving(tmp_path) as node:
        client = await connect(node)
        data = set_(b"k", b"v" * 5000) + get(b"k") + b"\r\n\r\nPING\r\n*0\r\n" + get(b"none")
        if cut < 4095:
            data = set_(b"k", b"v" * 50) + get(b"k") + b"\r\n\r\nPING\r\n*0\r\n" + get(b"none")
        for at in range(0, len(data), cut):
            await client.send(data[at : at + cut])
            await trio.lowlevel.checkpoint()
        value = b"v" * (5000 if cut >= 4095 else 50)
        assert await client.replies(4) == [b"OK", value, b"PONG", None]


async def test_a_protocol_error_comes_after_what_was_right(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        client = await connect(node)
        await client.send(set_(b"k", b"v") + get(b"k") + b"*1\r\nPING\r\n" + set_(b"k", b"w"))
        assert await client.rest() == (
            b"+OK\r\n$1\r\nv\r\n-ERR Protocol error: expected '$', got 'P'\r\n"
        )
        other = await connect(node)
        assert await other.ask(get(b"k")) == b"v"


async def test_a_protocol_error_waits_for_a_command_that_waits(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        client = await connect(node)
        await client.send(encode(b"DEBUG", b"SLEEP", b"0.05") + b"*1\r\nPING\r\n")
        assert await client.rest() == (b"+OK\r\n-ERR Protocol error: expected '$', got 'P'\r\n")


async def test_too_many_unauthenticated_bytes(tmp_path: Path) -> None:
    async with serving(tmp_path, {"client.requirepass": "secret"}) as node:
        client = await connect(node)
        await client.send(PING + encode(b"AUTH", b"wrong") + encode(b"AUTH", b"secret") + PING * 2)
        assert await client.replies(5) == [
            b"-NOAUTH Authentication required.",
            b"-WRONGPASS invalid username-password pair or user is disabled.",
            b"OK", b"PONG", b"PONG",
        ]  # fmt: skip
        long = await connect(node)
        await long.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$20000\r\n")
        assert await long.rest() == b"-ERR Protocol error: unauthenticated bulk length\r\n"
        many = await connect(node)
        await many.send(b"*11\r\n")
        assert await many.rest() == b"-ERR Protocol error: unauthenticated multibulk length\r\n"


async def test_what_follows_auth_while_everybody_is_paused(tmp_path: Path) -> None:
    """The parser gives one command at a time then: the rest must not be forgotten in it."""
    async with serving(tmp_path, {"client.requirepass": "secret"}) as node:
        admin, client = await connect(node), await connect(node)
        assert await admin.ask(encode(b"AUTH", b"secret")) == b"OK"
        assert await admin.ask(encode(b"CLIENT", b"PAUSE", b"100")) == b"OK"
        await client.send(encode(b"AUTH", b"secret") + PING * 3)
        assert await client.hears_nothing()
        assert await client.replies(4) == [b"OK", b"PONG", b"PONG", b"PONG"]


async def test_a_query_that_is_too_long(tmp_path: Path) -> None:
    async with serving(tmp_path, {"client.query_buffer_bytes_max": MIB}) as node:
        client = await connect(node)
        head = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % (3 * MIB)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await client.send(head + bytes(3 * MIB))
        assert await client.rest() == b""
        await until(lambda: not node.front.connections)


# Long pipelines


@pytest.mark.parametrize(
    ("count", "command", "answer"),
    [
        (100_000, PING, b"PONG"),
        (100_000, b"PING\r\n", b"PONG"),
        (20_000, get(b"k"), b"v" * 100),
        (20_000, set_(b"k", b"v" * 100), b"OK"),
        (3_000, encode(b"DBSIZE"), 1),
    ],
    ids=["ping", "inline", "get", "set", "sliced"],
)
async def test_a_pipeline_is_sent_before_its_replies_are_read(
    tmp_path: Path, count: int, command: bytes, answer: Any
) -> None:
    async with serving(tmp_path) as node:
        client, other = await connect(node, receive_bytes=SMALL_WINDOW), await connect(node)
        assert await client.ask(set_(b"k", b"v" * 100)) == b"OK"
        await client.send(command * count)
        assert await other.ask(PING) == b"PONG"  # Others are served meanwhile.
        assert await client.replies(count) == [answer] * count
        assert await client.ask(PING) == b"PONG"
        connection = node.connection(0)
        assert not connection.unparsed
        assert connection.events == READ


async def test_a_pipeline_has_its_share_of_a_tick(tmp_path: Path) -> None:
    async with serving(tmp_path, {"client.commands_per_tick_max": 100}) as node:
        client = await connect(node)
        ticks, commands = node.front.ticks_total, node.runner.commands_total
        await client.send(PING * 5000)
        assert await client.replies(5000) == [b"PONG"] * 5000
        assert node.runner.commands_total - commands == 5000
        assert node.front.ticks_total - ticks >= 50


async def test_sessions_with_commands_left_over_take_turns(tmp_path: Path) -> None:
    """A tick has little time for them: here each takes more than all of it."""
    async with serving(tmp_path, {"client.commands_per_tick_max": 10}) as node:
        served: list[tuple[int, int]] = []
        serve_queue = node.runner.serve_queue

        def slowly(session: Session, now_ms: int) -> None:
            served.append((node.front.ticks_total, session.id))
            serve_queue(session, now_ms)
            node.later(0.003)

        node.runner.serve_queue = slowly  # type: ignore[method-assign]
        clients = [await connect(node) for _ in range(5)]
        for client in clients:
            await client.send(PING * 1000)
        for client in clients:
            assert await client.replies(1000) == [b"PONG"] * 1000
        ticks, numbers = zip(*served, strict=True)
        assert len(set(ticks)) == len(ticks) >= 500
        begin = max(numbers.index(number) for number in set(numbers))
        end = min(len(numbers) - numbers[::-1].index(number) for number in set(numbers))
        assert end - begin > 50
        for at in range(begin, end - 5):
            assert len(set(numbers[at : at + 5])) == 5


async def test_one_client_has_its_share_of_what_a_tick_sends(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        client = await connect(node)
        assert await client.ask(set_(b"k", b"v" * 9 * MIB)) == b"OK"
        sent = []
        tick = node.front.tick

        def watched(events: list[tuple[int, int]]) -> None:
            before = node.front.output.bytes_out
            tick(events)
            sent.append(node.front.output.bytes_out - before)

        node.front.tick = watched  # type: ignore[method-assign]
        await client.send(get(b"k"))
        assert len(await client.reply()) == 9 * MIB
        assert max(sent) <= SEND_BYTES_PER_TICK


async def test_what_comes_while_a_command_waits(tmp_path: Path) -> None:
    """More than the node takes in advance: it stops reading, and goes on when the wait is over."""
    async with serving(tmp_path) as node, trio.open_nursery() as nursery:
        client, other = await connect(node), await connect(node)
        await client.send(encode(b"WAIT", b"1", b"0"))
        await until(lambda: node.runner.long_way.waiting)
        connection = node.connection(0)
        count = (UNPARSED_BYTES_MAX + 8 * MIB) // (64 * KIB)
        nursery.start_soon(client.send, encode(b"ECHO", b"e" * (64 * KIB - 30)) * count)
        await until(lambda: not connection.events & READ)
        assert UNPARSED_BYTES_MAX < len(connection.unparsed) <= UNPARSED_BYTES_MAX + 2 * READ_BYTES
        number = node.connection(0).session.id
        assert await other.ask(encode(b"CLIENT", b"UNBLOCK", b"%d" % number)) == 1
        assert await client.reply() == 0
        for _ in range(count):
            assert len(await client.reply()) == 64 * KIB - 30
        assert connection.events == READ
        assert await client.ask(PING) == b"PONG"


async def test_many_short_waits_do_not_add_up(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        client = await connect(node)
        big = encode(b"ECHO", b"e" * 500 * KIB)
        for _ in range(2 * UNPARSED_BYTES_MAX // len(big)):
            await client.send(encode(b"WAIT", b"1", b"1") + big)
            assert await client.reply() == 0
            assert len(await client.reply()) == 500 * KIB


# Clients that do not read


async def test_a_client_that_reads_nothing_is_held_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        other = await connect(node)
        assert await other.ask(set_(b"k", b"v" * MIB)) == b"OK"
        client = await connect(node, receive_bytes=SMALL_WINDOW)
        connection = node.connection(1)
        await client.send(get(b"k") * 256)
        await until(lambda: connection.unsent)
        await trio.sleep(0.1)
        session = connection.session
        soft = node.config.client.output_buffer_soft_bytes
        assert soft < session.unsent_bytes < soft + 3 * MIB
        executed = node.runner.commands_total
        assert await other.ask(PING) == b"PONG"
        assert node.runner.commands_total == executed + 1
        for _ in range(256):  # It reads after all.
            assert len(await client.reply()) == MIB
        assert session.unsent_bytes == 0
        assert await client.ask(PING) == b"PONG"


async def test_a_client_that_reads_nothing_for_long_is_closed(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        client = await connect(node, receive_bytes=SMALL_WINDOW)
        await client.send(set_(b"k", b"v" * MIB) + get(b"k") * 64)
        connection = node.connection()
        await until(lambda: connection.unsent and connection.session.queue)
        await trio.sleep(0.05)
        node.later(node.config.client.output_buffer_soft_s - 1)
        node.front.check_clients()
        assert connection.fd in node.front.connections
        node.later(2)
        node.front.check_clients()
        assert not node.front.connections
        assert len(await client.rest()) < 64 * MIB


async def test_a_client_that_reads_slowly_is_not_closed(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        client = await connect(node, receive_bytes=SMALL_WINDOW)
        await client.send(set_(b"k", b"v" * MIB) + get(b"k") * 16)
        assert await client.reply() == b"OK"
        for _ in range(16):
            node.later(node.config.client.output_buffer_soft_s - 1)
            assert len(await client.reply()) == MIB
            await trio.sleep(0.01)
            node.front.check_clients()


async def test_output_beyond_the_hard_limit(tmp_path: Path) -> None:
    """A monitor asks for nothing, so it cannot be held back."""
    async with serving(tmp_path, {"client.output_buffer_bytes_max": 2 * MIB}) as node:
        monitor, other = await connect(node, receive_bytes=SMALL_WINDOW), await connect(node)
        assert await monitor.ask(encode(b"MONITOR")) == b"OK"
        connection = node.connection()
        for _ in range(100):
            assert len(await other.ask(encode(b"ECHO", b"e" * 500 * KIB))) == 500 * KIB
            if connection.fd not in node.front.connections:
                break
        assert connection.fd not in node.front.connections
        assert not node.monitors
        assert await other.ask(PING) == b"PONG"


async def test_one_reply_may_be_larger_than_the_hard_limit(tmp_path: Path) -> None:
    async with serving(tmp_path, {"client.output_buffer_bytes_max": 16 * KIB}) as node:
        client = await connect(node, receive_bytes=SMALL_WINDOW)
        assert await client.ask(set_(b"k", b"v" * 9 * MIB)) == b"OK"
        await client.send(get(b"k") + PING)
        await until(lambda: node.connection().unsent)
        assert len(await client.reply()) == 9 * MIB
        assert await client.reply() == b"PONG"
        await client.send(encode(b"MGET", b"k", b"k"))
        await trio.sleep(0.05)
        assert [len(value) for value in await client.reply()] == [9 * MIB] * 2


async def test_pipelined_bytes_are_not_parsed_before_their_time(tmp_path: Path) -> None:
    """A parsed PING takes twenty times the memory of its bytes."""
    async with serving(tmp_path) as node:
        client = await connect(node, receive_bytes=SMALL_WINDOW)
        await client.send(set_(b"k", b"v" * 8 * MIB) + get(b"k") + b"PING\n" * 400_000)
        connection = node.connection()
        await until(lambda: len(connection.unparsed) > MIB)
        assert len(connection.session.queue) * len(b"PING\n") <= 2 * READ_BYTES
        assert await client.reply() == b"OK"
        assert len(await client.reply()) == 8 * MIB
        assert set(await client.replies(400_000)) == {b"PONG"}


# Large values


@pytest.mark.parametrize("size_mib", [1, 8, 64])
async def test_large_values(tmp_path: Path, size_mib: int) -> None:
    async with serving(tmp_path) as node:
        client = await connect(node)
        block = os.urandom(MIB)
        value = b"".join(bytes([n]) + block[1:] for n in range(size_mib))
        assert await client.ask(set_(b"k", value)) == b"OK"
        await client.send(PING + get(b"k") + PING)
        assert await client.reply() == b"PONG"
        assert await client.reply() == value
        assert await client.reply() == b"PONG"
        await client.send(encode(b"MULTI") + get(b"k") + encode(b"EXEC"))
        assert (await client.replies(3))[2] == [value]
        assert not node.connection().session.has_large_reply


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pubsub.keyspace_events": "KEAn"},
        {"slowlog.threshold_us": 0},
        {"slowlog.threshold_us": 0, "client.commands_per_tick_max": 1},
    ],
)
async def test_large_values_by_all_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """A large value that only SET wants is put where it lies; whoever else wants it must find bytes."""
    value = os.urandom(MIB + 1)
    keys = [b"k%d" % number for number in range(12)]
    in_place: list[int] = []

    class Watched(LargeBulk):
        def __radd__(self, head: bytes) -> bytes:
            in_place.append(len(self))
            return super().__radd__(head)

    monkeypatch.setattr("respkv.parser.LargeBulk", Watched)
    async with serving(tmp_path, settings) as node:
        client, other = await connect(node), await connect(node)
        for key in keys:
            assert await client.ask(set_(key, b"")) == b"OK"
        assert await client.ask(encode(b"DEL", keys[2], keys[5])) == 2
        listener = await connect(node)
        await listener.send(encode(b"PSUBSCRIBE", b"*"))
        assert (await listener.reply())[0] == b"psubscribe"
        node.evict()
        assert await client.ask(set_(keys[0], value)) == b"OK"
        assert await client.ask(encode(b"set", keys[1], value)) == b"OK"
        assert await client.ask(encode(b"SETNX", keys[2], value)) == 1
        assert await client.ask(encode(b"SET", keys[3], value, b"EX", b"100")) == b"OK"
        assert await client.ask(encode(b"SETEX", keys[4], b"100", value)) == b"OK"
        assert await client.ask(encode(b"GETSET", keys[0], value)) == value
        assert await client.ask(encode(b"APPEND", keys[5], value)) == len(value)
        assert await client.ask(encode(b"MSET", keys[6], value, keys[7], value)) == b"OK"
        assert (await client.ask(encode(b"ZET", b"k", bytes(MIB)))).startswith(
            b"-ERR unknown command"
        )
        await client.send(encode(b"MULTI") + set_(keys[8], value) + encode(b"EXEC"))
        assert await client.replies(3) == [b"OK", b"QUEUED", [b"OK"]]
        await client.send(set_(keys[9], value) * 2 + PING + set_(keys[9], value))
        assert await client.replies(4) == [b"OK", b"OK", b"PONG", b"OK"]
        await client.send(encode(b"DEBUG", b"SLEEP", b"0.05") + set_(keys[10], value))
        assert await client.replies(2) == [b"OK", b"OK"]
        assert await other.ask(encode(b"MONITOR")) == b"OK"
        assert await client.ask(set_(keys[11], value)) == b"OK"
        assert (await other.reply()).startswith(b"1")
        for key in keys:
            assert await client.ask(get(key)) == value
        assert len(in_place) == (0 if "pubsub.keyspace_events" in settings else 5)
        shown = [entry[3] for entry in await client.ask(encode(b"SLOWLOG", b"GET", b"99"))]
        large = [b"SET", keys[0], value[:128] + b"... (%d more bytes)" % (len(value) - 128)]
        assert (large in shown) == ("slowlog.threshold_us" in settings)
        node.evict()
        node.disk.is_cold = False
        for key in keys:
            assert await client.ask(get(key)) == value


async def test_small_and_large_replies_keep_their_order(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        client = await connect(node, receive_bytes=SMALL_WINDOW)
        sizes = [0, 1, 1023, 1024, LARGE_REPLY_BYTES - 1, LARGE_REPLY_BYTES, 3 * LARGE_REPLY_BYTES]
        values = {b"%d" % size: bytes([65 + at]) * size for at, size in enumerate(sizes)}
        for key, value in values.items():
            assert await client.ask(set_(key, value)) == b"OK"
        keys = [list(values)[at * at % 7] for at in range(500)]
        await client.send(b"".join(map(get, keys)))
        assert await client.replies(500) == [values[key] for key in keys]


def test_gathered_pieces() -> None:
    large = b"x" * LARGE_REPLY_BYTES
    assert [bytes(p) for p in _gathered([b"a", b"b", large, b"c"])] == [b"ab", large, b"c"]
    assert [bytes(p) for p in _gathered([large, large])] == [large, large]
    assert _gathered([]) == []


# fsync always: nothing leaves that is not durable


ALWAYS = {"log.fsync": "always"}


async def test_replies_wait_for_the_disk(tmp_path: Path) -> None:
    async with serving(tmp_path, ALWAYS) as node:
        one, two = await connect(node), await connect(node)
        assert await one.ask(set_(b"k", b"v")) == b"OK"
        node.disk.may_sync.clear()
        await one.send(set_(b"k", b"w") + get(b"k"))
        await two.send(get(b"k"))  # It may see the new value, so it waits as well.
        await one.send(PING)
        assert await one.hears_nothing()
        assert await two.hears_nothing()
        node.disk.may_sync.set()
        assert await one.replies(3) == [b"OK", b"w", b"PONG"]
        assert await two.reply() == b"w"


async def test_replies_keep_their_order_while_syncs_are_slow(tmp_path: Path) -> None:
    async with serving(tmp_path, ALWAYS) as node:
        client = await connect(node)
        numbers = []
        for batch in range(20):
            node.disk.may_sync.clear()
            for _ in range(5):
                await client.send(encode(b"INCR", b"n") * 3 + PING)
                await trio.sleep(0.001)
            node.disk.may_sync.set()
            if batch % 3 == 0:
                await trio.sleep(0.002)
            numbers += [reply for reply in await client.replies(20) if reply != b"PONG"]
        assert numbers == list(range(1, 301))


async def test_a_reply_does_not_overtake_one_that_was_held(tmp_path: Path) -> None:
    """The disk is done, and what waited for it has not left yet."""
    async with serving(tmp_path, ALWAYS) as node:
        client = await connect(node)
        release = node.front.release
        node.front.release = lambda position: None  # type: ignore[method-assign]
        await client.send(set_(b"k", b"v"))
        log = node.store.log
        await until(lambda: node.front.held.batches and log.synced == log.position)
        await client.send(PING)
        assert await client.hears_nothing()
        node.front.release = release  # type: ignore[method-assign]
        release(log.synced)
        assert await client.replies(2) == [b"OK", b"PONG"]


async def test_held_replies_are_bounded(tmp_path: Path) -> None:
    async with serving(tmp_path, ALWAYS) as node:
        client, writer = await connect(node), await connect(node)
        assert await client.ask(set_(b"k", b"v" * MIB)) == b"OK"
        node.disk.may_sync.clear()
        await writer.send(set_(b"l", b"w"))
        await until(lambda: node.store.log.position > node.store.log.synced)
        connection = node.connection()
        for at in range(20):  # One by one, so that none waits for another.
            await client.send(get(b"k"))
            await until(lambda at=at: connection.held > at or not connection.events & READ)
        assert 0 < connection.held_bytes < 4 * MIB
        node.disk.may_sync.set()
        for _ in range(20):
            assert len(await client.reply()) == MIB
        assert connection.held_bytes == connection.held == 0
        assert connection.events == READ
        assert await client.ask(PING) == b"PONG"


async def test_quit_waits_for_the_disk_too(tmp_path: Path) -> None:
    async with serving(tmp_path, ALWAYS) as node:
        client, silent = await connect(node), await connect(node)
        node.disk.may_sync.clear()
        await client.send(set_(b"k", b"v") + encode(b"QUIT") + set_(b"k", b"w"))
        await silent.send(encode(b"CLIENT", b"REPLY", b"OFF") + encode(b"QUIT"))
        assert await client.hears_nothing()
        node.disk.may_sync.set()
        assert await client.rest() == b"+OK\r\n+OK\r\n"
        assert await silent.rest() == b""


# The end of a connection


async def test_a_client_that_has_shut_down_its_side_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        for count in (1, 20_000):
            client = await connect(node, receive_bytes=SMALL_WINDOW)
            await client.send(encode(b"INCR", b"n%d" % count) * count)
            client.sock.shutdown(socket.SHUT_WR)
            assert (await client.rest()).endswith(b":%d\r\n" % count)
        silent = await connect(node)
        silent.sock.shutdown(socket.SHUT_WR)
        assert await silent.rest() == b""
        await until(lambda: not node.front.connections)


async def test_a_client_that_shuts_down_while_its_command_runs(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        client, other = await connect(node), await connect(node)
        await client.send(b"".join(set_(b"k%d" % n, b"v") for n in range(5000)))
        assert await client.replies(5000) == [b"OK"] * 5000
        await client.send(encode(b"KEYS", b"*") + get(b"k1"))
        client.sock.shutdown(socket.SHUT_WR)
        assert (await client.rest()).endswith(b"$1\r\nv\r\n")
        await other.send(encode(b"WAIT", b"1", b"0") + set_(b"after", b"v"))
        await until(lambda: node.runner.long_way.waiting)
        other.sock.shutdown(socket.SHUT_WR)  # Nobody may ever answer that: it is closed at once.
        assert await other.rest() == b""
        assert not node.runner.long_way.waiting


async def test_half_of_a_command_then_the_end(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        for half in (
            b"*2\r\n$3\r\nGET\r\n",
            b"GET k",
            b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$100000\r\nabc",
        ):
            client = await connect(node)
            await client.send(PING + half)
            client.sock.shutdown(socket.SHUT_WR)
            assert await client.rest() == b"+PONG\r\n"


async def test_clients_that_vanish(tmp_path: Path) -> None:
    """With half a command, with replies unread, with a command that waits, with bytes put aside."""
    async with serving(tmp_path) as node:
        first = await connect(node)
        assert await first.ask(set_(b"k", b"v" * MIB)) == b"OK"
        for data in (
            b"*2\r\n$3\r\nGE",
            get(b"k") * 64,
            encode(b"WAIT", b"1", b"0"),
            encode(b"WAIT", b"1", b"0") + PING * 100,
            encode(b"MULTI") + get(b"k"),
            encode(b"CLIENT", b"TRACKING", b"ON") + get(b"k"),
            encode(b"MONITOR"),
            b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5000000\r\n" + bytes(MIB),
        ):
            client = await connect(node, receive_bytes=SMALL_WINDOW)
            await client.send(data)
            await trio.sleep(0.02)
            # With a reset, not with an orderly end.
            linger = (1).to_bytes(4, "little") + bytes(4)
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.close()
            await until(lambda: len(node.front.connections) == 1)
        assert node.runner.long_way.waiting == {}
        assert not node.monitors
        assert not node.front._backlog
        assert await first.ask(PING) == b"PONG"


async def test_quit_ends_what_follows(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        client = await connect(node)
        await client.send(set_(b"k", b"v") + encode(b"QUIT") + set_(b"k", b"w") + b"*1\r\nbroken")
        assert await client.rest() == b"+OK\r\n+OK\r\n"
        silent = await connect(node)
        await silent.send(encode(b"CLIENT", b"REPLY", b"OFF") + get(b"k") + encode(b"QUIT"))
        assert await silent.rest() == b""
        other = await connect(node)
        assert await other.ask(get(b"k")) == b"v"


async def test_quit_behind_replies_that_are_not_read(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        client = await connect(node, receive_bytes=SMALL_WINDOW)
        await client.send(set_(b"k", b"v" * 8 * MIB) + get(b"k") + encode(b"QUIT") + PING * 1000)
        connection = node.connection()
        await until(lambda: connection.unsent)
        for _ in range(20):
            await trio.sleep(0.001)
            await client.send(PING)
        ticks = node.front.ticks_total
        await trio.sleep(0.1)
        assert node.front.ticks_total < ticks + 50  # It does not spin.
        assert (await client.rest()).endswith(b"v\r\n+OK\r\n")
        # One that never reads is closed in the end.
        client = await connect(node, receive_bytes=SMALL_WINDOW)
        await client.send(get(b"k") + encode(b"QUIT"))
        await until(lambda: node.connection().unsent)
        await trio.sleep(0.05)
        node.config.client.output_buffer_soft_bytes = 64 * MIB
        node.later(node.config.client.output_buffer_soft_s + 1)
        node.front.check_clients()
        assert not node.front.connections


async def test_killed_by_another(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        one, two = await connect(node), await connect(node)
        number = node.connection(0).session.id
        await one.send(encode(b"WAIT", b"1", b"0") + PING)
        await until(lambda: node.runner.long_way.waiting)
        assert await two.ask(encode(b"CLIENT", b"KILL", b"ID", b"%d" % number)) == 1
        assert await one.rest() == b""
        own = node.connection(0).session.id
        await two.send(
            encode(b"CLIENT", b"KILL", b"ID", b"%d" % own, b"SKIPME", b"no") + set_(b"k", b"v")
        )
        assert await two.rest() == b":1\r\n"
        three = await connect(node)
        assert await three.ask(get(b"k")) is None


# Pages from the disk


async def test_pages_are_fetched_by_threads(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        one, two = await connect(node), await connect(node)
        await one.send(b"".join(set_(b"k%d" % n, b"v%d" % n) for n in range(3000)))
        await one.replies(3000)
        node.evict()
        keys = [b"k%d" % (n * 7 % 3000) for n in range(150)]
        await one.send(b"".join(get(key) + PING for key in keys))
        await two.send(encode(b"KEYS", b"*") + encode(b"DBSIZE"))
        expected: list[Any] = []
        for key in keys:
            expected += [b"v" + key[1:], b"PONG"]
        assert await one.replies(300) == expected
        assert len(await two.reply()) == 3000
        assert await two.reply() == 3000
        assert node.store.stats.faults > 10


async def test_the_end_of_input_while_a_page_is_fetched(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        client = await connect(node)
        assert await client.ask(set_(b"k", b"v")) == b"OK"
        node.evict()
        held: list[tuple[PageFault, Pins | None, Resume]] = []
        fetch = node.fetch
        node.fetch = lambda *fault: held.append(fault)  # type: ignore[method-assign]
        await client.send(get(b"k") + PING + b"*1\r\nbroken\r\n")
        await until(lambda: held)
        client.sock.shutdown(socket.SHUT_WR)
        await until(lambda: node.connection().has_ended)
        assert await client.hears_nothing()
        for fault in held:
            fetch(*fault)
        assert await client.rest() == (
            b"$1\r\nv\r\n+PONG\r\n-ERR Protocol error: expected '$', got 'b'\r\n"
        )


# Stopping


async def test_a_stop_finishes_what_is_under_way(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        one, two = await connect(node, receive_bytes=SMALL_WINDOW), await connect(node)
        assert await one.ask(set_(b"k", b"v" * MIB)) == b"OK"
        await one.send(get(b"k") * 8)
        await two.send(encode(b"INCR", b"n") * 20_000)
        numbers = [await two.reply()]
        connection = node.connection(0)
        await until(lambda: connection.unsent)
        node.stop()
        await until(lambda: node.front._is_stopping)
        with pytest.raises(OSError, match="refused"):
            await connect(node)
        for _ in range(8):
            assert len(await one.reply()) == MIB
        with contextlib.suppress(EOFError):
            while True:
                numbers.append(await two.reply())
        # What was received has been carried out and answered.
        assert numbers == list(range(1, len(numbers) + 1))
        assert node.context.string(b"n") == b"%d" % len(numbers)
        assert await one.rest() == b""


async def test_a_stop_with_replies_that_wait_for_the_disk(tmp_path: Path) -> None:
    async with serving(tmp_path, ALWAYS) as node:
        client = await connect(node)
        node.disk.may_sync.clear()
        await client.send(set_(b"k", b"v"))
        await until(lambda: node.front.held.batches)
        node.stop()
        await until(lambda: node.front._is_stopping)
        await client.send(set_(b"k", b"late"))
        assert await client.hears_nothing()
        node.disk.may_sync.set()
        assert await client.rest() == b"+OK\r\n"
        assert node.context.string(b"k") == b"v"


async def test_a_stop_carries_out_what_was_received(tmp_path: Path) -> None:
    async with serving(tmp_path, {"client.commands_per_tick_max": 10}) as node:
        client = await connect(node)
        await client.send(encode(b"INCR", b"n") * 5000)
        connection = node.connection()
        await until(lambda: connection.session.queue)
        node.stop()
        done = int(node.context.string(b"n") or b"0")
        asked = done + len(connection.session.queue)
        assert done < asked
        assert (await client.rest()).count(b"\r\n") >= asked


async def test_a_stop_waits_no_longer_than_its_grace_period(tmp_path: Path) -> None:
    async with serving(tmp_path, {"client.shutdown_grace_s": 0.2}) as node:
        client = await connect(node, receive_bytes=SMALL_WINDOW)
        await client.send(set_(b"k", b"v" * 8 * MIB) + get(b"k"))
        blocked = await connect(node)
        await blocked.send(encode(b"WAIT", b"1", b"0"))
        await until(lambda: node.connection(0).unsent)
        node.stop()
        with trio.fail_after(5):
            assert await blocked.rest() == b""
            assert len(await client.rest()) < 8 * MIB


# Small things


async def test_counters(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        client = await connect(node)
        assert await client.ask(PING) == b"PONG"
        front = node.front
        assert (front.bytes_in, front.output.bytes_out) == (len(PING), len(b"+PONG\r\n"))
        assert front.clients.connections_total == 1
        assert not node.connection().session.mode & (WAITING | CLOSING)


__all__ = ["Client"]
