"""The order of a session's replies, and which of its commands may overlap."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import cast

import pytest

from cluster.batch import Quorums
from respkv.command import Command
from respkv.dispatch import Dispatch
from respkv.operation import OPERATIONS_MAX, Operation, Pipeline
from respkv.parser import Limits
from respkv.session import Session

SESSION = Session(1, "peer:1", "here:1", Limits(), 0.0, authenticated=True)
# A pipeline asks nothing of them; an operation has the usual quorums.
NOBODY = cast(Dispatch, SimpleNamespace(coordinator=SimpleNamespace(quorums=Quorums(3, 2, 2))))
GET = cast(Command, None)


def keys(*numbers: int) -> tuple[bytes, ...]:
    return tuple(b"%d" % number for number in numbers)


def operation(*slots: int, is_plain: bool = True, data: bytes = b"+OK\r\n") -> Operation:
    op = Operation(NOBODY, SESSION, GET, [b"GET", b"k"], 0, 1.0)
    op.keys, op.is_plain, op.data = keys(*slots), is_plain, data
    return op


def pipeline_of(*operations: Operation) -> Pipeline:
    pipeline = Pipeline()
    for each in operations:
        pipeline.add(each)
    return pipeline


@pytest.mark.parametrize("is_plain", [True, False])
def test_the_first_command_may_always_start(is_plain: bool) -> None:
    assert Pipeline().may_start(keys(1), is_plain=is_plain)


# Is the one before it plain (on slot 1); then: slot, plain; may it start?
RULES = [
    (True, 2, True, True),
    (True, 1, True, False),
    (True, 2, False, False),
    (True, 1, False, False),
    (False, 2, True, False),
    (False, 1, True, False),
    (False, 2, False, False),
]


@pytest.mark.parametrize(("is_before_plain", "slot", "is_plain", "may"), RULES)
def test_what_may_overlap(is_before_plain: bool, slot: int, is_plain: bool, may: bool) -> None:
    first = operation(1, is_plain=is_before_plain)
    pipeline = pipeline_of(first)
    assert pipeline.may_start(keys(slot), is_plain=is_plain) is may
    first.is_done = True
    pipeline.take_done()
    assert pipeline.may_start(keys(slot), is_plain=is_plain)


def test_a_command_of_several_slots_waits_for_each() -> None:
    pipeline = pipeline_of(operation(1), operation(2))
    assert not pipeline.may_start(keys(3, 2), is_plain=True)
    assert not pipeline.may_start(keys(3, 1), is_plain=True)
    assert pipeline.may_start(keys(3, 4), is_plain=True)


def test_replies_leave_in_order_whatever_is_ready_first() -> None:
    operations = [operation(number, data=b":%d\r\n" % number) for number in range(4)]
    pipeline = pipeline_of(*operations)
    assert (pipeline.begun_count, pipeline.answered_count) == (4, 0)
    operations[2].is_done = True
    assert pipeline.take_done() == []
    operations[0].is_done = True
    assert pipeline.take_done() == [b":0\r\n"]
    operations[1].is_done = True
    operations[1].is_silent = True
    assert pipeline.take_done() == [b":2\r\n"]
    operations[3].is_done = True
    assert pipeline.take_done() == [b":3\r\n"]
    assert (pipeline.begun_count, pipeline.answered_count) == (4, 4)


def test_a_pipeline_is_bounded() -> None:
    pipeline = pipeline_of(*(operation(number) for number in range(OPERATIONS_MAX)))
    assert pipeline.is_full
    assert not pipeline.may_start(keys(OPERATIONS_MAX), is_plain=True)
    pipeline.operations[0].is_done = True
    pipeline.take_done()
    assert not pipeline.is_full
    assert pipeline.may_start(keys(OPERATIONS_MAX), is_plain=True)


def test_counting_is_asking_one_after_the_other() -> None:
    """`count_plain` against `may_start`, with random operations before."""
    rng = random.Random(1)
    for _ in range(2000):
        before = [
            operation(rng.randrange(6), is_plain=rng.random() < 0.95)
            for _ in range(rng.randrange(4))
        ]
        slots = [rng.randrange(8) for _ in range(rng.randrange(1, 5))]
        pipeline = pipeline_of(*before)
        may_start = [pipeline.may_start(keys(slot), is_plain=True) for slot in slots]
        expected = [*may_start, False].index(False)
        assert pipeline.count_plain([*keys(*slots)]) == expected


def test_nothing_is_left_when_all_were_answered() -> None:
    rng = random.Random(2)
    pipeline = Pipeline()
    for number in range(3000):
        slots = tuple({rng.randrange(5) for _ in range(rng.randrange(1, 3))})
        is_plain = rng.random() < 0.8
        if pipeline.may_start(keys(*slots), is_plain=is_plain):
            pipeline.add(operation(*slots, data=b"%d" % number, is_plain=is_plain))
        if pipeline.operations and rng.random() < 0.6:
            rng.choice(pipeline.operations).is_done = True
        pipeline.take_done()
    for each in pipeline.operations:
        each.is_done = True
    pipeline.take_done()
    assert not pipeline.operations
    assert pipeline.begun_count == pipeline.answered_count > 500
    pipeline.add(operation(99))
    assert pipeline.count_plain([*keys(0, 1, 2, 3, 4)]) == 5
    assert pipeline.may_start(keys(0), is_plain=True)
