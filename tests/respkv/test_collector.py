"""The cyclic collector of a node: it looks often at what is new, so that no look is long."""

from __future__ import annotations

import gc
from pathlib import Path

from respkv.node import GC_INTERVAL_S
from tests.respkv.serving import serving, until

LOOKS = 3


async def test_what_is_new_is_looked_through_while_nothing_else_asks_for_it(tmp_path: Path) -> None:
    """Else it piles up as long as as much is freed as is made, and a new memtable pays for all of it."""
    looks: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "stop":
            looks.append(info["generation"])

    async with serving(tmp_path):
        gc.callbacks.append(note)
        try:
            await until(lambda: looks.count(1) >= LOOKS, GC_INTERVAL_S * LOOKS * 10)
        finally:
            gc.callbacks.remove(note)
    assert 2 not in looks
