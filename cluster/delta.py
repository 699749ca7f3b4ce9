"""What a replica does with a delta: store it, read first, or nothing. And what a peer lacks of a slot.

A delta is a `Record`: one or several versions of a row, and as its context the slot clock of whoever
sent it. A write is a delta of one version, under a new dot; a repair is one that holds a row's whole
state. No store here, and no network: `cluster/replica.py` keeps the rows and the clocks, and carries
out what this decides.

Let the replica hold the versions V of the row with the context Y, and have seen C of the slot, and
let the delta bring W with the context X. What results is

    versions   those of V that are in W or not in X, and those of W that are in V or in neither C nor Y
    context    X and Y
    clock      C and the dots of W

The clock does not take X: it covers other rows of the slot too, of which nothing has come. A slot
clock must never cover what the replica cannot produce, or an exchange would leave that out.

Nearly always this needs no reading. If all of W is new and X covers C, nothing of V survives and the
entry is *complete*. If all of W is new but X does not cover C, some older version may survive: the
entry is stored as a *delta*, over what is below. If none of W is new, it was here before, and whatever
X removes was removed then: each removal was caused by an event that one of W's dots has seen. Only a
mixture has to look at V.

What is stored of a complete entry's context is what the clock does not cover, so nearly always
nothing, and a record keeps its short form (`stripped`). It must not be less: a write that was
overtaken by the one that superseded it is new to the clock when it comes, and only the context says
that it is dead. It must not be more: the short form claims all that its actor did before, which is
wrong of a write that had not seen it, unless the clock has.

**Exchange.** Peers compare their clocks of a slot. Who has seen more sends the rows that hold a dot
which the other lacks, whole, with its own clock as context; when all have come, the other joins that
clock too. Rows without such a dot need not be sent: whatever removed a version from them has a dot,
and the chain of what superseded that dot ends in a version that is still held.

Core. Sources: Goncalves, Almeida, Baquero and Fonte, DottedDB; Almeida et al., Scalable and Accurate
Causality Tracking for Eventually Consistent Stores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from enum import Enum

from cluster.clock import Actor, Counter, Dot, SlotClock
from cluster.record import DELETION, Record, Version, join_records
from cluster.slot import Row


class Outcome(Enum):
    """What to do with a delta."""

    IGNORE = "it was here before"
    COMPLETE = "store it: it is the row's whole state"
    DELTA = "store it over what is below"
    READ = "look at the row first"


def settle(
    delta: Record, clock: SlotClock, at_hand: Record | None
) -> tuple[Outcome, Record | None]:
    """Decide what a delta does to a row, and give the record to store (for COMPLETE and DELTA).

    `at_hand` is the row as it is stored if it is in memory (no versions: it is known that there are
    none), or None. With it the outcome is never READ or DELTA. The caller then adds the dots of the
    delta's versions to the clock, in the same frame of the log as the entry.
    """
    fresh = [version for version in delta.versions if not clock.covers(version.dot)]
    if at_hand is not None:
        seen = joined(clock, clock_of(at_hand))
        result = join_records(delta, Record(at_hand.versions, *seen.freeze()))
        if not fresh and result.versions == at_hand.versions:
            return Outcome.IGNORE, None
        context = joined(clock_of(delta), clock_of(at_hand))
        return Outcome.COMPLETE, stripped(result.versions, context, clock, delta.dots)
    if not fresh:
        return Outcome.IGNORE, None
    if len(fresh) < len(delta.versions):
        return Outcome.READ, None
    context = clock_of(delta)
    if lacks(context, clock):
        return Outcome.DELTA, delta
    return Outcome.COMPLETE, stripped(delta.versions, context, clock, delta.dots)


def stripped(
    versions: tuple[Version, ...],
    context: SlotClock,
    clock: SlotClock,
    also: Set[Dot] = frozenset(),
) -> Record:
    """A complete record as it is stored by a replica that has then seen `clock`, and the dots of `also`."""
    if not versions or lacks(clock, context, also):
        return Record(versions, *context.freeze())
    implied: dict[Actor, Counter] = {}
    for version in versions:
        actor, counter = version.dot
        implied[actor] = max(counter, implied.get(actor, 0))
    if lacks(clock, SlotClock(implied), also):
        return Record(versions, *context.freeze())
    return Record(versions, tuple(sorted(implied.items())))


def winner_alone(result: Record, delta: Record, clock: SlotClock) -> Record:
    """The winner of a row of which no siblings are kept, as if it had seen the others.

    `result` is what `settle` gave of `delta` and `clock`. This is no other join: the others are dropped, and their
    dots stay seen, as those of what was superseded do. Wherever one of them still is, the join drops it as soon as it
    meets this state, and the winner of more versions is the winner of the winners: so all replicas end alike, in
    whatever order they hear. It needs no dot of its own, and makes no event.
    """
    live = [version for version in result.versions if version.type != DELETION]
    kept = (live or result.versions)[:1]
    seen = SlotClock(dict(result.context), set(result.beyond))
    for version in (*result.versions, *delta.versions):
        seen.add(version.dot)
    return stripped(tuple(kept), joined(seen, clock_of(delta)), clock, delta.dots)


def clock_of(record: Record) -> SlotClock:
    """A record's context as a clock."""
    return SlotClock(dict(record.context), set(record.beyond))


def joined(a: SlotClock, b: SlotClock) -> SlotClock:
    """What both have seen, as a new clock."""
    clock = SlotClock(dict(a.base), set(a.beyond))
    clock.join(b)
    return clock


def lacks(clock: SlotClock, other: SlotClock, also: Set[Dot] = frozenset()) -> bool:
    """Whether `other` has seen anything that neither `clock` has nor stands in `also`.

    It takes as long as `other` is large: clocks with many single dots are met while a slot is refilled.
    """
    base, beyond = clock.base, clock.beyond
    for actor, counter in other.base.items():
        for between in range(base.get(actor, 0) + 1, counter + 1):
            if (actor, between) not in beyond and (actor, between) not in also:
                return True
    return not all(clock.covers(dot) or dot in also for dot in other.beyond)


def missing(
    rows: Iterable[tuple[Row, Record]], clock: SlotClock, peer: SlotClock
) -> Iterator[tuple[Row, Record]]:
    """The deltas that bring a peer up to date with a slot: `rows` is all of it, and `clock` is of the same moment."""
    for row, record in rows:
        if any(not peer.covers(version.dot) for version in record.versions):
            yield row, whole(record, clock)


def whole(record: Record, clock: SlotClock) -> Record:
    """A stored row with its full context, for others: what the clock covers and what it carries itself.

    Also for a write that replaces it: a context must be transitive by row. If it left out what the
    replaced version had replaced, who never saw that version would keep what it replaced for ever.
    """
    return Record(record.versions, *joined(clock, clock_of(record)).freeze())
