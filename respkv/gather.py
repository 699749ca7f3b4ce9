"""Commands on the whole keyspace of a cluster: SCAN, KEYS, DBSIZE, RANDOMKEY, FLUSHDB, FLUSHALL.

No node holds all keys, and no replica may answer from what it has without making sure that it is all. So the
node that a client asks divides the slots among nodes that hold them, itself first, asks each for its share, a
message's worth at a time, and puts the answers together:

    take      a command of a client becomes an operation in its session's pipeline, and a task
    share     `respkv/gather_share.py`: which node is asked for which slots
    ask       `respkv/gather_question.py`: questions to several nodes, one each; who is lost, late or refuses
              is asked no more, and the slots are shared again. What was answered stays answered
    answer    `respkv/gather_answer.py`, at the other end; it makes sure by `respkv/gather_survey.py`

On the client port that means all slots, on the cluster port those that this node coordinates. A command
answers completely or with an error. It may take as long as it gets on: what is bounded is the time without
any answer. SCAN keeps nothing between two calls: its cursor is a position in storage order that every node
understands, so an iteration goes on at whatever node has the slot then.

A key that comes or goes in the meantime may be seen or not. What is seen may be on its way to the other
replicas yet.

Keys are removed by each slot's coordinator.

Core: time is an argument; messages go through the transport seam.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from math import inf
from typing import TYPE_CHECKING, Final

from cluster.ring import NodeId
from cluster.slot import slot_of
from respkv import cluster_view
from respkv.cluster_view import coordinated
from respkv.command import Command
from respkv.commands.scan import Search, check_flush_mode, parse_cursor
from respkv.gather_answer import Answers
from respkv.gather_question import LATE, Questions
from respkv.gather_share import Shares
from respkv.gather_survey import Surveys
from respkv.gather_task import Step, Task, Tasks
from respkv.gather_wire import (
    ALL_DATABASES,
    ASK,
    CLOCKS,
    COUNT,
    END,
    FLUSH,
    HASH_BITS,
    NOT,
    RANDOM,
    SCAN,
    SEEN,
    TOLD,
    Answer,
    Question,
    Stretch,
    behind,
    parse_question,
    whole,
)
from respkv.keyspace import TYPE_NAMES
from respkv.operation import Operation, Pipeline
from respkv.refusal import IN_TRANSACTION, text_of
from respkv.reply import OK, Reply, ReplyError, encode
from respkv.session import CONSISTENT, IN_MULTI, REPLY_OFF, REPLY_SKIP, TRACKING, Session
from respkv.waits import note_flushed

if TYPE_CHECKING:
    from respkv.peers import Peers

NAMES: Final = frozenset(("SCAN", "KEYS", "DBSIZE", "RANDOMKEY", "FLUSHDB", "FLUSHALL"))
NOT_IN_MULTI: Final = NAMES | {"SWAPDB"}
USUAL_MODES: Final = TRACKING | REPLY_OFF | REPLY_SKIP | CONSISTENT

SWAPDB_REFUSED: Final = ReplyError("ERR SWAPDB is not supported in a cluster")
BUSY: Final = ReplyError("BUSY too many commands on the whole keyspace: try again")
TOO_LARGE: Final = ReplyError("ERR the reply is larger than cluster.bytes_in_flight_max: use SCAN")

WORK_NS: Final = 1_000_000  # In each tick.
TASKS_MAX: Final = 1024
SEEN_MAX: Final = 4096  # Questions that are remembered of each peer.
LIST_ROWS: Final = 5000  # Rows of KEYS in one answer.
SCAN_BYTES_MAX: Final = 1 << 20
HOPS_MAX: Final = 64  # Questions of one SCAN.

Take = Callable[[NodeId, Question, Answer], None]


class Gather:
    """One per node of a cluster."""

    def __init__(self, peers: Peers) -> None:
        self.node = node = peers.node
        self._peers = peers
        self._topology = peers.topology
        self._dispatch = peers.dispatch
        self._next_id = node.rng.getrandbits(52)
        self.tasks = Tasks(node, LATE)
        self._surveys = Surveys(
            node, peers.coordinator, self.tasks, self._new_id, peers.exchange.connected
        )
        self._answers = Answers(
            node,
            peers.coordinator,
            self._surveys,
            self.tasks.wake,
            lambda error: text_of(error, is_early=False),
        )
        self._shares = Shares(self._topology, reads_anywhere=peers.dispatch.reads_anywhere)
        self.questions = Questions(
            node,
            self._topology.me,
            peers.transport,
            self.tasks,
            peers.dispatch.timeout_s,
            new_id=self._new_id,
            answer_here=self._answer,
        )
        self._seen: dict[NodeId, dict[bytes, None]] = {}

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    # Clients

    def take(
        self, session: Session, command: Command, args: list[bytes], now_ms: int
    ) -> bool | None:
        """Begin a command; False if earlier ones have to end first, None if it is none for here."""
        mode = session.mode
        if command.name not in NOT_IN_MULTI or mode & ~(USUAL_MODES | IN_MULTI):
            return None
        pipeline = session.pipeline
        if pipeline is not None and pipeline.operations:
            return False
        count, arity = len(args), command.arity
        if count != arity and (arity >= 0 or count < -arity):
            return None
        if mode & IN_MULTI:
            self.node.runner.long_way.refuse(session, command, IN_TRANSACTION)
            return True
        if pipeline is None:
            pipeline = session.pipeline = Pipeline()
        operation = Operation(self._dispatch, session, command, args, now_ms, inf)
        operation.started_ns = self.node.clock_ns()
        self._dispatch.admit(session, pipeline, operation)
        self._begin(operation)
        return True

    def _begin(self, operation: Operation) -> None:
        name = operation.command.name
        if name == "SWAPDB":
            is_cluster = operation.session.is_cluster
            refusal = cluster_view.SWAPDB_REFUSED if is_cluster else SWAPDB_REFUSED
            self._dispatch.end(operation, refusal)
            return
        if len(self.tasks) >= TASKS_MAX:
            self._dispatch.end(operation, BUSY)
            return
        task = Task(inf, lambda error: self._dispatch.end(operation, error))
        task.steps = self._steps(task, operation)
        self.tasks.start(task)

    def _steps(self, task: Task, operation: Operation) -> Generator[Step, None, None]:
        script = {
            "SCAN": self._scan,
            "KEYS": self._keys,
            "DBSIZE": self._dbsize,
            "RANDOMKEY": self._randomkey,
            "FLUSHDB": self._flush,
            "FLUSHALL": self._flush,
        }[operation.command.name]
        reply = yield from script(task, operation, self._scope(operation.session))
        if type(reply) is Pieces:
            operation.data = b"".join(reply)
        else:
            operation.data = encode(reply, resp3=operation.is_resp3)
        operation.is_over = True
        self._dispatch.finish(operation)

    def _scope(self, session: Session) -> list[Stretch]:
        """The slots that a client's command means."""
        if session.is_cluster:
            return [whole(first, last + 1) for first, last in coordinated(self._topology)]
        return [(0, END)]

    # The commands

    def _scan(
        self, task: Task, operation: Operation, scope: list[Stretch]
    ) -> Generator[Step, None, Reply]:
        cursor, *options = operation.args[1:]
        position = parse_cursor(cursor)
        search = Search.parse(tuple(options))
        if search.type is not None and search.type not in TYPE_NAMES.values():
            return [b"0", []]
        left = behind(_only(scope, search), position)
        keys: list[Reply] = []
        rows = size = 0
        patience = self.questions.patience()
        for _ in range(HOPS_MAX):
            if not left or rows >= search.count or size >= SCAN_BYTES_MAX:
                break
            name, share = self._shares.first(left, patience.avoid)
            question = Question(SCAN, operation.db, share, search.count - rows, tuple(options))
            (result,) = yield from self.questions.ask(task, [(name, question)], patience)
            if not isinstance(result, Answer):
                continue
            keys += result.keys
            rows += result.count
            size += sum(map(len, result.keys))
            left = behind(left, min(result.position, share[-1][1]))
        return [b"%d" % left[0][0] if left else b"0", keys]

    def _keys(
        self, task: Task, operation: Operation, scope: list[Stretch]
    ) -> Generator[Step, None, Reply]:
        options = (b"MATCH", operation.args[1])
        pieces = Pieces([b""])
        count = size = 0

        def take(_: NodeId, __: Question, answer: Answer) -> None:
            nonlocal count, size
            count += len(answer.keys)
            pieces.append(b"".join(b"$%d\r\n%b\r\n" % (len(key), key) for key in answer.keys))
            size += len(pieces[-1])
            if size > self._dispatch.in_flight_bytes_max:
                raise TOO_LARGE

        stretches = _only(scope, Search.parse(options))
        yield from self._collect(
            task, stretches, lambda s: Question(SCAN, operation.db, s, LIST_ROWS, options), take
        )
        pieces[0] = b"*%d\r\n" % count
        return pieces  # type: ignore[return-value]

    def _dbsize(
        self, task: Task, operation: Operation, scope: list[Stretch]
    ) -> Generator[Step, None, Reply]:
        count = 0

        def take(_: NodeId, __: Question, answer: Answer) -> None:
            nonlocal count
            count += answer.count

        yield from self._collect(task, scope, lambda s: Question(COUNT, operation.db, s), take)
        return count

    def _randomkey(
        self, task: Task, operation: Operation, scope: list[Stretch]
    ) -> Generator[Step, None, Reply]:
        """Each node counts its share, and one of them picks, as likely as it has keys."""
        shares: list[tuple[int, tuple[Stretch, ...]]] = []

        def take(_: NodeId, question: Question, answer: Answer) -> None:
            end = min(answer.position, question.stretches[-1][1])
            counted = tuple((s, min(e, end)) for s, e in question.stretches if s < end)
            if answer.count:
                shares.append((answer.count, counted))

        yield from self._collect(task, scope, lambda s: Question(COUNT, operation.db, s), take)
        while shares:
            weights = [count for count, _ in shares]
            chosen = self.node.rng.choices(range(len(shares)), weights)[0]
            _, stretches = shares.pop(chosen)
            found: list[bytes] = []

            def pick(_: NodeId, __: Question, answer: Answer, to: list[bytes] = found) -> None:
                to += answer.keys

            yield from self._collect(
                task, list(stretches), lambda s: Question(RANDOM, operation.db, s), pick
            )
            if found:
                return found[0]
        return None

    def _flush(
        self, task: Task, operation: Operation, scope: list[Stretch]
    ) -> Generator[Step, None, Reply]:
        check_flush_mode(tuple(operation.args[1:]))
        node = self.node
        if node.refusal is not None:
            raise node.refusal
        note_flushed(operation.session)
        db = ALL_DATABASES if operation.command.name == "FLUSHALL" else operation.db
        left = list(scope)
        try:
            yield from self._collect(
                task, left, lambda s: Question(FLUSH, db, s), lambda *_: None, is_write=True
            )
        except ReplyError as error:
            count = len({slot for start, end in left for slot in _slots(start, end)})
            raise ReplyError(
                b"%b: %d of the slots may still hold keys" % (error.line, count)
            ) from None
        if node.tracking.is_active:
            numbers = range(len(node.databases)) if db == ALL_DATABASES else (db,)
            node.tracking.invalidate({}, {node.databases[n] for n in numbers}, operation.session)
            node.tracking.flush()
        return OK

    # Collecting

    def _collect(
        self,
        task: Task,
        left: list[Stretch],
        question: Callable[[tuple[Stretch, ...]], Question],
        take: Take,
        *,
        is_write: bool = False,
    ) -> Generator[Step, None, None]:
        """Ask for stretches until all are answered. `left` is what is not, also after an error."""
        patience = self.questions.patience(is_write=is_write)
        while left:
            shares = self._shares.split(left, patience.avoid, is_write=is_write)
            asked = [(name, question(tuple(share))) for name, share in shares.items()]
            results = yield from self.questions.ask(task, asked, patience)
            remaining: list[Stretch] = []
            for (name, each), result in zip(asked, results, strict=True):
                if isinstance(result, Answer):
                    take(name, each, result)
                    remaining += behind(each.stretches, result.position)
                else:
                    remaining += each.stretches
            left[:] = sorted(remaining)

    # The other end

    def _answer(
        self,
        question: Question,
        deadline_s: float,
        expires_ms: int,
        give: Callable[[Answer], None],
        fail: Callable[[ReplyError], None],
    ) -> Task:
        task = Task(deadline_s, fail)
        task.steps = self._answers.steps(task, question, expires_ms, give)
        self.tasks.start(task)
        return task

    def _take_question(self, peer: NodeId, message: Sequence[bytes]) -> None:
        number = message[1]
        question, ms, expires_ms = parse_question(message)
        seen = self._seen.setdefault(peer, {})
        if number in seen:
            return  # A second coming; the answer is on its way, or was given.
        if len(seen) >= SEEN_MAX:
            del seen[next(iter(seen))]
        seen[number] = None
        promise = self._peers.promise

        def fail(error: ReplyError) -> None:
            promise(peer, (NOT, number, error.line))

        if len(self.tasks) >= TASKS_MAX:
            fail(BUSY)
            return
        self._answer(
            question,
            self.node.now_s + ms / 1000,
            expires_ms,
            lambda answer: promise(peer, answer.encode(number)),
            fail,
        )

    # What happens

    def receive(self, peer: NodeId, message: Sequence[bytes]) -> None:
        """A message of another node's `Gather`. Raises ValueError, IndexError if it is malformed."""
        verb = message[0]
        if verb == ASK:
            self._take_question(peer, message)
        elif verb == CLOCKS:
            self._peers.promise(peer, self._surveys.answer(peer, message))
        elif verb == SEEN:
            self._surveys.receive(peer, message)
        elif verb in (TOLD, NOT):
            if verb == NOT and self._surveys.receive(peer, message):
                return
            self.questions.receive(peer, message)
        else:
            raise ValueError("no such verb")

    @property
    def has_work(self) -> bool:
        return self.tasks.has_work

    def work(self) -> None:
        """Get on, within a tick."""
        self._surveys.look_again()
        if self.tasks.has_work:
            clock_ns = self.node.clock_ns
            until_ns = clock_ns() + WORK_NS
            self.tasks.work(lambda: clock_ns() >= until_ns)

    def tick(self, now_s: float) -> None:
        """Some times a second."""
        self._surveys.tick(now_s)
        self.tasks.tick(now_s)
        self.questions.tick(now_s)

    def disconnected(self, peer: NodeId) -> None:
        """What it was asked may be answered or not."""
        self._surveys.disconnected(peer)
        self.questions.disconnected(peer)


class Pieces(list[bytes]):
    """A reply that is encoded already."""


def _only(scope: list[Stretch], search: Search) -> list[Stretch]:
    """The part of a scope where a pattern can match."""
    slot = slot_of(search.key) if search.key is not None else search.slot
    if slot is None:
        return list(scope)
    first, last = whole(slot, slot + 1)
    return [(first, last)] if any(s <= first < e for s, e in scope) else []


def _slots(start: int, end: int) -> range:
    """The slots that a stretch touches."""
    return range(start >> HASH_BITS, (end - 1 >> HASH_BITS) + 1)
