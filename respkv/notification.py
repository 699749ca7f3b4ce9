"""Keyspace notifications: an event for each change of a key, published like a message.

It publishes nothing itself (`respkv/pubsub.py`) and knows no command: handlers say what they do, with Redis'
names of events, by `Context.notify` and `Context.notify_put`, *before* they write and only if
`ctx.notifies` is not 0. That is so while the setting `pubsub.keyspace_events` asks for events and anybody
listens to anything, at any node; so events cost nothing else. While they are on, plain GETs and SETs take the
usual way and not that of `respkv/lane.py` and `respkv/group.py`.

    __keyspace@<db>__:<key>      the event           (K)
    __keyevent@<db>__:<event>    the key             (E)

Events wait in `Context.messages` until the command is committed; in a cluster until enough replicas have the
write. The node that executed it says them, once. A command that is answered with an error says nothing, even
where its write lasts after all.

`expired` is said when the key's time has come, by the coordinator of its slot: within a second or two by
the expiry index, or earlier by the command that finds it expired (`_told` remembers this). Keys that
expired while the node was down are not told, nor those whose rows were in tables only when it started.

Core: time is an argument.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.record import DELETION, Record, decode
from cluster.slot import TAG_OFFSET, Key, Row, Slot, key_of, row_of, slot_of
from engine.store import PageFault
from respkv.event_class import EXPIRED, KEYEVENT, KEYSPACE, MISS, NEW, parse_flags
from respkv.pubsub import EVENT, TOLD

if TYPE_CHECKING:
    from respkv.context import Context
    from respkv.node import Node
    from respkv.reply import ReplyError

TOLD_MAX: Final = 100_000


class Notifier:
    """One per node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._flags = 0
        # Rows whose expiry was said by a command: they are in the expiry index yet.
        self._told: dict[Row, None] = {}

    def configure(self, letters: str) -> None:
        """The setting has changed."""
        flags = parse_flags(letters) or 0
        self._flags = flags if flags & (KEYSPACE | KEYEVENT) else 0
        self.look()

    def look(self) -> None:
        """See whether anybody listens, if events are asked for at all."""
        node = self._node
        wanted = self._flags if self._flags and node.pubsub.has_listeners else 0
        if wanted != node.context.notifies:
            node.context.notifies = wanted
            node.replica.expiry_came = self.expiry_came if wanted & EXPIRED else None
            node.observe_changed()

    # What commands do

    def note(self, ctx: Context, kind: int, event: bytes, key: Key, db: int) -> None:
        """An event of a class. `db` is physical."""
        flags = ctx.notifies
        if flags & kind:
            number = ctx.databases.index(db)
            if flags & KEYSPACE:
                ctx.messages.append((EVENT, b"__keyspace@%d__:%b" % (number, key), event))
            if flags & KEYEVENT:
                ctx.messages.append((EVENT, b"__keyevent@%d__:%b" % (number, event), key))

    def note_before_put(self, ctx: Context, key: Key, db: int) -> None:
        """A key is about to be written: it may be new, or take the place of one that expired. Raises PageFault."""
        flags = ctx.notifies
        row = row_of(db, key)
        is_indexed = row in ctx.replica.expiry
        if not flags & NEW and not (flags & EXPIRED and is_indexed):
            return
        effect = ctx.effects.get(row) or ctx.below.get(row)
        if effect is not None:
            is_live = effect[1] != DELETION and not 0 < effect[2] <= ctx.now_ms
        elif db in ctx.flushed:
            is_live = False
        else:
            raw = ctx.store.get(slot_of(key), row)
            record = Record(()) if raw is None else decode(raw)
            is_live = record.winner(ctx.now_ms) is not None
            if is_indexed and not is_live and expiry_of(record, ctx.now_ms):
                if row in self._told:
                    ctx.messages.append((TOLD, row, b""))  # The next expiry is another one.
                elif self._is_mine(slot_of(key)):
                    self.note(ctx, EXPIRED, b"expired", key, db)
        if not is_live:
            self.note(ctx, NEW, b"new", key, db)

    def note_miss(self, ctx: Context, key: Key) -> None:
        """A read has found nothing. Raises PageFault."""
        if ctx.notifies & EXPIRED:
            row = row_of(ctx.db, key)
            if row in ctx.replica.expiry and self._is_mine(slot_of(key)):
                raw = ctx.store.get(slot_of(key), row)
                told = (TOLD, row, b"1")
                if (
                    raw is not None
                    and row not in self._told
                    and told not in ctx.messages
                    and expiry_of(decode(raw), ctx.now_ms)
                ):
                    ctx.messages.append(told)
                    self.note(ctx, EXPIRED, b"expired", key, ctx.db)
        self.note(ctx, MISS, b"keymiss", key, ctx.db)

    def mark(self, row: Row, *, is_told: bool) -> None:
        """The command is committed that has said that a row expired, or that wrote it anew."""
        if not is_told:
            self._told.pop(row, None)
        elif len(self._told) < TOLD_MAX:
            self._told[row] = None

    # What time does

    def _is_mine(self, slot: Slot) -> bool:
        """Whether this node tells of the slot's expired keys."""
        topology = self._node.topology
        return topology is None or topology.coordinators[slot] == topology.me

    def expiry_came(self, slot: Slot, row: Row) -> None:
        """The expiry index says that a row may have expired."""
        if row in self._told:
            del self._told[row]
            return
        if not self._is_mine(slot):
            return
        node = self._node
        try:
            raw = node.store.get(slot, row)
        except PageFault as fault:

            def resume(now_ms: int, failure: ReplyError | None) -> None:
                if failure is None:
                    self.expiry_came(slot, row)

            node.fetch(fault, None, resume)
            return
        if raw is None:
            return
        now_ms = node.now_ms()
        record = decode(raw)
        winner = record.winner(now_ms)
        if winner is not None:
            if winner.expire_at_ms:  # It lives longer by now, and may be in tables only.
                node.replica.expiry.add(slot, row, winner.expire_at_ms)
            return
        at_ms = expiry_of(record, now_ms)
        ctx = node.context
        db = row[TAG_OFFSET]
        if at_ms >= node.started_wall_s * 1000 and db in node.databases and not ctx.messages:
            self.note(ctx, EXPIRED, b"expired", key_of(row), db)
            messages, ctx.messages = ctx.messages, []
            node.pubsub.say(messages)


def expiry_of(record: Record, now_ms: int) -> int:
    """When a record expired of which nothing is visible; 0 if it was deleted."""
    times = [version.expire_at_ms for version in record.versions if version.type != DELETION]
    return max((at_ms for at_ms in times if 0 < at_ms <= now_ms), default=0)
