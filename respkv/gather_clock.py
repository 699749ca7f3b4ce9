"""Whether a replica has seen all that others have seen of a range of slots: windows, hashes, clocks.

Commands on the whole keyspace cannot have their rows confirmed one by one, as reads of single keys are.
They compare slot clocks instead: whose clock covers the clocks of R-1 other replicas has, with
R + W > N, every write that was acknowledged before. For a clock never covers what is not here.

A *window* is a range of slots with the same replicas, 256 at most and never across a multiple of 256. Of
each window the asker sends a hash of its clocks; who has other clocks answers them whole:

    columns     by actor, a counter of 8 bytes for each slot; actors that did nothing there are left out
    beyond      single dots after a gap, with their slots

Being ahead is no fault of the asker's, and being behind only lasts until what is under way has come.

Core. Source: DottedDB (comparing node clocks); the hash is BLAKE3.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from operator import gt
from typing import Final

import msgspec
from blake3 import blake3

from cluster.clock import Actor, Counter
from cluster.ring import NodeId
from cluster.slot import Slot
from cluster.slot_clocks import SlotClocks
from cluster.topology import Topology

WINDOW_SLOTS: Final = 256
HASH_BYTES: Final = 16
_COUNTER_BYTES: Final = 8

Window = tuple[Slot, Slot]  # The first slot, and the one after the last.


class Seen(msgspec.Struct, array_like=True):
    """What a replica has seen of a window."""

    columns: dict[Actor, bytes]
    beyond: list[tuple[Slot, Actor, Counter]]


def windows_of(
    topology: Topology, spans: Iterable[Window]
) -> dict[frozenset[NodeId], list[Window]]:
    """The windows of ranges of slots, in order, by the replicas that share them."""
    found: dict[frozenset[NodeId], list[Window]] = {}
    for span in spans:
        for window in _cut(topology, *span):
            found.setdefault(frozenset(topology.preferences[window[0]]), []).append(window)
    return found


def _cut(topology: Topology, first: Slot, end: Slot) -> Iterator[Window]:
    preferences = topology.preferences
    while first < end:
        limit = min(end, (first // WINDOW_SLOTS + 1) * WINDOW_SLOTS)
        replicas = preferences[first]
        after = first + 1
        while after < limit and (
            preferences[after] is replicas or set(preferences[after]) == set(replicas)
        ):
            after += 1
        yield first, after
        first = after


def seen_of(clocks: SlotClocks, window: Window) -> bytes:
    """What is sent of a window: equal bytes for equal clocks."""
    first, end = window
    columns = {clocks.actor: clocks.own[first:end].tobytes()}
    for actor, column in clocks.columns.items():
        columns[actor] = column[first:end].tobytes()
    beyond = [
        (slot, *dot)
        for slot, dots in sorted(clocks.beyond.items())
        if first <= slot < end
        for dot in sorted(dots)
    ]
    kept = {actor: columns[actor] for actor in sorted(columns) if columns[actor].strip(b"\0")}
    return msgspec.msgpack.encode(Seen(kept, beyond))


def hash_of(clocks: SlotClocks, window: Window) -> bytes:
    return blake3(seen_of(clocks, window)).digest(HASH_BYTES)


def parse(data: bytes, window: Window) -> Seen:
    """Raises ValueError."""
    try:
        seen = msgspec.msgpack.decode(data, type=Seen)
    except msgspec.MsgspecError as error:
        raise ValueError(f"clocks that cannot be read: {error}") from None
    first, end = window
    length = (end - first) * _COUNTER_BYTES
    if any(len(column) != length for column in seen.columns.values()):
        raise ValueError("clocks of another window")
    if any(not first <= slot < end for slot, *_ in seen.beyond):
        raise ValueError("dots of another window")
    return seen


def lags(clocks: SlotClocks, window: Window, seen: Seen) -> bool:
    """Whether something was seen of a window that these clocks do not cover."""
    first, end = window
    for actor, packed in seen.columns.items():
        if actor == clocks.actor:
            mine: array[Counter] | None = clocks.own[first:end]
        else:
            column = clocks.columns.get(actor)
            mine = None if column is None else column[first:end]
        if mine is None:
            return True  # A column that is sent is not empty.
        if packed != mine.tobytes() and any(map(gt, array("q", packed), mine)):
            return True
    return any(not clocks.covers(slot, (actor, counter)) for slot, actor, counter in seen.beyond)


def covers(theirs: Seen, mine: Seen, window: Window) -> bool:
    """Whether somebody has seen all that was seen here of a window."""
    for actor, packed in mine.columns.items():
        other = theirs.columns.get(actor)
        if other is None or (
            other != packed and any(map(gt, array("q", packed), array("q", other)))
        ):
            return False
    beyond = set(theirs.beyond)
    return all(dot in beyond or _has(theirs, window[0], *dot) for dot in mine.beyond)


def _has(seen: Seen, first: Slot, slot: Slot, actor: Actor, counter: Counter) -> bool:
    column = seen.columns.get(actor)
    return column is not None and array("q", column)[slot - first] >= counter
