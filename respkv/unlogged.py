"""What a full disk could not take: the keys whose last change is in memory, and not in the commit log.

A write is applied and then logged. If the disk has no room, the write stays applied and its reply is held
back until there is (`GroupCommit.write`). What others read of it meanwhile would be gone if the process
ended then, so nobody may see it: commands that could show it are refused. Everything else goes on: reads
of all other keys, and commands that show no keys (PING, INFO, CONFIG).

Refused are

    commands that name such a key, reading or writing it
    commands that go over the keyspace: KEYS, SCAN, DBSIZE, RANDOMKEY, CLUSTER GETKEYSINSLOT
    EXEC, if one of its commands would be
    all of them, once the change was of everything (FLUSHDB, FLUSHALL, SWAPDB)

Keys are not told apart by database: that refuses a few reads too many, at a time when it does not matter.
Two things may still be known: INFO counts the keys, and WATCH notes the state of one; the EXEC that
compares it fails for no reason at worst.

Core.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from cluster.slot import SYSTEM_SLOT, Key, key_of
from engine.log_format import ENVELOPE_BYTES, MARKER, read_envelope
from respkv.command import Command, Flag
from respkv.context import DATABASES_ROW
from respkv.reply import ReplyError

if TYPE_CHECKING:
    from respkv.session import Session
    from respkv.transaction import Queued

UNLOGGED: Final = ReplyError(
    "MISCONF The disk is full, and the last change of what this command reads or writes is not on it yet: "
    "it is refused until there is room."
)
_OF_THE_KEYSPACE: Final = Flag.READONLY | Flag.WRITE
# They have no such flag in Redis.
_SHOW_KEYS: Final = ("CLUSTER|COUNTKEYSINSLOT", "CLUSTER|GETKEYSINSLOT")


class Unlogged:
    """The keys of the entries that were given to `add`. It lasts until all of them are logged."""

    __slots__ = ("_has_all", "_keys")

    def __init__(self) -> None:
        self._keys: set[Key] = set()
        self._has_all = False

    def add(self, pieces: list[bytes]) -> None:
        """Entries that stay staged, as `CommitLog.pieces` has them."""
        blob = b"".join(pieces)
        at = 0
        while at < len(blob):
            row_at = at + ENVELOPE_BYTES
            flags, slot, row_length, raw_length = read_envelope(blob[at:row_at])
            row = blob[row_at : row_at + row_length]
            at = row_at + row_length + raw_length
            if flags & MARKER or (slot == SYSTEM_SLOT and row == DATABASES_ROW):
                self._has_all = True
            elif slot != SYSTEM_SLOT:
                self._keys.add(key_of(row))

    def is_shown_by(self, command: Command, args: list[bytes], session: Session) -> bool:
        """Whether the answer to a command could tell of these entries."""
        if command.name == "EXEC" and session.transaction is not None:
            return self.is_shown_by_one_of(session.transaction.commands)
        return self._is_named(command, args)

    def is_shown_by_one_of(self, commands: Sequence[Queued]) -> bool:
        """The same of several commands."""
        return any(self._is_named(*queued) for queued in commands)

    def _is_named(self, command: Command, args: list[bytes]) -> bool:
        if not command.flags & _OF_THE_KEYSPACE:
            return command.name in _SHOW_KEYS
        if self._has_all or not command.keys or Flag.MOVABLEKEYS in command.flags:
            return True
        return any(args[at] in self._keys for at in command.key_positions(args))
