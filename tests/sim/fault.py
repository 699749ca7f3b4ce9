"""What goes wrong in a run: faults drawn from the seed, one after the other, until it is told to stop.

It judges nothing, and everything it does can be healed (`heal`). Each kind is counted in `World.fired` under
its name in `KINDS_*` once it has happened; what a network or a disk did by itself is counted there. A
campaign in which a kind never fired shows nothing about it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from tests.sim.disk import SimDisk

if TYPE_CHECKING:
    from tests.sim.machine import Machine
    from tests.sim.world import World

FOREVER_S: Final = float("inf")
SETTLE_S: Final = 20.0  # What a cluster without faults takes to be well again, at most.
KINDS_OF_ONE: Final = (
    "kill",
    "power cut",
    "power cut in an operation",
    "blackout",
    "stop",
    "pause",
    "clock jump",
    "slow disk",
    "full disk",
    "failed sync",
    "write error",
    "short write",
    "slow clients",
    "clients cut off",
    "broken client connection",
    "unknown outcome",
    "save",
)
KINDS_OF_MANY: Final = (
    "one-way cut",
    "partition",
    "slow message",
    "lost message",
    "repeated message",
    "reordered message",
    "broken connection",
    "message into a cut",
    "power cut of one machine",
    "lost disk",
    "old disk",
)


class Faults:
    """The nemesis of one run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.rng("faults")
        self.fired = world.fired
        self._undo: list[Callable[[], None]] = []
        self._backup: tuple[Machine, SimDisk] | None = None
        self.kinds: list[tuple[Callable[[Machine], None], int]] = [
            (self._kill, 3),
            (self._stop, 1),
            (self._pause, 2),
            (self._jump, 2),
            (self._slow_disk, 1),
            (self._full_disk, 1),
            (self._short_writes, 1),
            (self._slow_clients, 1),
            (self._cut_clients, 1),
            (self._break_clients, 1),
            (self._save, 3),
        ]
        if world.plan.fsync == "always":
            self.kinds += [
                (self._cut_power, 3),
                (self._cut_power_in_operation, 3),
                (self._blackout, 2),
                (self._fail_sync, 1),
                (self._fail_write, 1),
            ]
        elif len(world.names) > 1 and world.plan.w != 1:
            self.kinds += [(self._cut_power_of_one, 3)]
        if len(world.names) > 1:
            self.kinds += [
                (self._cut_one_way, 2),
                (self._partition, 3),
                (self._slow_link, 2),
                (self._lossy_link, 2),
                (self._break_connection, 2),
            ]

    async def run(self) -> None:
        """Do something bad now and then, until cancelled; a fault that lasts ends after a while."""
        plan = self.world.plan
        calls = [
            call
            for call, weight in self.kinds
            for _ in range(weight)
            if not plan.only or call.__name__.lstrip("_") in plan.only
        ]
        assert calls, plan.only
        disk_fault_s = self.rng.uniform(0.2, 0.6) * plan.seconds if plan.disk_fault else FOREVER_S
        if plan.disk_fault == "old":
            self.world.timeline.after(self.rng.uniform(0.1, 0.9) * disk_fault_s, self._back_up)
        while True:
            await trio.sleep(self.rng.expovariate(1 / plan.fault_interval_s))
            if self.world.timeline.now_s > disk_fault_s:
                disk_fault_s = FOREVER_S
                await self._swap_disk()
            machine = self.world.machines[self.rng.choice(self.world.names)]
            call = self.rng.choice(calls)
            call(machine)

    def heal(self) -> None:
        """Nothing is wrong any more."""
        undo, self._undo = self._undo, []
        for call in undo:
            call()
        self.world.network.heal()
        for name, machine in self.world.machines.items():
            machine.heal()
            self.world.lines[name].has_cut = False
            self.world.lines[name].extra_s = 0.0

    def _for_a_while(self, undo: Callable[[], None], most_s: float = 5.0) -> None:
        """Take back a fault later, once."""

        def end() -> None:
            if undo in self._undo:
                self._undo.remove(undo)
                undo()

        self._undo.append(undo)
        self.world.timeline.after(self.rng.uniform(0.1, most_s), end)

    # Processes and power

    def _kill(self, machine: Machine) -> None:
        self.fired["kill"] += machine.is_up
        machine.kill(self.rng.choice((0.01, 0.5, 3.0)))

    def _cut_power(self, machine: Machine) -> None:
        self.fired["power cut of a machine"] += machine.is_up
        machine.cut_power(self.rng.choice((0.1, 1.0, 5.0)))

    def _cut_power_of_one(self, machine: Machine) -> None:
        """It loses what it had not synced. The others have that, if they have lost nothing themselves."""
        if all(each.is_complete for each in self.world.machines.values()):
            self.fired["power cut of one machine"] += machine.is_up
            machine.cut_power(self.rng.choice((0.1, 1.0, 5.0)))

    def _cut_power_in_operation(self, machine: Machine) -> None:
        """Counted when it happens."""
        machine.disk.faults.power_cut_in = self.rng.randint(1, 20)

    def _blackout(self, machine: Machine) -> None:
        self.fired["blackout"] += 1
        for each in self.world.machines.values():
            each.disk.faults.capacity_bytes = None
            each.cut_power(self.rng.uniform(0.1, 2))

    def _stop(self, machine: Machine) -> None:
        self.fired["stop"] += machine.is_up
        machine.stop()

    def _pause(self, machine: Machine) -> None:
        process = machine.freeze()
        if process is not None:
            self.fired["pause"] += 1
            self._for_a_while(process.thaw)

    def _jump(self, machine: Machine) -> None:
        self.fired["clock jump"] += 1
        machine.jump(self.rng.choice((-1, 1)) * self.rng.choice((0.002, 0.1, 0.4)))

    # Disks

    def _slow_disk(self, machine: Machine) -> None:
        self.fired["slow disk"] += 1
        machine.disk_slowness = self.rng.choice((20, 300))

        def undo() -> None:
            machine.disk_slowness = 1.0

        self._for_a_while(undo)

    def _full_disk(self, machine: Machine) -> None:
        """Counted by the disk, when something does not fit; so is what follows."""
        faults = machine.disk.faults
        if machine.is_up:
            faults.capacity_bytes = machine.disk.used_bytes() + self.rng.randint(0, 2000)

        def undo() -> None:
            faults.capacity_bytes = None

        self._for_a_while(undo)

    def _fail_sync(self, machine: Machine) -> None:
        machine.disk.faults.sync_error_in = self.rng.randint(1, 10)

    def _fail_write(self, machine: Machine) -> None:
        machine.disk.faults.write_error_in = self.rng.randint(1, 10)

    def _short_writes(self, machine: Machine) -> None:
        faults = machine.disk.faults
        faults.has_short_writes = True

        def undo() -> None:
            faults.has_short_writes = False

        self._for_a_while(undo)

    def _save(self, machine: Machine) -> None:
        """No fault: a memtable is flushed, so that tables and compactions are met by what else happens."""
        if machine.is_up and machine.process is not None and not machine.process.is_frozen:
            self.fired["save"] += 1
            machine.process.node.jobs.ask_save("save")

    # Clients

    def _slow_clients(self, machine: Machine) -> None:
        self.fired["slow clients"] += 1
        line = self.world.lines[machine.name]
        line.extra_s = self.rng.choice((0.05, 0.5))

        def undo() -> None:
            line.extra_s = 0.0

        self._for_a_while(undo)

    def _cut_clients(self, machine: Machine) -> None:
        self.fired["clients cut off"] += 1
        line = self.world.lines[machine.name]
        line.has_cut = True

        def undo() -> None:
            line.has_cut = False

        self._for_a_while(undo, 8)

    def _break_clients(self, machine: Machine) -> None:
        if machine.process is not None:
            for connection in machine.process.connections:
                if not connection.has_ended and self.rng.random() < 0.5:
                    self.fired["broken client connection"] += 1
                    connection.reset()

    # The network between nodes

    def _peer(self, machine: Machine) -> str:
        return self.rng.choice([name for name in self.world.names if name != machine.name])

    def _cut_one_way(self, machine: Machine) -> None:
        self.fired["one-way cut"] += 1
        link = self.world.network.link(machine.name, self._peer(machine))
        link.is_cut = True

        def undo() -> None:
            link.is_cut = False

        self._for_a_while(undo, 8)

    def _partition(self, machine: Machine) -> None:
        self.fired["partition"] += 1
        names = list(self.world.names)
        self.rng.shuffle(names)
        size = self.rng.randint(1, len(names) - 1)
        group, others = names[:size], names[size:]
        network = self.world.network
        network.isolate(group, others)
        links = [network.link(*pair) for a in group for b in others for pair in ((a, b), (b, a))]

        def undo() -> None:
            for link in links:
                link.is_cut = False

        self._for_a_while(undo, 10)

    def _slow_link(self, machine: Machine) -> None:
        link = self.world.network.link(machine.name, self._peer(machine))
        link.extra_s = self.rng.choice((0.02, 0.3, 2.0))
        link.bytes_per_s = 1e5

        def undo() -> None:
            link.extra_s, link.bytes_per_s = 0.0, 100e6

        self._for_a_while(undo)

    def _lossy_link(self, machine: Machine) -> None:
        link = self.world.network.link(machine.name, self._peer(machine))
        link.loss, link.repetition, link.reordering = 0.3, 0.3, 0.5
        plan = self.world.plan

        def undo() -> None:
            link.loss, link.repetition = plan.loss, plan.repetition
            link.reordering = plan.reordering

        self._for_a_while(undo)

    def _break_connection(self, machine: Machine) -> None:
        self.world.network.break_connection(machine.name, self._peer(machine))

    # Disks that are not what they were

    async def _swap_disk(self) -> None:
        """When all are well and nothing is under way, a disk is lost, or an old one comes back.

        Nothing else goes wrong until the others have filled it again: quorums promise nothing for two
        lost disks, and nobody can know that an old one is not what it was.
        """
        world = self.world
        self.heal()
        with trio.move_on_after(SETTLE_S):
            world.gate.close()
            try:
                while world.gate.inside or not world.is_well:  # noqa: ASYNC110  Nobody tells.
                    await trio.sleep(0.2)
                if world.plan.disk_fault == "lost":
                    self.lose_disk(world.machines[self.rng.choice(world.names)])
                elif self._backup is not None:
                    self.restore()
            finally:
                world.gate.open()
        with trio.move_on_after(SETTLE_S):
            while not world.is_well:  # noqa: ASYNC110  As above.
                await trio.sleep(0.2)

    def _back_up(self) -> None:
        """Of a machine that runs: the copy of a folder that nobody uses would pass for it."""
        up = [machine for machine in self.world.machines.values() if machine.is_up]
        if up:
            self.back_up(self.rng.choice(up))

    def lose_disk(self, machine: Machine) -> None:
        """The machine comes back with an empty disk."""
        self.fired["lost disk"] += 1
        machine.cut_power(1.0)
        machine.disk = machine.new_disk()

    def back_up(self, machine: Machine) -> None:
        """Remember the disk as it is now."""
        self._backup = machine, copy.deepcopy(machine.disk)

    def restore(self) -> None:
        """The machine comes back with the disk that was remembered, as a power cut would leave it."""
        assert self._backup is not None
        machine, disk = self._backup
        self.fired["old disk"] += 1
        machine.cut_power(1.0)
        disk.faults.fired = self.fired
        machine.disk = disk.crash()
