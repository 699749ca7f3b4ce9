"""What the engine's manifest keeps of a replica: all that it must know of rows that the log no longer holds.

Written when a memtable freezes, and taken back at the next start (`cluster/recovery.py`), before the entries of
the log that came after it. A copy of the data has the same state, marked as one.

Core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from cluster.clock import Actor, Counter, Dot, Hlc, SlotClock
from cluster.slot import Row, Slot
from cluster.slot_clocks import SlotClocks


class ReplicaState(msgspec.Struct, array_like=True):
    """What a replica must know of everything that the log no longer holds. Kept in the engine's manifest."""

    actor: Actor
    last_hlc: int
    counters: list[Counter]
    # The last dot of each other actor, by slot: other nodes, and this one's former incarnations.
    past: dict[Actor, list[Counter]] = {}
    # This is the state in a snapshot or backup: what it was taken of may go on writing as `actor`.
    is_copy: bool = False
    beyond: dict[Slot, list[Dot]] = {}
    unsettled: dict[Slot, tuple[list[Dot], list[Dot]]] = {}
    origin: Actor = 0  # The first actor of this data, of which copies are made too.
    open_rows: list[tuple[Slot, Row]] = []  # See `cluster/open_row.py`.
    open_writes: list[bytes] = []  # Of each of them, packed.
    together: list[list[tuple[Slot, Row]]] = []  # Those among them that one command wrote.


def state_of_copy(state: bytes) -> bytes:
    """The state to put into a copy of the data: whoever opens it writes as a new actor.

    Otherwise two nodes, or one node before and after a restore, would give the same dot to two
    different writes. Of a copy's state it is that state.
    """
    return msgspec.msgpack.encode(msgspec.structs.replace(decode_state(state), is_copy=True))


def encode_state(
    clocks: SlotClocks,
    last_hlc: Hlc,
    unsettled: Mapping[Slot, SlotClock],
    origin: Actor,
    open_rows: Mapping[tuple[Slot, Row], bytes],
    together: Sequence[Sequence[tuple[Slot, Row]]],
) -> bytes:
    """The state to keep, as `Recovery.restore` takes it."""
    counters = clocks.capture()
    expected = {}
    for slot, clock in sorted(unsettled.items()):
        base, beyond = clock.freeze()
        expected[slot] = (list(base), list(beyond))
    return msgspec.msgpack.encode(
        ReplicaState(
            counters.actor,
            last_hlc,
            counters.own,
            counters.columns,
            False,
            counters.beyond,
            expected,
            origin,
            list(open_rows),
            list(open_rows.values()),
            list(map(list, together)),
        )
    )


def decode_state(state: bytes) -> ReplicaState:
    return msgspec.msgpack.decode(state, type=ReplicaState)
