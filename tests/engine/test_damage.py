"""What damage costs: the reads that may have needed what is lost, an error each, and nothing else."""

from __future__ import annotations

import random

import pytest

from engine.damage import (
    KEY_END,
    SET_ASIDE_SUFFIX,
    Damage,
    LostDataError,
    damage_at,
    damage_of_slot,
)
from engine.errors import CorruptionError
from engine.job import run_job
from engine.log_format import frame_offset
from engine.setting import StoreSettings
from engine.store import Store
from tests.engine.stores import disk_of, finish, flush, new_store, open_store
from tests.engine.toy import SETS
from tests.sim.disk import SimDisk

SLOT = 2
ROWS = [b"a%03d" % number for number in range(60)]
OLD, NEW = b"old", b"new"
L0_COUNT = 3
SMALL = StoreSettings(
    1 << 20,
    0,
    0,
    1 << 20,
    block_bytes=64,
    slot_count=5,
    table_bytes=150,
    level_1_bytes=1 << 20,
    l0_count=L0_COUNT,
    compression="none",
)


def put(store: Store, rows: list[bytes], raw: bytes) -> None:
    for row in rows:
        store.apply(SLOT, row, raw)
    store.write()


def value(store: Store, row: bytes) -> bytes | None:
    """What the store answers, waiting for the disk."""
    return store.read_now(SLOT, row)


def lost_rows(store: Store, rows: list[bytes] = ROWS) -> list[bytes]:
    """The rows of which reads are refused."""
    lost = []
    for row in rows:
        try:
            value(store, row)
        except LostDataError:
            lost.append(row)
    return lost


def damaged_rows(store: Store) -> list[bytes]:
    """The rows whose block is damaged, before anything is known to be lost."""
    damaged = []
    for row in ROWS:
        try:
            value(store, row)
        except CorruptionError:
            damaged.append(row)
    return damaged


def flip(store: Store, name: str, offset: int) -> None:
    """Change a byte of a file, under the eyes of those who have it open."""
    disk_of(store).flip_bit(name, offset)


def filled(seed: int = 1) -> Store:
    """A table of old values below one of new ones, and others above."""
    store = open_store(SimDisk(random.Random(seed)), SETS, SMALL)
    put(store, ROWS, OLD)
    flush(store)
    put(store, ROWS[20:40], NEW)
    flush(store)
    return store


def compact(store: Store) -> None:
    """Flush until level 0 is merged, and all of what follows from that."""
    while len(store.levels.levels[0]) < L0_COUNT:
        put(store, [b"z%d" % store.log.position], OLD)
        flush(store)
    while (job := store.next_job(0)) is not None:
        finish(store, job, run_job(store.disk, job, store.codec))


def test_compaction_leaves_a_damaged_block_out_and_says_what_is_lost() -> None:
    store = filled()
    newest, oldest = store.tables
    flip(store, newest.name, newest.stored_bytes // 2)
    assert damaged_rows(store)
    compact(store)
    (damage,) = store.manifest.damages
    assert (damage.name, damage.slots) == (newest.name, range(SLOT, SLOT + 1))
    lost = lost_rows(store)
    # Not one of them is answered with the old value that the lost block hid.
    assert lost
    assert all(damage.key_min <= SLOT.to_bytes(2, "big") + row <= damage.key_max for row in lost)
    for row in set(ROWS) - set(lost):
        assert value(store, row) == (NEW if row in ROWS[20:40] else OLD)
    assert newest.name + SET_ASIDE_SUFFIX in store.disk.names()
    assert oldest.name not in store.disk.names()
    assert store.incomplete_slots() == {SLOT}


def test_what_is_written_later_is_served() -> None:
    store = filled()
    newest = store.tables[0]
    flip(store, newest.name, newest.stored_bytes // 2)
    compact(store)
    lost = lost_rows(store)
    put(store, lost[:1], b"later")
    assert lost_rows(store) == lost[1:]
    flush(store)
    assert lost_rows(store) == lost[1:]
    assert value(store, lost[0]) == b"later"
    # A delta alone does not tell what the row is.
    store.apply(SLOT, lost[1], b"delta", is_complete=False)
    assert lost[1] in lost_rows(store)


def test_scans_of_the_slot_are_refused_and_others_go_on() -> None:
    store = filled()
    store.apply(SLOT + 1, b"x", OLD)
    flip(store, store.tables[0].name, store.tables[0].stored_bytes // 2)
    compact(store)
    with pytest.raises(LostDataError, match="is damaged at offset"):
        store.scan(SLOT, b"", 10)
    with pytest.raises(LostDataError):
        store.snapshot_scan(SLOT)
    assert store.scan(SLOT + 1, b"", 10) == ([(b"x", OLD)], None)
    # Who looks for slots with rows is led to it, and hears of it.
    assert store.next_slot(0) == SLOT


def test_damage_stays_after_a_restart_until_it_is_accepted() -> None:
    store = filled()
    flip(store, store.tables[0].name, store.tables[0].stored_bytes // 2)
    compact(store)
    lost = lost_rows(store)
    disk = disk_of(store)
    store.close()
    for _ in range(2):
        disk = disk.kill()
        store = open_store(disk, SETS, SMALL)
        assert lost_rows(store) == lost
        store.close()
    store = open_store(disk.kill(), SETS, SMALL)
    assert store.accept_damage() == 1
    assert lost_rows(store) == []
    assert value(store, lost[0]) == OLD  # What it hid shows again: that is what was accepted.
    disk = disk_of(store)
    store.close()
    store = open_store(disk.kill(), SETS, SMALL)
    assert store.manifest.damages == []


def with_accepted_damage(seed: int) -> tuple[Store, list[bytes], int]:
    """A store, what it had lost and got back before that was accepted, and where this begins in the log."""
    store = filled(seed)
    flip(store, store.tables[0].name, store.tables[0].stored_bytes // 2)
    compact(store)
    lost = lost_rows(store)
    assert lost
    position = store.log.position
    put(store, lost, NEW)
    assert store.accept_damage() == 1
    put(store, [b"later"], NEW)
    return store, lost, position


def test_a_log_without_what_came_back_before_damage_was_accepted_is_refused() -> None:
    """It stands in the log alone, and nobody would know that it is gone."""
    store, lost, position = with_accepted_damage(1)
    segment = store.log.segment
    disk = disk_of(store).crash()
    offset = frame_offset(segment.base, position)
    damage = disk.flip_bit(segment.name, offset + 30)
    with pytest.raises(CorruptionError) as caught:
        open_store(disk, SETS, SMALL)
    assert caught.value.path == f"{disk.path}/{segment.name}"
    assert caught.value.offset == offset
    damage.heal()
    store = open_store(disk.kill(), SETS, SMALL)
    assert [value(store, row) for row in lost] == [NEW] * len(lost)


def test_a_power_cut_after_damage_was_accepted_takes_nothing_back() -> None:
    for seed in range(50):
        store, lost, _ = with_accepted_damage(seed)
        store = open_store(disk_of(store).crash(), SETS, SMALL)
        assert [value(store, row) for row in lost] == [NEW] * len(lost)


def test_a_table_that_cannot_be_opened_is_set_aside() -> None:
    store = filled()
    newest, oldest = store.tables
    disk = disk_of(store)
    put(store, [b"later"], NEW)
    store.close()
    disk.flip_bit(newest.name, newest.meta.file_bytes - 20)  # In the footer.
    store = open_store(disk.kill(), SETS, SMALL)
    assert [table.name for table in store.tables] == [oldest.name]
    assert newest.name + SET_ASIDE_SUFFIX in store.disk.names()
    # It was in level 0, so nobody knows which keys it had: only what is newer is answered.
    assert lost_rows(store) == ROWS
    assert value(store, b"later") == NEW
    assert store.accept_damage() == 1
    assert [value(store, row) for row in ROWS] == [OLD] * len(ROWS)


def test_of_a_deeper_level_only_the_keys_between_the_neighbours_are_lost() -> None:
    store = filled()
    put(store, [b"b%03d" % number for number in range(60)], OLD)
    compact(store)
    run = next(level for level in store.levels.levels[1:] if len(level) > 2)
    before, damaged, after = run[:3]
    disk = disk_of(store)
    store.close()
    disk.flip_bit(damaged.name, damaged.meta.file_bytes - 20)
    store = open_store(disk.kill(), SETS, SMALL)
    (damage,) = store.manifest.damages
    assert (damage.key_min, damage.key_max) == (before.meta.key_max, after.meta.key_min)
    lost = lost_rows(store)
    inside = [row for row in ROWS if damaged.meta.key_min[2:] <= row <= damaged.meta.key_max[2:]]
    assert inside
    assert set(inside) <= set(lost)
    assert len(lost) <= len(inside) + 2


def test_a_dropped_range_has_nothing_to_lose() -> None:
    store = filled()
    flip(store, store.tables[0].name, store.tables[0].stored_bytes // 2)
    compact(store)
    assert lost_rows(store)
    store.drop_slots(SLOT, SLOT)
    store.write()
    assert lost_rows(store) == []
    assert value(store, ROWS[0]) is None


def test_damages_by_key_and_slot() -> None:
    early = Damage(b"\0\1a", b"\0\1m", 5, "a", 0, "")
    late = Damage(b"\0\1k", b"\0\3z", 9, "b", 0, "")
    everything = Damage(b"", KEY_END, 1, "c", 0, "")
    assert damage_at([early, late], b"\0\1b") is early
    assert damage_at([early, late], b"\0\1k") is late
    assert damage_at([early, late], b"\0\1Z") is None
    assert damage_of_slot([early, late], 2) is late
    assert damage_of_slot([early, late], 4) is None
    assert everything.slots[0] == 0
    assert everything.slots[-1] >= 16384


def test_a_store_whose_only_table_is_gone_does_not_answer_that_it_is_empty() -> None:
    store = new_store(SMALL)
    put(store, ROWS, OLD)
    flush(store)
    (table,) = store.tables
    disk = disk_of(store)
    store.close()
    disk.flip_bit(table.name, table.meta.file_bytes - 20)
    store = open_store(disk.kill(), SETS, SMALL)
    assert not store.tables
    assert lost_rows(store) == ROWS
    assert store.holds_slot(SLOT)
    with pytest.raises(LostDataError):
        store.scan(SLOT, b"", 10)
