"""CLUSTER, READONLY, READWRITE and ASKING: what a Redis Cluster client asks a member.

A node has two faces. On the client port it is a standalone Redis, and all of these answer that
cluster support is disabled; on the cluster port it is a member (`respkv/cluster_view.py` makes the
replies). Subcommands that would change slots or members are not here: the ring and its epochs belong
to `KV.*`, and Redis Cluster's way of moving single slots would break them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Final, Protocol, cast

from cluster.slot import KEY_OFFSET, SLOT_COUNT, TAG_OFFSET, Key, Row, Slot, slot_of
from cluster.topology import NodeInfo, Topology
from engine.store import PageFault
from respkv import cluster_view
from respkv.cluster_view import CLUSTER_DISABLED, BusStats, Link
from respkv.command import Flag, command, container
from respkv.commands.client import help_reply
from respkv.context import Context
from respkv.keyspace import PLAIN_KINDS, Raw, Step, View, is_live, slot_pages
from respkv.number import integer
from respkv.reply import OK, Reply, ReplyError, Verbatim, c_string

INVALID_SLOT: Final = ReplyError("ERR Invalid slot")
INVALID_SLOT_OR_COUNT: Final = ReplyError("ERR Invalid slot or number of keys")
NONDETERMINISTIC: Final = ("nondeterministic_output",)

Sliced = Generator[Step, None, Reply]

container("CLUSTER", since="3.0.0", group="cluster", summary="Commands of Redis Cluster clients")


class ClusterNode(Protocol):
    """What these commands want of a node. `topology` is None on a node that is in no cluster."""

    topology: Topology | None

    def links(self) -> Sequence[Link]:
        """The connections of the bus, now."""

    def bus_stats(self) -> BusStats:
        """What was counted on the bus so far."""


def _node(ctx: Context) -> ClusterNode:
    return cast("ClusterNode", ctx.node)


def _topology(ctx: Context) -> Topology:
    """Raises CLUSTER_DISABLED unless the session came in on the cluster port."""
    topology = _node(ctx).topology if ctx.session.is_cluster else None
    if topology is None:
        raise CLUSTER_DISABLED
    return topology


# What the cluster looks like


@command(
    "CLUSTER|INFO", arity=2, flags=Flag.STALE, since="3.0.0", group="cluster",
    complexity="O(N) where N is the number of nodes", tips=NONDETERMINISTIC,
)  # fmt: skip
def cluster_info(ctx: Context) -> Reply:
    """Tell whether all slots are served, by how many nodes, and what went over the bus."""
    topology, config = _topology(ctx), ctx.node.config
    stats = _node(ctx).bus_stats()
    return Verbatim(cluster_view.info_text(topology, config.r, config.w, stats))


@command("CLUSTER|MYID", arity=2, flags=Flag.STALE, since="3.0.0", group="cluster", complexity="O(1)")  # fmt: skip
def cluster_myid(ctx: Context) -> Reply:
    """Return this node's id."""
    topology = _topology(ctx)
    return topology.nodes[topology.me].id.encode()


@command(
    "CLUSTER|NODES", arity=2, flags=Flag.STALE, since="3.0.0", group="cluster",
    complexity="O(N) where N is the number of nodes", tips=NONDETERMINISTIC,
)  # fmt: skip
def cluster_nodes(ctx: Context) -> Reply:
    """Describe all nodes: ids, addresses, whether they can be reached, the slots that they coordinate."""
    topology = _topology(ctx)
    return Verbatim(cluster_view.nodes_text(topology, _node(ctx).bus_stats().heard_ms))


@command(
    "CLUSTER|SLOTS", arity=2, flags=Flag.STALE, since="3.0.0", group="cluster",
    complexity="O(N) where N is the number of nodes", tips=NONDETERMINISTIC,
)  # fmt: skip
def cluster_slots(ctx: Context) -> Reply:
    """Map ranges of slots to the nodes that serve them, the coordinator first."""
    return cluster_view.slots_reply(_topology(ctx))


@command(
    "CLUSTER|SHARDS", arity=2, flags=Flag.STALE, since="7.0.0", group="cluster",
    complexity="O(N) where N is the number of nodes", tips=NONDETERMINISTIC,
)  # fmt: skip
def cluster_shards(ctx: Context) -> Reply:
    """Map nodes to the ranges of slots that they coordinate, and to the replicas of all these."""
    return cluster_view.shards_reply(_topology(ctx), ctx.store.log.position)


@command(
    "CLUSTER|LINKS", arity=2, flags=Flag.STALE, since="7.0.0", group="cluster",
    complexity="O(N) where N is the number of nodes", tips=NONDETERMINISTIC,
)  # fmt: skip
def cluster_links(ctx: Context) -> Reply:
    """List the connections from and to other nodes."""
    topology = _topology(ctx)
    return cluster_view.links_reply(topology, _node(ctx).links())


@command(
    "CLUSTER|COUNT-FAILURE-REPORTS", arity=3, flags=Flag.ADMIN | Flag.STALE, since="3.0.0",
    group="cluster", complexity="O(1)", usage="node-id", tips=NONDETERMINISTIC,
)  # fmt: skip
def cluster_count_failure_reports(ctx: Context, node_id: bytes) -> Reply:
    """Tell how many nodes hold a node to be out of reach: this one asks no others."""
    topology = _topology(ctx)
    return int(not topology.is_reachable(_node_of(topology, node_id).name))


@command(
    "CLUSTER|REPLICAS", arity=3, flags=Flag.ADMIN | Flag.STALE, since="5.0.0", group="cluster",
    complexity="O(1)", usage="node-id", tips=NONDETERMINISTIC,
)  # fmt: skip
def cluster_replicas(ctx: Context, node_id: bytes) -> Reply:
    """List the nodes that are replicas of a node and nothing else: none, since all coordinate slots."""
    _node_of(_topology(ctx), node_id)
    return []


def _node_of(topology: Topology, node_id: bytes) -> NodeInfo:
    for node in topology.nodes.values():
        if node.id.encode() == node_id:
            return node
    raise ReplyError(b"ERR Unknown node %b" % c_string(node_id))


# Slots and their keys


@command(
    "CLUSTER|KEYSLOT", arity=3, flags=Flag.STALE, since="3.0.0", group="cluster",
    complexity="O(N) where N is the number of bytes in the key", usage="key:string",
)  # fmt: skip
def cluster_keyslot(ctx: Context, key: Key) -> Reply:
    """Return the slot of a key."""
    _topology(ctx)
    return slot_of(key)


@command(
    "CLUSTER|COUNTKEYSINSLOT", arity=3, flags=Flag.STALE, since="3.0.0", group="cluster",
    complexity="O(N) where N is the number of keys in the slot", usage="slot:integer",
)  # fmt: skip
def cluster_countkeysinslot(ctx: Context, slot: bytes) -> Sliced:
    """Count the keys in a slot, 0 if another node coordinates it."""
    topology = _topology(ctx)
    number = integer(slot)
    if not 0 <= number < SLOT_COUNT:
        raise INVALID_SLOT
    count = 0
    for part in _live_rows(View(ctx), topology, number):
        if isinstance(part, list):
            count += len(part)
        yield part if isinstance(part, PageFault) else None
    return count


@command(
    "CLUSTER|GETKEYSINSLOT", arity=4, flags=Flag.STALE, since="3.0.0", group="cluster",
    complexity="O(N) where N is the number of keys in the slot", usage="slot:integer count",
    tips=NONDETERMINISTIC,
)  # fmt: skip
def cluster_getkeysinslot(ctx: Context, slot: bytes, count: bytes) -> Sliced:
    """List keys in a slot, none if another node coordinates it."""
    topology = _topology(ctx)
    number, limit = integer(slot), integer(count)
    if not 0 <= number < SLOT_COUNT or limit < 0:
        raise INVALID_SLOT_OR_COUNT
    found: list[Reply] = []
    for part in _live_rows(View(ctx), topology, number):
        if isinstance(part, list):
            found += part
        if len(found) >= limit:
            break
        yield part if isinstance(part, PageFault) else None
    return found[:limit]


def _live_rows(view: View, topology: Topology, slot: Slot) -> Iterator[list[Key] | PageFault]:
    """The keys of a slot that this node coordinates, some at a time; and faults."""
    if topology.coordinator(slot) != topology.me or not view.may_hold(slot):
        return
    # In order only where the transaction's own writes are laid over the store: it costs a sort a page.
    is_plain = not view.is_flushed and slot not in view.overlay
    for rows in slot_pages(view.store, slot) if is_plain else view.pages_of(slot):
        yield rows if isinstance(rows, PageFault) else _keys_of(rows, view)


def _keys_of(rows: list[tuple[Row, Raw]], view: View) -> list[Key]:
    db, now_ms = view.db, view.now_ms
    return [
        row[KEY_OFFSET:]
        for row, raw in rows
        if row[TAG_OFFSET] == db and (raw[0] in PLAIN_KINDS or is_live(raw, now_ms))
    ]


# The session


@command(
    "READONLY", arity=1, flags=Flag.FAST | Flag.LOADING | Flag.STALE, since="3.0.0",
    group="cluster", complexity="O(1)", acl=("connection",),
)  # fmt: skip
def readonly(ctx: Context) -> Reply:
    """Let any replica of a slot answer reads on this connection."""
    _topology(ctx)
    ctx.session.is_readonly = True
    return OK


@command(
    "READWRITE", arity=1, flags=Flag.FAST | Flag.LOADING | Flag.STALE, since="3.0.0",
    group="cluster", complexity="O(1)", acl=("connection",),
)  # fmt: skip
def readwrite(ctx: Context) -> Reply:
    """Undo READONLY."""
    _topology(ctx)
    ctx.session.is_readonly = False
    ctx.session.sent_away.clear()
    return OK


@command(
    "ASKING", arity=1, flags=Flag.FAST, since="3.0.0", group="cluster", complexity="O(1)",
    acl=("connection",),
)  # fmt: skip
def asking(ctx: Context) -> Reply:
    """Have this node take the next command though another one coordinates its slot."""
    _topology(ctx)
    ctx.session.is_asking = True
    return OK


HELP: Final = """\
CLUSTER <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
COUNT-FAILURE-REPORTS <node-id>
    1 if this node cannot reach that node, else 0.
COUNTKEYSINSLOT <slot>
    How many keys are in a slot that this node coordinates.
GETKEYSINSLOT <slot> <count>
    Some keys of a slot that this node coordinates.
INFO
    Whether all slots are served, by how many nodes.
KEYSLOT <key>
    The slot of a key.
LINKS
    Connections from and to other nodes.
MYID
    This node's id.
NODES
    All nodes, a line each:
    <id> <ip:port@bus-port> <flags> <master> <pings> <pongs> <epoch> <link> <slot> ...
REPLICAS <node-id>
    Nodes that are replicas only: none.
SHARDS
    Nodes, and the ranges of slots that each coordinates.
SLOTS
    Ranges of slots, and the nodes that serve each, its coordinator first.
HELP
    Print this help."""


@command(
    "CLUSTER|HELP",
    arity=2,
    flags=Flag.LOADING | Flag.STALE,
    since="5.0.0",
    group="cluster",
    complexity="O(1)",
)
def cluster_help(ctx: Context) -> Reply:
    """Show the subcommands of CLUSTER."""
    _topology(ctx)
    return help_reply(HELP)
