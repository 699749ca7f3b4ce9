"""Making sure that this node has all that was acknowledged of some slots, before it answers from them.

`spread` is for the other direction, before an answer that says that something was done: it waits until W-1
other replicas have seen what this one has.

`made_sure` asks R-1 other replicas of each window of slots for what they have seen (`respkv/gather_clock.py`).
Where they have seen more, the task waits until that has come: what is under way comes by itself at once, and
for what was lost the exchange is asked to compare now instead of within a second.

A peer that is lost, refuses, or is late is replaced by another. When there is none, nobody can be sure, and
the task fails with NOREPLICAS.

Core: time is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from cluster.coordinator import Coordinator
from cluster.ring import NodeId
from cluster.slot_clocks import SlotClocks
from respkv.gather_clock import (
    HASH_BYTES,
    Seen,
    Window,
    covers,
    hash_of,
    lags,
    parse,
    seen_of,
    windows_of,
)
from respkv.gather_task import LATER, Step, Steps, Task, Tasks
from respkv.gather_wire import CLOCKS, NOT, SEEN
from respkv.reply import ReplyError

if TYPE_CHECKING:
    from respkv.node import Node

WINDOWS_MAX: Final = 64  # Of one message.
PATIENCE_S: Final = 0.1  # Then another replica is asked too.
BEHIND_S: Final = 0.05  # So long what is under way may take.
COMPARE_S: Final = 1.0  # Between two requests to compare everything.
_WINDOW_BYTES: Final = 4 + HASH_BYTES
INCOMPLETE: Final = b"NOREPLICAS this replica is being repaired"


class Survey:
    """One question, to as many replicas as are needed."""

    __slots__ = ("asked", "confirmed", "leads", "mine", "needed", "peers", "task", "windows")

    def __init__(
        self, task: Task, windows: Sequence[Window], peers: list[NodeId], needed: int
    ) -> None:
        self.task = task
        self.windows = windows
        self.peers = peers  # Not asked yet.
        self.needed = needed
        self.asked: dict[int, tuple[NodeId, float]] = {}  # And when another is asked.
        self.confirmed: dict[NodeId, None] = {}
        self.leads: list[tuple[Window, NodeId, Seen]] = []  # What others had seen.
        self.mine: list[bytes] = []  # What they must have seen, for `spread`.


class Surveys:
    """One per node."""

    def __init__(
        self,
        node: Node,
        coordinator: Coordinator,
        tasks: Tasks,
        new_id: Callable[[], int],
        compare: Callable[[NodeId], None],
    ) -> None:
        """`compare` has the exchange look for what a peer has seen."""
        self._node = node
        self._coordinator = coordinator
        self._topology = coordinator.topology
        self._tasks = tasks
        self._new_id = new_id
        self._compare = compare
        self._compared_s: dict[NodeId, float] = {}
        self._surveys: dict[int, Survey] = {}  # By each number that was sent.
        self._behind: dict[Task, None] = {}

    @property
    def _clocks(self) -> SlotClocks:
        return self._coordinator.replica.clocks

    # Who wants to be sure

    def made_sure(self, task: Task, spans: Iterable[Window]) -> Steps:
        """Wait until all that was acknowledged of ranges of slots is here. Raises ReplyError."""
        for some in self._parts(spans):
            survey = Survey(task, some, self._others(some), self._coordinator.survey_quorums.r - 1)
            try:
                yield from self._answered(survey)
                yield from self._caught_up(survey)
            finally:
                self._close(survey)

    def spread(self, task: Task, spans: Iterable[Window]) -> Steps:
        """Wait until all that is here of ranges of slots is at W-1 other replicas. Raises ReplyError."""
        for some in self._parts(spans):
            mine = [seen_of(self._clocks, window) for window in some]
            needed = self._coordinator.survey_quorums.w - 1
            while True:
                survey = Survey(task, some, self._others(some), needed)
                survey.mine = mine
                try:
                    if (yield from self._all_asked(survey)) >= needed:
                        break
                finally:
                    self._close(survey)
                until_s = self._node.now_s + BEHIND_S
                while self._node.now_s < until_s:
                    task.until_s = until_s
                    yield LATER

    def _parts(self, spans: Iterable[Window]) -> Iterator[list[Window]]:
        """Windows of the same replicas, one message's worth at a time."""
        topology = self._topology
        for replicas, windows in windows_of(topology, spans).items():
            if topology.me in topology.incomplete or topology.me not in replicas:
                raise ReplyError(INCOMPLETE)
            for at in range(0, len(windows), WINDOWS_MAX):
                yield windows[at : at + WINDOWS_MAX]

    def _others(self, windows: list[Window]) -> list[NodeId]:
        topology = self._topology
        return [name for name in topology.preferences[windows[0][0]] if name != topology.me]

    def _close(self, survey: Survey) -> None:
        for number in survey.asked:
            self._surveys.pop(number, None)
        self._behind.pop(survey.task, None)

    def _all_asked(self, survey: Survey) -> Generator[Step, None, int]:
        """Ask all others; returns how many have seen enough, as soon as they are enough."""
        while self._ask(survey):
            pass
        until_s = self._node.now_s + PATIENCE_S
        while survey.asked and len(survey.confirmed) < survey.needed:
            survey.task.until_s = until_s
            yield LATER
            if self._node.now_s >= until_s:
                break  # Lost on the way, perhaps.
        return len(survey.confirmed)

    def _answered(self, survey: Survey) -> Steps:
        for _ in range(survey.needed):
            self._ask(survey)
        while len(survey.confirmed) < survey.needed:
            if len(survey.confirmed) + len(survey.asked) < survey.needed:
                reachable = 1 + len(survey.confirmed) + len(survey.asked)
                raise ReplyError(
                    f"NOREPLICAS reads need {survey.needed + 1} replicas of these keys, "
                    f"and {reachable} can be reached"
                )
            yield LATER

    def _ask(self, survey: Survey) -> bool:
        """Ask the next replica; False if there is none."""
        topology = self._topology
        while survey.peers:
            peer = survey.peers.pop(0)
            if not topology.is_reachable(peer) or peer in topology.incomplete:
                continue
            number = self._new_id()
            survey.asked[number] = (peer, self._node.now_s + PATIENCE_S)
            self._surveys[number] = survey
            clocks = self._clocks
            packed = b"".join(
                first.to_bytes(2, "big") + end.to_bytes(2, "big") + hash_of(clocks, (first, end))
                for first, end in survey.windows
            )
            self._coordinator.transport.send(peer, (CLOCKS, b"%d" % number, packed))
            return True
        return False

    def _caught_up(self, survey: Survey) -> Steps:
        began_s = self._node.now_s
        while True:
            clocks = self._clocks
            survey.leads = [lead for lead in survey.leads if lags(clocks, lead[0], lead[2])]
            if not survey.leads:
                return
            now_s = self._node.now_s
            if now_s - began_s >= BEHIND_S:
                for peer in dict.fromkeys(peer for _, peer, _ in survey.leads):
                    if now_s - self._compared_s.get(peer, -COMPARE_S) >= COMPARE_S:
                        self._compared_s[peer] = now_s
                        self._compare(peer)
            self._behind[survey.task] = None
            survey.task.until_s = now_s
            yield LATER

    def look_again(self) -> None:
        """Something has come: those who are behind may be no more."""
        if self._behind:
            for task in self._behind:
                self._tasks.wake(task)
            self._behind.clear()

    # Answers

    def receive(self, peer: NodeId, message: Sequence[bytes]) -> bool:
        """SEEN, and NOT to a question of here. Raises ValueError, IndexError."""
        number = int(message[1])
        survey = self._surveys.get(number)
        if survey is None or survey.asked.get(number, ("",))[0] != peer:
            return False
        if message[0] == NOT:
            self._lose(survey, number)
            return True
        leads = [
            (window, peer, parse(message[at + 1], window))
            for at in range(2, len(message) - 1, 2)
            for window in (survey.windows[int(message[at])],)
        ]
        del self._surveys[number], survey.asked[number]
        if not survey.mine or _covers(survey, leads):
            survey.confirmed[peer] = None
        survey.leads += leads
        self._tasks.wake(survey.task)
        return True

    def _lose(self, survey: Survey, number: int) -> None:
        del self._surveys[number], survey.asked[number]
        self._ask(survey)
        self._tasks.wake(survey.task)

    def disconnected(self, peer: NodeId) -> None:
        for number, survey in list(self._surveys.items()):
            if number in survey.asked and survey.asked[number][0] == peer:
                self._lose(survey, number)

    def tick(self, now_s: float) -> None:
        """Ask others where an answer is late."""
        for number, survey in list(self._surveys.items()):
            peer, late_s = survey.asked[number]
            if late_s <= now_s:
                survey.asked[number] = (peer, now_s + PATIENCE_S)
                self._ask(survey)

    # Who is asked

    def answer(self, peer: NodeId, message: Sequence[bytes]) -> list[bytes]:
        """To CLOCKS. Raises ValueError, IndexError."""
        number, packed = message[1], message[2]
        topology = self._topology
        if topology.me in topology.incomplete:
            return [NOT, number, INCOMPLETE]
        if len(packed) % _WINDOW_BYTES or len(packed) > WINDOWS_MAX * _WINDOW_BYTES:
            raise ValueError("a survey of too many windows")
        clocks = self._clocks
        differing: list[bytes] = []
        for index, at in enumerate(range(0, len(packed), _WINDOW_BYTES)):
            first, end = (int.from_bytes(packed[i : i + 2], "big") for i in (at, at + 2))
            if not first < end <= len(topology.preferences):
                raise ValueError("no such window")
            if topology.me not in topology.preferences[first]:
                return [NOT, number, INCOMPLETE]
            if hash_of(clocks, (first, end)) != packed[at + 4 : at + _WINDOW_BYTES]:
                differing += (b"%d" % index, seen_of(clocks, (first, end)))
        return [SEEN, number, *differing]


def _covers(survey: Survey, told: list[tuple[Window, NodeId, Seen]]) -> bool:
    """Whether a peer has seen what it must: where it told nothing, it had seen all that was here when it was asked."""
    mine = dict(zip(survey.windows, survey.mine, strict=True))
    return all(covers(seen, parse(mine[window], window), window) for window, _, seen in told)
