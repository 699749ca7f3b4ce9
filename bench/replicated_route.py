"""Which node gets which key: CLUSTER SLOTS as a client reads it (core).

It asks nobody: the reply is an argument. A *route* is a list of slot ranges, each with the address
that takes its keys. A load that goes through one node has a route of one range.

Each connection of a load belongs to one address, as in `redis-benchmark --cluster`: a pipeline then
holds keys of one node alone. Connections are shared out by the number of keys, so that every key is
asked for equally often.

Source: the Redis documentation of CLUSTER SLOTS. Here every node answers first as a primary, so the
first node of a range coordinates it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias, cast

from bench.connection import Address
from bench.load import key
from cluster.slot import SLOT_COUNT, slot_of


@dataclass(eq=False)
class RouteUnusable(Exception):
    """A reply to CLUSTER SLOTS that does not say where every key goes. The run cannot begin."""

    what: str

    def __str__(self) -> str:
        return f"CLUSTER SLOTS: {self.what}"


@dataclass(frozen=True, slots=True)
class SlotRange:
    """Slots from `first` to `last`, both included, and where their keys are sent."""

    first: int
    last: int
    address: Address


Route: TypeAlias = tuple[SlotRange, ...]
"""Ranges in order that cover every slot once."""


def everything_at(address: Address) -> Route:
    """The route through one node."""
    return (SlotRange(0, SLOT_COUNT - 1, address),)


def parse_cluster_slots(reply: object, asked: Address) -> Route:
    """Read a reply to CLUSTER SLOTS that `asked` gave. Raises RouteUnusable."""
    if not isinstance(reply, list):
        raise RouteUnusable(f"not a list: {reply!r:.200}")
    ranges = sorted((_range(each, asked) for each in reply), key=lambda one: one.first)
    expected = 0
    for one in ranges:
        if one.first != expected or one.last < one.first:
            raise RouteUnusable(f"slot {expected} is not covered once: {one.first}-{one.last}")
        expected = one.last + 1
    if expected != SLOT_COUNT:
        raise RouteUnusable(f"slot {expected} is not covered")
    return tuple(ranges)


@lru_cache(maxsize=8)
def keys_by_address(route: Route, key_count: int) -> Mapping[Address, Sequence[bytes]]:
    """All keys of a load, by the address that they are sent to."""
    owners = [one.address for one in route for _ in range(one.first, one.last + 1)]
    found: dict[Address, list[bytes]] = {}
    for number in range(key_count):
        name = key(number)
        found.setdefault(owners[slot_of(name)], []).append(name)
    return found


def shared_out(count: int, weights: Mapping[Address, int]) -> dict[Address, int]:
    """Share `count` connections out by weight, one at least for each address.

    Raises RouteUnusable when there are fewer connections than addresses.
    """
    if count < len(weights):
        raise RouteUnusable(f"{count} connections cannot reach {len(weights)} nodes")
    total = sum(weights.values())
    shares = {address: max(1, count * weight // total) for address, weight in weights.items()}
    while (left := count - sum(shares.values())) != 0:
        # Whoever is furthest from its due share gains (or loses) one.
        gaps = {address: count * weights[address] / total - shares[address] for address in weights}
        if left > 0:
            shares[max(gaps, key=gaps.__getitem__)] += 1
        else:
            richest = min((each for each in gaps if shares[each] > 1), key=gaps.__getitem__)
            shares[richest] -= 1
    return shares


def _range(entry: object, asked: Address) -> SlotRange:
    """One entry: first slot, last slot, the coordinator, and then the other replicas."""
    try:
        first, last, (host, port, *_), *_ = cast("list[Any]", entry)
        # No host means: the one that was asked.
        name = host.decode() if host and host != b"?" else asked[0]
        return SlotRange(int(first), int(last), (name, int(port)))
    except (TypeError, ValueError, AttributeError) as error:
        raise RouteUnusable(f"an entry that cannot be read: {entry!r:.200}") from error
