"""Quorums, and what is gathered for the same replicas within a tick.

Core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from cluster.ring import NodeId
from cluster.round import ReadEntry, WriteEntry
from cluster.slot import Row, Slot


@dataclass(frozen=True, slots=True)
class Quorums:
    """How many replicas count: n in all, r for a read, w for a write.

    Each operation has its own; nearly all have those of the configuration.
    """

    n: int
    r: int
    w: int

    @property
    def majority(self) -> int:
        return self.n // 2 + 1

    @property
    def checks_all(self) -> bool:
        """Whether every write finds out about conflicts: if not, blind ones become siblings."""
        return self.w >= self.majority

    @property
    def reads_anywhere(self) -> bool:
        """Whether a read at any replica meets each acknowledged write: if not, the coordinator answers it."""
        return self.r + self.w > self.n


@dataclass(slots=True, eq=False)
class Batch:
    """What goes to the same other replicas with one pair of quorums, until it is sealed."""

    peers: tuple[NodeId, ...]  # See `in_turn`.
    quorums: Quorums
    pieces: list[bytes] = field(default_factory=list)
    writes: list[WriteEntry] = field(default_factory=list)
    contexts: dict[Slot, bytes] = field(default_factory=dict)
    blind_pieces: list[bytes] = field(default_factory=list)
    blind_writes: list[WriteEntry] = field(default_factory=list)
    questions: list[bytes] = field(default_factory=list)
    reads: list[ReadEntry] = field(default_factory=list)
    is_open: bool = False
    weight_bytes: int = (
        0  # Of the values in `pieces`; plain ones of `respkv.group` are too small to count.
    )
    alive: tuple[
        NodeId, ...
    ] = ()  # Those of `peers` that can be reached, as of `Coordinator.look`.
    can_read: bool = False  # Enough replicas can be reached, as of `Coordinator.look`.
    can_write: bool = False
    rows: set[Row] = field(default_factory=set)  # Of the first writes, as many as these say.
    _noted: int = 0
    _blind_noted: int = 0

    def writes_to(self, row: Row) -> bool:
        """Whether a write of this row was gathered. Asked only where quorums are mixed."""
        self.rows.update(entry[3] for entry in islice(self.writes, self._noted, None))
        self.rows.update(entry[3] for entry in islice(self.blind_writes, self._blind_noted, None))
        self._noted, self._blind_noted = len(self.writes), len(self.blind_writes)
        return row in self.rows

    def forget_rows(self) -> None:
        """The writes have left."""
        self.rows = set()
        self._noted = self._blind_noted = 0


def in_turn(replicas: Sequence[NodeId], me: NodeId) -> tuple[NodeId, ...]:
    """The others of some replicas, beginning with the name that follows this node's.

    Alike for all slots of the same replicas: so they share messages, and one node confirms all that a
    command reads of them. What was written together is there together, or not yet.
    """
    return tuple(
        sorted((name for name in replicas if name != me), key=lambda name: (name < me, name))
    )
