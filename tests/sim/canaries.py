"""Planted bugs: each takes the place of one function of the product, and a campaign has to find it.

    with CANARIES["early reply"].planted():
        ...

A canary is written against the function as it is: `Canary.make` gets the original and returns what stands in
its place. `planted` refuses if nothing is replaced, so that none does nothing after a change of the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from engine.log import CommitLog
from respkv.node import Node


@dataclass(frozen=True, slots=True)
class Canary:
    """A bug in place of `owner.name`, which worlds of at least `nodes` nodes can show."""

    text: str
    owner: Any
    name: str
    make: Callable[[Any], Any]
    nodes: int = 1

    @contextmanager
    def planted(self) -> Iterator[None]:
        original = vars(self.owner)[self.name]
        replacement = self.make(original)
        assert replacement is not original
        setattr(self.owner, self.name, replacement)
        try:
            yield
        finally:
            setattr(self.owner, self.name, original)


def _early_reply(original: property) -> property:
    """Replies leave before the log is synced."""
    return property(lambda node: 1 << 62)


def _lazy_sync(original: Callable[[CommitLog], int]) -> Callable[[CommitLog], int]:
    """The log says that it is synced, and has not asked the disk."""

    def sync(log: CommitLog) -> int:
        log.synced = log.position
        return log.synced

    return sync


CANARIES = {
    "early reply": Canary(
        "an acknowledgement before the log is durable", Node, "releasable", _early_reply
    ),
    "lazy sync": Canary("the commit log is not synced", CommitLog, "sync", _lazy_sync),
}
