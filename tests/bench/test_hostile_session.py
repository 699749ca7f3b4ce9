"""Hostile sessions: their outcomes, and what counts as Redis' own."""

import pytest

from bench.hostile_session import (
    ASKED_COUNT,
    WAITING,
    Ending,
    Hostile,
    Outcome,
    first_line,
    hostile_sessions,
    noise,
    read_nothing,
    refused,
    run_session,
    slow_session,
)
from tests.bench.scripted_server import scripted

# Silence is awaited for no longer than it takes a busy machine to send a line.
SILENCE_S = 0.2
CLOSE_WAIT_S = 10.0
ERROR = b"-ERR Protocol error: invalid bulk length\r\n"


@pytest.mark.parametrize(
    ("outcome", "is_right"),
    [
        (Outcome("-ERR Protocol error: invalid bulk length", Ending.CLOSED), True),
        (Outcome("-ERR Protocol error: invalid bulk length", Ending.WAITING), False),
        (Outcome("-ERR Protocol error: invalid bulk lengths", Ending.CLOSED), False),
        (Outcome("", Ending.CLOSED), False),
        (Outcome("", Ending.WAITING), True),
        (Outcome("+OK", Ending.WAITING), False),
    ],
)
def test_an_outcome_is_right_when_text_and_ending_are(outcome: Outcome, is_right: bool) -> None:
    hostile = Hostile("a session", b"", (refused("invalid bulk length"), WAITING))
    assert hostile.is_expected(outcome) is is_right


def test_a_pattern_may_leave_the_rest_open() -> None:
    hostile = Hostile("a session", b"", (Outcome("-ERR unknown*", Ending.WAITING),))
    assert hostile.is_expected(Outcome("-ERR unknown command 'x'", Ending.WAITING))
    assert not hostile.is_expected(Outcome("-ERR other", Ending.WAITING))


@pytest.mark.parametrize(
    ("pieces", "closes", "outcome"),
    [
        ([ERROR], True, refused("invalid bulk length")),
        ([ERROR[:9], ERROR[9:]], True, refused("invalid bulk length")),
        ([b"+PONG\r\n", b"+PONG\r\n"], False, Outcome("+PONG", Ending.WAITING)),
        ([], False, WAITING),
        ([], True, Outcome("", Ending.CLOSED)),
    ],
)
def test_a_session_sees_what_the_server_does(
    pieces: list[bytes], closes: bool, outcome: Outcome
) -> None:
    with scripted(pieces, closes=closes) as address:
        hostile = Hostile("a session", b"*1\r\n$abc\r\n", ())
        patience_s = CLOSE_WAIT_S if closes else SILENCE_S
        assert run_session(address, hostile, patience_s) == outcome


def test_a_reset_is_a_closed_session() -> None:
    # The server closes with unread input, so that the kernel resets the connection.
    with scripted([], closes=True, reads=False) as address:
        hostile = Hostile("a session", b"x" * 100_000, ())
        assert run_session(address, hostile, CLOSE_WAIT_S).ending == Ending.CLOSED


@pytest.mark.parametrize(
    ("count", "closes", "is_right"),
    [(ASKED_COUNT, True, False), (ASKED_COUNT, False, True), (3, True, True), (3, False, False)],
)
def test_who_reads_nothing_must_be_closed_before_all_is_sent_or_be_held_back(
    count: int, closes: bool, is_right: bool
) -> None:
    with scripted([b"$2\r\nab\r\n"] * count, closes=closes) as address:
        outcome = read_nothing(address, 2, SILENCE_S)
    assert slow_session().is_expected(outcome) is is_right


def test_all_values_and_an_open_connection_are_told_from_all_values_and_a_close() -> None:
    with scripted([b"$2\r\nab\r\n"] * ASKED_COUNT, closes=False) as address:
        outcome = read_nothing(address, 2, SILENCE_S)
    assert outcome == Outcome(f"all of {ASKED_COUNT} values", Ending.WAITING)


def test_first_lines_are_short_and_printable() -> None:
    assert first_line(b"-ERR \xff\r\nmore") == "-ERR \\xff"
    assert len(first_line(b"x" * 1000)) == 100


def test_sessions_have_names_of_their_own_and_something_expected() -> None:
    sessions = hostile_sessions()
    assert len({each.name for each in sessions}) == len(sessions)
    assert all(each.payload and each.expected for each in sessions)


def test_noise_is_the_same_each_time_and_has_no_nul() -> None:
    assert noise(10_000) == noise(10_000)
    assert b"\0" not in noise(10_000)
    assert len(noise(10_000)) == 10_000
