"""Hashes of slot clocks, one by slot and one by group of slots, kept for as long as nothing changes.

It knows no peers: which slots of a group are asked for is an argument. A replica counts the changes of
each slot's clock; where the counts are what they were, the hash is. So all of a quiet replica is
compared by comparing two arrays, and what a round costs is the groups that were written to.

Core.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import compress
from operator import ne
from typing import Final

from xxhash import xxh3_64_intdigest

from cluster.exchange_transfer import Replica
from cluster.exchange_wire import GROUP_COUNT, GROUP_SHIFT, Group, pack_clock
from cluster.slot import SLOT_COUNT, Slot

GROUP_SLOTS: Final = 1 << GROUP_SHIFT
STRIDE: Final = 8  # Groups that are looked at together.
NEVER: Final = -1  # No count is negative.
Pair = tuple["array[int]", "array[int]"]  # Counts as they are, and as they were seen.


class Digests:
    """The hashes of one replica's clocks. `versions[group]` grows when a hash in it changes."""

    def __init__(self, replica: Replica) -> None:
        self.versions = [0] * GROUP_COUNT
        self._replica = replica
        self._hashes = array("Q", bytes(8 * SLOT_COUNT))
        # The counts that the hashes were made at. 0 is right where nothing was seen.
        self._seen = [counts[:] for counts in replica.change_counts()]
        self.forget(replica.seen_slots())

    def stale_groups(self) -> list[Group]:
        """The groups whose clocks have changed since they were hashed."""
        counts = self._replica.change_counts()
        changed = [pair for pair in zip(counts, self._seen, strict=True) if pair[0] != pair[1]]
        if not changed:
            return []
        for now, seen in changed:
            seen[SLOT_COUNT:] = now[SLOT_COUNT:]  # The system's slot is not compared.
        stale: list[Group] = []
        for first in range(0, GROUP_COUNT, STRIDE):  # Mostly, little has changed.
            if _has_changed(changed, first, first + STRIDE):
                groups = range(first, first + STRIDE)
                stale += [group for group in groups if _has_changed(changed, group, group + 1)]
        return stale

    def refresh(self, group: Group) -> bool:
        """Hash what has changed of a group; False if nothing had."""
        counts = list(zip(self._replica.change_counts(), self._seen, strict=True))
        if not _has_changed(counts, group, group + 1):
            return False
        first, end = group << GROUP_SHIFT, (group + 1) << GROUP_SHIFT
        changed: dict[Slot, None] = {}
        for now, seen in counts:
            differs = map(ne, now[first:end], seen[first:end])
            changed.update(dict.fromkeys(compress(range(first, end), differs)))
            seen[first:end] = now[first:end]
        for slot in changed:
            clock = self._replica.clock(slot)
            is_empty = not clock.base and not clock.beyond
            self._hashes[slot] = 0 if is_empty else xxh3_64_intdigest(pack_clock(clock))
        self.versions[group] += 1
        return True

    def forget(self, slots: Iterable[Slot]) -> None:
        """Hash these again: their clocks were set back, and their counts may be what they were."""
        for slot in slots:
            for seen in self._seen:
                seen[slot] = NEVER

    def of(self, slots: array[Slot]) -> int:
        """The hash of some slots' clocks, as they were at the last `refresh` of their groups."""
        first = slots[0]
        if len(slots) == GROUP_SLOTS:
            hashes = self._hashes[first : first + GROUP_SLOTS]
        else:
            hashes = array("Q", [self._hashes[slot] for slot in slots])
        # With the slots themselves: two nodes may have different views of which they share.
        return xxh3_64_intdigest(slots.tobytes() + hashes.tobytes())


def _has_changed(counts: Iterable[Pair], group: Group, end_group: Group) -> bool:
    """Whether anything in some groups, up to the last one, is not as it was seen."""
    first, end = group << GROUP_SHIFT, end_group << GROUP_SHIFT
    for now, seen in counts:  # noqa: SIM110  A generator takes much longer.
        if now[first:end] != seen[first:end]:
            return True
    return False
