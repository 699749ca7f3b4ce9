"""What the tests of the simulation share: running a function under a virtual clock, from a seed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
import trio.testing

from tests.sim.timeline import Timeline, deterministic


def simulated(body: Callable[[Timeline], Awaitable[None]], *, seed: int = 1) -> float:
    """Run `body` with a timeline; returns the virtual time at its end."""

    async def main() -> float:
        timeline = Timeline()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(timeline.run)
            with trio.fail_after(1000):
                await body(timeline)
            nursery.cancel_scope.cancel()
        return trio.current_time()

    with deterministic(seed):
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
