"""The store against a dict: random operations over a simulated disk, with jobs at any moment.

The model holds the joined state of each row. What is dead (deleted, expired) shows nothing, and the
store may answer it or nothing. After each step some rows are looked up, in the three ways there are;
now and then everything is. What a process that is killed had not written is lost, and the model
goes back to what it was at the last write.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from engine.codec import Fate, RecordCodec
from engine.job import Job, JobResult, run_job
from engine.store import FROZEN_MAX, NO_PINS, PageFault, Pins, SlotScan, Store, StoreSettings
from tests.engine.stores import SETTINGS, SLOT_COUNT, TAGS, Place, disk_of, finish, weight_of
from tests.engine.toy import REGISTERS, SETS, register
from tests.sim.disk import SimDisk


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
