"""The scheduler, frozen tasks and the timeline, and the private names of trio that they stand on."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable

import pytest
import trio
import trio.testing
from trio._core import _run as scheduler

from tests.sim.simulated import simulated
from tests.sim.timeline import OWNER, Owner, Timeline, deterministic


def test_trio_still_has_what_is_taken_of_it() -> None:
    """If this fails, trio was changed: look at `_ALLOW_DETERMINISTIC_SCHEDULING`, `_r` and `reschedule` again."""
    assert trio.__version__ == "0.35.0"
    assert isinstance(scheduler._ALLOW_DETERMINISTIC_SCHEDULING, bool)
    assert isinstance(scheduler._r, random.Random)
    source = inspect.getsource(scheduler)
    assert "batch.sort(key=lambda t: t._counter)\n                _r.shuffle(batch)" in source
    assert "self.runq.append(task)" in inspect.getsource(scheduler.Runner.reschedule)


def test_everything_is_as_before_afterwards() -> None:
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r, scheduler.Runner.reschedule
    with pytest.raises(ZeroDivisionError), deterministic(1):
        _ = 1 // 0
    after = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r, scheduler.Runner.reschedule
    assert after == before


def order_of(seed: int) -> list[int]:
    order: list[int] = []

    async def note(number: int) -> None:
        for _ in range(3):
            order.append(number)
            await trio.lowlevel.checkpoint()

    async def body(timeline: Timeline) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(note, number)

    simulated(body, seed=seed)
    return order


def test_a_seed_decides_the_order_of_tasks() -> None:
    assert order_of(1) == order_of(1)
    assert len({tuple(order_of(seed)) for seed in range(5)}) == 5


def call_later(timeline: Timeline, call: Callable[[], None]) -> None:
    timeline.after(0, call)


def test_the_timeline_calls_in_order() -> None:
    called: list[tuple[int, str]] = []

    async def body(timeline: Timeline) -> None:
        def call(name: str) -> None:
            called.append((timeline.tick, name))

        timeline.after(0.01, lambda: call("late"))
        timeline.after(0.0, lambda: call("first"))
        timeline.at(3, lambda: call("third"))
        timeline.at(3, lambda: call_later(timeline, lambda: call("made there")))
        await trio.sleep(1)

    simulated(body)
    assert called == [(1, "first"), (3, "third"), (4, "made there"), (11, "late")]


def test_what_is_asked_for_while_it_sleeps_is_not_late() -> None:
    called = []

    async def body(timeline: Timeline) -> None:
        timeline.after(5, lambda: None)
        await trio.sleep(1)
        timeline.after(0.5, lambda: called.append(timeline.tick))
        await trio.sleep(1)

    simulated(body)
    assert called == [1501]


async def count(ticks: list[float], owner: Owner) -> None:
    OWNER.set(owner)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tick, ticks)


async def _tick(ticks: list[float]) -> None:
    while True:
        await trio.sleep(1)
        ticks.append(trio.current_time())


def test_frozen_tasks_stand_still_and_others_do_not() -> None:
    owner, other = Owner(), Owner()
    frozen: list[float] = []
    running: list[float] = []

    async def body(timeline: Timeline) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count, frozen, owner)
            nursery.start_soon(count, running, other)
            await trio.sleep(2.5)
            owner.freeze()
            await trio.sleep(4)
            owner.thaw()
            await trio.sleep(2)
            nursery.cancel_scope.cancel()

    simulated(body)
    assert running == [1, 2, 3, 4, 5, 6, 7, 8]
    assert frozen == [1, 2, 6.5, 7.5]  # A late timer, as after SIGSTOP.


def test_a_frozen_task_can_be_cancelled_when_it_is_thawed() -> None:
    owner = Owner()
    ticks: list[float] = []

    async def body(timeline: Timeline) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count, ticks, owner)
            await trio.sleep(0.5)
            owner.freeze()
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
            owner.thaw()

    assert simulated(body) == 1.5
    assert ticks == []
