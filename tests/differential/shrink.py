"""A smaller run that still shows a difference.

Core: it is handed the scenes that came before and a function that plays some of them, and then what differed, on empty
servers, and says whether it still differs. It never claims what it did not see: what it returns was seen to fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .command import Scene

# Their scenes matter to every key.
_GLOBAL = frozenset({"SWAPDB", "FLUSHALL", "FLUSHDB", "CONFIG SET"})
# They carry a value from one key to another.
_CARRIERS = frozenset({"RENAME", "RENAMENX", "COPY", "BITOP"})

StillDiffers = Callable[[Sequence[Scene]], bool]


def relevant(history: Sequence[Scene], keys: Iterable[bytes]) -> list[Scene]:
    """The scenes that touch these keys, or keys from which values came to them."""
    wanted = set(keys)
    kept: list[Scene] = []
    for scene in reversed(history):
        touched = {key for call in scene for key in call.keys}
        names = {call.name for call in scene}
        if names & _GLOBAL or touched & wanted:
            kept.append(scene)
            if names & _CARRIERS:
                wanted |= touched
    kept.reverse()
    return kept


def shrink(
    scenes: Sequence[Scene], still_differs: StillDiffers, is_late: Callable[[], bool]
) -> list[Scene] | None:
    """The fewest scenes found that make the difference; None when it did not come back in time.

    First none at all, then the latest ones, doubling their number; then all of these that can go, in halves.
    """
    length = 0
    while not is_late():
        tail = list(scenes[len(scenes) - length :])
        if still_differs(tail):
            return _without_superfluous(tail, still_differs, is_late)
        if length >= len(scenes):
            return None
        length = min(len(scenes), max(1, length * 2))
    return None


def _without_superfluous(
    scenes: list[Scene], still_differs: StillDiffers, is_late: Callable[[], bool]
) -> list[Scene]:
    step = len(scenes)
    while step > 1:
        step = (step + 1) // 2
        start = 0
        while start < len(scenes) and not is_late():
            rest = scenes[:start] + scenes[start + step :]
            if still_differs(rest):
                scenes = rest
            else:
                start += step
    return scenes
