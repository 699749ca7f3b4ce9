"""The cluster as Redis Cluster clients see it: from the topology to what CLUSTER answers and where requests are sent.

It neither decides who owns a slot or who can be reached (`cluster/topology.py`), nor declares
commands (`respkv/commands/cluster.py`), nor runs them.

A Redis Cluster slot has one master; here it has a preference list. Two words translate:

    master   the slot's coordinator: its first replica that can be reached and is complete. So every
             node is a master of some slots, and no node is a replica for good
    replica  the other such replicas, in the order of the preference list

A *run* is a range of slots that share both. A slot without a reachable replica is in no run: clients
take it for one that nobody serves.

Order matters in CLUSTER SLOTS: redis-py and node-redis keep the first role that they see of a node, and
leave what they first saw as a replica out of what they do on all masters. So the reply starts with a
head for each node: a run of which it is the master and whose replicas were masters already. Where no
run is such, one slot is cut off and shown without the replicas that come too early: of three nodes
that all hold everything, one slot seems to have no replica, and another one replica.

Redirection is Redis' too, in its order: an unserved slot, several slots, the wrong node. A replica
that is not the coordinator answers MOVED although it could forward: so clients learn the short way. Who
comes back with a read of the slot wants to read here, and does: clients that read from replicas without saying
READONLY (ioredis with `scaleReads`, since it takes each node for a master) would be sent away for ever. A write
in between counts as the first visit again, so that a pipeline with both is sent away as a whole.

Core: no I/O. Source: the Redis Cluster specification, and redis-server 7.0 where it is silent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address
from itertools import groupby
from typing import Final

from cluster.ring import NodeId
from cluster.slot import SLOT_COUNT, Slot, slot_of
from cluster.topology import NodeInfo, Topology
from respkv.command import Command, Flag
from respkv.reply import Reply, ReplyError
from respkv.session import Session

Range = tuple[Slot, Slot]  # The first and the last slot.

CLUSTER_DISABLED: Final = ReplyError("ERR This instance has cluster support disabled")
CROSSSLOT: Final = ReplyError("CROSSSLOT Keys in request don't hash to the same slot")
NOT_SERVED: Final = ReplyError("CLUSTERDOWN Hash slot not served")
# There is one database on the cluster port.
SELECT_REFUSED: Final = ReplyError("ERR SELECT is not allowed in cluster mode")
SWAPDB_REFUSED: Final = ReplyError("ERR SWAPDB is not allowed in cluster mode")
MOVE_REFUSED: Final = ReplyError("ERR MOVE is not allowed in cluster mode")
COPY_REFUSED: Final = ReplyError("ERR Copying to another database is not allowed in cluster mode")

_VIEWS_KEPT: Final = 8  # Some, since simulated nodes share a process; a real node needs one.


@dataclass(frozen=True, slots=True)
class Run:
    """Slots from `first` to `last` that share a master and its reachable replicas."""

    first: Slot
    last: Slot
    primary: NodeId
    replicas: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """One connection of the bus, for CLUSTER LINKS. `events`: what it is watched for, `r`, `w` or `rw`."""

    peer: NodeId
    is_outgoing: bool
    created_ms: int
    events: str
    allocated_bytes: int  # Of the buffer of what is to be sent,
    used_bytes: int  # and how much of it is taken.


@dataclass(slots=True)
class BusStats:
    """What a node has counted on the bus: messages by kind, and when each peer was heard last, since 1970."""

    sent: dict[str, int] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)
    heard_ms: dict[NodeId, int] = field(default_factory=dict)
    overflows: int = 0  # Links that were closed because too much waited to be sent.


# Runs


def runs(topology: Topology) -> tuple[Run, ...]:
    """The runs in order of slots; slots without a reachable replica are in none."""
    return _runs(topology, topology.epoch, topology.changes)


@lru_cache(
    _VIEWS_KEPT
)  # Clients ask all at once, after each change; looking at all slots takes a millisecond.
def _runs(topology: Topology, epoch: int, changes: int) -> tuple[Run, ...]:
    """`epoch` and `changes` tell the states of one topology apart."""
    fit = {
        replicas: tuple(filter(topology.is_fit, replicas))
        for replicas in dict.fromkeys(topology.preferences)
    }
    found = []
    first = 0
    for replicas, group in groupby(fit[replicas] for replicas in topology.preferences):
        after = first + sum(1 for _ in group)
        if replicas:
            found.append(Run(first, after - 1, replicas[0], replicas[1:]))
        first = after
    return tuple(found)


def coordinated(topology: Topology, name: NodeId | None = None) -> list[Range]:
    """The ranges of slots that a node coordinates, this one if none is named: its scope on the cluster port."""
    name = topology.me if name is None else name
    return coordinated_by_node(topology).get(name, [])


def coordinated_by_node(topology: Topology) -> dict[NodeId, list[Range]]:
    """The ranges of slots that each node coordinates. Nodes that coordinate none are absent."""
    ranges: dict[NodeId, list[Range]] = {}
    for run in runs(topology):
        own = ranges.setdefault(run.primary, [])
        if own and own[-1][1] == run.first - 1:
            own[-1] = (own[-1][0], run.last)
        else:
            own.append((run.first, run.last))
    return ranges


def with_heads(found: Sequence[Run]) -> list[Run]:
    """Runs in an order in which each master is seen as one first; see the module's docstring.

    The slots covered are the same, each once, and each with the same master.
    """
    left = dict.fromkeys(found)
    heads: list[Run] = []
    seen: set[NodeId] = set()
    for primary in dict.fromkeys(run.primary for run in found):
        own = [run for run in found if run.primary == primary]
        head = next((run for run in own if seen.issuperset(run.replicas)), None)
        if head is None:
            whole = own[0]
            known = tuple(name for name in whole.replicas if name in seen)
            head = Run(whole.first, whole.first, primary, known)
            if whole.last > whole.first:
                left[Run(whole.first + 1, whole.last, primary, whole.replicas)] = None
            del left[whole]
        else:
            del left[head]
        heads.append(head)
        seen.add(primary)
    return heads + sorted(left, key=lambda run: run.first)


# Replies


def slots_reply(topology: Topology) -> Reply:
    """CLUSTER SLOTS: of each run its first and last slot, its master, its replicas."""
    described: dict[NodeId, Reply] = {
        name: [node.host.encode(), node.cluster_port, node.id.encode(), {}]
        for name, node in topology.nodes.items()
    }
    return [
        [run.first, run.last, *(described[name] for name in (run.primary, *run.replicas))]
        for run in with_heads(runs(topology))
    ]


def nodes_text(topology: Topology, heard_ms: Mapping[NodeId, int]) -> bytes:
    """CLUSTER NODES: a line for each node. `heard_ms`: when it was heard last, since 1970."""
    ranges = coordinated_by_node(topology)
    lines = []
    for name, node in topology.nodes.items():
        is_me, is_reachable = name == topology.me, topology.is_reachable(name)
        flags = ("myself," if is_me else "") + "master" + ("" if is_reachable else ",fail")
        hostname = "" if _is_address(node.host) else f",{node.host}"
        words = [
            node.id,
            f"{node.host}:{node.cluster_port}@{node.bus_port}{hostname}",
            flags,
            "-",  # It is nobody's replica.
            "0",  # No ping is under way: gossip has none to wait for.
            str(0 if is_me else heard_ms.get(name, 0)),
            str(topology.epoch),
            "connected" if is_reachable else "disconnected",
            *(_range_text(*slots) for slots in ranges.get(name, [])),
        ]
        lines.append(" ".join(words) + "\n")
    return "".join(lines).encode()


def _range_text(first: Slot, last: Slot) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def shards_reply(topology: Topology, offset: int) -> Reply:
    """CLUSTER SHARDS: one shard for each node, since clients tell shards by their masters.

    Replicas of a shard are the nodes that are replicas of all its slots. `offset` is how far this
    node's log is; of others it is not known, and 0.
    """
    ranges = coordinated_by_node(topology)
    shared = _replicas_of_all(topology)
    shards: list[Reply] = []
    for name, node in topology.nodes.items():
        members = [_shard_node(topology, node, "master", offset)]
        for other in sorted(shared.get(name, ())):
            members.append(_shard_node(topology, topology.nodes[other], "replica", offset))
        slots: list[Reply] = [slot for both in ranges.get(name, []) for slot in both]
        shards.append({b"slots": slots, b"nodes": members})
    return shards


def _replicas_of_all(topology: Topology) -> dict[NodeId, set[NodeId]]:
    """For each node the others that are replicas, reachable or not, of all slots that it coordinates."""
    shared: dict[NodeId, set[NodeId]] = {}
    pairs = zip(topology.coordinators, topology.preferences, strict=True)
    for name, replicas in dict.fromkeys(pairs):
        if name is not None:
            shared.setdefault(name, set(replicas)).intersection_update(replicas)
    return {name: replicas - {name} for name, replicas in shared.items()}


def _shard_node(topology: Topology, node: NodeInfo, role: str, offset: int) -> Reply:
    host = node.host.encode()
    reply: dict[bytes, Reply] = {
        b"id": node.id.encode(),
        b"port": node.cluster_port,
        b"ip": host,
        b"endpoint": host,
    }
    if not _is_address(node.host):
        reply[b"hostname"] = host
    return reply | {
        b"role": role.encode(),
        b"replication-offset": offset if node.name == topology.me else 0,
        b"health": b"online" if topology.is_reachable(node.name) else b"fail",
    }


def info_text(topology: Topology, r: int, w: int, stats: BusStats) -> bytes:
    """CLUSTER INFO. The state is ok if each slot has the replicas that reads (`r`) and writes (`w`) need.

    Slots with fewer count as `pfail`, and those without any as `fail`.
    """
    needed = max(r, w)
    ok = unserved = 0
    for replicas, slot_count in Counter(topology.preferences).items():
        count = sum(map(topology.is_reachable, replicas))
        if count >= needed:
            ok += slot_count
        elif not count:
            unserved += slot_count
    fields: dict[str, int | str] = {
        "cluster_state": "ok" if ok == SLOT_COUNT else "fail",
        "cluster_slots_assigned": SLOT_COUNT,
        "cluster_slots_ok": ok,
        "cluster_slots_pfail": SLOT_COUNT - ok - unserved,
        "cluster_slots_fail": unserved,
        "cluster_known_nodes": len(topology.nodes),
        "cluster_size": len(coordinated_by_node(topology)),
        "cluster_current_epoch": topology.epoch,
        "cluster_my_epoch": topology.epoch,
        **_message_fields("sent", stats.sent),
        **_message_fields("received", stats.received),
        "total_cluster_links_buffer_limit_exceeded": stats.overflows,
    }
    return "".join(f"{name}:{value}\r\n" for name, value in fields.items()).encode()


def _message_fields(direction: str, counts: Mapping[str, int]) -> dict[str, int]:
    by_kind = {
        f"cluster_stats_messages_{kind}_{direction}": count
        for kind, count in counts.items()
        if count
    }
    return {**by_kind, f"cluster_stats_messages_{direction}": sum(counts.values())}


def links_reply(topology: Topology, links: Iterable[Link]) -> Reply:
    """CLUSTER LINKS. Links to nodes that are no members, or no longer, are left out: they have no id."""
    return [
        {
            b"direction": b"to" if link.is_outgoing else b"from",
            b"node": topology.nodes[link.peer].id.encode(),
            b"create-time": link.created_ms,
            b"events": link.events.encode(),
            b"send-buffer-allocated": link.allocated_bytes,
            b"send-buffer-used": link.used_bytes,
        }
        for link in links
        if link.peer in topology.nodes
    ]


# Redirection


def slots_of(session: Session, command: Command, args: list[bytes]) -> list[Slot]:
    """The slots of a command's keys, in order; for EXEC those of all that is queued."""
    if command.name == "EXEC":
        queued = session.transaction.commands if session.transaction is not None else []
        return [slot for each, words in queued for slot in slots_of(session, each, words)]
    return [slot_of(args[position]) for position in command.key_positions(args)]


def redirect(
    session: Session, command: Command, slots: Iterable[Slot], topology: Topology
) -> ReplyError | None:
    """What a client of the cluster port hears instead of an answer, or None if this node takes the command.

    It takes commands without keys, and those of one slot that it coordinates. If it is another
    replica of the slot, it takes reads after READONLY and everything after ASKING, which the caller
    resets behind the next command; reads of a client that was sent away from it with one before; and
    everything while it is not fit to coordinate itself.
    """
    slot: Slot | None = None
    for each in slots:
        if slot is None:
            slot = each
            if topology.coordinator(slot) is None:
                return NOT_SERVED
        elif each != slot:
            return CROSSSLOT
    if slot is None:
        return None
    name = topology.coordinator(slot)
    if name == topology.me:
        return None
    if topology.owns(slot):
        if session.is_asking or (session.is_readonly and only_reads(session, command)):
            return None
        if topology.me in topology.incomplete:
            return None  # Forwarded: where it would be sent may not know yet, and send it back again and again.
        if _comes_back(session, command, slot):
            return None
    assert name is not None
    return moved(slot, topology.nodes[name])


def _comes_back(session: Session, command: Command, slot: Slot) -> bool:
    """Whether a client reads what it was sent away with before; notes that it is sent away."""
    if session.transaction is not None or Flag.READONLY not in command.flags:
        session.sent_away.pop(slot, None)
        return False
    if slot in session.sent_away:
        return True
    session.sent_away[slot] = None
    return False


def only_reads(session: Session, command: Command) -> bool:
    """Whether a command, or all that EXEC would run, changes nothing."""
    if command.name == "EXEC" and session.transaction is not None:
        return all(Flag.READONLY in queued.flags for queued, _ in session.transaction.commands)
    return Flag.READONLY in command.flags


def moved(slot: Slot, node: NodeInfo) -> ReplyError:
    return ReplyError(f"MOVED {slot} {node.host}:{node.cluster_port}")
