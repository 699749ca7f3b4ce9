"""SAVE, BGSAVE and BGREWRITEAOF: what was asked, what came of it, and when data was last saved.

Every write is in the commit log before its reply leaves, so nothing depends on these. They exist for clients and tools
that know Redis: a *save* and a *rewrite* both mean that all of the log so far becomes tables, and SAVE that the log is
durable.

It flushes nothing itself. The node asks `wants_freeze`, freezes the memtable, tells `frozen` up to which log position
that was, and tells of every flush, asked for or not, when it begins and what it has brought into tables.

    asked -> (freeze) -> waits for its log position -> done
                     failed: it stays asked for, and the job is repeated

Core: times are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

Kind = Literal["save", "rewrite"]
KINDS: Final[tuple[Kind, Kind]] = ("save", "rewrite")


@dataclass(slots=True)
class Course:
    """How one of the two stands. `started_s` is None while none runs, `position` until the memtable is frozen."""

    started_s: int | None = None
    position: int | None = None
    count: int = 0  # Done since the start.
    last_duration_s: int = -1
    is_last_ok: bool = True


@dataclass(slots=True)
class Saves:
    """One per node. `changes` counts the writes that were made when data was last saved, at `last_s`."""

    last_s: int
    changes: int = 0
    courses: dict[Kind, Course] = field(default_factory=lambda: {kind: Course() for kind in KINDS})
    _changes_of_flush: int = 0

    def is_running(self, kind: Kind) -> bool:
        return self.courses[kind].started_s is not None

    def running_s(self, kind: Kind, now_s: int) -> int:
        """For how long it has run, -1 if it does not."""
        started_s = self.courses[kind].started_s
        return -1 if started_s is None else max(0, now_s - started_s)

    def ask(self, kind: Kind, now_s: int) -> None:
        """All that is in the log now shall become tables."""
        course = self.courses[kind]
        if course.started_s is None:
            course.started_s, course.position = now_s, None

    @property
    def wants_freeze(self) -> bool:
        return any(c.started_s is not None and c.position is None for c in self.courses.values())

    def frozen(self, position: int) -> None:
        """Everything below `position` is on its way to tables, or there already."""
        for course in self.courses.values():
            if course.started_s is not None and course.position is None:
                course.position = position

    def flush_begins(self, changes: int) -> None:
        """A memtable is being flushed; so many writes were made by now (a few of them after it was frozen)."""
        self._changes_of_flush = changes

    def flushed(self, position: int, now_s: int) -> None:
        """Everything below `position` is in tables."""
        self.last_s = now_s
        self.changes = max(self.changes, self._changes_of_flush)
        for course in self.courses.values():
            if course.started_s is None or course.position is None or position < course.position:
                continue
            course.last_duration_s = max(0, now_s - course.started_s)
            course.started_s = course.position = None
            course.count += 1
            course.is_last_ok = True

    def failed(self) -> None:
        """A job was lost. It will be repeated; until then INFO says so."""
        for course in self.courses.values():
            if course.started_s is not None:
                course.is_last_ok = False

    def synced(self, changes: int, now_s: int) -> None:
        """SAVE: the log is durable up to `changes` writes."""
        self.changes = changes
        self.last_s = now_s
        self.courses["save"].count += 1
        self.courses["save"].is_last_ok = True
