"""A machine with a disk and a clock, and the processes that run on it one after the other.

It knows no faults of its own accord (`fault.py` decides); it does what is done to it:

    kill       the process ends wherever it is; the kernel's cache survives
    cut_power  the machine ends; its disk loses what was not synced
    freeze     the process stands still for a while, its sockets do not
    skew       the wall clock jumps, or drifts
    swap_disk  the disk comes back empty, or as it was once

A process is one opening of the data folder: product code, composed by `compose` in `world.py`. The end of a
process is not clean: trio unwinds its tasks, but by then its disk, sockets and messages are dead.

Shell.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import msgspec
import trio

from cluster.record import CODEC
from engine.errors import EngineError
from engine.job import Job, JobResult, run_job
from respkv.node import Node
from respkv.process import CpuTimes
from tests.sim.disk import PowerCut, SimDisk
from tests.sim.network import Batch, Endpoint
from tests.sim.timeline import OWNER, Owner
from tests.sim.wire import Connection, Poller

if TYPE_CHECKING:
    from tests.sim.world import World

EPOCH_NS = 1_700_000_000_000_000_000
DELAY_S = (0.0001, 0.003)  # Of what the disk does beside the loop.
JOB_S = (0.01, 0.3)


class OperatingSystem:
    """What a node hears of its process: always the same."""

    pid = 1
    executable = "respkv"
    system = "Simulation"
    memory_total_bytes = 1 << 34

    def rss_bytes(self) -> int:
        return 1 << 26

    def cpu_times(self) -> CpuTimes:
        return CpuTimes(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

    def trim(self) -> bool:
        return False


class Worker:
    """Does jobs at once, after a while: `respkv.jobs.JobRunner`."""

    restarts = 0
    pid = 1

    def __init__(self, process: Process) -> None:
        self._process = process

    async def run(self, job: Job) -> JobResult:
        machine = self._process.machine
        await trio.sleep(machine.rng.uniform(*JOB_S))
        copy = msgspec.msgpack.decode(msgspec.msgpack.encode(job), type=Job)
        result = await self._process.blocking(lambda: run_job(self._process.disk, copy, CODEC))
        return cast(JobResult, result)

    async def hurry(self) -> None:
        """It never rests."""

    async def stop(self) -> None:
        """Nothing outlives a job."""


class Process(Owner):
    """One life of a node, from the opening of its data folder to its end."""

    def __init__(self, machine: Machine, disk: SimDisk) -> None:
        super().__init__()
        self.machine = machine
        self.disk = disk
        self._timeline = machine.world.timeline
        self.poller = Poller(machine.rng)
        self.worker = Worker(self)
        self.endpoint = Endpoint(
            machine.world.network, machine.name, is_alive=lambda: self.is_alive
        )
        self.connections: list[Connection] = []
        self.node: Node
        self.is_over = False
        self.lost_power = False  # In the middle of an operation of the disk.
        self.failure: BaseException | None = None
        self.scope = trio.CancelScope()
        self._waiting: list[Batch] = []  # Came while it stood still.

    @property
    def is_alive(self) -> bool:
        return not self.is_over and not self.lost_power

    # Seams of the node

    def clock_ns(self) -> int:
        return int(self._timeline.now_s * 1e9) + 1_000_000_000

    async def blocking(self, call: Callable[[], Any]) -> Any:
        """Do what blocks, beside the loop: the call comes at one moment, after a while."""
        delay_s = self.machine.rng.uniform(*DELAY_S) * self.machine.disk_slowness
        await trio.sleep(delay_s)
        try:
            return call()
        except PowerCut:
            self.lost_power = True
            raise

    # Life

    async def run(self) -> None:
        """Serve until the end, whatever it is."""
        OWNER.set(self)
        try:
            with self.scope:
                await self.node.live(self._ready)
        except BaseException as error:
            self.note(error)
            if isinstance(error, trio.Cancelled):
                raise
        finally:
            self.end(is_refused=True)

    def _ready(self) -> None:
        if self.node.peers is not None:
            self.endpoint.start(self.node.peers, self.serve)

    def note(self, error: BaseException) -> None:
        """The loop was left by an error: power went, or the product is broken, or it was dead already."""
        if _has_power_cut(error):
            self.lost_power = True
        elif self.is_alive and self.failure is None:
            self.failure = error

    def serve(self, batch: Batch) -> None:
        """Do a batch of what came from the network, in one tick; later, if the process stands still."""
        if not self.is_alive:
            return
        if self.is_frozen:
            self._waiting.append(batch)
            return
        try:
            for arrive in batch:
                arrive()
            self.node.front.tick([])
        except Exception as error:
            self.note(error)
            self.scope.cancel()

    def thaw(self) -> None:
        super().thaw()
        waiting, self._waiting = self._waiting, []
        for batch in waiting:
            self.serve(batch)

    def end(self, *, is_refused: bool) -> None:
        """Cut it off from the world, and unwind what is left of it."""
        if self.is_over:
            return
        self.is_over = True
        self.endpoint.stop(is_refused=is_refused)
        for connection in self.connections:
            if is_refused:
                connection.server_was_killed()
            else:
                does_arrive = self.machine.rng.random() < 0.5
                connection.server_lost_power(does_sent_arrive=does_arrive)
        self.scope.cancel()
        super().thaw()


class Machine:
    """A place for one node. `serve` runs processes there until the world ends."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.rng = random.Random(f"machine-{name}-{world.plan.seed}")
        self.disk = self.new_disk()
        self.process: Process | None = None
        self.lives = 0  # Processes so far.
        self.boots = 1
        self.disk_slowness = 1.0
        self.offset_s = self.rng.uniform(-1, 1) * world.plan.skew_s  # Of the wall clock.
        self.offset_max_s = abs(self.offset_s)  # So far.
        self.drift = self.rng.uniform(-1e-4, 1e-4)
        self.down_s = 0.0  # How long it stays down when its process ends next.
        self.is_held_down = False
        self._power = trio.Event()
        self._ending = False

    def new_disk(self) -> SimDisk:
        self.disks = getattr(self, "disks", -1) + 1
        rng = random.Random(f"disk-{self.name}-{self.disks}-{self.world.plan.seed}")
        disk = SimDisk(rng, path=f"/{self.name}")
        disk.faults.fired = self.world.fired
        return disk

    @property
    def is_up(self) -> bool:
        return self.process is not None and self.process.is_alive

    @property
    def is_complete(self) -> bool:
        """Whether it runs, and has all that it promised."""
        return self.process is not None and self.is_up and self.process.node.replica.is_complete

    def jump(self, by_s: float) -> None:
        """The wall clock is set."""
        self.offset_s += by_s
        self.offset_max_s = max(self.offset_max_s, abs(self.offset_s))

    def wall_ns(self) -> int:
        now_s = self.world.timeline.now_s
        return EPOCH_NS + int((now_s * (1 + self.drift) + self.offset_s) * 1e9)

    async def serve(self) -> None:
        """Run one process after the other."""
        while not self._ending:
            process = self._start()
            if process is None:
                await trio.sleep(0.5)
                continue
            self.process = process
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.run)
            self._bury(process)
            if self._ending:
                break
            await trio.sleep(self.down_s or self.rng.uniform(0.05, 1.0))
            self.down_s = 0.0
            while self.is_held_down:
                self._power = trio.Event()
                await self._power.wait()

    def _start(self) -> Process | None:
        """Open the data folder. None if the disk does not let it."""
        self.lives += 1
        process = Process(self, self.disk)
        try:
            process.node = self.world.compose(process)
        except PowerCut:
            self.world.fired["power cut in a start"] += 1
            self._lose_power()
            return None
        except EngineError as error:
            self.world.note_refused_start(self, error)
            self.disk = self.disk.kill()
            return None
        self.world.starts += 1
        return process

    def _bury(self, process: Process) -> None:
        """What its end leaves of the disk."""
        self.process = None
        if process.failure is not None:
            self.world.fail(process.failure)
        if process.lost_power:
            self.world.fired["power cut in an operation"] += 1
            self._lose_power()
        elif self.disk is process.disk:  # It left by itself.
            if process.node.exit_status:
                self.world.fired["node left service"] += 1
            self.disk = self.disk.kill()

    # What is done to it

    def _lose_power(self) -> None:
        self.boots += 1
        self.disk = self.disk.crash()

    def kill(self, down_s: float = 0.0) -> None:
        """The process ends: `kill -9`."""
        if self.is_up and self.process is not None:
            self.down_s = down_s
            self.disk = self.disk.kill()
            self.process.end(is_refused=True)

    def cut_power(self, down_s: float = 0.0) -> None:
        if self.is_up and self.process is not None:
            self.down_s = down_s
            self._lose_power()
            self.process.end(is_refused=False)

    def stop(self) -> None:
        """Ask the node to leave, as SIGTERM does."""
        if self.is_up and self.process is not None:
            self.process.node.stop()

    def hold_down(self) -> None:
        """It does not start again until `release`."""
        self.is_held_down = True

    def release(self) -> None:
        self.is_held_down = False
        self._power.set()

    def freeze(self) -> Process | None:
        """Let the process stand still, and return it so that just this one is thawed."""
        if self.is_up and self.process is not None and not self.process.is_frozen:
            self.process.freeze()
            return self.process
        return None

    def heal(self) -> None:
        """Nothing is wrong with it any more, its clock included."""
        self.jump(-self.offset_s)
        faults = self.disk.faults
        faults.read_error_in = faults.write_error_in = faults.sync_error_in = None
        faults.name_error_in = faults.power_cut_in = faults.name_cut_in = None
        faults.capacity_bytes = None
        faults.has_short_writes = faults.is_cold = False
        self.disk_slowness = 1.0
        if self.process is not None and self.process.is_frozen:
            self.process.thaw()
        self.release()

    def end(self) -> None:
        """The world ends: no process starts any more."""
        self._ending = True
        self.kill()
        self.release()


def _has_power_cut(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(_has_power_cut, error.exceptions))
    return isinstance(error, PowerCut)
