"""What is told about the hostile sessions."""

import pytest

from bench.hostile import (
    Memory,
    answers_text,
    collect,
    memory_text,
    ping_text,
    values_text,
)
from bench.hostile_session import MIB, WAITING, Ending, Hostile, Outcome, refused
from bench.large_value import SizeResult
from bench.ping import Latency

HOSTILE = Hostile("breaks a rule", b"x", (refused("broken"),))


def test_outcomes_are_counted_and_the_wrong_ones_again() -> None:
    answers = collect(HOSTILE, [refused("broken"), WAITING, refused("broken")])
    assert answers.outcomes == {"-ERR Protocol error: broken, closed": 2, "no reply, waiting": 1}
    assert answers.unexpected == {"no reply, waiting": 1}


def test_the_table_has_a_line_for_each_outcome() -> None:
    text = answers_text([collect(HOSTILE, [refused("broken"), Outcome("", Ending.CLOSED)])])
    assert [line.split(maxsplit=2) for line in text.splitlines()[1:]] == [
        ["1", "yes", "breaks a rule: -ERR Protocol error: broken, closed"],
        ["1", "no", "breaks a rule: no reply, closed"],
    ]


@pytest.mark.parametrize(("growth_mib", "word"), [(63, "met"), (64, "missed")])
def test_memory_stands_beside_its_aim(growth_mib: int, word: str) -> None:
    text = memory_text(Memory(30 * MIB, (30 + growth_mib) * MIB, 31 * MIB))
    assert f"30.0 MiB before, at most {30 + growth_mib}.0 MiB during, 31.0 MiB after" in text
    assert text.endswith(
        f"grew by {growth_mib}.0 MiB (without sockets' kernel buffers), aim < 64 MiB: {word}"
    )


def test_ping_line() -> None:
    assert ping_text("during", Latency(1000, 0.1, 0.25, 3.0)) == (
        "PING during: p50 0.100 ms, p99 0.250 ms, most 3.000 ms (1000 times)"
    )


def test_large_values_stand_beside_their_aims() -> None:
    text = values_text([SizeResult(1, 50, 1.0, 0.5), SizeResult(64, 5, 2.0, 1.05)])
    assert text.splitlines()[-2:] == [
        "64 MiB to 1 MiB, time per MiB in: 2.00, aim <= 2.0: met",
        "64 MiB to 1 MiB, time per MiB out: 2.10, aim <= 2.0: missed",
    ]
