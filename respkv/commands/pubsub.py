"""Publish/subscribe: SUBSCRIBE, PUBLISH and their sisters. Who gets what is decided in `respkv/pubsub.py`.

SUBSCRIBE and UNSUBSCRIBE answer a message for each name, and that is sent even where CLIENT REPLY says not to
answer. In a cluster a subscription is confirmed when the other nodes know of it (`respkv/audience.py`).

Core.
"""

from __future__ import annotations

from typing import Final

from respkv.command import Flag, Keys, command, container
from respkv.commands.client import help_reply
from respkv.context import Context
from respkv.glob import matcher
from respkv.pubsub import CHANNEL, PATTERN, SHARD, Kind, Name, confirmation
from respkv.reply import Pushed, Reply, unknown_or_malformed
from respkv.session import Block

LISTENING: Final = Flag.PUBSUB | Flag.NOSCRIPT | Flag.LOADING | Flag.STALE
SAYING: Final = Flag.PUBSUB | Flag.LOADING | Flag.STALE | Flag.FAST | Flag.MAY_REPLICATE
LOOKING: Final = Flag.PUBSUB | Flag.LOADING | Flag.STALE
# Shard channels have slots as keys have, and are no keys.
SHARD_CHANNELS: Final = Keys(1, -1, 1, "NOT_KEY")


def _subscribe(ctx: Context, kind: Kind, word: bytes, names: tuple[Name, ...]) -> Reply:
    session, pubsub = ctx.session, ctx.node.pubsub
    audiences = pubsub.audiences
    pubsub.check_room(session, kind, names)
    own = session.subscriptions
    known = {} if own is None else own.names[kind]
    added = [name for name in dict.fromkeys(names) if name not in known]
    is_held = audiences is not None and not ctx.is_atomic
    parts = []
    for name in names:
        count = pubsub.subscribe(session, kind, name, is_held=is_held)
        parts.append(confirmation(word, name, count, resp3=session.is_resp3))
    reply = Pushed(b"".join(parts))
    if is_held and added:
        assert audiences is not None
        number = audiences.must_hold(kind, added)
        if number:
            audiences.hold(session, kind, added, reply, number)
            raise Block(None, reply, is_blocking=False)
        pubsub.activate(session, kind, added)
    return reply


def _unsubscribe(ctx: Context, kind: Kind, word: bytes, names: tuple[Name, ...]) -> Reply:
    session, pubsub = ctx.session, ctx.node.pubsub
    own = session.subscriptions
    resp3 = session.is_resp3
    if not names:
        names = () if own is None else tuple(own.names[kind])
        if not names:
            count = 0 if own is None else own.count(kind)
            return Pushed(confirmation(word, None, count, resp3=resp3))
    parts = []
    for name in names:
        count = pubsub.unsubscribe(session, kind, name)
        parts.append(confirmation(word, name, count, resp3=resp3))
    return Pushed(b"".join(parts))


@command(
    "SUBSCRIBE", arity=-2, flags=LISTENING, since="2.0.0", group="pubsub",
    complexity="O(N) where N is the number of channels to subscribe to.",
    usage="channel [channel ...]",
)  # fmt: skip
def subscribe(ctx: Context, *channels: Name) -> Reply:
    """Hear what is published to channels from now on."""
    return _subscribe(ctx, CHANNEL, b"subscribe", channels)


@command(
    "PSUBSCRIBE", arity=-2, flags=LISTENING, since="2.0.0", group="pubsub",
    complexity="O(N) where N is the number of patterns the client is already subscribed to.",
    usage="pattern [pattern ...]",
)  # fmt: skip
def psubscribe(ctx: Context, *patterns: Name) -> Reply:
    """Hear what is published to channels that match glob patterns from now on."""
    return _subscribe(ctx, PATTERN, b"psubscribe", patterns)


@command(
    "SSUBSCRIBE", arity=-2, flags=LISTENING, keys=SHARD_CHANNELS, since="7.0.0", group="pubsub",
    complexity="O(N) where N is the number of shard channels to subscribe to.",
    usage="shardchannel [shardchannel ...]",
)  # fmt: skip
def ssubscribe(ctx: Context, *channels: Name) -> Reply:
    """Hear what is published to shard channels from now on."""
    return _subscribe(ctx, SHARD, b"ssubscribe", channels)


@command(
    "UNSUBSCRIBE", arity=-1, flags=LISTENING, since="2.0.0", group="pubsub",
    complexity="O(N) where N is the number of clients already subscribed to a channel.",
    usage="[channel [channel ...]]",
)  # fmt: skip
def unsubscribe(ctx: Context, *channels: Name) -> Reply:
    """Hear of channels no more; of all if none is named."""
    return _unsubscribe(ctx, CHANNEL, b"unsubscribe", channels)


@command(
    "PUNSUBSCRIBE", arity=-1, flags=LISTENING, since="2.0.0", group="pubsub",
    complexity="O(N+M) where N is the number of patterns the client is already subscribed and M is the number of "
    "total patterns subscribed in the system (by any client).",
    usage="[pattern [pattern ...]]",
)  # fmt: skip
def punsubscribe(ctx: Context, *patterns: Name) -> Reply:
    """Hear of channels that match patterns no more; of all patterns if none is named."""
    return _unsubscribe(ctx, PATTERN, b"punsubscribe", patterns)


@command(
    "SUNSUBSCRIBE", arity=-1, flags=LISTENING, keys=SHARD_CHANNELS, since="7.0.0", group="pubsub",
    complexity="O(N) where N is the number of clients already subscribed to a shard channel.",
    usage="[shardchannel [shardchannel ...]]",
)  # fmt: skip
def sunsubscribe(ctx: Context, *channels: Name) -> Reply:
    """Hear of shard channels no more; of all if none is named."""
    return _unsubscribe(ctx, SHARD, b"sunsubscribe", channels)


def _publish(ctx: Context, kind: Kind, channel: Name, payload: bytes) -> Reply:
    pubsub = ctx.node.pubsub
    count = pubsub.check(kind, channel, payload)
    if ctx.is_atomic:  # EXEC may run again: it is said when that is over.
        ctx.messages.append((kind, channel, payload))
        return count
    return pubsub.publish(kind, channel, payload)


@command(
    "PUBLISH", arity=3, flags=SAYING, since="2.0.0", group="pubsub",
    complexity="O(N+M) where N is the number of clients subscribed to the receiving channel and M is the total "
    "number of subscribed patterns (by any client).",
    usage="channel message",
)  # fmt: skip
def publish(ctx: Context, channel: Name, message: bytes) -> Reply:
    """Say something to all clients that listen to a channel, at all nodes, and answer how many those are."""
    return _publish(ctx, CHANNEL, channel, message)


@command(
    "SPUBLISH", arity=3, flags=SAYING, keys=Keys(1, 1, 1, "NOT_KEY"), since="7.0.0", group="pubsub",
    complexity="O(N) where N is the number of clients subscribed to the receiving shard channel.",
    usage="shardchannel message",
)  # fmt: skip
def spublish(ctx: Context, channel: Name, message: bytes) -> Reply:
    """Say something to all clients that listen to a shard channel, and answer how many those are."""
    return _publish(ctx, SHARD, channel, message)


container("PUBSUB", since="2.8.0", group="pubsub", summary="Commands about who listens to what")


def _is_whole(ctx: Context) -> bool:
    """The client port stands for the whole cluster, the cluster port for this node."""
    return ctx.node.pubsub.audiences is not None and not ctx.session.is_cluster


def _names(ctx: Context, kind: Kind, patterns: tuple[bytes, ...]) -> Reply:
    if len(patterns) > 1:
        raise unknown_or_malformed("PUBSUB", ctx.args[1])
    pubsub = ctx.node.pubsub
    names = pubsub.names(kind)
    if pubsub.audiences is not None and _is_whole(ctx):
        names = sorted(pubsub.audiences.known_names(kind).union(names))
    if patterns:
        names = list(filter(matcher(patterns[0]), names))
    return list(names)


def _counts(ctx: Context, kind: Kind, names: tuple[Name, ...]) -> Reply:
    pubsub = ctx.node.pubsub
    reply: list[Reply] = []
    for name in names:
        count = pubsub.local_count(kind, name)
        if pubsub.audiences is not None and _is_whole(ctx):
            count += pubsub.audiences.known_count(kind, name)
        reply += (name, count)
    return reply


@command(
    "PUBSUB|CHANNELS", arity=-2, flags=LOOKING, since="2.8.0", group="pubsub",
    complexity="O(N) where N is the number of active channels, and assuming constant time pattern matching "
    "(relatively short channels and patterns)",
    usage="[pattern]",
)  # fmt: skip
def pubsub_channels(ctx: Context, *patterns: bytes) -> Reply:
    """List the channels that clients listen to, without those that only patterns match."""
    return _names(ctx, CHANNEL, patterns)


@command(
    "PUBSUB|NUMSUB", arity=-2, flags=LOOKING, since="2.8.0", group="pubsub",
    complexity="O(N) for the NUMSUB subcommand, where N is the number of requested channels",
    usage="[channel [channel ...]]",
)  # fmt: skip
def pubsub_numsub(ctx: Context, *channels: Name) -> Reply:
    """Answer how many clients listen to each of some channels, without patterns."""
    return _counts(ctx, CHANNEL, channels)


@command("PUBSUB|NUMPAT", arity=2, flags=LOOKING, since="2.8.0", group="pubsub", complexity="O(1)")
def pubsub_numpat(ctx: Context) -> Reply:
    """Answer how many patterns clients have subscribed to."""
    pubsub = ctx.node.pubsub
    names = pubsub.names(PATTERN)
    if pubsub.audiences is not None and _is_whole(ctx):
        return len(pubsub.audiences.known_names(PATTERN).union(names))
    return len(names)


@command(
    "PUBSUB|SHARDCHANNELS", arity=-2, flags=LOOKING, since="7.0.0", group="pubsub",
    complexity="O(N) where N is the number of active shard channels, and assuming constant time pattern matching "
    "(relatively short shard channels).",
    usage="[pattern]",
)  # fmt: skip
def pubsub_shardchannels(ctx: Context, *patterns: bytes) -> Reply:
    """List the shard channels that clients listen to."""
    return _names(ctx, SHARD, patterns)


@command(
    "PUBSUB|SHARDNUMSUB", arity=-2, flags=LOOKING, since="7.0.0", group="pubsub",
    complexity="O(N) for the SHARDNUMSUB subcommand, where N is the number of requested shard channels",
    usage="[shardchannel [shardchannel ...]]",
)  # fmt: skip
def pubsub_shardnumsub(ctx: Context, *channels: Name) -> Reply:
    """Answer how many clients listen to each of some shard channels."""
    return _counts(ctx, SHARD, channels)


HELP: Final = """\
PUBSUB <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
CHANNELS [<pattern>]
    The channels that clients listen to, all or those that match a glob pattern.
NUMPAT
    How many different patterns clients have subscribed to.
NUMSUB [<channel> ...]
    How many clients listen to each of the channels, without patterns.
SHARDCHANNELS [<pattern>]
    The shard channels that clients listen to.
SHARDNUMSUB [<shardchannel> ...]
    How many clients listen to each of the shard channels.
HELP
    Print this help."""


@command(
    "PUBSUB|HELP", arity=2, flags=Flag.LOADING | Flag.STALE, since="6.2.0", group="pubsub",
    complexity="O(1)",
)  # fmt: skip
def pubsub_help(ctx: Context) -> Reply:
    """Show the subcommands of PUBSUB."""
    return help_reply(HELP)
