"""Work that takes long and must not stop the loop: generators that are advanced a little in each tick.

It knows nothing of commands. A task's steps yield

    None          a little was done: others may be served
    a PageFault   a page must be read before it can go on
    LATER         it waits for something, and whoever brings it calls `wake`; it may be woken for nothing

and end by returning, or by raising ReplyError, which `fail` is told. A task that runs out of time is told
TIMED_OUT, unless it has ended before.

Core: time is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from math import inf
from typing import TYPE_CHECKING, Final

from engine.errors import EngineError
from engine.store import NO_PINS, PageFault, Pins
from respkv.reply import ReplyError

if TYPE_CHECKING:
    from respkv.node import Node


class Later:
    """See LATER."""


LATER: Final = Later()
Step = PageFault | Later | None
Steps = Generator[Step, None, None]


class Task:
    """One generator, and how it is doing."""

    __slots__ = ("deadline_s", "fail", "is_over", "is_ready", "pins", "steps", "until_s")

    steps: Steps

    def __init__(self, deadline_s: float, fail: Callable[[ReplyError], None]) -> None:
        self.deadline_s = deadline_s
        self.fail = fail
        self.pins: Pins = {}
        self.is_ready = False  # In the queue of those that go on.
        self.is_over = False
        self.until_s = inf  # When it is woken by the clock.


class Tasks:
    """All tasks of a node."""

    def __init__(self, node: Node, late: ReplyError) -> None:
        """`late` is what a task fails with that ran out of time."""
        self._node = node
        self._late = late
        self._ready: deque[Task] = deque()
        self._tasks: dict[Task, None] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def has_work(self) -> bool:
        return bool(self._ready)

    def start(self, task: Task) -> None:
        """Take up a task, whose steps are set."""
        self._tasks[task] = None
        self.wake(task)

    def wake(self, task: Task) -> None:
        """What it waited for may be there."""
        if not task.is_ready and not task.is_over:
            task.is_ready = True
            task.until_s = inf
            self._ready.append(task)

    def work(self, is_time_up: Callable[[], bool]) -> None:
        """Give each task that is ready a step, round and round, until time is up."""
        ready = self._ready
        while ready:
            task = ready.popleft()
            task.is_ready = False
            if not task.is_over:
                self._advance(task)
            if is_time_up():
                return

    def _advance(self, task: Task) -> None:
        store = self._node.store
        store.pinned = task.pins
        try:
            step = next(task.steps)
        except StopIteration:
            self._end(task)
            return
        except ReplyError as error:
            error.__traceback__ = None
            self._end(task)
            task.fail(error)
            return
        except EngineError as error:
            self._end(task)
            task.fail(self._node.data_error(error))
            return
        except Exception as bug:
            self._node.log.error("a command on the whole keyspace failed", exc_info=bug)
            self._end(task)
            task.fail(ReplyError(f"ERR internal error: {type(bug).__name__}"))
            return
        finally:
            store.pinned = NO_PINS
        if step is None:
            if task.pins:
                task.pins = {}
            self.wake(task)
        elif isinstance(step, PageFault):
            self._fetch(task, step)

    def _fetch(self, task: Task, fault: PageFault) -> None:
        def resume(now_ms: int, failure: ReplyError | None) -> None:
            if failure is None:
                self.wake(task)
            elif not task.is_over:
                self.cancel(task)
                task.fail(failure)

        self._node.fetch(fault, task.pins, resume)

    def cancel(self, task: Task) -> None:
        """Nobody wants it any more."""
        if not task.is_over:
            self._end(task)
            task.steps.close()

    def _end(self, task: Task) -> None:
        task.is_over = True
        self._tasks.pop(task, None)

    def tick(self, now_s: float) -> None:
        """Wake those whose time has come, and give up those that have none left."""
        for task in list(self._tasks):
            if task.deadline_s <= now_s:
                self.cancel(task)
                task.fail(self._late)
            elif task.until_s <= now_s:
                self.wake(task)
