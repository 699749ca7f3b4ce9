"""`respkv ring`: a drawing of who owns which slots, from what KV.RING answers.

    ring of cluster local: 3 nodes, n=3 r=2 w=2, epoch 1
    16384 slots: all of them are served

    slot 0                       first replica                           16383
         AAAAABBBBBBBCCCCCCAAAAAABBBBBBBBCCCCCCCAAAAAAACCCCCCBBBBBBAAAAAACCC

    zone rack-1
    A a               up         first #####......... 33% holds ############## 100%
      weight 1, first in 0-99 300-420 ... (17 ranges)

Each letter of the strip stands for the node that is the first replica of most slots there; `!` where some
have no replica within reach. A node that is down is shown with `x` instead of `#`. No line is longer than `WIDTH`.

Core: text out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from respkv.tools.redis_cli import fields

WIDTH: Final = 80
STRIP: Final = 70  # Characters of the strip of slots.
BAR: Final = 14
LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
RED, YELLOW, PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[0m"


@dataclass(frozen=True, slots=True)
class RingNode:
    """One node of KV.RING. `primaries`, `replicas` and `coordinates` are numbers of slots."""

    name: str
    host: str
    port: int
    state: str
    zone: str
    data_centre: str
    weight: int
    primaries: int
    replicas: int
    coordinates: int


@dataclass(frozen=True, slots=True)
class Ring:
    """What KV.RING answers. `lists`: each preference list, with its ranges of slots."""

    cluster: str
    epoch: int
    n: int
    r: int
    w: int
    slots: int
    slots_ok: int
    slots_unserved: int
    nodes: list[RingNode]
    lists: list[tuple[list[str], list[tuple[int, int]]]]


def ring_of(reply: Any) -> Ring:
    """Parse the reply of KV.RING."""
    told = fields(reply)
    nodes = [_node_of(fields(node)) for node in told["nodes"]]
    lists = []
    for each in map(fields, told["lists"]):
        ranges = [_range(text) for text in each["ranges"].decode().split()]
        lists.append(([name.decode() for name in each["replicas"]], ranges))
    numbers = {
        name: told[name] for name in ("epoch", "n", "r", "w", "slots", "slots_ok", "slots_unserved")
    }
    return Ring(told["cluster"].decode(), **numbers, nodes=nodes, lists=lists)


def _node_of(told: dict[str, Any]) -> RingNode:
    values: dict[str, Any] = {}
    for name in RingNode.__dataclass_fields__:
        value = told[name]
        values[name] = value.decode() if isinstance(value, bytes) else value
    return RingNode(**values)


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def ring_json(ring: Ring) -> dict[str, Any]:
    """The same for scripts; ranges are pairs of the first and the last slot."""
    shown = {name: getattr(ring, name) for name in Ring.__dataclass_fields__}
    shown["nodes"] = [
        {name: getattr(node, name) for name in RingNode.__dataclass_fields__} for node in ring.nodes
    ]
    shown["lists"] = [{"replicas": names, "ranges": ranges} for names, ranges in ring.lists]
    return shown


def ring_lines(ring: Ring, *, is_coloured: bool = False, shows_all: bool = False) -> list[str]:
    """The drawing. `shows_all`: every range of slots, on as many lines as that takes."""
    letters = {node.name: letter_of(number) for number, node in enumerate(ring.nodes)}
    lines = [
        _cut(
            f"ring of cluster {ring.cluster}: {len(ring.nodes)} nodes, n={ring.n} r={ring.r} "
            f"w={ring.w}, epoch {ring.epoch}"
        ),
        served_line(ring),
        "",
        f"slot 0{'first replica':^{STRIP - 6}}{ring.slots - 1}",
        f"     {strip_of(ring, letters)}",
    ]
    nodes = sorted(ring.nodes, key=lambda node: (node.data_centre, node.zone, node.name))
    for (centre, zone), group in groupby(nodes, lambda node: (node.data_centre, node.zone)):
        lines += ["", _cut(_place_line(centre, zone))]
        for node in group:
            lines.append(_coloured(_node_line(ring, node, letters[node.name]), node, is_coloured))
            lines += _range_lines(ring, node, shows_all=shows_all)
    return lines


def letter_of(number: int) -> str:
    return LETTERS[number] if number < len(LETTERS) else "*"


def served_line(ring: Ring) -> str:
    """How many slots are served, as the node that was asked sees it."""
    if ring.slots_ok == ring.slots:
        return f"{ring.slots} slots: all of them are served"
    few = ring.slots - ring.slots_ok
    none = f", {ring.slots_unserved} have none" if ring.slots_unserved else ""
    return f"{ring.slots} slots: {few} of them have too few replicas within reach{none}"


def strip_of(ring: Ring, letters: dict[str, str]) -> str:
    """The slots in `STRIP` characters."""
    down = {node.name for node in ring.nodes if node.state == "down"}
    cells: list[Counter[str]] = [Counter() for _ in range(STRIP)]
    for replicas, ranges in ring.lists:
        letter = "!" if down.issuperset(replicas) else letters[replicas[0]]
        for first, last in ranges:
            at = first
            while at <= last:
                cell = at * STRIP // ring.slots
                after = min(last + 1, -(-(cell + 1) * ring.slots // STRIP))
                cells[cell][letter] += after - at
                at = after
    return "".join(
        max(cell, key=lambda letter: (letter == "!", cell[letter], letter)) if cell else " "
        for cell in cells
    )


def _place_line(centre: str, zone: str) -> str:
    words = [f"data centre {centre}"] if centre else []
    words += [f"zone {zone}"] if zone else []
    return ", ".join(words) or "no zone"


def _node_line(ring: Ring, node: RingNode, letter: str) -> str:
    mark = "x" if node.state == "down" else "#"
    first, holds = (_bar(count, ring.slots, mark) for count in (node.primaries, node.replicas))
    return f"{letter} {_cut(node.name, 15):<15} {node.state:<10} first {first} holds {holds}"


def _bar(count: int, slots: int, mark: str) -> str:
    part = count / slots
    full = min(BAR, round(part * BAR))
    full = max(full, 1) if count else 0  # Little is not nothing.
    return f"{mark * full}{'.' * (BAR - full)}{100 * part:4.0f}%"


def _range_lines(ring: Ring, node: RingNode, *, shows_all: bool) -> list[str]:
    """Where a node is first, as many ranges as fit into a line."""
    owned = sorted(
        each for replicas, ranges in ring.lists if replicas[0] == node.name for each in ranges
    )
    merged: list[tuple[int, int]] = []
    for first, last in owned:
        if merged and merged[-1][1] == first - 1:
            merged[-1] = (merged[-1][0], last)
        else:
            merged.append((first, last))
    head = f"  weight {node.weight}, first in "
    if not merged:
        return [f"{head}no slot"]
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in merged]
    tail = f" ... ({len(merged)} ranges)"
    if shows_all:
        return _wrapped(head, texts)
    line = head + texts[0]
    for number, text in enumerate(texts[1:], 1):
        room = WIDTH - (len(tail) if number < len(texts) - 1 else 0)
        if len(line) + 1 + len(text) > room:
            return [line + tail]
        line += f" {text}"
    return [line]


def _wrapped(head: str, texts: list[str]) -> list[str]:
    lines = [head.rstrip()]
    for text in texts:
        if len(lines[-1]) + 1 + len(text) > WIDTH:
            lines.append("   ")
        lines[-1] += f" {text}"
    return lines


def _coloured(line: str, node: RingNode, is_coloured: bool) -> str:
    colour = {"down": RED, "incomplete": YELLOW}.get(node.state)
    return f"{colour}{line}{PLAIN}" if is_coloured and colour else line


def _cut(text: str, width: int = WIDTH) -> str:
    return text if len(text) <= width else text[: width - 1] + "~"
