"""The store's single cases that random operations (`test_store_operations.py`) would find late, or not at all."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from engine import manifest
from engine.errors import CorruptionError, DiskFullError, LockedError
from engine.log_format import frame_offset
from engine.store import FROZEN_MAX, Store, StoreSettings
from tests.engine.stores import (
    SETTINGS,
    SLOT_COUNT,
    TAGS,
    compact,
    contents,
    disk_of,
    do_job,
    fill_levels,
    flush,
    new_store,
    open_store,
    weight_of,
)
from tests.engine.toy import REGISTERS, SETS, register
from tests.sim.disk import SimDisk


def test_a_delta_under_a_complete_entry_stays_gone_after_a_restart() -> None:
    """It was superseded: when the complete entry has expired and is forgotten, it must not come back."""
    store = open_store(SimDisk(random.Random(1)), REGISTERS, SETTINGS["one block"])
    store.apply(0, b"a1", register(1, b"old"), is_complete=False)
    store.apply(0, b"a1", register(2, b"new", expires_at_ms=50))
    store.close()
    store = open_store(disk_of(store).kill(), REGISTERS, SETTINGS["one block"])
    assert store.memtable.deltas == {}
    assert store.memtable.weight_bytes == weight_of(store.memtable)
    assert store.forget(0, b"a1", 50)
    assert store.get(0, b"a1") is None


def test_drops_hide_tables_until_compaction_has_carried_them_out() -> None:
    store = new_store()
    for row in (b"a1", b"b1"):
        store.apply(0, row, b"x" * 100)
    flush(store)
    store.drop([ord("a")])
    store.apply(0, b"a2", b"y")
    assert [store.get(0, row) for row in (b"a1", b"a2", b"b1")] == [None, b"y", b"x" * 100]
    store.write()
    # Not before the marker is durable: a crash could still take it back.
    assert store.next_job(0) is None
    store.log.sync()
    assert do_job(store).kind == "compact"
    assert store.manifest.drops == []
    assert store.tables[0].meta.entry_count == 1
    assert [store.get(0, row) for row in (b"a1", b"a2", b"b1")] == [None, b"y", b"x" * 100]
    assert store.next_job(0) is None


def test_dropping_again_and_again_takes_no_room() -> None:
    """Each look-up goes through the drops."""
    store = new_store(SETTINGS["one block"])
    store.apply(0, b"a1", b"x")
    store.apply(0, b"d1", b"x")
    flush(store)
    for number in range(100):
        store.drop([*TAGS])
        store.apply(0, b"a%d" % number, b"y")
        store.write()
        if number == 50:
            flush(store)
    assert len(store.manifest.drops) <= 2 * len(TAGS)
    for _ in range(2):
        assert [store.get(0, row) for row in (b"a1", b"a98", b"a99", b"d1")] == [
            None,
            None,
            b"y",
            b"x",
        ]
        store = open_store(disk_of(store).kill(), SETS, SETTINGS["one block"])


def test_dropping_everything_gives_the_space_back_without_a_write() -> None:
    store = new_store()
    for number in range(3):
        store.apply(0, b"a%d" % number, b"x" * 100)
        flush(store)
    store.drop([ord("a")])
    store.write()
    store.log.sync()
    assert do_job(store).kind == "remove"
    assert store.stats.entries_dropped == 3
    assert store.stats.table_reads == 0
    assert store.tables == []
    assert store.manifest.drops == []
    assert store.next_job(0) is None
    assert not [name for name in store.disk.names() if name.endswith(".sst")]


CARRIED_OUT = {"compact": [b"a1", b"b1"], "remove": [b"a1"]}
"""The job that carries out a drop of `a`, and what is in the only table before."""


def with_dropped(kind: str, seed: int = 1) -> tuple[Store, int]:
    """A store in which that job is due; and where the frame of the marker begins, the last one."""
    store = open_store(SimDisk(random.Random(seed)), SETS, SETTINGS["one block"])
    for row in CARRIED_OUT[kind]:
        store.apply(0, row, b"x" * 100)
    flush(store)
    position = store.log.position
    store.drop([ord("a")])
    store.write()
    store.log.sync()
    return store, position


def with_carried_out(kind: str) -> tuple[Store, int]:
    """As `with_dropped`, and the job is done."""
    store, position = with_dropped(kind)
    assert do_job(store).kind == kind
    return store, position


@pytest.mark.parametrize("kind", CARRIED_OUT)
@pytest.mark.parametrize("is_lost", [False, True])
def test_a_log_that_lost_a_drop_that_was_carried_out_is_refused(kind: str, is_lost: bool) -> None:
    """The rows are gone, and the log would say that they are there."""
    store, position = with_carried_out(kind)
    disk = disk_of(store).kill()
    name = store.log.segment.name
    offset = frame_offset(store.log.segment.base, position)
    damage = disk.lose(name) if is_lost else disk.flip_bit(name, offset + 9)
    before = {each: disk.size(each) for each in disk.names()}
    for _ in range(2):
        with pytest.raises(CorruptionError) as caught:
            open_store(disk, SETS, SETTINGS["one block"])
        assert caught.value.path == f"{disk.path}/{name}"
        assert caught.value.offset == (0 if is_lost else offset)
        disk = disk.kill()
        assert {each: disk.size(each) for each in disk.names()} == before
    damage.heal()
    store = open_store(disk, SETS, SETTINGS["one block"])
    assert [store.get(0, row) for row in (b"a1", b"b1")] == [
        None,
        b"x" * 100 if kind == "compact" else None,
    ]


def test_an_older_manifest_s_tables_vouch_for_the_drops_in_them() -> None:
    store, _ = with_carried_out("compact")
    disk = disk_of(store).kill()
    current = manifest.read(disk)
    assert current is not None
    assert current.vouched == current.log_start + 1  # At least in the frame that begins there.
    current.vouched = 0
    manifest.write(disk, current)
    lost = disk.lose(store.log.segment.name)
    with pytest.raises(CorruptionError, match="expected the log up to position"):
        open_store(disk, SETS, SETTINGS["one block"])
    lost.heal()
    assert open_store(disk.kill(), SETS, SETTINGS["one block"]).get(0, b"b1") == b"x" * 100


@pytest.mark.parametrize("kind", CARRIED_OUT)
def test_a_power_cut_takes_no_drop_that_was_carried_out(kind: str) -> None:
    """Whatever becomes of what was written after it, no start is refused."""
    for seed in range(100):
        store, _ = with_dropped(kind, seed)
        durable = store.log.position
        for number in range(seed % 5):
            store.apply(0, b"c%d" % number, b"y" * 300)
            store.drop([ord("b")])
            store.write()
            if number == 2:
                store.log.roll()
        assert do_job(store).kind == kind
        store = open_store(disk_of(store).crash(), SETS, SETTINGS["one block"])
        assert store.recovery.end >= durable
        assert store.get(0, b"a1") is None


def test_what_was_carried_out_stays_known() -> None:
    store, position = with_carried_out("remove")
    flush(store)
    store.apply(0, b"b1", b"y")
    flush(store)
    store.close()
    store = open_store(disk_of(store).kill(), SETS, SETTINGS["one block"])
    found = manifest.read(store.disk)
    assert found is not None
    assert found.vouched == position + 1


def test_a_table_that_moves_down_carries_out_nothing() -> None:
    store = new_store(SETTINGS["no caches"])
    for number in range(3):
        for row in (b"b1", b"b2", b"b3", b"a1"):
            store.apply(number, row, b"x")
        flush(store)
    store.drop([ord("a")])
    store.write()
    store.log.sync()
    assert do_job(store).kind == "move"
    assert store.manifest.vouched == 0


def test_what_expired_gives_its_space_back_without_a_read() -> None:
    store = open_store(SimDisk(random.Random(1)), REGISTERS, SETTINGS["one block"])
    for number in range(10):
        store.apply(0, b"a%d" % number, register(1, b"v" * 100, expires_at_ms=100))
    flush(store)
    assert store.next_job(99) is None
    do_job(store, now_ms=100)
    assert store.tables == []


def test_forget_leaves_what_is_live_or_not_here() -> None:
    store = open_store(SimDisk(random.Random(1)), REGISTERS, SETTINGS["one block"])
    store.apply(0, b"a1", register(1, b"v", expires_at_ms=100))
    assert not store.forget(0, b"a2", 1000)
    assert not store.forget(0, b"a1", 99)
    assert store.forget(0, b"a1", 100)
    assert store.memtable.entry_count == 0
    store.apply(0, b"a1", register(2, b"old"))
    store.freeze()
    store.apply(0, b"a1", register(3, b"new", expires_at_ms=100))
    assert store.forget(0, b"a1", 100)
    # A stub, so that what is below stays hidden.
    assert store.get(0, b"a1") == register(3, dead=True)


def test_two_memtables_wait_at_most_and_then_the_owner_is_told() -> None:
    store = new_store(SETTINGS["short logs"])
    for number in range(40):
        store.apply(0, b"a%d" % number, b"x" * 100)
        store.write()
    assert len(store.frozen) == FROZEN_MAX
    assert store.is_stalled
    do_job(store)
    assert not store.is_stalled
    assert [store.get(0, b"a%d" % number) for number in range(40)] == [b"x" * 100] * 40


def test_a_full_disk_refuses_a_write_and_keeps_it_for_the_next_time() -> None:
    store = new_store()
    store.apply(0, b"a1", b"x")
    store.write()
    disk_of(store).faults.capacity_bytes = 1
    store.apply(0, b"a2", b"y")
    with pytest.raises(DiskFullError):
        store.write()
    assert store.get(0, b"a2") == b"y"
    disk_of(store).faults.capacity_bytes = None
    store.write()
    store = open_store(disk_of(store).kill(), SETS, SETTINGS["tiny caches"])
    assert [store.get(0, row) for row in (b"a1", b"a2")] == [b"x", b"y"]


def test_a_folder_has_one_store() -> None:
    store = new_store()
    with pytest.raises(LockedError):
        open_store(disk_of(store).again(), SETS, SETTINGS["tiny caches"])


def test_the_statistics_of_levels_add_up() -> None:
    store = new_store(SETTINGS["no caches"])
    fill_levels(store)
    stats = store.level_stats()
    assert sum(level.file_bytes for level in stats) == store.table_bytes
    assert sum(level.table_count for level in stats) == len(store.tables)
    made = store.stats.bytes_flushed + store.stats.bytes_compacted
    assert made > store.table_bytes
    assert store.stats.write_amplification == made / store.stats.bytes_flushed
    assert sum(level.entry_count for level in stats) + store.stats.entries_dropped > 300


def test_what_is_deleted_above_the_bottom_stays_deleted() -> None:
    """Its stub must lie above the old version until both have met."""
    settings = SETTINGS["no caches"]
    store = open_store(SimDisk(random.Random(1)), REGISTERS, settings)
    filler = register(1, b"f" * 60)
    for number in range(60):
        store.apply(number % SLOT_COUNT, b"a%02d" % number, filler)
        if number % 10 == 9:
            flush(store)
            compact(store)
    assert len(store.levels.levels) > 2
    store.apply(0, b"a00", register(2, dead=True))
    for round_number in range(20):
        for slot in range(SLOT_COUNT):
            store.apply(slot, b"b%02d" % round_number, filler)
        flush(store)
        compact(store)
        raw = store.get(0, b"a00")
        assert raw is None or raw == register(2, dead=True)


# Drops of slots


def test_drops_of_slots_hide_rows_in_memory_and_in_tables_and_after_a_restart() -> None:
    settings = SETTINGS["one block"]
    store = new_store(settings)

    def found(slot: int) -> list[bytes | None]:
        return [store.get(slot, b"%c%d" % (kind, slot)) for kind in b"abcd"]

    for kind in b"abcd":
        for slot in range(SLOT_COUNT):
            is_complete = kind != ord("d")
            store.apply(slot, b"%c%d" % (kind, slot), b"%c" % kind, is_complete=is_complete)
        if kind == ord("a"):
            flush(store)
        elif kind == ord("b"):
            store.freeze()
    store.drop_slots(1, 2)
    store.apply(2, b"a2", b"after")
    for _ in range(2):
        for slot in (0, 3, 4):
            assert found(slot) == [b"a", b"b", b"c", b"d"]
        assert found(1) == [None] * 4
        assert found(2) == [b"after", None, None, None]
        store.write()
        store = open_store(disk_of(store).kill(), SETS, settings)
    flush(store)
    assert store.manifest.drops != []
    assert found(1) == [None] * 4
    compact(store)
    assert store.manifest.drops == []  # Carried out: 2 of 5 slots are much of the first table.
    assert not any(slot == 1 for slot, _ in contents(store))
    assert found(2) == [b"after", None, None, None]


def test_dropping_all_slots_of_a_table_removes_it_unread() -> None:
    store = new_store()
    store.apply(1, b"a1", b"x")
    flush(store)
    store.apply(3, b"a1", b"y")
    flush(store)
    store.drop_slots(0, 2)
    store.write()
    assert store.next_job(0) is None  # The marker is not durable.
    assert compact(store) == ["remove"]
    assert [len(store.tables), store.get(3, b"a1")] == [1, b"y"]
    assert store.manifest.drops == []


# The horizon


def test_the_dead_are_kept_until_the_horizon_has_passed_them() -> None:
    store = open_store(SimDisk(random.Random(1)), REGISTERS, SETTINGS["one block"])
    store.horizon_position = 0
    stub = register(1, dead=True)
    store.apply(0, b"a1", stub)
    store.apply(0, b"a2", register(1, b"v", expires_at_ms=5))
    assert store.forget(0, b"a2", 10)
    assert store.get(0, b"a2") == stub
    store.freeze()
    do_job(store, now_ms=10)
    assert [store.get(0, row) for row in (b"a1", b"a2")] == [stub, stub]
    assert compact(store) == []
    store.horizon_position = store.tables[0].meta.position_max - 1
    assert compact(store) == []
    store.horizon_position += 1
    assert compact(store) == ["compact"]
    assert store.tables == []


# Too much to do


def test_writes_slow_down_before_they_stop_for_a_flush() -> None:
    settings = StoreSettings(10_000, 0, 0, 1 << 20, slot_count=SLOT_COUNT, write_delay_max_s=0.5)
    store = new_store(settings)
    delays = []
    for number in range(200):
        store.apply(0, b"a%d" % number, b"x")
        store.write()
        delays.append((len(store.frozen), store.write_delay_s))
        if store.is_stalled:
            break
    assert all(delay == 0.0 for frozen, delay in delays if frozen == 0)
    slow = [delay for frozen, delay in delays if frozen == 1]
    assert slow == sorted(slow)
    assert slow[len(slow) // 3] == 0.0
    assert 0.4 < slow[-1] <= 0.5
    assert delays[-1][0] == FROZEN_MAX
    assert store.stats.delays == sum(delay > 0 for _, delay in delays)
    do_job(store)
    do_job(store)
    assert store.write_delay_s == 0.0


def test_writes_slow_down_and_stop_where_level_0_gets_long() -> None:
    settings = StoreSettings(
        1 << 20, 0, 0, 1 << 20, slot_count=SLOT_COUNT, l0_slow_count=4, l0_stop_count=8
    )
    store = new_store(settings)
    delays = []
    for number in range(8):
        store.apply(0, b"a1", b"x" * (number + 1))
        flush(store)
        delays.append(store.write_delay_s / settings.write_delay_max_s)
        assert store.is_stalled == (number == 7)
    assert delays == pytest.approx([0, 0, 0, 0, 0.25, 0.5, 0.75, 1.0])
    # It is so after a restart, and after a change of the limits, before anything is written.
    store.close()
    store = open_store(disk_of(store).kill(), SETS, settings)
    assert store.write_delay_s == settings.write_delay_max_s
    store.resize(replace(settings, l0_slow_count=100, l0_stop_count=200))
    assert store.write_delay_s == 0.0
    store.resize(settings)
    assert store.write_delay_s == settings.write_delay_max_s
    # Nobody waits for a compaction that does not come.
    assert store.next_job(0, room_bytes=0) is None
    assert not store.is_stalled
    assert compact(store) == ["compact"]
    assert store.write_delay_s == 0.0
    assert not store.is_stalled


@pytest.mark.parametrize("rows_per_write", [1, 100, 600])
def test_what_was_flushed_is_freed_before_the_next_memtable_is_full(rows_per_write: int) -> None:
    """However few writes of the log fill one: else memory grows with each flush."""
    slot_count = 512
    settings = replace(SETTINGS["tiny caches"], memtable_bytes=1 << 20, log_bytes_max=1 << 22)
    store = new_store(replace(settings, slot_count=slot_count))
    number = 0
    for _ in range(3):
        while not store.frozen:
            for _ in range(rows_per_write):
                number += 1
                store.apply(number % slot_count, b"a%d" % number, b"v" * 400)
            store.write()
        assert not store._dead
        assert do_job(store).kind == "flush"
        assert len(store._dead) == slot_count
