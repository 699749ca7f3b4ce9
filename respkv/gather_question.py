"""Questions on their way: a command on the whole keyspace asks several nodes, one question each, and waits for all.

Which nodes those are is not its affair (`respkv/gather_share.py`), nor how a node comes to its answer
(`respkv/gather_answer.py`): this node is asked like the others, without a message.

    ask        sends a round of questions; the task sleeps until there is an answer or an error to each
    receive    an answer has come; later ones to the same question are ignored, and all after the end of the round
    tick       a question has half of a command's time; then it counts as lost
    Patience   what is bounded is the time without any answer. Who is lost, late or refuses is avoided from then on

A question that may have been lost might still be executed. One that removes keys is asked of another node
only when its time is over by every clock.

Core: time is an argument; messages go through the transport seam.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cluster.ring import NodeId
from cluster.transport import Transport
from respkv.gather_task import LATER, Step, Task, Tasks
from respkv.gather_wire import TOLD, Answer, Question, parse_answer
from respkv.reply import ReplyError

if TYPE_CHECKING:
    from respkv.node import Node

LOST: Final = ReplyError("NOREPLICAS a node was lost, and no other one can answer for it now")
LATE: Final = ReplyError("TIMEOUT no answer of another node in time")
PAUSE_S: Final = 0.02  # Before it is tried again.
# Errors that are worth asking again, perhaps another node.
PASSING: Final = (b"NOREPLICAS", b"TIMEOUT", b"BUSY", b"TRYAGAIN", b"UNKNOWN")

# Starts a task that answers a question by this node itself, until a time on its clock and in milliseconds since 1970.
AnswerHere = Callable[
    [Question, float, int, Callable[[Answer], None], Callable[[ReplyError], None]], Task
]


@dataclass(slots=True)
class Patience:
    """How a command gets on: since when without an answer, and which nodes had none."""

    since_s: float
    max_s: float
    avoid: dict[NodeId, None]
    is_write: bool


@dataclass(slots=True, eq=False)
class Round:
    """Questions that a task waits for."""

    task: Task
    results: list[Answer | ReplyError | None]
    missing: int
    is_doubtful: bool = False  # One of them may be executed yet.


@dataclass(slots=True, eq=False)
class Asked:
    """One question on its way."""

    round: Round
    index: int
    peer: NodeId
    deadline_s: float
    task: Task | None = None  # If it is answered here.


class Questions:
    """One per node of a cluster."""

    def __init__(
        self,
        node: Node,
        me: NodeId,
        transport: Transport,
        tasks: Tasks,
        timeout_s: float,
        *,
        new_id: Callable[[], int],
        answer_here: AnswerHere,
    ) -> None:
        self._node = node
        self._me = me
        self._transport = transport
        self._tasks = tasks
        self._timeout_s = timeout_s
        self._new_id = new_id
        self._answer_here = answer_here
        self._asked: dict[int, Asked] = {}
        self.lost_total = 0  # Questions that no answer came to.

    def patience(self, *, is_write: bool = False) -> Patience:
        """For a command that begins now."""
        max_s = self._timeout_s + self._removal_s if is_write else self._timeout_s
        return Patience(self._node.now_s, max_s, {}, is_write)

    def ask(
        self, task: Task, asked: list[tuple[NodeId, Question]], patience: Patience
    ) -> Generator[Step, None, list[Answer | ReplyError | None]]:
        """Ask nodes, and wait for all answers. Raises ReplyError if there is none for too long."""
        round_ = Round(task, [None] * len(asked), len(asked))
        numbers = [self._send(round_, at, *each) for at, each in enumerate(asked)]
        try:
            while round_.missing:
                yield LATER
        finally:
            for number in numbers:
                self._forget(number)
        node = self._node
        error: ReplyError | None = None
        for (name, _), result in zip(asked, round_.results, strict=True):
            if isinstance(result, Answer):
                patience.since_s = node.now_s
            elif result is not None:
                error = result
                patience.avoid[name] = None
        if error is not None:
            if error.code not in PASSING or node.now_s - patience.since_s >= patience.max_s:
                raise error
            pause_s = PAUSE_S
            if patience.is_write and round_.is_doubtful:
                # It may be executed until then; `Question.encode` says so to the other side.
                pause_s = self._removal_s
            until_s = node.now_s + pause_s
            while node.now_s < until_s:
                task.until_s = until_s
                yield LATER
        return round_.results

    @property
    def _ask_s(self) -> float:
        """How long one node has for one answer."""
        return self._timeout_s / 2

    @property
    def _removal_s(self) -> float:
        """How long what was asked to remove keys may do so, by every clock."""
        return self._ask_s + self._node.config.cluster.clock_skew_max_ms / 1000

    def _send(self, round_: Round, index: int, name: NodeId, question: Question) -> int:
        node = self._node
        number = self._new_id()
        ms = max(1, int(self._ask_s * 1000))
        asked = Asked(round_, index, name, node.now_s + self._ask_s)
        self._asked[number] = asked
        expires_ms = node.now_ms() + ms
        if name != self._me:
            self._transport.send(name, question.encode(number, ms, expires_ms))
            return number
        asked.task = self._answer_here(
            question,
            asked.deadline_s,
            expires_ms,
            lambda answer: self._answered(number, answer),
            lambda error: self._answered(number, error),
        )
        return number

    def _answered(
        self, number: int, result: Answer | ReplyError, *, is_doubtful: bool = False
    ) -> None:
        asked = self._asked.pop(number, None)
        if asked is None:
            return
        round_ = asked.round
        round_.results[asked.index] = result
        round_.is_doubtful |= is_doubtful
        self.lost_total += is_doubtful
        round_.missing -= 1
        if not round_.missing:
            self._tasks.wake(round_.task)

    def _forget(self, number: int) -> None:
        asked = self._asked.pop(number, None)
        if asked is not None and asked.task is not None:
            self._tasks.cancel(asked.task)

    # What happens

    def receive(self, peer: NodeId, message: Sequence[bytes]) -> None:
        """TOLD or NOT of a node that was asked. Raises ValueError, IndexError if it is malformed."""
        number = int(message[1])
        asked = self._asked.get(number)
        if asked is not None and asked.peer == peer:
            result = parse_answer(message) if message[0] == TOLD else ReplyError(message[2])
            self._answered(number, result)

    def tick(self, now_s: float) -> None:
        """Give up what has no time left."""
        for number, asked in list(self._asked.items()):
            if asked.deadline_s <= now_s and asked.task is None:
                self._answered(number, LATE, is_doubtful=True)

    def disconnected(self, peer: NodeId) -> None:
        """What it was asked may be answered or not."""
        for number, asked in list(self._asked.items()):
            if asked.peer == peer:
                self._answered(number, LOST, is_doubtful=True)
