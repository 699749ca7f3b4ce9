"""The search for one order, against histories of a register that really was one, and against trying all orders."""

from __future__ import annotations

import random
from itertools import permutations

import pytest

from tests.sim.history import UNKNOWN, Operation
from tests.sim.linearizable import COMMANDS, State, Verdict, check, step

WORDS = (
    b"GET",
    b"SET 1",
    b"SET 2",
    b"SET 3 NX",
    b"SETNX 4",
    b"INCRBY 5",
    b"APPEND 6",
    b"GETDEL",
    b"DEL",
    b"EXISTS",
)


@pytest.mark.parametrize("seed", range(40))
def test_a_history_of_one_register_is_linearizable(seed: int) -> None:
    rng = random.Random(seed)
    moment = 0
    state: State = None
    operations = []
    for number in range(150):
        moment += 10
        args = rng.choice(WORDS).split()
        args.insert(1, b"k")
        state, reply = step(state, tuple(args))
        begin, end = moment - rng.randint(1, 30), moment + rng.randint(1, 30)
        operations.append(Operation(number, 0, tuple(args), begin, end, reply))
    rng.shuffle(operations)
    assert check(operations) is Verdict.LINEARIZABLE


def brute(operations: list[Operation]) -> bool:
    """Try all orders of all subsets that hold what was answered."""
    known = [op for op in operations if op.is_acknowledged]
    unknown = [op for op in operations if not op.is_acknowledged]
    for mask in range(1 << len(unknown)):
        chosen = known + [op for n, op in enumerate(unknown) if mask >> n & 1]
        if any(is_explained(order) for order in permutations(chosen)):
            return True
    return False


def is_explained(order: tuple[Operation, ...]) -> bool:
    state: State = None
    for place, op in enumerate(order):
        if any(later.precedes(op) for later in order[place + 1 :]):
            return False
        state, reply = step(state, op.args)
        if op.reply is not UNKNOWN and op.reply != reply:
            return False
    return True


def test_the_search_agrees_with_trying_all_orders() -> None:
    rng = random.Random(7)
    verdicts = set()
    for _ in range(400):
        operations = []
        for number in range(rng.randint(2, 5)):
            args = rng.choice(WORDS).split()
            args.insert(1, b"k")
            begin = rng.randint(0, 30) * 2
            reply = rng.choice((None, b"OK", 0, 1, b"1", b"2"))
            op = Operation(number, 0, tuple(args), begin)
            if rng.random() < 0.8:
                op.end, op.reply = begin + 1 + rng.randint(0, 20) * 2, reply
            operations.append(op)
        expected = brute(operations)
        verdicts.add(expected)
        found = check(operations)
        assert found is (Verdict.LINEARIZABLE if expected else Verdict.VIOLATED), operations
    assert verdicts == {True, False}


def test_one_wrong_reply_in_a_long_history_is_seen() -> None:
    operations = [
        Operation(n, 0, (b"INCRBY", b"k", b"1"), 10 * n, 10 * n + 25, n + 1) for n in range(200)
    ]
    assert check(operations) is Verdict.LINEARIZABLE
    operations[150].reply = 150
    assert check(operations) is Verdict.VIOLATED


def test_unknown_increments_are_alike() -> None:
    """Fifty of them would have 2^50 subsets."""
    unknown = [Operation(n, 0, (b"INCRBY", b"k", b"1"), n) for n in range(50)]
    read = Operation(99, 0, (b"GET", b"k"), 100, 101, b"33")
    assert check([*unknown, read]) is Verdict.LINEARIZABLE
    read.reply = b"51"
    assert check([*unknown, read]) is Verdict.VIOLATED


def test_a_search_has_an_end() -> None:
    unknown = [Operation(n, 0, (b"APPEND", b"k", b"%d" % n), n) for n in range(30)]
    read = Operation(99, 0, (b"GET", b"k"), 100, 101, b"x")
    assert check([*unknown, read], steps_max=100) is Verdict.UNDECIDED


def test_the_model_knows_every_command() -> None:
    for name in COMMANDS:
        step(None, (name, b"k", b"1"))
    with pytest.raises(AssertionError):
        step(None, (b"FLUSHALL",))
