"""What becomes of segments of a log that are not needed any more, at once: a store may take its time."""

from __future__ import annotations

from engine.log import CommitLog


def remove_before(log: CommitLog, position: int) -> None:
    """Have the log forget its segments below `position`, and remove their files."""
    for name in log.forget_before(position):
        log._disk.remove(name)
