"""One client's connection as a state machine: what it has asked, what it is owed, and what it has set.

It owns no socket and runs no command: the front feeds it bytes, the runner executes what it parsed,
and replies gather in `out` until the end of the tick. `mode` is zero for a plain session, which
takes the runner's short way; each bit is a reason for the long one.

Core: no I/O, time is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from engine.store import Pins
from respkv.parser import Limits, Parser
from respkv.reply import Reply, encode

if TYPE_CHECKING:
    from respkv.command import Command
    from respkv.consistency import Consistency
    from respkv.operation import Pipeline

# Bits of Session.mode.
UNAUTHENTICATED: Final = 1
IN_MULTI: Final = 2
REPLY_OFF: Final = 4
REPLY_SKIP: Final = 8
TRACKING: Final = 16
WAITING: Final = 32  # For a row, a slice, a time: what follows queues up in `queue`.
CLOSING: Final = 64  # Replies go out, nothing more is executed.
MONITORING: Final = 128
CONSISTENT: Final = 256  # KV.CONSISTENCY: its commands have quorums of their own.
SUBSCRIBED: Final = 512  # In RESP2: only commands about subscriptions are taken.

LARGE_REPLY_BYTES: Final = 1 << 16
# A session's large replies in one tick: then it is the others' turn, and the client has to read.
REPLY_BYTES_PER_TICK: Final = 1 << 20
ARGUMENT_OVERHEAD_BYTES: Final = 48  # An object's header, and its place in a list.


@dataclass(slots=True)
class Transaction:
    """What MULTI has queued. `is_broken`: a command was refused while queueing, so EXEC answers EXECABORT."""

    commands: list[tuple[Command, list[bytes]]] = field(default_factory=list)
    is_broken: bool = False
    weight_bytes: int = 0  # Of the commands, in memory.

    def add(self, command: Command, args: list[bytes]) -> None:
        self.commands.append((command, args))
        self.weight_bytes += sum(map(len, args)) + ARGUMENT_OVERHEAD_BYTES * (len(args) + 2)


@dataclass(slots=True, eq=False)
class Wait:
    """Why a session waits, and how it goes on. Exactly one of the kinds below applies.

    fault       a row is being fetched; then `args` runs again at `now_ms`
    slices      a sliced command; it is advanced a slice per tick
    deadline_s  a time (monotonic seconds, None for ever); then `reply` is the answer
    """

    args: list[bytes]
    command: Command
    now_ms: int
    fault: Any = None
    slices: Generator[Any, Any, Reply] | None = None
    deadline_s: float | None = None
    reply: Reply = None
    is_blocking: bool = False  # CLIENT UNBLOCK may end it.
    pins: Pins = field(default_factory=dict)  # The pages that it has waited for so far.
    spent_ns: int = 0  # In earlier slices.


class Block(Exception):
    """Raised by a handler: the session waits until `seconds` have passed (None: for ever) and then hears `reply`."""

    def __init__(self, seconds: float | None, reply: Reply, *, is_blocking: bool = True) -> None:
        super().__init__()
        self.seconds = seconds
        self.reply = reply
        self.is_blocking = is_blocking


class Session:
    """One client. `peer` and `local` are addresses as CLIENT LIST shows them."""

    __slots__ = (
        "__weakref__",
        "bytes_in",
        "bytes_out",
        "close_reason",
        "consistency",
        "created_s",
        "db",
        "fd",
        "has_large_reply",
        "id",
        "is_asking",
        "is_cluster",
        "is_grouped",
        "is_readonly",
        "is_resp3",
        "is_unix",
        "last_active_s",
        "last_command",
        "lib_name",
        "lib_ver",
        "local",
        "mode",
        "name",
        "no_evict",
        "no_touch",
        "out",
        "parser",
        "peer",
        "pipeline",
        "queue",
        "sent_away",
        "subscriptions",
        "tracking",
        "transaction",
        "unsent_bytes",
        "unsent_peak_bytes",
        "user",
        "wait",
        "watches",
        "written",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        peer: str,
        local: str,
        limits: Limits,
        now_s: float,
        *,
        authenticated: bool,
    ) -> None:
        self.id = number
        self.peer = peer
        self.local = local
        self.fd = -1
        self.is_unix = False
        self.is_cluster = (
            False  # Came in on the cluster port: the node is a Redis Cluster member to it.
        )
        self.is_grouped = False  # A command of it waits in a `respkv.group.Group`.
        self.is_readonly = False  # READONLY: reads may be answered by any replica.
        self.is_asking = False  # ASKING: the next command is taken here, not redirected.
        # Slots of which reads were answered MOVED, with no write since: see `respkv/cluster_view.py`.
        self.sent_away: dict[int, None] = {}
        self.db = 0
        self.is_resp3 = False
        self.name = b""
        self.lib_name = b""
        self.lib_ver = b""
        self.user = b"default"
        self.mode = 0 if authenticated else UNAUTHENTICATED
        self.parser = Parser(limits if authenticated else Limits.unauthenticated())
        self.parser.one_at_a_time = not authenticated
        self.out: list[bytes] = []
        self.has_large_reply = False  # In `out`: worth not being copied.
        self.queue: deque[list[bytes]] = deque()  # Parsed, and not executed yet.
        self.wait: Wait | None = None
        self.pipeline: Pipeline | None = None  # Of commands that wait for other nodes.
        self.transaction: Transaction | None = None
        # (database as SELECT names it, key) -> dots seen at WATCH: a SWAPDB changes what is there.
        self.watches: dict[tuple[int, bytes], bytes | None] = {}
        self.written: bytearray | None = None  # Where, in a cluster: see `respkv/waits.py`.
        self.tracking: Any = None  # respkv.tracking.Tracking while CLIENT TRACKING is on.
        self.consistency: Consistency | None = None  # KV.CONSISTENCY.
        self.subscriptions: Any = None  # respkv.pubsub.Subscriptions while it has any.
        self.no_evict = False
        self.no_touch = False
        self.created_s = now_s
        self.last_active_s = now_s
        self.last_command: Command | None = None
        self.unsent_bytes = 0
        self.unsent_peak_bytes = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.close_reason = ""

    def send(self, reply: Reply) -> None:
        """Add a reply to what goes out at the end of the tick."""
        if type(reply) is bytes and len(reply) >= LARGE_REPLY_BYTES:
            self.out += (b"$%d\r\n" % len(reply), reply, b"\r\n")
            self.has_large_reply = True
            return
        self.out.append(encode(reply, resp3=self.is_resp3))

    def close_after_reply(self, reason: str) -> None:
        """Execute nothing more, send what there is, then close."""
        self.mode |= CLOSING
        self.close_reason = reason
        self.queue.clear()
