"""A node, composed of its parts, and its life: it listens, serves, and stops.

It serves nothing itself: the front reads and writes sockets, the runner executes, the replica
keeps. The node holds what these share, and runs their tasks:

    run()            listeners
      _signals       SIGTERM and SIGINT ask for a stop
      live()
        front.run      the tick
        commit.run     fsync of the commit log: at once (`always`) or once a second (`everysec`)
        jobs.run       flushes and compactions, in the worker process
        pages.run      pages that were not in memory, in threads
        ticker.run     time-outs, expiry, idle clients, free disk
        bus.run        the connections to other nodes, if there are any

Parts are made in an order in which each knows only those before it: runner, admission, jobs, commit, front, ticker,
peers. What it is not handed (a test hands it clocks, a worker, a poller of its own) is the real one;
`respkv/serve.py` opens the real disk.

A stop has two steps: listeners close, what is under way is finished and sent within
`shutdown_grace_s`, then everything is cancelled, the log is synced and the folder is left. After a
failed fsync the node leaves service with exit status 1: what the kernel then says of the data
cannot be trusted.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Final

import structlog
import trio

from cluster.replica import Replica
from cluster.slot import DATABASE_COUNT, SYSTEM_SLOT, Row, key_of, slot_of
from cluster.topology import Topology
from cluster.transport import Transport
from engine.errors import EngineError
from engine.store import PageFault, Pins
from engine.worker import Worker
from respkv.admission import Admission
from respkv.bus import Bus
from respkv.cluster_view import BusStats, Link
from respkv.command import TABLE, Command
from respkv.config import Config
from respkv.consistency import Scope
from respkv.context import DATABASES_ROW, Context
from respkv.front import Front
from respkv.group_commit import GroupCommit
from respkv.jobs import JobRunner, Jobs
from respkv.latency import LatencyMonitor
from respkv.notification import Notifier
from respkv.pages import Offload, Pages, Resume
from respkv.parser import Limits
from respkv.peers import Peers
from respkv.policy_match import Policies
from respkv.poller import EpollPoller, Poller
from respkv.process import Process, RealProcess
from respkv.pubsub import PubSub
from respkv.reply import ReplyError
from respkv.runner import Runner
from respkv.saves import Saves
from respkv.session import CLOSING, UNAUTHENTICATED, Session
from respkv.siblings import make_siblings
from respkv.slowlog import Slowlog
from respkv.stats import Stats
from respkv.store_share import store_settings
from respkv.ticker import Ticker
from respkv.tracking import Tracking
from respkv.unlogged import Unlogged

CODEC_PATH: Final = "cluster.record:CODEC"
# Commands are lists, and waiting ones are many: with the usual thresholds everything would be looked
# through every few seconds, for tens of milliseconds. All of it about twice a day: what is served
# leaves next to no cycles.
GC_THRESHOLDS: Final = (5_000, 10, 100_000)
# What the caches take in is balanced by what they free. So the collector does not count it, until a new
# memtable sets it off: it would look through all that came since the one before, for 50 ms.
GC_INTERVAL_S: Final = 0.5


class Node:
    """What the parts of a node share. `databases[n]` is the physical database that SELECT n names."""

    def __init__(
        self,
        config: Config,
        replica: Replica,
        *,
        name: str,
        data_dir: str,
        rng: Random,
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
        self.store.leavings.is_cleared_by_owner = True
        self.name = name
        self.data_dir = data_dir
        self.rng = rng
        self.run_id = f"{rng.getrandbits(160):040x}"
        self.replication_id = f"{rng.getrandbits(160):040x}"
        self.process = RealProcess() if process is None else process
        self.poller = EpollPoller() if poller is None else poller
        self.clock_ns = clock_ns
        self.wall_ns = wall_ns
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
        self.now_s = clock_ns() / 1e9
        self.started_s = self.now_s
        self.started_wall_s = wall_ns() / 1e9
        self.saves = Saves(int(self.started_wall_s), self.changes)
        self.stats = Stats(max(0, self.process.rss_bytes() - self.store.memory_bytes))
        self.exit_status = 0
        self.ready_port = 0
        self.unlogged: Unlogged | None = None  # What the log could not take: nobody may see it.
        self.loop_pause_ns_max = 0  # The longest that the loop served nobody.
        self._touched: list[Session] = []
        self._data_error = ""  # The last one that was logged.
        self._stop_wake = trio.Event()
        self._is_hurried = False
        if offload is None:
            offload = trio.to_thread.run_sync
        if worker is None:
            worker = Worker(data_dir, CODEC_PATH)
        self.admission = Admission(self)
        self.jobs = Jobs(self, self.admission, worker, offload)
        self.commit = GroupCommit(self, self.admission, self.jobs, offload)
        self.front = Front(self)
        self.pages = Pages(self, offload)
        self.ticker = Ticker(self, self.admission)
        self.peers: Peers | None = None
        self.topology: Topology | None = None
        self.bus: Bus | None = None
        if make_transport is not None:
            self.store.horizon_position = 0  # Others may have to hear of what is dead.
            self.peers = Peers(self, make_transport)
            self.topology = self.peers.topology
            if isinstance(self.peers.transport, Bus):
                self.bus = self.peers.transport
            self.runner.lead_through(self.peers.dispatch)
        else:
            self.replica.open_rows.forget_found()  # No other replica could tell.
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
            or self.runner.gate.is_paused is not None
            or bool(self.tracking.client_count)
            or self.context.notifies != 0
            or self._refusal is not None
            or self.unlogged is not None
            or self.runner.gate.is_stalled
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
        self.store.resize(store_settings(self.config))
        self.commit.configure(self.config.log.fsync)

    # What INFO tells

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
        self.ticker.expired_total = 0
        self.runner.reset_stats()
        self.context.hits = self.context.misses = 0
        self.commit.syncs.clear()
        self.loop_pause_ns_max = 0
        front = self.front
        front.clients.connections_total = front.listeners.rejected_total = 0
        front.bytes_in = front.output.bytes_out = 0

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

    def note_pause(self, started_ns: int) -> None:
        """The loop did one thing since `started_ns`, on its clock."""
        elapsed_ns = self.clock_ns() - started_ns
        if elapsed_ns > self.loop_pause_ns_max:
            self.loop_pause_ns_max = elapsed_ns

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
            nursery.start_soon(_collect_young)
            await self.live(self._say_ready)
            nursery.cancel_scope.cancel()
        return self.exit_status

    async def live(self, say_ready: Callable[[], None]) -> None:
        """Serve until `stop` or a failure, without listeners and signals of its own."""
        for damage in self.store.manifest.damages:
            self.jobs.report(damage)
        if (
            not self.store.has_more
        ):  # Quickly done while all is in memory; INFO is exact from now on.
            for _ in self.context.counts.refresh(self.now_ms()):
                pass
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.front.run)
            nursery.start_soon(self.commit.run)
            nursery.start_soon(self.jobs.run)
            nursery.start_soon(self.pages.run)
            nursery.start_soon(self.ticker.run)
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
                port = self.front.listeners.listen_tcp(host, port, client.backlog)
        me = self.config.me
        if me is not None and self.bus is not None:
            for host in client.hosts:
                self.front.listeners.listen_tcp(
                    host, me.cluster_port, client.backlog, is_cluster=True
                )
                self.bus.listen(host, me.bus_port)
        if client.unix_socket:
            self.front.listeners.listen_unix(
                client.unix_socket, client.unix_socket_mode, client.backlog
            )
        self.ready_port = port

    def _say_ready(self) -> None:
        self._say("ready")
        if self.peers is not None:
            self.peers.tell_when_joined(lambda: self._say("joined"))

    def _say(self, what: str) -> None:
        """A line for who has started this process, with the address where it serves clients."""
        client = self.config.client
        address = f"unix:{client.unix_socket}"
        if self.ready_port:
            host = f"[{client.hosts[0]}]" if ":" in client.hosts[0] else client.hosts[0]
            address = f"{host}:{self.ready_port}"
        with contextlib.suppress(OSError, ValueError):  # As for the log: it may be closed.
            print(f"{what} {address}", file=sys.stderr, flush=True)

    async def _signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                self.log.info("signal received", signal=signal.Signals(number).name)
                self.stop()


def _by_kind(counts: Mapping[bytes, int]) -> dict[str, int]:
    """Messages by verb, as names of fields."""
    return {verb.decode("ascii").lower().replace(".", "_"): count for verb, count in counts.items()}


async def _collect_young() -> None:
    """Look through what is new, often and so for a short time each. Until cancelled."""
    while True:
        await trio.sleep(GC_INTERVAL_S)
        gc.collect(1)
