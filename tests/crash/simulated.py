"""Random operations on a node's store over the simulated disk, cut by crashes, checked by value.

Not a test of single parts: it runs `Replica`, `Store`, the commit log, jobs and the manifest as a
node does, on a disk that loses whatever was not synced, and asks after every crash whether the store
is exactly the model as of the position at which the log was recovered, and whether that position
covers everything that was acknowledged.

    python -m tests.crash.simulated --cycles 10000

A *process* is one opening of the store: writes with and without expiry, deletions, dropped databases,
log writes, syncs (what is synced counts as acknowledged), freezes, expiry, reads, snapshots, and jobs
in steps (given, done, manifest written, installed, or abandoned), all in random order. It ends by a
power cut at any disk operation, by one between two of them, by a kill (the kernel's cache survives,
and so does the worker, which may go on writing while the next process runs), by a stop, or by a failed
sync. The next start may be cut as well. A full disk comes and goes.

In half of the worlds the disk is *bad* too: it refuses to read, to write, and to make, rename and remove
names, in starts as well, and bits flip (`tests/crash/simulated_damage.py`). In some of these worlds the end of the log
is damaged often, and damaged or lost as soon as a job has carried out a drop whose marker stands there. Then
operations and starts may fail, with a typed error that names a file, and only where a fault has fired; what was
acknowledged must be there all the same, and no value may be wrong.

A *world* is some such processes one after the other from one seed, which says everything.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import random
import sys
import time
from dataclasses import dataclass, field

from cluster.record import CODEC, DELETION, STRING, decode
from cluster.replica import Effect, Replica
from cluster.replica_state import state_of_copy
from cluster.slot import Row, Slot, row_of, slot_of
from engine import snapshot
from engine.damage import LostDataError
from engine.drop import hiding
from engine.errors import DiskError, EngineError, LogFailedError, SyncError
from engine.job import Job, JobResult, run_job
from engine.log_format import FRAME_BYTES, SHORT_SUFFIX
from engine.store import NO_PINS, PageFault, Pins, Prepared, Store, StoreSettings
from tests.crash.simulated_counts import Counts
from tests.crash.simulated_damage import Damage, damaged, tail_damaged
from tests.sim.disk import Faults, PowerCut, SimDisk

CYCLES_PER_WORLD = 12
LONG_RUN_CYCLES = 1000  # In so many, everything has to have happened.
DATABASES = (0, 1, 5)
SLOT_COUNT = 256  # A memtable of all 16384 takes longer to make than most processes here to live.
TAGS = [n for n in range(2000) if slot_of(b"%d" % n) < SLOT_COUNT][:5]
KEYS = [b"{%d}key%d" % (TAGS[n % 5], n) for n in range(30)]
SLOTS = sorted({slot_of(key) for key in KEYS})
FAULTS_MAX = 100  # Of one look-up.
CARRY_OUT_STEPS = 12  # Of jobs: enough for a flush, and then a compaction.
DISK_REASON = os.strerror(errno.EIO)
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
    slot_count=SLOT_COUNT,
    # So that there are several levels, and several tables on each.
    table_bytes=3 << 10,
    level_1_bytes=6 << 10,
    l0_count=2,
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
    aim_rng: random.Random = field(init=False)  # For faults at places where they are rare.
    short_rng: random.Random = field(init=False)  # For short logs.
    slow_rng: random.Random = field(init=False)  # For when files go that are not needed.
    disk: SimDisk = field(init=False)
    replica: Replica = field(init=False)
    now_ms: int = START_MS
    base: dict[Place, Stored] = field(default_factory=dict)  # The model as of the last recovery.
    frames: list[Frame] = field(default_factory=list)  # Written since.
    staged: list[tuple[Place, Stored | None] | int] = field(default_factory=list)
    tries: list[Frame] = field(default_factory=list)  # That the disk had no room for.
    end: int = 0  # Of the log, as far as the model knows.
    acknowledged: int = 0
    tasks: list[Task] = field(default_factory=list)  # A flush, a compaction, or one of each.
    orphan: Job | None = None  # What a worker whose server was killed still does.
    is_bad: bool = False
    damage: Damage | None = None  # What is damaged now.
    was_damaged: set[str] = field(default_factory=set)  # Tables in which a bit was flipped once.
    floor: int = 0  # Where the log ended at the start.
    vouched: int = 0  # Durable bytes of the log say that this much was durable.
    carried_out: int = 0  # The end of a marker whose drop is carried out: it is to be damaged.
    vouchers: list[tuple[int, int]] = field(
        default_factory=list
    )  # Ends of frames, and what they say.
    # Finished snapshots and what is in them, and one that may be finished.
    snapshots: dict[str, dict[Place, Stored]] = field(default_factory=dict)
    unsure: dict[str, dict[Place, Stored]] = field(default_factory=dict)
    _attempts: int = 0  # To start.
    _serial: int = 0
    _cut_chance: float = 0.0
    _aim_chance: float = 0.0
    _sync_chance: float = 0.0
    _tail_chance: float = 0.0
    _clears_slowly: bool = False

    def __post_init__(self) -> None:
        self.rng = random.Random(f"world-{self.seed}")
        self.aim_rng = random.Random(f"aim-{self.seed}")
        self.short_rng = random.Random(f"short-{self.seed}")
        self.slow_rng = random.Random(f"slow-{self.seed}")
        self._clears_slowly = self.slow_rng.random() < 0.5
        # Worlds differ, because some bugs need many power cuts, and others long lives or kills.
        self._cut_chance = self.rng.choice((0.0, 0.3, 0.9))
        self._aim_chance = self.rng.choice((0.0, 0.1, 0.6))
        self._sync_chance = self.rng.choice((0.03, 0.3, 1.0))
        self.is_bad = self.rng.random() < 0.5
        if self.is_bad:
            # It ends lives early, and some bugs need long ones.
            self._tail_chance = self.aim_rng.choice((0.0, 0.0, 0.5))
        self.faults.fired = self.counts.fired
        self.disk = SimDisk(random.Random(f"disk-{self.seed}"), faults=self.faults)

    # One process after the other

    def run(self, cycles: int = CYCLES_PER_WORLD) -> None:
        """Raises Loss, or whatever a store that is broken raises."""
        self._start()
        for _ in range(cycles):
            self._check()
            try:
                if self.replica.store.manifest.damages and self.rng.random() < 0.5:
                    self._refill()
                self._live()
                self._end()
            except PowerCut:
                self.counts.cuts_in_jobs += bool(self.tasks)
                self.counts.cuts_in_snapshots += bool(self.unsure)
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
            if self.carried_out:
                break

    def _plan_faults(self) -> None:
        rng, faults = self.rng, self.disk.faults
        faults.power_cut_in = rng.randint(1, 250) if rng.random() < self._cut_chance else None
        faults.sync_error_in = rng.randint(1, 60) if rng.random() < 0.1 else None
        faults.is_cold = rng.random() < 0.5
        faults.has_short_writes = rng.random() < 0.3
        if self.is_bad:
            faults.read_error_in = rng.randint(1, 80) if rng.random() < 0.4 else None
            faults.write_error_in = rng.randint(1, 60) if rng.random() < 0.25 else None
            faults.name_error_in = rng.randint(1, 20) if rng.random() < 0.3 else None

    def _plan_start(self) -> None:
        rng, faults = self.rng, self.disk.faults
        faults.power_cut_in = rng.randint(1, 25) if rng.random() < 0.3 else None
        if self.is_bad:
            faults.read_error_in = rng.randint(1, 12) if rng.random() < 0.15 else None
            faults.write_error_in = rng.randint(1, 3) if rng.random() < 0.05 else None
            faults.name_error_in = rng.randint(1, 6) if rng.random() < 0.1 else None
            faults.sync_error_in = rng.randint(1, 8) if rng.random() < 0.1 else None

    def _calm(self) -> None:
        """No fault is due any more."""
        faults = self.disk.faults
        faults.read_error_in = faults.write_error_in = faults.name_error_in = None
        faults.capacity_bytes = faults.sync_error_in = None
        faults.power_cut_in = faults.name_cut_in = None

    def _end(self) -> None:
        self.disk.faults.capacity_bytes = None
        if self.carried_out:
            self._damage_tail(self.carried_out)
        elif self.aim_rng.random() < self._tail_chance:
            self._damage_tail(self.acknowledged)
        elif self.is_bad and self.rng.random() < 0.4:
            self._flip()
        choice = self.rng.random()
        if choice < 0.4:
            self._cut()
        elif choice < 0.9 or self.carried_out:  # A stop would vouch for what is damaged.
            self._kill()
        else:
            self._tick()
            if (
                self.replica.store.log.failure is not None
            ):  # As a node, which then ends as if killed.
                return self._kill()
            try:
                self.replica.store.close()
            except DiskError:  # What was not confirmed may be lost, as in a kill.
                return self._kill()
            self.counts.stops += 1
            self.acknowledged = self.vouched = self.end
            self._forget_process()
            self.disk = self.disk.kill()
        return None

    def _cut(self) -> None:
        self.counts.power_cuts += 1
        self._forget_process()
        self.disk = self.disk.crash()

    def _kill(self) -> None:
        self.counts.kills += 1
        if not self.tasks and self.replica.store.log.failure is None:
            self._work()
        for task in self.tasks:
            if task.result is None:
                self.orphan = task.job
        self._forget_process()
        self.disk = self.disk.kill()

    def _forget_process(self) -> None:
        self.tasks.clear()
        self.carried_out = 0
        self._calm()

    def _start(self) -> None:
        """Open the store, with power cuts in some of the attempts, and let the model follow."""
        self._attempts = 0
        while True:
            self._attempts += 1
            self._plan_start()
            before = self.faults.fired.copy()
            try:
                self.replica = Replica.open(self.disk, SETTINGS, 7)
                break
            except PowerCut:
                self.counts.cuts_in_starts += 1
                self.orphan = None
                self._calm()
                self.disk = self.disk.crash()
            except EngineError as error:
                self._calm()
                self._refuse(error, is_fault=self.faults.fired != before)
                self.disk = self.disk.kill()
        self._calm()
        self.replica.store.leavings.is_cleared_by_owner = self._clears_slowly
        self._recover(self.replica.store.recovery.end)

    def _refuse(self, error: EngineError, *, is_fault: bool) -> None:
        """The start was refused: that must have a reason, which goes away."""
        if self.damage is not None and self.damage.is_named_by(error):
            self.counts.refused_starts_for_damage += 1
            self._heal()
        elif isinstance(error, (DiskError, LogFailedError)) and is_fault:
            self.counts.refused_starts_for_errors += 1
            assert error.path.startswith(self.disk.path), error
        else:
            raise error

    def _recover(self, end: int) -> None:
        """The log goes on at `end`: the model as of there is the truth, if that covers what was acknowledged."""
        if end < self.acknowledged:
            self._excuse(end)
        if self.staged and end > self.end:  # Written, and the process ended before it knew.
            self._note_frame(end)
        self.staged.clear()
        if end not in (self.floor, *(frame.end for frame in self.frames)):
            self.frames += [each for each in self.tries if each.end == end][-1:]
        self.tries.clear()
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
        self.end = self.acknowledged = self.floor = end
        self.vouchers.clear()

    def _excuse(self, end: int) -> None:
        """Less was recovered than was acknowledged: only damage that nothing vouches for may do that."""
        damage = self.damage
        whole = [frame.end for frame in self.frames if damage and frame.end <= damage.position]
        if (
            damage is None
            or end < max([self.floor, *whole])
            or not damage.may_cut(self.replica.store.recovery, self.vouched)
            # An earlier attempt may have cut it off, and was cut itself before it could tell.
            or (self._attempts == 1 and not damage.is_reported(self.replica.store.recovery))
        ):
            raise Loss(f"recovered up to {end}, and {self.acknowledged} was acknowledged")
        self.counts.cuts_at_damage += 1
        self.damage = None
        self.snapshots.clear()  # They share the segment that was cut.
        self.unsure.clear()

    def _flip(self) -> None:
        if self.damage is None:
            self.damage = damaged(
                self.disk, self.replica.store, self.rng, floor=self.floor, vouched=self.vouched
            )
            if self.damage is not None:
                self.was_damaged.add(self.damage.name)
                kind = self.damage.kind
                self.counts.flips_in_tables += kind == "table"
                self.counts.flips_in_log += kind == "log"
                self.counts.flips_in_manifest += kind == "manifest"

    def _damage_tail(self, upto: int) -> None:
        """Damage the log before this position, where no bytes after it vouch for what is there."""
        store = self.replica.store
        since = max(self.floor, self.vouched, store.manifest.log_start)
        if since < upto:
            self._heal()
            self.damage = tail_damaged(
                self.disk,
                store,
                self.aim_rng,
                since=since,
                upto=upto,
                may_lose=bool(self.carried_out),
            )
            self.counts.damaged_tails += self.damage is not None

    def _heal(self) -> None:
        if self.damage is not None:
            self.damage.cause.heal()
            self.damage = None

    def _refill(self) -> None:
        """Write again what the store has set aside, as a replica would send it, and say so."""
        store = self.replica.store
        content = self._content_now()
        effects: dict[Row, Effect] = {}
        for place in [(db, key) for db in DATABASES for key in KEYS]:
            slot, row = slot_of(place[1]), row_of(*place)
            key = slot.to_bytes(2, "big") + row
            if any(each.key_min <= key <= each.key_max for each in store.manifest.damages):
                stored = content.get(place)
                value, expire_at_ms = stored or (b"", 0)
                kind = DELETION if stored is None else STRING
                effects[row] = (slot, kind, expire_at_ms, value)
                self.staged.append((place, stored))
        self.replica.write(effects, self.now_ms)
        self._tick()
        if store.log.pieces:
            return
        self._sync()
        try:
            store.accept_damage()
        except DiskError:
            return
        self.counts.refills += 1

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
            if self.slow_rng.random() < 0.3:
                self._clear_away()
        elif choice < 0.88:
            self.now_ms += rng.choice((1, 500, 5000))
            self.replica.expire(self.now_ms, lambda: False)
        elif choice < 0.96:
            self._read()
        elif choice < 0.97:
            self._take_snapshot()
        elif choice < 0.98 and self.is_bad:
            if self.damage is None:
                self._flip()
            elif rng.random() < 0.3:
                self._heal()
            is_idle = not self.replica.store.is_busy
            if is_idle and self.replica.store.manifest.damages and rng.random() < 0.3:
                self._refill()
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
        if self.aim_rng.random() < self._tail_chance:
            self._carry_out()

    def _carry_out(self) -> None:
        """Have drops carried out while their marker is the last thing in the log."""
        self._tick()
        if not self.replica.store.log.pieces:
            self._sync()
            for _ in range(CARRY_OUT_STEPS):
                if not self.carried_out:
                    self._work()

    def _tick(self) -> None:
        synced = self.replica.store.log.synced
        try:
            position = self.replica.store.write()
        except LogFailedError:
            raise
        except DiskError:  # Full: it stays staged.
            # What was cut off may come back, and be completed by the same bytes of the next try.
            pieces = self.replica.store.log.pieces
            end = self.end + FRAME_BYTES + sum(map(len, pieces))
            self.tries.append(Frame(end, list(self.staged), self.replica.clock.last))
            return
        if position > self.end:
            self._note_frame(position)
            self.vouchers.append((position, synced))

    def _note_frame(self, end: int) -> None:
        self.frames.append(Frame(end, list(self.staged), self.replica.clock.last))
        self.staged.clear()
        self.end = end

    def _sync(self) -> None:
        before = self.acknowledged
        self._acknowledge(self.replica.store.log.sync())
        frames = (frame for frame in self.frames if before < frame.end <= self.acknowledged)
        self.counts.acknowledged += sum(len(frame.changes) for frame in frames)

    def _acknowledge(self, position: int) -> None:
        """The log is durable up to a position, and so is what its header and frames say."""
        self.acknowledged = position
        durable = [said for end, said in self.vouchers if end <= position]
        if position > self.floor:
            durable.append(self.floor)
        self.vouched = max([self.vouched, *durable])

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
            faults.capacity_bytes = self.disk.used_bytes() + self.rng.choice((0, 100, 5000, 40000))
        else:
            faults.capacity_bytes = None

    # Snapshots

    def _take_snapshot(self) -> None:
        self._tick()
        store = self.replica.store
        if store.log.pieces or len(self.snapshots) > 2:
            return
        if self.damage is not None or store.manifest.damages:
            return
        self._serial += 1
        name = f"s{self._serial}"
        self.unsure = {name: self._content_now()}
        if self.is_bad and self.rng.random() < 0.2:
            self.disk.faults.sync_error_in = self.rng.randint(1, 4)  # It shares files with the log.
        try:
            snapshot.take(store, name, state_of_copy(store.manifest.state), self.now_ms)
        except LogFailedError:
            raise
        except DiskError:  # It is given up, as `KV.SNAPSHOT CREATE` does; the node goes on.
            return
        self._acknowledge(store.log.synced)
        self.snapshots |= self.unsure
        self.unsure = {}
        self.counts.snapshots += 1

    def _check_snapshots(self) -> None:
        """Finished ones are there and hold what they should; looking at one ends it."""
        if self.damage is not None:
            return
        found = [each.name for each in snapshot.snapshots_of(self.disk)]
        if not set(self.snapshots) <= set(found):
            raise Loss(f"of the snapshots {list(self.snapshots)} only {found} are there")
        known = self.snapshots | self.unsure
        self.unsure = {}
        for name in found:
            content = known.get(name)
            if content is None or (name in self.snapshots and self.rng.random() < 0.6):
                continue
            self._check_snapshot(name, content)
            self.snapshots.pop(name, None)
            snapshot.drop(self.disk, name)

    def _check_snapshot(self, name: str, content: dict[Place, Stored]) -> None:
        folder = snapshot.open_folder(self.disk, name)
        opened = Replica.open(folder, SETTINGS, 8)
        try:
            self._check_store(opened.store, self._seen(content))
        finally:
            opened.store.close()
            folder.close()
        self.counts.snapshots_opened += 1

    # Jobs, a step at a time

    def _work(self) -> None:
        """Give out a job, or do one step of one: a flush and a compaction take turns."""
        store, tasks = self.replica.store, self.tasks
        preparing = next((task for task in tasks if task.prepared is not None), None)
        is_new = not tasks or (len(tasks) == 1 and self.rng.random() < 0.3)
        task = None if is_new else self.rng.choice(tasks)
        if task is not None and task.result is not None and preparing is not None:
            task = preparing  # One manifest at a time.
        # Aimed at a few operations whose order matters.
        if self.rng.random() < (
            0.02 if task is None or task.prepared is None else self._aim_chance
        ):
            faults = self.disk.faults
            if self.rng.random() < 0.5:
                faults.power_cut_in = self.rng.randint(1, 6)
            else:
                faults.name_cut_in = self.rng.randint(1, 3)
        if task is None:
            room = self.disk.free_bytes()
            while self.short_rng.random() < 0.7 and store.shorten(0.0):
                pass
            job = store.next_job(self.now_ms, room)
            # A memtable that could not be frozen before is frozen now, and what was staged is written.
            if store.log.position > self.end:
                self._note_frame(store.log.position)
            if job is not None:
                tasks.append(Task(job))
                self.counts.short_flushes += any(name.endswith(SHORT_SUFFIX) for name in job.inputs)
                self.counts.jobs_beside_another += len(tasks) == 2
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
                carried_out = self._carried_out_by(task.job)
                store.install(task.job, task.result, task.prepared)
                self._count(task.job.kind)
                tasks.remove(task)
                self.carried_out = carried_out if self._tail_chance else 0
        except EngineError as error:
            self._excuse_job(error)
            store.abandon(task.job)
            tasks.remove(task)
        if task in tasks and not task.is_written and self.rng.random() < 0.03:
            store.abandon(task.job)
            tasks.remove(task)

    def _clear_away(self) -> None:
        """Where the owner does that."""
        leavings = self.replica.store.leavings
        if leavings.has_files:
            self.counts.late_removals += 1
            leavings.clear_away()

    def _carried_out_by(self, job: Job) -> int:
        """The end of the last marker of this process whose drop a job carries out, or 0."""
        read = [table.meta for table in self.replica.store.tables if table.name in job.inputs]
        last = max((drop.position for drop in hiding(job.drops, read)), default=0)
        ends = [frame.end for frame in self.frames if self.floor < last <= frame.end]
        return ends[0] if ends and job.kind != "move" else 0

    def _count(self, kind: str) -> None:
        counts = self.counts
        counts.flushes += kind == "flush"
        counts.compactions += kind == "compact"
        counts.moves += kind == "move"
        counts.removals += kind == "remove"
        counts.levels_max = max(counts.levels_max, len(self.replica.store.levels.levels))

    def _excuse_job(self, error: EngineError) -> None:
        if self.damage is not None and self.damage.is_named_by(error):
            self.counts.refused_jobs_for_damage += 1
            if self.rng.random() < 0.5:
                self._heal()
        elif isinstance(error, DiskError):
            self.counts.failed_jobs += 1
        else:
            raise error

    def _work_as_orphan(self) -> None:
        """The worker of a killed server finishes its job, or fails: nobody wants the table any more."""
        assert self.orphan is not None
        job, self.orphan = self.orphan, None
        self.counts.orphans += 1
        with contextlib.suppress(EngineError):
            run_job(self.disk.again(), job, CODEC)

    # Checks

    def _content_now(self) -> dict[Place, Stored]:
        content = dict(self.base)
        for frame in self.frames:
            apply_changes(content, frame.changes)
        apply_changes(content, self.staged)
        return content

    def _seen(self, content: dict[Place, Stored]) -> dict[Place, bytes]:
        """What a client sees of it now."""
        return {
            place: value
            for place, (value, expire_at_ms) in content.items()
            if not expire_at_ms or expire_at_ms > self.now_ms
        }

    def _read(self) -> None:
        faults = self.disk.faults
        planned = faults.read_error_in
        if self.is_bad and self.aim_rng.random() < 0.1:
            faults.read_error_in = 1
        model = self._seen(self._content_now())
        for place in {self._place(): None for _ in range(5)}:
            self._compare(self.replica.store, place, model.get(place))
        faults.read_error_in = planned

    def _check(self) -> None:
        self._check_store(self.replica.store, self._seen(self._content_now()))
        for table in self.replica.store.tables:
            assert table.name in self.disk.names(), "a live table was removed"
        self._check_snapshots()

    def _check_store(self, store: Store, model: dict[Place, bytes]) -> None:
        """Everything by key, then everything by scan."""
        for db in DATABASES:
            for key in KEYS:
                self._compare(store, (db, key), model.get((db, key)))
        for slot in SLOTS:
            scanned = self._scan(store, slot)
            expected = {
                row_of(*place): value for place, value in model.items() if slot_of(place[1]) == slot
            }
            if scanned is not None and scanned != expected:
                raise Loss(f"a scan shows {len(scanned)} rows of the {len(expected)} of {slot}")

    def _compare(self, store: Store, place: Place, expected: bytes | None) -> None:
        slot, row = slot_of(place[1]), row_of(*place)
        try:
            raw = self._get(store, slot, row)
        except EngineError as error:
            return self._excuse_read(error, slot, row)
        version = None if raw is None else decode(raw).winner(self.now_ms)
        found = None if version is None else version.payload
        self.counts.values_checked += 1
        if found != expected:
            shown = [None if value is None else value[:20] for value in (expected, found)]
            raise Loss(f"{place} should be {shown[0]!r}, and is {shown[1]!r}")
        return None

    def _excuse_read(self, error: EngineError, slot: Slot, row: Row | None) -> None:
        """A read may fail of damage only where that is, and else only of a disk that fails."""
        if isinstance(error, LostDataError) and error.path in self.was_damaged:
            key = slot.to_bytes(2, "big") + (row or b"")
            if any(
                slot in each.slots and (row is None or each.key_min <= key <= each.key_max)
                for each in self.replica.store.manifest.damages
            ):
                self.counts.refused_reads_for_damage += 1
                return
        damage = self.damage
        if damage is not None and damage.kind == "table" and damage.is_named_by(error):
            key = slot.to_bytes(2, "big") + (row or b"")
            if any(
                damage.may_hide_slot(slot, table) if row is None else damage.may_hide(key, table)
                for table in self.replica.store.tables
            ):
                self.counts.refused_reads_for_damage += 1
                return
            raise Loss(f"{row!r} of slot {slot} is refused for damage that it has no part in")
        if not isinstance(error, DiskError) or error.reason != DISK_REASON:
            raise error
        self.counts.refused_reads_for_errors += 1

    def _get(self, store: Store, slot: Slot, row: Row) -> bytes | None:
        """As a command does: it faults until it has what it needs."""
        pins: Pins = {}
        store.pinned = pins
        try:
            for _ in range(FAULTS_MAX):
                try:
                    return store.get(slot, row)
                except PageFault as fault:
                    self.counts.page_faults += 1
                    fault.resolve(pins)
            raise Loss(f"the page of {row!r} never arrives")
        finally:
            store.pinned = NO_PINS

    def _scan(self, store: Store, slot: Slot) -> dict[Row, bytes] | None:
        """What a scan shows of a slot; None if it is refused for a reason."""
        found: dict[Row, bytes] = {}
        start: Row | None = b""
        pins: Pins = {}
        store.pinned = pins
        try:
            while start is not None:
                try:
                    rows, start = store.scan(slot, start, self.rng.choice((1, 4, 50)))
                except PageFault as fault:
                    fault.resolve(pins)
                    continue
                for row, raw in rows:
                    version = decode(raw).winner(self.now_ms)
                    if version is not None:
                        found[row] = version.payload
        except EngineError as error:
            self._excuse_read(error, slot, None)
            return None
        finally:
            store.pinned = NO_PINS
        return found


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
            speed = counts.cycles / (said - started)
            print(
                f"{counts.cycles} of {arguments.cycles} cycles, {speed:.0f} a second, "
                f"{counts.acknowledged} writes acknowledged, next seed {seed}",
                flush=True,
            )
    seconds = time.monotonic() - started
    print(
        f"seeds {arguments.seed} to {seed - 1}, {seconds:.0f} s, "
        f"{counts.cycles / seconds:.0f} cycles a second: nothing lost"
    )
    print(counts)
    if counts.missing and arguments.cycles >= LONG_RUN_CYCLES:
        print(f"FAILED: these never happened: {', '.join(counts.missing)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
