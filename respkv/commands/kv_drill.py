"""KV.DRILL: cuts this node off from others, so that its user sees what a partition does. `respkv drill` uses it.

It answers an error unless the configuration has `debug.drill = true`, which is refused for nodes that other
machines can reach. Who may send it could stop the node as well: it is a command for administrators.

    KV.DRILL CUT node [node ...]      connections end and are refused: both ends know at once
    KV.DRILL MUTE node [node ...]     nothing arrives any more, and nobody is told: both ends have to notice
    KV.DRILL HEAL                     everybody may come in again
    KV.DRILL SHOW                     who is kept away, and how

A cut is kept by one end, and holds in both directions. It is forgotten when the node stops.
"""

from __future__ import annotations

from typing import Final

from cluster.ring import NodeId
from respkv.bus import Bus
from respkv.command import Flag, command, container
from respkv.commands.client import help_reply
from respkv.commands.kv import ADMIN, SINCE
from respkv.context import Context
from respkv.reply import OK, Reply, ReplyError, c_string

FLAGS: Final = ADMIN | Flag.NO_MULTI | Flag.STALE
OFF: Final = ReplyError(
    "ERR KV.DRILL is off: it cuts nodes off from each other. A cluster for tests has debug.drill = true"
)
ALONE: Final = ReplyError("ERR this node is in no cluster: there is nobody to cut it off from")
MYSELF: Final = ReplyError("ERR a node cannot be cut off from itself: name the others")

container("KV.DRILL", since=SINCE, group="kv", summary="Commands that play a broken network")


@command(
    "KV.DRILL|CUT", arity=-3, flags=FLAGS, since=SINCE, group="kv",
    complexity="O(N) where N is the number of nodes", usage="node [node ...]",
)  # fmt: skip
def kv_drill_cut(ctx: Context, *names: bytes) -> Reply:
    """Cut this node off from others: connections end at once."""
    return _cut(ctx, names, is_silent=False)


@command(
    "KV.DRILL|MUTE", arity=-3, flags=FLAGS, since=SINCE, group="kv",
    complexity="O(N) where N is the number of nodes", usage="node [node ...]",
)  # fmt: skip
def kv_drill_mute(ctx: Context, *names: bytes) -> Reply:
    """Lose all that is sent to other nodes or comes from them, without a word."""
    return _cut(ctx, names, is_silent=True)


@command(
    "KV.DRILL|HEAL", arity=2, flags=FLAGS, since=SINCE, group="kv",
    complexity="O(N) where N is the number of nodes",
)  # fmt: skip
def kv_drill_heal(ctx: Context) -> Reply:
    """Let all other nodes come in again."""
    bus = _bus(ctx)
    if bus.cut:
        ctx.node.log.warning("drill: the network is healed", nodes=" ".join(bus.cut))
    bus.heal()
    return OK


@command(
    "KV.DRILL|SHOW", arity=2, flags=FLAGS, since=SINCE, group="kv",
    complexity="O(N) where N is the number of nodes", tips=("nondeterministic_output",),
)  # fmt: skip
def kv_drill_show(ctx: Context) -> Reply:
    """List the nodes that this one is cut off from, and how."""
    return [
        {b"name": name.encode(), b"how": b"mute" if is_silent else b"cut"}
        for name, is_silent in _bus(ctx).cut.items()
    ]


def _cut(ctx: Context, names: tuple[bytes, ...], *, is_silent: bool) -> Reply:
    bus, topology = _bus(ctx), ctx.node.topology
    assert topology is not None
    peers: list[NodeId] = []
    for name in names:
        peer = name.decode("latin-1")
        if peer == topology.me:
            raise MYSELF
        if peer not in topology.nodes:
            known = " ".join(topology.peers)
            raise ReplyError(
                b"ERR no node has the name '%b': there are %b" % (c_string(name), known.encode())
            )
        peers.append(peer)
    ctx.node.log.warning("drill: the network is cut", nodes=" ".join(peers), is_silent=is_silent)
    bus.cut_off(peers, is_silent=is_silent)
    return OK


def _bus(ctx: Context) -> Bus:
    """Raises ReplyError if there is no network to play with, or nobody may."""
    if not ctx.node.config.debug.drill:
        raise OFF
    if ctx.node.bus is None:
        raise ALONE
    return ctx.node.bus


HELP: Final = """\
KV.DRILL <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
CUT <node> [<node> ...]
    End the connections between this node and others, and refuse new ones. Both ends know at once.
MUTE <node> [<node> ...]
    Lose what is sent to them and what they send, without a word: both ends have to notice, after some seconds.
HEAL
    Let all other nodes come in again. They are connected within some seconds.
SHOW
    The nodes that this one is cut off from.
HELP
    Print this help."""


@command(
    "KV.DRILL|HELP", arity=2, flags=Flag.LOADING | Flag.STALE, since=SINCE, group="kv", complexity="O(1)",
)  # fmt: skip
def kv_drill_help(ctx: Context) -> Reply:
    """Show the subcommands of KV.DRILL."""
    return help_reply(HELP)
