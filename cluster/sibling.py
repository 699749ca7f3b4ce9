"""Siblings: what a write that saw only a part of a row leaves beside itself, and what its author has seen then.

Not how records are joined (`cluster/record.py`), nor what clients send (`respkv/commands/siblings.py`).

Who is shown a row by a replica has seen its versions, and all that they had replaced (`seen_with`). Whoever
writes then says so, perhaps at another replica. There, of the versions V of the row, those stay that the
author had not seen, and the new version n stands beside them (`beside`):

    versions   V that are not in what the author had seen, and n
    context    what the replica has seen of the slot and of the row, what the author had seen, and n

So the entry is a delta like any other: a replica that takes it gives up what the context covers and the entry
does not list, and keeps what neither has seen. A version that its author had read elsewhere and that has not come
here yet is dead when it comes. What says so is the context of the row, which is stored with it; the slot is
*unsettled* till then. The slot's clock must not say it: it speaks for all rows of the slot, and would have an
exchange leave out what is not here.

**What somebody has seen is closed**: of each version also all that it had replaced. The exchange relies on
it. It sends a row only for a dot that the peer lacks, and joins the clocks then. If n could replace f and keep e,
which f had replaced, a replica with n and e and one with n alone would have equal clocks in the end, and never be
equal. So the author of n has seen, afterwards, n and all that it replaced, but for what was kept (`seen_after`). That
is a clock with holes, and a record's context has none. Where holes matter, because what the author had seen has not
come here and neither has what stands beside it there, the write replaces what is here only, which leaves a
version too many, and loses none.

Versions that are deleted or have expired are not kept: the new one replaces them, seen or not.

Core. Sources: Almeida, Baquero et al., Dotted Version Vectors; Riak's dvvset.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.clock import Dot, SlotClock
from cluster.delta import clock_of, joined, lacks
from cluster.record import Record, Version, decode


@dataclass(frozen=True, slots=True)
class Seen:
    """What somebody has seen of a row: what `clock` covers, without the holes."""

    clock: SlotClock = field(default_factory=SlotClock)
    holes: frozenset[Dot] = frozenset()

    def covers(self, dot: Dot) -> bool:
        return self.clock.covers(dot) and dot not in self.holes


class Beside(NamedTuple):
    """How a write leaves some versions of its row as they are: they are written once more, beside the new one."""

    stored: bytes  # The row, as it is stored; empty if there is none.
    kept: tuple[Version, ...]
    # What the author had seen beyond this slot's clock: it is superseded, here when it comes.
    seen: SlotClock | None

    @property
    def is_plain(self) -> bool:
        """Whether nothing stays, so that the entry is that of any other write."""
        return not self.kept and self.seen is None


def seen_with(record: Record, clock: SlotClock) -> Seen:
    """What somebody has seen who is shown all versions of a row by a replica that has seen `clock` of the slot."""
    return Seen(joined(clock, clock_of(record)))


def beside(stored: bytes, clock: SlotClock, seen: Seen, now_ms: int) -> Beside:
    """How a write by somebody who has seen `seen` goes into a row, at a replica that has seen `clock` of the slot."""
    record = decode(stored) if stored else Record(())
    kept = tuple(v for v in record.versions if v.is_live(now_ms) and not seen.covers(v.dot))
    known = joined(clock, clock_of(record))
    is_more = lacks(known, seen.clock) and all(map(known.covers, seen.holes))
    return Beside(stored, kept, seen.clock if is_more else None)


def seen_after(seen: Seen, place: Beside, clock: SlotClock, dot: Dot) -> Seen:
    """What the author of a version has seen afterwards: `place` and `clock` as in `beside`, `dot` the version's."""
    record = decode(place.stored) if place.stored else Record(())
    known = joined(clock, clock_of(record))
    holes = {version.dot for version in place.kept}
    holes.update(hole for hole in seen.holes if not known.covers(hole))
    after = joined(known, seen.clock)
    after.add(dot)
    return Seen(after, frozenset(holes))
