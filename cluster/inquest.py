"""The inquest: what became of a write that too few replicas answered for, before anybody is told of it.

A command that depends on what it replaced (INCR, SET NX, APPEND) was executed here, and its write may or may
not be on other replicas: they did not answer in time, or some refused it and others are gone. Its client
heard that nobody knows. But the write is in the row here, with a timestamp, and might win over one that
another coordinator made at the same time and that a majority confirmed. So it stays hidden (a *case*) until a
majority of the replicas, this one among them, has said what it holds:

    a majority has it                                     it stands
    nobody has anything that the write had not seen       it is sent again as it is
    somebody has                                          the row becomes what it was before the write, joined
                                                          with what they have, under new dots: a write of this
                                                          node that has seen the open one, and so removes it
                                                          wherever it may be

Rows that one command wrote together (RENAME, MSETNX, EXEC) are judged together, so that all of it stands or
none. In the last two cases the row is sent as a checked write, and the case is closed when a majority has taken
it; if it is refused, the inquest begins again. As in Paxos, who goes on with an unfinished write first asks a
majority what came after it. New dots, since a replica that did take the open write has seen what it replaced as
gone.

Commands on the row wait here meanwhile; other nodes are answered that it is undecided, but for an inquest of
their own: that is told what the row was before. Two nodes with an open write each of the same row need the
answers of all: while one is gone, nobody can know whose write it has taken. Once all have answered, a write
that only its author has is dropped, unless the author comes first in the slot's preference list.

A case is in the log, so that the next process of this node goes on with it; and that process begins with all
rows that were written in the last moments before it (`cluster/open_row.py`), since it does not know which of these
had their answers. What such a row was before is not known: if its write has to go, what others have is taken, once
one of them has seen all that this node had, or so many were heard that one of them must have it. So others are
told the row as it is, and which of its writes are *in doubt*. An answer with a doubt counts when a majority has seen
the write after all, or when all have answered: then the write was never confirmed, and is looked away from. The
majority must be known before the question goes out: once a node has dropped a write, its clock goes round, and
whoever gets that seems to have seen the write. Where all others are in doubt, and nobody can tell what was before, a
node that drops its own write takes that of the first, which keeps it.

Replicas that are incomplete cannot say what they had. Where no majority of the others is left, the write is sent
again as it is, if nobody contradicts: they take writes like any other replica. They would be incomplete for ever
otherwise: a slot with a case cannot be compared. Nor is one waited for that had refused the write, where of those that
can tell nobody has another open write any more. If somebody contradicts, and all others have answered or said that they
are incomplete, nobody will ever know: then both stay as siblings, which the first of those that are complete writes.

With more than three replicas a node also opens cases of what it holds of others (`cluster/held.py`), all tell each
other rows as they are, and what becomes of a write is a matter of votes (`cluster/vote.py`).

Core: time is an argument; messages go out with the coordinator's.

    READ id question i       as `cluster/quorum_messages.py`; `i`: for an inquest. Always answered by the state:
    STATES id 0 state dots   where `dots` are those in doubt, if any
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from cluster.case import Case, past_of, restored, seen_before, seen_by, unite, without
from cluster.clock import Dot
from cluster.delta import clock_of, joined, lacks
from cluster.delta_wire import record_of
from cluster.errors import ClusterError
from cluster.open_row import OpenWrites
from cluster.record import (
    Record,
    decode,
    encode,
    join_records,
    pack_dots,
    unpack_dots,
)
from cluster.ring import NodeId
from cluster.round import ConflictLost, Pending, Place, QuorumNotMet, WriteEntry, WriteRound
from cluster.slot import Row, Slot
from cluster.vote import Votes
from engine.errors import EngineError
from engine.store import PageFault

if TYPE_CHECKING:
    from cluster.coordinator import Coordinator

INQUEST: Final = b"i"
ASK_MOST_S: Final = 2.0
ASKED_MAX: Final = 128  # Cases in one tick.
UNLIKE: Final = b"?"  # No row has these dots, so that a replica answers its state.


class Closing(Pending):
    """The write that closes cases."""

    __slots__ = ("cases", "inquest")

    def __init__(self, inquest: Inquest, cases: list[Case]) -> None:
        super().__init__()
        self.inquest = inquest
        self.cases = cases
        self.is_blind = True  # Refused, it is not taken back: the inquest begins again.

    def note_refusals(self, place: Place, round_: WriteRound) -> None:
        """Of a write that was sent as it had been: who has refused it will not take it later."""
        for case in self.cases:
            if case.place == place and not case.is_undone:
                case.refusing |= {peer for peer, refused in round_.answers.items() if refused}

    def settled(self) -> None:
        for case in self.cases:
            self.inquest.close(case, is_known=not case.is_beside)

    def stale(self) -> None:
        self.inquest.begin_again(self.cases)

    def failed(self, error: ClusterError) -> None:
        self.inquest.begin_again(self.cases)


class Inquest:
    """One per coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._votes = Votes(coordinator)
        self.cases: dict[Place, Case] = {}
        self._asked: dict[int, Case] = {}
        self._slots: dict[Slot, int] = {}  # Cases, by slot.
        self._by_command: dict[Pending, Case] = {}  # One of those that a command has opened.
        self.closed_total = 0

    def open(self, round_: WriteRound, entry: WriteEntry) -> None:
        """Find out about a row that this entry of a round wrote: nobody knows how that ended."""
        op, _, slot, row, raw = entry
        if isinstance(op, Closing):
            return  # The inquest whose end it was begins again.
        place = (slot, row)
        case = self.cases.get(place)
        if case is None:
            case = self._begin(place)
            if op.is_blind:
                case.seen = seen_by(round_, entry)
        case.dots |= decode(raw).dots
        case.pasts.append(past_of(round_, entry))
        case.rounds.append(round_)
        self._note(case)
        self._forget_answers(case)
        unite(self._by_command.setdefault(op, case), case)

    def open_held(self, writes: Mapping[Place, OpenWrites]) -> None:
        """Find out about rows that another node wrote together, which does not say how that ended."""
        first: Case | None = None
        for place, each in writes.items():
            case = self.cases.get(place)
            if case is None:
                case = self._begin(place)
                case.seen = each.seen
            elif case.seen is not None:
                case.seen = joined(case.seen, each.seen)
            case.dots |= each.dots
            self._note(case)
            self._forget_answers(case)
            first = first or case
            unite(first, case)

    def _note(self, case: Case) -> None:
        """Have it in the log, for the next process. With many replicas, with what it needs to know."""
        coordinator = self._coordinator
        writes = None
        if coordinator.is_many:
            seen = clock_of(case.past) if case.seen is None else case.seen
            writes = OpenWrites(frozenset(case.dots), seen)
        coordinator.replica.note_open(*case.place, coordinator.now_ms, writes)

    def open_at_start(
        self, places: Mapping[Place, bytes], together: Iterable[Sequence[Place]], now_s: float
    ) -> None:
        """Find out about rows that the process before may have left open. With each what it has noted, if anything.

        `together`: rows that one command wrote, whether they are open or not.
        """
        coordinator = self._coordinator
        for place, packed in places.items():
            if place not in self.cases and len(coordinator.batches[place[0]].peers) > 0:
                case = self._begin(place)
                case.next_s = now_s
                case.seen = coordinator.replica.clocks.clock(place[0])
                case.noted = OpenWrites.unpack(packed) if packed else None
                if not packed:
                    # The next process might not find it among the last writes of the process before.
                    coordinator.replica.note_open(*place, coordinator.now_ms)
        coordinator.replica.note_looked(coordinator.now_ms)
        for group in together:
            cases = [self.cases[place] for place in group if place in self.cases]
            for case in cases[1:]:
                unite(cases[0], case)

    def groups(self) -> list[list[Place]]:
        """The rows that are judged together."""
        groups = {id(case.group): case.group for case in self.cases.values()}
        return [[case.place for case in group] for group in groups.values()]

    def _begin(self, place: Place) -> Case:
        case = self.cases[place] = Case(place, set(), [], [], self._coordinator.now_s)
        self._slots[place[0]] = self._slots.get(place[0], 0) + 1
        return case

    def attach(self, entry: WriteEntry, deadline_s: float) -> bool:
        """Have a command wait for the end of a case, if there is one of this row."""
        case = self.cases.get((entry[2], entry[3]))
        if case is not None:
            case.waiting.append((deadline_s, entry))
        return case is not None

    def testimony(self, place: Place) -> tuple[bytes, bytes] | None:
        """What others are told of a row in an inquest of theirs, and of which dots in it this node is in doubt.

        None: nothing yet. Raises PageFault.
        """
        coordinator = self._coordinator
        case = self.cases.get(place)
        doubts = coordinator.held.dots(place)
        if case is not None:
            if case.seen is None and not coordinator.is_many:
                return encode(case.past), b""
            if not case.dots:
                return None
            doubts |= case.dots
        if not doubts or (coordinator.is_many and coordinator.undecided.round_of(place)):
            return None
        return coordinator.replica.state_of(*place), pack_dots(doubts)

    def has_slot(self, slot: Slot) -> bool:
        return slot in self._slots

    def tick(self, now_s: float) -> None:
        """Ask again where answers are late, and give up what has waited for too long."""
        asked = 0
        for case in list(self.cases.values()):
            if case.waiting:
                late = [entry for deadline_s, entry in case.waiting if deadline_s <= now_s]
                case.waiting = [each for each in case.waiting if each[0] > now_s]
                for op, attempt, slot, row, raw in late:
                    quorums = self._coordinator.quorums
                    error = QuorumNotMet(quorums.majority, 1, bool(raw))
                    op.fail(attempt, error, (slot, row))
            if case.next_s <= now_s and case.closing is None and asked < ASKED_MAX:
                asked += 1
                self._ask(case)

    def _ask(self, case: Case) -> None:
        coordinator = self._coordinator
        if case.seen is not None and not case.dots and not self._find(case):
            return
        if coordinator.undecided.round_of(case.place) is not None:
            return  # An earlier write, on which an open one was built, or a later one.
        case.next_s = coordinator.now_s + case.wait_s
        case.wait_s = min(2 * case.wait_s, ASK_MOST_S)
        self._forget_questions(case)
        clock = coordinator.replica.clocks.clock(case.place[0])
        case.known = clock, dict(case.answers)
        if not case.answers:
            case.since = clock
        for peer in coordinator.batches[case.place[0]].peers:
            is_clear = peer in case.answers and peer not in case.doubts
            if not is_clear and coordinator.topology.is_reachable(peer):  # Also with its clock off.
                number = coordinator.ask_state(peer, case.place, UNLIKE, INQUEST)
                case.asked[number] = peer
                self._asked[number] = case
        self._judge(case.group)

    def receive(
        self,
        peer: NodeId,
        number: int,
        told: Sequence[bytes] | None,
        *,
        is_incomplete: bool = False,
    ) -> bool:
        """Take a replica's state of a row, and what it doubts; None: it cannot tell. False if it was not asked."""
        case = self._asked.pop(number, None)
        if case is None:
            return False
        if case.asked.pop(number) != peer or case.closing is not None:
            return True
        case.incomplete.discard(peer)
        if told is not None:
            case.answers[peer] = record_of(told[0]) if told and told[0] else Record(())
            case.doubts.pop(peer, None)
            if len(told) > 1 and told[1]:
                case.doubts[peer] = unpack_dots(told[1])
                case.borne_out[peer] = self._borne_out(case, peer)
        elif is_incomplete:
            case.incomplete.add(peer)
        self._judge(case.group)
        return True

    def _find(self, case: Case) -> bool:
        """See which writes a case from before the start is about; False if that has to wait, or there are none."""
        try:
            held = self._held(case)
        except PageFault as fault:
            self._coordinator.fetch(fault, lambda: None)
            return False
        except EngineError:
            return False
        assert case.seen is not None
        mine = self._coordinator.replica.actors
        case.dots = {dot for dot in held.dots if dot[0] in mine and case.seen.covers(dot)}
        if case.noted is not None:
            # Beside these, it may have written the row again.
            case.dots |= held.dots & case.noted.dots
            case.seen, case.noted = case.noted.seen, None
        elif len(case.dots) > 1:
            case.dots.clear()  # Siblings: they were written beside each other, and stay.
        elif case.dots == held.dots:  # What the row has seen, its only write had.
            case.seen = joined(case.seen, clock_of(held))
        else:
            case.seen = seen_before(case.seen, held.dots - case.dots)
        if not case.dots:
            self.close(case, is_known=False)
        return bool(case.dots)

    def _judge(self, group: list[Case]) -> None:
        """Decide about rows of which a majority has been heard."""
        coordinator = self._coordinator
        if any(case.closing is not None or not self._hear(case) for case in group):
            return
        try:
            if stale := [case for case in group if self._is_stale(case)]:
                for case in stale:
                    self._forget_answers(case)
                    case.next_s = coordinator.now_s
                return
            for case in list(group):
                if coordinator.is_many:
                    self._votes.note_gone(case, self._clear(case)[1])
                self._note_chosen(case)
            rows = self._resolved(group) if group else []
        except PageFault as fault:
            coordinator.fetch(fault, lambda: self._judge(group))
            return
        except EngineError:
            return  # It is asked again.
        if rows:
            closing = Closing(self, list(group))
            for case in group:
                case.closing = closing
            coordinator.send_rows(closing, rows)

    def _hear(self, case: Case) -> bool:
        """Put what counts of the answers into `heard`; False if that is not enough."""
        needed = self._coordinator.quorums.majority - 1
        case.is_short = False
        unseen, clear = self._clear(case)
        if len(clear) >= needed:
            case.heard = clear
        elif self._votes.have_all_answered(case) and not self._is_unclear(case, unseen):
            case.heard = [without(state, unseen) for state in case.answers.values()]
        elif len(clear) + len(case.incomplete) >= needed:
            case.heard, case.is_short = clear, True
        elif self._coordinator.is_many and self._votes.can_nobody_tell(case):
            case.heard = [without(state, unseen) for state in case.answers.values()]
            case.is_short = True
        else:
            return False
        return True

    def _clear(self, case: Case) -> tuple[set[Dot], list[Record]]:
        """The writes in doubt that no majority has seen, and the answers that count as they are."""
        unseen = self._unseen(case)
        if self._coordinator.is_many:
            clear = [peer for peer in case.answers if unseen.isdisjoint(case.doubts.get(peer, ()))]
        else:
            clear = [
                peer
                for peer in case.answers
                if peer not in case.doubts or case.doubts[peer] <= case.borne_out[peer]
            ]
        return unseen, [case.answers[peer] for peer in clear]

    def _borne_out(self, case: Case, peer: NodeId) -> frozenset[Dot]:
        """The writes that a replica doubts, and that a majority with it was known to have seen before it was asked."""
        clock, answers = case.known
        others = [state for each, state in answers.items() if each != peer]
        return frozenset(
            dot
            for dot in case.doubts[peer]
            if 1 + clock.covers(dot) + sum(state.has_seen(dot) for state in others)
            >= self._coordinator.quorums.majority
        )

    def _is_unclear(self, case: Case, unseen: set[Dot]) -> bool:
        """Whether a majority has come to have seen a write that a replica doubted before, or to know of its end."""
        return not self._coordinator.is_many and any(
            not dots - unseen <= case.borne_out[peer] for peer, dots in case.doubts.items()
        )

    def _unseen(self, case: Case) -> set[Dot]:
        """The writes in doubt that no majority has seen, as far as is known.

        With many replicas who has seen one may have dropped it: there it is told by who shows one without a doubt.
        """
        coordinator = self._coordinator
        doubted = {dot for dots in case.doubts.values() for dot in dots}
        if coordinator.is_many:
            for peer, state in case.answers.items():
                doubted -= state.dots.difference(case.doubts.get(peer, ()))
            return doubted - case.dots
        mine = coordinator.replica.clocks.view(case.place[0])
        return {
            dot
            for dot in doubted
            if sum(state.has_seen(dot) for state in case.answers.values()) + mine.covers(dot)
            < coordinator.quorums.majority
        }

    def _note_chosen(self, case: Case) -> None:
        """A case is over where the row shows no open write any more, or where a majority has them. Raises PageFault."""
        held = self._held(case)
        if held.dots.isdisjoint(case.dots):
            self.close(case, is_known=False)
            return
        chosen = self._chosen(case)
        if chosen and case.seen is not None:
            self._catch_up(case)
        case.chosen |= chosen
        case.dots -= chosen
        if held.dots.isdisjoint(case.dots):
            self.close(case, is_known=True)

    def _catch_up(self, case: Case) -> None:
        """What others have of a row whose write from before the start is not the last any more. Raises PageFault.

        It may have been taken back and made again under another dot, of which nothing is left here.
        """
        coordinator = self._coordinator
        for peer, state in case.answers.items():
            if peer not in case.doubts:
                coordinator.replica.merge(*case.place, state, coordinator.now_ms)

    def _resolved(self, group: list[Case]) -> list[tuple[Slot, Row, bytes]]:
        """The rows as they are to be, for a majority to take; none if that has to wait. Raises PageFault."""
        coordinator = self._coordinator
        replica, now_ms = coordinator.replica, coordinator.now_ms
        overtaken = [case for case in group if self._is_overtaken(case)]
        is_undone = bool(overtaken)
        is_refused = any(case.is_refused for case in group)
        is_dropped = False
        if is_refused and (keeper := self._votes.keeper(group)) is not None:
            self._votes.keep(group, keeper)
            return [(*case.place, replica.state_of(*case.place)) for case in group]
        if coordinator.is_many and not all(map(self._votes.are_against, overtaken)):
            if any(map(self._is_waited_for, group)):
                return []
            return [(*case.place, self._votes.as_written(case)) for case in group]
        if any(case.is_short for case in group) and (is_undone or is_refused):
            if not all(map(self._votes.can_nobody_tell, group)):
                return []
            if not self._votes.is_deciding(group):
                return []
            for case in group:  # Who holds something else would refuse what has not seen that.
                for state in case.answers.values():
                    replica.merge(*case.place, state, now_ms)
            for case in group:
                case.is_beside = True
            is_undone = False
        elif is_undone and not all(map(self._is_past_told, group)):
            return []
        elif is_refused and not coordinator.is_first(group[0].place[0]):
            is_dropped = all(map(self._is_nowhere, group))
            # Not before all have answered that can: two that write again and again would refuse each other.
            must_wait = (
                any(map(self._is_waited_for, group))
                if is_undone
                else not all(map(self._is_uncontested, group))
            )
            if must_wait and not is_dropped:
                return []
        for case in group:
            for state in case.heard:
                if state.versions:
                    replica.merge(*case.place, state, now_ms)
        if is_undone or is_dropped:
            others = [self._instead(case) if is_dropped else case.heard for case in group]
            shown = [
                restored(case.past, case.dots, (case.heard_before, *states), self._held(case))
                for case, states in zip(group, others, strict=True)
            ]
            for case, versions in zip(list(group), shown, strict=True):
                case.is_undone = True
                if is_dropped and not coordinator.is_many:
                    replica.put_back(*case.place, versions)
                    self.close(case, is_known=True)
                else:
                    case.dots |= replica.rewrite(*case.place, versions, now_ms)
        return [(*case.place, replica.state_of(*case.place)) for case in group]

    def _instead(self, case: Case) -> list[Record]:
        """What others have, for a row whose open writes are dropped.

        Where all others are in doubt, too, nobody shows what was before. The first of them keeps its write.
        """
        unseen = self._unseen(case)
        first = case.answers.get(self._coordinator.first(case.place[0]))
        if (
            first is not None
            and self._votes.have_all_answered(case)
            and all(not unseen.isdisjoint(case.doubts.get(peer, ())) for peer in case.answers)
            and all(
                first.has_seen(version.dot) for state in case.heard for version in state.versions
            )
        ):
            return [first]
        return case.heard

    def _is_stale(self, case: Case) -> bool:
        """Whether the row has got something since the first answer was asked for that no answer shows.

        Then nobody can say which of what they show it has replaced. Raises PageFault.
        """
        shown = set(case.dots).union(*(state.dots for state in case.answers.values()))
        return any(dot not in shown and not case.since.covers(dot) for dot in self._held(case).dots)

    def _is_overtaken(self, case: Case) -> bool:
        """Whether anybody has anything that an open write had not seen. Raises PageFault."""
        held, seen = self._held(case), case.all_seen
        if case.seen is not None and not held.dots <= case.dots:
            return True  # What stands beside it has come since, or had not been seen.
        return any(
            version.dot not in case.dots and not seen.covers(version.dot)
            for state in (*case.heard, held)
            for version in state.versions
        )

    def _is_past_told(self, case: Case) -> bool:
        """Whether those who were heard have what was in the row before, where this node does not know it.

        It may have been one of the few who had taken that.
        """
        quorums = self._coordinator.quorums
        if case.seen is None or len(case.heard) > quorums.n - quorums.majority:
            return True
        slot, seen = case.place[0], case.seen
        open_dots = {
            dot for each in self.cases.values() if each.place[0] == slot for dot in each.dots
        }
        return self._votes.can_nobody_tell(case) or not all(
            lacks(clock_of(state), seen, open_dots) for state in case.heard
        )

    def _held(self, case: Case) -> Record:
        return self._coordinator.repairs.record(case.place)

    def _chosen(self, case: Case) -> set[Dot]:
        """The open writes that a majority has seen: whatever came after them has seen them, too.

        But where others hold what this node has written, they may have dropped it as well (`Votes.note_gone`).
        """
        quorums, is_many = self._coordinator.quorums, self._coordinator.is_many

        def has_taken(answer: Record, dot: Dot) -> bool:
            return dot in answer.dots if is_many else answer.has_seen(dot)

        return {
            dot
            for dot in case.dots
            if sum(has_taken(answer, dot) for answer in case.answers.values())
            >= quorums.majority - 1
        }

    def _is_uncontested(self, case: Case) -> bool:
        """Whether nobody has other open writes of the row, as far as anybody can tell: whoever refused it is done."""
        return self._votes.can_nobody_tell(case) and all(
            dots <= case.dots for dots in case.doubts.values()
        )

    def _is_waited_for(self, case: Case) -> bool:
        """Whether another replica can answer, and has not."""
        coordinator = self._coordinator
        return any(
            peer not in case.answers and coordinator.can_confirm(peer)
            for peer in coordinator.batches[case.place[0]].peers
        )

    def _is_nowhere(self, case: Case) -> bool:
        """Whether all other replicas have said that they have seen none of the open writes."""
        return self._votes.have_all_answered(case) and not any(
            answer.has_seen(dot) for answer in case.answers.values() for dot in case.dots
        )

    def begin_again(self, cases: list[Case]) -> None:
        """The write that was to close cases was not taken."""
        for case in cases:
            if case.is_undone:
                for state in case.heard:
                    case.heard_before = join_records(case.heard_before, state)
            case.is_refused = True
            case.is_beside = False
            case.closing = None
            self._forget_answers(case)
            case.next_s = self._coordinator.now_s + case.wait_s

    def _forget_answers(self, case: Case) -> None:
        case.answers.clear()
        case.doubts.clear()
        case.borne_out.clear()
        case.incomplete.clear()
        self._forget_questions(case)

    def _forget_questions(self, case: Case) -> None:
        for number in case.asked:
            self._asked.pop(number, None)
        case.asked.clear()

    def close(self, case: Case, *, is_known: bool) -> None:
        """A majority has the row as it is to be, or (not `is_known`) what has replaced it had seen it."""
        self.closed_total += 1
        self._forget_answers(case)
        self.cases.pop(case.place, None)
        slot, row = case.place
        self._slots[slot] -= 1
        if not self._slots[slot]:
            del self._slots[slot]
        coordinator = self._coordinator
        coordinator.replica.note_known(slot, row, coordinator.now_ms)
        for round_ in case.rounds:
            coordinator.tell_settled(round_, [case.place])
        coordinator.held.purge(case.place, case.dots | case.chosen)
        case.group.remove(case)
        for op in [op for op, each in self._by_command.items() if each is case]:
            del self._by_command[op]
            if case.group:
                self._by_command[op] = case.group[0]
        for _, (op, attempt, slot, row, raw) in case.waiting:
            is_chosen = bool(raw) and decode(raw).dots <= case.chosen
            if not raw or (case.is_undone and not is_chosen):
                op.again(attempt, (slot, row))
            elif is_known or is_chosen:
                op.confirm(attempt)
            else:
                op.fail(attempt, ConflictLost(is_partial=True), (slot, row))
