"""SLOWLOG: the list of commands that took long, kept in `respkv/slowlog.py`."""

from __future__ import annotations

from itertools import islice
from typing import Final

from respkv.command import Flag, command, container
from respkv.commands.client import help_reply
from respkv.context import Context
from respkv.number import integer
from respkv.reply import OK, Reply, ReplyError, unknown_or_malformed

FLAGS: Final = Flag.ADMIN | Flag.LOADING | Flag.STALE
BAD_COUNT: Final = ReplyError("ERR count should be greater than or equal to -1")
DEFAULT_COUNT: Final = 10

container("SLOWLOG", since="2.2.12", group="server", summary="Commands about the slow log")


@command(
    "SLOWLOG|GET", arity=-2, flags=FLAGS, since="2.2.12", group="server",
    complexity="O(N) where N is the number of entries returned", usage="[count]",
    tips=("request_policy:all_nodes", "nondeterministic_output"),
)  # fmt: skip
def slowlog_get(ctx: Context, *words: bytes) -> Reply:
    """List slow commands, the newest first: number, time, microseconds, arguments, client, its name."""
    if len(words) > 1:
        raise unknown_or_malformed("SLOWLOG", ctx.args[1])
    count = integer(words[0], BAD_COUNT) if words else DEFAULT_COUNT
    if count < -1:
        raise BAD_COUNT
    entries = ctx.node.slowlog.entries
    return [
        [entry.number, entry.at_s, entry.elapsed_us, list(entry.args), entry.peer, entry.name]
        for entry in islice(entries, len(entries) if count < 0 else min(count, len(entries)))
    ]


@command(
    "SLOWLOG|LEN", arity=2, flags=FLAGS, since="2.2.12", group="server", complexity="O(1)",
    tips=("request_policy:all_nodes", "response_policy:agg_sum", "nondeterministic_output"),
)  # fmt: skip
def slowlog_len(ctx: Context) -> Reply:
    """Count the entries of the slow log."""
    return len(ctx.node.slowlog.entries)


@command(
    "SLOWLOG|RESET", arity=2, flags=FLAGS, since="2.2.12", group="server",
    complexity="O(N) where N is the number of entries",
    tips=("request_policy:all_nodes", "response_policy:all_succeeded"),
)  # fmt: skip
def slowlog_reset(ctx: Context) -> Reply:
    """Empty the slow log."""
    ctx.node.slowlog.entries.clear()
    return OK


HELP: Final = """\
SLOWLOG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
GET [<count>]
    The last slow commands, 10 if no count is given, -1 for all. Of each: a number, the time, how many microseconds
    it took, its arguments, the client's address and its name.
LEN
    How many there are.
RESET
    Empty the list.
HELP
    Print this help."""


@command(
    "SLOWLOG|HELP",
    arity=2,
    flags=Flag.LOADING | Flag.STALE,
    since="6.2.0",
    group="server",
    complexity="O(1)",
)
def slowlog_help(ctx: Context) -> Reply:
    """Show the subcommands of SLOWLOG."""
    return help_reply(HELP)
