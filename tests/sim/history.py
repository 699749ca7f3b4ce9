"""What clients asked and were told, in an order that all can be compared by.

It judges nothing (`check.py` does). An operation *begins* when its bytes leave the client and *ends* when
its reply was read; both are numbers of one count for the whole run, so that no two are equal: if one
operation ended before another began, its number says so. An operation without a reply has an *unknown*
outcome: it may take effect at any later time, or never. So has one that was answered with an error, unless
that error says that nothing was done: then it was *refused*.

Core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

Reply = bytes | int | None | list["Reply"]
FOREVER: Final = 1 << 62


class Unknown:
    """The reply of an operation that got none. There is one: `UNKNOWN`."""

    def __repr__(self) -> str:
        return "unknown"


UNKNOWN: Final = Unknown()


@dataclass(slots=True, eq=False)
class Operation:
    """One command of one session, the `number`th of it."""

    session: int
    number: int
    args: tuple[bytes, ...]
    begin: int
    end: int = FOREVER
    reply: Reply | Unknown = UNKNOWN
    is_refused: bool = False
    error: bytes = b""
    node: str = ""
    began_s: float = 0.0
    ended_s: float = 0.0

    @property
    def name(self) -> bytes:
        return self.args[0]

    @property
    def key(self) -> bytes:
        return self.args[1] if len(self.args) > 1 else b""

    @property
    def is_acknowledged(self) -> bool:
        return self.end != FOREVER

    def precedes(self, other: Operation) -> bool:
        """Whether it was over when the other began, or comes earlier in the same session and was answered."""
        if self.session == other.session:
            return self.number < other.number and self.is_acknowledged
        return self.end < other.begin

    def __str__(self) -> str:
        words = " ".join(arg.decode("latin-1")[:40] for arg in self.args)
        outcome = f"{self.error.decode('latin-1')!r}" if self.error else repr(self.reply)
        return f"[{self.began_s:.3f}s session {self.session} at {self.node}] {words} -> {outcome}"


@dataclass(slots=True)
class History:
    """All operations of a run, in the order in which they began."""

    operations: list[Operation] = field(default_factory=list)
    _count: int = 0
    _numbers: dict[int, int] = field(default_factory=dict)

    def begin(
        self, session: int, args: Sequence[bytes], *, node: str = "", now_s: float = 0.0
    ) -> Operation:
        """A command leaves its client."""
        number = self._numbers[session] = self._numbers.get(session, -1) + 1
        operation = Operation(session, number, tuple(args), self._next(), node=node, began_s=now_s)
        self.operations.append(operation)
        return operation

    def answered(self, operation: Operation, reply: Reply) -> None:
        operation.end = self._next()
        operation.reply = reply

    def failed(self, operation: Operation, error: bytes, *, is_refused: bool) -> None:
        """An error came back. Unless it was refused, nobody knows what was done."""
        operation.error = error
        operation.is_refused = is_refused

    def by_key(self) -> dict[bytes, list[Operation]]:
        """The operations that may have been done, of each key. Not of keys with a hash tag: commands on several of

        them change keys that are not the first.
        """
        keys: dict[bytes, list[Operation]] = {}
        for operation in self.operations:
            if not operation.is_refused and not operation.key.startswith(b"{"):
                keys.setdefault(operation.key, []).append(operation)
        return keys

    def _next(self) -> int:
        self._count += 1
        return self._count
