"""Windows of slots, and who has seen more of them."""

from __future__ import annotations

import pytest

from cluster.slot import SLOT_COUNT
from cluster.slot_clocks import SlotClocks
from cluster.topology import NodeInfo, Topology
from respkv.gather_clock import covers, hash_of, lags, parse, seen_of, windows_of

WINDOW = (256, 512)


def clocks(actor: int, *dots: tuple[int, int, int]) -> SlotClocks:
    """Clocks of an actor that has seen dots: slot, actor, counter."""
    made = SlotClocks(actor)
    for slot, *dot in dots:
        made.add(slot, (dot[0], dot[1]))
    return made


def compare(mine: SlotClocks, theirs: SlotClocks) -> tuple[bool, bool, bool]:
    """Whether the hashes are equal, whether mine lags, whether theirs covers mine."""
    seen = parse(seen_of(theirs, WINDOW), WINDOW)
    return (
        hash_of(mine, WINDOW) == hash_of(theirs, WINDOW),
        lags(mine, WINDOW, seen),
        covers(seen, parse(seen_of(mine, WINDOW), WINDOW), WINDOW),
    )


A1, A2, A3 = (300, 1, 1), (300, 1, 2), (300, 1, 3)


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        ([], [], (True, False, True)),
        ([A1], [A1], (True, False, True)),
        ([A1], [], (False, False, False)),
        ([], [A1], (False, True, True)),
        ([A1, A2], [A1], (False, False, False)),
        ([A1], [A1, A2], (False, True, True)),
        ([A1, A3], [A1], (False, False, False)),  # Beyond a gap.
        ([A1], [A1, A3], (False, True, True)),
        ([A1, A3], [A1, A2], (False, True, False)),
        ([A1, A3], [A1, A2, A3], (False, True, True)),
        ([A1, A2, A3], [A1, A3], (False, False, False)),
        ([A1, A3], [A1, A3], (True, False, True)),
        ([A1, (301, 2, 1)], [A1, (302, 2, 1)], (False, True, False)),
        ([(512, 1, 1)], [(255, 1, 1)], (True, False, True)),  # Other windows.
    ],
)
def test_who_has_seen_more(
    mine: list[tuple[int, int, int]],
    theirs: list[tuple[int, int, int]],
    expected: tuple[bool, bool, bool],
) -> None:
    assert compare(clocks(7, *mine), clocks(8, *theirs)) == expected


def test_it_does_not_matter_whose_clocks_they_are() -> None:
    assert compare(clocks(1, A1, A2), clocks(8, A1, A2)) == (True, False, True)
    assert compare(clocks(1, A1), clocks(8, A1, A2)) == (False, True, True)


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x92\x81\x01\xc4\x01x\x90", b"\x92\x80\x91\x93\x01\x01\x01"]
)
def test_what_cannot_be_read_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"clocks|dots"):
        parse(data, WINDOW)


@pytest.mark.parametrize("nodes", [1, 3, 5])
def test_windows_cover_each_slot_once(nodes: int) -> None:
    infos = [NodeInfo(chr(97 + n), "127.0.0.1", 1, 2, 3) for n in range(nodes)]
    topology = Topology("a", infos, min(3, nodes))
    spans = [(0, 100), (300, 301), (1000, SLOT_COUNT)]
    found: list[int] = []
    for replicas, windows in windows_of(topology, spans).items():
        for first, end in windows:
            assert first // 256 == (end - 1) // 256
            assert all(set(topology.preferences[slot]) == replicas for slot in range(first, end))
            found += range(first, end)
    assert sorted(found) == [slot for first, end in spans for slot in range(first, end)]
