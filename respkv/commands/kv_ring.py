"""KV.NODES, KV.PREFLIST, KV.RING, KV.CLOCK and KV.TRACE: seeing the machine. `respkv/ring_view.py` makes the replies.

They show the cluster as the node that is asked sees it: another node may see it otherwise for a while.

KV.TRACE is declared here, and run by `respkv/trace.py`, since what it runs goes through the whole cluster.

KV.PREFLIST is declared without `keys`: a key would have clients and the dispatch look for its replicas,
and every node can answer.
"""

from __future__ import annotations

from typing import Final

from cluster.clock import Actor
from cluster.ring import NodeId
from cluster.slot import SLOT_COUNT, Key, slot_of
from cluster.topology import Topology
from respkv import ring_view
from respkv.command import Flag, command
from respkv.commands.kv import SINCE
from respkv.context import Context
from respkv.number import integer_or_none
from respkv.reply import Reply, ReplyError

NONDETERMINISTIC: Final = ("nondeterministic_output",)
INVALID_SLOT: Final = ReplyError(f"ERR a slot is a number from 0 to {SLOT_COUNT - 1}")
TRACE_ALONE: Final = ReplyError(
    "ERR KV.TRACE shows how the nodes of a cluster work together, and this node is in none"
)


def _topology(ctx: Context) -> Topology:
    """The cluster as this node sees it, or the node alone."""
    node = ctx.node
    if node.topology is not None:
        return node.topology
    return ring_view.alone(node.name, node.config.client.hosts[0], node.ready_port)


@command(
    "KV.NODES", arity=1, flags=Flag.STALE, since=SINCE, group="kv",
    complexity="O(N) where N is the number of nodes", tips=NONDETERMINISTIC,
)  # fmt: skip
def kv_nodes(ctx: Context) -> Reply:
    """List the members of the cluster: name, address, and how this node sees each of them."""
    return ring_view.nodes_reply(_topology(ctx))


@command(
    "KV.PREFLIST", arity=2, flags=Flag.STALE | Flag.FAST, since=SINCE, group="kv",
    complexity="O(N) where N is the number of replicas", usage="key:string", tips=NONDETERMINISTIC,
)  # fmt: skip
def kv_preflist(ctx: Context, key: Key) -> Reply:
    """Show the slot of a key, its replicas in order of preference, and which of them coordinates."""
    config = ctx.node.config
    return ring_view.preflist_reply(_topology(ctx), slot_of(key), config.r, config.w)


@command(
    "KV.RING", arity=1, flags=Flag.STALE, since=SINCE, group="kv",
    complexity="O(N) where N is the number of slots", tips=NONDETERMINISTIC,
)  # fmt: skip
def kv_ring(ctx: Context) -> Reply:
    """Show how much each node owns and coordinates, and the slots of each preference list."""
    config = ctx.node.config
    name = config.cluster.name
    return ring_view.ring_reply(_topology(ctx), name, config.n, config.r, config.w)


@command(
    "KV.CLOCK", arity=2, flags=Flag.STALE, since=SINCE, group="kv",
    complexity="O(N) where N is the number of actors that wrote to the slot", usage="slot:integer",
    tips=NONDETERMINISTIC,
)  # fmt: skip
def kv_clock(ctx: Context, text: bytes) -> Reply:
    """Show what this node has seen of a slot: a counter for each actor, and the dots beyond gaps."""
    slot = integer_or_none(text)
    if slot is None or not 0 <= slot < SLOT_COUNT:
        raise INVALID_SLOT
    peers = ctx.node.peers
    names: dict[Actor, NodeId] = {}
    if peers is not None:
        for each in peers.membership.gossip.members.values():
            names.update(dict.fromkeys(each.profile.actors, each.name))
    names[ctx.replica.actor] = ctx.node.name
    return ring_view.clock_reply(
        slot,
        ctx.replica.clocks.view(slot),
        names,
        is_unsettled=peers is not None and peers.coordinator.undecided.has_slot(slot),
    )


@command(
    "KV.TRACE", arity=-2, flags=Flag.NO_MULTI | Flag.NOSCRIPT, since=SINCE, group="kv",
    complexity="That of the command.", usage="word [word ...]",
    tips=NONDETERMINISTIC,
)  # fmt: skip
def kv_trace(ctx: Context, *args: bytes) -> Reply:
    """Run a command on keys, and show which nodes took part in it, and when."""
    raise TRACE_ALONE
