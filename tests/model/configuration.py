"""The settings under which the store is compared with the dict: each makes something else common.

Core: plain data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from engine.store import StoreSettings

SLOT_COUNT: Final = 40
WEIGHTS: Final = {
    "put": 20,
    "add": 10,
    "add_late": 5,
    "delete": 6,
    "forget": 4,
    "drop_tags": 0.4,
    "drop_slots": 0.8,
    "write": 14,
    "sync": 5,
    "freeze": 2,
    "work": 25,
    "abandon": 0.5,
    "get": 10,
    "scan": 3,
    "next_slot": 3,
    "begin_scan": 1,
    "go_on_with_scan": 6,
    "pass_time": 4,
    "move_horizon": 0,
    "resize": 0.3,
    "take_snapshot": 0.3,
    "open_snapshot": 0.5,
    "reopen": 0.3,
    "kill": 0.2,
    "crash": 0.3,
}
"""The operations of `tests/model/machine.py`, and how often each comes."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings, how often each operation comes, and how many rows there are."""

    settings: StoreSettings
    weights: dict[str, float]
    row_count: int = 60
    value_bytes_max: int = 150


_TINY: Final = StoreSettings(
    memtable_bytes=6 << 10,
    row_cache_bytes=8 << 10,
    block_cache_bytes=32 << 10,
    log_bytes_max=12 << 10,
    block_bytes=256,
    slot_count=SLOT_COUNT,
    table_bytes=1 << 10,
    level_1_bytes=2 << 10,
    l0_count=2,
)

CONFIGURATIONS: Final = {
    "tiny": Configuration(_TINY, WEIGHTS),
    # Some levels of many tables.
    "deep": Configuration(
        replace(_TINY, level_1_bytes=600, table_bytes=400), WEIGHTS | {"work": 50}, row_count=250
    ),
    # Nothing is flushed but by hand, and much stands in each table.
    "large": Configuration(
        replace(_TINY, memtable_bytes=1 << 20, log_bytes_max=1 << 20, block_bytes=8192),
        WEIGHTS,
        row_count=400,
    ),
    "plain": Configuration(replace(_TINY, compression="none"), WEIGHTS),
    "zstd": Configuration(
        replace(_TINY, compression="zstd", table_bytes=8 << 10), WEIGHTS, value_bytes_max=600
    ),
    "uncached": Configuration(
        replace(_TINY, row_cache_bytes=0, block_cache_bytes=0, block_bytes=1), WEIGHTS
    ),
    # The dead may be forgotten only as far as the owner says, and deltas come late.
    "horizon": Configuration(
        _TINY, WEIGHTS | {"move_horizon": 2, "add_late": 15, "delete": 12}, row_count=30
    ),
    "drops": Configuration(
        _TINY, WEIGHTS | {"drop_tags": 3, "drop_slots": 6, "crash": 1}, row_count=100
    ),
}
