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


def operation(
    *slots: int, is_plain: bool = True, is_local: bool = True, data: bytes = b"+OK\r\n"
) -> Operation:
    op = Operation(NOBODY, SESSION, GET, [b"GET", b"k"], 0, 1.0)
    op.keys, op.is_plain, op.is_local, op.data = keys(*slots), is_plain, is_local, data
    return op


def pipeline_of(*operations: Operation) -> Pipeline:
    pipeline = Pipeline()
    for each in operations:
        pipeline.add(each)
    return pipeline


@pytest.mark.parametrize("is_plain", [True, False])
@pytest.mark.parametrize("is_local", [True, False])
@pytest.mark.parametrize("is_write", [True, False])
def test_the_first_command_may_always_start(is_plain: bool, is_local: bool, is_write: bool) -> None:
    pipeline = Pipeline()
    assert pipeline.may_start(keys(1), is_plain=is_plain, is_local=is_local, is_write=is_write)


# Before it: plain or other, here or elsewhere (all on slot 1). Then: slot, plain, here, writes; may it start?
RULES = [
    ("plain here", 2, True, True, True, True),
    ("plain here", 2, True, False, True, True),
    ("plain here", 1, True, True, False, True),
    ("plain here", 1, True, True, True, False),
    ("plain here", 1, True, False, False, False),
    ("plain here", 2, False, True, False, False),
    ("plain here", 1, False, True, True, False),
    ("plain there", 2, True, True, True, True),
    ("plain there", 1, True, True, False, False),
    ("plain there", 1, True, True, True, False),
    ("plain there", 1, True, False, False, False),
    ("plain there", 2, True, False, False, True),
    ("other here", 2, True, True, False, False),
    ("other here", 1, True, True, False, False),
    ("other there", 2, False, True, True, False),
]


@pytest.mark.parametrize(("before", "slot", "is_plain", "is_local", "is_write", "may"), RULES)
def test_what_may_overlap(
    before: str, slot: int, is_plain: bool, is_local: bool, is_write: bool, may: bool
) -> None:
    first = operation(1, is_plain="plain" in before, is_local=before.endswith(" here"))
    pipeline = pipeline_of(first)
    asked = pipeline.may_start(keys(slot), is_plain=is_plain, is_local=is_local, is_write=is_write)
    assert asked is may
    first.is_done = True
    pipeline.take_done()
    assert pipeline.may_start(keys(slot), is_plain=is_plain, is_local=is_local, is_write=is_write)


def test_a_command_of_several_slots_waits_for_each() -> None:
    pipeline = pipeline_of(operation(1), operation(2, is_local=False))
    assert not pipeline.may_start(keys(3, 2), is_plain=True, is_local=True, is_write=False)
    assert pipeline.may_start(keys(3, 1), is_plain=True, is_local=True, is_write=False)
    assert not pipeline.may_start(keys(3, 1), is_plain=True, is_local=True, is_write=True)


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
    assert not pipeline.may_start(
        keys(OPERATIONS_MAX), is_plain=True, is_local=True, is_write=False
    )
    pipeline.operations[0].is_done = True
    pipeline.take_done()
    assert not pipeline.is_full
    assert pipeline.may_start(keys(OPERATIONS_MAX), is_plain=True, is_local=True, is_write=False)


def test_counting_is_asking_one_after_the_other() -> None:
    """`count_reads` and `count_writes` against `may_start`, with random operations before."""
    rng = random.Random(1)
    for _ in range(2000):
        before = [
            operation(rng.randrange(6), is_plain=rng.random() < 0.95, is_local=rng.random() < 0.6)
            for _ in range(rng.randrange(4))
        ]
        pipeline = pipeline_of(*before)
        slots = [rng.randrange(8) for _ in range(rng.randrange(1, 5))]
        is_local = rng.random() < 0.5
        expected = 0
        for slot in slots:
            may = pipeline.may_start(keys(slot), is_plain=True, is_local=is_local, is_write=False)
            if not may:
                break
            if not is_local:  # Two reads of a key may be answered by different nodes.
                pipeline.add(operation(slot, is_local=False))
            expected += 1
        assert pipeline_of(*before).count_reads([*keys(*slots)], is_local=is_local) == expected
        pipeline = pipeline_of(*before)
        expected = 0
        for slot in slots:
            may = pipeline.may_start(keys(slot), is_plain=True, is_local=True, is_write=True)
            if not may:
                break
            pipeline.add(operation(slot))
            expected += 1
        assert pipeline_of(*before).count_writes([*keys(*slots)]) == expected


def test_nothing_is_left_when_all_were_answered() -> None:
    rng = random.Random(2)
    pipeline = Pipeline()
    for number in range(3000):
        slots = tuple({rng.randrange(5) for _ in range(rng.randrange(1, 3))})
        flags = {"is_plain": rng.random() < 0.8, "is_local": rng.random() < 0.5}
        if pipeline.may_start(keys(*slots), is_write=True, **flags):
            pipeline.add(operation(*slots, data=b"%d" % number, **flags))
        if pipeline.operations and rng.random() < 0.6:
            rng.choice(pipeline.operations).is_done = True
        pipeline.take_done()
    for each in pipeline.operations:
        each.is_done = True
    pipeline.take_done()
    assert not pipeline.operations
    assert pipeline.begun_count == pipeline.answered_count > 500
    for is_write in (True, False):
        pipeline.add(operation(99))
        assert pipeline.count_reads([*keys(0, 1, 2, 3, 4)], is_local=False) == 5
        assert pipeline.may_start(keys(0), is_plain=True, is_local=True, is_write=is_write)
        pipeline.operations[0].is_done = True
        pipeline.take_done()
