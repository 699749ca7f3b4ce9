"""Rounds: one message to several replicas, and the decision what their answers mean.

A round has no network: the coordinator (`cluster/coordinator.py`) sends its message, tells it the
answers, and acts on the verdict. What waits for rounds is a `Pending`: a command whose reply leaves
when every row that it read or wrote is confirmed. It may be run again (another *attempt*); entries of
an earlier attempt count no more.

Core.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from cluster.errors import ClusterError
from cluster.ring import NodeId
from cluster.slot import Row, Slot
from engine.store import PageFault

Place = tuple[Slot, Row]


@dataclass(eq=False)
class QuorumNotMet(ClusterError):
    """Too few replicas answered in time. A write may be on `answered` of them, and spread later."""

    needed: int
    answered: int
    is_write: bool

    def __str__(self) -> str:
        what = "the write" if self.is_write else "the read"
        return f"{what} needs {self.needed} replicas, and {self.answered} answered in time"


@dataclass(eq=False)
class ConflictLost(ClusterError):
    """Another node wrote the same key at the same time. `is_partial`: a part of what was written may stay."""

    is_partial: bool

    def __str__(self) -> str:
        if self.is_partial:
            return "another node wrote the key at the same time, and a part may have been applied"
        return "another node wrote the key at the same time"


Fetch = Callable[[PageFault, Callable[[], None]], None]  # Have a page read, then call.
NOTHING_BEFORE: Final[Mapping[Place, bytes | None]] = {}


class Pending(ABC):
    """What waits for `waits` confirmations of its present attempt."""

    __slots__ = ("attempt", "before", "is_blind", "is_over", "waits", "written")

    def __init__(self) -> None:
        self.waits = 0
        self.attempt = 0
        self.written = -1  # The last attempt that wrote anything.
        self.is_over = False
        self.is_blind = False  # What it wrote depends on nothing. Run again, it just writes again.
        # The rows that this attempt wrote, as they were stored before. Of a blind command: nothing.
        self.before: Mapping[Place, bytes | None] = NOTHING_BEFORE

    @property
    def may_be_twice(self) -> bool:
        """Whether another attempt, here or elsewhere, may last, and two of its writes stand beside each other."""
        return False

    @abstractmethod
    def settled(self) -> None:
        """All that it shows and wrote is on enough replicas."""

    @abstractmethod
    def stale(self) -> None:
        """What it saw has been overtaken, and what it wrote was taken back: run it again."""

    @abstractmethod
    def failed(self, error: ClusterError) -> None:
        """It has no answer. Its writes may or may not last."""

    def confirm(self, attempt: int) -> None:
        """One of the things that it waits for is there."""
        if attempt == self.attempt and not self.is_over:
            self.waits -= 1
            if not self.waits:
                self.is_over = True
                self.settled()

    def fail(self, attempt: int, error: ClusterError, place: Place) -> None:
        """A row that it read or wrote, `place`, cannot be confirmed."""
        if attempt == self.attempt and not self.is_over:
            self.is_over = True
            self.failed(error)

    def again(self, attempt: int, place: Place) -> None:
        """Begin another attempt for the sake of one row, if this one is not over already."""
        if attempt == self.attempt and not self.is_over:
            self.attempt += 1
            self.waits = 0
            self.stale()


class Verdict(Enum):
    """Of one row of a write round."""

    OPEN = 0
    ACCEPTED = 1
    LOST = 2  # Too many replicas hold something that the writer had not seen.
    UNREACHED = 3  # Too few can still answer.


# Who waits, in which attempt, for which row, and what it wrote there: nothing if it saw the write of another.
WriteEntry = tuple[Pending, int, Slot, Row, bytes]
# The same of a row that was read, and the dots that were seen.
ReadEntry = tuple[Pending, int, Slot, Row, bytes]


@dataclass(slots=True, eq=False)
class WriteRound:
    """Deltas on their way to `peers`, of which `needed` have to take each row.

    `is_unit`: each peer takes all of it or nothing. Without `is_checked` none refuses any.
    """

    id: int
    peers: tuple[NodeId, ...]
    needed: int
    entries: list[WriteEntry]
    deadline_s: float
    is_unit: bool
    weight_bytes: int
    # Of slots with several writers, what their entries had seen.
    contexts: Mapping[Slot, bytes] = field(default_factory=dict)
    # Entries: see `Unaccepted.note_siblings`.
    contradicted: dict[int, None] = field(default_factory=dict)
    answers: dict[NodeId, dict[Place, bytes]] = field(default_factory=dict)  # Rows refused.
    unreachable: dict[NodeId, None] = field(default_factory=dict)
    is_decided: bool = False
    decided: dict[int, None] = field(default_factory=dict)  # Entries, once some row was refused.
    is_checked: bool = True
    # Of the peers that take a row that depends on what was there, so many must remember what they had taken before.
    remembering: int = 0
    forgetful: dict[NodeId, None] = field(default_factory=dict)  # They answered, and may not.

    def add_answer(
        self, peer: NodeId, refused: dict[Place, bytes], *, is_forgetful: bool = False
    ) -> bool:
        """Take an answer; False if it is none that was waited for."""
        if peer not in self.peers or peer in self.answers:
            return False
        self.unreachable.pop(peer, None)  # It answered after all.
        self.answers[peer] = refused
        if is_forgetful:
            self.forgetful[peer] = None
        return True

    def add_loss(self, peer: NodeId) -> bool:
        """A peer cannot answer any more."""
        if peer not in self.peers or peer in self.answers:
            return False
        self.unreachable[peer] = None
        return True

    @property
    def is_complete(self) -> bool:
        """Nothing more will come."""
        return len(self.answers) + len(self.unreachable) >= len(self.peers)

    @property
    def has_refusals(self) -> bool:
        return any(self.answers.values())

    def verdict(self, place: Place) -> Verdict:
        refused = self.refusal_count(place)
        left = len(self.peers) - refused
        if len(self.answers) - refused >= self.needed:
            if not self.forgetful or not self._depends(place):
                return Verdict.ACCEPTED
            # Who may have forgotten what had been there has taken what nobody else might.
            forgetful = sum(not self._refuses(peer, place) for peer in self.forgetful)
            if len(self.answers) - refused - forgetful >= self.remembering:
                return Verdict.ACCEPTED
            if left - forgetful - len(self.unreachable) >= self.remembering:
                return Verdict.OPEN
            return Verdict.LOST if refused else Verdict.UNREACHED
        if left < self.needed:
            return Verdict.LOST
        if left - len(self.unreachable) < self.needed:
            return Verdict.LOST if refused else Verdict.UNREACHED
        return Verdict.OPEN

    def _depends(self, place: Place) -> bool:
        """Whether what was written there depends on what was there before."""
        return self.is_checked and any(
            entry[4] and not entry[0].is_blind
            for entry in self.entries
            if (entry[2], entry[3]) == place
        )

    def refusal_count(self, place: Place) -> int:
        return sum(self._refuses(peer, place) for peer in self.answers)

    def _refuses(self, peer: NodeId, place: Place) -> bool:
        refused = self.answers[peer]
        return bool(refused) if self.is_unit else place in refused

    def is_clean(self, place: Place) -> bool:
        """Whether no peer can have taken this row."""
        return self.refusal_count(place) == len(self.peers)


@dataclass(slots=True, eq=False)
class ReadRound:
    """Rows whose state one peer is asked to confirm. `used` are the peers that were asked for them so far."""

    id: int
    peer: NodeId
    entries: list[ReadEntry]
    deadline_s: float
    retry_s: float  # When another peer is asked too.
    used: dict[NodeId, None]
    needed: int  # R, of the reads in it.
    late: tuple[NodeId, ...] = ()  # Asked before `peer`, and not waited for any more.
