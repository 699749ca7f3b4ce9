"""The drawing of a ring: that it fits, that it tells the truth, and that the other forms have the same numbers."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import hiredis
import pytest

from cluster.slot import SLOT_COUNT
from cluster.topology import NodeInfo, Topology
from respkv.reply import encode
from respkv.ring_view import alone, ring_reply
from respkv.tools.ring import PLAIN, RED, STRIP, WIDTH, YELLOW, Ring, ring_json, ring_lines, ring_of


def parsed(reply: Any) -> Any:
    """As a RESP2 client gets it."""
    reader = hiredis.Reader()
    reader.feed(encode(reply, resp3=False))
    return reader.gets()


def ring(
    count: int, n: int = 3, *, down: str = "", incomplete: str = "", zones: int = 1, long: str = ""
) -> Ring:
    nodes = [
        NodeInfo(f"{name}{long}", "10.0.0.1", 7000 + number, 7100, 17000, zone=f"rack-{number % zones}{long}")
        for number, name in enumerate("abcdefghijklmnopqrstuvwxyz"[:count])
    ]  # fmt: skip
    made = Topology(f"a{long}", nodes, n)
    for name in down:
        made.mark(name, is_reachable=False)
    for name in incomplete:
        made.mark_complete(name, is_complete=False)
    return ring_of(parsed(ring_reply(made, f"test{long}", n, 2, 2)))


@pytest.mark.parametrize("count", [3, 5, 26])
@pytest.mark.parametrize("long", ["", "-" + "x" * 60])
def test_it_fits_the_terminal(count: int, long: str) -> None:
    for shows_all in (False, True):
        lines = ring_lines(ring(count, zones=3, long=long), shows_all=shows_all)
        assert max(map(len, lines)) <= WIDTH
        assert all(line.isascii() for line in lines)


def test_bars_and_shares() -> None:
    lines = ring_lines(ring(3))
    (line,) = [line for line in lines if line.startswith("B ")]
    first, _, holds = line.partition(" holds ")
    assert "b " in first
    assert " up " in first
    assert first.count("#") == 5
    assert first.endswith(" 33%")
    assert holds == "#" * 14 + " 100%"


def test_zones_are_headings() -> None:
    lines = ring_lines(ring(4, zones=2))
    assert lines.index("zone rack-0") < lines.index("zone rack-1")
    between = lines[lines.index("zone rack-0") : lines.index("zone rack-1")]
    assert [line[0] for line in between if re.match("[A-Z] ", line)] == ["A", "C"]


def test_the_strip_has_each_first_replica_as_often_as_it_has_slots() -> None:
    made = ring(5)
    (strip,) = [line[5:] for line in ring_lines(made) if line.startswith("     ")]
    assert len(strip) == STRIP
    counts = Counter(strip)
    assert set(counts) == set("ABCDE")
    assert max(counts.values()) - min(counts.values()) <= STRIP // 4
    # The first cell is the letter of the node that is first in most of its slots.
    owners: Counter[str] = Counter()
    for names, ranges in made.lists:
        for first, last in ranges:
            owners[names[0]] += max(0, min(last, SLOT_COUNT // STRIP) - first + 1)
    ((name, _),) = owners.most_common(1)
    assert strip[0] == name.upper()


def test_who_is_down_shows() -> None:
    lines = ring_lines(ring(5, down="bcde"))
    text = "\n".join(lines)
    assert "!" in next(line for line in lines if line.startswith("     "))
    (line,) = [line for line in lines if line.startswith("B ")]
    assert " down " in line
    assert "#" not in line
    assert "x" in line
    lines = ring_lines(ring(5, incomplete="e"))
    assert " incomplete " in next(line for line in lines if line.startswith("E "))
    assert "!" not in "".join(lines)
    assert "16384 of them have too few replicas within reach" in text
    assert "have none" in text


def test_colours_only_where_something_is_wrong() -> None:
    made = ring(3, down="b", incomplete="c")
    coloured = ring_lines(made, is_coloured=True)
    assert next(line for line in coloured if line.startswith(RED)).endswith(PLAIN)
    assert any(line.startswith(YELLOW) for line in coloured)
    assert [re.sub("\x1b\\[[0-9]*m", "", line) for line in coloured] == ring_lines(made)
    assert "\x1b" not in "\n".join(ring_lines(ring(3), is_coloured=True))


def test_all_ranges_are_shown_if_asked_for() -> None:
    made = ring(3)
    lines = ring_lines(made, shows_all=True)
    head = next(number for number, line in enumerate(lines) if line.startswith("A "))
    block = lines[head + 1 :]
    end = next((n for n, line in enumerate(block) if not line.startswith("  ")), len(block))
    shown = " ".join(block[:end]).partition(" first in ")[2].split()
    slots = {
        slot
        for text in shown
        for slot in range(int(text.partition("-")[0]), int(text.rpartition("-")[2]) + 1)
    }
    expected = {
        slot
        for names, ranges in made.lists
        if names[0] == "a"
        for first, last in ranges
        for slot in range(first, last + 1)
    }
    assert slots == expected
    few = next(line for line in ring_lines(made) if "first in" in line)
    assert re.search(r" \.\.\. \(\d+ ranges\)$", few)


def test_one_node_alone() -> None:
    made = ring_of(parsed(ring_reply(alone("me", "127.0.0.1", 6379), "respkv", 1, 1, 1)))
    text = "\n".join(ring_lines(made))
    assert "A" * STRIP in text
    assert "first in 0-16383" in text


def test_a_node_without_slots() -> None:
    nodes = [NodeInfo("a", "h", 1, 2, 3), NodeInfo("b", "h", 4, 5, 6, weight=0)]
    made = ring_of(parsed(ring_reply(Topology("a", nodes, 1), "test", 1, 1, 1)))
    lines = ring_lines(made)
    line = next(line for line in lines if line.startswith("B "))
    assert line.endswith("first ..............   0% holds ..............   0%")
    assert "  weight 0, first in no slot" in lines


def test_json_has_the_same() -> None:
    made = ring(5, down="b")
    shown = json.loads(json.dumps(ring_json(made)))
    assert shown["cluster"] == "test"
    assert [node["state"] for node in shown["nodes"]] == ["up", "down", "up", "up", "up"]
    slots = sum(last - first + 1 for each in shown["lists"] for first, last in each["ranges"])
    assert slots == shown["slots"] == SLOT_COUNT
