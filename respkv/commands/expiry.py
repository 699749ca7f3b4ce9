"""Commands on times to live: EXPIRE and its sisters, TTL and its sisters, PERSIST.

An expiry is an absolute time in milliseconds since 1970. It belongs to the version and hides it
from then on; setting one writes the version again under a new dot. A time that has passed already
deletes the key at once.

EXPIRE and TTL are hot: they work on encoded records (`Context.locate`), measured by
bench/serving.py.
"""

from __future__ import annotations

from typing import Final

from cluster.record import DELETION, EXPIRY_HEADER_BYTES, HAS_EXPIRY, HEADER_BYTES
from cluster.slot import Key
from respkv.command import Flag, Keys, command
from respkv.context import Context
from respkv.event_class import GENERIC
from respkv.number import INT64_MAX, integer
from respkv.reply import Reply, ReplyError, invalid_expire

NX_EXCLUDES: Final = ReplyError(
    "ERR NX and XX, GT or LT options at the same time are not compatible"
)
GT_EXCLUDES_LT: Final = ReplyError("ERR GT and LT options at the same time are not compatible")
KEY_MISSING: Final = -2
NO_EXPIRY: Final = -1

_WRITE_FAST: Final = Flag.WRITE | Flag.FAST
_READ_FAST: Final = Flag.READONLY | Flag.FAST
_UPDATED: Final = Keys(1, 1, 1, "RW", "UPDATE")
_ACCESSED: Final = Keys(1, 1, 1, "RO", "ACCESS")
_CONDITION: Final = "[NX | XX | GT | LT]"
_VARIES: Final = ("nondeterministic_output",)
_MILLISECONDS_MAX: Final = INT64_MAX // 1000


@command(
    "EXPIRE",
    arity=-3,
    flags=_WRITE_FAST,
    keys=_UPDATED,
    since="1.0.0",
    group="generic",
    complexity="O(1)",
    usage=f"key seconds {_CONDITION}",
)
def expire(ctx: Context, key: Key, seconds: bytes, *conditions: bytes) -> Reply:
    """Set the time to live of a key in seconds."""
    return _expire(ctx, key, seconds, conditions, "expire", 1000, ctx.now_ms)


@command(
    "PEXPIRE",
    arity=-3,
    flags=_WRITE_FAST,
    keys=_UPDATED,
    since="2.6.0",
    group="generic",
    complexity="O(1)",
    usage=f"key milliseconds {_CONDITION}",
)
def pexpire(ctx: Context, key: Key, milliseconds: bytes, *conditions: bytes) -> Reply:
    """Set the time to live of a key in milliseconds."""
    return _expire(ctx, key, milliseconds, conditions, "pexpire", 1, ctx.now_ms)


@command(
    "EXPIREAT",
    arity=-3,
    flags=_WRITE_FAST,
    keys=_UPDATED,
    since="1.2.0",
    group="generic",
    complexity="O(1)",
    usage=f"key unix-time-seconds {_CONDITION}",
)
def expireat(ctx: Context, key: Key, seconds: bytes, *conditions: bytes) -> Reply:
    """Set the Unix time in seconds at which a key expires."""
    return _expire(ctx, key, seconds, conditions, "expireat", 1000, 0)


@command(
    "PEXPIREAT",
    arity=-3,
    flags=_WRITE_FAST,
    keys=_UPDATED,
    since="2.6.0",
    group="generic",
    complexity="O(1)",
    usage=f"key unix-time-milliseconds {_CONDITION}",
)
def pexpireat(ctx: Context, key: Key, milliseconds: bytes, *conditions: bytes) -> Reply:
    """Set the Unix time in milliseconds at which a key expires."""
    return _expire(ctx, key, milliseconds, conditions, "pexpireat", 1, 0)


def _expire(
    ctx: Context,
    key: Key,
    time: bytes,
    conditions: tuple[bytes, ...],
    name: str,
    unit_ms: int,
    since_ms: int,
) -> int:
    """Set the expiry to `time` units after `since_ms`: 1 if done, 0 if the conditions forbid it."""
    wanted = _parse_conditions(conditions) if conditions else ()
    at_ms = integer(time)
    if unit_ms != 1:
        if not -_MILLISECONDS_MAX <= at_ms <= _MILLISECONDS_MAX:
            raise invalid_expire(name)
        at_ms *= unit_ms
    if at_ms > INT64_MAX - since_ms:
        raise invalid_expire(name)
    at_ms += since_ms
    slot, row, raw = ctx.locate(key)
    if raw is None:
        return 0
    kind = raw[0]
    if kind & HAS_EXPIRY:
        old_ms = int.from_bytes(raw[HEADER_BYTES:EXPIRY_HEADER_BYTES], "little")
        payload_at = EXPIRY_HEADER_BYTES
    else:
        old_ms = 0
        payload_at = HEADER_BYTES
    if wanted and not _is_allowed(wanted, at_ms, old_ms):
        return 0
    if ctx.notifies:
        ctx.notify(GENERIC, b"del" if at_ms <= ctx.now_ms else b"expire", key)
    if at_ms <= ctx.now_ms:
        ctx.effects[row] = (slot, DELETION, 0, b"")
    else:
        ctx.effects[row] = (slot, kind & ~HAS_EXPIRY, at_ms, raw[payload_at:])
    return 1


def _parse_conditions(options: tuple[bytes, ...]) -> frozenset[bytes]:
    """The conditions in upper case. Raises ReplyError, for unknown ones first."""
    wanted = set()
    for option in options:
        upper = option.upper()
        if upper not in (b"NX", b"XX", b"GT", b"LT"):
            shown = (
                option.split(b"\0", 1)[0].rstrip(b"\r\n").replace(b"\r", b" ").replace(b"\n", b" ")
            )
            raise ReplyError(b"ERR Unsupported option " + shown)
        wanted.add(upper)
    if b"NX" in wanted and len(wanted) > 1:
        raise NX_EXCLUDES
    if b"GT" in wanted and b"LT" in wanted:
        raise GT_EXCLUDES_LT
    return frozenset(wanted)


def _is_allowed(wanted: frozenset[bytes] | tuple[()], at_ms: int, old_ms: int) -> bool:
    """`old_ms` 0: the key has no expiry, which counts as one later than any."""
    return not (
        (b"NX" in wanted and old_ms)
        or (b"XX" in wanted and not old_ms)
        or (b"GT" in wanted and (not old_ms or at_ms <= old_ms))
        or (b"LT" in wanted and old_ms and at_ms >= old_ms)
    )


@command(
    "TTL",
    arity=2,
    flags=_READ_FAST,
    keys=_ACCESSED,
    since="1.0.0",
    group="generic",
    complexity="O(1)",
    usage="key",
    tips=_VARIES,
)
def ttl(ctx: Context, key: Key) -> Reply:
    """Return how many seconds a key has left to live."""
    at_ms = _expiry_of(ctx, key)
    return at_ms if at_ms < 0 else (at_ms - ctx.now_ms + 500) // 1000


@command(
    "PTTL",
    arity=2,
    flags=_READ_FAST,
    keys=_ACCESSED,
    since="2.6.0",
    group="generic",
    complexity="O(1)",
    usage="key",
    tips=_VARIES,
)
def pttl(ctx: Context, key: Key) -> Reply:
    """Return how many milliseconds a key has left to live."""
    at_ms = _expiry_of(ctx, key)
    return at_ms if at_ms < 0 else at_ms - ctx.now_ms


@command(
    "EXPIRETIME",
    arity=2,
    flags=_READ_FAST,
    keys=_ACCESSED,
    since="7.0.0",
    group="generic",
    complexity="O(1)",
    usage="key",
)
def expiretime(ctx: Context, key: Key) -> Reply:
    """Return the Unix time in seconds at which a key expires."""
    at_ms = _expiry_of(ctx, key)
    return at_ms if at_ms < 0 else (at_ms + 500) // 1000


@command(
    "PEXPIRETIME",
    arity=2,
    flags=_READ_FAST,
    keys=_ACCESSED,
    since="7.0.0",
    group="generic",
    complexity="O(1)",
    usage="key",
)
def pexpiretime(ctx: Context, key: Key) -> Reply:
    """Return the Unix time in milliseconds at which a key expires."""
    return _expiry_of(ctx, key)


def _expiry_of(ctx: Context, key: Key) -> int:
    """When a key expires, NO_EXPIRY or KEY_MISSING. Counts a hit or a miss. Raises PageFault."""
    raw = ctx.locate(key)[2]
    if raw is None:
        ctx.miss(key)
        return KEY_MISSING
    ctx.hits += 1
    if raw[0] & HAS_EXPIRY:
        return int.from_bytes(raw[HEADER_BYTES:EXPIRY_HEADER_BYTES], "little")
    return NO_EXPIRY


@command(
    "PERSIST",
    arity=2,
    flags=_WRITE_FAST,
    keys=_UPDATED,
    since="2.2.0",
    group="generic",
    complexity="O(1)",
    usage="key",
)
def persist(ctx: Context, key: Key) -> Reply:
    """Let a key live for ever."""
    slot, row, raw = ctx.locate(key)
    if raw is None or not raw[0] & HAS_EXPIRY:
        return 0
    if ctx.notifies:
        ctx.notify(GENERIC, b"persist", key)
    ctx.effects[row] = (slot, raw[0] & ~HAS_EXPIRY, 0, raw[EXPIRY_HEADER_BYTES:])
    return 1
