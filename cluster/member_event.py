"""What happens to members, as it is told to the node: for its log, and for what it does about it.

The first ten are found out by gossip (`cluster/gossip.py`), the others by what a node sees of its own
connections and clock (`cluster/membership.py`).

Core: plain data.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.gossip_message import Addresses, Incarnation, NodeId, Profile


@dataclass(frozen=True, slots=True)
class MemberJoined:
    """A name that was not known, or one that had left, is a member."""

    name: NodeId


@dataclass(frozen=True, slots=True)
class MemberUp:
    """The member's status has become UP."""

    name: NodeId


@dataclass(frozen=True, slots=True)
class MemberSuspected:
    """This node thinks that the member is dead. Its ownership does not change."""

    name: NodeId
    phi: float


@dataclass(frozen=True, slots=True)
class MemberRecovered:
    """A suspicion is over."""

    name: NodeId


@dataclass(frozen=True, slots=True)
class MemberRestarted:
    """The member is a new process. Connections to the old one, and what it promised, are void."""

    name: NodeId
    old: Incarnation
    new: Incarnation


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """The member's profile has changed in more than its load, or its status to JOINING, LEAVING or DOWN."""

    name: NodeId
    old: Profile
    new: Profile


@dataclass(frozen=True, slots=True)
class MemberLeft:
    """The member has left, or an operator has declared so."""

    name: NodeId


@dataclass(frozen=True, slots=True)
class DuplicateName:
    """Another process has this node's name; `incarnation` is the other's.

    At the same addresses it is most likely this node's own past, before its clock went back:
    `Gossip.reincarnate` above it. At others, two nodes are configured with one name: this one stops.
    """

    name: NodeId
    incarnation: Incarnation
    addresses: Addresses | None  # None: it has this node's incarnation, too.


@dataclass(frozen=True, slots=True)
class Incompatible:
    """This node cannot talk to the member, for the reason given. It hears of it through others."""

    name: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class TableFull:
    """So many statements about new members were ignored."""

    ignored_count: int


@dataclass(frozen=True, slots=True)
class PeerReachable:
    """Requests may be sent to the peer from now on."""

    name: NodeId


@dataclass(frozen=True, slots=True)
class PeerUnreachable:
    """Requests go elsewhere from now on, for the reason given. What was under way may be lost."""

    name: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class ClockOff:
    """A node's calendar clock is too far from the median of all: it must not coordinate, nor expire."""

    name: NodeId  # This node's own, or a peer's.
    offset_ms: int  # Above 0: it is ahead.


@dataclass(frozen=True, slots=True)
class ClockBack:
    """That is over."""

    name: NodeId
    offset_ms: int


@dataclass(frozen=True, slots=True)
class GossipRefused:
    """The peer sent what no member sends. The node closes the connection and logs the reason."""

    name: NodeId
    reason: str


Event = (
    MemberJoined
    | MemberUp
    | MemberSuspected
    | MemberRecovered
    | MemberRestarted
    | MemberChanged
    | MemberLeft
    | DuplicateName
    | Incompatible
    | TableFull
    | PeerReachable
    | PeerUnreachable
    | ClockOff
    | ClockBack
    | GossipRefused
)
