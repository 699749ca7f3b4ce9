"""Commands about the server as a whole: INFO TIME ROLE SHUTDOWN DEBUG ACL LOLWUT.

CONFIG, MEMORY, SLOWLOG, LATENCY and the commands that save have modules of their own; the text of INFO is in
`respkv/info.py`.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from math import isfinite
from typing import Final

from respkv.command import TABLE, Flag, command, container
from respkv.commands.client import help_reply
from respkv.context import Context
from respkv.info import count_keys, info_text, sections_of
from respkv.number import integer
from respkv.picture import COLUMNS_MAX, ring_picture
from respkv.reply import (
    NO_REPLY,
    OK,
    SYNTAX_ERROR,
    Reply,
    ReplyError,
    Verbatim,
    unknown_or_malformed,
)
from respkv.session import Block
from respkv.version import REDIS_VERSION, VERSION

ALWAYS: Final = Flag.LOADING | Flag.STALE
ADMIN: Final = ALWAYS | Flag.ADMIN | Flag.NOSCRIPT


@command(
    "INFO", arity=-1, flags=ALWAYS, since="1.0.0", group="server", complexity="O(1)",
    usage="[section [section ...]]", acl=("dangerous",),
    tips=("nondeterministic_output", "request_policy:all_shards", "response_policy:special"),
)  # fmt: skip
def info(ctx: Context, *sections: bytes) -> Generator[None, None, Reply]:
    """Describe the server and count what it did."""
    node = ctx.node
    if "keyspace" in sections_of(sections):
        yield from count_keys(ctx.counts, ctx.now_ms, node.clock_ns)
    return Verbatim(info_text(node, sections, is_cluster=ctx.session.is_cluster))


@command(
    "TIME", arity=1, flags=ALWAYS | Flag.FAST, since="2.6.0", group="server", complexity="O(1)",
    tips=("nondeterministic_output",),
)  # fmt: skip
def time(ctx: Context) -> Reply:
    """Answer the server's clock: seconds since 1970, and microseconds."""
    seconds, rest = divmod(ctx.node.wall_ns() // 1000, 1_000_000)
    return [b"%d" % seconds, b"%d" % rest]


@command(
    "ROLE", arity=1, flags=ALWAYS | Flag.NOSCRIPT | Flag.FAST, since="2.8.12", group="server",
    complexity="O(1)", acl=("admin", "dangerous"),
)  # fmt: skip
def role(ctx: Context) -> Reply:
    """Answer how this server takes part in replication: as a master without replicas."""
    return [b"master", ctx.store.log.position, []]


@command(
    "SHUTDOWN", arity=-1, flags=ADMIN | Flag.NO_MULTI | Flag.ALLOW_BUSY, since="1.0.0", group="server",
    complexity="O(1)", usage="[NOSAVE | SAVE] [NOW] [FORCE] [ABORT]",
)  # fmt: skip
def shutdown(ctx: Context, *words: bytes) -> Reply:
    """Stop the server.

    Every write is in the commit log, which is synced at the stop: SAVE, NOSAVE and FORCE make no difference. NOW
    drops the replies that clients have not read, for which a stop otherwise waits `client.shutdown_grace_s`.
    """
    options = {word.upper() for word in words}
    if options - {b"NOSAVE", b"SAVE", b"NOW", b"FORCE", b"ABORT"}:
        raise SYNTAX_ERROR
    if {b"NOSAVE", b"SAVE"} <= options or (b"ABORT" in options and len(options) > 1):
        raise SYNTAX_ERROR
    if b"ABORT" in options:
        if ctx.node.is_stopping:
            raise ReplyError("ERR The server is stopping, which cannot be taken back.")
        raise ReplyError("ERR No shutdown in progress.")
    ctx.node.log.info("stop asked for", client=ctx.session.peer)
    ctx.node.stop(is_hurried=b"NOW" in options)
    ctx.session.close_after_reply("shutdown")
    return NO_REPLY


# DEBUG

_number = re.compile(rb"\s*([+-]?[0-9]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?)").match
SLEEP_S_MAX: Final = 1e9

DEBUG_HELP: Final = """\
DEBUG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
SLEEP <seconds>
    Answer after some time. Only this connection waits.
HELP
    Print this help."""


@command(
    "DEBUG",
    arity=-2,
    flags=ADMIN,
    since="1.0.0",
    group="server",
    complexity="Depends on subcommand.",
)
def debug(ctx: Context, sub: bytes, *words: bytes) -> Reply:
    """Try out what is hard to bring about otherwise.

    SLEEP holds up the calling connection only: Redis' holds up the whole server, which nobody should be able to ask
    of this one. It counts as a slow command for SLOWLOG and LATENCY. Inside MULTI it does not sleep.
    """
    if sub.upper() == b"HELP" and not words:
        return help_reply(DEBUG_HELP)
    if sub.upper() != b"SLEEP" or len(words) != 1:
        raise unknown_or_malformed("DEBUG", sub)
    seconds = _lenient_number(words[0])
    if seconds <= 0 or ctx.is_atomic:
        return OK
    _note_sleep(ctx, [b"DEBUG", sub, *words], int(seconds * 1e9))
    raise Block(seconds, OK, is_blocking=False)


def _note_sleep(ctx: Context, args: list[bytes], elapsed_ns: int) -> None:
    """Tell of the sleep now: the runner measures what a command does, and a wait is nothing that it does."""
    slowlog = ctx.node.slowlog
    if slowlog.threshold_ns == 0:  # All commands are listed, this one too.
        ctx.node.latency.add("command", elapsed_ns)
    elif elapsed_ns >= slowlog.threshold_ns:
        slowlog.add(ctx.session, TABLE.commands["DEBUG"], args, elapsed_ns)


def _lenient_number(word: bytes) -> float:
    """As C reads one: what stands at the beginning, 0 if that is no number; nothing that is not finite."""
    match = _number(word)
    try:
        value = float(match[1]) if match else 0.0
    except ValueError:
        return 0.0
    return min(value, SLEEP_S_MAX) if isfinite(value) else 0.0


# ACL

container("ACL", since="6.0.0", group="server", summary="Commands about access control")

ACL_HELP: Final = """\
ACL <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
WHOAMI
    The user of this connection.
HELP
    Print this help."""


@command(
    "ACL|WHOAMI",
    arity=2,
    flags=ALWAYS | Flag.NOSCRIPT,
    since="6.0.0",
    group="server",
    complexity="O(1)",
)
def acl_whoami(ctx: Context) -> Reply:
    """Answer the user of this connection."""
    return ctx.session.user


@command("ACL|HELP", arity=2, flags=ALWAYS, since="6.0.0", group="server", complexity="O(1)")
def acl_help(ctx: Context) -> Reply:
    """Show the subcommands of ACL."""
    return help_reply(ACL_HELP)


# LOLWUT

_SIZES_TAKEN: Final = {5: 3, 6: 2}  # How many numbers follow Redis' versions of it.
COLUMNS: Final = 64


@command(
    "LOLWUT", arity=-1, flags=Flag.READONLY | Flag.FAST, since="5.0.0", group="server", complexity="",
    usage="[VERSION version:integer]",
)  # fmt: skip
def lolwut(ctx: Context, *words: bytes) -> Reply:
    """Draw a ring of nodes, and tell the version. The first number after the version is the picture's width."""
    columns = COLUMNS
    if len(words) >= 2 and words[0].upper() == b"VERSION":
        version = integer(words[1])
        sizes = [integer(word) for word in words[2 : 2 + _SIZES_TAKEN.get(version, 0)]]
        if sizes:
            columns = max(1, min(sizes[0], COLUMNS_MAX))
    picture = ring_picture(ctx.rng, columns)
    return Verbatim(f"{picture}\nrespkv {VERSION}, Redis ver. {REDIS_VERSION}\n".encode())
