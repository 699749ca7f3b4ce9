"""What a command's handler sees: keys to read, writes to make, the session and the node.

It decides nothing about durability or replication. Reads come from the local replica; a row that is
not in memory raises `PageFault`, the runner fetches it and runs the handler again from its start.
So a handler reads and writes only through its context: writes are buffered in `effects` until the
handler has returned, and `now_ms` is the same at every run. Dots are minted at the commit, in the
order of the writes; a handler that raised leaves nothing behind.

    value = ctx.string(key)                  # bytes or None; raises WRONGTYPE ctx.put_string(key,
    value)               # SET: forgets an expiry unless one is given ctx.remove(key)
    # Hides the key; the caller knows that it exists found = ctx.find(key)                    # a
    Version (type, payload, expire_at_ms, encoding, dot), or None

Inside EXEC one context serves all commands: each runs in its own layer of effects, which is merged
below when the command succeeded and dropped when it raised.

Core: synchronous, no I/O.
"""

from __future__ import annotations

from binascii import crc_hqx
from random import Random
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_64_digest

from cluster.record import (
    DELETION,
    ENCODING_MASK,
    EXPIRY_HEADER_BYTES,
    HAS_EXPIRY,
    HEADER_BYTES,
    MANY,
    STRING,
    TYPE_MASK,
    Version,
    decode,
    encode_version,
)
from cluster.replica import Effect, Replica
from cluster.sibling import Beside
from cluster.slot import MIDDLES, SYSTEM_SLOT, TAG_OFFSET, Key, Row, Slot, row_of, slot_of
from respkv.keyspace import PLAIN_KINDS, Counts, encode_effect
from respkv.reply import WRONG_TYPE, ReplyError

if TYPE_CHECKING:
    from respkv.node import Node
    from respkv.policy_match import Policies
    from respkv.pubsub import Message
    from respkv.session import Session

NO_EFFECTS: Final[dict[Row, Effect]] = {}
# The row that maps the databases that SELECT names to physical ones: SWAPDB changes this and moves
# nothing.
DATABASES_ROW: Final = b"databases"


class Context:
    """One per runner; bound to a session and a time before each batch of commands."""

    __slots__ = (
        "args", "below", "beside", "counts", "db", "effects", "flushed", "hits", "is_atomic", "messages", "misses",
        "node", "notifies", "now_ms", "policies", "replica", "rng", "session", "store",
    )  # fmt: skip

    def __init__(self, node: Node, replica: Replica, rng: Random) -> None:
        self.node = node
        self.replica = replica
        self.store = replica.store
        self.rng = rng
        self.policies = node.policies
        self.counts = Counts(replica)
        self.args: list[bytes] = []  # Of a command that takes the long way, as they were typed.
        self.session: Session = None  # type: ignore[assignment]  # Bound before any handler runs.
        self.db = 0  # Physical: what SELECT named, through the node's table of databases.
        self.now_ms = 0
        self.effects: dict[Row, Effect] = {}
        self.below: dict[Row, Effect] = NO_EFFECTS  # Effects of earlier commands of the same EXEC.
        self.beside: dict[
            Row, Beside
        ] = {}  # Of buffered writes that leave some versions as they are.
        self.flushed: set[int] = set()  # Physical databases that this command emptied.
        self.is_atomic = False  # Inside EXEC: sliced work runs to its end.
        self.hits = 0
        self.misses = 0
        # What is published when this command is committed: keyspace events, and what EXEC publishes.
        self.messages: list[Message] = []
        self.notifies = 0  # The classes of events that are published; 0: nobody listens.

    def bind(self, session: Session, now_ms: int) -> None:
        self.session = session
        self.db = self.node.databases[session.db]
        self.now_ms = now_ms

    # Reading

    def string(self, key: Key) -> bytes | None:
        """The string value of a key of the session's database. Raises WRONGTYPE, PageFault. Hot: GET is little else."""
        length = len(key)
        if length > 255 or b"{" in key or self.effects or self.is_atomic:
            return self._string_slow(key)
        row = xxh3_64_digest(key)[:6] + MIDDLES[self.db][length] + key
        slot = crc_hqx(key, 0) & 16383
        raw = self.store.active[slot].get(row)
        if raw is None:
            raw = self.store.lookup(slot, row)
            if raw is None:
                self.miss(key)
                return None
        if raw[0] == STRING:
            self.hits += 1
            return raw[HEADER_BYTES:]
        return self._string_slow(key)

    def _string_slow(self, key: Key) -> bytes | None:
        if self.policies is not None:
            self._refuse_siblings(self.policies, key)
        raw = self.locate(key)[2]
        if raw is None:
            self.miss(key)
            return None
        self.hits += 1
        kind = raw[0]
        if kind & TYPE_MASK != STRING:
            raise WRONG_TYPE
        return raw[EXPIRY_HEADER_BYTES if kind & HAS_EXPIRY else HEADER_BYTES :]

    def _refuse_siblings(self, policies: Policies, key: Key) -> None:
        """Raises ReplyError if a key has siblings, and its policy does not want the winner shown alone."""
        rule = policies.find(key)
        if rule is None or rule.policy.siblings != "error":
            return
        row = row_of(self.db, key)
        if row in self.effects or row in self.below or self.db in self.flushed:
            return
        raw = self.store.get(slot_of(key), row)
        if raw is None or not raw[0] & MANY:
            return
        count = sum(1 for version in decode(raw).versions if version.is_live(self.now_ms))
        if count > 1:
            raise ReplyError(
                f"SIBLINGS {count} versions of this key did not see each other: KV.GET shows all of them"
            )

    def find(self, key: Key, *, db: int | None = None, is_told: bool = True) -> Version | None:
        """The winning live version of a key, or None. `db` is physical. Counts a hit or a miss. Raises PageFault.

        Unless `is_told`, a miss is no event.
        """
        version = self.peek(key, db=db)
        if version is None and is_told:
            self.miss(key)
        elif version is None:
            self.misses += 1
        else:
            self.hits += 1
        return version

    def peek(self, key: Key, *, db: int | None = None) -> Version | None:
        """As `find`, without counting."""
        if db is None:
            db = self.db
        row = row_of(db, key)
        effect = self.effects.get(row) or self.below.get(row)
        if effect is not None:
            _, kind, expire_at_ms, payload = effect
            if kind == DELETION or 0 < expire_at_ms <= self.now_ms:
                return None
            # A buffered write has no dot yet: 0 is never minted.
            return Version((0, 0), 0, kind & TYPE_MASK, payload, expire_at_ms, kind & ENCODING_MASK)
        if db in self.flushed:
            return None
        raw = self.store.get(slot_of(key), row)
        return None if raw is None else decode(raw).winner(self.now_ms)

    def exists(self, key: Key, *, db: int | None = None) -> bool:
        """Whether a key is there, without decoding or copying it. Does not count a hit or miss."""
        if self.effects or self.below or self.flushed:
            return self.peek(key, db=db) is not None
        raw = self.store.get(slot_of(key), row_of(self.db if db is None else db, key))
        if raw is None or raw[0] == DELETION:
            return False
        if raw[0] in PLAIN_KINDS:
            return True
        return decode(raw).winner(self.now_ms) is not None

    def locate(self, key: Key) -> tuple[Slot, Row, bytes | None]:
        """Where a key is, and its live state as one encoded version (never MANY), or None.

        It counts no hit or miss. Raises PageFault. Hot: DEL, EXISTS, EXPIRE and TTL look at a byte
        of it and need no `Version`.
        """
        length = len(key)
        if length > 255 or b"{" in key:
            row, slot = row_of(self.db, key), slot_of(key)
        else:
            row = xxh3_64_digest(key)[:6] + MIDDLES[self.db][length] + key
            slot = crc_hqx(key, 0) & 16383
        if self.effects or self.below or self.flushed:
            effect = self.effects.get(row) or self.below.get(row)
            if effect is not None:
                return slot, row, self._visible(encode_effect(effect))
            if self.db in self.flushed:
                return slot, row, None
        raw = self.store.active[slot].get(row)
        if raw is None:
            raw = self.store.lookup(slot, row)
            if raw is None:
                return slot, row, None
        return slot, row, raw if raw[0] in PLAIN_KINDS else self._visible(raw)

    def _visible(self, raw: bytes) -> bytes | None:
        kind = raw[0]
        if kind & MANY:
            version = decode(raw).winner(self.now_ms)
            return None if version is None else encode_version(version)
        if kind & HAS_EXPIRY:
            at_ms = int.from_bytes(raw[HEADER_BYTES:EXPIRY_HEADER_BYTES], "little")
            return raw if at_ms > self.now_ms else None
        return None if kind == DELETION else raw

    def dots(self, key: Key, *, db: int | None = None) -> bytes | None:
        """What identifies the state of a key, for WATCH: it differs if the key was written, or has expired.

        None if there is no trace of the key. Where the traces of a deletion vanish it differs too,
        though nothing changed: then a transaction fails for no reason, which is safe.
        """
        raw = self.store.get(slot_of(key), row_of(self.db if db is None else db, key))
        if raw is None:
            return None
        record = decode(raw)
        if record.winner(self.now_ms) is not None:
            return repr(sorted(record.dots)).encode()
        if any(version.type != DELETION for version in record.versions):
            return None  # Expired: as if it had gone already.
        return b"deleted " + repr(sorted(record.dots)).encode()

    # Writing

    def put_string(
        self, key: Key, value: bytes, *, expire_at_ms: int = 0, encoding: int = 0
    ) -> None:
        """Replace whatever the key held by a string. `expire_at_ms` 0: it never expires; in the past: it is removed.

        `encoding` is RAW_ENCODING for a value that was changed in place, TEXT_ENCODING for a text
        that was computed: OBJECT ENCODING then answers other than by the value's form.
        """
        length = len(key)
        if length > 255 or b"{" in key:
            row, slot = row_of(self.db, key), slot_of(key)
        else:  # The same, inlined: every SET comes by here (bench/serving.py).
            row = xxh3_64_digest(key)[:6] + MIDDLES[self.db][length] + key
            slot = crc_hqx(key, 0) & 16383
        self.effects[row] = (slot, STRING | encoding, expire_at_ms, value)

    def put(self, key: Key, version: Version, *, db: int | None = None) -> None:
        """Write the type, payload, expiry and encoding of a version to a key, under a new dot."""
        kind = version.type | version.encoding
        row = row_of(self.db if db is None else db, key)
        self.effects[row] = (slot_of(key), kind, version.expire_at_ms, version.payload)

    def remove(self, key: Key, *, db: int | None = None) -> None:
        """Delete a key, which the caller has found to exist."""
        row = row_of(self.db if db is None else db, key)
        self.effects[row] = (slot_of(key), DELETION, 0, b"")

    def put_beside(self, key: Key, effect: Effect, beside: Beside) -> None:
        """Write to a key and leave the versions of `beside` as they are. Not inside EXEC."""
        row = row_of(self.db, key)
        self.effects[row] = effect
        self.beside[row] = beside

    def flush(self, dbs: list[int]) -> None:
        """Empty physical databases."""
        for db in dbs:
            self.flushed.add(db)
            for layer in (self.effects, self.below):
                for row in [row for row in layer if row[TAG_OFFSET] == db]:
                    del layer[row]

    @property
    def databases(self) -> list[int]:
        """The physical database of each one that SELECT names, as this command sees it."""
        effect = self.effects.get(DATABASES_ROW) or self.below.get(DATABASES_ROW)
        return list(effect[3]) if effect else self.node.databases

    def swap_databases(self, a: int, b: int) -> None:
        """Exchange what two database numbers name."""
        mapping = list(self.databases)
        mapping[a], mapping[b] = mapping[b], mapping[a]
        self.effects[DATABASES_ROW] = (SYSTEM_SLOT, STRING, 0, bytes(mapping))

    def miss(self, key: Key) -> None:
        """A read has found nothing: count that, and tell of it."""
        self.misses += 1
        if self.notifies:
            self.node.notifier.note_miss(self, key)

    # Keyspace events: to be called if `notifies` is not 0, and before the write

    def notify(self, kind: int, event: bytes, key: Key, *, db: int | None = None) -> None:
        """Tell of an event of a class (`respkv/notification.py`) once the command is committed."""
        self.node.notifier.note(self, kind, event, key, self.db if db is None else db)

    def notify_put(self, kind: int, event: bytes, key: Key, *, db: int | None = None) -> None:
        """As `notify`, of a key that is about to be written, and may be new. Raises PageFault."""
        db = self.db if db is None else db
        self.node.notifier.note_before_put(self, key, db)
        self.node.notifier.note(self, kind, event, key, db)

    # The runner's side

    def take_messages(self) -> list[Message]:
        """What the command that was committed has to say."""
        messages = self.messages
        if messages:
            self.messages = []
        return messages

    def commit(self, written: list[tuple[Slot, Row, bytes]] | None = None) -> None:
        """Mint dots for the buffered writes and hand them to the replica, in order.

        `written` gets what other nodes have to be sent. Raises PageFault, with nothing changed.
        """
        if self.flushed:
            self.replica.flush(sorted(self.flushed))
            self.counts.forget(self.flushed)
            self.flushed.clear()
        if self.beside:
            beside, self.beside = self.beside, {}
            self.replica.write(self.effects, self.now_ms, written, beside)
        else:
            self.replica.write(self.effects, self.now_ms, written)
        if DATABASES_ROW in self.effects:
            self.node.databases[:] = self.effects[DATABASES_ROW][3]
        self.effects.clear()

    def drop(self) -> None:
        """Forget the buffered writes of a handler that raised."""
        if self.effects:
            self.effects = {}
        if self.beside:
            self.beside = {}
        if self.flushed:
            self.flushed.clear()
        if self.messages:
            self.messages = []


__all__ = ["EXPIRY_HEADER_BYTES", "HAS_EXPIRY", "Context", "Effect"]
