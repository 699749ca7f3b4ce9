"""KV.DRILL's part of the bus: links that end at once or go mute, who is refused meanwhile, and healing."""

from __future__ import annotations

import trio

from tests.respkv.bus_harness import Member, buses, quick, until

MUTE_S = 0.1
SILENCE = quick(silence_s=0.6, ping_s=0.2)


def texts(member: Member, peer: str) -> list[list[bytes]]:
    return [message for name, message in member.told.messages if name == peer]


async def connected(*members: Member) -> None:
    names = {member.name for member in members}
    for member in members:
        for peer in names - {member.name}:
            await until(lambda member=member, peer=peer: member.bus.is_connected(peer))  # type: ignore[misc]


async def test_a_cut_ends_links_at_once_whoever_dials_and_keeps_them_away() -> None:
    async with buses("a", "b", "c") as (a, b, c):
        for one, other in ((a, b), (b, a)):  # The dialler, then the other.
            await connected(a, b, c)
            one.told.events.clear()
            other.told.events.clear()
            one.bus.cut_off([other.name], is_silent=False)
            await until(lambda one=one, other=other: ("lost", other.name) in one.told.events)  # type: ignore[misc]
            await until(lambda one=one, other=other: ("lost", one.name) in other.told.events)  # type: ignore[misc]
            await trio.sleep(MUTE_S)
            assert not one.bus.is_connected(other.name)
            assert not other.bus.is_connected(one.name)
            one.bus.send(other.name, [b"LOST"])
            other.bus.send(one.name, [b"LOST"])
            assert one.bus.is_connected("c")
            assert other.bus.is_connected("c")
            assert one.bus.cut == {other.name: False}
            one.bus.heal()
            await connected(a, b, c)
            assert not one.bus.cut
        one.bus.send(other.name, [b"HELLO"])
        await until(lambda: texts(other, one.name) == [[b"HELLO"]])


async def test_who_dials_a_node_that_has_cut_it_off_is_told_why() -> None:
    async with buses("a", "b") as (a, b):
        await connected(a, b)
        b.bus.cut_off(["a"], is_silent=False)
        reason = "a is cut off by KV.DRILL"
        await until(
            lambda: any(reason in each for each in a.told.reasons("a node cannot be reached"))
        )


async def test_a_mute_link_loses_everything_and_tells_nobody_until_it_is_noticed() -> None:
    async with buses("a", "b", limits=SILENCE) as (a, b):
        await connected(a, b)
        a.told.events.clear()
        b.told.events.clear()
        a.bus.cut_off(["b"], is_silent=True)
        a.bus.send("b", [b"LOST"])
        b.bus.send("a", [b"LOST"])
        await trio.sleep(MUTE_S)
        assert (a.told.events, b.told.events) == ([], [])
        assert a.bus.is_connected("b")
        await until(lambda: a.told.events == [("lost", "b")])
        await until(lambda: b.told.events == [("lost", "a")])
        assert texts(a, "b") == texts(b, "a") == []
        assert any("silent" in reason for reason in a.told.reasons("node disconnected"))
        a.bus.heal()
        await connected(a, b)
        a.bus.send("b", [b"HELLO"])
        await until(lambda: texts(b, "a") == [[b"HELLO"]])


async def test_a_mute_link_that_is_healed_before_anybody_noticed_is_made_anew() -> None:
    async with buses("a", "b") as (a, b):
        await connected(a, b)
        a.bus.cut_off(["b"], is_silent=True)
        a.bus.send("b", [b"LOST"])
        await trio.sleep(MUTE_S)
        a.told.events.clear()
        a.bus.heal()
        await until(lambda: a.told.events == [("lost", "b"), ("connected", "b")])
        assert a.told.reasons("node disconnected") == ["KV.DRILL has healed the network"]
        await connected(a, b)
        a.bus.send("b", [b"HELLO"])
        await until(lambda: texts(b, "a") == [[b"HELLO"]])
