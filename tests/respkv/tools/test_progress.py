"""Progress: how often it speaks, and what it says."""

from __future__ import annotations

import pytest

from respkv.tools.progress import Progress, bytes_text, count_text


class Screen:
    """Takes the place of a terminal and a clock."""

    def __init__(self, *, is_terminal: bool, total: int = 1000) -> None:
        self.said: list[str] = []
        self.now_s = 100.0
        self.progress = Progress(
            "copy", total, shown=count_text, write=self.said.append,
            clock_s=lambda: self.now_s, is_terminal=is_terminal,
        )  # fmt: skip

    def step(self, count: int, seconds: float) -> None:
        self.now_s += seconds
        self.progress.add(count)


def test_a_line_now_and_then_when_nobody_watches() -> None:
    screen = Screen(is_terminal=False)
    for _ in range(8):
        screen.step(100, 2.5)
    screen.progress.end()
    assert screen.said == [
        "copy: 400 of 1,000 (40 %), 40/s, 15 s left\n",
        "copy: 800 of 1,000 (80 %), 40/s, 5 s left\n",
    ]


def test_a_terminal_s_line_is_rewritten_and_taken_away() -> None:
    screen = Screen(is_terminal=True)
    screen.step(500, 0.1)
    assert screen.said == []
    screen.step(400, 0.9)
    screen.step(100, 1)
    first, second, last = *screen.said, None
    screen.progress.end()
    assert first == "\rcopy: 900 of 1,000 (90 %), 900/s, 0 s left"
    assert second == "\rcopy: 1,000 of 1,000 (100 %), 500/s".ljust(len(first))
    assert last is None
    assert screen.said[-1] == "\r" + " " * (len(first) - 1) + "\r"


def test_an_unknown_total_gives_a_rate_only() -> None:
    screen = Screen(is_terminal=False, total=0)
    screen.step(50, 10)
    assert screen.said == ["copy: 50, 5/s\n"]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")]
)
def test_bytes_are_shown_in_their_unit(count: int, text: str) -> None:
    assert bytes_text(count) == text
