"""CONFIG: settings of the running server. Names and allowed values are the business of `respkv/config_redis.py`."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from respkv import logs
from respkv.command import Flag, command, container
from respkv.commands.client import help_reply
from respkv.config import ConfigError, redis_get, redis_set, rewrite
from respkv.context import Context
from respkv.errand import Errand, run
from respkv.reply import OK, SYNTAX_ERROR, Reply, ReplyError

ADMIN: Final = Flag.ADMIN | Flag.NOSCRIPT | Flag.LOADING | Flag.STALE
PER_SETTING: Final = "O(N) where N is the number of settings named"

container("CONFIG", since="2.0.0", group="server", summary="Commands about the server's settings")


@command(
    "CONFIG|GET", arity=-3, flags=ADMIN, since="2.0.0", group="server", complexity=PER_SETTING,
    usage="parameter [parameter ...]",
)  # fmt: skip
def config_get(ctx: Context, *patterns: bytes) -> Reply:
    """Show the settings whose names match patterns."""
    found = redis_get(ctx.node.config, *patterns)
    return {name.encode(): value.encode() for name, value in found}


@command(
    "CONFIG|SET", arity=-4, flags=ADMIN, since="2.0.0", group="server", complexity=PER_SETTING,
    usage="parameter value [parameter value ...]",
    tips=("request_policy:all_nodes", "response_policy:all_succeeded"),
)  # fmt: skip
def config_set(ctx: Context, *words: bytes) -> Reply:
    """Change settings: all that are named, or none."""
    if len(words) % 2:
        raise SYNTAX_ERROR
    node = ctx.node
    try:
        changed = redis_set(node.config, list(zip(words[::2], words[1::2], strict=True)))
    except ConfigError as error:
        raise ReplyError(error.line) from None
    if changed:
        node.log.info("settings changed", client=ctx.session.peer, names=" ".join(sorted(changed)))
        node.apply_limits()
    if "logging.level" in changed:
        logs.set_level(node.config.logging.level)
    return OK


@command("CONFIG|RESETSTAT", arity=2, flags=ADMIN, since="2.0.0", group="server", complexity="O(1)")
def config_resetstat(ctx: Context) -> Reply:
    """Begin anew with the counters that INFO shows."""
    ctx.node.reset_stats()
    return OK


@command("CONFIG|REWRITE", arity=2, flags=ADMIN, since="2.8.0", group="server", complexity="O(1)")
def config_rewrite(ctx: Context) -> Generator[Errand, None, Reply]:
    """Write the settings as they are into the configuration file. The disk is waited for in a thread."""
    config, log = ctx.node.config, ctx.node.log
    path = config.path
    if path is None:
        raise ReplyError("ERR The server is running without a config file")
    failures: list[ConfigError] = []

    def work() -> None:
        try:
            rewrite(config, path)
        except ConfigError as error:
            failures.append(error)

    yield from run(ctx, work)
    if failures:
        log.warning("the configuration file cannot be rewritten", reason=failures[0].line)
        raise ReplyError(f"ERR Rewriting config file: {failures[0].line}")
    log.info("the configuration file was rewritten", path=path)
    return OK


HELP: Final = """\
CONFIG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
GET <pattern> [<pattern> ...]
    The settings whose names match the glob patterns, with their values.
SET <name> <value> [<name> <value> ...]
    Change settings, under their own names or those of Redis.
RESETSTAT
    Begin anew with the counters that INFO shows.
REWRITE
    Write the settings into the configuration file.
HELP
    Print this help."""


@command(
    "CONFIG|HELP",
    arity=2,
    flags=Flag.LOADING | Flag.STALE,
    since="5.0.0",
    group="server",
    complexity="O(1)",
)
def config_help(ctx: Context) -> Reply:
    """Show the subcommands of CONFIG."""
    return help_reply(HELP)
