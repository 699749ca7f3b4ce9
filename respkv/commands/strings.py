"""The string commands: GET, SET and their family. Not the bit commands (`bits`) nor LCS (`lcs`).

Everything here is a plain function over its context: read first, then write. Plain GET and SET are
the hottest paths of the whole server and do nothing else (bench/serving.py): GET is
`Context.string` itself, SET without options reads nothing.

Two facts stand beside a value. Its expiry: commands that replace a value (SET, GETSET, MSET) forget
it, commands that change one (APPEND, INCR, SETRANGE) keep it. Its `raw` mark: what was changed in
place is `raw` to OBJECT ENCODING, whatever its length; what was computed anew (INCR) is not.

Reads made in order to write count neither as hits nor as misses of the keyspace, as in Redis.

Core: no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from cluster.record import (
    EXPIRY_HEADER_BYTES,
    HAS_EXPIRY,
    HEADER_BYTES,
    RAW_ENCODING,
    STRING,
    TEXT_ENCODING,
    TYPE_MASK,
)
from cluster.slot import Key
from respkv.command import TABLE, Flag, Keys, command
from respkv.context import Context
from respkv.event_class import GENERIC
from respkv.event_class import STRING as STRING_EVENT
from respkv.lane import get_lane, set_lane
from respkv.number import INT64_MAX, INT64_MIN, extended, integer
from respkv.reply import (
    INCREMENT_OVERFLOW,
    OK,
    SYNTAX_ERROR,
    WRONG_TYPE,
    Reply,
    ReplyError,
    invalid_expire,
    wrong_arity,
)

READ: Final = Keys(1, 1, 1, "RO", "ACCESS")
CHANGE: Final = Keys(1, 1, 1, "RW", "ACCESS", "UPDATE")
CREATE: Final = Keys(1, 1, 1, "OW", "INSERT")
OVERWRITE: Final = Keys(1, 1, 1, "OW", "UPDATE")

TOO_LONG: Final = ReplyError("ERR string exceeds maximum allowed size (proto-max-bulk-len)")
OFFSET_OUT_OF_RANGE: Final = ReplyError("ERR offset is out of range")
DECREMENT_OVERFLOW: Final = ReplyError("ERR decrement would overflow")
NOT_FINITE: Final = ReplyError("ERR increment would produce NaN or Infinity")

Current = tuple[
    bytes, int, bool
]  # A value that is about to be changed, its expiry (0: none), its raw mark.


def current(ctx: Context, key: Key) -> Current | None:
    """What a command that changes a string finds, uncounted. Raises WRONGTYPE, PageFault."""
    raw = ctx.locate(key)[2]
    return None if raw is None else _decoded(raw)


def _decoded(raw: bytes) -> Current:
    """From an encoded version. Raises WRONGTYPE."""
    kind = raw[0]
    if kind & TYPE_MASK != STRING:
        raise WRONG_TYPE
    if kind & HAS_EXPIRY:
        expire_at_ms = int.from_bytes(raw[HEADER_BYTES:EXPIRY_HEADER_BYTES], "little")
        return raw[EXPIRY_HEADER_BYTES:], expire_at_ms, bool(kind & RAW_ENCODING)
    return raw[HEADER_BYTES:], 0, bool(kind & RAW_ENCODING)


def check_length(ctx: Context, length: int) -> None:
    """Raises the error of a string that would grow beyond what a client may send."""
    if length > ctx.node.limits.bulk_bytes_max:
        raise TOO_LONG


# Options of SET and GETEX


LIFETIMES: Final = frozenset((b"EX", b"PX", b"EXAT", b"PXAT"))
SET_OPTIONS: Final = LIFETIMES | {b"NX", b"XX", b"GET", b"KEEPTTL"}
GETEX_OPTIONS: Final = LIFETIMES | {b"PERSIST"}


@dataclass(slots=True)
class Options:
    """What SET and GETEX were asked. `lifetime` is one of LIFETIMES, KEEPTTL, PERSIST or empty."""

    lifetime: bytes = b""
    amount: bytes = b""
    condition: bytes = b""  # NX, XX or empty.
    is_get: bool = False


def parse_options(args: tuple[bytes, ...], known: frozenset[bytes]) -> Options:
    """An option may be repeated (the last amount counts), but not contradicted."""
    options = Options()
    rest = iter(args)
    for arg in rest:
        name = arg.upper()
        if name not in known:
            raise SYNTAX_ERROR
        if name == b"GET":
            options.is_get = True
        elif name in (b"NX", b"XX"):
            if options.condition not in (b"", name):
                raise SYNTAX_ERROR
            options.condition = name
        else:
            if options.lifetime not in (b"", name):
                raise SYNTAX_ERROR
            options.lifetime = name
            if name in LIFETIMES:
                amount = next(rest, None)
                if amount is None:
                    raise SYNTAX_ERROR
                options.amount = amount
    return options


def expire_at(ctx: Context, unit: bytes, amount: bytes, name: str) -> int:
    """The time in milliseconds that EX, PX, EXAT or PXAT with `amount` means for that command."""
    value = integer(amount)
    if unit in (b"EX", b"EXAT"):
        value *= 1000
    if 0 < value <= INT64_MAX and unit in (b"EX", b"PX"):
        value += ctx.now_ms
    if not 0 < value <= INT64_MAX:
        raise invalid_expire(name)
    return value


# Reading


@command(
    "GET", arity=2, flags=Flag.READONLY | Flag.FAST, keys=READ,
    since="1.0.0", group="string", complexity="O(1)", usage="key", lane=get_lane,
)  # fmt: skip
def get(ctx: Context, key: Key) -> Reply:
    """Read the string stored at a key."""
    return ctx.string(key)


# The same without the call in between: the handler of GET is the context's own method.
TABLE.commands["GET"].handler = Context.string


@command(
    "MGET", arity=-2, flags=Flag.READONLY | Flag.FAST, keys=Keys(1, -1, 1, "RO", "ACCESS"),
    since="1.0.0", group="string", complexity="O(N) where N is the number of keys to retrieve.",
    usage="key [key ...]", tips=("request_policy:multi_shard",),
)  # fmt: skip
def mget(ctx: Context, *keys: Key) -> Reply:
    """Read the strings stored at several keys, null for those that hold none."""
    values: list[Reply] = []
    for key in keys:
        try:
            values.append(ctx.string(key))
        except ReplyError as error:
            if error is not WRONG_TYPE:
                raise
            error.__traceback__ = (
                None  # It is a shared object, which would keep the frames of every raise.
            )
            values.append(None)
    return values


@command(
    "STRLEN", arity=2, flags=Flag.READONLY | Flag.FAST, keys=Keys(1, 1, 1, "RO"),
    since="2.2.0", group="string", complexity="O(1)", usage="key",
)  # fmt: skip
def strlen(ctx: Context, key: Key) -> Reply:
    """Tell how many bytes the string stored at a key has."""
    return len(ctx.string(key) or b"")


SUBSTRING_COMPLEXITY: Final = "O(N) where N is the number of bytes returned."


@command(
    "GETRANGE", arity=4, flags=Flag.READONLY, keys=READ,
    since="2.4.0", group="string", complexity=SUBSTRING_COMPLEXITY, usage="key start end",
)  # fmt: skip
def getrange(ctx: Context, key: Key, start: bytes, end: bytes) -> Reply:
    """Read the part of a string between two offsets, both included."""
    first, last = integer(start), integer(end)
    value = ctx.string(key) or b""
    if first < 0 and last < 0 and first > last:
        return b""
    # Before the beginning means at it, for the end too: GETRANGE 0 -100 reads a byte, as in Redis.
    first = max(first + len(value), 0) if first < 0 else first
    last = max(last + len(value), 0) if last < 0 else last
    return value[first : last + 1]


@command(
    "SUBSTR", arity=4, flags=Flag.READONLY, keys=READ,
    since="1.0.0", group="string", complexity=SUBSTRING_COMPLEXITY, usage="key start end",
)  # fmt: skip
def substr(ctx: Context, key: Key, start: bytes, end: bytes) -> Reply:
    """Read the part of a string between two offsets. The old name of GETRANGE."""
    return getrange(ctx, key, start, end)


# Replacing


@command(
    "SET", arity=-3, flags=Flag.WRITE | Flag.DENYOOM,
    keys=Keys(1, 1, 1, "RW", "ACCESS", "UPDATE", "VARIABLE_FLAGS"),
    since="1.0.0", group="string", complexity="O(1)",
    usage="key value [NX | XX] [GET] [EX seconds | PX milliseconds |"
    " EXAT unix-time-seconds | PXAT unix-time-milliseconds | KEEPTTL]",
    lane=set_lane,
)  # fmt: skip
def set_(ctx: Context, key: Key, value: bytes, *options: bytes) -> Reply:
    """Store a string at a key, whatever it held, on conditions and with an expiry if asked."""
    if options:
        return _set_with(ctx, key, value, parse_options(options, SET_OPTIONS))
    if ctx.notifies:
        ctx.notify_put(STRING_EVENT, b"set", key)
    ctx.put_string(key, value)
    return OK


def _set_with(ctx: Context, key: Key, value: bytes, options: Options) -> Reply:
    expire_at_ms = 0
    if options.lifetime in LIFETIMES:
        expire_at_ms = expire_at(ctx, options.lifetime, options.amount, "SET")
    old = ctx.string(key) if options.is_get else None
    if options.condition:
        is_there = old is not None or ctx.exists(key)
        if is_there != (options.condition == b"XX"):
            return old
    if options.lifetime == b"KEEPTTL":
        found = ctx.peek(key)
        expire_at_ms = found.expire_at_ms if found is not None else 0
    if ctx.notifies:
        ctx.notify_put(STRING_EVENT, b"set", key)
        if options.lifetime in LIFETIMES:
            ctx.notify(GENERIC, b"expire", key)
    ctx.put_string(key, value, expire_at_ms=expire_at_ms)
    return old if options.is_get else OK


@command(
    "SETNX", arity=3, flags=Flag.WRITE | Flag.DENYOOM | Flag.FAST, keys=CREATE,
    since="1.0.0", group="string", complexity="O(1)", usage="key value",
)  # fmt: skip
def setnx(ctx: Context, key: Key, value: bytes) -> Reply:
    """Store a string at a key only if the key is absent."""
    if ctx.exists(key):
        return 0
    if ctx.notifies:
        ctx.notify_put(STRING_EVENT, b"set", key)
    ctx.put_string(key, value)
    return 1


@command(
    "SETEX", arity=4, flags=Flag.WRITE | Flag.DENYOOM, keys=OVERWRITE,
    since="2.0.0", group="string", complexity="O(1)", usage="key seconds value",
)  # fmt: skip
def setex(ctx: Context, key: Key, seconds: bytes, value: bytes) -> Reply:
    """Store a string at a key for a number of seconds."""
    _put_for(ctx, key, value, expire_at(ctx, b"EX", seconds, "SETEX"))
    return OK


def _put_for(ctx: Context, key: Key, value: bytes, expire_at_ms: int) -> None:
    if ctx.notifies:
        ctx.notify_put(STRING_EVENT, b"set", key)
        ctx.notify(GENERIC, b"expire", key)
    ctx.put_string(key, value, expire_at_ms=expire_at_ms)


@command(
    "PSETEX", arity=4, flags=Flag.WRITE | Flag.DENYOOM, keys=OVERWRITE,
    since="2.6.0", group="string", complexity="O(1)", usage="key milliseconds value",
)  # fmt: skip
def psetex(ctx: Context, key: Key, milliseconds: bytes, value: bytes) -> Reply:
    """Store a string at a key for a number of milliseconds."""
    _put_for(ctx, key, value, expire_at(ctx, b"PX", milliseconds, "PSETEX"))
    return OK


@command(
    "GETSET", arity=3, flags=Flag.WRITE | Flag.DENYOOM | Flag.FAST, keys=CHANGE,
    since="1.0.0", group="string", complexity="O(1)", usage="key value",
)  # fmt: skip
def getset(ctx: Context, key: Key, value: bytes) -> Reply:
    """Store a string at a key and answer the one that it held."""
    old = ctx.string(key)
    if ctx.notifies:
        ctx.notify_put(STRING_EVENT, b"set", key)
    ctx.put_string(key, value)
    return old


@command(
    "GETDEL", arity=2, flags=Flag.WRITE | Flag.FAST, keys=Keys(1, 1, 1, "RW", "ACCESS", "DELETE"),
    since="6.2.0", group="string", complexity="O(1)", usage="key",
)  # fmt: skip
def getdel(ctx: Context, key: Key) -> Reply:
    """Read the string stored at a key and delete the key."""
    old = ctx.string(key)
    if old is not None:
        if ctx.notifies:
            ctx.notify(GENERIC, b"del", key)
        ctx.remove(key)
    return old


@command(
    "GETEX", arity=-2, flags=Flag.WRITE | Flag.FAST, keys=CHANGE,
    since="6.2.0", group="string", complexity="O(1)",
    usage="key [EX seconds | PX milliseconds | EXAT unix-time-seconds |"
    " PXAT unix-time-milliseconds | PERSIST]",
)  # fmt: skip
def getex(ctx: Context, key: Key, *args: bytes) -> Reply:
    """Read the string stored at a key and change or remove the key's expiry."""
    options = parse_options(args, GETEX_OPTIONS)
    found = ctx.find(key)
    if found is None:
        return None
    if found.type != STRING:
        raise WRONG_TYPE
    expire_at_ms = 0
    if options.lifetime in LIFETIMES:
        expire_at_ms = expire_at(ctx, options.lifetime, options.amount, "GETEX")
        if expire_at_ms <= ctx.now_ms:
            if ctx.notifies:
                ctx.notify(GENERIC, b"del", key)
            ctx.remove(key)
            return found.payload
    if expire_at_ms or (options.lifetime == b"PERSIST" and found.expire_at_ms):
        if ctx.notifies:
            ctx.notify(GENERIC, b"expire" if expire_at_ms else b"persist", key)
        ctx.put(key, replace(found, expire_at_ms=expire_at_ms))
    return found.payload


def _pairs(name: str, args: tuple[bytes, ...]) -> dict[Key, bytes]:
    """Keys with their values, the last one of a key that is named twice."""
    if len(args) % 2:
        raise wrong_arity(name)
    return dict(zip(args[::2], args[1::2], strict=True))


@command(
    "MSET", arity=-3, flags=Flag.WRITE | Flag.DENYOOM, keys=Keys(1, -1, 2, "OW", "UPDATE"),
    since="1.0.1", group="string", complexity="O(N) where N is the number of keys to set.",
    usage="key value [key value ...]",
    tips=("request_policy:multi_shard", "response_policy:all_succeeded"),
)  # fmt: skip
def mset(ctx: Context, *args: bytes) -> Reply:
    """Store strings at several keys."""
    _put_all(ctx, _pairs("MSET", args), args)
    return OK


def _put_all(ctx: Context, pairs: dict[Key, bytes], args: tuple[bytes, ...]) -> None:
    if ctx.notifies:  # One by one: a key that is named twice has two events, and is new once.
        for key, value in zip(args[::2], args[1::2], strict=True):
            ctx.notify_put(STRING_EVENT, b"set", key)
            ctx.put_string(key, value)
        return
    for key, value in pairs.items():
        ctx.put_string(key, value)


@command(
    "MSETNX", arity=-3, flags=Flag.WRITE | Flag.DENYOOM, keys=Keys(1, -1, 2, "OW", "INSERT"),
    since="1.0.1", group="string", complexity="O(N) where N is the number of keys to set.",
    usage="key value [key value ...]",
    tips=("request_policy:multi_shard", "response_policy:agg_min"),
)  # fmt: skip
def msetnx(ctx: Context, *args: bytes) -> Reply:
    """Store strings at several keys only if all of the keys are absent."""
    pairs = _pairs("MSETNX", args)
    if any(ctx.exists(key) for key in pairs):
        return 0
    _put_all(ctx, pairs, args)
    return 1


# Changing


@command(
    "APPEND", arity=3, flags=Flag.WRITE | Flag.DENYOOM | Flag.FAST,
    keys=Keys(1, 1, 1, "RW", "INSERT"),
    since="2.0.0", group="string", usage="key value",
    complexity="O(N) where N is the length of the resulting string.",
)  # fmt: skip
def append(ctx: Context, key: Key, value: bytes) -> Reply:
    """Add bytes to the end of the string stored at a key, which is created if absent."""
    found = current(ctx, key)
    if found is None:
        if ctx.notifies:
            ctx.notify_put(STRING_EVENT, b"append", key)
        ctx.put_string(key, value)
        return len(value)
    old, expire_at_ms, _ = found
    check_length(ctx, len(old) + len(value))
    if ctx.notifies:
        ctx.notify(STRING_EVENT, b"append", key)
    ctx.put_string(key, old + value, expire_at_ms=expire_at_ms, encoding=RAW_ENCODING)
    return len(old) + len(value)


@command(
    "SETRANGE", arity=4, flags=Flag.WRITE | Flag.DENYOOM, keys=Keys(1, 1, 1, "RW", "UPDATE"),
    since="2.2.0", group="string", usage="key offset value",
    complexity="O(N) where N is the length of the resulting string.",
)  # fmt: skip
def setrange(ctx: Context, key: Key, offset: bytes, value: bytes) -> Reply:
    """Overwrite a part of the string stored at a key, which grows with zero bytes if needed."""
    start = integer(offset)
    if start < 0:
        raise OFFSET_OUT_OF_RANGE
    old, expire_at_ms, _ = current(ctx, key) or (b"", 0, False)
    if not value:
        return len(old)
    check_length(ctx, start + len(value))
    view = memoryview(old)
    parts = (view[:start], bytes(max(start - len(old), 0)), value, view[start + len(value) :])
    new = b"".join(parts)
    if ctx.notifies:
        ctx.notify_put(STRING_EVENT, b"setrange", key)
    ctx.put_string(key, new, expire_at_ms=expire_at_ms, encoding=RAW_ENCODING)
    return len(new)


def _increment(ctx: Context, key: Key, by: int) -> int:
    """Hot: INCR is a usual benchmark (bench/serving.py), so the key is hashed only once."""
    slot, row, raw = ctx.locate(key)
    if raw is None:
        value, expire_at_ms = by, 0
    else:
        old, expire_at_ms, _ = _decoded(raw)
        value = integer(old) + by
        if not INT64_MIN <= value <= INT64_MAX:
            raise INCREMENT_OVERFLOW
    if ctx.notifies:
        ctx.notify_put(STRING_EVENT, b"incrby", key)
    ctx.effects[row] = (slot, STRING, expire_at_ms, b"%d" % value)
    return value


@command(
    "INCR", arity=2, flags=Flag.WRITE | Flag.DENYOOM | Flag.FAST, keys=CHANGE,
    since="1.0.0", group="string", complexity="O(1)", usage="key",
)  # fmt: skip
def incr(ctx: Context, key: Key) -> Reply:
    """Add one to the integer stored at a key; an absent key counts as 0."""
    return _increment(ctx, key, 1)


@command(
    "DECR", arity=2, flags=Flag.WRITE | Flag.DENYOOM | Flag.FAST, keys=CHANGE,
    since="1.0.0", group="string", complexity="O(1)", usage="key",
)  # fmt: skip
def decr(ctx: Context, key: Key) -> Reply:
    """Subtract one from the integer stored at a key; an absent key counts as 0."""
    return _increment(ctx, key, -1)


@command(
    "INCRBY", arity=3, flags=Flag.WRITE | Flag.DENYOOM | Flag.FAST, keys=CHANGE,
    since="1.0.0", group="string", complexity="O(1)", usage="key increment",
)  # fmt: skip
def incrby(ctx: Context, key: Key, increment: bytes) -> Reply:
    """Add a number to the integer stored at a key; an absent key counts as 0."""
    return _increment(ctx, key, integer(increment))


@command(
    "DECRBY", arity=3, flags=Flag.WRITE | Flag.DENYOOM | Flag.FAST, keys=CHANGE,
    since="1.0.0", group="string", complexity="O(1)", usage="key decrement",
)  # fmt: skip
def decrby(ctx: Context, key: Key, decrement: bytes) -> Reply:
    """Subtract a number from the integer stored at a key; an absent key counts as 0."""
    by = integer(decrement)
    if by == INT64_MIN:  # It has no positive counterpart.
        raise DECREMENT_OVERFLOW
    return _increment(ctx, key, -by)


@command(
    "INCRBYFLOAT", arity=3, flags=Flag.WRITE | Flag.DENYOOM | Flag.FAST, keys=CHANGE,
    since="2.6.0", group="string", complexity="O(1)", usage="key increment:double",
)  # fmt: skip
def incrbyfloat(ctx: Context, key: Key, increment: bytes) -> Reply:
    """Add a number to the decimal number stored at a key; an absent key counts as 0."""
    old, expire_at_ms, _ = current(ctx, key) or (b"0", 0, False)
    total = extended(old).plus(extended(increment))
    if total is None or total.is_infinite:
        raise NOT_FINITE
    text = total.text()
    if ctx.notifies:
        ctx.notify_put(STRING_EVENT, b"incrbyfloat", key)
    ctx.put_string(key, text, expire_at_ms=expire_at_ms, encoding=TEXT_ENCODING)
    return text
