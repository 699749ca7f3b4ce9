"""A node, composed: the only place where the real clock, disk, randomness and sockets are put together.

It serves nothing itself: the front reads and writes sockets, the runner executes, the replica
keeps. The node holds what these share, and runs the background tasks:

    run()            listeners
      _signals       SIGTERM and SIGINT ask for a stop
      live()
        front.run      the tick
        _sync          fsync of the commit log: at once (`always`) or once a second (`everysec`)
        _work          flushes and compactions, in the worker process
        pages.run      pages that were not in memory, in threads
        _ticker        time-outs, expiry, idle clients, free disk

A stop has two steps: listeners close, what is under way is finished and sent within
`shutdown_grace_s`, then everything is cancelled, the log is synced and the folder is left. After a
failed fsync the node leaves service with exit status 1: what the kernel then says of the data
cannot be trusted.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol, cast

import structlog
import trio

from cluster.gossip_message import GossipError
from cluster.replica import Replica
from cluster.slot import DATABASE_COUNT, SYSTEM_SLOT, Row, key_of, slot_of
from cluster.topology import Topology
from cluster.transport import Transport
from engine.compression import Compression
from engine.damage import Damage
from engine.disk import RealDisk
from engine.errors import DiskError, EngineError, LogFailedError, SyncError
from engine.job import Job, JobResult
from engine.store import PageFault, Pins, StoreSettings
from engine.worker import Worker
from respkv import logs
from respkv.bus import Bus, make_bus
from respkv.bus_link import BusLimits
from respkv.bus_tls import TlsError
from respkv.cluster_view import BusStats, Link
from respkv.command import TABLE, Command
from respkv.commands import load as load_commands
from respkv.config import Config, ConfigError, read_secret
from respkv.consistency import Scope
from respkv.context import DATABASES_ROW, Context
from respkv.front import Front
from respkv.histogram import Histogram
from respkv.latency import LatencyMonitor
from respkv.notification import Notifier
from respkv.pages import Offload, Pages, Resume
from respkv.parser import Limits
from respkv.peers import Peers
from respkv.policy_match import Policies
from respkv.poller import EpollPoller, Poller
from respkv.process import Process, RealProcess, allow_files, boot_id
from respkv.pubsub import PubSub
from respkv.reply import Reply, ReplyError
from respkv.runner import Runner
from respkv.saves import Kind, Saves
from respkv.session import CLOSING, UNAUTHENTICATED, Session
from respkv.siblings import make_siblings
from respkv.slowlog import Slowlog
from respkv.stats import Stats
from respkv.throttle import Throttle
from respkv.tracking import Tracking
from respkv.unlogged import Unlogged

CODEC_PATH: Final = "cluster.record:CODEC"
TICKER_S: Final = 0.1
PEERS_TICK_S: Final = 0.05  # While answers of other nodes are waited for.
TICKER_SLACK_S: Final = 0.001  # A tick that comes a little early counts.
DISK_RESERVE_BYTES: Final = 64 << 20
LOG_BYTES_PER_MEMTABLE_BYTE: Final = 2
MEMTABLE_COUNT: Final = 2
FILES_BESIDE_CLIENTS: Final = 1024  # Tables, log segments, listeners.
DISK_FULL: Final = ReplyError(
    "MISCONF The disk that holds the data is nearly full: writes are refused until there is room. Reads go on."
)
MEMORY_FULL: Final = ReplyError(
    "MISCONF Memory is full and cannot be written to the disk (the node's log says why): writes are refused until it "
    "can. Reads go on."
)
JOB_FAILURES_PER_LINE: Final = 30
# Commands are lists, and waiting ones are many: with the usual thresholds everything would be looked
# through every few seconds, for tens of milliseconds.
GC_THRESHOLDS: Final = (5_000, 10, 50)
STATUS_MISUSED: Final = 2


class JobRunner(Protocol):
    """Does flushes and compactions beside the loop: `engine.worker.Worker`."""

    restarts: int

    @property
    def pid(self) -> int | None: ...

    async def run(self, job: Job) -> JobResult: ...

    async def stop(self) -> None: ...


class Node:
    """What the parts of a node share. `databases[n]` is the physical database that SELECT n names."""

    def __init__(
        self,
        config: Config,
        replica: Replica,
        *,
        name: str,
        data_dir: str,
        rng: random.Random,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
        process: Process | None = None,
        poller: Poller | None = None,
        worker: JobRunner | None = None,
        make_transport: Callable[[Peers], Transport] | None = None,
        offload: Offload | None = None,
        secret: bytes | None = None,
    ) -> None:
        self.config = config
        self.replica = replica
        self.store = replica.store
        self.store.is_cleared_by_owner = True
        self.name = name
        self.data_dir = data_dir
        self.rng = rng
        self.run_id = f"{rng.getrandbits(160):040x}"
        self.replication_id = f"{rng.getrandbits(160):040x}"
        self.process = RealProcess() if process is None else process
        self.poller = EpollPoller() if poller is None else poller
        self.clock_ns = clock_ns
        self.wall_ns = wall_ns
        self._offload: Offload = trio.to_thread.run_sync if offload is None else offload
        self.log = structlog.get_logger("respkv.node")
        self.limits = Limits()
        self.databases = self._load_databases()
        self.latency = LatencyMonitor(lambda: wall_ns() / 1e9)
        self.slowlog = Slowlog(
            config.slowlog.threshold_us,
            config.slowlog.entries_max,
            lambda: wall_ns() / 1e9,
            self.latency,
        )
        self.tracking = Tracking(self)
        self.siblings = make_siblings(config, secret, replica.origin)
        self.pubsub = PubSub(self)
        self.notifier = Notifier(self)
        self.monitors: dict[Session, None] = {}
        self.errors: dict[bytes, int] = {}
        self._refusal: ReplyError | None = None
        self.slice_ns = 1_000_000  # A sliced command's share of a tick.
        self.policies: Policies | None = None
        if config.policies:
            self.policies = Policies(config.policies, Scope.of(config))
        self.context = Context(self, replica, rng)
        self.runner = Runner(self, self.context, clock_ns)
        self.front = Front(self)
        self.now_s = clock_ns() / 1e9
        self.started_s = self.now_s
        self.started_wall_s = wall_ns() / 1e9
        self.saves = Saves(int(self.started_wall_s), self.changes)
        self.stats = Stats(max(0, self.process.rss_bytes() - self.store.memory_bytes))
        self.expired_total = 0
        self.exit_status = 0
        self.ready_port = 0
        self._touched: list[Session] = []
        self.pages = Pages(self, self._offload)
        self._sync_wake = trio.Event()
        self._timer_wake = trio.Event()
        self.throttle = Throttle()
        self._data_error = ""  # The last one that was logged.
        self.syncs = Histogram()  # Of the log.
        self.loop_pause_ns_max = 0  # The longest that the loop served nobody.
        self.job_kind = "none"  # What the worker does.
        self._work_wake = trio.Event()
        self._stop_wake = trio.Event()
        self._sync_waits: list[tuple[Session | None, Reply, Callable[[], Reply]]] = []
        self._expired_s = 0.0  # When the last round of expiry was.
        self._staged_count = 0  # Pieces that the log could not take, for want of room.
        self.unlogged: Unlogged | None = None  # What they change, which nobody may see.
        self._staged_retry_s = 0.0
        self._reserve_bytes = DISK_RESERVE_BYTES
        self._check_position = 0
        self._job_failures = 0  # In a row.
        self._is_retry_due = False  # Of the writes that wait for the end of a stall.
        self._is_hurried = False
        self.is_sync_wanted = config.log.fsync == "always"
        self.peers: Peers | None = None
        self.topology: Topology | None = None
        self.bus: Bus | None = None
        if make_transport is not None:
            self.store.horizon_position = 0  # Others may have to hear of what is dead.
            self.peers = Peers(self, make_transport)
            self.topology = self.peers.topology
            if isinstance(self.peers.transport, Bus):
                self.bus = self.peers.transport
            self.runner.dispatch = self.peers.dispatch
        self.worker: JobRunner = Worker(data_dir, CODEC_PATH) if worker is None else worker
        self.apply_limits()

    # What the runner and the commands use

    def monotonic_s(self) -> float:
        return self.clock_ns() / 1e9

    def begin_tick(self) -> int:
        """Read the clocks once for the whole tick; returns milliseconds since 1970."""
        self.now_s = self.clock_ns() / 1e9
        return self.wall_ns() // 1_000_000

    def now_ms(self) -> int:
        return self.wall_ns() // 1_000_000

    def touch(self, session: Session) -> None:
        """Something was sent to a session outside its own commands: the front flushes it at the tick's end."""
        self._touched.append(session)

    def take_touched(self) -> list[Session]:
        touched = self._touched
        if touched:
            self._touched = []
        return touched

    def session_by_id(self, number: int) -> Session | None:
        for session in self.front.by_session:
            if session.id == number:
                return session
        return None

    def count_error(self, error: ReplyError) -> None:
        """For INFO errorstats; codes are bounded in number."""
        code = error.code
        if code in self.errors or len(self.errors) < 128:
            self.errors[code] = self.errors.get(code, 0) + 1

    def failure_of(self, command: Command, error: Exception) -> ReplyError:
        """What a client hears of an error that its command did not mean to raise; nothing was changed.

        Either its data cannot be read, or it is a bug, told to the log with all that is known.
        """
        if isinstance(error, EngineError):
            return self.data_error(error)
        self.log.error("a command failed", command=command.name, exc_info=error)
        return ReplyError(
            f"ERR internal error in '{command.name.lower()}': {type(error).__name__}. "
            "Nothing was changed. The server's log has the details; please report them."
        )

    def data_error(self, error: EngineError) -> ReplyError:
        """Data cannot be read: told to the log too, each time another one."""
        text = str(error)
        if text != self._data_error:
            self._data_error = text
            self.log.error("data cannot be read", reason=text)
        return ReplyError(f"ERR the data cannot be read: {text}")

    def feed_monitors(self, session: Session, args: list[bytes]) -> None:
        """Show a command to the clients that asked for MONITOR."""
        from respkv.commands.monitor import monitor_line

        line = monitor_line(session, args, self.wall_ns())
        for monitor in self.monitors:
            if not monitor.mode & CLOSING:
                monitor.out.append(line)
                self.touch(monitor)

    def forget(self, session: Session) -> None:
        """The session has ended."""
        self.runner.forget(session)
        self.tracking.forget(session)
        self.pubsub.forget(session)
        self.monitors.pop(session, None)
        self.observe_changed()

    @property
    def refusal(self) -> ReplyError | None:
        """Why writes are refused now."""
        return self._refusal

    @refusal.setter
    def refusal(self, reason: ReplyError | None) -> None:
        self._refusal = reason
        self.observe_changed()

    def observe_changed(self) -> None:
        """A monitor, a pause or a tracking client came or went: the runner's short way is open again or not."""
        self.replica.others_changed = self._others_changed if self.tracking.is_active else None
        self.runner.has_observers = (
            bool(self.monitors)
            or self.runner.is_paused is not None
            or bool(self.tracking.client_count)
            or self.context.notifies != 0
            or self._refusal is not None
            or self.unlogged is not None
            or self.runner.is_stalled
        )

    def _others_changed(self, row: Row) -> None:
        """Another node has changed a row: tell the clients that may have cached its key."""
        key = key_of(row)
        writer = None
        if self.peers is not None and self.tracking.client_count:
            writer = self.peers.dispatch.forwarding.writer_of(key)
        self.tracking.others_changed(slot_of(key), row, writer)

    def apply_limits(self) -> None:
        """Settings that are copied for speed: at the start and after CONFIG SET."""
        client = self.config.client
        self.limits = Limits(
            arguments_max=client.arguments_max,
            bulk_bytes_max=client.bulk_bytes_max,
            inline_bytes_max=client.inline_bytes_max,
        )
        for session in self.front.by_session:
            if not session.mode & UNAUTHENTICATED:
                session.parser.limits = self.limits
        self.latency.configure(self.config.latency.threshold_ms)
        self.slowlog.configure(self.config.slowlog.threshold_us, self.config.slowlog.entries_max)
        self.notifier.configure(self.config.pubsub.keyspace_events)
        self.front.commands_per_tick_max = client.commands_per_tick_max
        self.store.resize(_store_settings(self.config))
        is_sync_wanted = self.config.log.fsync == "always"
        if is_sync_wanted != self.is_sync_wanted:
            self.is_sync_wanted = is_sync_wanted
            self.replica.note(is_durable=is_sync_wanted)
            self.want_sync()  # So that `_sync` looks again at what it waits for.

    # What INFO tells, and the clients that wait for the disk

    @property
    def changes(self) -> int:
        """How many writes this node ever made: the dots that it minted."""
        return sum(self.replica.clocks.own)

    @property
    def used_bytes(self) -> int:
        """Memory of the process before there was data, and of data: memtables and caches."""
        return self.stats.startup_bytes + self.store.memory_bytes

    def links(self) -> Sequence[Link]:
        """The connections of the bus, for CLUSTER LINKS."""
        return [] if self.bus is None else self.bus.links(self.now_ms())

    def bus_stats(self) -> BusStats:
        """What was counted on the bus, for CLUSTER INFO and CLUSTER NODES."""
        if self.peers is None or self.bus is None:
            return BusStats()
        return BusStats(
            sent=_by_kind(self.bus.sent),
            received=_by_kind(self.peers.received),
            heard_ms=self.bus.heard_ms(self.now_ms()),
            overflows=self.bus.overflows_total,
        )

    @property
    def is_stopping(self) -> bool:
        return self._stop_wake.is_set()

    def reset_stats(self) -> None:
        """CONFIG RESETSTAT."""
        for command in TABLE.everything():
            command.reset()
        self.errors.clear()
        self.expired_total = 0
        self.runner.commands_total = 0
        self.context.hits = self.context.misses = 0
        self.syncs.clear()
        self.loop_pause_ns_max = 0
        front = self.front
        front.connections_total = front.rejected_total = front.bytes_in = front.bytes_out = 0

    def ask_save(self, kind: Kind) -> None:
        """BGSAVE, BGREWRITEAOF: have the memtable flushed."""
        self.saves.ask(kind, self.wall_ns() // 1_000_000_000)
        self._work_wake.set()

    def when_synced(self, session: Session, pending: Reply, done: Callable[[], Reply]) -> None:
        """Once all that was written by now is durable, end the wait of a session that a handler blocked with `pending`.

        `pending` is known by its identity, so it must be an object of its own. `done` gives the
        answer; None keeps the session waiting.
        """
        self._sync_waits.append((session, pending, done))
        self.want_sync()

    def when_durable(self, done: Callable[[], None]) -> None:
        """Call, within a tick, once all that was written by now is durable."""
        self._sync_waits.append((None, None, done))
        self.want_sync()

    def fetch(self, fault: PageFault, pins: Pins | None, resume: Resume) -> None:
        """Have a page read beside the loop, pin it, and then go on with `resume`, within a tick."""
        self.pages.add(fault, pins, resume)

    def _load_databases(self) -> list[int]:
        raw = self.store.active[SYSTEM_SLOT].get(DATABASES_ROW)
        if raw is None:
            try:
                raw = self.store.read_now(SYSTEM_SLOT, DATABASES_ROW)
            except EngineError as error:  # Damaged. Reads that need the damaged part are refused.
                self.log.error("what SWAPDB exchanged is lost: assuming nothing", reason=str(error))
        return list(raw[25:]) if raw is not None else list(range(DATABASE_COUNT))

    # The log

    @property
    def releasable(self) -> int:
        """The log position up to which replies may leave."""
        log = self.store.log
        if self.is_sync_wanted:
            return log.synced
        return 1 << 62 if not log.pieces else log.position

    def write_log(self) -> int:
        """Write what this tick applied, and return the log position that its replies wait for.

        What a full disk does not take stays staged: its replies are held back until there is room,
        and writes are refused, and so are reads of what was written (`unlogged`). So no reply tells of
        what is not logged, and memory and log never contradict each other.
        """
        store = self.store
        if self._staged_count:
            return self._write_staged()
        started_ns = self.clock_ns() if self.latency.is_on else 0
        try:
            position = store.write()
        except LogFailedError as error:
            self.fail(error)
            return 1 << 63
        except DiskError as error:
            return self._keep_staged(error)
        if store.frozen or store.write_delay_s:
            self._work_wake.set()
            if store.write_delay_s:
                self.throttle.wrote(position, store.write_delay_s, self.now_s)
            if not self.runner.is_stalled:
                self._check_stall()
        if position > self._check_position:
            self._check_disk()
        if started_ns:
            now_ns = self.clock_ns()
            self.latency.add("aof-write", now_ns - started_ns)
            self.latency.add("loop", now_ns - int(self.now_s * 1e9))
        return position

    def _keep_staged(self, error: DiskError) -> int:
        log = self.store.log
        has_more = len(log.pieces) > self._staged_count
        if not self._staged_count:
            self.log.error("the commit log cannot be written", reason=str(error))
        if self.unlogged is None:
            self.unlogged = Unlogged()
            self.observe_changed()
        self.unlogged.add(log.pieces[self._staged_count :])
        self._staged_count = len(log.pieces)
        self._staged_retry_s = self.now_s + TICKER_S
        self._check_disk()
        # They will be in the next frame, which ends above this. A tick that wrote nothing, while they
        # were unlogged already, has shown nothing of them: it need not wait.
        return log.position + 1 if has_more else log.position

    def _write_staged(self) -> int:
        """As `write_log`, while something waits for room."""
        log = self.store.log
        if len(log.pieces) == self._staged_count and self.now_s < self._staged_retry_s:
            return log.position
        try:
            position = self.store.write()
        except LogFailedError as error:
            self.fail(error)
            return 1 << 63
        except DiskError as error:
            return self._keep_staged(error)
        self._staged_count = 0
        self.unlogged = None
        self.observe_changed()
        self.log.info("the commit log can be written again")
        self.want_sync()
        self._release()
        return position

    def _release(self) -> None:
        self.front.release(self.releasable)
        if self.peers is not None:
            self.peers.release(self.releasable)

    def _check_stall(self) -> None:
        """While too much waits for the worker, writes wait too, and reads go on."""
        runner = self.runner
        is_held = self.throttle.update(self.monotonic_s(), is_stopped=self.store.is_stalled)
        if is_held:
            self.want_timer()  # It may be a delay, which ends by itself.
        if runner.is_stalled == is_held:
            return
        runner.is_stalled = is_held
        self.observe_changed()
        if not is_held:
            runner.try_again(self.now_ms())

    def note_pause(self, started_ns: int) -> None:
        """The loop did one thing since `started_ns`, on its clock."""
        elapsed_ns = self.clock_ns() - started_ns
        if elapsed_ns > self.loop_pause_ns_max:
            self.loop_pause_ns_max = elapsed_ns

    def want_timer(self) -> None:
        """A wait or a pause has got a new end: the ticker looks at it."""
        self._timer_wake.set()

    def want_sync(self) -> None:
        self._sync_wake.set()

    def fail(self, error: EngineError) -> None:
        """Leave service: nothing more can be promised."""
        self.log.error("the node leaves service", reason=str(error))
        try:
            self.replica.doubt()
        except EngineError as failure:
            self.log.error("nor can it note that its log has failed", reason=str(failure))
        self.exit_status = 1
        self.front.stop_listening()
        self._stop_wake.set()

    async def _sync(self) -> None:
        while True:
            if self.is_sync_wanted:
                await self._sync_wake.wait()
                self._sync_wake = trio.Event()
            else:
                with trio.move_on_after(1):
                    await self._sync_wake.wait()
                self._sync_wake = trio.Event() if self._sync_wake.is_set() else self._sync_wake
                # With `no` too, sealed segments are forced to the disk: they are closed then, and
                # compaction learns that what they drop is dropped for good.
                is_rolled = self.store.log.synced < self.store.log.segment.base
                if self.config.log.fsync == "no" and not self._sync_waits and not is_rolled:
                    continue
            log = self.store.log
            waits = self._sync_waits
            if log.pieces:
                waits = []  # Writes that the disk has no room for: who waits for them goes on waiting.
            else:
                self._sync_waits = []
            if log.synced != log.position:
                has_waiters = self.is_sync_wanted
                started_ns = self.clock_ns()
                try:
                    await self._offload(log.sync)
                except (SyncError, LogFailedError) as error:
                    self.fail(error)
                    return
                elapsed_ns = self.clock_ns() - started_ns
                self.syncs.add(elapsed_ns)
                if has_waiters:
                    self.latency.add("aof-fsync-always", elapsed_ns)
            self._release()
            if waits:
                self._end_waits(waits)

    def _end_waits(self, waits: list[tuple[Session | None, Reply, Callable[[], Reply]]]) -> None:
        """Their writes are durable."""
        now_ms = self.begin_tick()
        for session, pending, done in waits:
            if session is None:
                done()
            elif session.wait is not None and session.wait.reply is pending:
                reply = done()
                if reply is not None:
                    self.runner.unblock(session, reply, now_ms)
        self.front.tick([])

    # Background

    async def _work(self) -> None:
        """Flushes and compactions, one at a time, in the worker process."""
        try:
            while True:
                self._freeze_for_save()
                if self.store.has_leavings:
                    await self._offload(self.store.clear_away)
                job = self.store.next_job(self.now_ms(), self._room_bytes())
                if job is None:
                    self.job_kind = "none"
                    with trio.move_on_after(5):
                        await self._work_wake.wait()
                    self._work_wake = trio.Event()
                    continue
                self.job_kind = job.kind
                if job.kind == "flush":
                    self.saves.flush_begins(self.changes)
                try:
                    result = await self.worker.run(job)
                    prepared = self.store.prepare(job, result)
                    await self._offload(partial(self.store.write_manifest, prepared))
                    started_ns = self.clock_ns()
                    self.store.install(job, result, prepared)
                    self.note_pause(started_ns)
                    for damage in result.damages:
                        self._report(damage)
                except EngineError as error:
                    if self._job_failures % JOB_FAILURES_PER_LINE == 0:
                        self.log.error("a job will be repeated", kind=job.kind, reason=str(error))
                    self._job_failures += 1
                    self.store.abandon(job)
                    self.saves.failed()
                    self._check_disk()
                    await trio.sleep(1)
                else:
                    self._job_failures = 0
                    if job.kind == "flush":
                        self._note_flushed()
                    self._check_stall()
                    self._check_disk()
                    self.front.tick([])
        finally:
            with trio.CancelScope(shield=True):
                await self.worker.stop()

    def _report(self, damage: Damage) -> None:
        self.log.error(
            "data is lost: reads of it are refused until it is refilled, or KV.DAMAGE ACCEPT",
            file=damage.name,
            offset=damage.offset,
            reason=damage.reason,
            slots=f"{damage.slots.start}-{damage.slots.stop - 1}",
        )

    def _freeze_for_save(self) -> None:
        """A save was asked for: freeze the memtable. Not while another one waits: two would stall the node."""
        store = self.store
        if not self.saves.wants_freeze or store.frozen:
            return
        try:
            if store.log.position > store.memtable.base_position:
                store.freeze()
        except EngineError as error:
            self.log.error("the memtable cannot be frozen", reason=str(error))
            self.saves.failed()
            return
        self.saves.frozen(store.log.position)
        if not store.frozen:  # All of the log is in tables already.
            self._note_flushed()

    def _note_flushed(self) -> None:
        self.saves.flushed(self.store.manifest.log_start, self.wall_ns() // 1_000_000_000)

    async def _ticker(self) -> None:
        seconds = 0.0
        while True:
            interval_s = min(TICKER_S, self.config.expiry.interval_ms / 1000)
            if self.peers is not None and self.peers.is_waiting:
                interval_s = min(interval_s, PEERS_TICK_S)
            next_s = min(self.runner.next_deadline_s, self.throttle.wakes_at_s())
            until_s = next_s - self.monotonic_s()
            sleep_s = max(0.0, min(interval_s, until_s))
            due_ns = self.clock_ns() + int(sleep_s * 1e9)
            with trio.move_on_after(sleep_s):
                await self._timer_wake.wait()
            self.note_pause(due_ns)  # It is late by what stood in its way; early if it was woken.
            self._timer_wake = trio.Event()
            now_ms = self.begin_tick()
            self.runner.expire_waits(self.now_s, now_ms)
            if self.now_s >= self.throttle.wakes_at_s():
                self._check_stall()
            if (
                self.now_s - self._expired_s
                >= self.config.expiry.interval_ms / 1000 - TICKER_SLACK_S
            ):
                self._expired_s = self.now_s
                self._expire(now_ms)
            if self.peers is not None:
                self.peers.tick(self.now_s)
            self._sample()
            if self._is_retry_due:
                self._is_retry_due = False
                self.runner.try_again(now_ms)
            if self.now_s - seconds >= 1:
                seconds = self.now_s
                self.front.check_clients()
                self._check_stall()
                self._check_disk()
            self.front.tick([])

    def _expire(self, now_ms: int) -> None:
        started_ns = self.clock_ns()
        until_ns = started_ns + self.config.expiry.budget_ms * 1_000_000
        self.expired_total += self.replica.expire(now_ms, lambda: self.clock_ns() >= until_ns)
        self.store.free(lambda: self.clock_ns() >= until_ns)
        self.tracking.expire(now_ms)
        self.latency.add("expire-cycle", self.clock_ns() - started_ns)

    def _sample(self) -> None:
        """For the rates in INFO."""
        front = self.front
        if self.stats.is_due(self.now_s):
            self.stats.sample(
                self.now_s, self.runner.commands_total, front.bytes_in, front.bytes_out
            )
            self.stats.see_memory(self.used_bytes)

    def _check_disk(self) -> None:
        """Refuse writes before the disk is full, and take them again when there is room.

        Once a second, and whenever the log has grown by a part of the reserve.
        """
        disk = self.store.disk
        try:
            free = disk.free_bytes()
            reserve = self._reserve_bytes = min(DISK_RESERVE_BYTES, disk.total_bytes() // 20)
        except DiskError:
            return
        self._check_position = self.store.log.position + reserve // 8
        if free < reserve or self._staged_count:
            reason: ReplyError | None = DISK_FULL
        elif self.store.is_stalled and (self._job_failures or self.store.freeze_failure):
            reason = MEMORY_FULL
        else:
            reason = None
        if reason is self.refusal:
            return
        if reason is None:
            self.log.info("writes are taken again", free_bytes=free)
        else:
            self.log.error("writes are refused", reason=reason.line.decode(), free_bytes=free)
        self.refusal = reason
        # Not now: this may be the end of a tick, and what runs now would be answered unlogged.
        self._is_retry_due = True

    def _room_bytes(self) -> int:
        """What a compaction may fill."""
        try:
            return max(0, self.store.disk.free_bytes() - self._reserve_bytes)
        except DiskError:
            return 0

    # Life

    def stop(self, *, is_hurried: bool = False) -> None:
        """Ask for a stop, from a signal or SHUTDOWN. `is_hurried`: without the grace period."""
        self._is_hurried = is_hurried
        self._stop_wake.set()

    async def run(self) -> int:
        """Serve until a signal, SHUTDOWN or a failure; returns the exit status. Raises OSError if it cannot listen."""
        self._listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._signals)
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
            await self.live(self._say_ready)
            nursery.cancel_scope.cancel()
        return self.exit_status

    async def live(self, say_ready: Callable[[], None]) -> None:
        """Serve until `stop` or a failure, without listeners and signals of its own."""
        for damage in self.store.manifest.damages:
            self._report(damage)
        if (
            not self.store.has_more
        ):  # Quickly done while all is in memory; INFO is exact from now on.
            for _ in self.context.counts.refresh(self.now_ms()):
                pass
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.front.run)
            nursery.start_soon(self._sync)
            nursery.start_soon(self._work)
            nursery.start_soon(self.pages.run)
            nursery.start_soon(self._ticker)
            if self.bus is not None:
                nursery.start_soon(self.bus.run)
            say_ready()
            await self._stop_wake.wait()
            self.log.info("stopping")
            self.front.stop_listening()
            await self._drain()
            nursery.cancel_scope.cancel()
        if self.bus is not None:
            self.bus.close()
        self.front.close_all()
        try:
            self.replica.close()
        except EngineError as error:
            self.log.error("the commit log cannot be synced", reason=str(error))
            self.exit_status = 1
        self.log.info("stopped")

    async def _drain(self) -> None:
        """Within the grace period, let what is under way finish and replies leave."""
        if self.exit_status or self._is_hurried:
            return
        with trio.move_on_after(self.config.client.shutdown_grace_s):
            while self.front.has_unsent:  # noqa: ASYNC110  An event would cost the hot path.
                await trio.sleep(0.01)

    def _listen(self) -> None:
        client = self.config.client
        port = client.port
        if client.port or not client.unix_socket:
            for host in client.hosts:
                port = self.front.listen_tcp(host, port, client.backlog)
        me = self.config.me
        if me is not None and self.bus is not None:
            for host in client.hosts:
                self.front.listen_tcp(host, me.cluster_port, client.backlog, is_cluster=True)
                self.bus.listen(host, me.bus_port)
        if client.unix_socket:
            self.front.listen_unix(client.unix_socket, client.unix_socket_mode, client.backlog)
        self.ready_port = port

    def _say_ready(self) -> None:
        client = self.config.client
        if self.ready_port:
            host = f"[{client.hosts[0]}]" if ":" in client.hosts[0] else client.hosts[0]
            print(f"ready {host}:{self.ready_port}", file=sys.stderr, flush=True)
        else:
            print(f"ready unix:{client.unix_socket}", file=sys.stderr, flush=True)

    async def _signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                self.log.info("signal received", signal=signal.Signals(number).name)
                self.stop()


def run(config: Config, data_dir: str, node_name: str) -> int:
    """Open the data folder and serve; returns the exit status."""
    logs.setup(config.logging.level, config.logging.format)
    log = structlog.get_logger("respkv.node")
    load_commands()
    rng = random.Random(int.from_bytes(os.urandom(16), "big"))
    try:
        replica = Replica.open(
            RealDisk(data_dir),
            _store_settings(config),
            rng.getrandbits(62) | 1,
            boot=boot_id(),
            is_durable=config.log.fsync == "always",
        )
    except EngineError as error:
        print(f"respkv: {error}", file=sys.stderr)
        return 1
    recovery = replica.store.recovery
    log.info(
        "data folder opened",
        path=data_dir,
        log_entries=recovery.entry_count,
        tables=len(replica.store.tables),
        actor=f"{replica.actor:016x}",
    )
    for torn in recovery.torn:
        log.warning("the log's torn end was cut off", file=torn.name, offset=torn.offset)
    files_max = config.client.clients_max + FILES_BESIDE_CLIENTS
    if (allowed := allow_files(files_max)) < files_max:
        log.warning(
            "not all of client.clients_max will fit: raise the limit on open files (ulimit -n)",
            files_max=allowed,
            needed=files_max,
        )
    try:
        secret = read_secret(config) if config.nodes else None
        node = Node(
            config,
            replica,
            name=node_name,
            data_dir=data_dir,
            rng=rng,
            make_transport=partial(_make_bus, secret=secret) if config.nodes else None,
            secret=secret,
        )
    except (ConfigError, TlsError, GossipError) as error:
        print(f"respkv: {error}", file=sys.stderr)
        return STATUS_MISUSED
    try:
        return trio.run(node.run)
    except OSError as error:
        print(f"respkv: cannot listen: {error}", file=sys.stderr)
        return 1


def _by_kind(counts: Mapping[bytes, int]) -> dict[str, int]:
    """Messages by verb, as names of fields."""
    return {verb.decode("ascii").lower().replace(".", "_"): count for verb, count in counts.items()}


def _make_bus(peers: Peers, *, secret: bytes | None) -> Bus:
    node = peers.node
    config = node.config
    settings = config.cluster
    tls_files = (settings.tls_certificate_file, settings.tls_key_file, settings.tls_ca_file)
    return make_bus(
        peers.topology.me,
        config.nodes,
        peers.terms,
        secret=secret,
        descriptors=node.front,
        receiver=peers,
        rng=node.rng,
        entropy=os.urandom,
        clock_ns=node.clock_ns,
        log=structlog.get_logger("respkv.bus"),
        limits=BusLimits(
            frame_bytes_max=settings.bus_frame_bytes_max,
            queue_bytes_max=settings.bytes_in_flight_max,
        ),
        tls_files=tls_files if any(tls_files) else None,
    )


def _store_settings(config: Config) -> StoreSettings:
    memory = config.memory
    # One is being filled while another waits for its flush.
    memtable = int(memory.bytes_max * memory.memtable_share) // MEMTABLE_COUNT
    return StoreSettings(
        memtable_bytes=memtable,
        row_cache_bytes=int(memory.bytes_max * memory.row_cache_share),
        block_cache_bytes=int(memory.bytes_max * memory.block_cache_share),
        log_bytes_max=memtable * LOG_BYTES_PER_MEMTABLE_BYTE,
        block_bytes=config.storage.block_bytes,
        compression=cast(Compression, config.storage.compression),
    )
