"""What was lost to damage on the disk, and which reads it makes impossible.

Not how damage is found: checksums do that, wherever bytes are read. A *damage* is a range of keys of
which the entries in one file are lost, and the log position up to which that file had them. So of a
key in the range nobody knows whether there was a newer version than what other files have, unless
the entry was certainly written later: it is in a memtable, or in a table all of which is younger than
the damage. Every other read of the range raises `LostDataError`, and nothing else is affected.

A damage is in the manifest until its owner takes it back (`Store.accept_damage`): when the slots are
filled again from other replicas or a backup, or when the loss is accepted.

    block of a live table    readers of that block meet CorruptionError; it becomes a damage when a
                             compaction meets it, which leaves the block out
    index, filter or meta    the table cannot be opened: all of its keys are a damage

The file is set aside, not removed: `NAME.damaged`, for people.

Core: plain data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from engine.codec import SLOT_MAX, Key
from engine.errors import EngineError

SET_ASIDE_SUFFIX: Final = ".damaged"
KEY_END: Final = b"\xff" * 16
"""Above every key: slots are below 0xffff."""


class Damage(msgspec.Struct, array_like=True, frozen=True):
    """The entries of the keys from `key_min` to `key_max`, inclusive, that `name` had at `offset`.

    They were written before log position `position`.
    """

    key_min: bytes
    key_max: bytes
    position: int
    name: str
    offset: int
    reason: str

    @property
    def slots(self) -> range:
        """The slots that are incomplete because of it."""
        last = int.from_bytes(self.key_max[:2].ljust(2, b"\xff"), "big")
        first = int.from_bytes(self.key_min[:2].ljust(2, b"\0"), "big")
        return range(first, min(last, SLOT_MAX) + 1)


@dataclass(eq=False)
class LostDataError(EngineError):
    """What was asked for may have stood in bytes that are damaged. The caller answers with this error.

    The data comes back from replicas or a backup; or the loss is accepted.
    """

    path: str
    offset: int
    reason: str

    def __str__(self) -> str:
        return (
            f"it may have stood in {self.path}, which is damaged at offset {self.offset}: {self.reason}. "
            "Refill the node from its replicas or a backup, or accept the loss (KV.DAMAGE ACCEPT)"
        )


def damage_at(damages: Sequence[Damage], key: Key) -> Damage | None:
    """The damage of a key, of several the one that reaches furthest in time."""
    found = [damage for damage in damages if damage.key_min <= key <= damage.key_max]
    return max(found, key=lambda damage: damage.position, default=None)


def damage_of_slot(damages: Sequence[Damage], slot: int) -> Damage | None:
    """A damage that has keys of a slot."""
    return next((damage for damage in damages if slot in damage.slots), None)


def lost(damage: Damage) -> LostDataError:
    """The error for a read that a damage makes impossible."""
    return LostDataError(damage.name, damage.offset, damage.reason)
