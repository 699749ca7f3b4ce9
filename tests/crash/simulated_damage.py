"""A flipped bit or a lost file in a data folder, and what it may do.

Not where bits are flipped (`tests/sim/disk.py`), and not when (`tests/crash/simulated.py`). Only bytes that are
durable are damaged, one bit at a time, in a live table, in the log, or in the manifest; or the last segment of the
log is lost. What may follow:

- manifest: the start is refused with a CorruptionError that names it;
- table: reads of keys of one block are refused, and jobs that read it; or the store sets the table, or its
  block, aside (`engine/damage.py`), and refuses reads of those keys until they are written again;
- log: the start and flushes are refused, if anything durable behind the damage says that it had been durable.
  Where nothing does, damage cannot be told from a torn write (`engine/log_recovery.py`): the log is then cut there,
  which the recovery reports;
- the end of the log, with the marker of a drop that a job has carried out: the start is refused.

Nothing else may change: no other key, and no value.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from engine import manifest
from engine.damage import LostDataError
from engine.errors import CorruptionError, EngineError
from engine.log_format import HEADER_BYTES, frame_offset
from engine.log_recovery import Recovery
from engine.log_segment import list_segments
from engine.sstable import Table
from engine.store import Store
from tests.sim.disk import Flip, LostFile, SimDisk

KINDS: Final = ("table", "log", "manifest")


@dataclass(slots=True)
class Damage:
    """One flipped bit, or a lost file. `position`: from here on it may take something from the log."""

    kind: str
    name: str
    offset: int
    cause: Flip | LostFile
    position: int = 0
    block: int | None = None  # Of the table, once a read has met it.

    def is_named_by(self, error: EngineError) -> bool:
        """Whether an error tells of this damage, and of nothing else."""
        return (
            isinstance(error, (CorruptionError, LostDataError))
            and error.path.rpartition("/")[2] == self.name
            and error.offset <= self.offset
        )

    def may_hide(self, key: bytes, table: Table) -> bool:
        """Whether a read of a key may fail: it is in the one block that is damaged. It remembers which."""
        block = table.block_of(key)
        if table.name != self.name or block is None or key < table.meta.key_min[:2]:
            return False
        if self.block is None:
            self.block = block
        return self.block == block

    def may_hide_slot(self, slot: int, table: Table) -> bool:
        """Whether a scan of a slot may fail."""
        return table.name == self.name and slot in range(
            int.from_bytes(table.meta.key_min[:2], "big"),
            int.from_bytes(table.meta.key_max[:2], "big") + 1,
        )

    def may_cut(self, recovery: Recovery, vouched: int) -> bool:
        """Whether the log may end where it was found to: not where durable bytes vouch for more."""
        return self.kind == "log" and vouched <= recovery.end <= self.position

    def is_reported(self, recovery: Recovery) -> bool:
        """Whether a recovery tells that it cut off what is damaged."""
        return any(torn.name == self.name for torn in recovery.torn)


def damaged(
    disk: SimDisk, store: Store, rng: random.Random, *, floor: int, vouched: int
) -> Damage | None:
    """Flip a bit somewhere; None if the place that was drawn does not suit.

    `floor` is the end of the log as of the start. Before it only what durable bytes vouch for is
    damaged, because the caller cannot say what a log that ends there would hold.
    """
    kind = rng.choice(KINDS)
    names = {
        "manifest": [manifest.NAME],
        "table": [table.name for table in store.tables],
        "log": [segment.name for segment in list_segments(disk)],
    }[kind]
    if not names:
        return None
    name = rng.choice(names)
    size = disk.size(name)
    # Ends are where footers and what is not vouched for stand.
    near = rng.random() < 0.3
    offset = rng.randrange(max(0, size - 200) if near else 0, size) if size else 0
    if not disk.is_clean(name, offset):
        return None
    position = 0
    if kind == "log":
        base = int(name.partition(".")[0])
        start = store.manifest.log_start
        position = base + offset - HEADER_BYTES
        if offset < HEADER_BYTES:
            position = max(base, start)
        if position < start or vouched <= position < floor:
            return None
    return Damage(kind, name, offset, disk.flip_bit(name, offset, rng.randrange(8)), position)


def tail_damaged(
    disk: SimDisk, store: Store, rng: random.Random, *, since: int, upto: int, may_lose: bool
) -> Damage | None:
    """Damage the log between two positions, or maybe lose its last segment if the second one is in that.

    None if the place that was drawn does not suit.
    """
    segment = [each for each in list_segments(disk) if each.base < upto][-1]
    if may_lose and rng.random() < 0.4 and segment == store.log.segment:
        return Damage("lost", segment.name, 0, disk.lose(segment.name), segment.base)
    position = rng.randrange(max(since, segment.base), upto)
    offset = frame_offset(segment.base, position)
    if not disk.is_clean(segment.name, offset):
        return None
    flip = disk.flip_bit(segment.name, offset, rng.randrange(8))
    return Damage("log", segment.name, offset, flip, position)
