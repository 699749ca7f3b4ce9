"""The list of slow commands that SLOWLOG shows: bounded in entries, arguments and bytes.

It measures nothing: the runner compares each command's time with `threshold_ns` and tells of those that took longer.
There is one comparison for two listeners: the latency monitor has a threshold of its own, so `threshold_ns` is the
lower of the two, and `add` passes on what concerns each.

Passwords that CONFIG SET was given are not shown.

Core: times are arguments.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from respkv.command import Command, Flag
from respkv.latency import NEVER_NS
from respkv.redaction import REDACTED, redacted

if TYPE_CHECKING:
    from collections.abc import Callable

    from respkv.latency import LatencyMonitor
    from respkv.session import Session

ARGUMENTS_MAX: Final = 32
ARGUMENT_BYTES_MAX: Final = 128

SECRETS: Final = frozenset((b"requirepass", b"client.requirepass"))


@dataclass(frozen=True, slots=True)
class SlowEntry:
    number: int
    at_s: int
    elapsed_us: int
    args: list[bytes]
    peer: bytes
    name: bytes


class Slowlog:
    """Newest first. `threshold_ns` is read by the runner at each command."""

    def __init__(
        self,
        threshold_us: int,
        entries_max: int,
        now_s: Callable[[], float],
        latency: LatencyMonitor,
    ) -> None:
        self._now_s = now_s
        self._latency = latency
        self._next_number = 0
        self.entries: deque[SlowEntry] = deque()
        self.threshold_ns = NEVER_NS
        self._listed_ns = NEVER_NS
        self.entries_max = 0
        self.configure(threshold_us, entries_max)

    def configure(self, threshold_us: int, entries_max: int) -> None:
        """List what took longer than `threshold_us` (-1: nothing). The latency monitor was configured before."""
        self._listed_ns = threshold_us * 1000 if threshold_us >= 0 else NEVER_NS
        self.threshold_ns = min(self._listed_ns, self._latency.threshold_ns)
        self.entries_max = entries_max
        while len(self.entries) > entries_max:
            self.entries.pop()

    def add(self, session: Session, command: Command, args: list[bytes], elapsed_ns: int) -> None:
        """A command took at least `threshold_ns`."""
        self._latency.add("fast-command" if Flag.FAST in command.flags else "command", elapsed_ns)
        if self.entries_max == 0 or elapsed_ns < self._listed_ns:
            return
        entry = SlowEntry(
            self._next_number,
            int(self._now_s()),
            elapsed_ns // 1000,
            [_shortened(arg) for arg in _first(_redacted(command, args))],
            session.peer.encode(),
            session.name,
        )
        self._next_number += 1
        self.entries.appendleft(entry)
        if len(self.entries) > self.entries_max:
            self.entries.pop()


def _redacted(command: Command, args: list[bytes]) -> list[bytes]:
    if command.name != "CONFIG|SET":
        return redacted(args)
    names = [b"", *args[:-1]]
    return [
        REDACTED if at % 2 and name.lower() in SECRETS else arg
        for at, (arg, name) in enumerate(zip(args, names, strict=True))
    ]


def _first(args: list[bytes]) -> list[bytes]:
    if len(args) <= ARGUMENTS_MAX:
        return args
    rest = len(args) - ARGUMENTS_MAX + 1
    return [*args[: ARGUMENTS_MAX - 1], b"... (%d more arguments)" % rest]


def _shortened(arg: bytes) -> bytes:
    if len(arg) <= ARGUMENT_BYTES_MAX:
        return arg
    rest = len(arg) - ARGUMENT_BYTES_MAX
    return arg[:ARGUMENT_BYTES_MAX] + b"... (%d more bytes)" % rest
