"""The engines behind one interface, each set up as alike as it can be (shell).

    respkv    `engine.store.Store`, driven as `respkv/node.py` does; jobs in a worker process
    leveldb   plyvel; jobs in a thread of the process
    rocksdb   rocksdict; jobs in threads of the process

All log each batch and force nothing to the disk, have the same write buffer, the same caches
(respkv's are half rows and half blocks), Bloom filters of ten bits a key, and blocks of 4 KiB. respkv
and RocksDB compress with LZ4, LevelDB with Snappy, since it has no LZ4. Everything else is as each
engine has it by default.

`prepare` and `prepare_keys` bring operations into the form that an engine's caller has at hand, and
are not measured. The loops stand in the engines, so that each has the same little overhead.

respkv's store never waits for the disk by itself: pages that the kernel does not hold are read in
place here, since nobody else is to be served meanwhile.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import trio

from bench.engine_workload import SLOT_BYTES, TINY_CACHE_BYTES, Key, Spec
from cluster.record import CODEC
from cluster.slot import Slot
from engine.disk import RealDisk
from engine.errors import EngineError
from engine.job import Job
from engine.store import NO_PINS, PageFault, Pins, Store, StoreSettings
from engine.worker import Worker
from respkv.version import VERSION

CODEC_PATH: Final = "cluster.record:CODEC"
BLOOM_BITS: Final = 10
BLOCK_BYTES: Final = 4096
SYNC_S: Final = 1.0
SCAN_ROWS: Final = 10_000
PACKAGES: Final = {"leveldb": "plyvel", "rocksdb": "rocksdict"}

# An engine of its own threads is quiet when it used less than this share of a core for this long.
QUIET_SHARE: Final = 0.02
QUIET_S: Final = 0.25
QUIET_TIMES: Final = 2
SETTLE_MAX_S: Final = 120.0


class EngineMissing(Exception):
    """The library of an engine is not installed; the text says how to get it."""


class Subject(Protocol):
    """An engine with an open folder. `prepare*` return what the other methods take."""

    note: str

    async def work(self) -> None:
        """Background work, for as long as the folder is open."""

    def prepare(self, ops: Sequence[tuple[Key, bytes]]) -> Any: ...
    def prepare_keys(self, keys: Sequence[Key]) -> Any: ...
    async def put(self, ops: Any, batch: int) -> None: ...
    def get(self, keys: Any) -> int:
        """Look all of them up; return how many were found."""

    def scan(self, slot: Slot) -> int:
        """Read all rows of a slot in order; return how many there were."""

    async def settle(self) -> bool:
        """Wait until flushes and compactions have ended. False if they did not in time."""

    def worker_pid(self) -> int | None: ...
    async def close(self) -> None: ...


class Respkv:
    """respkv's own store."""

    def __init__(self, spec: Spec) -> None:
        caches = spec.cache_bytes if spec.cache == "large" else TINY_CACHE_BYTES
        settings = StoreSettings(
            memtable_bytes=spec.write_buffer_bytes,
            row_cache_bytes=caches // 2,
            block_cache_bytes=caches // 2,
            log_bytes_max=2 * spec.write_buffer_bytes,
            block_bytes=BLOCK_BYTES,
            compression="lz4",
        )
        self.store = Store.open(
            RealDisk(spec.folder),
            CODEC,
            settings,
            initial_state=b"",
            observe=lambda slot, row, raw: None,
            restore=lambda state: None,
        )
        self.note = "LZ4"
        self._worker = Worker(spec.folder, CODEC_PATH)
        self._wake = trio.Event()
        self._idle = trio.Event()
        self._installed = trio.Event()
        self._manifest = trio.Lock()
        self._last_pid: int | None = None

    async def work(self) -> None:
        store = self.store
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._do_jobs, store.next_flush)
                nursery.start_soon(self._do_jobs, self._next_compaction)
                nursery.start_soon(self._sync_sealed)
        finally:
            self._last_pid = self._worker.pid
            with trio.CancelScope(shield=True):
                await self._worker.stop()

    async def _do_jobs(self, next_job: Callable[[int], Job | None]) -> None:
        store = self.store
        while True:
            while next_job == store.next_flush and store.shorten():
                await trio.lowlevel.checkpoint()
            job = next_job(time.time_ns() // 1_000_000)
            if job is None:
                await self._wake.wait()
                continue
            result = await self._worker.run(job)
            async with self._manifest:
                prepared = store.prepare(job, result)
                await trio.to_thread.run_sync(store.write_manifest, prepared)
                store.install(job, result, prepared)
            self._installed.set()
            self._installed = trio.Event()
            self._ask()

    def _next_compaction(self, now_ms: int) -> Job | None:
        store = self.store
        job = store.next_compaction(now_ms)
        if job is None and not store.frozen and not store.is_busy:
            self._idle.set()
        return job

    def _ask(self) -> None:
        """Have both kinds of jobs asked for again."""
        self._wake.set()
        self._wake = trio.Event()

    async def _sync_sealed(self) -> None:
        """As a node with `log.fsync = no`: only sealed segments are forced to the disk."""
        log = self.store.log
        while True:
            await trio.sleep(SYNC_S)
            if log.synced < log.segment.base:
                await trio.to_thread.run_sync(log.sync)

    def prepare(self, ops: Sequence[tuple[Key, bytes]]) -> list[tuple[Slot, bytes, bytes]]:
        return [(_slot(key), key[SLOT_BYTES:], value) for key, value in ops]

    def prepare_keys(self, keys: Sequence[Key]) -> list[tuple[Slot, bytes]]:
        return [(_slot(key), key[SLOT_BYTES:]) for key in keys]

    async def put(self, ops: list[tuple[Slot, bytes, bytes]], batch: int) -> None:
        store = self.store
        apply, write = store.apply, store.write
        for start in range(0, len(ops), batch):
            for slot, row, raw in ops[start : start + batch] if batch > 1 else (ops[start],):
                apply(slot, row, raw)
            write()
            if store.frozen:
                self._ask()
                while store.is_stalled:
                    await self._installed.wait()
        await trio.lowlevel.checkpoint()

    def get(self, keys: list[tuple[Slot, bytes]]) -> int:
        store = self.store
        found = 0
        for slot, row in keys:
            try:
                raw = store.get(slot, row)
            except PageFault:
                raw = store.read_now(slot, row)
            if raw is not None:
                found += 1
        return found

    def scan(self, slot: Slot) -> int:
        store = self.store
        pins: Pins = {}
        count = 0
        start: bytes | None = b""
        store.pinned = pins
        try:
            while start is not None:
                try:
                    rows, start = store.scan(slot, start, SCAN_ROWS)
                    count += len(rows)
                except PageFault as fault:
                    fault.resolve(pins)
        finally:
            store.pinned = NO_PINS
        return count

    async def settle(self) -> bool:
        self._idle = trio.Event()
        self._ask()
        with trio.move_on_after(SETTLE_MAX_S):
            await self._idle.wait()
            return True
        return False

    def worker_pid(self) -> int | None:
        return self._worker.pid or self._last_pid

    async def close(self) -> None:
        self.store.close()


class _Library:
    """What both C++ libraries have in common: threads of their own."""

    note: str

    async def work(self) -> None:
        """Their threads do it."""

    def prepare(self, ops: Sequence[tuple[Key, bytes]]) -> Sequence[tuple[Key, bytes]]:
        return ops

    def prepare_keys(self, keys: Sequence[Key]) -> Sequence[Key]:
        return keys

    def worker_pid(self) -> int | None:
        return None

    def is_working(self) -> bool:
        """Whether the library itself says that it has something to do."""
        return False

    async def settle(self) -> bool:
        return await settle_by_clock(self.is_working)


async def settle_by_clock(
    is_working: Callable[[], bool], clock: Callable[[], float] = time.process_time
) -> bool:
    """Wait until the process uses no CPU time, for an engine that has no call to wait for its threads."""
    deadline = trio.current_time() + SETTLE_MAX_S
    quiet_count = 0
    while quiet_count < QUIET_TIMES:
        if trio.current_time() > deadline:
            return False
        before = clock()
        await trio.sleep(QUIET_S)
        is_quiet = clock() - before < QUIET_SHARE * QUIET_S and not is_working()
        quiet_count = quiet_count + 1 if is_quiet else 0
    return True


class LevelDb(_Library):
    """LevelDB through plyvel."""

    def __init__(self, spec: Spec) -> None:
        plyvel = _library("leveldb")
        self._db = plyvel.DB(
            spec.folder,
            create_if_missing=True,
            write_buffer_size=spec.write_buffer_bytes,
            lru_cache_size=spec.cache_bytes if spec.cache == "large" else TINY_CACHE_BYTES,
            block_size=BLOCK_BYTES,
            bloom_filter_bits=BLOOM_BITS,
            compression="snappy",
        )
        self.note = "Snappy"

    async def put(self, ops: Sequence[tuple[Key, bytes]], batch: int) -> None:
        if batch == 1:
            put = self._db.put
            for key, value in ops:
                put(key, value)
        else:
            write_batch = self._db.write_batch
            for start in range(0, len(ops), batch):
                with write_batch() as batched:
                    put = batched.put
                    for key, value in ops[start : start + batch]:
                        put(key, value)
        await trio.lowlevel.checkpoint()

    def get(self, keys: Sequence[Key]) -> int:
        get = self._db.get
        found = 0
        for key in keys:
            if get(key) is not None:
                found += 1
        return found

    def scan(self, slot: Slot) -> int:
        with self._db.iterator(prefix=slot.to_bytes(SLOT_BYTES, "big")) as rows:
            return len(list(rows))

    async def close(self) -> None:
        self._db.close()


class RocksDb(_Library):
    """RocksDB through rocksdict."""

    _WORK = (
        "rocksdb.num-running-flushes",
        "rocksdb.num-running-compactions",
        "rocksdb.mem-table-flush-pending",
        "rocksdb.compaction-pending",
    )

    def __init__(self, spec: Spec) -> None:
        rocksdict = self._rocksdict = _library("rocksdb")
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(spec.write_buffer_bytes)
        options.set_compression_type(rocksdict.DBCompressionType.lz4())
        blocks = rocksdict.BlockBasedOptions()
        caches = spec.cache_bytes if spec.cache == "large" else TINY_CACHE_BYTES
        blocks.set_block_cache(rocksdict.Cache(caches))
        blocks.set_block_size(BLOCK_BYTES)
        blocks.set_bloom_filter(BLOOM_BITS, False)
        options.set_block_based_table_factory(blocks)
        self._db = rocksdict.Rdict(spec.folder, options)
        self.note = "LZ4"

    async def put(self, ops: Sequence[tuple[Key, bytes]], batch: int) -> None:
        if batch == 1:
            put = self._db.put
            for key, value in ops:
                put(key, value)
        else:
            write_batch, write = self._rocksdict.WriteBatch, self._db.write
            for start in range(0, len(ops), batch):
                batched = write_batch(raw_mode=True)
                put = batched.put
                for key, value in ops[start : start + batch]:
                    put(key, value)
                write(batched)
        await trio.lowlevel.checkpoint()

    def get(self, keys: Sequence[Key]) -> int:
        get = self._db.get
        found = 0
        for key in keys:
            if get(key) is not None:
                found += 1
        return found

    def scan(self, slot: Slot) -> int:
        options = self._rocksdict.ReadOptions()
        options.set_iterate_upper_bound((slot + 1).to_bytes(SLOT_BYTES, "big"))
        rows = self._db.items(from_key=slot.to_bytes(SLOT_BYTES, "big"), read_opt=options)
        return len(list(rows))

    def is_working(self) -> bool:
        return any(self._db.property_int_value(name) for name in self._WORK)

    async def close(self) -> None:
        self._db.close()


ENGINES: Final[dict[str, Callable[[Spec], Subject]]] = {
    "respkv": Respkv,
    "leveldb": LevelDb,
    "rocksdb": RocksDb,
}


def version_of(engine: str) -> str:
    """The version of an engine. Raises EngineMissing."""
    if engine == "respkv":
        return VERSION
    library = _library(engine)
    package = PACKAGES[engine]
    version = importlib.metadata.version(package)
    if engine == "leveldb":
        return f"{library.__leveldb_version__} (plyvel {version})"
    return f"in rocksdict {version}"


def _library(engine: str) -> Any:
    package = PACKAGES[engine]
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise EngineMissing(
            f"{package} is not installed, so {engine} cannot be measured: pip install -e '.[bench]'"
        ) from error


def _slot(key: Key) -> Slot:
    return int.from_bytes(key[:SLOT_BYTES], "big")


__all__ = [
    "ENGINES",
    "EngineError",
    "EngineMissing",
    "Respkv",
    "Subject",
    "settle_by_clock",
    "version_of",
]
