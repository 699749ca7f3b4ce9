"""KV.NODES, KV.PREFLIST, KV.RING, KV.CLOCK and KV.DRILL: at a node alone, and at nodes of a simulated cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import trio

from cluster.slot import SLOT_COUNT, row_of, slot_of
from tests.differential.wire import Reply
from tests.respkv.commands.alone import Alone
from tests.respkv.gather_harness import Cluster, clustered
from tests.respkv.test_trace import replicas, told

INVALID_SLOT = "ERR a slot is a number from 0 to 16383"


@pytest.fixture
def alone() -> Iterator[Alone]:
    node = Alone()
    yield node
    node.close()


def fields(reply: Reply | None) -> dict[bytes, Reply]:
    assert reply is not None
    return {
        name.text: value for name, value in zip(reply.items[::2], reply.items[1::2], strict=True)
    }


def text(alone: Alone, words: str) -> bytes:
    reply = alone.ask(words)
    assert reply is not None
    return reply.text


def test_a_node_alone_shows_itself(alone: Alone) -> None:
    alone.ask("SET k v")
    shown = fields(alone.ask("KV.PREFLIST k"))
    assert shown[b"slot"].text == b"%d" % slot_of(b"k")
    assert shown[b"coordinator"].text == b"alone"
    (node,) = shown[b"replicas"].items
    assert fields(node)[b"state"].text == b"up"
    ring = fields(alone.ask("KV.RING"))
    (node,) = ring[b"nodes"].items
    assert fields(node)[b"primaries"].text == b"%d" % SLOT_COUNT
    assert ring[b"n"].text == b"1"
    clock = fields(alone.ask(f"KV.CLOCK {slot_of(b'k')}"))
    (actor,) = clock[b"actors"].items
    assert fields(actor)[b"node"].text == b"alone"
    assert fields(actor)[b"counter"].text == b"1"
    assert fields(actor)[b"actor"].text == b"%016x" % alone.node.replica.actor
    assert clock[b"unsettled"].text == b"0"


@pytest.mark.parametrize("slot", ["-1", "16384", "x", "1.5", "''"])
def test_a_slot_is_checked(alone: Alone, slot: str) -> None:
    assert text(alone, f"KV.CLOCK {slot}").decode() == INVALID_SLOT


def test_a_trace_needs_a_cluster(alone: Alone) -> None:
    assert text(alone, "KV.TRACE GET k") == (
        b"ERR KV.TRACE shows how the nodes of a cluster work together, and this node is in none"
    )


def test_the_drill_is_off_unless_it_is_allowed_and_needs_others(alone: Alone) -> None:
    for words in ("CUT b", "MUTE b", "HEAL", "SHOW"):
        assert text(alone, f"KV.DRILL {words}").startswith(b"ERR KV.DRILL is off: ")
    alone.node.config.debug.drill = True
    for words in ("CUT b", "MUTE b", "HEAL", "SHOW"):
        assert text(alone, f"KV.DRILL {words}").startswith(b"ERR this node is in no cluster")
    assert text(alone, "KV.DRILL CUT").startswith(b"ERR wrong number of arguments")


def test_all_of_them_are_documented(alone: Alone) -> None:
    names = ("KV.NODES", "KV.PREFLIST", "KV.RING", "KV.CLOCK", "KV.TRACE", "KV.DRILL")
    reply = alone.ask("COMMAND DOCS " + " ".join(names))
    assert reply is not None
    assert [item.text.decode().upper() for item in reply.items[::2]] == list(names)
    reply = alone.ask("KV.HELP")
    assert reply is not None
    help_text = b"\n".join(item.text for item in reply.items)
    for name in names:
        assert f"\n{name}".encode() in help_text
    drill = alone.ask("KV.DRILL HELP")
    assert drill is not None
    for word in (b"CUT <node>", b"MUTE <node>", b"HEAL", b"SHOW"):
        assert any(item.text.startswith(word) for item in drill.items)


def test_every_node_shows_the_same_ring_and_each_its_own_view() -> None:
    @clustered(nodes=5)
    async def _(cluster: Cluster) -> None:
        rings = [told(await cluster.ask(name, "KV.RING")) for name in cluster.names]
        assert len({str(ring["lists"]) for ring in rings}) == 1
        for name, ring in zip(cluster.names, rings, strict=True):
            mine = [told(each) for each in ring["nodes"] if told(each)["myself"]]
            assert [each["name"].decode() for each in mine] == [name]
        before = await replicas(cluster, "k")
        dead = before[0]
        cluster.kill(dead)
        await cluster.know(dead, is_up=False)
        asked = next(name for name in cluster.names if name != dead)
        shown = told(await cluster.ask(asked, "KV.PREFLIST", "k"))
        assert shown["coordinator"].decode() == before[1]
        states = [told(each)["state"] for each in shown["replicas"]]
        assert states == [b"down", b"up", b"up"]
        ring = told(await cluster.ask(asked, "KV.RING"))
        (gone,) = [told(each) for each in ring["nodes"] if told(each)["name"].decode() == dead]
        assert gone["state"] == b"down"
        assert gone["coordinates"] == 0
        assert gone["primaries"] > 0
        assert ring["slots_ok"] == SLOT_COUNT


def test_a_clock_names_the_writers_and_the_gaps() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        first, second, third = await replicas(cluster, "k")
        for number in range(3):
            await cluster.ask(third, "SET", "k", number)
        await trio.sleep(1)
        slot = slot_of(b"k")
        for name in cluster.names:
            shown = told(await cluster.ask(name, "KV.CLOCK", slot))
            (actor,) = [told(each) for each in shown["actors"]]
            assert actor["node"].decode() == first
            assert (actor["counter"], actor["beyond"]) == (3, [])
        node = cluster.node(first)
        dot = (cluster.node(second).replica.actor, 7)
        node.replica.clocks.add(slot, dot)
        shown = told(await cluster.ask(first, "KV.CLOCK", slot))
        actors: dict[str, Any] = {
            told(each)["node"].decode(): told(each) for each in shown["actors"]
        }
        assert (actors[second]["counter"], actors[second]["beyond"]) == (0, [7])
        assert shown["unsettled"] == 0


def test_a_slot_is_unsettled_while_a_write_waits_for_its_replicas() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        first, *_ = await replicas(cluster, "k")
        session = cluster.session(first)
        session.send("SET", "k", "v")
        session.send("KV.CLOCK", slot_of(b"k"))  # Answered when the write is settled.
        other = cluster.session(first)
        other.send("KV.CLOCK", slot_of(b"k"))
        unsettled = told(await other.reply())["unsettled"]
        assert await session.reply() == b"OK"
        assert unsettled == 1
        assert told(await session.reply())["unsettled"] == 0
        assert row_of(0, b"k") in cluster.node(first).store.active[slot_of(b"k")]
