"""The command table: one declaration per command feeds dispatch, arity, key positions, flags and documentation.

It runs nothing. A module of `respkv/commands/` declares a command by decorating its handler:

    @command("GETDEL", arity=2, flags=Flag.WRITE | Flag.FAST, keys=Keys(1, 1, 1, "RW", "ACCESS", "DELETE"),
             since="6.2.0", group="string", complexity="O(1)", usage="key")
    def getdel(ctx: Context, key: Key) -> Reply:
        "Return the string value of a key and delete the key."

- `arity` counts the name, and a negative one means "at least", as Redis does.
- A handler takes the context and the arguments behind the name (behind both names of a subcommand,
  `"CLIENT|ID"`).
- `usage` is the syntax in Redis' notation (`key [NX | XX] [EX seconds | PX milliseconds]`);
  `respkv/usage.py` makes the argument tree of COMMAND DOCS of it. The docstring's first line is the
  summary.
- A *sliced* command is a generator: it yields where the loop may serve others, and returns its
  reply.
- `Flag`s named in lower case are what COMMAND INFO shows; ACL categories follow from flags and
  group.

Names are looked up as bytes in any case; the table keeps the spellings that were seen lower and
upper, so that a look-up is one dict access on the hot path.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from respkv.histogram import Histogram
from respkv.reply import ReplyError, c_string, wrong_arity

if TYPE_CHECKING:
    from respkv.context import Context

Handler = Callable[..., Any]
Lane = Callable[["Context", list[list[bytes]], int, list[bytes]], int]
_H = TypeVar("_H", bound=Handler)


class Flag(enum.Flag):
    """What COMMAND INFO tells of a command; the names in lower case are Redis'."""

    NONE = 0
    WRITE = enum.auto()
    READONLY = enum.auto()
    DENYOOM = enum.auto()
    ADMIN = enum.auto()
    PUBSUB = enum.auto()
    NOSCRIPT = enum.auto()
    BLOCKING = enum.auto()
    LOADING = enum.auto()
    STALE = enum.auto()
    SKIP_MONITOR = enum.auto()
    SKIP_SLOWLOG = enum.auto()
    FAST = enum.auto()
    NO_AUTH = enum.auto()
    MAY_REPLICATE = enum.auto()
    NO_ASYNC_LOADING = enum.auto()
    NO_MULTI = enum.auto()
    MOVABLEKEYS = enum.auto()
    ALLOW_BUSY = enum.auto()
    # Ours, never shown:
    CONTROL = (
        enum.auto()
    )  # Runs at once even inside MULTI (EXEC, DISCARD, MULTI, WATCH, QUIT, RESET).
    UNCHECKED = (
        enum.auto()
    )  # Its write stays beside what it has not seen: no replica refuses it (KV.PUT, KV.DEL).


@dataclass(frozen=True, slots=True)
class Keys:
    """Where keys stand among the arguments: every `step`-th from `first` to `last` (negative: from the end).

    `access` holds the flags of Redis' key specification, `RO`, `RW`, `OW` or `RM` first.
    """

    first: int
    last: int
    step: int
    access: tuple[str, ...]

    def __init__(self, first: int, last: int, step: int, *access: str) -> None:
        object.__setattr__(self, "first", first)
        object.__setattr__(self, "last", last)
        object.__setattr__(self, "step", step)
        object.__setattr__(self, "access", access)


@dataclass(eq=False, slots=True)
class Command:
    """One row of the table, with the counters that INFO commandstats shows (`calls`, `elapsed_us`, ...)."""

    name: str  # Upper case; a subcommand is "CLIENT|ID".
    handler: Handler | None
    arity: int
    flags: Flag
    keys: tuple[Keys, ...]
    since: str
    group: str
    summary: str
    complexity: str
    usage: str
    tips: tuple[str, ...]
    acl: tuple[str, ...]
    is_sliced: bool
    subcommands: dict[bytes, Command] = field(default_factory=dict)
    # Precomputed for the runner:
    is_plain: bool = (
        True  # Runs through the short way: no subcommands, not sliced, not a control command.
    )
    is_write: bool = False
    is_unchecked: bool = False
    is_keyed: bool = False  # It has keys, and not only shard channels, which are placed like keys.
    lane: Lane | None = None  # Does a run of plain calls at once (`respkv/lane.py`).
    calls: int = 0
    elapsed_ns: int = 0
    rejected_calls: int = 0
    failed_calls: int = 0
    histogram: Histogram = field(default_factory=Histogram)  # Of the calls' durations.

    def count(self, calls: int, elapsed_ns: int) -> None:
        """Count calls that were timed together."""
        self.calls += calls
        self.elapsed_ns += elapsed_ns
        self.histogram.add(elapsed_ns // calls, calls)

    def reset(self) -> None:
        """Forget what was counted."""
        self.calls = self.elapsed_ns = self.rejected_calls = self.failed_calls = 0
        self.histogram.clear()

    def check_arity(self, count: int) -> None:
        """Raises ReplyError if `count` arguments, name included, do not fit."""
        if count != self.arity and (self.arity >= 0 or count < -self.arity):
            raise wrong_arity(self.name)

    def key_positions(self, args: list[bytes]) -> list[int]:
        """Indexes into `args` (the whole command, name first) that hold keys."""
        positions: list[int] = []
        for spec in self.keys:
            last = spec.last if spec.last >= 0 else len(args) + spec.last
            positions += range(spec.first, min(last, len(args) - 1) + 1, spec.step)
        return positions


# Their commands may change the session's mode, protocol or database, so they take the long way.
SESSION_GROUPS: Final = ("connection", "server", "transactions", "pubsub")
PLAIN_IN_THEM: Final = ("PING", "ECHO", "PUBLISH", "SPUBLISH")


class CommandTable:
    """All commands by name. `commands` holds each once, by its upper-case name, in order of declaration."""

    def __init__(self) -> None:
        self.commands: dict[str, Command] = {}
        self.by_spelling: dict[bytes, Command] = {}  # Upper and lower case: the hot path's look-up.

    def add(self, new: Command) -> None:
        container, _, sub = new.name.partition("|")
        if sub:
            self.commands[container].subcommands[sub.encode()] = new
            return
        assert new.name not in self.commands, new.name
        self.commands[new.name] = new
        self.by_spelling[new.name.encode()] = new
        self.by_spelling[new.name.lower().encode()] = new

    def find(self, name: bytes) -> Command | None:
        """The command or container of that name in any case."""
        return self.by_spelling.get(name) or self.by_spelling.get(name.upper())

    def lookup(self, args: list[bytes]) -> Command | None:
        """The command or subcommand that these arguments name, whatever their number."""
        command = self.find(args[0])
        if command is None or not command.subcommands or len(args) < 2:
            return command
        return command.subcommands.get(args[1].upper())

    def resolve(self, args: list[bytes]) -> Command:
        """As `lookup`, with the arity checked. Raises ReplyError as Redis words it."""
        command = self.lookup(args)
        if command is None:
            container = self.find(args[0])
            raise (
                unknown_command(args)
                if container is None
                else unknown_subcommand(container.name, args[1])
            )
        command.check_arity(len(args))
        return command

    def everything(self) -> Iterator[Command]:
        """Commands and subcommands."""
        for command in self.commands.values():
            yield command
            yield from command.subcommands.values()


TABLE: Final = CommandTable()


def command(
    name: str,
    *,
    arity: int,
    flags: Flag,
    since: str,
    group: str,
    complexity: str,
    usage: str = "",
    keys: Keys | tuple[Keys, ...] = (),
    tips: tuple[str, ...] = (),
    acl: tuple[str, ...] = (),
    lane: Lane | None = None,
) -> Callable[[_H], _H]:
    """Declare a handler as a command; see the module's docstring.

    `acl` adds categories that do not follow from the flags.
    """

    def declare(handler: _H) -> _H:
        TABLE.add(
            Command(
                name=name,
                handler=handler,
                arity=arity,
                flags=flags,
                keys=(keys,) if isinstance(keys, Keys) else keys,
                since=since,
                group=group,
                summary=(handler.__doc__ or "").strip().split("\n")[0].rstrip("."),
                complexity=complexity,
                usage=usage,
                tips=tips,
                acl=acl,
                is_sliced=inspect.isgeneratorfunction(handler),
                is_plain=not inspect.isgeneratorfunction(handler)
                and (group not in SESSION_GROUPS or name in PLAIN_IN_THEM)
                and "|" not in name,
                is_write=Flag.WRITE in flags,
                is_unchecked=Flag.UNCHECKED in flags,
                is_keyed=bool(keys) and Flag.PUBSUB not in flags,
                lane=lane,
            )
        )
        return handler

    return declare


def container(name: str, *, since: str, group: str, summary: str, flags: Flag = Flag.NONE) -> None:
    """Declare a command that consists of subcommands only, such as CLIENT."""
    TABLE.add(
        Command(
            name=name, handler=None, arity=-2, flags=flags, keys=(), since=since, group=group,
            summary=summary, complexity="Depends on subcommand.", usage="", tips=(), acl=(),
            is_sliced=False, is_plain=False,
        )
    )  # fmt: skip


def unknown_command(args: list[bytes]) -> ReplyError:
    """Redis' text: the name and the beginning of the arguments, at most 128 bytes of each."""
    shown = b""
    for arg in args[1:]:
        if len(shown) >= 128:
            break
        shown += b"'%b' " % c_string(arg, 128 - len(shown))
    return ReplyError(
        b"ERR unknown command '%b', with args beginning with: %b" % (c_string(args[0]), shown)
    )


def unknown_subcommand(container_name: str, sub: bytes) -> ReplyError:
    return ReplyError(
        b"ERR unknown subcommand '%b'. Try %b HELP." % (c_string(sub), container_name.encode())
    )
