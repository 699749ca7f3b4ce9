"""The ring: where slots and nodes lie, and who stands clockwise of whom.

It is not the table of who owns what: that is the claim (`cluster/claim.py`), which begins at the ring
and then moves as little as it can. The ring is asked for the first placement of a node, and for the
nodes that stand in when owners of a slot are away.

    position   0 ................................................ 2**64
    slots      0     1     2     3   ...                     16383         evenly spaced, in order
    tokens       b      a  c        b     ...                              hashed

A node owns *tokens*, as many as its weight says; token `i` of a node is always at the same position,
so that a heavier node keeps the tokens that it had. A slot belongs to the first token at or after it,
and its preference list goes on clockwise: each node once, and no zone twice while a zone remains.
Slots are in order and not hashed, so that neighbours share owners and runs of slots stay long.

Core: no I/O, no randomness. Sources: Karger et al., consistent hashing; DeCandia et al., Dynamo
(strategy 3: equal partitions).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from cluster.slot import SLOT_COUNT, Slot

NodeId = str  # Names a node for good; unique in the cluster.

POSITION_BITS: Final = 64
SLOT_SHIFT: Final = POSITION_BITS - (SLOT_COUNT - 1).bit_length()
TOKENS_PER_MEMBER: Final = 16  # On average; more spread the load of a lost node over more others.
TOKENS_MAX: Final = 4096  # In all, so that with many nodes a token still has several slots.


@dataclass(frozen=True, slots=True)
class Member:
    """A node as placement sees it.

    `weight` is relative to the other members of the data centre, in any unit. With weight 0 a node
    owns nothing: that is how one leaves. Members without zones are all in one, the empty one.
    """

    id: NodeId
    weight: int = 1
    zone: str = ""
    data_centre: str = ""

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"the weight of {self.id} is negative: {self.weight}")


def position_of(slot: Slot) -> int:
    """Where a slot lies."""
    return slot << SLOT_SHIFT


def token_of(node: NodeId, index: int) -> int:
    """Where the token with this index of a node lies."""
    name = index.to_bytes(4, "big") + node.encode()
    return int.from_bytes(blake3(name).digest(8), "big")


def token_counts(weights: Sequence[int]) -> list[int]:
    """How many tokens each of these weights gets: at least one, and by weight beyond that."""
    total = min(TOKENS_PER_MEMBER * len(weights), max(TOKENS_MAX, len(weights)))
    whole = sum(weights)
    return [max(1, (2 * weight * total + whole) // (2 * whole)) for weight in weights]


class Ring:
    """The members with weight, placed by their tokens.

    Tokens are numbered clockwise; `owners[i]` is an index into `members`, which are ordered by name.
    """

    def __init__(self, members: Iterable[Member]) -> None:
        self.members = tuple(sorted((m for m in members if m.weight), key=lambda m: m.id))
        assert len({member.id for member in self.members}) == len(self.members)
        counts = token_counts([member.weight for member in self.members])
        tokens = sorted(
            (token_of(member.id, number), index)
            for index, member in enumerate(self.members)
            for number in range(counts[index])
        )
        self.positions = [position for position, _ in tokens]
        self.owners = [index for _, index in tokens]

    def first_token(self, slot: Slot) -> int:
        """The number of the token that a slot belongs to."""
        return bisect_left(self.positions, position_of(slot)) % len(self.positions)

    def walk(self, slot: Slot) -> Iterator[Member]:
        """Each member once, clockwise from a slot."""
        if not self.members:
            return
        start = self.first_token(slot)
        seen = [False] * len(self.members)
        for index in self.owners[start:] + self.owners[:start]:
            if not seen[index]:
                seen[index] = True
                yield self.members[index]

    def preference(self, slot: Slot, n_by_dc: Mapping[str, int]) -> tuple[NodeId, ...]:
        """The list that plain tokens give: N of each data centre in the order of the walk.

        It is unbalanced, and what the claim improves on.
        """
        walked = list(self.walk(slot))
        chosen = {
            member.id
            for data_centre in n_by_dc
            for member in distinct_zones(
                [m for m in walked if m.data_centre == data_centre], n_by_dc[data_centre]
            )
        }
        return tuple(member.id for member in walked if member.id in chosen)


def distinct_zones(walked: Sequence[Member], count: int) -> list[Member]:
    """The first `count` members of a walk, passing by zones already taken while others remain."""
    zones: set[str] = set()
    firsts: list[Member] = []
    others: list[Member] = []
    for member in walked:
        (others if member.zone in zones else firsts).append(member)
        zones.add(member.zone)
    return (firsts + others)[:count]
