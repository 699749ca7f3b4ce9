"""Inquests where a few replicas that have taken a write need not be a majority: who has voted for what.

A replica that has taken a write (it is in doubt there, see `cluster/held.py`) refuses all that has not seen it: that
is its vote. So a write that is not refused by too many may count somewhere, whatever one of them shows. It is sent
again as it was, and the answers are votes, too. Who has seen a write and does not show it says nothing: it was
built upon there, or dropped.

Not the inquest itself: `cluster/inquest.py`, which asks this where `Coordinator.is_many`.

Core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.case import Case
from cluster.record import Record, encode
from cluster.ring import NodeId

if TYPE_CHECKING:
    from cluster.coordinator import Coordinator


class Votes:
    """One per inquest."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def have_all_answered(self, case: Case) -> bool:
        peers = self._coordinator.batches[case.place[0]].peers
        return all(peer in case.answers for peer in peers)

    def can_nobody_tell(self, case: Case) -> bool:
        """Whether each other replica has answered, or said that it is incomplete."""
        peers = self._coordinator.batches[case.place[0]].peers
        return all(peer in case.answers or peer in case.incomplete for peer in peers)

    def note_gone(self, case: Case, clear: list[Record]) -> None:
        """Take over what others have instead of an open write: they know what became of it. Raises PageFault.

        It is built upon, or dropped by an inquest of another node. Which of the two they cannot say.
        """
        coordinator = self._coordinator
        for state in clear:
            if any(state.has_seen(dot) and dot not in state.dots for dot in case.dots):
                coordinator.replica.merge(*case.place, state, coordinator.now_ms)
                case.is_undone = False

    def are_against(self, case: Case) -> bool:
        """Whether so many replicas hold what an open write had not seen that no majority can ever have taken it.

        What one of them shows does not tell: with many replicas a write that refuses nobody may be on a few.
        """
        quorums, seen = self._coordinator.quorums, case.all_seen
        shown = case.dots & self._held(case).dots
        refusing = {
            peer
            for peer, answer in case.answers.items()
            if not any(answer.has_seen(dot) for dot in shown)
            and any(not seen.covers(dot) for dot in answer.dots)
        }
        # Who is incomplete may have taken it, and forgotten that. If nobody else can tell, that has to do.
        is_last = self.can_nobody_tell(case)
        refusing |= {peer for peer in case.refusing if is_last or peer not in case.incomplete}
        return len(refusing) > quorums.n - quorums.majority

    def as_written(self, case: Case) -> bytes:
        """The open writes, for others to take or to refuse. Raises PageFault."""
        versions = tuple(each for each in self._held(case).versions if each.dot in case.dots)
        return encode(Record(versions, *case.all_seen.freeze()))

    def is_deciding(self, group: list[Case]) -> bool:
        """Whether all that can answer have, and this is the first replica among them."""
        coordinator = self._coordinator
        first = coordinator.first(group[0].place[0], but=group[0].incomplete)
        is_first = first == coordinator.topology.me and coordinator.replica.is_complete
        return is_first and all(map(self.can_nobody_tell, group))

    def keeper(self, group: list[Case]) -> NodeId | None:
        """Whose open writes are to stay, where all replicas have answered and no majority can take any more.

        Only one replica decides that. Who has not seen what a majority may have taken is out of the question: any may
        have been taken by those that are incomplete, and cannot say.
        """
        coordinator = self._coordinator
        first = group[0]
        slot = first.place[0]
        if not (coordinator.is_many and self.is_deciding(group)):
            return None
        states = {coordinator.topology.me: self._held(first), **first.answers}
        holders = {coordinator.topology.me: first.dots, **first.doubts}
        free = len(states) - len(holders) + len(first.incomplete)
        seen = {
            dot: sum(each.has_seen(dot) for each in states.values())
            for state in states.values()
            for dot in (*state.context, *state.beyond, *state.dots)
        }
        taken = [dot for dot, count in seen.items() if count + free >= coordinator.quorums.majority]
        for name, state in states.items():
            taken += state.dots.difference(holders.get(name, ()))
        able = [
            name
            for name in coordinator.topology.preferences[slot]
            if name in holders
            and len(states[name].versions) == 1
            and all(map(states[name].has_seen, taken))
        ]
        return max(able, key=lambda name: max(seen[dot] for dot in states[name].dots), default=None)

    def keep(self, group: list[Case], keeper: NodeId) -> None:
        """Write rows again as one replica has them. They have seen all other open writes, so that these go.

        What was before all of them, nobody need have. Raises PageFault.
        """
        coordinator = self._coordinator
        replica, now_ms = coordinator.replica, coordinator.now_ms
        held = [self._held(case) for case in group]
        for case, mine in zip(group, held, strict=True):
            state = case.answers.get(keeper, mine)
            for each in case.answers.values():
                replica.merge(*case.place, each, now_ms)
            case.chosen |= {dot for dot in case.dots if state.has_seen(dot)}
            case.is_undone = True
            for dots in case.doubts.values():
                case.dots |= dots
            case.dots |= replica.rewrite(*case.place, state.versions, now_ms)

    def _held(self, case: Case) -> Record:
        return self._coordinator.repairs.record(case.place)
