"""How even the claim is, how little it moves, how small it is and how long it takes.

    python -m bench.ring [--nodes 3 5 10]

For each size, with equal and unequal weights and with and without zones, one claim is computed
from nothing, then with one more node, then without the first one. The least that a join must move
is what the newcomer gets of its fair share; the least for a leave is what the leaver owned. Each figure
stands beside its aim; `!` marks one that missed it.

Zones are drawn evenly (a, b, c, a, ...). Where a size cannot be divided by them, zones yield to the
balance of nodes, and `crowded` counts the slots with fewer zones than there could be; there is no aim
for it, and repairing what became possible again moves more than the least.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.report import columns
from cluster.claim import Claim, diff, moved_count, violations
from cluster.placement import claim
from cluster.quota import fair_primaries, fair_shares
from cluster.ring import Member

N = 3
SIZES = (3, 5, 10, 30, 100, 300, 1000)
WEIGHTS = {"equal": (1,), "1:2:4": (1, 2, 4)}
ZONES = {"none": ("",), "3": ("a", "b", "c"), "4": ("a", "b", "c", "d")}
EXCESS_AIM = 1.05
MOVES_AIM = 1.15
BYTES_AIM = 300_000
SECONDS_AIM = {5: 0.1, 1000: 5.0}  # Up to so many nodes.


@dataclass(frozen=True, slots=True)
class Busiest:
    """The busiest node: its load over its fair share, and slots above it."""

    ratio: float
    above: float

    @property
    def text(self) -> str:
        is_met = self.ratio <= EXCESS_AIM or self.above <= 1
        return f"{self.ratio:.3f} (+{self.above:.1f}){marked(is_met=is_met)}"


def marked(*, is_met: bool) -> str:
    return " " if is_met else "!"


def members_of(count: int, weights: Sequence[int], zones: Sequence[str]) -> list[Member]:
    """Members with names as long as the node ids of Redis Cluster."""
    return [
        Member(f"{index:040x}", weights[index % len(weights)], zones[index % len(zones)])
        for index in range(count)
    ]


def busiest(made: Claim, members: Sequence[Member], *, primaries: bool) -> Busiest:
    weights = [member.weight for member in members]
    shares = fair_primaries(weights) if primaries else fair_shares(weights, min(N, len(members)))
    counts = made.primary_counts("") if primaries else made.replica_counts("")
    loads = [
        (counts[member.id], float(share)) for member, share in zip(members, shares, strict=True)
    ]
    return Busiest(
        ratio=max(count / share for count, share in loads),
        above=max(0.0, max(count - share for count, share in loads)),
    )


def moves_text(moved: int, least: float) -> str:
    if least < 1:
        return f"{moved} / 0{marked(is_met=not moved)}"
    is_met = moved <= max(MOVES_AIM * least, least + 1)
    return f"{moved} / {least:.0f} = {moved / least:.3f}{marked(is_met=is_met)}"


def row(count: int, weight_name: str, zone_name: str) -> list[str]:
    """One layout: its three claims, and what is said about them."""
    everyone = members_of(count + 1, WEIGHTS[weight_name], ZONES[zone_name])
    members, fewer = everyone[:-1], everyone[1:]
    n_by_dc = {"": N}
    times = []
    made: list[Claim] = []
    for group in (members, everyone, fewer):
        start = time.perf_counter()
        made.append(claim(group, n_by_dc, made[-1] if made else None))
        times.append(time.perf_counter() - start)
    first, joined, left = made
    join_least = float(fair_shares([m.weight for m in everyone], min(N, count + 1))[-1])
    leave_least = joined.replica_counts("")[everyone[0].id] if count >= N else 0
    if len(fewer) < N:
        leave_least = 0
    elif len(fewer) == N:
        leave_least = N * len(first.tables[""]) - sum(
            joined.replica_counts("")[member.id] for member in fewer
        )
    crowded = sum(len(found.crowded) for found in violations(joined, everyone, n_by_dc))
    size = len(joined.encoded)
    seconds_aim = next(aim for most, aim in SECONDS_AIM.items() if count <= most)
    return [
        str(count),
        weight_name,
        zone_name,
        busiest(joined, everyone, primaries=True).text,
        busiest(joined, everyone, primaries=False).text,
        busiest(left, fewer, primaries=False).text,
        moves_text(moved_count(diff(first, joined)), join_least),
        moves_text(moved_count(diff(joined, left)), leave_least),
        str(sum(1 for _ in first.runs(""))),
        str(sum(1 for _ in left.runs(""))),
        f"{size}{marked(is_met=size <= BYTES_AIM)}",
        " ".join(f"{seconds * 1e3:.0f}" for seconds in times)
        + marked(is_met=max(times) <= seconds_aim),
        str(crowded),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=list(SIZES))
    arguments = parser.parse_args()
    heading = ["nodes", "weights", "zones", "busiest primary", "busiest", "busiest, left"]
    heading += ["join moves / least", "leave moves / least", "runs", "runs later", "bytes"]
    heading += ["ms first join leave", "crowded"]
    aims = ["aims", "", "", f"{EXCESS_AIM} or +1", f"{EXCESS_AIM} or +1", f"{EXCESS_AIM} or +1"]
    aims += [f"{MOVES_AIM}", f"{MOVES_AIM}", "few", "few", str(BYTES_AIM)]
    aims += [", ".join(f"{aim * 1e3:.0f} to {most}" for most, aim in SECONDS_AIM.items()), ""]
    rows = [
        row(count, weight_name, zone_name)
        for count in arguments.nodes
        for weight_name in WEIGHTS
        for zone_name in ZONES
    ]
    print(columns([heading, aims, *rows]))


if __name__ == "__main__":
    main()
