"""One server as the tester sees it: three connections, in RESP2 or RESP3, and what is known of each.

Takes no decision about what is equal (`natural`) or what comes next (`runner`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .command import CONNECTION_COUNT, Argument, Call, Reference
from .wire import Answer, Connection, Reply, Unanswered, WireError, encode

ITERATIONS_MAX = 10_000
DATABASE_COUNT = 16
TIMEOUT_S = 5.0
_POLL_S = 0.001
_BLOCKS_WITHIN_S = 1.0
# What scenes change and an interrupted scene leaves changed. Redis logs no command as slow, as respkv may be slower.
_SETTINGS = (
    (b"CLIENT", b"UNPAUSE"),
    (b"CONFIG", b"SET", b"slowlog-log-slower-than", b"-1"),
    (b"CONFIG", b"SET", b"slowlog-max-len", b"128"),
    (b"CONFIG", b"SET", b"maxmemory-policy", b"noeviction"),
    (b"CONFIG", b"SET", b"latency-monitor-threshold", b"0"),
    (b"CONFIG", b"SET", b"timeout", b"0"),
    (b"SLOWLOG", b"RESET"),
    (b"LATENCY", b"RESET"),
)


@dataclass(frozen=True, slots=True)
class StoredKey:
    """One key as a dump shows it. `expires_at_ms` is -1 without an expiry."""

    type: bytes
    encoding: bytes
    expires_at_ms: int
    content: bytes

    def __str__(self) -> str:
        content = self.content if len(self.content) <= 200 else self.content[:200] + b"..."
        return f"{self.type.decode()}/{self.encoding.decode()} expires {self.expires_at_ms} {content!r}"


def _stored(replies: list[Reply]) -> StoredKey:
    """One key from the replies to SELECT, TYPE, OBJECT ENCODING, PEXPIRETIME and GET."""
    _, kind, encoding, expiry, content = replies[:5]
    if kind.text not in (b"string", b"none"):
        raise WireError(f"the dump cannot read a {kind.text.decode()} yet")
    return StoredKey(kind.text, encoding.text, int(expiry.text or -3), content.text)


Dump = dict[tuple[int, bytes], StoredKey]


@dataclass(slots=True)
class Side:
    """A server under comparison. `label` is what reports call it."""

    label: str
    host: str
    port: int
    resp: int
    timeout_s: float = TIMEOUT_S
    _connections: list[Connection] = field(default_factory=list)
    _known: list[dict[str, bytes]] = field(default_factory=list)

    def reset(self) -> None:
        """Empty databases, settings as the tester wants them, new connections."""
        self.close()
        for index in range(CONNECTION_COUNT):
            self._open(index)
        for command in (*_SETTINGS, (b"FLUSHALL",)):
            self._connections[0].ask(
                *command
            )  # A server without the setting shows it in the scenes.

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        self._known.clear()

    def _open(self, index: int) -> None:
        connection = Connection(self.host, self.port, timeout_s=self.timeout_s)
        if self.resp == 3:
            connection.ask(b"HELLO", b"3")
        info = connection.ask(b"CLIENT", b"INFO").text
        fields = dict(part.partition(b"=")[::2] for part in info.split())
        # A server that cannot tell gets something that no command will find.
        known = {what: fields.get(what.encode(), b"0") for what in ("id", "addr", "laddr")}
        self._connections[index : index + 1] = [connection]
        self._known[index : index + 1] = [known]

    def send(self, call: Call) -> None:
        if call.only_reads:
            return
        data = call.bytes_as_sent or encode(self._resolve(a) for a in call.arguments)
        self._connections[call.connection].send(data)

    def receive(self, call: Call) -> Answer:
        """The answer to a call that was sent; of an iteration, all its elements, sorted, in one reply."""
        answer = self._connections[call.connection].receive()
        return self._iterate(call, answer) if call.iterates else answer

    def finish(self, call: Call) -> None:
        """What a call wants to be waited for: connections that close or block, saves that run."""
        for index in sorted(call.drops):
            self._connections[index].await_close()
            self._connections[index].close()
            self._open(index)
        if call.settles and not self._comes_true(_is_idle, self.timeout_s):
            raise Unanswered(b"a background save that did not end")
        if call.is_deferred:
            # A server that does not block shows that by its reply, which is compared.
            self._comes_true(_is_blocking, _BLOCKS_WITHIN_S)

    def has(self, key: bytes) -> bool:
        return self._connections[0].ask(b"EXISTS", key).text == b"1"

    def dump(self) -> Dump:
        """All databases. Leaves connection 0 at database 0. Two round trips, whatever there is."""
        selects = [(b"SELECT", b"%d" % database) for database in range(DATABASE_COUNT)]
        replies = self._ask_all(
            [command for select in selects for command in (select, (b"KEYS", b"*"))]
        )
        places = [
            (n, item.text) for n in range(DATABASE_COUNT) for item in replies[2 * n + 1].items
        ]
        commands: list[tuple[bytes, ...]] = []
        for database, key in places:
            commands += [selects[database], (b"TYPE", key), (b"OBJECT", b"ENCODING", key)]
            commands += [(b"PEXPIRETIME", key), (b"GET", key)]
        replies = self._ask_all([*commands, selects[0]])
        per_key = len(commands) // len(places) if places else 1
        return {place: _stored(replies[i * per_key :]) for i, place in enumerate(places)}

    def _ask_all(self, commands: list[tuple[bytes, ...]]) -> list[Reply]:
        connection = self._connections[0]
        connection.send(b"".join(encode(command) for command in commands))
        return [connection.receive().reply for _ in commands]

    def _resolve(self, argument: Argument) -> bytes:
        if isinstance(argument, bytes):
            return argument
        if argument.what == "cursor":
            return b"0"
        return self._known[argument.connection][argument.what]

    def _iterate(self, call: Call, answer: Answer) -> Answer:
        connection = self._connections[call.connection]
        elements: set[bytes] = set()
        for _ in range(ITERATIONS_MAX):
            reply = answer.reply
            if reply.is_error or [i.kind for i in reply.items] != ["$", "*"]:
                return answer
            cursor, batch = reply.items
            elements.update(item.raw for item in batch.items)
            if cursor.text == b"0":
                raws = sorted(elements)
                items = [Reply("$", raw, raw) for raw in raws]
                return Answer(Reply("*", items, b"".join(raws)), answer.pushes)
            arguments = (
                cursor.text if a == Reference("cursor") else self._resolve(a)
                for a in call.arguments
            )
            answer = Answer(connection.ask(*arguments), answer.pushes)
        raise WireError(f"an iteration did not end after {ITERATIONS_MAX} calls")

    def _comes_true(self, claim: Callable[[bytes], bool], timeout_s: float) -> bool:
        """Whether a claim about INFO comes true in time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if claim(self._connections[0].ask(b"INFO").text):
                return True
            time.sleep(_POLL_S)
        return False


def _is_idle(info: bytes) -> bool:
    return b"rdb_bgsave_in_progress:1" not in info and b"aof_rewrite_in_progress:1" not in info


def _is_blocking(info: bytes) -> bool:
    return b"blocked_clients:" in info and b"blocked_clients:0" not in info
