"""The store against a dict: random operations over a simulated disk, with jobs at any moment.

The model holds the joined state of each row. What is dead (deleted, expired) shows nothing, and the
store may answer it or nothing. After each step some rows are looked up, in the three ways there are;
now and then everything is. What a process that is killed had not written is lost, and the model
goes back to what it was at the last write.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest
from xxhash import xxh3_64_intdigest

from engine import manifest
from engine.codec import Fate, RecordCodec
from engine.compaction import L0_COUNT
from engine.errors import CorruptionError, DiskFullError, LockedError
from engine.job import Job, JobResult, run_job
from engine.levels import AWAITED_MAX
from engine.manifest import Drop
from engine.memtable import ENTRY_OVERHEAD_BYTES, Memtable
from engine.store import FROZEN_MAX, NO_PINS, PageFault, Pins, SlotScan, Store, StoreSettings
from tests.engine.toy import REGISTERS, SETS, register
from tests.sim.disk import SimDisk

SLOT_COUNT = 5
TAGS = b"abc"
Place = tuple[int, bytes]
"""Slot and row."""

SETTINGS = {
    "no caches": StoreSettings(
        600,
        0,
        0,
        1 << 20,
        block_bytes=64,
        slot_count=SLOT_COUNT,
        table_bytes=400,
        level_1_bytes=700,
        l0_count=3,
    ),
    "tiny caches": StoreSettings(
        1500,
        3000,
        20_000,
        1 << 20,
        block_bytes=100,
        compression="none",
        slot_count=SLOT_COUNT,
        table_bytes=700,
        level_1_bytes=900,
        l0_count=4,
    ),
    "short logs": StoreSettings(
        1 << 20, 1 << 20, 1 << 20, 800, block_bytes=200, slot_count=SLOT_COUNT
    ),
    "one block": StoreSettings(4000, 20_000, 1 << 20, 1 << 20, slot_count=SLOT_COUNT),
}


def open_store(disk: SimDisk, codec: RecordCodec, settings: StoreSettings) -> Store:
    return Store.open(
        disk,
        codec,
        settings,
        initial_state=b"",
        observe=lambda slot, row, raw: None,
        restore=lambda state: None,
    )


def new_store(settings: StoreSettings = SETTINGS["tiny caches"]) -> Store:
    return open_store(SimDisk(random.Random(1)), SETS, settings)


def disk_of(store: Store) -> SimDisk:
    assert isinstance(store.disk, SimDisk)
    return store.disk


def do_job(store: Store, now_ms: int = 0) -> Job:
    """What the store wants done, at once."""
    job = store.next_job(now_ms)
    assert job is not None
    finish(store, job, run_job(store.disk, job, store.codec))
    return job


def finish(store: Store, job: Job, result: JobResult) -> None:
    prepared = store.prepare(job, result)
    store.write_manifest(prepared)
    store.install(job, result, prepared)


def flush(store: Store) -> None:
    store.freeze()
    assert do_job(store).kind == "flush"


class World:
    """A store, its model, and the operations on both."""

    def __init__(self, seed: int, codec: RecordCodec, settings: StoreSettings) -> None:
        self.rng = random.Random(seed)
        self.codec = codec
        self.settings = settings
        self.now_ms = 1000
        self.time = 0  # Of the last write: what the owner would have to know after a restart.
        self.seen_time = 0  # What it does know.
        self.model: dict[Place, bytes] = {}
        self.written: tuple[dict[Place, bytes], int] = ({}, 0)
        self.job: Job | None = None
        self.result: JobResult | None = None
        self.counts: dict[str, int] = {}
        self.scan: tuple[SlotScan, list[tuple[bytes, bytes]], int] | None = None
        self.open(SimDisk(random.Random(seed)))

    def open(self, disk: SimDisk) -> None:
        self.seen_time = 0
        self.store = Store.open(
            disk,
            self.codec,
            self.settings,
            initial_state=b"0",
            observe=self.observe,
            restore=self.restore,
        )
        self.store.capture = lambda: b"%d" % self.time
        self.job = self.result = None
        self.scan = None

    def restore(self, state: bytes) -> None:
        self.seen_time = int(state)

    def observe(self, slot: int, row: bytes, raw: bytes) -> None:
        if self.codec is REGISTERS:
            self.seen_time = max(self.seen_time, int.from_bytes(raw[:8], "big"))

    # The operations

    def step(self) -> None:
        names = list(OPERATIONS)
        name = self.rng.choices(names, weights=[OPERATIONS[name][0] for name in names])[0]
        self.counts[name] = self.counts.get(name, 0) + 1
        OPERATIONS[name][1](self)

    def place(self) -> Place:
        number = self.rng.randrange(40)
        return number % SLOT_COUNT, b"%c%02d" % (TAGS[number % len(TAGS)], number)

    def state_over(self, old: bytes) -> bytes:
        """A state that has seen the old one."""
        if self.codec is SETS:
            return SETS.join(old, self.rng.randbytes(self.rng.randrange(4)))
        self.time += 1
        return register(
            self.time,
            self.rng.randbytes(self.rng.choice([0, 3, 200])),
            expires_at_ms=self.rng.choice([0, 0, self.now_ms + self.rng.randrange(1, 400)]),
            dead=self.rng.random() < 0.2,
        )

    def apply_complete(self) -> None:
        place = self.place()
        raw = self.state_over(self.model.get(place, b""))
        self.store.apply(*place, raw)
        self.model[place] = raw

    def apply_delta(self) -> None:
        place = self.place()
        raw = self.state_over(b"")
        self.store.apply(*place, raw, is_complete=False)
        self.model[place] = self.codec.join(raw, self.model[place]) if place in self.model else raw

    def drop(self) -> None:
        tags = self.rng.sample(TAGS, self.rng.randrange(1, 3))
        self.store.drop(tags)
        self.model = {place: raw for place, raw in self.model.items() if place[1][0] not in tags}

    def drop_slots(self) -> None:
        first = self.rng.randrange(SLOT_COUNT)
        last = min(SLOT_COUNT - 1, first + self.rng.randrange(2))
        self.store.drop_slots(first, last)
        kept = {place: raw for place, raw in self.model.items() if not first <= place[0] <= last}
        self.model = kept

    def read_snapshot(self) -> None:
        """Begin a scan of a slot, or read on in one: it shows the slot as it was when it began."""
        if self.scan is None:
            slot = self.rng.randrange(SLOT_COUNT)
            shown = [
                (row, raw)
                for (at, row), raw in sorted(self.model.items())
                if at == slot and self.visible(row, raw) is not None
            ]
            self.scan = self.store.snapshot_scan(slot), shown, self.now_ms
            return
        scan, expected, now_ms = self.scan
        limit = self.rng.choice([1, 2, 5])
        while True:
            try:
                page = scan.page(limit)
                break
            except PageFault as fault:
                fault.resolve()
        assert len(page) <= limit
        live = [(row, raw) for row, raw in page if self.codec.fate(row, raw, now_ms) is Fate.LIVE]
        assert expected[: len(live)] == live
        self.scan = scan, expected[len(live) :], now_ms
        if not page or self.rng.random() < 0.02:
            assert page or expected == []
            scan.close()
            self.scan = None

    def write(self) -> None:
        """A tick; while the store is stalled, ticks and jobs go on, and writes do not."""
        for _ in range(100):
            self.store.write()
            self.note_written()
            if not self.store.is_stalled:
                return
            self.work()
        raise AssertionError("the store does not get out of its stall")

    def note_written(self) -> None:
        self.written = (dict(self.model), self.time)

    def sync(self) -> None:
        self.store.log.sync()

    def freeze(self) -> None:
        if len(self.store.frozen) < FROZEN_MAX:
            self.store.freeze()
            self.note_written()

    def work(self) -> None:
        """One step of a job: begin it, do it, put it into use or give it up."""
        store = self.store
        if self.job is None:
            self.job = store.next_job(self.now_ms)
        elif self.result is None:
            self.result = run_job(store.disk, self.job, self.codec)
        else:
            if self.rng.random() < 0.1:
                store.abandon(self.job)
            else:
                finish(store, self.job, self.result)
            self.job = self.result = None

    def pass_time(self) -> None:
        self.now_ms += self.rng.randrange(200)

    def forget(self) -> None:
        self.store.forget(*self.place(), self.now_ms)

    def change_cold(self) -> None:
        disk = disk_of(self.store)
        disk.faults.is_cold = not disk.faults.is_cold

    def resize(self) -> None:
        self.settings = self.rng.choice(list(SETTINGS.values()))
        self.store.resize(self.settings)

    def close_and_open(self) -> None:
        self.store.close()
        self.note_written()
        self.open(disk_of(self.store).kill())
        self.check_everything()

    def kill_and_open(self) -> None:
        self.open(disk_of(self.store).kill())
        model, time = self.written
        self.model = dict(model)
        if self.codec is REGISTERS:
            assert self.seen_time >= time
            self.time = self.seen_time
        self.check_everything()

    # Looking

    def visible(self, row: bytes, raw: bytes | None) -> bytes | None:
        if raw is None or self.codec.fate(row, raw, self.now_ms) is Fate.DEAD:
            return None
        return raw

    def patiently(self, ask: Callable[[], object]) -> object:
        """Ask as a command does: wait for pages, pin them, and ask again."""
        store = self.store
        pins: Pins = {}
        store.pinned = pins
        try:
            for _ in range(1000):
                try:
                    return ask()
                except PageFault as fault:
                    self.counts["fault"] = self.counts.get("fault", 0) + 1
                    fault.fetch()
                    fault.arrive(pins)
        finally:
            store.pinned = NO_PINS
        raise AssertionError("a look-up faults for ever")

    def get(self, slot: int, row: bytes) -> bytes | None:
        found = self.patiently(lambda: self.store.get(slot, row))
        assert found is None or isinstance(found, bytes)
        return found

    def check_row(self, slot: int, row: bytes) -> None:
        expected = self.visible(row, self.model.get((slot, row)))
        asked = self.rng.choice([self.store.read_now, self.get])
        found = asked(slot, row)
        assert self.visible(row, found) == expected

    def check_slot(self, slot: int) -> None:
        """Page through a slot from anywhere, and find exactly its live rows in order."""
        start = self.rng.choice([b"", self.place()[1]])
        limit = self.rng.choice([1, 2, 3, 10, 100])
        expected = [
            (row, shown)
            for (at, row), raw in sorted(self.model.items())
            if at == slot and row >= start and (shown := self.visible(row, raw)) is not None
        ]
        found: list[tuple[bytes, bytes]] = []
        position: bytes | None = start
        while position is not None:
            page = self.patiently(lambda at=position: self.store.scan(slot, at, limit))  # type: ignore[misc]
            assert isinstance(page, tuple)
            rows, after = page
            assert len(rows) <= limit
            assert all(row >= position for row, _ in rows)
            assert after is None or after > position
            assert after is None or not rows or after > rows[-1][0]
            found += rows
            position = after
        assert [row for row, _ in found] == sorted({row for row, _ in found})
        live = [(row, raw) for row, raw in found if self.visible(row, raw) is not None]
        assert live == expected
        assert not expected or self.store.holds_slot(slot)

    def check_next_slot(self) -> None:
        live = {s for (s, row), raw in self.model.items() if self.visible(row, raw) is not None}
        slot = self.rng.randrange(SLOT_COUNT)
        found = self.patiently(lambda: self.store.next_slot(slot))
        assert found is None or (isinstance(found, int) and slot <= found < SLOT_COUNT)
        end = SLOT_COUNT if found is None else found
        assert not live & set(range(slot, end))

    def check_everything(self) -> None:
        for number in range(40):
            self.check_row(number % SLOT_COUNT, b"%c%02d" % (TAGS[number % len(TAGS)], number))
        for slot in range(SLOT_COUNT):
            self.check_slot(slot)
        self.check_next_slot()
        store = self.store
        for memtable in [store.memtable, *(frozen.memtable for frozen in store.frozen)]:
            assert memtable.weight_bytes == weight_of(memtable)
        assert store.rows.bytes_used <= store.rows.bytes_max
        assert store.blocks.bytes_used <= store.blocks.bytes_max

    def check_some(self) -> None:
        kind = self.rng.random()
        if kind < 0.5:
            self.check_row(*self.place())
        elif kind < 0.7:
            self.check_slot(self.rng.randrange(SLOT_COUNT))
        elif kind < 0.75:
            self.check_next_slot()
        elif kind < 0.77:
            self.check_everything()


OPERATIONS: dict[str, tuple[float, Callable[[World], None]]] = {
    "complete": (30, World.apply_complete),
    "delta": (15, World.apply_delta),
    "drop": (0.4, World.drop),
    "drop slots": (0.5, World.drop_slots),
    "snapshot": (5, World.read_snapshot),
    "write": (12, World.write),
    "sync": (2, World.sync),
    "freeze": (2, World.freeze),
    "work": (15, World.work),
    "time": (4, World.pass_time),
    "forget": (6, World.forget),
    "cold": (3, World.change_cold),
    "resize": (0.3, World.resize),
    "close": (0.6, World.close_and_open),
    "kill": (0.6, World.kill_and_open),
}


def weight_of(memtable: Memtable) -> int:
    entries = [item for rows in memtable.slots for item in rows.items()]
    entries += [(row, raw) for (_, row), raw in memtable.deltas.items()]
    return sum(len(row) + len(raw) + ENTRY_OVERHEAD_BYTES for row, raw in entries)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("codec", [SETS, REGISTERS], ids=["sets", "registers"])
def test_random_operations_against_a_dict(
    codec: RecordCodec, settings: StoreSettings, seed: int
) -> None:
    world = World(seed, codec, settings)
    for _ in range(500):
        world.step()
        world.check_some()
    world.check_everything()


def test_the_random_operations_reach_what_they_are_for() -> None:
    """Page faults, evictions, compactions, drops over tables, stalls: all in one long run."""
    world = World(99, REGISTERS, SETTINGS["tiny caches"])
    seen: set[str] = set()
    operations = {**OPERATIONS}
    for name in ("close", "kill", "resize"):
        operations.pop(name)
    for _ in range(3000):
        names = list(operations)
        name = world.rng.choices(names, weights=[operations[n][0] for n in names])[0]
        operations[name][1](world)
        world.check_some()
        store = world.store
        if store.manifest.drops:
            seen.add("drops")
        if store.memtable.deltas:
            seen.add("deltas")
        if len(store.frozen) == FROZEN_MAX:
            seen.add("two frozen")
        if sum(map(bool, store.levels.levels)) > 2:
            seen.add("three levels")
        if any(len(level) > 2 for level in store.levels.levels[1:]):
            seen.add("many tables")
        if any(drop.slot_max < SLOT_COUNT for drop in store.manifest.drops):
            seen.add("drops of slots")
        if world.scan and any(
            table not in store.tables for table in store._reader._retirement.all()
        ):
            seen.add("held tables")
    stats = world.store.stats
    expected = {"drops", "drops of slots", "deltas", "two frozen", "three levels", "many tables"}
    assert seen == expected | {"held tables"}
    assert min(stats.flushes, stats.compactions, stats.faults, stats.stalls) > 5
    assert min(stats.delays, stats.entries_dropped, stats.tables_moved) > 5
    assert stats.write_amplification > 1
    assert min(store.rows.hit_count, store.rows.miss_count) > 5
    assert min(store.blocks.hit_count, store.blocks.miss_count) > 5
    assert len(store.levels.levels[0]) < 15


# Single cases that the random operations would find late, or not at all


def test_a_page_is_read_by_whoever_waits_and_only_then_seen() -> None:
    store = new_store()
    store.apply(0, b"a1", b"x")
    flush(store)
    disk_of(store).faults.is_cold = True
    with pytest.raises(PageFault) as caught:
        store.get(0, b"a1")
    caught.value.fetch()
    with pytest.raises(PageFault):
        store.get(0, b"a1")
    caught.value.arrive()
    assert store.get(0, b"a1") == b"x"
    assert store.stats.faults == 1  # The second time its page was known to be missing.


def test_a_page_that_is_known_to_be_missing_is_not_looked_for_until_one_arrives() -> None:
    store = new_store()
    store.apply(0, b"a1", b"x")
    flush(store)
    disk_of(store).faults.is_cold = True
    for _ in range(3):
        with pytest.raises(PageFault) as caught:
            store.get(0, b"a1")
    assert store.stats.table_reads == 1
    store.apply(0, b"a1", b"y")
    assert store.get(0, b"a1") == b"y", "a write needs no page"
    flush(store)  # The page is another table's now.
    caught.value.resolve()
    assert store.read_now(0, b"a1") == b"y"


def test_who_has_pins_looks_for_a_page_that_another_misses() -> None:
    """Otherwise two commands with a cache that keeps nothing could take turns for ever."""
    store = new_store(SETTINGS["no caches"])
    store.apply(0, b"a1", b"x")
    flush(store)
    disk_of(store).faults.is_cold = True
    pins: Pins = {}
    with pytest.raises(PageFault) as caught:
        store.get(0, b"a1")
    caught.value.resolve(pins)
    with pytest.raises(PageFault):
        store.get(0, b"a1")
    store.pinned = pins
    assert store.get(0, b"a1") == b"x"


def test_what_is_known_to_be_missing_is_bounded() -> None:
    store = new_store()
    for number in range(2 * AWAITED_MAX):
        store.apply(0, b"%05d" % number, b"x")
    flush(store)
    disk_of(store).faults.is_cold = True
    for number in range(2 * AWAITED_MAX):
        with pytest.raises(PageFault):
            store.get(0, b"%05d" % number)
    assert len(store._pages.awaited) <= AWAITED_MAX


def test_an_owner_may_clear_away_later() -> None:
    store = new_store()
    store.leavings.is_cleared_by_owner = True
    disk = disk_of(store)
    for number in range(L0_COUNT):
        store.apply(0, b"a1", bytes(range(97, 98 + number)))
        flush(store)
    assert len([name for name in disk.names() if name.endswith(".log")]) == L0_COUNT + 1
    store.leavings.clear_away()
    before = set(disk.names())
    assert do_job(store).kind == "compact"
    assert store.leavings.has_files
    live = {table.name for table in store.tables}
    assert before - {"lock"} <= set(disk.names())
    assert store.get(0, b"a1") == b"abcdefgh"
    store.leavings.clear_away()
    assert not store.leavings.has_files
    assert {name for name in disk.names() if name.endswith(".sst")} == live


def test_what_was_not_cleared_away_is_removed_at_the_next_start() -> None:
    store = new_store()
    store.leavings.is_cleared_by_owner = True
    disk = disk_of(store)
    for number in range(L0_COUNT):
        store.apply(0, b"a1", bytes(range(97, 98 + number)))
        flush(store)
    assert do_job(store).kind == "compact"
    assert store.leavings.has_files
    again = open_store(disk.kill(), SETS, SETTINGS["tiny caches"])
    names = disk_of(again).names()
    assert [name for name in names if name.endswith(".sst")] == [t.name for t in again.tables]
    assert again.read_now(0, b"a1") == b"abcdefgh"
    again.apply(0, b"b", b"x")
    flush(again)
    assert len([name for name in disk_of(again).names() if name.endswith(".log")]) == 1


def test_pins_show_a_page_that_no_cache_keeps_to_its_command_alone() -> None:
    store = new_store(SETTINGS["no caches"])
    store.apply(0, b"a1", b"x")
    flush(store)
    disk_of(store).faults.is_cold = True
    pins: Pins = {}
    store.pinned = pins
    with pytest.raises(PageFault) as caught:
        store.get(0, b"a1")
    caught.value.resolve(pins)
    assert store.get(0, b"a1") == b"x"
    store.pinned = NO_PINS
    with pytest.raises(PageFault):
        store.get(0, b"a1")


def test_a_table_that_was_replaced_while_a_page_was_awaited() -> None:
    """The file is gone, or its number is another's: the command asks again, and finds the new table."""
    for fetched_first in (False, True):
        store = new_store(SETTINGS["one block"])
        for number in range(L0_COUNT):
            store.apply(0, b"a1", bytes(range(97, 98 + number)))
            store.apply(0, b"b%d" % number, b"y")
            flush(store)
        disk_of(store).faults.is_cold = True
        with pytest.raises(PageFault) as caught:
            store.get(0, b"a1")
        pins: Pins = {}
        if fetched_first:
            caught.value.fetch()
        assert do_job(store).kind == "compact"
        if not fetched_first:
            caught.value.fetch()
        caught.value.arrive(pins)
        assert pins == {}
        with pytest.raises(PageFault) as again:
            store.get(0, b"a1")
        again.value.resolve()
        assert store.get(0, b"a1") == b"abcdefgh"


def test_a_damaged_page_is_an_error_and_not_a_wrong_answer() -> None:
    store = new_store()
    store.apply(0, b"a1", b"x")
    flush(store)
    disk_of(store).flip_bit(store.tables[0].name, 5)
    for read in (lambda: store.get(0, b"a1"), lambda: store.scan(0, b"", 10)):
        with pytest.raises(PageFault) as caught:
            read()
        with pytest.raises(CorruptionError):
            caught.value.resolve()


def test_a_look_up_reads_no_further_than_the_first_complete_entry() -> None:
    store = new_store(SETTINGS["no caches"])
    for raw in (b"x", b"xy"):
        store.apply(0, b"a1", raw)
        flush(store)
    assert store.get(0, b"a1") == b"xy"
    assert store.stats.table_reads == 1
    store.apply(0, b"a1", b"z", is_complete=False)
    flush(store)
    assert store.get(0, b"a1") == b"xyz"
    assert store.stats.table_reads == 3


def test_an_absent_row_is_remembered_until_it_is_written() -> None:
    store = new_store()
    store.apply(0, b"a1", b"x")
    flush(store)
    assert store.lookup(0, b"a2") is None
    reads = store.stats.table_reads
    assert store.lookup(0, b"a2") is None
    assert store.stats.table_reads == reads
    store.apply(0, b"a2", b"y", is_complete=False)
    assert store.get(0, b"a2") == b"y"


def test_an_absent_row_is_not_remembered_beyond_the_last_table() -> None:
    """A write to a store without tables has nothing to invalidate."""
    store = new_store()
    store.apply(0, b"a1", b"x")
    flush(store)
    store.drop([TAGS[0]])
    assert store.get(0, b"a1") is None
    assert store.get(0, b"b1") is None
    store.write()
    store.log.sync()
    while store.tables:
        do_job(store)
    store.apply(0, b"a1", b"y")
    store.apply(0, b"b1", b"y")
    flush(store)
    assert store.get(0, b"a1") == b"y"
    assert store.get(0, b"b1") == b"y"


def test_a_cached_row_learns_of_a_delta_when_it_is_flushed() -> None:
    store = new_store()
    store.apply(0, b"a1", b"x")
    flush(store)
    assert store.get(0, b"a1") == b"x"
    store.apply(0, b"a1", b"y", is_complete=False)
    assert store.get(0, b"a1") == b"xy"
    store.freeze()
    assert store.get(0, b"a1") == b"xy"
    do_job(store)
    assert store.get(0, b"a1") == b"xy"


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


def test_one_job_at_a_time_and_an_abandoned_one_is_given_again() -> None:
    store = new_store()
    store.apply(0, b"a1", b"x")
    store.freeze()
    job = store.next_job(0)
    assert job is not None
    assert store.next_job(0) is None
    run_job(store.disk, job, SETS)
    store.abandon(job)
    again = store.next_job(0)
    assert again is not None
    assert again.inputs == job.inputs
    assert again.output != job.output
    finish(store, again, run_job(store.disk, again, SETS))
    assert [name for name in store.disk.names() if name.endswith(".sst")] == [again.output]
    assert store.get(0, b"a1") == b"x"


def test_no_compaction_without_room_but_a_flush_is_what_makes_room() -> None:
    store = new_store()
    for number in range(L0_COUNT):
        store.apply(0, b"a%d" % number, b"x" * number)
        store.apply(0, b"a", b"x")
        flush(store)
    size = store.table_bytes
    assert store.next_job(0, room_bytes=size - 1) is None
    store.apply(0, b"b1", b"x")
    store.freeze()
    job = store.next_job(0, room_bytes=0)
    assert job is not None
    assert job.kind == "flush"
    finish(store, job, run_job(store.disk, job, SETS))
    assert store.next_job(0, room_bytes=store.table_bytes) is not None


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


def test_leftovers_of_lost_jobs_are_removed_at_the_start() -> None:
    store = new_store()
    store.apply(0, b"a1", b"x")
    flush(store)
    store.apply(0, b"a2", b"y")
    store.freeze()
    job = store.next_job(0)
    assert job is not None
    run_job(store.disk, job, SETS)
    store.disk.create("0000000000000099.sst.tmp").close()
    live = store.tables[0].name
    store = open_store(disk_of(store).kill(), SETS, SETTINGS["tiny caches"])
    names = store.disk.names()
    assert [name for name in names if ".sst" in name or ".tmp" in name] == [live]
    assert [store.get(0, row) for row in (b"a1", b"a2")] == [b"x", b"y"]
    store.freeze()
    do_job(store)
    assert job.output not in store.disk.names()


def test_next_slot_passes_empty_slots_in_memory_and_in_tables() -> None:
    store = new_store()
    assert store.next_slot(0) is None
    store.apply(4, b"a1", b"x")
    flush(store)
    store.apply(2, b"a1", b"x", is_complete=False)
    store.freeze()
    store.apply(1, b"a1", b"x")
    assert [store.next_slot(slot) for slot in range(SLOT_COUNT)] == [1, 1, 2, 4, 4]
    assert [store.holds_slot(slot) for slot in (1, 2, 4)] == [True] * 3


# Levels


def fill_levels(store: Store) -> None:
    """Tables on three levels, with several versions of most rows."""
    rng = random.Random(3)
    for _ in range(30):
        for _ in range(20):
            number = rng.randrange(60)
            store.apply(number % SLOT_COUNT, b"a%02d" % number, rng.randbytes(30))
        flush(store)
        compact(store)
    assert sum(map(bool, store.levels.levels)) >= 2


def compact(store: Store) -> list[str]:
    store.log.sync()
    kinds = []
    while store.next_job(0) is not None:
        job = store._schedule.job
        assert job is not None
        finish(store, job, run_job(store.disk, job, store.codec))
        kinds.append(job.kind)
    return kinds


def contents(store: Store) -> dict[Place, bytes]:
    return {
        (slot, row): raw
        for slot in range(SLOT_COUNT)
        for row, raw in store.scan(slot, b"", 1000)[0]
    }


def test_levels_are_found_again_after_a_restart() -> None:
    store = new_store(SETTINGS["no caches"])
    fill_levels(store)
    expected, levels = contents(store), store.levels.names
    assert levels == store.manifest.levels
    store.close()
    store = open_store(disk_of(store).kill(), SETS, SETTINGS["no caches"])
    assert store.levels.names == levels
    assert contents(store) == expected


def test_a_folder_of_format_1_is_converted() -> None:
    """Its tables become level 0 in their order, and newer rows stay in front of older ones."""
    store = new_store(SETTINGS["one block"])
    for number in range(3):
        store.apply(0, b"a1", b"%d" % number)
        store.apply(0, b"a%d" % (5 + number), b"x")
        flush(store)
    store.drop([ord("b")])
    store.close()
    disk = disk_of(store).kill()
    current = manifest.read(disk)
    assert current is not None
    fields = [1, current.log_start, current.next_table, current.levels[0], [[9, ord("z")]], b""]
    put_manifest(disk, msgspec.msgpack.encode(fields))
    store = open_store(disk, SETS, SETTINGS["one block"])
    assert store.manifest.levels == current.levels
    assert [store.get(0, row) for row in (b"a1", b"a5", b"a7")] == [b"2", b"x", b"x"]
    assert store.manifest.drops[0] == Drop(9, ord("z"))
    written = manifest.read(store.disk)
    assert written is not None
    assert written.format_version == manifest.FORMAT_VERSION == 2


def put_manifest(disk: SimDisk, body: bytes) -> None:
    disk.remove(manifest.NAME)
    file = disk.create(manifest.NAME)
    checksum = xxh3_64_intdigest(body).to_bytes(8, "little")
    file.append(manifest.MAGIC + len(body).to_bytes(8, "little") + checksum + body)
    file.sync()
    file.close()
    disk.sync_names()


def test_a_table_that_overlaps_nothing_is_moved_as_it_is() -> None:
    store = new_store(SETTINGS["no caches"])
    for slot in range(SLOT_COUNT):
        store.apply(slot, b"a1", b"x" * 100)
        flush(store)
    names = {table.name for table in store.tables}
    assert set(compact(store)) == {"move"}
    assert {table.name for table in store.tables} == names
    assert store.stats.tables_moved >= 3
    assert store.stats.bytes_compacted == 0
    assert store.stats.write_amplification == 1.0
    assert [store.get(slot, b"a1") for slot in range(SLOT_COUNT)] == [b"x" * 100] * SLOT_COUNT


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


def test_abandoning_a_job_of_several_tables_leaves_none_of_them() -> None:
    store = new_store(SETTINGS["no caches"])
    for number in range(3):
        for row in range(20):
            store.apply(0, b"a%02d" % row, bytes(range(number, 100 + number)))
        flush(store)
    expected = contents(store)
    job = store.next_job(0)
    assert job is not None
    assert len(run_job(store.disk, job, SETS).tables) > 2
    store.disk.create(f"{job.output[:-4]}-9.sst.tmp").close()
    store.abandon(job)
    assert compact(store)
    tables = {name for name in store.disk.names() if ".sst" in name}
    assert tables == {table.name for table in store.tables}
    assert contents(store) == expected


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
    # Nobody waits for a compaction that does not come.
    assert store.next_job(0, room_bytes=0) is None
    assert not store.is_stalled
    assert compact(store) == ["compact"]
    assert store.write_delay_s == 0.0
    assert not store.is_stalled
