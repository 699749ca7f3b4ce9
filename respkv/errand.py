"""Work for a thread, in the shape of a page fault: how a sliced command waits for something that blocks.

A sliced command that yields an `Errand` is suspended like one that yields a fault: the node runs `fetch` in a thread,
serves others meanwhile, and then lets the command go on behind its `yield`. What the work found out it leaves in
variables of the command. It must raise nothing, and touch nothing that the serving thread may change.

    failures: list[ConfigError] = []
    yield Errand(lambda: write_file(path, failures))
    if failures: ...

Inside EXEC nothing can be suspended: there the command does the work itself (`run`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from engine.store import PageFault, Pins

if TYPE_CHECKING:
    from respkv.context import Context


class Errand(PageFault):
    """See the module's docstring."""

    def __init__(self, work: Callable[[], object]) -> None:
        Exception.__init__(self)
        self._work = work

    def fetch(self) -> None:
        self._work()

    def arrive(self, pins: Pins | None = None) -> None:
        """Nothing was read."""


def run(ctx: Context, work: Callable[[], object]) -> Iterator[Errand]:
    """Have work done by a thread, or at once inside EXEC. For `yield from`."""
    if ctx.is_atomic:
        work()
    else:
        yield Errand(work)
