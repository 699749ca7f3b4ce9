"""Units: pipelines of commands that read what they write are done a run at a time, and answer as one by one."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import trio

from cluster.slot import slot_of
from respkv.command import TABLE
from respkv.execution import Execution
from respkv.forwarding import Forwarding
from respkv.operation import ExecOperation, Operation
from respkv.unit import BYTES_MAX, COST_MAX, SLOW_COST, Unit
from tests.engine.stores import forget_pages
from tests.respkv.gather_harness import Cluster, Session, clustered
from tests.respkv.test_dispatch import keys_of

Words = tuple[bytes | str | int, ...]
LONG = 64
"""Of a pipeline."""


async def pipelined(session: Session, commands: list[Words]) -> list[Any]:
    for command in commands:
        session.send(*command)
    return [await session.reply() for _ in commands]


async def lasts_s(session: Session, commands: list[Words]) -> float:
    """How long a pipeline takes, in virtual time. Nothing in it may fail."""
    before_s = trio.current_time()
    for reply in await pipelined(session, commands):
        assert not (isinstance(reply, str) and reply.startswith("-")), reply
    return trio.current_time() - before_s


def far_keys(cluster: Cluster, count: int) -> tuple[list[bytes], str]:
    """Keys of one coordinator that node a holds no replica of, and the coordinator."""
    topology = cluster.node("a").topology
    assert topology is not None
    found: dict[str, list[bytes]] = {}
    for number in itertools.count():
        key = b"key:%d" % number
        slot = slot_of(key)
        name = topology.coordinator(slot)
        if topology.owns(slot) or name is None:
            continue
        found.setdefault(name, []).append(key)
        if len(found[name]) == count:
            return found[name], name
    raise AssertionError


def draw(rng: random.Random, key: bytes) -> list[Words]:
    """A few commands as applications pipeline them."""
    number = rng.randrange(100)
    one = rng.choice((
        ("INCR", b"n" + key),
        ("INCRBY", b"n" + key, number),
        ("APPEND", b"s" + key, "ab"),
        ("APPEND", b"n" + key, 7),
        ("SETBIT", b"b" + key, number, 1),
        ("BITCOUNT", b"b" + key),
        ("INCR", b"s" + key),  # Mostly an error.
        ("SETRANGE", b"s" + key, number, "x"),
        ("GETRANGE", b"s" + key, 0, -1),
        ("EXPIRE", b"n" + key, 1000),
        ("PERSIST", b"n" + key),
        ("DEL", b"b" + key),
        ("GETDEL", b"s" + key),
        ("TYPE", b"n" + key),
        ("GET", b"n" + key),
        ("SET", b"s" + key, number),
        ("SETNX", b"n" + key, number),
    ))  # fmt: skip
    if rng.random() < 0.3:
        return [("SET", b"n" + key, number), ("EXPIRE", b"n" + key, 1000 + number)]
    return [one] * rng.choice((1, 1, 2, 5))


def renamed(command: Words, prefix: bytes) -> Words:
    name, key, *rest = command
    assert isinstance(key, bytes)
    return name, prefix + key, *rest


@pytest.mark.parametrize("nodes", [3, 5])
def test_replies_and_data_are_those_of_commands_sent_one_by_one(nodes: int) -> None:
    rng = random.Random(nodes)

    @clustered(nodes=nodes)
    async def _(cluster: Cluster) -> None:
        session, other = cluster.session("a"), cluster.session("b")
        for _ in range(12):
            commands: list[Words] = []
            while len(commands) < 40:
                key = b"%d" % rng.randrange(6)
                kind = draw(rng, key)
                many = rng.choice((1, 1, 4))
                for at in range(many):  # The same for several keys.
                    commands += [
                        (name, rest[0] + b"%d" % at, *rest[1:])  # type: ignore[operator]
                        for name, *rest in kind
                    ]
            replies = await pipelined(session, [renamed(command, b"p") for command in commands])
            expected = [await other.ask(*renamed(command, b"o")) for command in commands]
            assert replies == expected
        for key in await cluster.scan("a", "MATCH", "o*"):
            twin = b"p" + key[1:]
            for name in cluster.names:
                value = await cluster.ask(name, "GET", key)
                assert value is not None
                assert await cluster.ask(name, "GET", twin) == value
                expires = [await cluster.ask(name, "TTL", each) > 0 for each in (key, twin)]
                assert expires[0] == expires[1]


@pytest.mark.parametrize("node", ["a", "b", "c", "d", "e"])
def test_a_pipeline_of_one_command_takes_a_few_round_trips(node: str) -> None:
    @clustered(nodes=5)
    async def _(cluster: Cluster) -> None:
        session = cluster.session(node)
        keys = [b"k%d" % number for number in range(LONG)]
        alone_s = max([await lasts_s(session, [("INCR", key)]) for key in keys])
        one_key: list[Words] = [("INCR", b"one")] * LONG
        assert await lasts_s(session, one_key) < 4 * alone_s
        assert await lasts_s(session, [("INCR", key) for key in keys]) < 4 * alone_s
        pairs: list[Words] = []
        for key in keys[: LONG // 2]:
            pairs += [("INCR", key), ("EXPIRE", key, 100)]
        assert await lasts_s(session, pairs) < 4 * alone_s
        reads: list[Words] = [("STRLEN", key) for key in keys]
        assert await lasts_s(session, reads) < 4 * alone_s
        assert await cluster.ask("a", "GET", b"one") == b"%d" % LONG


def test_each_is_counted_where_it_is_executed() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        incr = TABLE.commands["INCR"]
        calls, failed = incr.calls, incr.failed_calls
        keys = [b"k%d" % number for number in range(30)]
        await cluster.ask("a", "SET", keys[0], "text")
        replies = await pipelined(cluster.session("a"), [("INCR", key) for key in keys])
        assert replies == ["-ERR value is not an integer or out of range", *[1] * 29]
        assert (incr.calls - calls, incr.failed_calls - failed) == (30, 1)


@pytest.mark.parametrize("is_far", [False, True])
def test_a_command_that_is_refused_is_refused_alone(is_far: bool) -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        cluster.bound_messages(1000)
        keys = keys_of(cluster, "b" if is_far else "a", 4)
        commands: list[Words] = [("SETRANGE", key, 800, "x") for key in keys]
        commands.insert(2, ("SETRANGE", keys[3], 1000, "x"))
        commands.append(("STRLEN", keys[3]))
        session = cluster.session("a")
        replies = await pipelined(session, commands)
        assert replies.pop(2).startswith("-ERR the value is too large for one message")
        assert replies == [801] * 5
        assert await pipelined(session, [("STRLEN", key) for key in keys]) == [801] * 4


def test_what_a_node_refuses_goes_on_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    can_execute = Forwarding._can_execute

    def refuse_units(forwarding: Forwarding, operation: Operation) -> bool:
        return not isinstance(operation, Unit) and can_execute(forwarding, operation)

    monkeypatch.setattr(Forwarding, "_can_execute", refuse_units)

    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        keys = keys_of(cluster, "b", 5)
        commands: list[Words] = [("APPEND", key, letter) for letter in "ab" for key in keys]
        assert await pipelined(cluster.session("a"), commands) == [1] * 5 + [2] * 5
        for key in keys:
            assert await cluster.ask("c", "GET", key) == b"ab"


def test_nobody_knows_what_became_of_a_unit_whose_node_hangs() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        keys = keys_of(cluster, "c", 10)
        hung = cluster.freeze("c")
        session = cluster.session("a")
        for reply in await pipelined(session, [("INCR", key) for key in keys]):
            assert reply.startswith(("-TIMEOUT", "-UNKNOWN"))
        hung.thaw()
        await trio.sleep(5)
        for key in keys:
            assert await cluster.ask("b", "GET", key) in (None, b"1")


def test_reads_of_a_node_that_hangs_are_answered_by_another() -> None:
    @clustered(nodes=5, n=3, r=2, w=2)
    async def _(cluster: Cluster) -> None:
        keys, coordinator = far_keys(cluster, 3)
        for key in keys:
            await cluster.ask("a", "SET", key, "value")
        hung = cluster.freeze(coordinator)
        session = cluster.session("a")
        assert await pipelined(session, [("STRLEN", key) for key in keys]) == [5] * 3
        hung.thaw()


RECORD = [("APPEND", "v"), ("EXPIRE", 9)]


@pytest.mark.parametrize(
    ("first", "second", "is_seen"),
    [
        (RECORD[:1], RECORD[:1], True),
        (RECORD, RECORD, True),
        ([("SETNX", "v")], RECORD[:1], False),
        ([("SETNX", "v"), RECORD[1]], RECORD, False),
        (RECORD, RECORD[:1], False),
        (RECORD, RECORD[::-1], False),
    ],
)
def test_only_records_of_one_shape_overlap(
    first: list[Words], second: list[Words], *, is_seen: bool
) -> None:
    """What a queue names is there before the queue has it."""

    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        (far,) = keys_of(cluster, "c", 1)
        (near,) = keys_of(cluster, "b", 1)
        hung = cluster.freeze("c")
        session = cluster.session("a")
        for key, record in ((far, first), (near, second)):
            for name, *words in record:
                session.send(name, key, *words)
        await trio.sleep(0.1)
        assert await cluster.ask("b", "EXISTS", near) == int(is_seen)
        hung.thaw()
        for _ in (*first, *second):
            assert not isinstance(await session.reply(), str)
        assert await cluster.ask("a", "EXISTS", far, near) == 2


def test_a_record_is_on_one_key() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        (far,) = keys_of(cluster, "c", 1)
        (near,) = keys_of(cluster, "b", 1)
        hung = cluster.freeze("c")
        session = cluster.session("a")
        for name, key in (("INCR", far), ("APPEND", far), ("INCR", near), ("APPEND", far)):
            session.send(name, key, *([1] if name == "APPEND" else []))
        await trio.sleep(0.1)
        assert await cluster.ask("b", "EXISTS", near) == 0
        hung.thaw()
        assert [await session.reply() for _ in range(4)] == [1, 2, 1, 3]


def test_a_run_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    forward = Forwarding.forward

    def note(forwarding: Forwarding, operation: Operation, target: str) -> None:
        sizes.append(len(operation.commands))
        forward(forwarding, operation, target)

    monkeypatch.setattr(Forwarding, "forward", note)

    @clustered(nodes=5, n=3, r=2, w=2)
    async def _(cluster: Cluster) -> None:
        far, _ = far_keys(cluster, 3)
        session = cluster.session("a")
        cases: list[tuple[Words, int]] = [
            (("APPEND", far[0], "x" * (BYTES_MAX // 8)), 7),  # The name and the key count, too.
            (("INCR", far[1]), COST_MAX),
            (("BITCOUNT", far[2]), COST_MAX // SLOW_COST),
        ]
        for command, most in cases:
            sizes.clear()
            replies = await pipelined(session, [command] * (3 * most))
            assert not any(isinstance(reply, str) for reply in replies)
            assert max(sizes) == most


def test_pages_that_a_transaction_misses_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = 0
    execute = Execution.execute

    def count(execution: Execution, operation: Operation) -> None:
        nonlocal runs
        runs += isinstance(operation, ExecOperation)
        execute(execution, operation)

    monkeypatch.setattr(Execution, "execute", count)

    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        (tag,) = keys_of(cluster, "b", 1)
        keys = [b"{%b}%d" % (tag, number) for number in range(60)]
        session = cluster.session("b")
        for key in keys:
            assert await session.ask("SET", key, "x" * 2000) == b"OK"
        assert await session.ask("SAVE") == b"OK"
        node = cluster.node("b")
        forget_pages(node.store)
        cluster.world.machines["b"].disk.faults.is_cold = True
        faults = node.store.stats.faults
        assert await session.ask("MULTI") == b"OK"
        assert await pipelined(session, [("APPEND", key, "y") for key in keys]) == [b"QUEUED"] * 60
        assert await session.ask("EXEC") == [2001] * 60
        assert node.store.stats.faults - faults > 20
        assert runs < 6
