"""Is there one order of a key's operations that explains all replies and contradicts no clock on the wall?

It knows one key at a time: what is linearizable key by key is so as a whole. Operations with an unknown
outcome may stand anywhere after their beginning, or nowhere. Replies in one session keep their order.

A depth-first search for such an order, as Wing and Gong do it: the next operation is any that began before
every other one left has ended. What was tried once, the set of operations done and the state that they
made, is not tried again (Lowe). The number of steps is bounded: a history that is too hard is undecided,
and the campaign counts those. Keys are small: at most 200 operations.

Core. Sources: Wing and Gong, Testing and verifying concurrent objects; Lowe, Testing for
linearizability; Athalye's Porcupine.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from tests.sim.history import UNKNOWN, Operation, Reply

STEPS_MAX = 200_000
State = bytes | None
READS = (b"GET", b"STRLEN", b"EXISTS")
COMMANDS = (
    *READS,
    b"SET",
    b"SETNX",
    b"INCR",
    b"INCRBY",
    b"APPEND",
    b"GETSET",
    b"GETDEL",
    b"DEL",
)


class Verdict(Enum):
    LINEARIZABLE = "linearizable"
    VIOLATED = "violated"
    UNDECIDED = "undecided"


def step(state: State, args: tuple[bytes, ...]) -> tuple[State, Reply]:
    """What a command does to a key that holds `state`, and its reply: the obvious implementation."""
    name, rest = args[0], args[2:]
    if name == b"GET":
        return state, state
    if name == b"EXISTS":
        return state, int(state is not None)
    if name == b"STRLEN":
        return state, len(state or b"")
    if name == b"SET":
        if b"NX" in rest[1:] and state is not None:
            return state, state if b"GET" in rest[1:] else None
        return rest[0], state if b"GET" in rest[1:] else b"OK"
    if name == b"SETNX":
        return (rest[0], 1) if state is None else (state, 0)
    if name in (b"INCR", b"INCRBY"):
        total = int(state or b"0") + (int(rest[0]) if rest else 1)
        return b"%d" % total, total
    if name == b"APPEND":
        whole = (state or b"") + rest[0]
        return whole, len(whole)
    if name == b"GETSET":
        return rest[0], state
    if name == b"GETDEL":
        return None, state
    if name == b"DEL":
        return None, int(state is not None)
    raise AssertionError(f"no model of {name!r}")


def check(
    operations: Sequence[Operation], *, initial: State = None, steps_max: int = STEPS_MAX
) -> Verdict:
    """Judge the operations of one key, none of them refused."""
    search = _Search(_relevant(operations), steps_max)
    return search.run(initial)


def _relevant(operations: Sequence[Operation]) -> list[Operation]:
    """Without what cannot matter: unknown reads, and unknown writes of a register that nobody has seen."""
    seen = {op.reply for op in operations if isinstance(op.reply, bytes)}
    is_register = all(op.name == b"GET" or len(op.args) == 3 for op in operations) and all(
        op.name in (b"GET", b"SET") for op in operations
    )
    kept = [
        op
        for op in operations
        if op.is_acknowledged
        or (op.name not in READS and not (is_register and op.args[2] not in seen))
    ]
    return sorted(kept, key=lambda op: op.begin)


class _Search:
    """`done` is a number with one bit for each operation."""

    def __init__(self, operations: list[Operation], steps_max: int) -> None:
        self.operations = operations
        self.steps_max = steps_max
        self.steps = 0
        self.wanted = sum(1 << n for n, op in enumerate(operations) if op.is_acknowledged)
        self.earlier = [self._must_precede(n) for n in range(len(operations))]
        # The step before it of each state, so that nothing is tried twice.
        self.seen: set[tuple[int, State]] = set()

    def _must_precede(self, number: int) -> int:
        """The operations that have to be done before one, beside those that had ended when it began."""
        op = self.operations[number]
        mask = 0
        for n, other in enumerate(self.operations):
            is_same_session = other.session == op.session and other.number < op.number
            if is_same_session and other.is_acknowledged:
                mask |= 1 << n
            # Unknown ones that do the same are alike: only their order of beginning is tried.
            is_alike = n < number and other.args == op.args and not op.is_acknowledged
            if is_alike and not other.is_acknowledged:
                mask |= 1 << n
        return mask

    def run(self, initial: State) -> Verdict:
        stack = [(0, initial)]
        while stack:
            done, state = stack.pop()
            if done & self.wanted == self.wanted:
                return Verdict.LINEARIZABLE
            self.steps += 1
            if self.steps > self.steps_max:
                return Verdict.UNDECIDED
            stack += reversed(self._next(done, state))
        return Verdict.VIOLATED

    def _next(self, done: int, state: State) -> list[tuple[int, State]]:
        """What may come next, the likeliest first: what was answered before what was not, by its end."""
        found = []
        for number in self._candidates(done):
            op = self.operations[number]
            after, reply = step(state, op.args)
            if op.reply is not UNKNOWN and op.reply != reply:
                continue
            if op.reply is UNKNOWN and after == state:
                continue  # Doing it would change nothing.
            place = done | 1 << number, after
            if place not in self.seen:
                self.seen.add(place)
                found.append((op.end, op.begin, place))
        return [place for _, _, place in sorted(found, key=lambda each: each[:2])]

    def _candidates(self, done: int) -> list[int]:
        numbers = []
        end = 1 << 63
        for number, op in enumerate(self.operations):
            if op.begin > end:
                break
            if done >> number & 1:
                continue
            if op.end < end:
                end = op.end
            if self.earlier[number] & ~done == 0:
                numbers.append(number)
        return [number for number in numbers if self.operations[number].begin < end]
