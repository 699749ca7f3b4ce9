"""What clients do: each workload makes commands that one checker understands.

    registers   SET of unique values and GET, on few keys, alone and in pipelines
    counters    INCR, INCRBY and GET
    appends     APPEND of unique tokens and GET
    locks       SET NX, a look, and DEL by the holder; after an unknown outcome the lock is given up
    changes     SET, SET NX, GETSET, GETDEL, INCRBY and APPEND on the same keys: for linearizability alone
    order       ECHO among others in a pipeline

A client draws from all of them. Keys live for a part of the run only, since histories of a key have to stay
short (`KEY_OPERATIONS`).
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from tests.sim.client import Client
from tests.sim.history import Operation

KEY_OPERATIONS = 150
LOCKS = 3
Command = tuple[bytes, ...]


class Workload:
    """What the clients of a run share: the names of the keys, and the locks that are still good."""

    def __init__(self, keys: int, pipeline: float) -> None:
        self._keys = keys
        self._pipeline = pipeline
        self._used: dict[bytes, int] = {}
        self._lock_generation = [0] * LOCKS
        self._values = 0

    @property
    def keys(self) -> list[bytes]:
        """All that were used."""
        return sorted(self._used)

    async def run(self, client: Client, interval_s: float) -> None:
        """Do one thing after the other, with pauses, until cancelled."""
        rng = client.rng
        while True:
            await trio.sleep(rng.expovariate(1 / interval_s))
            if rng.random() < 0.1:
                await self._hold_lock(client)
            elif rng.random() < self._pipeline:
                count = rng.randint(2, 5)
                commands = [self._command(client) for _ in range(count)]
                commands.append((b"ECHO", self._value(client)))
                await client.ask_all(commands)
            else:
                await client.ask(*self._command(client))

    def _command(self, client: Client) -> Command:
        kinds = (self._register, self._register, self._counter, self._append, self._change)
        return client.rng.choice(kinds)(client)

    def _register(self, client: Client) -> Command:
        key = self._key(client, b"register")
        if client.rng.random() < 0.5:
            return b"GET", key
        padding = b"." * client.rng.choice((0, 0, 50, 2000))
        return b"SET", key, self._value(client) + padding

    def _counter(self, client: Client) -> Command:
        key = self._key(client, b"counter")
        choice = client.rng.random()
        if choice < 0.4:
            return b"INCR", key
        if choice < 0.6:
            return b"INCRBY", key, b"%d" % client.rng.randint(2, 9)
        return b"GET", key

    def _append(self, client: Client) -> Command:
        key = self._key(client, b"append")
        if client.rng.random() < 0.4:
            return b"GET", key
        return b"APPEND", key, self._value(client) + b";"

    def _change(self, client: Client) -> Command:
        key = self._key(client, b"change")
        number = b"%d" % client.rng.randint(1, 1 << 30)
        return client.rng.choice((
            (b"GET", key),
            (b"GET", key),
            (b"SET", key, number),
            (b"SET", key, number, b"NX"),
            (b"SETNX", key, number),
            (b"SET", key, number, b"GET"),
            (b"GETSET", key, number),
            (b"GETDEL", key),
            (b"DEL", key),
            (b"INCRBY", key, number),
            (b"APPEND", key, b"7"),
            (b"STRLEN", key),
            (b"EXISTS", key),
        ))  # fmt: skip

    async def _hold_lock(self, client: Client) -> None:
        place = client.rng.randrange(LOCKS)
        generation = self._lock_generation[place]
        key = b"lock:%d:%d" % (place, generation)
        token = self._value(client)
        acquired = await client.ask(b"SET", key, token, b"NX")
        if acquired.reply == b"OK":
            await trio.sleep(client.rng.expovariate(5))
            await client.ask(b"GET", key)
            released = await client.ask(b"DEL", key)
            if released.is_acknowledged:
                return
        elif _is_over(acquired):
            return
        # Nobody knows who holds it: the clients agree on another one.
        self._lock_generation[place] = max(self._lock_generation[place], generation + 1)

    def _key(self, client: Client, kind: bytes) -> bytes:
        number = client.rng.randrange(self._keys)
        generation = 0
        while True:
            key = b"%s:%d:%d" % (kind, number, generation)
            if self._used.get(key, 0) < KEY_OPERATIONS:
                self._used[key] = self._used.get(key, 0) + 1
                return key
            generation += 1

    def _value(self, client: Client) -> bytes:
        self._values += 1
        return b"%d.%d" % (client.session, self._values)


def _is_over(operation: Operation) -> bool:
    return operation.is_acknowledged or operation.is_refused


async def audit(client: Client, keys: Sequence[bytes]) -> list[Operation]:
    """Read all keys once, trying again until each was answered."""
    reads = []
    for key in keys:
        while True:
            read = await client.ask(b"GET", key)
            if read.is_acknowledged:
                reads.append(read)
                break
            await trio.sleep(0.2)
    return reads
