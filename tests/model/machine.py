"""The store and a dict, side by side: operations on both, and what is compared.

Not the tour through all ways in which a disk can fail (`tests/crash/simulated.py`): here the power goes
only between operations, and the operations are all that the engine has.

    python -m tests.model --seed 1 --config tiny --steps 1000

The dict says what everything written adds up to; nothing is ever forgotten in it. It is kept as of the last
recovery, with the changes since by frame of the log, so that after a crash it can follow.

Each step draws from a generator of its own, and any step can be left out: what it would have drawn changes
nothing for the others. So a failing script can be shortened (`tests/model/script.py`).
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from engine import snapshot
from engine.disk import Disk
from engine.job import EVERYTHING, Job, JobResult, run_job
from engine.levels import PageFault, Pins
from engine.log_format import SHORT_SUFFIX
from engine.scan import SlotScan
from engine.store import NO_PINS, Prepared, Store, StoreSettings
from tests.model.configuration import SLOT_COUNT, Configuration
from tests.model.record import CODEC, Record, decode
from tests.sim.disk import SimDisk

TAG_COUNT = 3
FAULTS_MAX = 200  # Of one look-up.
SCANS_MAX = 3
SNAPSHOTS_MAX = 2

Place = tuple[int, bytes]
"""Slot and row."""

Content = dict[Place, Record]
Change = Callable[[Content], None]
Shown = tuple[bytes | None, bytes]
_T = TypeVar("_T")


class Difference(AssertionError):
    """The store and the dict do not agree."""


@dataclass(slots=True)
class Task:
    """A job on its way."""

    job: Job
    result: JobResult | None = None
    prepared: Prepared | None = None
    is_written: bool = False


@dataclass(slots=True)
class OpenScan:
    """A scan that goes on while the store changes, and the slot as it was at its beginning."""

    scan: SlotScan
    slot: int
    content: Content
    found: list[tuple[bytes, bytes]] = field(default_factory=list)


class Machine:
    """One disk and one dict. `run` does one step. `counts` says what was done."""

    def __init__(self, configuration: Configuration, seed: int) -> None:
        self.configuration = configuration
        self.counts: Counter[str] = Counter()
        self._seed = seed
        self._settings: StoreSettings = configuration.settings
        rng = random.Random(f"rows-{seed}")
        self._places: list[Place] = [
            (rng.randrange(SLOT_COUNT), bytes([rng.randrange(TAG_COUNT)]) + b"row%d" % number)
            for number in range(configuration.row_count)
        ]
        self._names = list(configuration.weights)
        self._weights = list(configuration.weights.values())
        self._disk = SimDisk(random.Random(f"disk-{seed}"))
        self._now_ms = 1_000_000
        self._time = 0  # Of the last write.
        self._store: Store
        self._base: Content = {}
        self._frames: list[tuple[int, list[Change]]] = []
        self._staged: list[Change] = []
        self._durable = 0
        self._tasks: list[Task] = []  # A flush, a compaction, or one of each.
        self._scans: list[OpenScan] = []
        self._snapshots: dict[str, Content] = {}
        self._horizon_time = 0  # Of the last write that may be forgotten.
        self._void_time = 1 << 62  # The earliest of the deltas that came when they were void.
        self._times: list[tuple[int, int]] = []  # The end of each frame, and the last time in it.
        self._rng = rng
        self._short_rng = random.Random(f"short-{seed}")
        self._open()

    def run(self, step: int) -> str:
        """Do one step, and return its name. Raises Difference, or what a broken store raises."""
        self._rng = random.Random(f"{self._seed}-{step}")
        self._short_rng = random.Random(f"short-{self._seed}-{step}")
        (name,) = self._rng.choices(self._names, self._weights)
        operation: Callable[[], None] = getattr(self, f"_{name}")
        operation()
        self.counts[name] += 1
        return name

    def finish(self) -> None:
        """Compare everything, open it once more, and compare again."""
        self._check()
        self._end_scans()
        self._reopen()

    # The dict

    def _content(self) -> Content:
        content = dict(self._base)
        for _, changes in self._frames:
            for change in changes:
                change(content)
        for change in self._staged:
            change(content)
        return content

    def _place(self) -> Place:
        return self._rng.choice(self._places)

    def _next_time(self) -> int:
        self._time += 1
        return self._time

    # Writing

    def _apply(self, place: Place, record: Record, *, is_complete: bool) -> None:
        self._store.apply(*place, record.encode(), is_complete=is_complete)

        def change(content: Content) -> None:
            content[place] = content.get(place, Record()).join(record)

        self._staged.append(change)

    def _put(self) -> None:
        rng = self._rng
        for _ in range(rng.choice((1, 1, 5))):
            value = rng.randbytes(rng.choice((0, 10, self.configuration.value_bytes_max)))
            lifetime_ms = rng.choice((0, 0, 0, 500, 5000))
            expires_at_ms = self._now_ms + lifetime_ms if lifetime_ms else 0
            record = Record(self._next_time(), expires_at_ms, is_dead=False, value=value)
            self._apply(self._place(), record, is_complete=True)

    def _delete(self) -> None:
        self._apply(self._place(), Record(self._next_time()), is_complete=True)

    def _add(self) -> None:
        addition = (self._next_time(), self._rng.randrange(256))
        self._apply(self._place(), Record(additions=frozenset({addition})), is_complete=False)

    def _add_late(self) -> None:
        """A delta from elsewhere, older than much that is here; not older than what may be forgotten.

        What makes it void may stand below it on any level, and must not be forgotten from now on.
        """
        self._next_time()
        first = self._horizon_time
        if self._store.horizon_position == EVERYTHING:
            first = self._time - 1
        time, place = self._rng.randint(first + 1, self._time), self._place()
        if time < self._content().get(place, Record()).time:
            self._void_time = min(self._void_time, time)
        record = Record(additions=frozenset({(time, self._rng.randrange(256))}))
        self._apply(place, record, is_complete=False)

    def _forget(self) -> None:
        """The owner gives back what has expired in memory."""
        for _ in range(5):
            self._store.forget(*self._place(), self._now_ms)

    def _drop_tags(self) -> None:
        tags = self._rng.sample(range(TAG_COUNT), self._rng.choice((1, 1, TAG_COUNT)))
        self._store.drop(tags)
        self._staged.append(lambda content: _keep(content, lambda place: place[1][0] not in tags))

    def _drop_slots(self) -> None:
        first = self._rng.randrange(SLOT_COUNT)
        last = min(SLOT_COUNT - 1, first + self._rng.choice((0, 1, 5, SLOT_COUNT)))
        self._store.drop_slots(first, last)
        self._staged.append(
            lambda content: _keep(content, lambda place: not first <= place[0] <= last)
        )

    def _write(self) -> None:
        before = self._store.log.position
        position = self._store.write()
        if position > before:
            self._frames.append((position, list(self._staged)))
            self._times.append((position, self._time))
            self._staged.clear()

    def _sync(self) -> None:
        self._write()
        self._durable = self._store.log.sync()

    def _freeze(self) -> None:
        self._write()
        if len(self._store.frozen) < 2:
            self._store.freeze()

    # Settings and time

    def _pass_time(self) -> None:
        self._now_ms += self._rng.choice((1, 300, 3000))

    def _move_horizon(self) -> None:
        """The owner lets what is older be forgotten: only what is durable."""
        if self._store.horizon_position == EVERYTHING:
            self._store.horizon_position = 0
            self._horizon_time = self._time  # All of it may have been forgotten.
        for position, time in self._times:
            is_allowed = position <= self._durable and time < self._void_time
            if is_allowed and self._rng.random() < 0.7:
                self._store.horizon_position = max(self._store.horizon_position, position)
                self._horizon_time = max(self._horizon_time, time)

    def _resize(self) -> None:
        rng = self._rng
        changed = replace(
            self._settings,
            memtable_bytes=rng.choice((1 << 10, 6 << 10, 64 << 10)),
            row_cache_bytes=rng.choice((0, 8 << 10, 1 << 20)),
            block_cache_bytes=rng.choice((0, 8 << 10, 1 << 20)),
            block_bytes=rng.choice((1, 256, 4096)),
            compression=rng.choice(("none", "lz4", "zstd")),
            table_bytes=rng.choice((400, 4096, 1 << 20)),
            level_1_bytes=rng.choice((600, 4096, 1 << 20)),
            l0_count=rng.choice((1, 2, 4)),
        )
        self._store.resize(rng.choice((changed, self.configuration.settings)))
        self._settings = self._store.settings

    # Jobs

    def _work(self) -> None:
        """One part of a job that is under way, or the next one."""
        store, tasks = self._store, self._tasks
        if not tasks or (len(tasks) == 1 and self._rng.random() < 0.3):
            while self._short_rng.random() < 0.7 and store.shorten(0.0):
                pass
            job = store.next_job(self._now_ms)
            if job is not None:
                tasks.append(Task(job))
                self.counts["flush of a short log"] += any(
                    name.endswith(SHORT_SUFFIX) for name in job.inputs
                )
                self.counts["job beside another"] += len(tasks) == 2
            return
        task = self._rng.choice(tasks)
        preparing = next((each for each in tasks if each.prepared is not None), None)
        if task.result is not None and preparing is not None:
            task = preparing  # One manifest at a time.
        if task.result is None:
            task.result = run_job(self._disk.again(), task.job, CODEC)
        elif task.prepared is None:
            task.prepared = store.prepare(task.job, task.result)
        elif not task.is_written:
            store.write_manifest(task.prepared)
            task.is_written = True
        else:
            store.install(task.job, task.result, task.prepared)
            self.counts[f"{task.job.kind} job"] += 1
            self.counts["job at the bottom"] += task.job.kind == "compact" and task.job.is_bottom
            depth = sum(1 for level in store.levels.levels if level)
            self.counts[f"job of {depth} levels"] += 1
            tasks.remove(task)

    def _abandon(self) -> None:
        for task in [task for task in self._tasks if not task.is_written][:1]:
            for table in task.prepared.tables if task.prepared else []:
                table.close()
            self._store.abandon(task.job)
            self._tasks.remove(task)

    # Reading

    def _shown(self, content: Content, place: Place) -> Shown | None:
        record = content.get(place)
        return None if record is None else record.shown(self._now_ms)

    def _compare(self, place: Place, raw: bytes | None, content: Content, what: str) -> None:
        found = None if raw is None else decode(raw).shown(self._now_ms)
        expected = self._shown(content, place)
        if found != expected:
            raise Difference(f"{what}: {place} should be {expected!r}, and is {found!r}")

    def _get(self) -> None:
        content = self._content()
        for place in {self._place(): None for _ in range(5)}:
            raw = _patient(self._store, lambda place=place: self._store.get(*place))  # type: ignore[misc]
            self._compare(place, raw, content, "a look-up")

    def _scan(self) -> None:
        self._check_slot(self._store, self._place()[0], self._content())

    def _check_slot(self, store: Store, slot: int, content: Content) -> None:
        found: list[tuple[bytes, bytes]] = []
        start: bytes | None = b""
        while start is not None:
            limit = self._rng.choice((1, 3, 100))
            rows, start = _patient(
                store,
                lambda start=start, limit=limit: store.scan(slot, start, limit),  # type: ignore[misc]
            )
            found += rows
        self._compare_slot(slot, found, content, "a scan")

    def _compare_slot(
        self, slot: int, found: list[tuple[bytes, bytes]], content: Content, what: str
    ) -> None:
        rows = [row for row, _ in found]
        if rows != sorted(set(rows)):
            raise Difference(f"{what} of slot {slot} has rows twice or out of order: {rows}")
        shown = {row: decode(raw).shown(self._now_ms) for row, raw in found}
        alive = {row: each for row, each in shown.items() if each is not None}
        expected = {
            place[1]: each
            for place in content
            if place[0] == slot and (each := self._shown(content, place)) is not None
        }
        if alive != expected:
            raise Difference(f"{what} of slot {slot} should be {expected}, and is {alive}")

    def _next_slot(self) -> None:
        slot = self._rng.randrange(SLOT_COUNT)
        found = _patient(self._store, lambda: self._store.next_slot(slot))
        content = self._content()
        alive = [
            place[0]
            for place in content
            if place[0] >= slot and self._shown(content, place) is not None
        ]
        nearest = min(alive, default=None)
        is_right = (found is None or slot <= found < SLOT_COUNT) and (
            nearest is None or (found is not None and found <= nearest)
        )
        if not is_right or (nearest == slot and not self._store.holds_slot(slot)):
            raise Difference(f"the slot after {slot} should be {nearest}, and is {found}")

    def _begin_scan(self) -> None:
        if len(self._scans) < SCANS_MAX:
            slot = self._place()[0]
            content = {p: record for p, record in self._content().items() if p[0] == slot}
            self._scans.append(OpenScan(self._store.snapshot_scan(slot), slot, content))

    def _go_on_with_scan(self) -> None:
        if not self._scans:
            return
        each = self._rng.choice(self._scans)
        limit = self._rng.choice((1, 2, 10))
        if self._rng.random() < 0.3:  # Something else may come between a fault and the next try.
            try:
                rows = each.scan.page(limit)
            except PageFault as fault:
                fault.resolve()
                return
        else:
            rows = _patient(self._store, lambda: each.scan.page(limit))
        each.found += rows
        if not rows:
            self._compare_slot(each.slot, each.found, each.content, "a scan of a snapshot")
            self.counts["scan to the end"] += 1
        if not rows or self._rng.random() < 0.03:
            each.scan.close()
            self._scans.remove(each)

    def _end_scans(self) -> None:
        for each in self._scans:
            each.scan.close()
        self._scans.clear()

    def _check(self) -> None:
        """Compare all rows and slots."""
        self._check_store(self._store, self._content())

    def _check_store(self, store: Store, content: Content) -> None:
        for place in self._places:
            self._compare(place, store.read_now(*place), content, "a look-up")
        for slot in sorted({slot for slot, _ in self._places}):
            self._check_slot(store, slot, content)

    # Snapshots

    def _take_snapshot(self) -> None:
        if len(self._snapshots) == SNAPSHOTS_MAX:
            return
        self._write()
        name = f"s{self._next_time()}"
        snapshot.take(self._store, name, b"copied", self._now_ms)
        self._durable = self._store.log.synced
        self._snapshots[name] = self._content()

    def _open_snapshot(self) -> None:
        """Open one, compare all of it, and drop it."""
        if not self._snapshots:
            return
        name = self._rng.choice(sorted(self._snapshots))
        content = self._snapshots.pop(name)
        folder = snapshot.open_folder(self._disk, name)
        opened, states = _opened(folder, self.configuration.settings)
        if states != [b"copied"]:
            raise Difference(f"the snapshot's state is {states}")
        self._check_store(opened, content)
        opened.close()
        folder.close()
        snapshot.drop(self._disk, name)

    # Life

    def _open(self) -> None:
        # Whether something may be forgotten outlives the process, as a promise to others does.
        horizon = self._store.horizon_position if hasattr(self, "_store") else EVERYTHING
        self._store, _ = _opened(self._disk, self._settings)
        self._store.horizon_position = horizon
        end = self._store.recovery.end
        if end < self._durable:
            raise Difference(f"recovered up to {end}, and {self._durable} was durable")
        for position, changes in self._frames:
            if position <= end:
                for change in changes:
                    change(self._base)
        self._frames.clear()
        self._staged.clear()
        self._times = [(position, time) for position, time in self._times if position <= end]
        self._durable = end
        self._tasks.clear()

    def _reopen(self) -> None:
        self._write()
        self._end_scans()
        self._store.close()
        self._durable = self._store.log.position
        self._disk = self._disk.kill()
        self._open()
        self._check()

    def _kill(self) -> None:
        self._scans.clear()
        self._disk = self._disk.kill()
        self._open()
        self._check()

    def _crash(self) -> None:
        self._scans.clear()
        self._disk = self._disk.crash()
        self._open()
        self._check()


def _opened(disk: Disk, settings: StoreSettings) -> tuple[Store, list[bytes]]:
    states: list[bytes] = []
    store = Store.open(
        disk,
        CODEC,
        settings,
        initial_state=b"",
        observe=lambda slot, row, raw: None,
        restore=states.append,
    )
    return store, states


def _keep(content: Content, is_kept: Callable[[Place], bool]) -> None:
    for place in [place for place in content if not is_kept(place)]:
        del content[place]


@contextlib.contextmanager
def _pinned(store: Store) -> Iterator[Pins]:
    pins: Pins = {}
    store.pinned = pins
    try:
        yield pins
    finally:
        store.pinned = NO_PINS


def _patient(store: Store, ask: Callable[[], _T]) -> _T:
    """Ask until nothing faults, as a command does."""
    with _pinned(store) as pins:
        for _ in range(FAULTS_MAX):
            try:
                return ask()
            except PageFault as fault:
                fault.resolve(pins)
    raise Difference("a page never arrives")
