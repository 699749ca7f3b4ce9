"""Commands on keys of any type: DEL, EXISTS, TYPE, RENAME, COPY, MOVE, SWAPDB, OBJECT and sisters.

What moves a value writes the target first and then removes the source: a crash between the two
leaves the key twice, never nowhere. Expiry and encoding go along.

DEL and EXISTS are hot: they work on encoded records (`Context.locate`), measured by
bench/serving.py.
"""

from __future__ import annotations

from typing import Final

from cluster.record import DELETION, RAW_ENCODING, TYPE_MASK, Version
from cluster.slot import DATABASE_COUNT, Key
from respkv.cluster_view import COPY_REFUSED, MOVE_REFUSED, SWAPDB_REFUSED
from respkv.command import Flag, Keys, command, container
from respkv.context import Context
from respkv.event_class import GENERIC, NEW
from respkv.keyspace import TYPE_NAMES
from respkv.number import integer, integer_or_none
from respkv.reply import NO_SUCH_KEY, OK, SYNTAX_ERROR, Reply, ReplyError, Simple

SAME_OBJECT: Final = ReplyError("ERR source and destination objects are the same")
DATABASE_OUT_OF_RANGE: Final = ReplyError("ERR DB index is out of range")
NOT_A_DATABASE: Final = ReplyError(
    "ERR value is out of range, value must between -2147483648 and 2147483647"
)
INVALID_FIRST_DATABASE: Final = ReplyError("ERR invalid first DB index")
INVALID_SECOND_DATABASE: Final = ReplyError("ERR invalid second DB index")
NO_LFU: Final = ReplyError(
    "ERR An LFU maxmemory policy is not selected, access frequency not tracked. "
    "Please note that when switching between policies at runtime LRU and LFU data "
    "will take some time to adjust."
)
EMBEDDED_BYTES_MAX: Final = 44  # Redis keeps strings up to this in one piece with their header.
SHARED_INTEGERS: Final = (
    10_000  # Redis keeps one object for each of the integers below, and says so.
)
SHARED_REFCOUNT: Final = 2**31 - 1
SWAPPED: Final = b"swapped"  # In a session's watches: equal to no dots, so EXEC finds a change.

_SUMMED: Final = ("request_policy:multi_shard", "response_policy:agg_sum")
_REMOVED: Final = Keys(1, -1, 1, "RM", "DELETE")
_LOOKED_AT: Final = Keys(1, -1, 1, "RO")


@command(
    "DEL",
    arity=-2,
    flags=Flag.WRITE,
    keys=_REMOVED,
    since="1.0.0",
    group="generic",
    complexity="O(N) with N the number of keys.",
    usage="key [key ...]",
    tips=_SUMMED,
)
def delete(ctx: Context, *keys: Key) -> Reply:
    """Delete keys."""
    count = 0
    for key in keys:
        slot, row, raw = ctx.locate(key)
        if raw is not None:
            if ctx.notifies:
                ctx.notify(GENERIC, b"del", key)
            ctx.effects[row] = (slot, DELETION, 0, b"")
            count += 1
    return count


@command(
    "UNLINK",
    arity=-2,
    flags=Flag.WRITE | Flag.FAST,
    keys=_REMOVED,
    since="4.0.0",
    group="generic",
    complexity="O(N) with N the number of keys.",
    usage="key [key ...]",
    tips=_SUMMED,
)
def unlink(ctx: Context, *keys: Key) -> Reply:
    """Delete keys, and give back their memory later."""
    return delete(ctx, *keys)


@command(
    "EXISTS",
    arity=-2,
    flags=Flag.READONLY | Flag.FAST,
    keys=_LOOKED_AT,
    since="1.0.0",
    group="generic",
    complexity="O(N) with N the number of keys.",
    usage="key [key ...]",
    tips=_SUMMED,
)
def exists(ctx: Context, *keys: Key) -> Reply:
    """Count how many of the keys exist."""
    count = 0
    for key in keys:
        if ctx.locate(key)[2] is not None:
            count += 1
        elif ctx.notifies:
            ctx.miss(key)
            ctx.misses -= 1  # It is counted below.
    ctx.hits += count
    ctx.misses += len(keys) - count
    return count


@command(
    "TOUCH",
    arity=-2,
    flags=Flag.READONLY | Flag.FAST,
    keys=_LOOKED_AT,
    since="3.2.1",
    group="generic",
    complexity="O(N) with N the number of keys.",
    usage="key [key ...]",
    tips=_SUMMED,
)
def touch(ctx: Context, *keys: Key) -> Reply:
    """Count how many of the keys exist, as if they were read."""
    return exists(ctx, *keys)


@command(
    "TYPE",
    arity=2,
    flags=Flag.READONLY | Flag.FAST,
    keys=Keys(1, 1, 1, "RO"),
    since="1.0.0",
    group="generic",
    complexity="O(1)",
    usage="key",
)
def type_(ctx: Context, key: Key) -> Reply:
    """Return the type of the value that a key holds."""
    raw = ctx.locate(key)[2]
    if raw is None:
        ctx.miss(key)
        return Simple(b"none")
    ctx.hits += 1
    return Simple(TYPE_NAMES[raw[0] & TYPE_MASK])


@command(
    "RENAME",
    arity=3,
    flags=Flag.WRITE,
    keys=(Keys(1, 1, 1, "RW", "ACCESS", "DELETE"), Keys(2, 2, 1, "OW", "UPDATE")),
    since="1.0.0",
    group="generic",
    complexity="O(1)",
    usage="key newkey",
)
def rename(ctx: Context, key: Key, newkey: Key) -> Reply:
    """Give a key another name, overwriting what has it."""
    version = ctx.peek(key)
    if version is None:
        raise NO_SUCH_KEY
    if key != newkey:
        _rename(ctx, key, newkey, version)
    return OK


def _rename(ctx: Context, key: Key, newkey: Key, version: Version) -> None:
    if ctx.notifies:
        # Redis removes what has the name first: so the key is new in any case.
        ctx.notify(NEW, b"new", newkey)
        ctx.notify(GENERIC, b"rename_from", key)
        ctx.notify(GENERIC, b"rename_to", newkey)
    ctx.put(newkey, version)
    ctx.remove(key)


@command(
    "RENAMENX",
    arity=3,
    flags=Flag.WRITE | Flag.FAST,
    keys=(Keys(1, 1, 1, "RW", "ACCESS", "DELETE"), Keys(2, 2, 1, "OW", "INSERT")),
    since="1.0.0",
    group="generic",
    complexity="O(1)",
    usage="key newkey",
)
def renamenx(ctx: Context, key: Key, newkey: Key) -> Reply:
    """Give a key another name unless that one exists."""
    version = ctx.peek(key)
    if version is None:
        raise NO_SUCH_KEY
    if key == newkey or ctx.exists(newkey):
        return 0
    _rename(ctx, key, newkey, version)
    return 1


@command(
    "COPY",
    arity=-3,
    flags=Flag.WRITE | Flag.DENYOOM,
    keys=(Keys(1, 1, 1, "RO", "ACCESS"), Keys(2, 2, 1, "OW", "UPDATE")),
    since="6.2.0",
    group="generic",
    complexity="O(N) with N the size of the value.",
    usage="source destination [DB destination-db] [REPLACE]",
)
def copy(ctx: Context, source: Key, destination: Key, *options: bytes) -> Reply:
    """Copy the value of a key to another key, also of another database."""
    db, is_replacing = _parse_copy(ctx, options)
    if db != ctx.db and ctx.session.is_cluster:
        raise COPY_REFUSED
    if db == ctx.db and source == destination:
        raise SAME_OBJECT
    version = ctx.find(source)
    if version is None or (not is_replacing and ctx.exists(destination, db=db)):
        return 0
    if ctx.notifies:
        ctx.notify(NEW, b"new", destination, db=db)
        ctx.notify(GENERIC, b"copy_to", destination, db=db)
    ctx.put(destination, version, db=db)
    return 1


def _parse_copy(ctx: Context, options: tuple[bytes, ...]) -> tuple[int, bool]:
    """The physical database to copy to, and whether to replace. Raises ReplyError."""
    db, is_replacing = ctx.db, False
    rest = iter(options)
    for option in rest:
        upper = option.upper()
        if upper == b"REPLACE":
            is_replacing = True
        elif upper == b"DB" and (number := next(rest, None)) is not None:
            db = ctx.databases[_database(number)]
        else:
            raise SYNTAX_ERROR
    return db, is_replacing


@command(
    "MOVE",
    arity=3,
    flags=Flag.WRITE | Flag.FAST,
    keys=Keys(1, 1, 1, "RW", "ACCESS", "UPDATE"),
    since="1.0.0",
    group="generic",
    complexity="O(1)",
    usage="key db",
)
def move(ctx: Context, key: Key, number: bytes) -> Reply:
    """Move a key to another database."""
    if ctx.session.is_cluster:
        raise MOVE_REFUSED
    db = ctx.databases[_database(number)]
    if db == ctx.db:
        raise SAME_OBJECT
    version = ctx.peek(key)
    if version is None or ctx.exists(key, db=db):
        return 0
    if ctx.notifies:
        ctx.notify(NEW, b"new", key, db=db)
        ctx.notify(GENERIC, b"move_from", key)
        ctx.notify(GENERIC, b"move_to", key, db=db)
    ctx.put(key, version, db=db)
    ctx.remove(key)
    return 1


def _database(number: bytes) -> int:
    """What SELECT names by that number. Raises ReplyError."""
    value = integer(number)
    if not -(2**31) <= value < 2**31:
        raise NOT_A_DATABASE
    if not 0 <= value < DATABASE_COUNT:
        raise DATABASE_OUT_OF_RANGE
    return value


@command(
    "SWAPDB",
    arity=3,
    flags=Flag.WRITE | Flag.FAST,
    since="4.0.0",
    group="server",
    complexity="O(N) with N the number of clients and of the keys that they watch.",
    usage="index1 index2",
    acl=("keyspace", "dangerous"),
)
def swapdb(ctx: Context, index1: bytes, index2: bytes) -> Reply:
    """Exchange two databases, for all clients at once."""
    if ctx.session.is_cluster:
        raise SWAPDB_REFUSED
    first = integer(index1, INVALID_FIRST_DATABASE)
    if not -(2**31) <= first < 2**31:
        raise INVALID_FIRST_DATABASE
    second = integer(index2, INVALID_SECOND_DATABASE)
    if not -(2**31) <= second < 2**31:
        raise INVALID_SECOND_DATABASE
    if not (0 <= first < DATABASE_COUNT and 0 <= second < DATABASE_COUNT):
        raise DATABASE_OUT_OF_RANGE
    if first != second:
        _disturb_watches(ctx, first, second)
        ctx.swap_databases(first, second)
    return OK


def _disturb_watches(ctx: Context, first: int, second: int) -> None:
    """Two databases change places: keys that are watched there, and are in one of them, have changed.

    That is so even if they change places once more. It stands when the handler runs again after a
    fault: it can only make an EXEC fail that a client then repeats. Raises PageFault.
    """
    databases = ctx.databases
    for session in ctx.node.front.by_session:
        if session is ctx.session and ctx.is_atomic:
            continue  # The EXEC under way has checked its watches.
        for db, key in list(session.watches):
            if db in (first, second) and (
                ctx.exists(key, db=databases[first]) or ctx.exists(key, db=databases[second])
            ):
                session.watches[db, key] = SWAPPED


container(
    "OBJECT", since="2.2.3", group="generic", summary="Commands that look into how a value is kept"
)


@command(
    "OBJECT|ENCODING",
    arity=3,
    flags=Flag.READONLY,
    keys=Keys(2, 2, 1, "RO"),
    since="2.2.3",
    group="generic",
    complexity="O(1)",
    usage="key",
    tips=("nondeterministic_output",),
)
def object_encoding(ctx: Context, key: Key) -> Reply:
    """Return the name of the form in which Redis would keep the value."""
    version = ctx.find(key, is_told=False)
    return None if version is None else encoding_of(version)


def encoding_of(version: Version) -> bytes:
    """`int`, `embstr` or `raw`, as Redis chooses for the string."""
    if version.encoding == RAW_ENCODING:
        return b"raw"
    if version.encoding == 0 and integer_or_none(version.payload) is not None:
        return b"int"
    return b"embstr" if len(version.payload) <= EMBEDDED_BYTES_MAX else b"raw"


@command(
    "OBJECT|REFCOUNT",
    arity=3,
    flags=Flag.READONLY,
    keys=Keys(2, 2, 1, "RO"),
    since="2.2.3",
    group="generic",
    complexity="O(1)",
    usage="key",
    tips=("nondeterministic_output",),
)
def object_refcount(ctx: Context, key: Key) -> Reply:
    """Return how many references Redis would hold to the value."""
    version = ctx.find(key, is_told=False)
    if version is None:
        return None
    if encoding_of(version) == b"int" and 0 <= int(version.payload) < SHARED_INTEGERS:
        return SHARED_REFCOUNT
    return 1


@command(
    "OBJECT|IDLETIME",
    arity=3,
    flags=Flag.READONLY,
    keys=Keys(2, 2, 1, "RO"),
    since="2.2.3",
    group="generic",
    complexity="O(1)",
    usage="key",
    tips=("nondeterministic_output",),
)
def object_idletime(ctx: Context, key: Key) -> Reply:
    """Return the seconds since the value was written; reads are not noted."""
    version = ctx.find(key, is_told=False)
    if version is None:
        return None
    if not version.hlc:  # Written by this very transaction.
        return 0
    return max(0, ctx.now_ms - (version.hlc >> 16)) // 1000


@command(
    "OBJECT|FREQ",
    arity=3,
    flags=Flag.READONLY,
    keys=Keys(2, 2, 1, "RO"),
    since="4.0.0",
    group="generic",
    complexity="O(1)",
    usage="key",
    tips=("nondeterministic_output",),
)
def object_freq(ctx: Context, key: Key) -> Reply:
    """Answer an error: how often a key is used is not counted, since nothing is evicted."""
    if ctx.find(key, is_told=False) is None:
        return None
    raise NO_LFU


@command(
    "OBJECT|HELP",
    arity=2,
    flags=Flag.LOADING | Flag.STALE,
    since="6.2.0",
    group="generic",
    complexity="O(1)",
)
def object_help(ctx: Context) -> Reply:
    """List the subcommands of OBJECT."""
    return [Simple(line) for line in _HELP]


_HELP: Final = (
    b"OBJECT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    b"ENCODING <key>",
    b"    The form in which Redis would keep the value: int, embstr or raw.",
    b"FREQ <key>",
    b"    Always an error: the use of keys is not counted, since nothing is evicted.",
    b"IDLETIME <key>",
    b"    Seconds since the value was written.",
    b"REFCOUNT <key>",
    b"    How many references Redis would hold to the value.",
    b"HELP",
    b"    This text.",
)
