"""Commands on keys that no single node holds, at clusters of simulated machines: results, races, losses, limits."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, cast

import pytest
import trio

from cluster.clock import Dot
from cluster.record import DELETION, STRING, Record, Version, encode
from cluster.replica import Effect
from cluster.slot import Key, row_of, slot_of
from cluster.topology import Topology
from engine.store import Store
from respkv.dispatch import Dispatch
from respkv.spread import RowFault, View, stages
from respkv.spread_part import COMMIT_STEP
from tests.respkv.gather_harness import Cluster, Session, clustered

FAR_MS = 4_000_000_000_000
FETCH, COMMIT = b"SPREAD.FETCH", b"SPREAD.COMMIT"
VERB, NAME = 0, 8  # Where they stand in a forwarded message.


def topology_of(cluster: Cluster) -> Topology:
    topology = cluster.node("a").topology
    assert topology is not None
    return topology


def dispatch_of(cluster: Cluster, name: str = "a") -> Dispatch:
    peers = cluster.node(name).peers
    assert peers is not None
    return peers.dispatch


def apart(cluster: Cluster, count: int = 2, *, away_from: str = "") -> list[Key]:
    """Keys that no node holds together; `away_from` coordinates none of them."""
    topology = topology_of(cluster)
    found: list[Key] = []
    for number in range(10_000):
        key = b"key:%d" % number
        others = topology.preferences[slot_of(key)]
        if others[0] == away_from:
            continue
        if all(not set(others) & set(topology.preferences[slot_of(one)]) for one in found):
            found.append(key)
            if len(found) == count:
                return found
    raise AssertionError("too few nodes")


class Post:
    """Messages between nodes that a test holds back, drops or repeats."""

    def __init__(self, cluster: Cluster) -> None:
        self._send = cluster.world.network.send
        cast(Any, cluster.world.network).send = self._take
        self._waiting: list[Callable[[], None]] = []
        self.catch: Callable[[Sequence[bytes]], bool] = lambda message: False
        self.repeat: Callable[[Sequence[bytes]], bool] = lambda message: False
        self.repeat_later: Callable[[Sequence[bytes]], bool] = lambda message: False
        self.sent: list[list[bytes]] = []

    def _take(self, source: Any, target: str, message: Sequence[bytes], *, is_bulk: bool) -> None:
        self.sent.append(list(message))

        def send() -> None:
            self._send(source, target, message, is_bulk=is_bulk)

        if self.catch(message):
            self._waiting.append(send)
            return
        send()
        if self.repeat(message):
            send()
        if self.repeat_later(message):
            self._waiting.append(send)

    async def caught(self, count: int = 1) -> None:
        """Wait until something is held back."""
        with trio.fail_after(60):
            while len(self._waiting) < count:  # noqa: ASYNC110
                await trio.sleep(0.001)

    def release(self) -> None:
        self.catch = lambda message: False
        waiting, self._waiting = self._waiting, []
        for send in waiting:
            send()

    def drop(self) -> None:
        self.catch = lambda message: False
        self._waiting.clear()

    def count(self, name: bytes) -> int:
        return sum(is_part(name)(message) for message in self.sent)


def is_part(name: bytes, key: Key | None = None) -> Callable[[Sequence[bytes]], bool]:
    """Whether a message is such a part (of this key)."""

    def matches(message: Sequence[bytes]) -> bool:
        is_named = message[VERB] == b"FORWARD" and message[NAME] == name
        return is_named and (key is None or message[NAME + 1] == key)

    return matches


async def exec_(session: Session, *commands: tuple[Any, ...]) -> Any:
    session.send("MULTI")
    for command in commands:
        session.send(*command)
    session.send("EXEC")
    replies = [await session.reply() for _ in range(len(commands) + 2)]
    return replies[-1]


async def holds(cluster: Cluster, held: dict[Key, bytes | None]) -> None:
    """All nodes give these values."""
    for name in cluster.names:
        for key, value in held.items():
            assert await cluster.ask(name, "GET", key) == value, (name, key)


# The same results as on one node


def script(rng: random.Random, length: int) -> list[list[tuple[Any, ...]]]:
    """Commands on a few keys of different slots; several at once are a transaction."""
    keys = [f"k{number}" for number in range(5)]

    def command() -> tuple[Any, ...]:
        one, two, three = rng.sample(keys, 3)
        value = f"{rng.choice('abc')}{rng.randrange(100)}"
        return rng.choice((
            ("RENAME", one, two), ("RENAME", one, two), ("RENAME", one, one), ("RENAMENX", one, two),
            ("COPY", one, two), ("COPY", one, two, "REPLACE"), ("COPY", one, two, "DB", 3, "REPLACE"),
            ("COPY", one, two, "NONSENSE"), ("MSETNX", one, value, two, value, three, value),
            ("BITOP", "AND", one, two, three), ("BITOP", "OR", one, two, one), ("BITOP", "NOT", one, two),
            ("BITOP", "XOR", one, two, three, "nothing"), ("LCS", one, two), ("LCS", one, two, "LEN"),
            ("LCS", one, two, "IDX"), ("SET", one, value), ("SET", one, 5), ("DEL", one, two, three),
            ("SET", one, value, "PXAT", FAR_MS), ("PEXPIRETIME", one), ("PERSIST", one),
            ("GET", one), ("MGET", one, two, three), ("INCR", one), ("APPEND", one, value), ("GETDEL", one),
            ("WATCH", one, two), ("MSETNX", one, value, two), ("EXISTS", one, two), ("SETRANGE", one, 3, value),
        ))  # fmt: skip

    steps = []
    for _ in range(length):
        count = rng.choice((1, 1, 2, 4))
        commands = [command() for _ in range(count)]
        if count > 1:
            commands = [each for each in commands if each[0] != "WATCH"]
            if rng.random() < 0.2:
                commands.insert(1, ("SELECT", rng.choice((0, 3))))
        steps.append(commands)
    return steps


def played(nodes: int, steps: list[list[tuple[Any, ...]]], **plan: Any) -> list[Any]:
    """The replies to a script."""
    replies: list[Any] = []

    @clustered(nodes=nodes, **plan)
    async def _(cluster: Cluster) -> None:
        rng = random.Random(len(steps))
        sessions = [cluster.session(cluster.names[at % nodes]) for at in range(4)]
        for commands in steps:
            session = rng.choice(sessions)
            if len(commands) == 1:
                replies.append(await session.ask(*commands[0]))
            else:
                replies.append(await exec_(session, *commands))
        for db in (0, 3):
            await sessions[0].ask("SELECT", db)
            replies.extend([await sessions[0].ask("GET", f"k{number}") for number in range(5)])
        if nodes > 1:
            count = sum(dispatch_of(cluster, name).spreads.begun_total for name in cluster.names)
            assert count > len(steps) / 10
            for name in cluster.names:
                dispatch = dispatch_of(cluster, name)
                assert (dispatch.spreads.held_bytes, dispatch.in_flight) == (0, 0)
                assert not dispatch.spreads.running

    return replies


@pytest.mark.parametrize(
    ("nodes", "plan"), [(7, {}), (5, {"n": 1, "r": 1, "w": 1}), (5, {"n": 2, "r": 2, "w": 1})]
)
def test_a_script_is_answered_as_by_one_node(nodes: int, plan: dict[str, int]) -> None:
    steps = script(random.Random(nodes + len(plan)), 250)
    alone = played(1, steps)
    together = played(nodes, steps, **plan)
    for number, (ours, theirs) in enumerate(zip(together, alone, strict=True)):
        assert ours == theirs, (number, steps[number : number + 1])


def test_an_expiry_goes_along() -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster)
        assert await cluster.ask("a", "SET", one, "v", "PXAT", FAR_MS) == b"OK"
        assert await cluster.ask("a", "RENAME", one, two) == b"OK"
        assert await cluster.ask("b", "PEXPIRETIME", two) == FAR_MS
        assert await cluster.ask("b", "COPY", two, one) == 1
        assert await cluster.ask("c", "PEXPIRETIME", one) == FAR_MS
        assert await cluster.ask("c", "PEXPIRE", one, 500) == 1
        assert await cluster.ask("c", "RENAME", one, two) == b"OK"
        await trio.sleep(1)
        assert await cluster.ask("d", "GET", two) is None
        assert (await cluster.ask("d", "RENAME", two, one)).startswith("-ERR no such key")
        await holds(cluster, {one: None, two: None})


def test_no_client_can_call_a_part() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        for name in (FETCH, COMMIT):
            assert (await cluster.ask("a", name, "k", 0, "")).startswith("-ERR unknown command")
            assert await cluster.ask("a", "COMMAND", "INFO", name) == [None]


def test_on_the_cluster_port_keys_have_to_be_of_one_slot() -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster)
        session = cluster.session("a", is_cluster=True)
        for command in (("RENAME", one, two), ("MSETNX", one, 1, two, 2), ("LCS", one, two)):
            assert (await session.ask(*command)).startswith("-CROSSSLOT Keys in request")
        assert dispatch_of(cluster).spreads.begun_total == 0


# Races


def test_what_changes_before_the_first_commit_makes_the_command_run_again() -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster, away_from="a")
        cases: list[tuple[Key, dict[Key, bytes | None]]] = [
            (two, {one: None, two: b"1"}),
            (one, {one: b"9", two: b"1"}),
        ]
        for changed, held in cases:
            await cluster.ask("b", "MSET", one, 1, two, 2)
            post, session = Post(cluster), cluster.session("a")
            post.catch = is_part(COMMIT, two)
            session.send("RENAME", one, two)
            await post.caught()
            assert await cluster.ask("b", "SET", changed, 9) == b"OK"
            post.release()
            reply = await session.reply()
            await holds(cluster, held)
            if changed == two:
                assert reply == b"OK"
                assert post.count(COMMIT) == 3  # One of them in vain.
            else:  # The target was written already.
                assert reply.startswith("-UNKNOWN a part of this command was applied, and then: ")
                assert "another client wrote one of its keys" in reply


def test_a_copy_of_what_has_changed_is_not_made() -> None:
    """The source is not written: it is compared before the target is."""

    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster, away_from="a")
        await cluster.ask("b", "SET", one, "old")
        post, session = Post(cluster), cluster.session("a")
        asked = [0]

        def second_question(message: Sequence[bytes]) -> bool:
            asked[0] += is_part(FETCH, one)(message)
            return asked[0] == 2 and is_part(FETCH, one)(message)

        post.catch = second_question
        session.send("COPY", one, two)
        await post.caught()
        assert await cluster.ask("b", "SET", one, "new") == b"OK"
        post.release()
        assert await session.reply() == 1
        await holds(cluster, {one: b"new", two: b"new"})


def test_reads_show_one_moment() -> None:
    """The second key is read late. By then both have changed, and the old value of the first is not shown."""

    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster, away_from="a")
        await cluster.ask("b", "MSET", one, "x1", two, "y1")
        for read in ("LCS", "EXEC"):
            post, session = Post(cluster), cluster.session("a")
            await cluster.ask("b", "MSET", one, "x1", two, "y1")
            post.catch = lambda message: any(
                two in part for part in message if message[VERB] in (b"FORWARD", b"READ")
            )
            if read == "LCS":
                session.send("LCS", one, two)
            else:
                session.send("MULTI")
                session.send("GET", one)
                session.send("GET", two)
                session.send("EXEC")
            await post.caught()
            held, post.catch = post.catch, lambda message: False
            assert await cluster.ask("b", "SET", one, "x2") == b"OK"
            assert await cluster.ask("b", "SET", two, "y2") == b"OK"
            post.catch = held
            post.release()
            if read == "LCS":
                assert await session.reply() == b"2"
            else:
                replies = [await session.reply() for _ in range(4)]
                assert replies[-1] == [b"x2", b"y2"]


def test_a_watched_key_that_changes_before_the_commit_stops_the_transaction() -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster, away_from="a")
        post, session = Post(cluster), cluster.session("a")
        assert await session.ask("WATCH", one, two) == b"OK"
        assert await exec_(session, ("SET", two, 1)) == [b"OK"]  # Nothing changed.
        assert await session.ask("WATCH", one) == b"OK"
        assert await cluster.ask("b", "SET", one, "changed") == b"OK"
        assert await exec_(session, ("SET", two, 2)) is None  # Changed before.
        assert await session.ask("WATCH", one) == b"OK"
        asked = [0]

        def second_question(message: Sequence[bytes]) -> bool:
            asked[0] += is_part(FETCH, one)(message)
            return asked[0] == 2 and is_part(FETCH, one)(message)

        post.catch = second_question
        for words in (("MULTI",), ("SET", two, 3), ("EXEC",)):
            session.send(*words)
        await post.caught()
        assert await cluster.ask("b", "SET", one, "changed again") == b"OK"
        post.release()
        assert [await session.reply() for _ in range(3)] == [b"OK", b"QUEUED", None]
        # Watched and written: compared where it is written.
        assert await session.ask("WATCH", one) == b"OK"
        post.catch = is_part(COMMIT, one)
        for words in (("MULTI",), ("SET", one, 4), ("SET", two, 4), ("EXEC",)):
            session.send(*words)
        await post.caught()
        assert await cluster.ask("b", "SET", one, "and again") == b"OK"
        post.release()
        assert [await session.reply() for _ in range(4)][-1] is None
        await holds(cluster, {one: b"and again", two: b"1"})


def test_who_loses_again_and_again_hears_so_and_has_changed_nothing() -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster, away_from="a")
        await cluster.ask("b", "MSET", one, 1, two, 2)
        retries_max = dispatch_of(cluster).execution.retries_max
        post, session = Post(cluster), cluster.session("a")
        post.catch = is_part(COMMIT, two)
        session.send("RENAME", one, two)
        for number in range(retries_max + 1):
            await post.caught()
            assert await cluster.ask("b", "SET", two, number) == b"OK"
            post.release()
            post.catch = is_part(COMMIT, two)
        assert (await session.reply()).startswith("-TRYAGAIN another node wrote the key")
        await holds(cluster, {one: b"1", two: b"%d" % retries_max})


@pytest.mark.parametrize("seed", range(3))
def test_tokens_that_many_rename_at_once_are_never_lost(seed: int) -> None:
    """And there twice only where an error said that a part was applied."""

    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        keys = apart(cluster, 2) + [b"key:%d" % number for number in range(20_000, 20_004)]
        for key in keys[:3]:
            assert await cluster.ask("a", "SET", key, b"token of " + key) == b"OK"
        doubts = 0

        async def rename(number: int) -> None:
            nonlocal doubts
            rng = random.Random(number + 10 * seed)
            session = cluster.session(rng.choice(cluster.names))
            for _ in range(25):
                reply = await session.ask("RENAMENX", *rng.sample(keys, 2))
                if isinstance(reply, str) and not reply.startswith(("-TRYAGAIN", "-ERR no such")):
                    assert reply.startswith("-UNKNOWN"), reply
                    doubts += 1

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(rename, number)
        values = [value for value in await cluster.ask("b", "MGET", *keys) if value]
        assert set(values) == {b"token of " + key for key in keys[:3]}
        assert len(values) - 3 <= doubts
        assert sum(dispatch_of(cluster, name).spreads.retries_total for name in cluster.names)


def test_sums_hold_while_many_move_amounts() -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster)
        doubts = 0

        async def move(number: int) -> None:
            nonlocal doubts
            session = cluster.session(cluster.names[number])
            for _ in range(15):
                reply = await exec_(session, ("DECRBY", one, 1), ("INCRBY", two, 1))
                if isinstance(reply, str):
                    assert reply.startswith(("-UNKNOWN", "-TRYAGAIN")), reply
                    doubts += reply.startswith("-UNKNOWN")

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(move, number)
        values = await cluster.ask("b", "MGET", one, two)
        assert abs(int(values[0]) + int(values[1])) <= doubts
        assert int(values[1]) > 10


# Losses


def test_a_lost_answer_to_a_commit_is_told_as_a_doubt() -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster, away_from="a")
        for lost, is_first in ((two, True), (one, False)):
            await cluster.ask("b", "MSET", one, 1, two, 2)
            post, session = Post(cluster), cluster.session("a")
            numbers: list[bytes] = []

            def answer(
                message: Sequence[bytes], lost: Key = lost, seen: list[bytes] = numbers
            ) -> bool:
                if is_part(COMMIT, lost)(message):
                    seen.append(message[1])
                return message[VERB] == b"REPLY" and message[1] in seen

            post.catch = answer
            session.send("RENAME", one, two)
            await post.caught()
            post.drop()
            reply = await session.reply()
            if is_first:
                assert reply.startswith("-TIMEOUT no answer in time")
                await holds(cluster, {one: b"1", two: b"1"})
            else:
                assert reply.startswith("-UNKNOWN a part of this command was applied, and then: ")
                await holds(cluster, {one: None, two: b"1"})


def test_a_coordinator_that_dies_with_a_commit_leaves_a_doubt() -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster, away_from="a")
        await cluster.ask("b", "MSET", one, 1, two, 2)
        victim = topology_of(cluster).coordinators[slot_of(two)]
        assert victim is not None
        post, session = Post(cluster), cluster.session("a")
        post.catch = is_part(COMMIT, two)
        session.send("RENAME", one, two)
        await post.caught()
        cluster.world.machines[victim].hold_down()
        cluster.kill(victim)
        post.drop()
        assert (await session.reply()).startswith("-UNKNOWN the node that executed this command")
        await cluster.know(victim, is_up=False)
        assert await cluster.ask("a", "GET", one) == b"1"
        assert await cluster.ask("a", "RENAME", one, two) == b"OK"  # At another one now.
        assert await cluster.ask("a", "MGET", one, two) == [None, b"1"]


def test_a_fetch_that_is_lost_is_asked_of_another_replica() -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster, away_from="a")
        await cluster.ask("b", "MSET", one, "ab", two, "b")
        post, session = Post(cluster), cluster.session("a")
        post.catch = is_part(FETCH, one)
        session.send("RENAME", one, two)
        await post.caught()
        post.drop()
        assert await session.reply() == b"OK"
        await holds(cluster, {one: None, two: b"ab"})


def test_messages_that_come_twice_count_once() -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster, away_from="a")
        post, session = Post(cluster), cluster.session("a")
        post.repeat = lambda message: message[VERB] in (b"FORWARD", b"REPLY")
        for number in range(1, 6):
            reply = await exec_(session, ("APPEND", one, "x"), ("APPEND", two, "y"))
            assert reply == [number, number]
        await holds(cluster, {one: b"x" * 5, two: b"y" * 5})


def test_a_commit_that_comes_again_undoes_nothing() -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster, away_from="a")
        await cluster.ask("b", "MSET", one, 1, two, 2)
        post, session = Post(cluster), cluster.session("a")
        post.repeat_later = is_part(COMMIT)
        assert await session.ask("RENAME", one, two) == b"OK"
        await cluster.ask("b", "MSET", one, 3, two, 4)
        post.repeat_later = lambda message: False
        await post.caught(2)
        post.release()
        await trio.sleep(0.1)
        await holds(cluster, {one: b"3", two: b"4"})


def test_a_commit_that_comes_too_late_is_not_executed() -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster, away_from="a")
        await cluster.ask("b", "MSET", one, 1, two, 2)
        post, session = Post(cluster), cluster.session("a")
        post.catch = is_part(COMMIT, two)
        session.send("RENAME", one, two)
        await post.caught()
        assert (await session.reply()).startswith("-TIMEOUT")
        post.release()
        await trio.sleep(1)
        await holds(cluster, {one: b"1", two: b"2"})


def test_a_node_that_is_incomplete_passes_its_part_on() -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster, away_from="a")
        await cluster.ask("b", "MSET", one, 1, two, 2)
        name = topology_of(cluster).coordinators[slot_of(two)]
        assert name is not None
        topology = cluster.node(name).topology
        assert topology is not None
        topology.mark_complete(name, is_complete=False)  # And nobody has heard of it yet.
        assert await cluster.ask("a", "RENAME", one, two) == b"OK"
        topology.mark_complete(name, is_complete=True)
        await holds(cluster, {one: None, two: b"1"})


def test_without_replicas_nothing_is_done() -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster, away_from="a")
        await cluster.ask("a", "MSET", one, 1, two, 2)
        victims = [name for name in topology_of(cluster).preferences[slot_of(one)] if name != "a"]
        for name in victims:
            cluster.world.machines[name].hold_down()
            cluster.kill(name)
        for name in victims:
            await cluster.know(name, is_up=False)
        for command in (("RENAME", one, two), ("LCS", one, two), ("MSETNX", one, 3, two, 3)):
            assert (await cluster.ask("a", *command)).startswith("-NOREPLICAS")
        if len(set(topology_of(cluster).preferences[slot_of(two)]) - set(victims)) >= 2:
            assert await cluster.ask("a", "GET", two) == b"2"


# Limits


def test_values_that_no_message_holds_are_refused_before_anything_is_written() -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster, away_from="a")
        await cluster.ask("a", "SET", one, b"x" * 900)
        for name in cluster.names:
            dispatch_of(cluster, name).message_bytes_max = 1000
        session = cluster.session("a")
        text = "-ERR the value is too large for one message"
        assert (await exec_(session, ("INCR", two), ("APPEND", one, b"y" * 200))).startswith(text)
        tagged = [b"{%b}%d" % (two, number) for number in range(2)]
        assert await cluster.ask("a", "MSET", tagged[0], b"x" * 700) == b"OK"
        assert await cluster.ask("a", "MSET", tagged[1], b"x" * 700) == b"OK"
        assert (await session.ask("BITOP", "OR", one, *tagged)).startswith(text)
        await holds(cluster, {one: b"x" * 900, two: None})


def test_rows_in_flight_are_bounded() -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster, away_from="a")
        await cluster.ask("a", "SET", one, b"x" * 900)
        dispatch = dispatch_of(cluster)
        before, dispatch.in_flight_bytes_max = dispatch.in_flight_bytes_max, 500
        assert (await cluster.ask("a", "RENAME", one, two)).startswith("-BUSY too much")
        assert dispatch.spreads.held_bytes == 0
        dispatch.in_flight_bytes_max = before
        assert await cluster.ask("a", "RENAME", one, two) == b"OK"
        await holds(cluster, {one: None, two: b"x" * 900})


# Stages


def _slots(plan: list[list[list[bytes]]]) -> list[list[bytes]]:
    return [[args[1] for args in stage] for stage in plan]


def _effects(**kinds: int) -> dict[bytes, Effect]:
    return {
        row_of(0, key.encode()): (slot_of(key.encode()), kind, 0, b"")
        for key, kind in kinds.items()
    }


@pytest.mark.parametrize(
    ("effects", "is_in_order", "expected"),
    [
        ({"new": STRING, "old": DELETION}, False, [[b"new"], [b"old"]]),
        ({"old": DELETION, "new": STRING}, False, [[b"new"], [b"old"]]),
        ({"old": DELETION, "new": STRING}, True, [[b"new"], [b"old"]]),
        ({"x": STRING, "y": STRING, "z": STRING}, False, [[b"x"], [b"y", b"z"]]),
        ({"x": STRING, "y": STRING, "z": STRING}, True, [[b"x"], [b"y"], [b"z"]]),
        ({"x": DELETION, "y": DELETION, "z": DELETION}, True, [[b"x"], [b"y", b"z"]]),
        ({}, True, []),
    ],
)
def test_stages(effects: dict[str, int], is_in_order: bool, expected: list[list[bytes]]) -> None:
    rows = {(slot_of(key.encode()), row_of(0, key.encode())): None for key in effects}
    plan = stages(dict(rows), _effects(**effects), is_in_order=is_in_order)
    assert _slots(plan) == expected


def test_rows_of_a_slot_are_committed_together_with_those_that_are_only_compared() -> None:
    dot: Dot = (7, 3)
    raw = encode(Record((Version(dot, 1, STRING, b"v"),), (dot,)))
    keys = (b"{t}a", b"{t}b")
    rows = {(slot_of(key), row_of(0, key)): raw for key in keys}
    effects: dict[bytes, Effect] = {row_of(0, keys[0]): (slot_of(keys[0]), STRING, 5, b"w")}
    ((args,),) = stages(dict(rows), effects, is_in_order=True)
    head = raw[1:17]
    assert args[1 : 1 + COMMIT_STEP] == [keys[0], b"0", head, b"1", b"5", b"w"]
    assert args[1 + COMMIT_STEP :] == [keys[1], b"0", head, b"", b"0", b""]


def test_a_view_knows_its_rows_only() -> None:
    class Fixed(Store):
        def __init__(self) -> None:
            """Nothing of a store is used."""

        is_overfull = False

    row = row_of(0, b"k")
    view = View(Fixed(), {(5, row): b"raw", (6, row): None})
    assert (view.get(5, row), view.lookup(6, row), view.active[5]) == (b"raw", None, {})
    assert view.is_overfull is False
    with pytest.raises(RowFault) as fault:
        view.get(7, row)
    assert fault.value.place == (7, row)


def test_keys_apart_have_no_node_in_common() -> None:
    """What the tests above rest on."""

    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        for one, two in combinations(apart(cluster), 2):
            lists = [topology_of(cluster).preferences[slot_of(key)] for key in (one, two)]
            assert not set(lists[0]) & set(lists[1])


# What it goes along with


def test_a_row_that_is_named_by_no_key_is_fetched_when_it_is_touched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster, away_from="a")
        await cluster.ask("b", "MSET", one, 1, two, 2)
        execution = dispatch_of(cluster).execution
        places = execution.places
        with monkeypatch.context() as patch:
            patch.setattr(execution, "places", lambda operation: places(operation)[:1])
            assert await cluster.ask("a", "COPY", one, two) == 0
            assert await cluster.ask("a", "COPY", one, two, "REPLACE") == 1
            reply = await exec_(cluster.session("a"), ("INCR", two), ("INCR", one), ("INCR", two))
            assert reply == [2, 2, 3]
        await holds(cluster, {one: b"2", two: b"3"})


def test_a_transaction_runs_in_its_own_session() -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster, away_from="a")
        session = cluster.session("a")
        assert await session.ask("CLIENT", "SETNAME", "me") == b"OK"
        commands = (("SET", one, "x"), ("CLIENT", "GETNAME"), ("INCR", one), ("SELECT", 3))
        replies = await exec_(session, *commands, ("SET", two, "y"))
        assert replies[0:2] == [b"OK", b"me"]
        assert replies[2].startswith("-ERR value is not an integer")
        assert replies[3:] == [b"OK", b"OK"]
        assert await session.ask("MGET", one, two) == [None, b"y"]
        await holds(cluster, {one: b"x", two: None})


def test_a_transaction_that_is_not_executed_selects_no_database() -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster, away_from="a")
        session = cluster.session("a")
        for keys in ((one, two), (one,)):  # Led here, and forwarded.
            assert await session.ask("WATCH", one) == b"OK"
            assert await cluster.ask("b", "SET", one, "changed") == b"OK"
            commands = (("SELECT", 3), *(("SET", key, "x") for key in keys))
            assert await exec_(session, *commands) is None
            assert await session.ask("GET", one) == b"changed"


def test_a_client_that_tracks_keys_is_told_at_once_of_those_that_were_read_elsewhere() -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster, away_from="a")
        session = cluster.session("a")
        await session.ask("HELLO", 3)
        assert await session.ask("CLIENT", "TRACKING", "ON") == b"OK"
        assert await session.ask("LCS", one, two) == b""
        told = [await session.reply() for _ in range(2)]
        assert told == [[b"invalidate", [one]], [b"invalidate", [two]]]


def test_what_is_under_way_is_counted() -> None:
    @clustered(nodes=7)
    async def _(cluster: Cluster) -> None:
        one, two = apart(cluster, away_from="a")
        await cluster.ask("a", "SET", one, b"x" * 500)
        post, session = Post(cluster), cluster.session("a")
        post.catch = is_part(COMMIT)
        session.send("RENAME", one, two)
        await post.caught()
        info = (await cluster.ask("b", "INFO", "cluster")).decode()
        assert "spread_commands:0\r\n" in info
        other = cluster.session("a")
        info = (await other.ask("INFO", "cluster")).decode()
        assert "spread_commands:1\r\n" in info
        size = int(info.partition("spread_bytes_in_flight:")[2].split()[0])
        assert 500 < size < 600
        post.release()
        assert await session.reply() == b"OK"
        assert "spread_bytes_in_flight:0\r\n" in (await other.ask("INFO", "cluster")).decode()
