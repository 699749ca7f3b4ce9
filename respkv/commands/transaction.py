"""MULTI, EXEC, DISCARD, WATCH and UNWATCH.

The gate queues what stands between MULTI and EXEC; `respkv/transaction.py` executes it.
WATCH notes the dots of each key; EXEC does nothing if one of them differs.
"""

from __future__ import annotations

from typing import Final

from cluster.slot import Key
from respkv.command import Flag, Keys, command
from respkv.context import Context
from respkv.reply import OK, Reply, ReplyError
from respkv.transaction import begin_transaction, end_transaction, execute_transaction

EXEC_WITHOUT_MULTI: Final = ReplyError("ERR EXEC without MULTI")
DISCARD_WITHOUT_MULTI: Final = ReplyError("ERR DISCARD without MULTI")
WATCH_INSIDE_MULTI: Final = ReplyError("ERR WATCH inside MULTI is not allowed")
_FLAGS: Final = Flag.NOSCRIPT | Flag.LOADING | Flag.STALE | Flag.FAST | Flag.ALLOW_BUSY


@command(
    "MULTI",
    arity=1,
    flags=_FLAGS | Flag.CONTROL,
    since="1.2.0",
    group="transactions",
    complexity="O(1)",
)
def multi(ctx: Context) -> Reply:
    """Begin a transaction: the commands that follow are queued."""
    return begin_transaction(ctx.session)


@command(
    "EXEC",
    arity=1,
    flags=Flag.NOSCRIPT | Flag.LOADING | Flag.STALE | Flag.SKIP_SLOWLOG | Flag.CONTROL,
    since="1.2.0",
    group="transactions",
    complexity="That of the queued commands.",
)
def exec_(ctx: Context) -> Reply:
    """Execute the queued commands, with nothing between them."""
    if ctx.session.transaction is None:
        raise EXEC_WITHOUT_MULTI
    long_way = ctx.node.runner.long_way
    return execute_transaction(ctx, long_way.call, long_way.show)


@command(
    "DISCARD",
    arity=1,
    flags=_FLAGS | Flag.CONTROL,
    since="2.0.0",
    group="transactions",
    complexity="O(N) with N the number of queued commands.",
)
def discard(ctx: Context) -> Reply:
    """Forget the queued commands and the watched keys."""
    if ctx.session.transaction is None:
        raise DISCARD_WITHOUT_MULTI
    end_transaction(ctx.session)
    return OK


@command(
    "WATCH",
    arity=-2,
    flags=_FLAGS | Flag.CONTROL,
    keys=Keys(1, -1, 1, "RO"),
    since="2.2.0",
    group="transactions",
    complexity="O(1) for each key.",
    usage="key [key ...]",
)
def watch(ctx: Context, *keys: Key) -> Reply:
    """Let the next EXEC do nothing if one of the keys has changed by then."""
    session = ctx.session
    if session.transaction is not None:
        raise WATCH_INSIDE_MULTI
    db = session.db
    # May fault: nothing is noted before the last.
    seen = {(db, key): ctx.dots(key) for key in keys}
    for watched, dots in seen.items():
        session.watches.setdefault(watched, dots)  # What was seen first counts.
    return OK


@command(
    "UNWATCH",
    arity=1,
    flags=_FLAGS,
    since="2.2.0",
    group="transactions",
    complexity="O(1)",
)
def unwatch(ctx: Context) -> Reply:
    """Forget the watched keys."""
    # Inside EXEC they have been checked, and may be once more if a page has to be fetched.
    if not ctx.is_atomic:
        ctx.session.watches.clear()
    return OK
