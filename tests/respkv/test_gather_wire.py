"""Questions and answers as bytes, and stretches of positions."""

from __future__ import annotations

import pytest

from respkv.gather_answer import next_of, strides
from respkv.gather_wire import (
    COUNT,
    END,
    SCAN,
    Answer,
    Question,
    behind,
    parse_answer,
    parse_question,
    whole,
)


def test_what_is_encoded_is_decoded() -> None:
    question = Question(SCAN, 3, (whole(0, 2), (7 << 48 | 99, 9 << 48)), 10, (b"MATCH", b"a*"))
    assert parse_question(question.encode(5, 100, 12345)) == (question, 100, 12345)
    answer = Answer(1 << 50, 7, [b"a", b""])
    assert parse_answer(answer.encode(b"5")) == answer


@pytest.mark.parametrize(
    "stretches",
    [(), ((5, 5),), ((7, 5),), ((0, END + 1),), ((5, 9), (8, 12)), ((1, 2),) * 2],
)
def test_stretches_out_of_order_are_refused(stretches: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="stretches"):
        parse_question(Question(COUNT, 0, stretches).encode(1, 1, 1))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind"):
        parse_question(Question(b"x", 0, (whole(0, 1),)).encode(1, 1, 1))


def test_what_is_left_of_stretches() -> None:
    stretches = [(10, 20), (30, 40)]
    assert behind(stretches, 0) == stretches
    assert behind(stretches, 15) == [(15, 20), (30, 40)]
    assert behind(stretches, 20) == [(30, 40)]
    assert behind(stretches, 40) == []
    assert [next_of(stretches, at) for at in (0, 12, 25, 40)] == [10, 12, 30, END]


def test_strides_grow_and_leave_nothing_out() -> None:
    stretches = [(5 << 48 | 77, 300 << 48), whole(400, 16384)]
    cut = list(strides(stretches))
    sizes = [sum((end >> 48) - (start >> 48) for start, end in stride) for stride in cut]
    assert sizes[:3] == [256, 1024, 4096]
    joined: list[tuple[int, int]] = []
    for start, end in (each for stride in cut for each in stride):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    assert joined == stretches
