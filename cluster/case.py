"""A case: what an inquest knows of one row, and what follows from that alone.

Who is asked, and what is done about it, is in `cluster/inquest.py`, and with many replicas in `cluster/vote.py`.

Core.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cluster.clock import Dot, SlotClock
from cluster.delta import clock_of, joined
from cluster.delta_wire import decode_clock, delta_of
from cluster.open_row import OpenWrites
from cluster.record import Record, Version, decode, join_records
from cluster.ring import NodeId
from cluster.round import Place, WriteEntry, WriteRound

if TYPE_CHECKING:
    from cluster.inquest import Closing

ASK_S: Final = 0.1
"""Then the replicas are asked again; twice as long after each time."""


@dataclass(slots=True, eq=False)
class Case:
    """The open writes of one row. `pasts`: the row before each of them, with what that write had seen."""

    place: Place
    dots: set[Dot]
    pasts: list[Record]
    waiting: list[tuple[float, WriteEntry]]  # Commands that wait for the end, and until when.
    next_s: float
    wait_s: float = ASK_S
    answers: dict[NodeId, Record] = field(default_factory=dict)
    doubts: dict[NodeId, frozenset[Dot]] = field(
        default_factory=dict
    )  # In answers, if there are any.
    # Of these, what a majority was known to have seen before the question went out.
    borne_out: dict[NodeId, frozenset[Dot]] = field(default_factory=dict)
    # When that was: what this node had seen of the slot, and the answers that were there.
    known: tuple[SlotClock, dict[NodeId, Record]] = field(default_factory=lambda: (SlotClock(), {}))
    # What this node had seen of the slot before any of the answers was asked for.
    since: SlotClock = field(default_factory=SlotClock)
    incomplete: set[NodeId] = field(default_factory=set)  # They were asked, and cannot tell.
    refusing: set[NodeId] = field(
        default_factory=set
    )  # They have refused the open writes themselves.
    heard: list[Record] = field(default_factory=list)  # What counts of the answers.
    # What counted when the row was written again and that was refused: its writes have seen all this.
    heard_before: Record = field(default_factory=lambda: Record(()))
    asked: dict[int, NodeId] = field(default_factory=dict)  # Messages under way.
    closing: Closing | None = None
    is_short: bool = False  # Only if those are counted that are incomplete.
    is_refused: bool = False  # By others that have open writes of their own.
    is_undone: bool = False  # The row was written again without the open writes.
    is_beside: bool = False  # It stays with them, beside what others have: nobody can tell.
    chosen: set[Dot] = field(default_factory=set)  # Writes that a majority has seen.
    # What was seen before, where the row as it was is not known. From before the start: what the node had seen then.
    seen: SlotClock | None = None
    noted: OpenWrites | None = None  # What the process before has noted, until it is looked up.
    rounds: list[WriteRound] = field(default_factory=list)  # Of this node, that wrote the row.
    group: list[Case] = field(
        default_factory=list
    )  # Those to be judged together, this one among them.

    def __post_init__(self) -> None:
        self.group.append(self)

    @property
    def past(self) -> Record:
        """The row before the first open write, as far as that is known."""
        for past in self.pasts:
            if past.dots.isdisjoint(self.dots):
                return past
        return Record(())

    @property
    def all_seen(self) -> SlotClock:
        """What the open writes had seen, with themselves."""
        seen = clock_of(self.past) if self.seen is None else joined(self.seen, SlotClock())
        for dot in self.dots:
            seen.add(dot)
        return seen


def unite(one: Case, other: Case) -> None:
    """From now on these are judged together."""
    if one.group is not other.group:
        one.group += other.group
        for each in other.group:
            each.group = one.group


def past_of(round_: WriteRound, entry: WriteEntry) -> Record:
    """A row as it was before a write, with all that the write had seen; nothing if that was not kept."""
    op, _, slot, row, _ = entry
    if (slot, row) not in op.before:
        return Record(())
    before = op.before[slot, row]
    return Record(
        () if before is None else decode(before).versions, *seen_by(round_, entry).freeze()
    )


def seen_by(round_: WriteRound, entry: WriteEntry) -> SlotClock:
    """What a write had seen of its slot."""
    _, _, slot, _, raw = entry
    context = round_.contexts.get(slot)
    delta = delta_of(raw, None if context is None else decode_clock(context))
    seen = SlotClock()
    for actor, counter in delta.context:
        upto = counter - ((actor, counter) in delta.dots)
        if upto:
            seen.join(SlotClock({actor: upto}))
    seen.join(SlotClock({}, set(delta.beyond) - delta.dots))
    return seen


def seen_before(seen: SlotClock, beside: Iterable[Dot]) -> SlotClock:
    """What a write had seen, of what its node had when it ended, where these stand beside it in the row.

    They had not been seen, or they would be gone. What their actors did later is left out as well.
    """
    result = SlotClock(dict(seen.base), set(seen.beyond))
    for actor, counter in beside:
        if result.base.get(actor, 0) >= counter:
            del result.base[actor]
            if counter > 1:
                result.base[actor] = counter - 1
        result.beyond = {dot for dot in result.beyond if dot[0] != actor or dot[1] < counter}
    return result


def without(state: Record, dots: set[Dot]) -> Record:
    """A row without some writes. Who has taken one of them has dropped what it replaced, and that tells nothing."""
    if dots.isdisjoint(state.dots):
        return state
    return Record(tuple(version for version in state.versions if version.dot not in dots))


def restored(
    past: Record, dots: set[Dot], states: Sequence[Record], held: Record
) -> tuple[Version, ...]:
    """The versions of a row without some writes: what was before them, and what others have."""
    result = past
    for state in (*states, held):
        result = join_records(result, without(state, dots))
    return tuple(version for version in result.versions if version.dot not in dots)
