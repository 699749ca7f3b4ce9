"""Random operations on a node's store over the simulated disk, cut by crashes, checked by value.

Not a test of single parts: it runs `Replica`, `Store`, the commit log, jobs and the manifest as a
node does, on a disk that loses whatever was not synced, and asks after every crash whether the store
is exactly the model as of the position at which the log was recovered, and whether that position
covers everything that was acknowledged.

    python -m tests.crash.simulated --cycles 5000 --seed 1

A *process* is one opening of the store: writes with and without expiry, deletions, dropped databases,
log writes, syncs (what is synced counts as acknowledged), freezes, expiry, reads, and jobs in steps
(given, done, manifest written, installed, or abandoned), all in random order. It ends by a power cut
at any disk operation, by one between two of them, by a kill (the kernel's cache survives, and so does
the worker, which may go on writing while the next process runs), by a stop, or by a failed sync. The
next start may be cut as well. A full disk comes and goes.

A *world* is some such processes one after the other from one seed, which says everything.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from cluster.record import CODEC, DELETION, STRING, decode
from cluster.replica import Effect, Replica
from cluster.slot import Row, Slot, row_of, slot_of
from engine.errors import DiskError, EngineError, LogFailedError, SyncError
from engine.job import Job, JobResult, run_job
from engine.store import NO_PINS, PageFault, Pins, Prepared, StoreSettings
from tests.sim.disk import Faults, PowerCut, SimDisk

CYCLES_PER_WORLD = 12
DATABASES = (0, 1, 5)
KEYS = [b"{%d}key%d" % (n % 5, n) for n in range(30)]
SLOTS = sorted({slot_of(key) for key in KEYS})
FAULTS_MAX = 100  # Of one look-up.
START_MS = 1_700_000_000_000

Place = tuple[int, bytes]
"""Database and key."""

Stored = tuple[bytes, int]
"""Value and expiry (0: never)."""

SETTINGS = StoreSettings(
    memtable_bytes=24 << 10,
    row_cache_bytes=8 << 10,
    block_cache_bytes=48 << 10,
    log_bytes_max=40 << 10,
    block_bytes=1024,
)


class Loss(AssertionError):
    """What is stored is not what the model says."""


@dataclass(slots=True)
class Frame:
    """What one write of the log held. `changes` in order: a place and its new content, or a dropped database."""

    end: int
    changes: list[tuple[Place, Stored | None] | int]
    last_hlc: int


@dataclass(slots=True)
class Counts:
    """What happened, over all worlds: a run that never cut a flush shows nothing about flushes."""

    cycles: int = 0
    acknowledged: int = 0
    lost_unacknowledged: int = 0
    power_cuts: int = 0
    cuts_in_jobs: int = 0
    cuts_in_starts: int = 0
    kills: int = 0
    failed_syncs: int = 0
    full_disks: int = 0
    flushes: int = 0
    compactions: int = 0
    orphans: int = 0
    faults: int = 0
    values_checked: int = 0

    def __str__(self) -> str:
        names = self.__dataclass_fields__
        return ", ".join(f"{name.replace('_', ' ')} {getattr(self, name)}" for name in names)


@dataclass(slots=True)
class Task:
    """A job on its way: what the worker made of it, and the manifest that will name that."""

    job: Job
    result: JobResult | None = None
    prepared: Prepared | None = None
    is_written: bool = False


@dataclass(slots=True)
class World:
    """One disk, and the processes that use it one after the other."""

    seed: int
    counts: Counts = field(default_factory=Counts)
    faults: Faults = field(default_factory=Faults)
    rng: random.Random = field(init=False)
    disk: SimDisk = field(init=False)
    replica: Replica = field(init=False)
    now_ms: int = START_MS
    base: dict[Place, Stored] = field(default_factory=dict)  # The model as of the last recovery.
    frames: list[Frame] = field(default_factory=list)  # Written since.
    staged: list[tuple[Place, Stored | None] | int] = field(default_factory=list)
    end: int = 0  # Of the log, as far as the model knows.
    acknowledged: int = 0
    task: Task | None = None
    orphan: Job | None = None  # What a worker whose server was killed still does.
    _serial: int = 0
    _cut_chance: float = 0.0
    _aim_chance: float = 0.0
    _sync_chance: float = 0.0

    def __post_init__(self) -> None:
        self.rng = random.Random(f"world-{self.seed}")
        # Worlds differ, because some bugs need many power cuts, and others long lives or kills.
        self._cut_chance = self.rng.choice((0.0, 0.3, 0.9))
        self._aim_chance = self.rng.choice((0.0, 0.1, 0.6))
        self._sync_chance = self.rng.choice((0.03, 0.3, 1.0))
        self.disk = SimDisk(random.Random(f"disk-{self.seed}"), faults=self.faults)

    # One process after the other

    def run(self, cycles: int = CYCLES_PER_WORLD) -> None:
        """Raises Loss, or whatever a store that is broken raises."""
        self._start()
        for _ in range(cycles):
            self._check()
            try:
                self._live()
                self._end()
            except PowerCut:
                self.counts.cuts_in_jobs += self.task is not None
                self._cut()
            except (SyncError, LogFailedError):  # The node leaves service, and is started again.
                self.counts.failed_syncs += 1
                self._kill()
            self.counts.cycles += 1
            self._start()
        self._check()

    def _live(self) -> None:
        self._plan_faults()
        for _ in range(self.rng.randint(5, 300)):
            self._step()

    def _plan_faults(self) -> None:
        rng, faults = self.rng, self.disk.faults
        faults.power_cut_in = rng.randint(1, 250) if rng.random() < self._cut_chance else None
        faults.sync_error_in = rng.randint(1, 60) if rng.random() < 0.1 else None
        faults.is_cold = rng.random() < 0.5
        faults.has_short_writes = rng.random() < 0.3

    def _end(self) -> None:
        self.disk.faults.capacity_bytes = None
        choice = self.rng.random()
        if choice < 0.4:
            self._cut()
        elif choice < 0.9:
            self._kill()
        else:
            self._tick()
            self.replica.store.close()
            self.acknowledged = self.end
            self._forget_process()
            self.disk = self.disk.kill()

    def _cut(self) -> None:
        self.counts.power_cuts += 1
        self._forget_process()
        self.disk = self.disk.crash()

    def _kill(self) -> None:
        self.counts.kills += 1
        if self.task is None and self.replica.store.log.failure is None:
            self._work()
        if self.task is not None and self.task.result is None:
            self.orphan = self.task.job
        self._forget_process()
        self.disk = self.disk.kill()

    def _forget_process(self) -> None:
        self.task = None
        faults = self.disk.faults
        faults.capacity_bytes = faults.sync_error_in = faults.power_cut_in = None

    def _start(self) -> None:
        """Open the store, with power cuts in some of the attempts, and let the model follow."""
        while True:
            rng = self.rng
            self.disk.faults.power_cut_in = rng.randint(1, 25) if rng.random() < 0.3 else None
            try:
                self.replica = Replica.open(self.disk, SETTINGS, 7)
                break
            except PowerCut:
                self.counts.cuts_in_starts += 1
                self.orphan = None
                self.disk = self.disk.crash()
        self.disk.faults.power_cut_in = None
        self._recover(self.replica.store.recovery.end)

    def _recover(self, end: int) -> None:
        """The log goes on at `end`: the model as of there is the truth, if that covers what was acknowledged."""
        if end < self.acknowledged:
            raise Loss(f"recovered up to {end}, and {self.acknowledged} was acknowledged")
        if self.staged and end > self.end:  # Written, and the process ended before it knew.
            self._note_frame(end)
        self.staged.clear()
        hlc = 0
        for frame in self.frames:
            if frame.end > end:
                self.counts.lost_unacknowledged += len(frame.changes)
                continue
            hlc = frame.last_hlc
            apply_changes(self.base, frame.changes)
        if self.replica.clock.last < hlc:
            raise Loss("the clock went back")
        self.frames.clear()
        # What was recovered was synced by the recovery.
        self.end = self.acknowledged = end

    # Operations

    def _step(self) -> None:
        rng = self.rng
        if self.orphan is not None and rng.random() < 0.05:
            self._work_as_orphan()
        choice = rng.random()
        if choice < 0.36:
            self._write()
        elif choice < 0.39:
            self._drop()
        elif choice < 0.55:
            self._tick()
        elif choice < 0.65:
            if rng.random() < self._sync_chance:
                self._sync()
        elif choice < 0.67:
            self._freeze()
        elif choice < 0.85:
            self._work()
        elif choice < 0.88:
            self.now_ms += rng.choice((1, 500, 5000))
            self.replica.expire(self.now_ms, lambda: False)
        elif choice < 0.97:
            self._read()
        else:
            self._change_room()

    def _write(self) -> None:
        """What one tick's commands may do: some rows, some of them twice."""
        effects: dict[Row, Effect] = {}
        for _ in range(self.rng.choice((1, 1, 2, 5, 12))):
            place = self._place()
            slot, row = slot_of(place[1]), row_of(*place)
            stored = None if self.rng.random() < 0.2 else self._content()
            if stored is None:
                effects[row] = (slot, DELETION, 0, b"")
            else:
                effects[row] = (slot, STRING, stored[1], stored[0])
            self.staged.append((place, stored))
        self.replica.write(effects, self.now_ms)

    def _place(self) -> Place:
        return self.rng.choice(DATABASES), self.rng.choice(KEYS)

    def _content(self) -> Stored:
        self._serial += 1
        value = b"%d:" % self._serial + self.rng.randbytes(self.rng.choice((0, 9, 200, 1500)))
        lifetime_ms = self.rng.choice((0, 0, 0, 700, 6000, 10**9))
        return value, self.now_ms + lifetime_ms if lifetime_ms else 0

    def _drop(self) -> None:
        databases = self.rng.sample(DATABASES, self.rng.choice((1, 1, 3)))
        self.staged += databases
        self.replica.flush(databases)

    def _tick(self) -> None:
        try:
            position = self.replica.store.write()
        except LogFailedError:
            raise
        except DiskError:  # Full: it stays staged.
            return
        if position > self.end:
            self._note_frame(position)

    def _note_frame(self, end: int) -> None:
        self.frames.append(Frame(end, list(self.staged), self.replica.clock.last))
        self.staged.clear()
        self.end = end

    def _sync(self) -> None:
        before = self.acknowledged
        self.acknowledged = self.replica.store.log.sync()
        frames = (frame for frame in self.frames if before < frame.end <= self.acknowledged)
        self.counts.acknowledged += sum(len(frame.changes) for frame in frames)

    def _freeze(self) -> None:
        self._tick()
        store = self.replica.store
        if not store.is_stalled and not store.log.pieces:
            try:
                store.freeze()
            except LogFailedError:
                raise
            except DiskError:
                pass

    def _change_room(self) -> None:
        """Fill the disk, or make room."""
        faults = self.disk.faults
        if faults.capacity_bytes is None:
            self.counts.full_disks += 1
            used = sum(self.disk.size(name) for name in self.disk.names())
            faults.capacity_bytes = used + self.rng.choice((0, 100, 5000, 40000))
        else:
            faults.capacity_bytes = None

    # Jobs, a step at a time

    def _work(self) -> None:
        store = self.replica.store
        task = self.task
        # Aimed at a few operations whose order matters.
        if self.rng.random() < (
            0.02 if task is None or task.prepared is None else self._aim_chance
        ):
            self.disk.faults.power_cut_in = self.rng.randint(1, 6)
        if task is None:
            room = self.disk.free_bytes()
            job = store.next_job(self.now_ms, room)
            self.task = Task(job) if job is not None else None
            return
        try:
            if task.result is None:
                # Set first, so that a cut in the middle of a job is counted as one.
                task.result = run_job(self.disk.again(), task.job, CODEC)
            elif task.prepared is None:
                task.prepared = store.prepare(task.job, task.result)
            elif not task.is_written:
                store.write_manifest(task.prepared)
                task.is_written = True
            else:
                store.install(task.job, task.result, task.prepared)
                self.counts.flushes += task.job.kind == "flush"
                self.counts.compactions += task.job.kind == "compact"
                self.task = None
        except DiskError:
            store.abandon(task.job)
            self.task = None
        if self.task is not None and not task.is_written and self.rng.random() < 0.03:
            store.abandon(task.job)
            self.task = None

    def _work_as_orphan(self) -> None:
        """The worker of a killed server finishes its job, or fails: nobody wants the table any more."""
        assert self.orphan is not None
        job, self.orphan = self.orphan, None
        self.counts.orphans += 1
        with contextlib.suppress(EngineError):
            run_job(self.disk.again(), job, CODEC)

    # Checks

    def _model(self) -> dict[Place, bytes]:
        """What a client sees now."""
        content = dict(self.base)
        for frame in self.frames:
            apply_changes(content, frame.changes)
        apply_changes(content, self.staged)
        return {
            place: value
            for place, (value, expire_at_ms) in content.items()
            if not expire_at_ms or expire_at_ms > self.now_ms
        }

    def _read(self) -> None:
        model = self._model()
        for place in {self._place(): None for _ in range(5)}:
            self._compare(place, model.get(place))

    def _check(self) -> None:
        """Everything by key, then everything by scan."""
        model = self._model()
        for db in DATABASES:
            for key in KEYS:
                self._compare((db, key), model.get((db, key)))
        scanned = dict(self._scan())
        expected = {row_of(db, key): value for (db, key), value in model.items()}
        if scanned != expected:
            raise Loss(f"a scan shows {len(scanned)} rows, not the {len(expected)} that are there")
        for table in self.replica.store.tables:
            assert table.name in self.disk.names(), "a live table was removed"

    def _compare(self, place: Place, expected: bytes | None) -> None:
        raw = self._get(slot_of(place[1]), row_of(*place))
        version = None if raw is None else decode(raw).winner(self.now_ms)
        found = None if version is None else version.payload
        self.counts.values_checked += 1
        if found != expected:
            shown = [None if value is None else value[:20] for value in (expected, found)]
            raise Loss(f"{place} should be {shown[0]!r}, and is {shown[1]!r}")

    def _get(self, slot: Slot, row: Row) -> bytes | None:
        """As a command does: it faults until it has what it needs."""
        store = self.replica.store
        pins: Pins = {}
        store.pinned = pins
        try:
            for _ in range(FAULTS_MAX):
                try:
                    return store.get(slot, row)
                except PageFault as fault:
                    self.counts.faults += 1
                    fault.resolve(pins)
            raise Loss(f"the page of {row!r} never arrives")
        finally:
            store.pinned = NO_PINS

    def _scan(self) -> Iterator[tuple[Row, bytes]]:
        store = self.replica.store
        for slot in SLOTS:
            start: Row | None = b""
            pins: Pins = {}
            store.pinned = pins
            while start is not None:
                try:
                    rows, start = store.scan(slot, start, self.rng.choice((1, 4, 50)))
                except PageFault as fault:
                    fault.resolve(pins)
                    continue
                for row, raw in rows:
                    version = decode(raw).winner(self.now_ms)
                    if version is not None:
                        yield row, version.payload
            store.pinned = NO_PINS


def apply_changes(
    content: dict[Place, Stored], changes: list[tuple[Place, Stored | None] | int]
) -> None:
    """Change the model."""
    for change in changes:
        if isinstance(change, int):
            for place in [place for place in content if place[0] == change]:
                del content[place]
        elif change[1] is None:
            content.pop(change[0], None)
        else:
            content[change[0]] = change[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cycles", type=int, default=1000, help="processes in all")
    parser.add_argument("--seed", type=int, default=1, help="of the first world")
    arguments = parser.parse_args()
    counts = Counts()
    started = said = time.monotonic()
    seed = arguments.seed
    while counts.cycles < arguments.cycles:
        try:
            World(seed, counts).run()
        except Exception:
            print(f"FAILED in the world of seed {seed}; it runs again with", file=sys.stderr)
            print(
                f"  python -m tests.crash.simulated --seed {seed} --cycles {CYCLES_PER_WORLD}",
                file=sys.stderr,
            )
            raise
        seed += 1
        if time.monotonic() - said > 5:
            said = time.monotonic()
            print(f"{counts.cycles} cycles, next seed {seed}", flush=True)
    print(f"seeds {arguments.seed} to {seed - 1}, {time.monotonic() - started:.0f} s: nothing lost")
    print(counts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
