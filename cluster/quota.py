"""Quotas: how many slots each node of one data centre should own, in whole numbers.

Not who owns which slot: `cluster/placement.py` fits the table to these. A slot has `n` replicas on
distinct nodes, so no node can own more than all slots; what a heavy node cannot take goes to the
others by weight. That is the *fair share*, and three rules make quotas of it:

1. *Zones.* A slot lies in as many zones as it can, so the best zone total is all slots or less, when
   there are zones enough. A zone that is too large for that gives to smaller ones, but no node is
   stretched past `EXCESS_MAX` of its fair share: balance goes before zones, so that one node alone in
   its zone does not become a replica of everything.
2. *Whole numbers* by largest remainder; equal or not, who owns more already gets the one slot that
   is left, because that moves nothing.
3. *Bounds per slot.* A zone with 1.3 times all slots has one or two replicas of each slot: never
   fewer than the floor and never more than the ceiling. Such a table always exists.

Core: exact fractions, so that every process computes the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from cluster.slot import SLOT_COUNT

EXCESS_MAX: Final = Fraction(105, 100)  # What a node may own, as a multiple of its fair share.


@dataclass(frozen=True, slots=True)
class Quota:
    """What one data centre aims at; lists go by member or by zone, in the caller's numbering."""

    replicas: list[int]
    zone_least: list[int]  # Replicas of a slot in each zone.
    zone_most: list[int]


def fair_shares(weights: Sequence[int], n: int, slots: int = SLOT_COUNT) -> list[Fraction]:
    """Replicas by weight, where none can own more than every slot; `n` is at most the nodes."""
    shares = [Fraction(0)] * len(weights)
    free = [index for index, weight in enumerate(weights) if weight]
    left, whole = Fraction(n * slots), sum(weights)
    while free:
        full = [index for index in free if weights[index] * left >= slots * whole]
        if not full:
            break
        for index in full:
            shares[index] = Fraction(slots)
        left -= slots * len(full)
        whole -= sum(weights[index] for index in full)
        free = [index for index in free if not shares[index]]
    for index in free:
        shares[index] = left * weights[index] / whole
    return shares


def fair_primaries(weights: Sequence[int], slots: int = SLOT_COUNT) -> list[Fraction]:
    """Primaries by weight."""
    whole = sum(weights)
    return [Fraction(slots * weight, whole) for weight in weights]


def replica_quota(
    weights: Sequence[int],
    zones: Sequence[int],
    n: int,
    owned: Sequence[int],
    slots: int = SLOT_COUNT,
) -> Quota:
    """The quotas of members with these weights and zones (numbered from 0), who own that much now."""
    zone_count = max(zones) + 1
    shares = _stretched(fair_shares(weights, n, slots), zones, zone_count, slots)
    zone_shares = _zone_sums(shares, zones, zone_count)
    zone_owned = [0] * zone_count
    for index, zone in enumerate(zones):
        zone_owned[zone] += owned[index]
    totals = rounded(zone_shares, n * slots, zone_owned)
    replicas = [0] * len(weights)
    for zone in range(zone_count):
        inside = [index for index in range(len(zones)) if zones[index] == zone]
        parts = rounded(
            [shares[index] for index in inside], totals[zone], [owned[index] for index in inside]
        )
        for index, part in zip(inside, parts, strict=True):
            replicas[index] = part
    return Quota(
        replicas=replicas,
        # With zones enough, one that has just every slot need not be in every list for the others
        # to be in distinct zones; not to insist saves moves.
        zone_least=[total // slots if total > slots or zone_count < n else 0 for total in totals],
        zone_most=[max(1, -(-total // slots)) for total in totals],
    )


def rounded(shares: Sequence[Fraction], total: int, owned: Sequence[int]) -> list[int]:
    """Whole numbers with this sum, each its share rounded up or down.

    Up go first those who own more than their share rounded down, then the largest remainders.
    """
    parts = [share.numerator // share.denominator for share in shares]
    order = sorted(
        (index for index, share in enumerate(shares) if share != parts[index]),
        key=lambda index: (owned[index] <= parts[index], parts[index] - shares[index], index),
    )
    extra = total - sum(parts)
    assert 0 <= extra <= len(order)
    for index in order[:extra]:
        parts[index] += 1
    return parts


def _zone_sums(shares: Sequence[Fraction], zones: Sequence[int], zone_count: int) -> list[Fraction]:
    sums = [Fraction(0)] * zone_count
    for index, zone in enumerate(zones):
        sums[zone] += shares[index]
    return sums


def _stretched(
    shares: list[Fraction], zones: Sequence[int], zone_count: int, slots: int
) -> list[Fraction]:
    """Let zones that are too large for distinct zones give to those that are too small."""
    sums = _zone_sums(shares, zones, zone_count)
    # What each could take on: a whole number of slots in the end, so that rounding up goes no further.
    slack = [max(Fraction(0), int(share * EXCESS_MAX) - share) for share in shares]
    slack_sums = _zone_sums(slack, zones, zone_count)
    spare = [max(Fraction(0), each - slots) for each in sums]
    room = [
        min(slots - each, most) if each < slots else Fraction(0)
        for each, most in zip(sums, slack_sums, strict=True)
    ]
    taken = min(sum(spare), sum(room))
    if not taken:
        return shares
    stretched = []
    for share, more, zone in zip(shares, slack, zones, strict=True):
        if room[zone]:
            share += more / slack_sums[zone] * room[zone] * taken / sum(room)
        elif spare[zone]:
            share -= share / sums[zone] * spare[zone] * taken / sum(spare)
        stretched.append(share)
    return stretched
