"""Cutting a failing run down: what is left still fails, and nothing in it can go."""

from __future__ import annotations

from collections.abc import Sequence

from .command import Call, Scene
from .shrink import relevant, shrink


def scene(name: str, *keys: bytes) -> Scene:
    return (Call((name.encode(), *keys), name=name),)


HISTORY = [
    scene("SET", b"int:1"),
    scene("SET", b"int:2"),
    *[scene("GET", b"int:3")] * 30,
    scene("APPEND", b"int:1"),
]


def test_what_touches_other_keys_is_left_out() -> None:
    assert relevant(HISTORY, {b"int:1"}) == [HISTORY[0], HISTORY[-1]]


def test_keys_are_followed_through_renames_and_whole_databases_kept() -> None:
    history = [
        scene("SET", b"int:1"),
        scene("SWAPDB"),
        scene("RENAME", b"int:1", b"int:2"),
        scene("SET", b"int:3"),
    ]
    assert relevant(history, {b"int:2"}) == history[:3]


def test_only_what_is_needed_stays() -> None:
    needed = {0, 7, 40}
    scenes = [scene("SET", b"%d" % n) for n in range(50)]

    def differs(kept: Sequence[Scene]) -> bool:
        return needed <= {int(s[0].arguments[1]) for s in kept}  # type: ignore[arg-type]

    found = shrink(scenes, differs, lambda: False)
    assert found == [scenes[n] for n in sorted(needed)]


def test_nothing_before_is_needed_when_the_command_alone_differs() -> None:
    assert shrink(HISTORY, lambda kept: True, lambda: False) == []


def test_a_difference_that_does_not_come_back_is_not_claimed() -> None:
    assert shrink(HISTORY, lambda kept: False, lambda: False) is None
    assert shrink(HISTORY, lambda kept: True, lambda: True) is None
