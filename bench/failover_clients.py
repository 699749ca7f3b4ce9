"""Clients that go on while a node dies: what each does, and what it may be told (shell; `Session` is core).

Each client is a thread with one redis-py connection that retries nothing, so what it sees is what an
application without any care sees. It alone writes its keys, in turns a SET and a GET, and so it knows
what a GET must answer: the value of its last SET that was acknowledged, or that of a later one whose
end it does not know (an error says nothing about whether a write happened).
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bench.connection import Address

TIMEOUT_S: Final = 10.0
KEYS_EACH: Final = 200


@dataclass(slots=True)
class Session:
    """What one client knows of its keys."""

    number: int
    rng: random.Random
    acknowledged: dict[bytes, bytes] = field(default_factory=dict)
    doubtful: dict[bytes, set[bytes]] = field(default_factory=dict)
    _count: int = 0

    def next_write(self) -> tuple[bytes, bytes]:
        """A key of this client, and a value that was never written."""
        self._count += 1
        name = b"client:%d:%d" % (self.number, self.rng.randrange(KEYS_EACH))
        return name, b"%d:%d:%s" % (self.number, self._count, self.rng.randbytes(32).hex().encode())

    def next_read(self) -> bytes:
        """A key of this client that it has tried to write."""
        return self.rng.choice(sorted(self.acknowledged.keys() | self.doubtful.keys()))

    def written(self, name: bytes, value: bytes) -> None:
        """A SET was acknowledged: nothing that came before it may be read again."""
        self.acknowledged[name] = value
        self.doubtful.pop(name, None)

    def write_failed(self, name: bytes, value: bytes) -> None:
        """A SET got an error, or none: it may have happened."""
        self.doubtful.setdefault(name, set()).add(value)

    def may_be(self, name: bytes, value: bytes | None) -> bool:
        """Whether a GET may answer this."""
        return value == self.acknowledged.get(name) or value in self.doubtful.get(name, ())


@dataclass(slots=True)
class Operation:
    """One request: when it began, how long it took, and the error it got."""

    name: bytes
    began_s: float
    took_s: float
    error: str | None
    is_write: bool


@dataclass(slots=True)
class Seen:
    """What all clients saw."""

    operations: list[Operation] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def errors(self) -> Counter[str]:
        return Counter(each.error for each in self.operations if each.error is not None)

    def after(self, at_s: float) -> list[Operation]:
        """The operations that ended after a moment."""
        return [each for each in self.operations if each.began_s + each.took_s >= at_s]


class Clients:
    """Threads that carry out a number of operations together. `run` returns when all are done."""

    def __init__(self, addresses: Iterable[Address], count: int) -> None:
        targets = list(addresses)
        self.sessions = [Session(number, random.Random(number)) for number in range(count)]
        self._connections = [client_of(targets[number % len(targets)]) for number in range(count)]
        self.seen = Seen()
        self._lock = threading.Lock()

    def run(self, operation_count: int, halfway: Callable[[], None]) -> None:
        """Carry out so many operations; call `halfway` in the middle of them."""
        each = operation_count // len(self.sessions)
        middle = each * len(self.sessions) // 2
        started = threading.Event()
        threads = [
            threading.Thread(target=self._run_one, args=(number, each, started), daemon=True)
            for number in range(len(self.sessions))
        ]
        for thread in threads:
            thread.start()
        started.set()
        while len(self.seen.operations) < middle and any(each.is_alive() for each in threads):
            time.sleep(0.001)
        halfway()
        for thread in threads:
            # An operation ends by its timeout at the latest, so this ends too.
            thread.join()

    def write_further(self, count: int) -> list[Operation]:
        """Write so many new keys, one client after another in turns. They are not in `seen`."""
        clients = len(self.sessions)
        return [
            self._write(at % clients, b"further:%d" % at, b"value:%d" % at) for at in range(count)
        ]

    def values(self) -> dict[bytes, bytes]:
        """All that was acknowledged and is not in doubt."""
        return {
            name: value
            for session in self.sessions
            for name, value in session.acknowledged.items()
            if name not in session.doubtful
        }

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def _run_one(self, number: int, count: int, started: threading.Event) -> None:
        started.wait()
        session = self.sessions[number]
        for at in range(count):
            if at % 2 == 0:
                self._note(self._write(number, *session.next_write()))
            else:
                self._note(self._read(number, session.next_read()))

    def _write(self, number: int, name: bytes, value: bytes) -> Operation:
        session, connection = self.sessions[number], self._connections[number]
        began_s, error = time.monotonic(), None
        try:
            if connection.set(name, value) is not True:
                error = "SET was not answered OK"
        except (redis.RedisError, OSError) as failure:
            error = error_text(failure)
        took_s = time.monotonic() - began_s
        if error is None:
            session.written(name, value)
        else:
            session.write_failed(name, value)
        return Operation(name, began_s, took_s, error, is_write=True)

    def _read(self, number: int, name: bytes) -> Operation:
        session, connection = self.sessions[number], self._connections[number]
        began_s, error, value = time.monotonic(), None, None
        try:
            value = cast("bytes | None", connection.get(name))
        except (redis.RedisError, OSError) as failure:
            error = error_text(failure)
        took_s = time.monotonic() - began_s
        if error is None and not session.may_be(name, value):
            known = session.acknowledged.get(name)
            with self._lock:
                self.seen.wrong.append(f"{name!r}: {value!r}, and {known!r} was acknowledged")
        return Operation(name, began_s, took_s, error, is_write=False)

    def _note(self, operation: Operation) -> None:
        with self._lock:
            self.seen.operations.append(operation)


def client_of(address: Address) -> redis.Redis:
    """A client that retries nothing."""
    host, port = address
    return redis.Redis(
        host,
        port,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
    )


def error_text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
