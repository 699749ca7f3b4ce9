"""The list of slow commands that SLOWLOG shows: bounded in entries, arguments and bytes.

Core: times are arguments.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from respkv.command import Command
    from respkv.session import Session

ARGUMENTS_MAX: Final = 32
ARGUMENT_BYTES_MAX: Final = 128
NEVER_NS: Final = 1 << 62


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

    def __init__(self, threshold_us: int, entries_max: int, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._next_number = 0
        self.entries: deque[SlowEntry] = deque()
        self.threshold_ns = NEVER_NS
        self.entries_max = 0
        self.configure(threshold_us, entries_max)

    def configure(self, threshold_us: int, entries_max: int) -> None:
        self.threshold_ns = threshold_us * 1000 if threshold_us >= 0 else NEVER_NS
        self.entries_max = entries_max
        while len(self.entries) > entries_max:
            self.entries.pop()

    def add(self, session: Session, command: Command, args: list[bytes], elapsed_ns: int) -> None:
        if self.entries_max == 0:
            return
        entry = SlowEntry(
            self._next_number,
            int(self._now_s()),
            elapsed_ns // 1000,
            [_shortened(arg) for arg in _first(args)],
            session.peer.encode(),
            session.name,
        )
        self._next_number += 1
        self.entries.appendleft(entry)
        if len(self.entries) > self.entries_max:
            self.entries.pop()


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
