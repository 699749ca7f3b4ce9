"""Time in a simulation: trio's scheduler made deterministic, tasks that can be frozen, and what is due when.

Not a clock of a node: each machine has its own, which may be wrong (`machine.py`).

`deterministic(seed)` makes trio choose by a seed among the tasks that may run. It sets names of trio that
are private, so trio's version is pinned and tests/sim/test_timeline.py guards them.

A task belongs to the process in `OWNER`, a context variable that its children inherit. While the owner is
frozen, trio's wake-ups of its tasks are put aside: the process stands still wherever it was, as after
SIGSTOP, while timers and sockets go on without it.

`Timeline` calls plain functions at whole milliseconds, in the order in which they were asked for. There is
one task for all of them: a task per message would take most of the time.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import trio
from trio._core import _run as scheduler

TICKS_PER_S = 1000


class Owner:
    """Whom tasks belong to: a process of the simulation, which can be frozen."""

    def __init__(self) -> None:
        self.is_frozen = False
        self._parked: list[tuple[scheduler.Runner, scheduler.Task]] = []

    def freeze(self) -> None:
        self.is_frozen = True

    def thaw(self) -> None:
        """Let the tasks go on that were woken in the meantime."""
        self.is_frozen = False
        parked, self._parked = self._parked, []
        for runner, task in parked:
            runner.runq.append(task)

    def park(self, runner: scheduler.Runner, task: scheduler.Task) -> None:
        self._parked.append((runner, task))


OWNER: ContextVar[Owner | None] = ContextVar("OWNER", default=None)

_reschedule = scheduler.Runner.reschedule


def _reschedule_unless_frozen(
    runner: scheduler.Runner, task: scheduler.Task, next_send: object = scheduler._NO_SEND
) -> None:
    """As trio's own, but a frozen owner's task waits elsewhere than in the queue."""
    _reschedule(runner, task, next_send)  # type: ignore[arg-type]
    owner = task.context.get(OWNER)
    if owner is not None and owner.is_frozen:
        assert runner.runq.pop() is task
        owner.park(runner, task)


@contextmanager
def deterministic(seed: int | str) -> Iterator[None]:
    """Within this, `trio.run` gives the same run for the same seed, and owners can be frozen."""
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    scheduler._r = random.Random(f"scheduler-{seed}")
    scheduler.Runner.reschedule = _reschedule_unless_frozen  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        scheduler.Runner.reschedule = _reschedule  # type: ignore[method-assign]
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r = before  # type: ignore[misc]


class Timeline:
    """What is due when. `run` has to run for anything to happen."""

    def __init__(self) -> None:
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._asked = 0
        self._scope = trio.CancelScope()
        self._is_asleep = False

    @property
    def now_s(self) -> float:
        return trio.current_time()

    @property
    def tick(self) -> int:
        """The millisecond that is going on."""
        return int(trio.current_time() * TICKS_PER_S + 1e-6)

    def after(self, delay_s: float, call: Callable[[], None]) -> int:
        """Call a function at the next whole millisecond after `delay_s`; returns which one."""
        due = int((trio.current_time() + delay_s) * TICKS_PER_S + 1e-6) + 1
        self.at(due, call)
        return due

    def at(self, tick: int, call: Callable[[], None]) -> None:
        """Call a function in a millisecond to come."""
        assert tick > self.tick, (tick, self.tick)
        self._asked += 1
        heapq.heappush(self._due, (tick, self._asked, call))
        if self._is_asleep and tick / TICKS_PER_S < self._scope.deadline:
            self._scope.deadline = tick / TICKS_PER_S

    async def run(self) -> None:
        """Call what is due, until cancelled."""
        due = self._due
        while True:
            deadline = due[0][0] / TICKS_PER_S if due else float("inf")
            with trio.CancelScope(deadline=deadline) as self._scope:
                self._is_asleep = True
                await trio.sleep_forever()
            self._is_asleep = False
            tick = self.tick
            while due and due[0][0] <= tick:
                heapq.heappop(due)[2]()
