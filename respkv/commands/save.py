"""Commands that make data durable, or wait for it: SAVE BGSAVE BGREWRITEAOF LASTSAVE WAIT WAITAOF.

Every write is in the commit log before its reply leaves, and the log is synced as `log.fsync` says. So SAVE is an
fsync that the client waits for, and BGSAVE and BGREWRITEAOF ask for a flush of the memtable, after which the log up
to then is not needed any more.

None of them holds up other clients: who waits is a blocked session.
"""

from __future__ import annotations

from typing import Final

from respkv.command import Flag, command
from respkv.context import Context
from respkv.number import integer
from respkv.reply import SYNTAX_ERROR, Encoded, Reply, ReplyError, Simple
from respkv.session import Block

ADMIN: Final = Flag.ADMIN | Flag.NOSCRIPT | Flag.NO_ASYNC_LOADING
BAD_TIMEOUT: Final = ReplyError("ERR timeout is not an integer or out of range")
NEGATIVE_TIMEOUT: Final = ReplyError("ERR timeout is negative")
BAD_LOCAL: Final = ReplyError("ERR value is out of range, value must between 0 and 1")
BAD_REPLICAS: Final = ReplyError("ERR value is out of range, must be positive")
IN_PROGRESS: Final = ReplyError("ERR Background save already in progress")
REWRITE_IN_PROGRESS: Final = ReplyError(
    "ERR Background append only file rewriting already in progress"
)


@command(
    "SAVE", arity=1, flags=ADMIN | Flag.NO_MULTI, since="1.0.0", group="server",
    complexity="O(N) where N is what was written since the last sync",
)  # fmt: skip
def save(ctx: Context) -> Reply:
    """Answer once all that was written is durable."""
    node = ctx.node
    ok = Simple(b"OK")  # An object of its own: the wait is known by it.

    def done() -> Reply:
        node.saves.synced(node.changes, node.wall_ns() // 1_000_000_000)
        return ok

    node.commit.when_synced(ctx.session, ok, done)
    raise Block(None, ok, is_blocking=False)


@command(
    "BGSAVE",
    arity=-1,
    flags=ADMIN,
    since="1.0.0",
    group="server",
    complexity="O(1)",
    usage="[SCHEDULE]",
)
def bgsave(ctx: Context, *words: bytes) -> Reply:
    """Write what is in memory to tables, in the background."""
    if len(words) > 1 or (words and words[0].upper() != b"SCHEDULE"):
        raise SYNTAX_ERROR
    saves = ctx.node.saves
    if saves.is_running("save"):
        raise IN_PROGRESS
    is_behind = bool(words) and saves.is_running("rewrite")
    ctx.node.jobs.ask_save("save")
    return Simple(b"Background saving scheduled" if is_behind else b"Background saving started")


@command("BGREWRITEAOF", arity=1, flags=ADMIN, since="1.0.0", group="server", complexity="O(1)")
def bgrewriteaof(ctx: Context) -> Reply:
    """Write what is in memory to tables, in the background, so that the commit log can be cut."""
    saves = ctx.node.saves
    is_behind = saves.is_running("save")
    if saves.is_running("rewrite") and not is_behind:
        raise REWRITE_IN_PROGRESS
    ctx.node.jobs.ask_save("rewrite")
    how = b"scheduled" if is_behind else b"started"
    return Simple(b"Background append only file rewriting %b" % how)


@command(
    "LASTSAVE", arity=1, flags=Flag.LOADING | Flag.STALE | Flag.FAST, since="1.0.0", group="server",
    complexity="O(1)", tips=("nondeterministic_output",), acl=("admin", "dangerous"),
)  # fmt: skip
def lastsave(ctx: Context) -> Reply:
    """Answer when data was last saved: by SAVE, or to tables, whoever asked for it."""
    return ctx.node.saves.last_s


@command(
    "WAIT", arity=3, flags=Flag.NOSCRIPT, since="3.0.0", group="generic", complexity="O(1)",
    usage="numreplicas timeout", tips=("request_policy:all_shards", "response_policy:agg_min"),
    acl=("connection",),
)  # fmt: skip
def wait(ctx: Context, replicas: bytes, timeout: bytes) -> Reply:
    """Wait until so many replicas have this connection's writes, or the time is up; answers how many have them.

    A single node has no replicas. In a cluster, the node that carried a write out does not count.
    """
    wanted = integer(replicas)
    seconds = _timeout_s(timeout)
    peers = ctx.node.peers
    if peers is not None and not ctx.is_atomic:
        return peers.waits.wait(
            ctx.session,
            seconds,
            is_met=lambda copies: copies - 1 >= wanted or wanted <= 0,
            reply_of=lambda copies: Encoded(b":%d\r\n" % max(0, copies - 1)),
            is_durable=False,
        )
    if wanted <= 0:
        return 0
    raise Block(seconds, 0)


@command(
    "WAITAOF", arity=4, flags=Flag.NOSCRIPT, since="7.2.0", group="generic", complexity="O(1)",
    usage="numlocal:integer numreplicas timeout", acl=("connection",),
    tips=("request_policy:all_shards", "response_policy:agg_min"),
)  # fmt: skip
def waitaof(ctx: Context, local: bytes, replicas: bytes, timeout: bytes) -> Reply:
    """Wait until this connection's writes are durable, here and at replicas, or the time is up.

    Answers at how many nodes they are: here (0 or 1), and at replicas, of which a single node has none. In a cluster
    the first durable copy counts as the one here, at whichever node it is.
    """
    wanted_local = integer(local)
    if not 0 <= wanted_local <= 1:
        raise BAD_LOCAL
    wanted_replicas = integer(replicas, BAD_REPLICAS)
    if wanted_replicas < 0:
        raise BAD_REPLICAS
    seconds = _timeout_s(timeout)
    peers = ctx.node.peers
    if peers is not None and not ctx.is_atomic:
        return peers.waits.wait(
            ctx.session,
            seconds,
            is_met=lambda copies: min(1, copies) >= wanted_local and copies - 1 >= wanted_replicas,
            reply_of=lambda copies: [min(1, copies), max(0, copies - 1)],
            is_durable=True,
        )
    log = ctx.store.log
    is_durable = not log.pieces and log.synced == log.position and not ctx.effects and not ctx.below
    if ctx.is_atomic or (not wanted_replicas and is_durable >= wanted_local):
        return [int(is_durable), 0]
    pending: list[Reply] = [int(is_durable), 0]  # The answer when the time is up.

    def done() -> Reply:
        pending[0] = 1
        return None if wanted_replicas else pending

    if not is_durable:
        ctx.node.commit.when_synced(ctx.session, pending, done)
    raise Block(seconds, pending)


def _timeout_s(word: bytes) -> float | None:
    milliseconds = integer(word, BAD_TIMEOUT)
    if milliseconds < 0:
        raise NEGATIVE_TIMEOUT
    return milliseconds / 1000 if milliseconds else None
