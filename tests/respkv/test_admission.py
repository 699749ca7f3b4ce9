"""When writes are refused because what they wait for does not come."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

from respkv.admission import DISK_FULL, MEMORY_FULL, ROOM_KEPT_BYTES, Admission
from respkv.config import Config


def refusal(store: dict[str, Any], *, flushes: bool, compactions: bool) -> object:
    disk = SimpleNamespace(free_bytes=lambda: 1 << 40, total_bytes=lambda: 1 << 41)
    node: Any = SimpleNamespace(
        runner=SimpleNamespace(gate=None),
        store=SimpleNamespace(disk=disk, log=SimpleNamespace(position=0), **store),
        clock_ns=lambda: 0,
        refusal=None,
        config=Config(),
        log=SimpleNamespace(error=lambda *_, **__: None, info=lambda *_, **__: None),
    )
    admission = Admission(node)
    admission.are_flushes_failing, admission.are_compactions_failing = flushes, compactions
    admission.check_disk()
    return node.refusal


def test_writes_are_refused_only_if_what_they_wait_for_fails() -> None:
    """A compaction that fails again and again is no reason to refuse what waits a moment for a flush."""
    seen = set()
    for waits in product((False, True), repeat=2):
        for flushes, compactions, freezes in product((False, True), repeat=3):
            store = {
                "waits_for_flush": waits[0],
                "waits_for_compaction": waits[1],
                "freeze_failure": OSError() if freezes else None,
            }
            is_in_vain = (waits[0] and (flushes or freezes)) or (waits[1] and compactions)
            expected = MEMORY_FULL if is_in_vain else None
            assert refusal(store, flushes=flushes, compactions=compactions) is expected
            seen.add(expected)
    assert len(seen) == 2


def test_writes_are_refused_beyond_a_share_of_the_disk_and_compaction_goes_on() -> None:
    total = 1000 << 30
    free = 0
    store = SimpleNamespace(
        disk=SimpleNamespace(free_bytes=lambda: free, total_bytes=lambda: total),
        log=SimpleNamespace(position=0),
        waits_for_flush=False,
        waits_for_compaction=False,
    )
    said: list[str] = []
    node: Any = SimpleNamespace(
        runner=SimpleNamespace(gate=None),
        store=store,
        clock_ns=lambda: 0,
        refusal=None,
        config=Config(),
        log=SimpleNamespace(error=lambda what, **_: said.append(what), info=lambda *_, **__: None),
    )
    admission = Admission(node)
    for share, free_share, expected in (
        (0.95, 0.051, None),
        (0.95, 0.049, DISK_FULL),
        (0.96, 0.049, None),
        (0.96, 0.039, DISK_FULL),
        (1.0, 0.0, None),
        (0.5, 0.49, DISK_FULL),
    ):
        node.config.storage.disk_used_max = share
        free = int(total * free_share)
        admission.check_disk()
        assert node.refusal is expected, (share, free_share)
        assert admission.room_bytes() == max(0, free - (ROOM_KEPT_BYTES if share < 1.0 else 0))
    assert said == ["writes are refused"] * 3
