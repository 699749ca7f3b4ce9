"""What clients do: each workload makes commands that one checker understands.

    registers   SET of unique values and GET, on few keys, alone, in pipelines, as MSET and MGET
    counters    INCR, INCRBY and GET
    appends     APPEND of unique tokens and GET
    locks       SET NX or SETNX, a look, and DEL by the holder; after an unknown outcome the lock is given up
    changes     SET, SET NX, GETSET, GETDEL, INCRBY and APPEND on the same keys: for linearizability alone
    private     all kinds of commands on keys of one session and one slot, RENAME and MULTI among them
    transfers   MULTI, DECRBY here, INCRBY there, EXEC: the sum of the two keys is always 0; and (if the plan has
                them) between some of five keys
    tokens      RENAME and RENAMENX between keys of different slots, and EXEC of GETs of all of them
    leases      SET with PX, or SET and PEXPIRE, and reads of others
    runs        pipelines that a node may do at once: of counters, appends and changes (if the plan has them)
    order       ECHO among others in a pipeline

A client draws from all of them. Keys live for a part of the run only, since histories of a key have to stay
short (`KEY_OPERATIONS`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import trio

from tests.sim.client import Client
from tests.sim.history import Operation
from tests.sim.model import State, step

KEY_OPERATIONS = 150
PRIVATE_OPERATIONS = 60
LOCKS = 3
LEASES_KEPT = 8
TOKEN_PLACES = 4
ACCOUNTS = 5
Command = tuple[bytes, ...]


class Workload:
    """What the clients of a run share: the names of the keys, and the locks that are still good."""

    def __init__(self, keys: int, pipeline: float) -> None:
        self._keys = keys
        self._pipeline = pipeline
        self._used: dict[bytes, int] = {}
        self._lock_generation = [0] * LOCKS
        self._values = 0
        self._leases: list[bytes] = []
        self._private: dict[int, _Private] = {}
        self.tokens: dict[bytes, bytes] = {}  # Where each was seen last.

    @property
    def keys(self) -> list[bytes]:
        """All that were used."""
        return sorted(key for key in self._used if not key.startswith((b"pair", b"token")))

    async def act(self, client: Client) -> None:
        """Do one thing."""
        rng = client.rng
        transfers = client.world.plan.transfers
        if transfers and rng.random() < transfers:
            await self._transfer_between_many(client)
            return
        counting = client.world.plan.counting
        if counting and rng.random() < counting:
            await client.ask_all([rng.choice((self._counter, self._append))(client)])
            return
        runs = client.world.plan.runs
        if runs and rng.random() < runs:
            await client.ask_all(self._run(client))
            return
        renaming = client.world.plan.renaming
        if renaming and not client.is_cluster and rng.random() < renaming:
            await self._move_token(client)
            return
        choice = rng.random()
        if choice < 0.1:
            await self._hold_lock(client)
        elif choice < 0.2:
            await self._transfer(client)
        elif choice < 0.3:
            await self._lease(client)
        elif choice < 0.45:
            await self._do_private(client)
        elif choice < 0.53 and not client.is_cluster:
            await self._move_token(client)
        elif rng.random() < self._pipeline:
            count = rng.randint(2, 5)
            commands = [self._command(client) for _ in range(count)]
            commands.append((b"ECHO", self._value(client)))
            await client.ask_all(commands)
        else:
            await client.ask_all([self._command(client)])

    def _command(self, client: Client) -> Command:
        kinds = (
            self._register,
            self._register,
            self._registers,
            self._counter,
            self._append,
            self._change,
        )
        return client.rng.choice(kinds)(client)

    def _registers(self, client: Client) -> Command:
        """MGET or MSET of different keys, which may be anywhere."""
        wanted = client.rng.randint(1, 4)
        keys = list(dict.fromkeys(self._key(client, b"register") for _ in range(wanted)))
        if client.rng.random() < 0.5:
            return b"MGET", *keys
        return b"MSET", *(word for key in keys for word in (key, self._value(client)))

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

    def _run(self, client: Client) -> list[Command]:
        """What a node may do at once: commands of one name, or of two by turns, each pair on one key."""
        rng = client.rng
        count = rng.randint(2, 8)
        kind = rng.random()
        if kind < 0.3:
            return [(b"INCR", self._key(client, b"counter")) for _ in range(count)]
        if kind < 0.6:
            return [
                (b"APPEND", self._key(client, b"append"), self._value(client) + b";")
                for _ in range(count)
            ]
        keys = [self._key(client, b"change") for _ in range(count)]
        number = b"%d" % rng.randint(1, 1 << 30)
        if kind < 0.8:
            name = rng.choice((b"SETNX", b"GETSET", b"INCRBY"))
            return [(name, key, number) for key in keys]
        return [
            command
            for key in keys[: count // 2 + 1]
            for command in ((b"INCRBY", key, number), (b"STRLEN", key))
        ]

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
        if generation % 2:
            acquired = await client.ask(b"SETNX", key, token)
        else:
            acquired = await client.ask(b"SET", key, token, b"NX")
        if acquired.reply in (b"OK", 1):
            await trio.sleep(client.rng.expovariate(5))
            await client.ask(b"GET", key)
            released = await client.ask(b"DEL", key)
            if released.is_acknowledged:
                return
        elif _is_over(acquired):
            return
        # Nobody knows who holds it: the clients agree on another one.
        self._lock_generation[place] = max(self._lock_generation[place], generation + 1)

    async def _transfer(self, client: Client) -> None:
        group = self._key(client, b"pair")
        one, other = b"{%s}:a" % group, b"{%s}:b" % group
        if client.rng.random() < 0.5:
            await client.ask_together(group, [(b"GET", one), (b"GET", other)])
            return
        if client.rng.random() < 0.5:
            one, other = other, one
        amount = b"%d" % client.rng.randint(1, 9)
        await client.ask_together(group, [(b"DECRBY", one, amount), (b"INCRBY", other, amount)])

    async def _transfer_between_many(self, client: Client) -> None:
        """As `_transfer`, between some of five keys: transactions meet in a part of their rows."""
        rng = client.rng
        group = self._key(client, b"pairs")
        keys = [b"{%s}:%d" % (group, number) for number in range(ACCOUNTS)]
        if rng.random() < 0.3:
            await client.ask_together(group, [(b"GET", key) for key in keys])
            return
        chosen = rng.sample(keys, rng.randint(2, 4))
        amounts = [rng.randint(1, 9) for _ in chosen[1:]]
        commands: list[Command] = [(b"DECRBY", chosen[0], b"%d" % sum(amounts))]
        for key, amount in zip(chosen[1:], amounts, strict=True):
            commands.append((b"INCRBY", key, b"%d" % amount))
        await client.ask_together(group, commands)

    async def _move_token(self, client: Client) -> None:
        """A value that is SET once, and then only given other names."""
        token = self._key(client, b"token")
        places = places_of(token)
        if token not in self.tokens:
            self.tokens[token] = places[0]
            await client.ask(b"SET", places[0], token)
            return
        if client.rng.random() < 0.4:
            await look(client, self.tokens, token)
            return
        source = self.tokens[token]
        if client.rng.random() < 0.2:
            source = client.rng.choice(places)
        target = client.rng.choice([place for place in places if place != source])
        moved = await client.ask(client.rng.choice((b"RENAME", b"RENAMENX")), source, target)
        if moved.is_acknowledged:
            self.tokens[token] = target

    async def _lease(self, client: Client) -> None:
        if self._leases and client.rng.random() < 0.7:
            await client.ask(b"GET", client.rng.choice(self._leases))
            return
        key = b"lease:" + self._value(client)
        ttl_ms = b"%d" % client.rng.randint(500, 6000)
        self._leases = [*self._leases[-LEASES_KEPT:], key]
        if client.rng.random() < 0.5:
            await client.ask(b"SET", key, self._value(client), b"PX", ttl_ms)
        elif (await client.ask(b"SET", key, self._value(client))).is_acknowledged:
            await client.ask(b"PEXPIRE", key, ttl_ms)

    async def _do_private(self, client: Client) -> None:
        """Some commands on the session's own keys, at once or as a transaction, till one has an unknown outcome."""
        private = self._private.get(client.session)
        if private is None or private.left <= 0:
            generation = 0 if private is None else private.generation + 1
            private = self._private[client.session] = _Private(client.session, generation)
        state = dict(private.state)
        commands: list[Command] = []
        for _ in range(client.rng.randint(1, 3)):
            command = private.draw(client.rng, state, self._value(client))
            state, _ = step(state, command)
            commands.append(command)
        private.left -= len(commands)
        if client.rng.random() < 0.3:
            operation = await client.ask_together(private.tag, commands)
            done = [operation]
        else:
            done = await client.ask_all(commands)
        if all(operation.is_acknowledged for operation in done):
            private.state = state
        elif not all(operation.is_refused for operation in done):
            private.left = 0

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


class _Private:
    """The keys of one session, all in one slot, and what they hold as far as everything was answered."""

    def __init__(self, session: int, generation: int) -> None:
        self.generation = generation
        self.left = PRIVATE_OPERATIONS
        self.tag = b"{private:%d:%d}" % (session, generation)
        self.keys = [self.tag + name for name in (b"a", b"b", b"c")]
        self.state: State = {}

    def draw(self, rng: random.Random, state: State, value: bytes) -> Command:
        """A command that answers no error in this state."""
        key, other = rng.sample(self.keys, 2)
        choices: list[Command] = [
            (b"SET", key, value),
            (b"GET", key),
            (b"DEL", key, other),
            (b"APPEND", key, value),
            (b"STRLEN", key),
            (b"EXISTS", key, other),
            (b"MSET", key, value, other, value),
            (b"MGET", key, other),
            (b"GETDEL", key),
        ]
        if key in state:
            choices += [(b"RENAME", key, other), (b"RENAMENX", key, other), (b"RENAME", key, other)]
        if state.get(key, b"0").isdigit() and len(state.get(key, b"")) < 15:
            choices.append((b"INCRBY", key, b"%d" % rng.randint(1, 99)))
        return rng.choice(choices)


def _is_over(operation: Operation) -> bool:
    return operation.is_acknowledged or operation.is_refused


def places_of(token: bytes) -> list[bytes]:
    """The keys of a token. The brace that is not closed makes no hash tag; no other checker minds such keys."""
    return [b"{%b:%d" % (token, place) for place in range(TOKEN_PLACES)]


async def look(client: Client, tokens: dict[bytes, bytes], token: bytes) -> Operation:
    """Read all keys of a token at once, and note where it is."""
    places = places_of(token)
    seen = await client.ask_together(b"{" + token, [(b"GET", place) for place in places])
    if isinstance(seen.reply, list) and token in seen.reply:
        tokens[token] = places[seen.reply.index(token)]
    return seen


async def audit_tokens(client: Client, tokens: dict[bytes, bytes]) -> None:
    """Look for each token, trying again until that was answered."""
    for token in sorted(tokens):
        while not (await look(client, tokens, token)).is_acknowledged:  # noqa: ASYNC110
            await trio.sleep(0.2)


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
