"""The context of a handler: layers of writes in EXEC, flushes, dots for WATCH, and the order of commits."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.record import RAW_ENCODING, STRING, Version, decode
from cluster.replica import Replica
from cluster.slot import DATABASE_COUNT, SYSTEM_SLOT, row_of, slot_of
from engine.store import PageFault
from respkv.context import DATABASES_ROW, NO_EFFECTS, Context
from respkv.reply import WRONG_TYPE, ReplyError
from tests.respkv.commands.harness import SETTINGS, START_MS, Server
from tests.sim.disk import SimDisk

OTHER_TYPE = 5  # No command writes it yet; a context need not know it.
LONG_KEY = b"k" * 256
KEYS = (b"k", b"", b"{tag}k", b"{}k", LONG_KEY, b"\0\xff")


class Bench:
    """A context with a store of its own, bound to a session of database 0."""

    def __init__(self) -> None:
        replica = Replica.open(SimDisk(random.Random(0)), SETTINGS, 1)
        node = SimpleNamespace(databases=list(range(DATABASE_COUNT)), policies=None)
        self.context = Context(node, replica, random.Random(0))  # type: ignore[arg-type]
        self.session: Any = SimpleNamespace(db=0)
        self.bind()

    def bind(self, db: int = 0, now_ms: int = START_MS) -> Context:
        self.session.db = db
        self.context.bind(self.session, now_ms)
        return self.context

    def put(self, key: bytes, value: bytes, **options: Any) -> None:
        self.context.put_string(key, value, **options)
        self.context.commit()

    def remove(self, key: bytes) -> None:
        self.context.remove(key)
        self.context.commit()

    def begin_exec(self) -> None:
        """What the runner does before the first command of an EXEC (`execute_transaction`)."""
        self.context.is_atomic = True
        self.context.below = {}

    def end_command(self, *, is_kept: bool = True) -> None:
        if is_kept:
            self.context.below.update(self.context.effects)
        self.context.effects = {}

    def end_exec(self) -> None:
        self.context.effects = self.context.below
        self.context.below = NO_EFFECTS
        self.context.is_atomic = False
        self.context.commit()

    def counter(self, key: bytes) -> int:
        """The counter of the dot that a key hangs on."""
        raw = self.context.store.get(slot_of(key), row_of(self.context.db, key))
        assert raw is not None
        return decode(raw).versions[0].dot[1]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.context.store.close()


# Reading: all ways to look at a key agree


def seen(ctx: Context, key: bytes) -> tuple[bytes | None, bytes | None, bool, bool]:
    version = ctx.peek(key)
    found = None if version is None else version.payload
    return ctx.string(key), found, ctx.exists(key), ctx.locate(key)[2] is not None


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_is_there(bench: Bench, key: bytes) -> None:
    assert seen(bench.context, key) == (None, None, False, False)
    for value, options in (
        (b"v", {}),
        (b"", {}),
        (b"w", {"expire_at_ms": START_MS + 1}),
        (b"x", {"encoding": RAW_ENCODING}),
        (b"y", {"encoding": RAW_ENCODING, "expire_at_ms": START_MS + 1}),
    ):
        bench.put(key, value, **options)
        assert seen(bench.context, key) == (value, value, True, True)
    bench.remove(key)
    assert seen(bench.context, key) == (None, None, False, False)


def test_what_has_expired_is_not_there(bench: Bench) -> None:
    bench.put(b"k", b"v", expire_at_ms=START_MS + 10)
    assert seen(bench.bind(now_ms=START_MS + 9), b"k") == (b"v", b"v", True, True)
    assert seen(bench.bind(now_ms=START_MS + 10), b"k") == (None, None, False, False)


def test_another_type(bench: Bench) -> None:
    bench.context.put(b"k", Version((0, 0), 0, OTHER_TYPE, b"x"))
    bench.context.commit()
    with pytest.raises(ReplyError) as caught:
        bench.context.string(b"k")
    assert caught.value is WRONG_TYPE
    assert bench.context.exists(b"k")


def test_databases_are_apart(bench: Bench) -> None:
    bench.put(b"k", b"zero")
    bench.bind(db=1).put_string(b"k", b"one")
    bench.context.commit()
    assert bench.context.string(b"k") == b"one"
    assert bench.bind().string(b"k") == b"zero"
    found = bench.context.find(b"k", db=1)
    assert found is not None
    assert found.payload == b"one"


def test_hits_and_misses(bench: Bench) -> None:
    bench.put(b"k", b"v")
    bench.put(b"t", b"v", expire_at_ms=START_MS + 1)
    ctx = bench.context
    for key in (b"k", b"t", b"none"):
        ctx.string(key)
        ctx.find(key)
        ctx.peek(key)
        ctx.exists(key)
        ctx.locate(key)
    assert (ctx.hits, ctx.misses) == (4, 2)  # Only `string` and `find` count.


# Layers


def test_a_write_is_seen_by_its_own_command_and_by_nobody_after_a_drop(bench: Bench) -> None:
    bench.put(b"k", b"old")
    bench.context.put_string(b"k", b"new")
    bench.context.remove(b"gone")
    assert seen(bench.context, b"k") == (b"new", b"new", True, True)
    bench.context.drop()
    assert seen(bench.context, b"k") == (b"old", b"old", True, True)
    position = bench.context.store.write()
    bench.context.commit()  # Nothing is left to commit.
    assert bench.context.store.write() == position


def test_layers_of_exec(bench: Bench) -> None:
    ctx = bench.context
    bench.put(b"a", b"0")
    bench.put(b"b", b"0")
    bench.begin_exec()
    ctx.put_string(b"a", b"1")
    bench.end_command()
    assert seen(ctx, b"a") == (b"1", b"1", True, True)
    ctx.remove(b"a")
    assert seen(ctx, b"a") == (None, None, False, False)  # The upper layer counts.
    bench.end_command(is_kept=False)  # It raised.
    assert seen(ctx, b"a") == (b"1", b"1", True, True)
    ctx.remove(b"b")
    bench.end_command()
    assert seen(ctx, b"b") == (None, None, False, False)
    assert decode(ctx.store.get(slot_of(b"b"), row_of(0, b"b")) or b"").versions[0].type == STRING
    bench.end_exec()
    assert seen(ctx, b"a") == (b"1", b"1", True, True)
    assert seen(ctx, b"b") == (None, None, False, False)
    assert NO_EFFECTS == {}


def test_an_expiry_in_a_layer(bench: Bench) -> None:
    bench.begin_exec()
    bench.context.put_string(b"k", b"v", expire_at_ms=START_MS)
    assert seen(bench.context, b"k") == (None, None, False, False)
    bench.end_command()
    assert seen(bench.context, b"k") == (None, None, False, False)
    bench.context.put_string(b"k", b"v", expire_at_ms=START_MS + 1)
    assert seen(bench.context, b"k") == (b"v", b"v", True, True)
    bench.end_command()
    bench.end_exec()
    assert seen(bench.context, b"k") == (b"v", b"v", True, True)


def test_a_flush_in_exec_hides_what_was_and_not_what_comes(bench: Bench) -> None:
    ctx = bench.context
    bench.put(b"stored", b"0")
    bench.bind(db=1).put_string(b"stored", b"other")
    ctx.commit()
    bench.bind()
    bench.begin_exec()
    ctx.put_string(b"early", b"1")
    bench.end_command()
    ctx.put_string(b"same", b"2")
    ctx.flush([0])
    for key in (b"stored", b"early", b"same"):
        assert seen(ctx, key) == (None, None, False, False), key
    bench.end_command()
    ctx.put_string(b"late", b"3")
    bench.end_command()
    assert seen(ctx, b"late") == (b"3", b"3", True, True)
    bench.end_exec()
    assert [ctx.string(key) for key in (b"stored", b"early", b"same", b"late")] == [None] * 3 + [
        b"3"
    ]
    assert bench.bind(db=1).string(b"stored") == b"other"


def test_a_flush_that_is_dropped(bench: Bench) -> None:
    bench.put(b"k", b"v")
    bench.context.flush([0])
    assert bench.context.peek(b"k") is None
    bench.context.drop()
    bench.context.commit()
    assert bench.context.string(b"k") == b"v"


def test_a_flush_and_what_follows_survive_a_restart() -> None:
    disk = SimDisk(random.Random(0))
    bench = Bench()
    bench.context.store.close()
    replica = Replica.open(disk, SETTINGS, 1)
    ctx = bench.context = Context(bench.context.node, replica, random.Random(0))
    bench.bind()
    bench.put(b"k", b"v")
    bench.begin_exec()
    ctx.flush([0])
    ctx.put_string(b"l", b"w")
    bench.end_command()
    bench.end_exec()
    replica.store.write()
    again = Replica.open(disk.kill(), SETTINGS, 1)
    ctx = Context(ctx.node, again, random.Random(0))
    ctx.bind(bench.session, START_MS)
    assert (ctx.string(b"k"), ctx.string(b"l")) == (None, b"w")
    again.store.close()


# Databases


def test_swapped_databases(bench: Bench) -> None:
    ctx = bench.context
    bench.put(b"k", b"zero")
    bench.begin_exec()
    ctx.swap_databases(0, 3)
    assert ctx.databases[0] == 3
    bench.end_command()
    assert (ctx.databases[0], ctx.databases[3]) == (3, 0)
    ctx.swap_databases(3, 4)
    assert (ctx.databases[0], ctx.databases[3], ctx.databases[4]) == (3, 4, 0)
    assert ctx.node.databases == list(range(DATABASE_COUNT))  # Not yet.
    bench.end_command()
    bench.end_exec()
    assert ctx.node.databases[:5] == [3, 1, 2, 4, 0]
    assert bench.bind(db=4).string(b"k") == b"zero"
    assert bench.bind().string(b"k") is None
    stored = ctx.store.get(SYSTEM_SLOT, DATABASES_ROW)
    assert stored is not None
    assert decode(stored).versions[0].payload == bytes(ctx.node.databases)


# Commits


def test_dots_are_minted_at_the_commit_in_the_order_of_the_writes(bench: Bench) -> None:
    tagged = [b"{t}%d" % number for number in range(5)]  # One slot, so one row of dots.
    for key in reversed(tagged):
        bench.context.put_string(key, b"v")
    bench.context.put_string(tagged[4], b"again")  # Keeps its place.
    bench.context.drop()
    for key in tagged:
        bench.context.put_string(key, b"v")
    bench.context.commit()
    assert [bench.counter(key) for key in tagged] == [1, 2, 3, 4, 5]
    bench.put(tagged[2], b"w")
    assert [bench.counter(key) for key in tagged] == [1, 2, 6, 4, 5]


# WATCH


def test_dots_differ_after_each_change(bench: Bench) -> None:
    ctx = bench.context
    seen = [ctx.dots(b"k")]
    assert seen == [None]
    changes: list[Callable[[], None]] = [
        lambda: bench.put(b"k", b"v"),
        lambda: bench.put(b"k", b"v"),
        lambda: bench.remove(b"k"),
        lambda: bench.put(b"k", b"v", expire_at_ms=START_MS + 10),
    ]
    for change in changes:
        change()
        assert ctx.dots(b"k") not in seen
        assert ctx.dots(b"k") == ctx.dots(b"k")
        seen.append(ctx.dots(b"k"))
    ctx = bench.bind(now_ms=START_MS + 10)
    assert ctx.dots(b"k") not in seen[1:]  # It expired, which is a change,
    before = ctx.dots(b"k")
    ctx.store.forget(slot_of(b"k"), row_of(0, b"k"), START_MS + 10)
    assert ctx.dots(b"k") == before  # and that it is cleaned away is none.
    assert ctx.dots(b"other") is None


def test_dots_after_a_flush(bench: Bench) -> None:
    bench.put(b"k", b"v")
    before = bench.context.dots(b"k")
    bench.context.flush([0])
    bench.context.commit()
    assert bench.context.dots(b"k") != before
    assert bench.context.dots(b"never") is None


def test_dots_of_a_key_look_at_the_store_and_not_at_layers(bench: Bench) -> None:
    bench.put(b"k", b"v")
    before = bench.context.dots(b"k")
    bench.context.put_string(b"k", b"w")
    assert bench.context.dots(b"k") == before


# Pages


@pytest.mark.parametrize("way", ["string", "peek", "find", "exists", "locate", "dots"])
def test_every_way_of_reading_faults_on_a_cold_page(way: str) -> None:
    server = Server()
    server.run(b"SET", b"k", b"v")
    server.evict()
    server.context.bind(server.session, START_MS)  # type: ignore[arg-type]
    read = getattr(server.context, way)
    with pytest.raises(PageFault) as caught:
        read(b"k")
    caught.value.resolve()
    assert read(b"k")
    server.context.put_string(b"k", b"w")  # What is written needs no page.
    if way != "dots":
        server.replica.store.blocks.resize(0)
        server.replica.store.rows.clear()
        assert read(b"k")
