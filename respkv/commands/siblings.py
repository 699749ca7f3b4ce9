"""The sibling commands: KV.GET, KV.PUT, KV.DEL, KV.SIBLINGS, KV.RESOLVE.

A key has *siblings* when two writes to it did not see each other: both versions are kept, plain commands
show the winner, and these show all. Each says with what it answers which versions were seen, as a causal context
(`respkv/causal_context.py`); a write that brings a context replaces exactly those.

    KV.GET key                     versions, winner first, and a context
    KV.SIBLINGS key                the same without the values
    KV.PUT key value [CONTEXT c]   the versions that c does not cover, and the new one
    KV.DEL key [CONTEXT c]         the versions that c does not cover
    KV.RESOLVE key [VALUE v]       the winner, or v, alone

KV.PUT and KV.DEL are *unchecked*: no replica refuses them, so they go on wherever W replicas can be reached, and
a version that nobody had seen stays. That is also why they are not tried again when nobody knows whether they took
effect: a second KV.PUT would be a sibling of the first. KV.RESOLVE and all other commands are checked, and
supersede all that their coordinator has seen.

A deletion is written as a version too, beside those that stay; it is dropped, as expired versions are, by
the next write here. The dot of a version is minted when the handler has returned: it is the slot's next one,
since a command that runs by itself writes one row (Flag.NO_MULTI sees to that).

Core. Sources: Riak's siblings and vclocks; Preguiça, Baquero et al., Dotted Version Vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cluster import sibling
from cluster.record import DELETION, STRING, Record, Version, decode
from cluster.sibling import Beside, Seen
from cluster.slot import Key, Row, Slot, row_of, slot_of
from respkv.causal_context import FOREIGN
from respkv.command import Flag, Keys, command
from respkv.commands.strings import LIFETIMES, expire_at
from respkv.context import Context
from respkv.keyspace import TYPE_NAMES
from respkv.reply import SYNTAX_ERROR, Fields, Reply, ReplyError

SINCE: Final = "0.1.0"
ALL_TOO_LARGE: Final = ReplyError(
    "ERR the siblings of this key would be too large together for one message between nodes "
    "(cluster.bus_frame_bytes_max): read and merge them first"
)


def too_many(count: int, hard_max: int) -> ReplyError:
    return ReplyError(
        f"ERR too many siblings: the key has {count}, and siblings.hard_max is {hard_max}: "
        "read it (KV.GET), merge them, and write with the context"
    )


@dataclass(frozen=True, slots=True)
class Found:
    """A row as it is stored here."""

    slot: Slot
    row: Row
    stored: bytes
    record: Record

    def live(self, now_ms: int) -> list[Version]:
        """What is to be shown, winner first."""
        return [version for version in self.record.versions if version.is_live(now_ms)]


def _find(ctx: Context, key: Key) -> Found:
    """Raises PageFault."""
    slot, row = slot_of(key), row_of(ctx.db, key)
    raw = ctx.store.get(slot, row)
    return Found(slot, row, raw or b"", Record(()) if raw is None else decode(raw))


# Reading


@command(
    "KV.GET", arity=2, flags=Flag.READONLY | Flag.FAST | Flag.NO_MULTI, keys=Keys(1, 1, 1, "RO", "ACCESS"),
    since=SINCE, group="kv", complexity="O(N) where N is the number of versions", usage="key",
)  # fmt: skip
def kv_get(ctx: Context, key: Key) -> Reply:
    """Return all versions of a key, the winner first, and a causal context for KV.PUT and KV.DEL."""
    found = _find(ctx, key)
    live = found.live(ctx.now_ms)
    if live:
        ctx.hits += 1
    else:
        ctx.misses += 1
    return _shown(ctx, found, [_with_value(version) for version in live])


@command(
    "KV.SIBLINGS", arity=2, flags=Flag.READONLY | Flag.FAST | Flag.NO_MULTI, keys=Keys(1, 1, 1, "RO"),
    since=SINCE, group="kv", complexity="O(N) where N is the number of versions", usage="key",
)  # fmt: skip
def kv_siblings(ctx: Context, key: Key) -> Reply:
    """Return what KV.GET does, without the values."""
    found = _find(ctx, key)
    return _shown(ctx, found, [_without_value(version) for version in found.live(ctx.now_ms)])


def _shown(ctx: Context, found: Found, versions: list[Reply]) -> Reply:
    seen = sibling.seen_with(found.record, ctx.replica.clocks.view(found.slot))
    context = ctx.node.siblings.seal.seal(found.row, seen)
    return Fields({b"versions": versions, b"context": context})


def _with_value(version: Version) -> Reply:
    value = version.payload if version.type == STRING else None
    return Fields({b"value": value, **_facts(version), b"type": _type(version)})


def _without_value(version: Version) -> Reply:
    return Fields({b"length": len(version.payload), **_facts(version), b"type": _type(version)})


def _facts(version: Version) -> dict[bytes, Reply]:
    actor, counter = version.dot
    return {
        b"time": version.hlc >> 16,
        b"dot": b"%016x:%d" % (actor, counter),
        b"expires": version.expire_at_ms or None,
    }


def _type(version: Version) -> bytes:
    return TYPE_NAMES.get(version.type, b"unknown")


# Writing


@command(
    "KV.PUT", arity=-3, flags=Flag.WRITE | Flag.DENYOOM | Flag.NO_MULTI | Flag.UNCHECKED,
    keys=Keys(1, 1, 1, "RW", "UPDATE"), since=SINCE, group="kv",
    complexity="O(N) where N is the number of versions",
    usage="key value [CONTEXT context] [EX seconds | PX milliseconds | EXAT unix-time-seconds |"
    " PXAT unix-time-milliseconds]",
)  # fmt: skip
def kv_put(ctx: Context, key: Key, value: bytes, *args: bytes) -> Reply:
    """Write a version that replaces what its context covers, and stays beside all others."""
    options = _parse_put(ctx, args)
    found = _find(ctx, key)
    seen = _opened(ctx, found, options.context)
    place = _beside(ctx, found, seen)
    count = len(found.live(ctx.now_ms))
    _check_limits(ctx, place.kept, value, is_adding=len(place.kept) == count)
    clocks = ctx.replica.clocks
    dot = (clocks.actor, clocks.own[found.slot] + 1)
    after = sibling.seen_after(seen, place, clocks.view(found.slot), dot)
    context = ctx.node.siblings.seal.seal(found.row, after)
    ctx.put_beside(key, (found.slot, STRING, options.expire_at_ms, value), place)
    return Fields({b"siblings": len(place.kept) + 1, b"context": context})


@dataclass(slots=True)
class PutOptions:
    context: bytes | None = None
    expire_at_ms: int = 0


def _parse_put(ctx: Context, args: tuple[bytes, ...]) -> PutOptions:
    options = PutOptions()
    rest = iter(args)
    for arg in rest:
        name = arg.upper()
        operand = next(rest, None)
        if operand is None:
            raise SYNTAX_ERROR
        if name == b"CONTEXT" and options.context is None:
            options.context = operand
        elif name in LIFETIMES and not options.expire_at_ms:
            options.expire_at_ms = expire_at(ctx, name, operand, "KV.PUT")
        else:
            raise SYNTAX_ERROR
    return options


@command(
    "KV.DEL", arity=-2, flags=Flag.WRITE | Flag.NO_MULTI | Flag.UNCHECKED, keys=Keys(1, 1, 1, "RM", "DELETE"),
    since=SINCE, group="kv", complexity="O(N) where N is the number of versions",
    usage="key [CONTEXT context]",
)  # fmt: skip
def kv_del(ctx: Context, key: Key, *args: bytes) -> Reply:
    """Delete the versions of a key that the context covers, or all that are here; answers how many it found."""
    if args and (len(args) != 2 or args[0].upper() != b"CONTEXT"):
        raise SYNTAX_ERROR
    found = _find(ctx, key)
    live = found.live(ctx.now_ms)
    if not args:
        if live:
            ctx.put_beside(key, (found.slot, DELETION, 0, b""), Beside(found.stored, (), None))
        return len(live)
    place = _beside(ctx, found, _opened(ctx, found, args[1]))
    count = len(live) - len(place.kept)
    if count or place.seen is not None:  # What was read may be at another node only.
        ctx.put_beside(key, (found.slot, DELETION, 0, b""), place)
    return count


def _opened(ctx: Context, found: Found, context: bytes | None) -> Seen:
    """What the client has seen. Raises ReplyError."""
    if context is None:
        return Seen()
    seen = ctx.node.siblings.seal.open(found.row, context)
    # A node never loses what it has done as one actor. If it had, the next versions would be dead at their birth.
    clock, clocks = seen.clock, ctx.replica.clocks
    own = [counter for actor, counter in clock.beyond if actor == clocks.actor]
    if max(clock.base.get(clocks.actor, 0), *own, 0) > clocks.own[found.slot]:
        raise FOREIGN
    return seen


def _beside(ctx: Context, found: Found, seen: Seen) -> Beside:
    made = sibling.beside(found.stored, ctx.replica.clocks.view(found.slot), seen, ctx.now_ms)
    # A node alone would never hear of what is not here.
    return made if ctx.node.peers is not None else made._replace(seen=None)


def _check_limits(
    ctx: Context, kept: tuple[Version, ...], value: bytes, *, is_adding: bool
) -> None:
    """Count a sibling that is made; raises ReplyError if there are too many, or if they are too large together."""
    if not kept:
        return
    siblings, limits, peers = ctx.node.siblings, ctx.node.config.siblings, ctx.node.peers
    if is_adding and len(kept) >= limits.hard_max:
        siblings.refused_total += 1
        raise too_many(len(kept), limits.hard_max)
    if peers is not None:
        size_bytes = len(value) + sum(len(version.payload) for version in kept)
        if size_bytes > peers.dispatch.message_bytes_max:
            raise ALL_TOO_LARGE
    if is_adding:
        siblings.made_total += 1
        siblings.warned_total += len(kept) >= limits.soft_max


# Resolving


@command(
    "KV.RESOLVE", arity=-2, flags=Flag.WRITE | Flag.DENYOOM | Flag.NO_MULTI,
    keys=Keys(1, 1, 1, "RW", "ACCESS", "UPDATE"),
    since=SINCE, group="kv", complexity="O(N) where N is the number of versions",
    usage="key [VALUE value]",
)  # fmt: skip
def kv_resolve(ctx: Context, key: Key, *args: bytes) -> Reply:
    """Keep the winner alone, or the value given instead; answers how many versions that has removed."""
    if args and (len(args) != 2 or args[0].upper() != b"VALUE"):
        raise SYNTAX_ERROR
    live = _find(ctx, key).live(ctx.now_ms)
    removed = len(live) if args else max(0, len(live) - 1)
    if args:
        ctx.put_string(key, args[1])
    elif removed:
        ctx.put(key, live[0])
    return removed
