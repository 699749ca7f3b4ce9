"""The COMMAND family: the command table, told to clients.

It decides nothing about running commands: everything here is read from `respkv.command.TABLE`. The
argument trees are made of the declared `usage` (`respkv.usage`), and ACL categories follow from
flags and group. redis-cli asks COMMAND DOCS for its hints and its help, cluster clients ask COMMAND
for the positions of keys.

Core: no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Final

from respkv.command import TABLE, Command, Flag, Keys, command
from respkv.commands.client import help_reply
from respkv.consistency import behind_with
from respkv.context import Context
from respkv.glob import matcher
from respkv.reply import SYNTAX_ERROR, Reply, ReplyError, SetReply, Simple
from respkv.usage import Argument, parse

INVALID_COMMAND: Final = ReplyError("ERR Invalid command specified")
INVALID_ARITY: Final = ReplyError("ERR Invalid number of arguments specified for command")
INVALID_ARGUMENTS: Final = ReplyError("ERR Invalid arguments specified for command")
NO_KEYS: Final = ReplyError("ERR The command has no key arguments")

_ANY_STATE: Final = Flag.LOADING | Flag.STALE
_HIDDEN: Final = Flag.CONTROL | Flag.UNCHECKED | Flag.MAY_REPLICATE  # Redis does not show the last.
_KINDS_OF_ACCESS: Final = frozenset(("RO", "RW", "OW", "RM"))

# Superseded commands: since when, and by what.
_DEPRECATED: Final = {
    "GETSET": ("6.2.0", "`SET` with the `GET` option"),
    "SUBSTR": ("2.0.0", "`GETRANGE`"),
    "CLUSTER|SLOTS": ("7.0.0", "`CLUSTER SHARDS`"),
}
_FOR_TESTS: Final = frozenset(("DEBUG",))

# ACL categories

# In the order in which Redis shows them.
CATEGORIES: Final = (
    "keyspace", "read", "write", "set", "sortedset", "list", "hash", "string", "bitmap", "hyperloglog", "geo",
    "stream", "pubsub", "admin", "fast", "slow", "blocking", "dangerous", "connection", "transaction", "scripting",
)  # fmt: skip
_CATEGORY_OF_GROUP: Final = {
    "bitmap": "bitmap",
    "connection": "connection",
    "generic": "keyspace",
    "geo": "geo",
    "hash": "hash",
    "hyperloglog": "hyperloglog",
    "list": "list",
    "scripting": "scripting",
    "set": "set",
    "sorted-set": "sortedset",
    "stream": "stream",
    "string": "string",
    "transactions": "transaction",
}
# These declare their categories; and containers have none, only their subcommands.
_NOT_OF_THEIR_GROUP: Final = frozenset(("SORT", "SORT_RO", "WAIT", "WAITAOF"))
_CATEGORIES_OF_FLAG: Final = (
    (Flag.WRITE, ("write",)),
    (Flag.READONLY, ("read",)),
    (Flag.ADMIN, ("admin", "dangerous")),
    (Flag.PUBSUB, ("pubsub",)),
    (Flag.BLOCKING, ("blocking",)),
)


def acl_categories(entry: Command) -> list[str]:
    """The ACL categories of a command, without `@`: what follows from its flags and group, and what it declares."""
    found = {"fast" if Flag.FAST in entry.flags else "slow", *entry.acl}
    for flag, names in _CATEGORIES_OF_FLAG:
        if flag in entry.flags:
            found.update(names)
    is_of_group = entry.handler is not None and entry.name not in _NOT_OF_THEIR_GROUP
    if is_of_group and entry.group in _CATEGORY_OF_GROUP:
        found.add(_CATEGORY_OF_GROUP[entry.group])
    return [category for category in CATEGORIES if category in found]


# COMMAND INFO


@command(
    "COMMAND", arity=-1, flags=_ANY_STATE, since="2.8.13", group="server",
    complexity="O(N) with N the number of commands.", tips=("nondeterministic_output_order",),
    acl=("connection",),
)  # fmt: skip
def command_(ctx: Context) -> Reply:
    """Describe all commands to client libraries."""
    return [describe(entry) for entry in TABLE.commands.values()]


@command(
    "COMMAND|INFO", arity=-2, flags=_ANY_STATE, since="2.8.13", group="server",
    complexity="O(N) with N the number of names.", usage="[command-name [command-name ...]]",
    tips=("nondeterministic_output_order",), acl=("connection",),
)  # fmt: skip
def command_info(ctx: Context, *names: bytes) -> Reply:
    """Describe the named commands, or all, to client libraries."""
    if not names:
        return command_(ctx)
    return [None if (entry := find(name)) is None else describe(entry) for name in names]


def find(name: bytes) -> Command | None:
    """A command by its full name in any case; a subcommand is `container|subcommand`."""
    first, bar, rest = name.partition(b"|")
    entry = TABLE.find(first)
    return entry.subcommands.get(rest.upper()) if bar and entry is not None else entry


@cache
def describe(entry: Command) -> Reply:
    """A command as COMMAND INFO shows it: an array of ten fields."""
    first, last, step = key_range(entry.keys)
    return [
        entry.name.lower().encode(),
        entry.arity,
        SetReply(Simple(name.encode()) for name in flag_names(entry)),
        first,
        last,
        step,
        SetReply(Simple(b"@" + name.encode()) for name in acl_categories(entry)),
        SetReply(tip.encode() for tip in entry.tips),
        SetReply(_key_spec(spec) for spec in entry.keys),
        [describe(sub) for sub in entry.subcommands.values()] or SetReply(),
    ]


def flag_names(entry: Command) -> list[str]:
    """The flags of a command as Redis spells them."""
    flags = entry.flags & ~_HIDDEN
    return [str(flag.name).lower() for flag in Flag if flag & flags]


def key_range(specs: tuple[Keys, ...]) -> tuple[int, int, int]:
    """First key, last key and step, in which clients older than key specifications think.

    Specifications that follow each other make one range; a gap between two ends it.
    """
    if not specs:
        return 0, 0, 0
    first, last, step = specs[0].first, specs[0].last, specs[0].step
    for spec in specs[1:]:
        if spec.first != last + 1 or spec.step != step:
            break
        last = spec.last
    return first, last, step


def _key_spec(spec: Keys) -> Reply:
    last = spec.last - spec.first if spec.last >= 0 else spec.last
    return {
        b"flags": _access(spec.access),
        b"begin_search": {b"type": b"index", b"spec": {b"index": spec.first}},
        b"find_keys": {
            b"type": b"range",
            b"spec": {b"lastkey": last, b"keystep": spec.step, b"limit": 0},
        },
    }


def _access(names: tuple[str, ...]) -> SetReply:
    """How a key is accessed: the kind in capitals, the rest small, as Redis writes them."""
    return SetReply(
        Simple((name if name in _KINDS_OF_ACCESS else name.lower()).encode()) for name in names
    )


# COMMAND DOCS


@command(
    "COMMAND|DOCS", arity=-2, flags=_ANY_STATE, since="7.0.0", group="server",
    complexity="O(N) with N the number of names.", usage="[command-name [command-name ...]]",
    tips=("nondeterministic_output_order",), acl=("connection",),
)  # fmt: skip
def command_docs(ctx: Context, *names: bytes) -> Reply:
    """Document the named commands, or all: summary, syntax, complexity."""
    entries = [find(name) for name in names] if names else TABLE.commands.values()
    return {entry.name.lower().encode(): document(entry) for entry in entries if entry is not None}


@cache
def document(entry: Command) -> Reply:
    """A command as COMMAND DOCS shows it."""
    fields: dict[bytes, Reply] = {
        b"summary": entry.summary.encode(),
        b"since": entry.since.encode(),
        b"group": entry.group.encode(),
        b"complexity": entry.complexity.encode(),
    }
    if not entry.complexity:
        del fields[b"complexity"]
    flags = SetReply([Simple(b"syscmd")] if entry.name in _FOR_TESTS else [])
    if entry.name in _DEPRECATED:
        since, replacement = _DEPRECATED[entry.name]
        flags.append(Simple(b"deprecated"))
        fields[b"deprecated_since"] = since.encode()
        fields[b"replaced_by"] = replacement.encode()
    if flags:
        fields[b"doc_flags"] = flags
    arguments = parse(entry.usage, key_spec_count=len(entry.keys))
    if arguments:
        fields[b"arguments"] = [_argument(argument) for argument in arguments]
    if entry.subcommands:
        fields[b"subcommands"] = {
            sub.name.lower().encode(): document(sub) for sub in entry.subcommands.values()
        }
    return fields


def _argument(argument: Argument) -> Reply:
    fields: dict[bytes, Reply] = {
        b"name": argument.name.encode(),
        b"type": argument.type.encode(),
    }
    if argument.key_spec >= 0:
        fields[b"key_spec_index"] = argument.key_spec
    if argument.token:
        fields[b"token"] = argument.token.encode()
    flags = SetReply(
        Simple(name)
        for name, is_set in (
            (b"optional", argument.is_optional),
            (b"multiple", argument.is_multiple),
            (b"multiple_token", argument.is_token_repeated),
        )
        if is_set
    )
    if flags:
        fields[b"flags"] = flags
    if argument.arguments:
        fields[b"arguments"] = [_argument(inner) for inner in argument.arguments]
    return fields


# COMMAND COUNT and LIST


@command(
    "COMMAND|COUNT", arity=2, flags=_ANY_STATE, since="2.8.13", group="server",
    complexity="O(1)", acl=("connection",),
)  # fmt: skip
def command_count(ctx: Context) -> Reply:
    """Count the commands; subcommands count with their container."""
    return len(TABLE.commands)


@command(
    "COMMAND|LIST", arity=-2, flags=_ANY_STATE, since="7.0.0", group="server",
    complexity="O(N) with N the number of commands.",
    usage="[FILTERBY <MODULE module-name | ACLCAT category | PATTERN pattern>]",
    tips=("nondeterministic_output_order",), acl=("connection",),
)  # fmt: skip
def command_list(ctx: Context, *words: bytes) -> Reply:
    """List the names of all commands, or of those that a filter keeps."""
    if not words:
        return [entry.name.lower().encode() for entry in TABLE.everything()]
    if len(words) != 3 or words[0].upper() != b"FILTERBY":
        raise SYNTAX_ERROR
    return [entry.name.lower().encode() for entry in _filtered(words[1].upper(), words[2])]


def _filtered(kind: bytes, word: bytes) -> Iterator[Command]:
    match kind:
        case b"MODULE":  # There are no modules, so no command is of one.
            return
        case b"ACLCAT":
            category = word.lower().decode("latin-1")
            yield from (e for e in TABLE.everything() if category in acl_categories(e))
        case b"PATTERN":
            is_match = matcher(word, ignore_case=True)
            yield from (e for e in TABLE.everything() if is_match(e.name.encode()))
        case _:
            raise SYNTAX_ERROR


# COMMAND GETKEYS


@command(
    "COMMAND|GETKEYS", arity=-4, flags=_ANY_STATE, since="2.8.13", group="server",
    complexity="O(N) with N the number of arguments.", usage="command [arg [arg ...]]", acl=("connection",),
)  # fmt: skip
def command_getkeys(ctx: Context, *words: bytes) -> Reply:
    """Answer which of a command's arguments are keys."""
    return [key for key, _ in _keys_of(list(words))]


@command(
    "COMMAND|GETKEYSANDFLAGS", arity=-4, flags=_ANY_STATE, since="7.0.0", group="server",
    complexity="O(N) with N the number of arguments.", usage="command [arg [arg ...]]", acl=("connection",),
)  # fmt: skip
def command_getkeysandflags(ctx: Context, *words: bytes) -> Reply:
    """Answer which of a command's arguments are keys, and how each is accessed."""
    return [[key, _access(access)] for key, access in _keys_of(list(words))]


def _keys_of(words: list[bytes]) -> list[tuple[bytes, tuple[str, ...]]]:
    """The keys of a command line and their access. Raises ReplyError."""
    if words[0].upper() == b"KV.WITH":
        words = words[behind_with(words) :]  # Those of the command in it.
        if not words:
            raise INVALID_ARITY
    entry = TABLE.find(words[0])
    if entry is not None and entry.subcommands and len(words) > 1:
        entry = entry.subcommands.get(words[1].upper())
    if entry is None:
        raise INVALID_COMMAND
    if not entry.keys:
        raise NO_KEYS
    try:
        entry.check_arity(len(words))
    except ReplyError:
        raise INVALID_ARITY from None
    found = []
    for spec in entry.keys:
        access = actual_access(entry, spec, words)
        last = spec.last if spec.last >= 0 else len(words) + spec.last
        found += [(words[at], access) for at in range(spec.first, last + 1, spec.step)]
    if not found:
        raise INVALID_ARGUMENTS
    return found


def actual_access(entry: Command, spec: Keys, words: list[bytes]) -> tuple[str, ...]:
    """How this command line accesses the keys of `spec`: for SET and BITFIELD it depends on the options."""
    if "VARIABLE_FLAGS" not in spec.access:
        return spec.access
    if entry.name == "SET":
        is_get = any(word.upper() == b"GET" for word in words[3:])
        return ("RW", "ACCESS", "UPDATE") if is_get else ("OW", "UPDATE")
    assert entry.name == "BITFIELD"
    return ("RO", "ACCESS") if _only_gets(words[2:]) else ("RW", "ACCESS", "UPDATE")


def _only_gets(words: list[bytes]) -> bool:
    """Whether these operations of BITFIELD write nothing."""
    at = 0
    while at < len(words):
        length = {b"GET": 3, b"OVERFLOW": 2}.get(words[at].upper(), 0)
        if not length or at + length > len(words):
            return False
        at += length
    return True


HELP: Final = """\
COMMAND <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
(no subcommand)
    Describe all commands to client libraries.
COUNT
    How many commands there are.
LIST [FILTERBY (MODULE <name>|ACLCAT <category>|PATTERN <pattern>)]
    The names of the commands.
INFO [<command-name> ...]
    Describe the named commands, or all, to client libraries.
DOCS [<command-name> ...]
    Document the named commands, or all.
GETKEYS <full-command>
    Which arguments of a command are keys.
GETKEYSANDFLAGS <full-command>
    Which arguments of a command are keys, and how they are accessed.
HELP
    Print this help."""


@command(
    "COMMAND|HELP", arity=2, flags=_ANY_STATE, since="5.0.0", group="server", complexity="O(1)",
    acl=("connection",),
)  # fmt: skip
def command_help(ctx: Context) -> Reply:
    """Show the subcommands of COMMAND."""
    return help_reply(HELP)
