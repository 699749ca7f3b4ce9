"""How much of a node's memory each part of its store may fill: memtables, caches, and the log that backs a memtable.

Core: the configuration in, the store's settings out.
"""

from __future__ import annotations

from typing import Final, cast

from engine.compression import Compression
from engine.store import StoreSettings
from respkv.config import Config

LOG_BYTES_PER_MEMTABLE_BYTE: Final = 2
MEMTABLE_COUNT: Final = 2


def store_settings(config: Config) -> StoreSettings:
    """What `Store` is opened with, and resized to after CONFIG SET."""
    memory = config.memory
    # One is being filled while another waits for its flush.
    memtable = int(memory.bytes_max * memory.memtable_share) // MEMTABLE_COUNT
    return StoreSettings(
        memtable_bytes=memtable,
        row_cache_bytes=int(memory.bytes_max * memory.row_cache_share),
        block_cache_bytes=int(memory.bytes_max * memory.block_cache_share),
        log_bytes_max=memtable * LOG_BYTES_PER_MEMTABLE_BYTE,
        block_bytes=config.storage.block_bytes,
        compression=cast(Compression, config.storage.compression),
        compaction_bytes_per_s=config.storage.compaction_bytes_per_s,
    )
