"""MEMORY: estimates of keys and of the whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.memtable import ENTRY_OVERHEAD_BYTES
from tests.respkv.commands.alone import Alone
from tests.respkv.commands.harness import Server


@pytest.fixture
def alone() -> Iterator[Alone]:
    node = Alone()
    yield node
    node.close()


def test_usage_is_what_the_memtable_counts(alone: Alone) -> None:
    alone.ask("SET key", bytes(5000))
    assert alone.text("MEMORY USAGE key") == b"%d" % alone.node.store.memtable_bytes
    assert int(alone.text("MEMORY USAGE key SAMPLES 5")) > 5000 + ENTRY_OVERHEAD_BYTES


def test_usage_finds_keys_that_are_not_in_memory() -> None:
    server = Server()
    warm = server.play("SET key value ; MEMORY USAGE key")
    assert server.play("SET key value ; MEMORY USAGE key", is_cold=True) == warm
    assert server.faults > 0


def test_usage_does_not_see_what_has_expired_or_is_deleted(alone: Alone) -> None:
    alone.ask("SET a v PX 100")
    alone.ask("SET b v")
    alone.ask("DEL b")
    alone.ns += 200_000_000
    for key in "ab":
        reply = alone.ask(f"MEMORY USAGE {key}")
        assert reply is not None
        assert reply.is_nil


def test_stats_add_up(alone: Alone) -> None:
    alone.ask("MSET a 1 b 2")
    alone.ask("HELLO 3")
    reply = alone.ask("MEMORY STATS")
    assert reply is not None
    assert reply.kind == "%"
    stats = {name: item.text for name, item in reply.pairs.items()}
    dataset = alone.node.store.memory_bytes
    assert stats[b"keys.count"] == b"2"
    assert stats[b"dataset.bytes"] == b"%d" % dataset
    assert stats[b"keys.bytes-per-key"] == b"%d" % (dataset // 2)
    assert stats[b"total.allocated"] == b"%d" % ((50 << 20) + dataset)
    assert float(stats[b"peak.percentage"]) == 100


def test_purge_is_done_by_a_thread(alone: Alone) -> None:
    assert alone.ask("MEMORY PURGE") is None
    assert alone.process.trims == 0
    reply = alone.work()
    assert reply is not None
    assert reply.text == b"OK"
    assert alone.process.trims == 1


def test_the_doctor_finds_what_is_wrong(alone: Alone) -> None:
    assert b"too little data" in alone.text("MEMORY DOCTOR")
    alone.ask("SET k", bytes(6 << 20))
    assert alone.text("MEMORY DOCTOR") == b"All is well with memory.\n"
    alone.process.rss = 300 << 20
    assert b"fragmented" in alone.text("MEMORY DOCTOR")
    alone.process.memory_total_bytes = 1 << 30
    assert b"memory.bytes_max is 1.00G of the machine's 1.00G" in alone.text("MEMORY DOCTOR")
    alone.node.store.stats.stalls = 3
    assert b"held back 3 times" in alone.text("MEMORY DOCTOR")
    alone.node.store.rows.miss_count = 20_000
    assert b"miss the row cache" in alone.text("MEMORY DOCTOR")


def test_malloc_stats_name_the_parts(alone: Alone) -> None:
    text = alone.text("MEMORY MALLOC-STATS")
    for part in (b"active memtable", b"frozen memtables", b"row cache", b"block cache"):
        assert part in text
