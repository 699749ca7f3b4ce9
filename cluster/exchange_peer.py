"""What one node keeps of its exchange with each other node: settings, counts and plain state.

It does nothing. `cluster/exchange_compare.py` and `cluster/exchange.py` do.

Core: definitions only.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass, field

from cluster.exchange_transfer import Incoming, Outgoing
from cluster.exchange_wire import GROUP_COUNT, Digest, Group, PackedClock, RoundId
from cluster.ring import NodeId
from cluster.slot import SLOT_COUNT, Slot
from cluster.transport import Message


@dataclass(frozen=True, slots=True)
class ExchangeSettings:
    """How often, and how much at a time."""

    interval_s: float = 1.0  # Between two comparisons with a peer.
    grace_s: float = 1.0  # How long a peer may have seen more before it is asked for it.
    groups_per_round: int = 16
    slots_in_flight: int = 8  # Per peer and direction.
    chunk_rows_max: int = 256
    chunk_bytes_max: int = 1 << 16  # A row that is larger goes alone.
    retry_s: float = 3.0  # Without an answer, a request is sent again.
    attempts_max: int = 5
    idle_s: float = 30.0  # A transfer that nobody asks for is forgotten.
    clock_dots_max: int = 4096  # Of a clock with more dots beyond, only the base is compared.


@dataclass(slots=True)
class Progress:
    """What has been done since the start, and what is left."""

    slots_left: int = 0  # Known to be missing something, or suspected.
    transfers: int = 0  # Under way, both directions.
    rounds: int = 0
    slots_received: int = 0
    rows_received: int = 0
    bytes_received: int = 0
    rows_sent: int = 0
    bytes_sent: int = 0
    dropped: int = 0  # Transfers to this node that were given up; most are begun again.


@dataclass(frozen=True, slots=True)
class Lead:
    """What a peer had seen of a slot that this node had not, and when that has to be looked at again."""

    clock: PackedClock
    is_partial: bool
    due_s: float


@dataclass(slots=True)
class Round:
    """A digest that is being made."""

    is_full: bool
    todo: deque[Group]  # Changed, to be hashed first.
    left_out: frozenset[Group]


@dataclass(slots=True)
class Answer:
    """A digest of the peer that is being answered."""

    digest: Digest
    todo: deque[Group]
    room: int  # For so many groups that differ.
    stale: frozenset[Group]  # To be hashed before they are compared.
    same: list[Group] = field(default_factory=list)
    unsent: deque[Message] = field(default_factory=deque)


@dataclass(slots=True)
class Peer:
    """What this node knows of one other, and what is under way between them."""

    name: NodeId
    next_round_s: float
    shared: dict[Group, array[Slot]] = field(default_factory=dict)
    digests: dict[Group, int] = field(default_factory=dict)  # In order of the groups.
    versions: list[int] = field(default_factory=lambda: [-1] * GROUP_COUNT)  # Of `digests`.
    is_full_due: bool = True
    full_round: RoundId | None = None
    first_round: RoundId = 0  # Answers to earlier ones are void.
    turn: Group = 0  # Where the next round begins to look for changed groups.
    answer_turn: Group = 0
    round: Round | None = None
    answer: Answer | None = None
    suspects: dict[Slot, Lead] = field(default_factory=dict)
    wanted: dict[Slot, Lead] = field(default_factory=dict)
    incoming: dict[Slot, Incoming] = field(default_factory=dict)
    outgoing: dict[Slot, Outgoing] = field(default_factory=dict)
    matched: bytearray = field(default_factory=lambda: bytearray(SLOT_COUNT))
    matched_groups: dict[Group, None] = field(default_factory=dict)
