"""The ring as an operator sees it: what KV.NODES, KV.PREFLIST, KV.RING and KV.CLOCK answer.

It decides nothing: who owns a slot and who can be reached is in `cluster/topology.py`, what a replica has
seen in `cluster/slot_clocks.py`. Nor is it what clients of Redis Cluster are shown (`respkv/cluster_view.py`):
there a slot has a master, here it has its preference list, with those that are down.

Replies are maps and lists of maps, with numbers where a script compares and 0 or 1 for claims. Names of
fields are the same wherever they stand. A node's *state* is one word:

    up            this node reaches it, and it has all that it promised
    incomplete    it is reached, and compares its data with others before it answers
    down          this node cannot reach it

Slots are told as Redis tells them, in one text: `0-99 200 300-5460`. KV.RING has one line for each preference
list that occurs: far fewer than slots.

Core: no I/O.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cluster.claim import Preference
from cluster.clock import Actor, SlotClock
from cluster.ring import NodeId
from cluster.slot import SLOT_COUNT, Slot
from cluster.topology import NodeInfo, Topology
from respkv.reply import Reply

UP: Final = b"up"
INCOMPLETE: Final = b"incomplete"
DOWN: Final = b"down"
_VIEWS_KEPT: Final = 8  # Some, since simulated nodes share a process; a real node needs one.


@dataclass(frozen=True, slots=True)
class Shares:
    """Who owns how much, whatever can be reached: it changes with the epoch only."""

    lists: Mapping[Preference, tuple[int, str]]  # How many slots, and which.
    primaries: Counter[NodeId]
    replicas: Counter[NodeId]


def state_of(topology: Topology, name: NodeId) -> bytes:
    if not topology.is_reachable(name):
        return DOWN
    return INCOMPLETE if name in topology.incomplete else UP


def member(topology: Topology, name: NodeId) -> dict[bytes, Reply]:
    """What is said of a node wherever one is listed."""
    info = topology.nodes[name]
    return {
        b"name": name.encode(),
        b"host": info.host.encode(),
        b"port": info.client_port,
        b"myself": int(name == topology.me),
        b"reachable": int(topology.is_reachable(name)),
        b"complete": int(name not in topology.incomplete),
        b"state": state_of(topology, name),
        b"zone": info.zone.encode(),
        b"data_centre": info.data_centre.encode(),
        b"weight": info.weight,
    }


def nodes_reply(topology: Topology) -> Reply:
    """KV.NODES."""
    return [member(topology, name) for name in topology.nodes]


def preflist_reply(topology: Topology, slot: Slot, r: int, w: int) -> Reply:
    """KV.PREFLIST: the replicas of a slot in their order, and who of them coordinates now."""
    coordinator = topology.coordinator(slot)
    return {
        b"slot": slot,
        b"coordinator": None if coordinator is None else coordinator.encode(),
        b"r": r,
        b"w": w,
        b"replicas": [member(topology, name) for name in topology.replicas(slot)],
    }


def ring_reply(topology: Topology, cluster: str, n: int, r: int, w: int) -> Reply:
    """KV.RING: what each node owns and does, and which slots have which replicas."""
    shares = shares_of(topology, topology.epoch)
    coordinated = Counter(topology.coordinators)
    nodes: list[Reply] = [
        member(topology, name)
        | {
            b"primaries": shares.primaries[name],
            b"primary_share": _percent(shares.primaries[name]),
            b"replicas": shares.replicas[name],
            b"replica_share": _percent(shares.replicas[name]),
            b"coordinates": coordinated[name],
        }
        for name in topology.nodes
    ]
    lists: list[Reply] = [
        {
            b"replicas": [name.encode() for name in replicas],
            b"slots": count,
            b"ranges": ranges.encode(),
        }
        for replicas, (count, ranges) in shares.lists.items()
    ]
    return {
        b"cluster": cluster.encode(),
        b"epoch": topology.epoch,
        b"n": n,
        b"r": r,
        b"w": w,
        b"slots": SLOT_COUNT,
        b"slots_ok": _served(topology, shares, max(r, w)),
        b"slots_unserved": coordinated[None],
        b"nodes": nodes,
        b"lists": lists,
    }


@lru_cache(_VIEWS_KEPT)  # Looking at all slots takes some milliseconds.
def shares_of(topology: Topology, epoch: int) -> Shares:
    """`epoch` tells the states of one topology apart."""
    slots: dict[Preference, list[Slot]] = {}
    for slot, replicas in enumerate(topology.preferences):
        slots.setdefault(replicas, []).append(slot)
    primaries: Counter[NodeId] = Counter()
    holders: Counter[NodeId] = Counter()
    for replicas, owned in slots.items():
        primaries[replicas[0]] += len(owned)
        holders.update(dict.fromkeys(replicas, len(owned)))
    lists = {replicas: (len(owned), ranges_text(owned)) for replicas, owned in slots.items()}
    return Shares(lists, primaries, holders)


def _served(topology: Topology, shares: Shares, needed: int) -> int:
    """How many slots have as many complete replicas within reach as reads and writes need."""
    return sum(
        count
        for replicas, (count, _) in shares.lists.items()
        if sum(map(topology.is_fit, replicas)) >= needed
    )


def ranges_text(slots: Iterable[Slot]) -> str:
    """Slots in ascending order as `0-99 200`."""
    runs: list[list[Slot]] = []
    for slot in slots:
        if runs and runs[-1][1] == slot - 1:
            runs[-1][1] = slot
        else:
            runs.append([slot, slot])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def clock_reply(
    slot: Slot, clock: SlotClock, names: Mapping[Actor, NodeId], *, is_unsettled: bool
) -> Reply:
    """KV.CLOCK: what this node has seen of a slot. `names`: whose the actors are, as far as anybody knows."""
    beyond: dict[Actor, list[int]] = {}
    for actor, counter in sorted(clock.beyond):
        beyond.setdefault(actor, []).append(counter)
    actors = sorted(
        clock.base.keys() | beyond.keys(), key=lambda actor: (names.get(actor, "~"), actor)
    )
    return {
        b"slot": slot,
        b"unsettled": int(is_unsettled),
        b"actors": [
            {
                b"actor": b"%016x" % actor,
                b"node": names[actor].encode() if actor in names else None,
                b"counter": clock.base.get(actor, 0),
                b"beyond": list(beyond.get(actor, ())),
            }
            for actor in actors
        ],
    }


def alone(name: NodeId, host: str, port: int) -> Topology:
    """The topology of a node that is in no cluster: it holds everything."""
    return Topology(name, [NodeInfo(name, host, port, 0, 0)], 1)


def _percent(count: int) -> bytes:
    """A number of slots as a part of all."""
    return b"%.1f%%" % (100 * count / SLOT_COUNT)
