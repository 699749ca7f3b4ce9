"""Buses with real sockets. Run as a program, this prints what a message costs.

.venv/bin/python -m tests.respkv.test_bus
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise, permutations
from pathlib import Path

import pytest
import trio

from bench.ports import free_port
from cluster.gossip_message import Terms, VersionRange
from cluster.handshake import SecretRequired
from cluster.topology import NodeInfo
from respkv.bus import is_loopback, make_bus
from respkv.bus_tls import TlsSettings
from respkv.bus_wire import encode
from respkv.poller import READ
from tests.respkv.bus_harness import (
    SECRET,
    TERMS,
    Loop,
    Member,
    Stranger,
    Told,
    buses,
    certify,
    files,
    quick,
    running,
    until,
)
from tests.respkv.serving import serving

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="certificates are made by the openssl program"
)


# Links


async def test_three_nodes_find_each_other_and_talk_in_both_directions() -> None:
    async with buses("a", "b", "c") as members:
        for member, other in permutations(members, 2):
            await until(partial(member.bus.is_connected, other.name))
        for member, other in permutations(members, 2):
            member.bus.send(other.name, [b"HI", member.name.encode(), b"\r\n\x00*99999"])
        await until(lambda: all(len(member.told.messages) == 2 for member in members))
        for member in members:
            others = {other.name for other in members if other is not member}
            assert dict(member.told.messages) == {
                name: [b"HI", name.encode(), b"\r\n\x00*99999"] for name in others
            }
            assert set(member.told.events) == {("connected", name) for name in others}


async def test_order_is_kept_over_ten_thousand_messages_in_batches() -> None:
    rng = random.Random(5)
    async with buses("a", "b") as (a, b):
        await until(lambda: a.bus.is_connected("b") and b.bus.is_connected("a"))
        sent: list[tuple[str, list[bytes]]] = []
        while len(sent) < 10_000:
            for _ in range(rng.randrange(1, 200)):
                message = [b"WRITE", b"%d" % len(sent), rng.randbytes(rng.randrange(300))]
                a.bus.send("b", message)
                sent.append(("a", message))
            if rng.random() < 0.5:
                await trio.lowlevel.checkpoint()
        await until(lambda: len(b.told.messages) >= len(sent))
        assert b.told.messages == sent


async def test_urgent_verbs_go_first_and_each_kind_keeps_its_order() -> None:
    async with buses("a", "b") as (a, b):
        await until(lambda: a.bus.is_connected("b") and b.bus.is_connected("a"))
        for number, verb in enumerate((b"WRITE", b"ACK", b"READ", b"ACK", b"WRITE")):
            a.bus.send("b", [verb, b"%d" % number])
        await until(lambda: len(b.told.messages) == 5)
        assert [message[1] for _, message in b.told.messages] == [b"1", b"3", b"0", b"2", b"4"]


async def test_nothing_leaves_before_the_tick_ends() -> None:
    loop = Loop()
    a, b = Member("a", loop), Member("b", loop)
    a.bus.set_peers({"b": b.address})
    b.bus.set_peers({"a": a.address})
    async with running(loop, a, b):
        await until(lambda: a.bus.is_connected("b") and b.bus.is_connected("a"))
        loop.buses.clear()  # So that nobody flushes.
        a.bus.send("b", [b"WRITE", b"1"])
        queued = a.bus.queued_bytes("b")
        assert queued == len(encode([b"WRITE", b"1"]))
        await trio.sleep(0.05)
        assert b.told.messages == []
        a.bus.flush()
        await until(lambda: len(b.told.messages) == 1)
        assert a.bus.queued_bytes("b") == 0


async def test_a_tuple_for_several_peers_is_encoded_once_and_a_list_each_time() -> None:
    async with buses("a", "b", "c") as (a, b, c):
        await until(lambda: a.bus.is_connected("b") and a.bus.is_connected("c"))
        same = (b"WRITE", b"1")
        changing = [b"READ", b"1"]
        for member in (b, c):
            a.bus.send(member.name, same)
        for member in (b, c):
            a.bus.send(member.name, changing)
            changing[1] = b"2"
        await until(lambda: len(b.told.messages) == len(c.told.messages) == 2)
        assert [message for _, message in b.told.messages] == [list(same), [b"READ", b"1"]]
        assert [message for _, message in c.told.messages] == [list(same), [b"READ", b"2"]]


async def test_what_has_no_connection_is_dropped() -> None:
    async with buses("a") as (a,):
        a.bus.send("b", [b"WRITE"])
        assert not a.bus.send_bulk("b", [b"ROWS"])
        assert not a.bus.is_connected("b")
        assert a.bus.queued_bytes("b") == 0


async def test_a_message_over_the_limit_is_dropped_and_told_and_the_link_stays() -> None:
    async with buses("a", "b", limits=quick(frame_bytes_max=1000)) as (a, b):
        await until(lambda: a.bus.is_connected("b") and b.bus.is_connected("a"))
        a.bus.send("b", [b"WRITE", bytes(1001)])
        a.bus.send("b", [b"WRITE", bytes(900)])
        await until(lambda: bool(b.told.messages))
        assert b.told.messages == [("a", [b"WRITE", bytes(900)])]
        assert [event for event, _ in a.told.lines if "too large" in event]


async def test_bulk_is_refused_while_the_peer_has_not_taken_it_and_sends_pass_it() -> None:
    async with buses("b", "c") as (b, c):
        await until(lambda: b.bus.is_connected("c") and b.bus.send_bulk("c", [b"ROWS", b"first"]))
        await until(lambda: c.told.messages == [("b", [b"ROWS", b"first"])])
        large = bytes(8 << 20)
        taken = 0
        while b.bus.send_bulk("c", [b"ROWS", large]):
            taken += 1
        assert taken == 1  # It is more than may be queued, and was let through alone.
        b.bus.flush()
        assert not b.bus.send_bulk("c", [b"ROWS", b"x"])  # The kernel did not take all of it.
        b.bus.send("c", [b"WRITE"])
        await until(lambda: len(c.told.messages) == 3)
        assert [message[0] for _, message in c.told.messages] == [b"ROWS", b"WRITE", b"ROWS"]
        await until(lambda: b.bus.send_bulk("c", [b"ROWS", b"last"]))
        await until(lambda: len(c.told.messages) == 4)
        assert c.told.messages[2][1][1] == large


async def test_the_smaller_name_dials_and_the_other_never_does() -> None:
    loop = Loop()
    b = Member("b", loop)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        b.bus.set_peers({"a": server.getsockname()})
        async with running(loop, b):
            with pytest.raises(TimeoutError):
                await trio.to_thread.run_sync(server.accept)


async def test_one_who_must_not_dial_is_refused() -> None:
    async with buses("a", "b") as (a, _):
        stranger = Stranger.dial(a)
        with pytest.raises(Exception, match="b must not dial"):
            await stranger.shake("b")
        stranger.close()


async def test_one_who_is_no_member_is_refused_before_it_is_let_in() -> None:
    async with buses("b") as (b,):
        stranger = Stranger.dial(b)
        with pytest.raises(Exception, match="a is not in this node's list"):
            await stranger.shake("a")
        assert b.told.events == []
        stranger.close()


@pytest.mark.parametrize(
    "last",
    [[b"BUS.LANE", b"express"], [b"BUS.LANE"], [b"BUS.LANE", b"send", b""], [b"WRITE", b"send"]],
)
async def test_a_lane_that_nobody_knows_is_refused(last: list[bytes]) -> None:
    loop = Loop()
    b = Member("b", loop, peers={"a": ("127.0.0.1", 1)})
    async with running(loop, b):
        stranger = Stranger.dial(b)
        await stranger.shake("a", *last)
        assert b"the lane of the link was due" in await stranger.ends()
        assert b.told.events == []
        stranger.close()


async def test_a_second_link_replaces_the_first() -> None:
    loop = Loop()
    b = Member("b", loop, peers={"a": ("127.0.0.1", 1)})
    async with running(loop, b):
        first = Stranger.dial(b)
        await first.shake("a")
        await until(lambda: b.bus.is_connected("a"))
        second = Stranger.dial(b)
        await second.shake("a")
        assert await first.ends() == b""
        b.bus.send("a", [b"HI"])
        assert await second.next() == [b"HI"]
        assert b.told.events == [("connected", "a"), ("lost", "a"), ("connected", "a")]
        first.close()
        second.close()


async def test_nodes_that_are_gone_are_given_up() -> None:
    async with buses("a", "b") as (a, b):
        await until(lambda: a.bus.is_connected("b") and b.bus.is_connected("a"))
        a.bus.set_peers({})
        assert not a.bus.is_connected("b")  # At once, though it is told in the next tick.
        await until(lambda: a.told.events[-1] == ("lost", "b") == (b.told.events[-1][0], "b"))
        a.bus.set_peers({"b": b.address})
        await until(lambda: a.bus.is_connected("b") and b.bus.is_connected("a"))


# Refusals


async def test_a_wrong_secret_is_refused_and_told_once() -> None:
    secret = b"another secret of sixteen bytes"
    async with buses("a", "b", each={"b": {"secret": secret}}) as (a, b):
        await until(lambda: len(a.told.lines) > 0 and len(b.told.lines) > 0)
        await trio.sleep(0.4)  # Several more attempts.
        assert ("connected", "b") not in a.told.events
        assert b.told.events == []
        assert len(a.told.reasons("a node cannot be reached")) == 1
        assert len(b.told.reasons("a connection was refused")) == 1
        assert "secret" in b.told.reasons("a connection was refused")[0]


async def test_a_wrong_cluster_is_refused_and_both_logs_say_why() -> None:
    terms = Terms("elsewhere", VersionRange(1, 1))
    async with buses("a", "b", each={"b": {"terms": terms}}) as (a, b):
        await until(lambda: len(a.told.lines) > 0 and len(b.told.lines) > 0)
        assert "elsewhere" in a.told.reasons("a node cannot be reached")[0]
        assert "example" in b.told.reasons("a connection was refused")[0]
        assert ("connected", "b") not in a.told.events


async def test_without_a_secret_only_loopback_is_served_and_dialled() -> None:
    loop = Loop()
    a = Member("a", loop, secret=None, peers={"b": ("192.0.2.1", 1)})
    with pytest.raises(SecretRequired, match=r"0\.0\.0\.0"):
        a.bus.listen("0.0.0.0", 0)
    async with running(loop, a):
        await until(lambda: bool(a.told.lines))
        assert "secret" in a.told.reasons("a node cannot be reached")[0]
        assert loop.count == 1  # The listener: no socket was made.
    async with buses("a", "b", secret=None) as (a, b):
        await until(lambda: a.bus.is_connected("b") and b.bus.is_connected("a"))


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("::ffff:10.0.0.1", False), ("localhost", False),
        ("127.0.0.1.example.com", False), ("fe80::1%lo", False),
    ],
)  # fmt: skip
def test_what_is_loopback(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"\x16\x03\x01\x02\x00",
        b"*99999999\r\n",
        b"*2\r\n$99999999\r\n",
        b"*9\r\n" + b"$4096\r\n" + bytes(4096) + b"\r\n$4096\r\n" + bytes(4096) + b"\r\n" + b"$4096\r\n" + bytes(4096),
    ],
)  # fmt: skip
async def test_garbage_ends_a_connection_and_nothing_else(garbage: bytes) -> None:
    async with buses("a", "b") as (a, b):
        await until(lambda: a.bus.is_connected("b") and b.bus.is_connected("a"))
        for _ in range(3):
            stranger = Stranger.dial(b)
            stranger.sock.sendall(garbage)
            await stranger.ends()
            stranger.close()
        assert len(b.told.reasons("a connection was refused")) == 1
        assert b.told.events == [("connected", "a")]


async def test_an_oversized_message_of_a_peer_ends_its_link() -> None:
    loop = Loop()
    b = Member("b", loop, peers={"a": ("127.0.0.1", 1)}, limits=quick(frame_bytes_max=100_000))
    async with running(loop, b):
        stranger = Stranger.dial(b)
        await stranger.shake("a")
        stranger.send([b"WRITE", bytes(99_000)])
        await until(lambda: len(b.told.messages) == 1)
        stranger.sock.sendall(b"*2\r\n$5\r\nWRITE\r\n$100001\r\n")
        await stranger.ends()
        assert b.told.events == [("connected", "a"), ("lost", "a")]
        assert "over the limit" in b.told.reasons("node disconnected")[0]
        stranger.close()


async def test_connections_that_prove_nothing_are_few_and_short() -> None:
    loop = Loop()
    b = Member("b", loop, limits=quick(accepted_max=4, handshake_s=0.3))
    async with running(loop, b):
        strangers = [Stranger.dial(b) for _ in range(10)]
        await until(lambda: loop.count == 5)
        started_s = time.monotonic()
        await until(lambda: loop.count == 1)
        assert time.monotonic() - started_s < 2
        for stranger in strangers:
            await stranger.ends()
            stranger.close()


# Failures


async def test_a_refused_dial_is_told_at_once_and_once() -> None:
    loop = Loop()
    a = Member("a", loop, peers={"b": ("127.0.0.1", free_port())})
    async with running(loop, a):
        await until(lambda: bool(a.told.events))
        assert a.told.events == [("refused", "b")]
        await trio.sleep(0.3)
        assert a.told.events == [("refused", "b")]
        assert len(a.told.lines) == 1


async def test_pauses_between_dials_grow() -> None:
    loop = Loop()
    a = Member("a", loop, limits=quick(backoff_min_s=0.02, backoff_max_s=10))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.7)
        times_s: list[float] = []

        def serve() -> None:
            try:
                while True:
                    server.accept()[0].close()
                    times_s.append(time.monotonic())
            except TimeoutError:
                pass

        a.bus.set_peers({"b": server.getsockname()})
        async with running(loop, a):
            await trio.to_thread.run_sync(serve)
    pauses = [later - earlier for earlier, later in pairwise(times_s)]
    assert 4 <= len(times_s) <= 9
    assert pauses[-1] > 4 * pauses[0]


async def test_one_that_accepts_and_says_nothing_is_given_up() -> None:
    loop = Loop()
    a = Member("a", loop, limits=quick(handshake_s=0.2))
    with socket.create_server(("127.0.0.1", 0)) as server:
        a.bus.set_peers({"b": server.getsockname()})
        async with running(loop, a):
            await until(lambda: bool(a.told.events))
            assert a.told.events == [("lost", "b")]
            assert a.told.reasons("a node cannot be reached") == ["the handshake took too long"]


async def test_one_that_does_not_answer_the_dial_is_given_up() -> None:
    loop = Loop()
    a = Member("a", loop, limits=quick(connect_s=0.2))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:  # The queue of the listener is full then, and drops what comes.
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        await trio.sleep(0.1)
        a.bus.set_peers({"b": server.getsockname()})
        async with running(loop, a):
            await until(lambda: bool(a.told.events))
            assert a.told.events == [("lost", "b")]
            assert a.told.reasons("a node cannot be reached") == ["no answer"]
        for filler in fillers:
            filler.close()


async def test_a_peer_that_falls_silent_is_pinged_and_then_given_up() -> None:
    loop = Loop()
    limits = quick(ping_s=0.1, silence_s=0.5)
    b = Member("b", loop, peers={"a": ("127.0.0.1", 1)}, limits=limits)
    async with running(loop, b):
        stranger = Stranger.dial(b)
        await stranger.shake("a")
        assert await stranger.next() == [b"BUS.PING"]
        stranger.send([b"BUS.PONG"])
        assert await stranger.next() == [b"BUS.PING"]
        started_s = time.monotonic()
        assert await stranger.ends() == b""
        assert 0.2 < time.monotonic() - started_s < 2
        assert "silent for" in b.told.reasons("node disconnected")[0]
        assert b.told.messages == []
        stranger.close()


async def test_a_peer_that_takes_long_to_read_is_not_silent() -> None:
    loop = Loop()
    b = Member("b", loop, peers={"a": ("127.0.0.1", 1)}, limits=quick(ping_s=0.1, silence_s=0.3))
    async with running(loop, b):
        stranger = Stranger.dial(b)
        stranger.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        await stranger.shake("a")
        await until(lambda: b.bus.is_connected("a"))
        b.bus.send("a", [b"WRITE", bytes(30 << 20)])
        read_bytes = 0
        until_s = time.monotonic() + 1.2
        while time.monotonic() < until_s:
            await trio.sleep(0.01)
            read_bytes += len(stranger.sock.recv(100_000))
        assert read_bytes < 20 << 20
        assert b.bus.is_connected("a")
        stranger.close()


async def test_idle_nodes_stay_connected() -> None:
    async with buses("a", "b", limits=quick(ping_s=0.1, silence_s=0.4)) as (a, b):
        await until(lambda: a.bus.is_connected("b") and b.bus.is_connected("a"))
        await trio.sleep(1.2)
        assert a.told.events == [("connected", "b")]
        assert b.told.events == [("connected", "a")]


async def test_the_time_in_which_this_process_was_stopped_is_no_silence_of_others() -> None:
    async with buses("a", "b") as (a, b):
        await until(lambda: a.bus.is_connected("b") and b.bus.is_connected("a"))
        a.ahead_ns = 60_000_000_000
        await trio.sleep(0.3)
        assert a.told.events == [("connected", "b")]


async def test_a_peer_that_does_not_read_loses_its_link_and_memory_is_bounded() -> None:
    loop = Loop()
    b = Member("b", loop, peers={"a": ("127.0.0.1", 1)}, limits=quick(queue_bytes_max=1 << 20))
    async with running(loop, b):
        stranger = Stranger.dial(b)
        stranger.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await stranger.shake("a")
        await until(lambda: b.bus.is_connected("a"))
        message = [b"WRITE", bytes(100_000)]
        most = 0
        while b.bus.is_connected("a"):
            b.bus.send("a", message)
            b.bus.flush()
            most = max(most, b.bus.queued_bytes("a"))
        assert 900_000 < most < 1_300_000
        await until(lambda: ("lost", "a") in b.told.events)
        assert "does not read" in b.told.reasons("node disconnected")[0]
        stranger.close()


async def test_one_tick_cannot_queue_without_bound() -> None:
    async with buses("a", "b", limits=quick(queue_bytes_max=1 << 20)) as (a, b):
        await until(lambda: a.bus.is_connected("b") and b.bus.is_connected("a"))
        for _ in range(100):
            a.bus.send("b", [b"WRITE", bytes(100_000)])
        assert a.bus.queued_bytes("b") == 0
        await until(lambda: ("lost", "b") in a.told.events)
        assert "within one tick" in a.told.reasons("node disconnected")[0]
        await until(lambda: a.bus.is_connected("b"))  # And again.


CHILD = """
import sys, trio
from tests.respkv.bus_harness import Loop, Member, running
async def main():
    loop = Loop()
    member = Member(sys.argv[1], loop)
    member.bus.close()
    member = Member(sys.argv[1], loop)
    member.port = member.bus.listen("127.0.0.1", int(sys.argv[2]))
    member.bus.set_peers({sys.argv[3]: ("127.0.0.1", int(sys.argv[4]))})
    async with running(loop, member):
        print("ready", flush=True)
        await trio.sleep(60)
trio.run(main)
"""


class Child:
    """A bus in a process of its own."""

    def __init__(self, name: str, port: int, peer: Member) -> None:
        args = [sys.executable, "-c", CHILD, name, str(port), peer.name, str(peer.port)]
        self._process = subprocess.Popen(
            args, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.getcwd()}
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def end(self) -> None:
        self._process.kill()
        self._process.wait(20)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)


@pytest.mark.parametrize("name", ["a", "c"])  # It dials, and it is dialled.
async def test_the_end_of_a_process_is_told_within_milliseconds(name: str) -> None:
    loop = Loop()
    b = Member("b", loop)
    port = free_port()
    b.bus.set_peers({name: ("127.0.0.1", port)})
    async with running(loop, b):
        child = await trio.to_thread.run_sync(Child, name, port, b)
        try:
            await until(lambda: b.bus.is_connected(name))
            await trio.sleep(1.1)  # So that it was no failure.
            b.bus.send(name, [b"WRITE"])
            killed_s = time.monotonic()
            child.signal(signal.SIGKILL)
            await until(lambda: ("lost", name) in b.told.events)
            lost_s = b.told.times_s[b.told.events.index(("lost", name))] - killed_s
            assert lost_s < 0.25
            if name == "c":
                await until(lambda: b.told.events[-1] == ("refused", name))
                assert b.told.times_s[-1] - killed_s < 0.5
        finally:
            await trio.to_thread.run_sync(child.end)
        child = await trio.to_thread.run_sync(Child, name, port, b)
        try:
            await until(lambda: b.told.events[-1] == ("connected", name))
        finally:
            await trio.to_thread.run_sync(child.end)


async def test_a_process_that_is_stopped_is_given_up_and_comes_back() -> None:
    loop = Loop()
    b = Member("b", loop, limits=quick(ping_s=0.1, silence_s=0.4, handshake_s=0.4))
    port = free_port()
    b.bus.set_peers({"c": ("127.0.0.1", port)})
    async with running(loop, b):
        child = await trio.to_thread.run_sync(Child, "c", port, b)
        try:
            await until(lambda: b.bus.is_connected("c"))
            child.signal(signal.SIGSTOP)
            await until(lambda: ("lost", "c") in b.told.events)
            child.signal(signal.SIGCONT)
            await until(lambda: b.bus.is_connected("c"))
        finally:
            await trio.to_thread.run_sync(child.end)


async def test_a_node_that_finds_no_descriptor_is_taken_later() -> None:
    loop = Loop()
    b = Member("b", loop, peers={"a": ("127.0.0.1", 1)})
    async with running(loop, b):
        sock = socket.socket()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        copies = []
        try:
            with pytest.raises(OSError, match="Too many open files"):  # noqa: PT012
                while True:
                    copies.append(os.dup(sock.fileno()))
            sock.connect(b.address)
            await until(lambda: bool(b.told.lines))
            before = loop.events_total
            await trio.sleep(0.3)
            assert loop.events_total - before < 10  # It is not asked again in each tick.
            assert len(b.told.lines) == 1
        finally:
            for copy in copies:
                os.close(copy)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        stranger = Stranger(sock)
        await stranger.shake("a")
        await until(lambda: b.bus.is_connected("a"))
        stranger.close()


# Names, nodes, TLS


async def test_host_names_are_looked_up() -> None:
    loop = Loop()
    a, b = Member("a", loop), Member("b", loop, peers={"a": ("127.0.0.1", 1)})
    a.bus.set_peers({"b": ("localhost", b.port), "c": ("no-such-host.invalid", 1)})
    async with running(loop, a, b):
        await until(lambda: a.bus.is_connected("b"))
        await until(
            lambda: any(
                "no-such-host" in text for text in a.told.reasons("a node cannot be reached")
            )
        )


async def test_it_is_served_by_the_front_of_a_node(tmp_path: Path) -> None:
    async with serving(tmp_path, {}) as node:
        left, right = socket.socketpair()
        masks: list[int] = []

        def handle(mask: int) -> None:
            masks.append(mask)
            left.recv(100)

        node.front.adopt(left.fileno(), READ, handle)
        right.send(b"x")
        await until(lambda: masks == [READ])
        node.front.change(left.fileno(), 0)
        right.send(b"x")
        await trio.sleep(0.05)
        assert masks == [READ]
        node.front.change(left.fileno(), READ)
        await until(lambda: masks == [READ, READ])
        node.front.release_fd(left.fileno())
        right.send(b"x")
        await trio.sleep(0.05)
        assert masks == [READ, READ]
        left.close()
        right.close()


async def test_a_bus_is_made_of_a_list_of_nodes() -> None:
    loop = Loop()
    ports = {name: free_port() for name in "ab"}
    nodes = [NodeInfo(name, "127.0.0.1", 1, 2, port) for name, port in ports.items()]
    made = {}
    for name, port in ports.items():
        told = Told()
        bus = make_bus(
            name,
            nodes,
            TERMS,
            secret=SECRET,
            descriptors=loop,
            receiver=told,
            rng=random.Random(1),
            entropy=os.urandom,
            clock_ns=time.monotonic_ns,
            log=told,
        )
        assert bus.listen("127.0.0.1", port) == port
        made[name] = bus
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loop.run)
        for bus in made.values():
            nursery.start_soon(bus.run)
        await until(lambda: made["a"].is_connected("b") and made["b"].is_connected("a"))
        nursery.cancel_scope.cancel()
    for bus in made.values():
        bus.close()
    loop.close()


@needs_openssl
async def test_tls_carries_both_lanes(tmp_path: Path) -> None:
    certify(tmp_path, "a", "b")
    each = {name: {"tls": TlsSettings.load(*files(tmp_path, name))} for name in "ab"}
    async with buses("a", "b", each=each) as (a, b):
        await until(lambda: a.bus.is_connected("b") and b.bus.is_connected("a"))
        for number in range(1000):
            a.bus.send("b", [b"WRITE", b"%d" % number])
            b.bus.send("a", [b"WRITE", b"%d" % number])
        await until(lambda: len(a.told.messages) == len(b.told.messages) == 1000)
        assert [int(message[1]) for _, message in b.told.messages] == list(range(1000))
        large = os.urandom(5 << 20)
        await until(lambda: b.bus.send_bulk("a", [b"ROWS", large]))
        await until(lambda: a.told.messages[-1] == ("b", [b"ROWS", large]))


@needs_openssl
async def test_a_certificate_of_another_ca_is_refused(tmp_path: Path) -> None:
    each = {}
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        certify(folder, name)
        each[name] = {"tls": TlsSettings.load(*files(folder, name))}
    async with buses("a", "b", each=each) as (a, b):
        await until(lambda: bool(a.told.lines) and bool(b.told.lines))
        assert ("connected", "b") not in a.told.events
        assert "CERTIFICATE" in a.told.reasons("a node cannot be reached")[0]


@needs_openssl
async def test_one_without_tls_does_not_come_in(tmp_path: Path) -> None:
    certify(tmp_path, "b")
    each = {"b": {"tls": TlsSettings.load(*files(tmp_path, "b"))}}
    async with buses("a", "b", each=each) as (a, b):
        await until(lambda: bool(a.told.lines) and bool(b.told.lines))
        assert ("connected", "b") not in a.told.events
        assert b.told.events == []


def measure() -> None:
    """CPU time of a message from `send` to `receive`, both ends, by size of the batch."""
    rng = random.Random(1)

    async def main() -> None:
        async with buses("a", "b") as (a, b):
            await until(lambda: a.bus.is_connected("b") and b.bus.is_connected("a"))
            for batch in (1, 50):
                messages = [
                    (b"WRITE", b"%d" % number, b"u", rng.randbytes(60), rng.randbytes(130))
                    for number in range(batch)
                ]
                received = b.told.messages
                best_us = 1e9
                for _ in range(5):
                    received.clear()
                    count = 20_000 // batch
                    started_s = time.process_time()
                    for number in range(count):
                        for message in messages:
                            a.bus.send("b", message)
                        a.bus.flush()
                        while len(received) < (number + 1) * batch:
                            loop_of(a).turn()
                    spent_us = (time.process_time() - started_s) * 1e6
                    best_us = min(best_us, spent_us / (count * batch))
                print(
                    f"batch of {batch:2}: {best_us:.2f} us per message, both ends and their polls"
                )

    trio.run(main)


def loop_of(member: Member) -> Loop:
    loop = member.bus._descriptors
    assert isinstance(loop, Loop)
    return loop


if __name__ == "__main__":
    measure()
