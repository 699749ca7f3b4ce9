"""Time in a simulation: trio's scheduler made deterministic, tasks that can be frozen, and what is due when.

Not a clock of a node: each machine has its own, which may be wrong (`machine.py`).

`deterministic(seed)` makes trio choose by a seed among the tasks that may run. It sets names of trio that
are private, so trio's version is pinned and tests/sim/test_timeline.py guards them.

A task belongs to the process in `OWNER`, a context variable that its children inherit. While the owner is
frozen, trio's wake-ups of its tasks are put aside: the process stands still wherever it was, as after
SIGSTOP, while timers and sockets go on without it.

`Timeline` is the time, and calls plain functions at whole milliseconds, in the order in which they were
asked for. No task is woken for that: a task per message, or one for all, would take most of the time.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import trio
import trio.testing
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
    """What is due when, and what time it is. `run` has to run for anything to be called.

    It is made within a run whose clock is a MockClock that jumps, and takes that clock over: time is an
    attribute, and what is due is called by the clock when it jumps, and not by a task that would have to be
    woken for each millisecond.
    """

    def __init__(self) -> None:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        self.now_s = clock.current_time()
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._asked = 0
        self._runner = scheduler.GLOBAL_RUN_CONTEXT.runner
        self._deadlines = self._runner.deadlines
        self._is_running = False
        self._failure: BaseException | None = None
        self._has_failed = trio.Event()
        clock.current_time = lambda: self.now_s  # type: ignore[method-assign]
        clock.deadline_to_sleep_time = self._until  # type: ignore[method-assign]
        clock._autojump = self._jump  # type: ignore[method-assign]

    @property
    def tick(self) -> int:
        """The millisecond that is going on."""
        return int(self.now_s * TICKS_PER_S + 1e-6)

    def after(self, delay_s: float, call: Callable[[], None]) -> int:
        """Call a function at the next whole millisecond after `delay_s`; returns which one."""
        due = int((self.now_s + delay_s) * TICKS_PER_S + 1e-6) + 1
        self.at(due, call)
        return due

    def at(self, tick: int, call: Callable[[], None]) -> None:
        """Call a function in a millisecond to come."""
        assert tick > self.tick, (tick, self.tick)
        self._asked += 1
        heapq.heappush(self._due, (tick, self._asked, call))

    async def run(self) -> None:
        """Let what is due be called, until cancelled. Raises what a call has raised."""
        self._is_running = True
        try:
            await self._has_failed.wait()
            assert self._failure is not None
            raise self._failure
        finally:
            self._is_running = False

    def _until(self, deadline: float) -> float:
        """How long trio should wait for a deadline: it jumps instead, if that is not now."""
        return max(0.0, deadline - self.now_s)

    def _jump(self) -> None:
        """Nothing can run: go to the next moments at which something is due, until some task can run.

        trio calls it within its loop, so that an error here would be one of trio's; and it would look at
        deadlines in the next turn only. Most of what is due wakes no task, and a turn of trio's loop for each
        moment would take long.
        """
        can_run = self._runner.runq
        while not can_run and self._go_on():
            pass

    def _go_on(self) -> bool:
        """Do what is due at the next moment; False if there is none."""
        due = self._due if self._is_running else []
        next_s = self._deadlines.next_deadline()
        if due:
            next_s = min(next_s, due[0][0] / TICKS_PER_S)
        if next_s == float("inf"):
            return False
        self.now_s = max(self.now_s, next_s)
        tick = self.tick
        try:
            while due and due[0][0] <= tick:
                heapq.heappop(due)[2]()
        except BaseException as error:
            self._failure, self._is_running = error, False
            self._has_failed.set()
        self._deadlines.expire(self.now_s)
        return True
