"""Publishing: what a message and a delivery cost, beside Redis, every message checked (shell).

    python -m bench.pubsub [--messages 2000] [--listeners 1,100] [--pipelines 1,16] [--rounds 3]
                           [--cluster-listeners 1000] [--only respkv|redis|cluster] [--json FILE]

One publisher says numbered messages of `--bytes` to one channel, `--pipeline` of them at a time, and the next
ones when every listener has all of them: so nothing piles up, and nothing depends on who is quicker. Each
listener must receive exactly the bytes of all messages in their order; anything else ends the command
with an error, as does an answer to PUBLISH that is not the number of listeners.

First respkv and Redis, one server each; then a cluster of three nodes of respkv with the listeners spread evenly,
where the publisher goes on at the next node after each batch, and messages of all nodes are one sequence.
CPU time is that of the servers (three in the cluster), so the generator's own does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import selectors
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import machine, report
from bench.connection import Address, ConnectionEnded, ErrorAnswered, encode_command
from bench.process_clock import process_cpu_s
from bench.replicated import positive, progress
from bench.replicated_servers import cluster
from bench.report import Spread
from bench.server import Server, ServerNotReady, failure_text, running

CHANNEL: Final = b"bench"
WAIT_S: Final = 60.0
RECEIVE_BYTES: Final = 1 << 16
WARM_UP_BATCHES: Final = 20


@dataclass(eq=False)
class Misheard(Exception):
    """A listener received something else than what comes next. The benchmark ends: the server is wrong."""

    position: int
    received: bytes

    def __str__(self) -> str:
        return f"a listener received {self.received[:80]!r} at byte {self.position} of what was published"


_FAILURES = (ServerNotReady, ConnectionEnded, ErrorAnswered, Misheard, OSError)


@dataclass(frozen=True, slots=True)
class Measured:
    """One run."""

    server: str
    listeners: int
    pipeline: int
    messages: int
    cpu_s: float
    wall_s: float

    @property
    def per_message_us(self) -> float:
        return self.cpu_s / self.messages * 1e6

    @property
    def per_delivery_us(self) -> float:
        return self.per_message_us / self.listeners


class Expected:
    """What every listener must receive, byte by byte: it grows as messages are published."""

    def __init__(self) -> None:
        self.stream = bytearray()

    def add(self, payload: bytes) -> None:
        self.stream += encode_command(b"message", CHANNEL, payload)


def _received(sock: socket.socket, size: int) -> bytes:
    """At least so many bytes. Raises ConnectionEnded."""
    received = b""
    while len(received) < size:
        data = sock.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionEnded("closed instead of an answer")
        received += data
    return received


class Listener:
    """One subscribed connection."""

    def __init__(self, sock: socket.socket, expected: Expected) -> None:
        self.socket = sock
        self._expected = expected
        self.position = 0

    @classmethod
    def connect(cls, address: Address, expected: Expected) -> Listener:
        """Subscribe, and return when the server has confirmed it."""
        sock = socket.create_connection(address, timeout=WAIT_S)
        sock.sendall(encode_command(b"SUBSCRIBE", CHANNEL))
        confirmed = b"*3\r\n$9\r\nsubscribe\r\n$%d\r\n%b\r\n:1\r\n" % (len(CHANNEL), CHANNEL)
        received = _received(sock, len(confirmed))
        if received != confirmed:
            raise Misheard(0, received)
        return cls(sock, expected)

    def receive(self) -> None:
        """Take what is there. Raises Misheard, ConnectionEnded."""
        data = self.socket.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionEnded("a listener was closed")
        end = self.position + len(data)
        if self._expected.stream[self.position : end] != data:
            raise Misheard(self.position, data)
        self.position = end

    @property
    def has_all(self) -> bool:
        return self.position == len(self._expected.stream)


class Publisher:
    """Says batches of numbered messages, at one connection after the other."""

    def __init__(self, addresses: Sequence[Address], expected: Expected, *, size: int) -> None:
        self._sockets = [socket.create_connection(each, timeout=WAIT_S) for each in addresses]
        for each in self._sockets:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._expected = expected
        self._size = size
        self._turn = 0
        self.count = 0

    def say(self, count: int, wanted: int) -> None:
        """Publish so many messages, and check that each answer is the number of listeners."""
        sock = self._sockets[self._turn % len(self._sockets)]
        self._turn += 1
        parts = []
        for _ in range(count):
            payload = (b"%010d" % self.count).ljust(self._size, b".")
            self.count += 1
            self._expected.add(payload)
            parts.append(encode_command(b"PUBLISH", CHANNEL, payload))
        sock.sendall(b"".join(parts))
        answers = b":%d\r\n" % wanted * count
        received = _received(sock, len(answers))
        if received != answers:
            raise ErrorAnswered(f"PUBLISH answered {received[:80]!r}, and not {wanted} each time")

    def close(self) -> None:
        for each in self._sockets:
            each.close()


@contextlib.contextmanager
def audience(addresses: Sequence[Address], count: int, expected: Expected) -> Iterator[Audience]:
    """So many listeners, spread evenly."""
    listeners: list[Listener] = []
    with selectors.DefaultSelector() as selector:
        try:
            for number in range(count):
                listeners.append(Listener.connect(addresses[number % len(addresses)], expected))
                selector.register(listeners[-1].socket, selectors.EVENT_READ, listeners[-1])
            yield Audience(selector, count)
        finally:
            for each in listeners:
                each.socket.close()


@dataclass(frozen=True, slots=True)
class Audience:
    """All listeners."""

    selector: selectors.DefaultSelector
    count: int

    def listen(self) -> None:
        """Return when each of them has received all that was published."""
        deadline_s = time.monotonic() + WAIT_S
        missing = self.count
        while missing:
            ready = self.selector.select(1)
            for key, _ in ready:
                listener: Listener = key.data
                listener.receive()
                missing -= listener.has_all
            if not ready and time.monotonic() > deadline_s:
                raise ConnectionEnded(f"{missing} of {self.count} listeners lack messages")


def run(
    name: str,
    servers: Sequence[Server],
    *,
    listeners: int,
    pipeline: int,
    messages: int,
    size: int,
) -> Measured:
    """One run. Raises Misheard and what connections raise."""
    addresses = [server.address for server in servers]
    expected = Expected()
    publisher = Publisher(addresses, expected, size=size)
    with contextlib.closing(publisher), audience(addresses, listeners, expected) as all_of_them:
        for _ in range(WARM_UP_BATCHES):
            publisher.say(pipeline, listeners)
            all_of_them.listen()
        batches = -(-messages // pipeline)
        before_s = [process_cpu_s(server.pid) for server in servers]
        began_s = time.monotonic()
        for _ in range(batches):
            publisher.say(pipeline, listeners)
            all_of_them.listen()
        wall_s = time.monotonic() - began_s
        cpu_s = sum(process_cpu_s(server.pid) for server in servers) - sum(before_s)
    return Measured(name, listeners, pipeline, batches * pipeline, cpu_s, wall_s)


def table(runs: Sequence[Measured]) -> str:
    """Medians of each kind of run, with the extremes in brackets."""
    rows = [["server", "listeners", "pipeline", "CPU us/message", "CPU us/delivery", "messages/s"]]
    kinds = dict.fromkeys((each.server, each.listeners, each.pipeline) for each in runs)
    for kind in kinds:
        same = [each for each in runs if (each.server, each.listeners, each.pipeline) == kind]
        rows.append(
            [
                kind[0],
                str(kind[1]),
                str(kind[2]),
                Spread.of(each.per_message_us for each in same).text(1),
                Spread.of(each.per_delivery_us for each in same).text(2),
                f"{Spread.of(each.messages / each.wall_s for each in same).median:.0f}",
            ]
        )
    return report.columns(rows)


def measure(options: argparse.Namespace) -> tuple[list[Measured], machine.Facts]:
    """All runs, round by round."""
    runs: list[Measured] = []
    with contextlib.ExitStack() as stack:
        groups: dict[str, tuple[Sequence[Server], list[int]]] = {}
        for name in ("respkv", "redis"):
            if options.only in (None, name):
                groups[name] = ([stack.enter_context(running(name))], options.listeners)
        if options.only in (None, "cluster"):
            nodes = stack.enter_context(cluster()).group.servers
            groups["3 x respkv"] = (nodes, [options.cluster_listeners])
            if "redis" in groups:
                groups["redis"] = (
                    groups["redis"][0],
                    [*options.listeners, options.cluster_listeners],
                )
        facts = machine.read_facts([server for servers, _ in groups.values() for server in servers])
        for number in range(options.rounds):
            for pipeline in options.pipelines:
                for name, (servers, counts) in groups.items():
                    for listeners in counts:
                        progress(
                            f"round {number + 1}: {name}, {listeners} listeners, pipeline {pipeline}"
                        )
                        runs.append(
                            run(
                                name,
                                servers,
                                listeners=listeners,
                                pipeline=pipeline,
                                messages=max(
                                    pipeline, min(options.messages, options.deliveries // listeners)
                                ),
                                size=options.bytes,
                            )
                        )
    return runs, facts


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.pubsub", description="Publishing.")
    parser.add_argument("--messages", type=positive, default=20_000, help="of a run, at most")
    parser.add_argument("--deliveries", type=positive, default=200_000, help="of a run, at most")
    parser.add_argument("--bytes", type=positive, default=100)
    parser.add_argument("--listeners", type=_positives, default=[1, 100], help="default: 1,100")
    parser.add_argument("--pipelines", type=_positives, default=[1, 16], help="default: 1,16")
    parser.add_argument("--cluster-listeners", type=positive, default=1000)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--only", choices=["respkv", "redis", "cluster"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    return parser.parse_args(arguments)


def _positives(words: str) -> list[int]:
    return [positive(word) for word in words.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    try:
        runs, facts = measure(options)
    except _FAILURES as error:
        print(f"bench.pubsub: {failure_text(error)}", file=sys.stderr)
        return 1
    print(report.facts_text(facts))
    print(table(runs))
    print("Every listener received every message, in order.")
    if options.json is not None:
        document = {
            "facts": dataclasses.asdict(facts),
            "runs": [dataclasses.asdict(each) for each in runs],
        }
        options.json.write_text(report.to_json(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
