"""The drawing of LOLWUT: a ring, nodes on it, and for one key the nodes that keep it.

It is of no use. It shows what respkv is about: a key's place on the ring, and the next three nodes from there.

Core: the randomness is an argument.
"""

from __future__ import annotations

from math import cos, pi, sin
from random import Random
from typing import Final

COLUMNS_MAX: Final = 160
REPLICAS: Final = 3
_ASPECT: Final = 0.5  # A character is twice as high as wide.


def ring_picture(rng: Random, columns: int) -> str:
    """Lines of at most `columns` characters: `.` the ring, `o` a node, `*` a key, `@` a node that keeps it."""
    radius = max(0.0, (columns - 1) / 2)
    rows = max(1, round(2 * radius * _ASPECT) + 1)
    grid = [[" "] * columns for _ in range(rows)]

    def put(turn: float, sign: str) -> None:
        x = radius * (1 + sin(2 * pi * turn))
        y = radius * (1 - cos(2 * pi * turn)) * _ASPECT
        grid[min(rows - 1, round(y))][min(columns - 1, round(x))] = sign

    for step in range(8 * columns):
        put(step / (8 * columns), ".")
    key = rng.random()
    # Clockwise from the key on: a turn's distance decides who keeps it.
    nodes = sorted((rng.random() for _ in range(3 + columns // 6)), key=lambda at: (at - key) % 1)
    for order, at in enumerate(nodes):
        put(at, "@" if order < REPLICAS else "o")
    put(key, "*")
    return "\n".join("".join(line).rstrip() for line in grid) + "\n"
