"""Rounds: the verdict on a row by its answers, and the counting of confirmations."""

from __future__ import annotations

from itertools import product

import pytest

from cluster.errors import ClusterError
from cluster.round import ConflictLost, Pending, QuorumNotMet, Verdict, WriteEntry, WriteRound

PLACE, OTHER = (1, b"row"), (1, b"other")
STATE = b"state"


class Op(Pending):
    """Writes down what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def settled(self) -> None:
        self.told.append("settled")

    def stale(self) -> None:
        self.told.append("stale")

    def failed(self, error: ClusterError) -> None:
        self.told.append(str(error))


def round_of(peers: str, needed: int, *, is_unit: bool = False) -> WriteRound:
    """Of a row that depends on what was there."""
    entries: list[WriteEntry] = [(Op(), 0, *PLACE, b"written")]
    round_ = WriteRound(1, tuple(peers), needed, entries, 1.0, is_unit, 0)
    round_.remembering = needed
    return round_


# What each peer said: + taken, f taken by one that may have forgotten, - refused, x unreachable, . nothing yet.
VERDICTS = """
1  ..   OPEN
1  +.   ACCEPTED
1  -.   OPEN
1  x.   OPEN
1  +-   ACCEPTED
1  +x   ACCEPTED
1  --   LOST
1  -x   LOST
1  xx   UNREACHED
2  ....  OPEN
2  +...  OPEN
2  ++..  ACCEPTED
2  --..  OPEN
2  ---.  LOST
2  +--.  OPEN
2  +---  LOST
2  ++--  ACCEPTED
2  xx..  OPEN
2  xxx.  UNREACHED
2  +xxx  UNREACHED
2  +-xx  LOST
2  -xx.  LOST
2  --x.  LOST
2  +-x.  OPEN
0  ..   ACCEPTED
0  xx   ACCEPTED
1  f.   OPEN
1  f+   ACCEPTED
1  ff   UNREACHED
1  fx   UNREACHED
1  f-   LOST
2  f+..  OPEN
2  f++.  ACCEPTED
2  ff+.  OPEN
2  ff++  ACCEPTED
2  fff.  UNREACHED
2  ff+-  LOST
2  +x-f  LOST
2  +xxf  UNREACHED
"""


@pytest.mark.parametrize("line", VERDICTS.split("\n")[1:-1])
def test_verdicts(line: str) -> None:
    needed, said, verdict = line.split()
    round_ = round_of("abcd"[: len(said)], int(needed))
    for peer, answer in zip("abcd", said, strict=False):
        if answer in "+f-":
            refused = {PLACE: STATE} if answer == "-" else {}
            assert round_.add_answer(peer, refused, is_forgetful=answer == "f")
        elif answer == "x":
            assert round_.add_loss(peer)
    assert round_.verdict(PLACE) is Verdict[verdict]
    assert round_.is_complete == ("." not in said)
    assert round_.is_clean(PLACE) == (set(said) == {"-"})
    assert round_.has_refusals == ("-" in said)
    if "-" in said:
        assert round_.verdict(OTHER) is not Verdict.LOST


def test_a_verdict_never_changes_from_accepted_or_to_it_from_lost() -> None:
    """Whatever the order of four peers' answers: what was decided stays so."""
    for said in product("+f-x", repeat=4):
        for needed in (1, 2, 3):
            round_ = round_of("abcd", needed)
            past = [round_.verdict(PLACE)]
            for peer, answer in zip("abcd", said, strict=True):
                if answer == "x":
                    round_.add_loss(peer)
                else:
                    refused = {PLACE: STATE} if answer == "-" else {}
                    round_.add_answer(peer, refused, is_forgetful=answer == "f")
                past.append(round_.verdict(PLACE))
            decided = [verdict for verdict in past if verdict is not Verdict.OPEN]
            assert decided, (said, needed)
            kinds = set(decided)
            assert kinds in ({Verdict.ACCEPTED}, {Verdict.LOST}, {Verdict.UNREACHED}) or kinds == {
                Verdict.LOST,
                Verdict.UNREACHED,
            }, (said, needed, past)


def test_who_may_have_forgotten_counts_for_what_depends_on_nothing() -> None:
    round_ = round_of("ab", 1)
    round_.entries[0][0].is_blind = True
    round_.add_answer("a", {}, is_forgetful=True)
    assert round_.verdict(PLACE) is Verdict.ACCEPTED


def test_who_only_reads_what_was_written_does_not_make_it_depend() -> None:
    round_ = round_of("ab", 1)
    round_.entries[0][0].is_blind = True
    round_.entries.append((Op(), 0, *PLACE, b""))
    round_.add_answer("a", {}, is_forgetful=True)
    assert round_.verdict(PLACE) is Verdict.ACCEPTED


def test_an_answer_counts_once_and_only_of_a_peer() -> None:
    round_ = round_of("ab", 2)
    assert round_.add_answer("a", {})
    assert not round_.add_answer("a", {})
    assert not round_.add_answer("c", {})
    assert not round_.add_loss("a")
    assert not round_.add_loss("c")
    assert round_.verdict(PLACE) is Verdict.OPEN


def test_a_peer_that_was_given_up_may_answer_after_all() -> None:
    round_ = round_of("ab", 2)
    round_.add_loss("a")
    assert round_.verdict(PLACE) is Verdict.UNREACHED
    round_.add_answer("a", {})
    round_.add_answer("b", {})
    assert round_.verdict(PLACE) is Verdict.ACCEPTED


def test_of_a_unit_one_refused_row_refuses_all() -> None:
    round_ = round_of("ab", 1, is_unit=True)
    round_.add_answer("a", {OTHER: STATE})
    assert round_.refusal_count(PLACE) == 1
    round_.add_answer("b", {PLACE: STATE})
    assert round_.verdict(PLACE) is round_.verdict(OTHER) is Verdict.LOST
    assert round_.is_clean(PLACE)


def test_what_waits_for_two_confirmations_is_settled_once() -> None:
    op = Op()
    op.waits = 2
    op.confirm(0)
    assert op.told == []
    op.confirm(0)
    op.confirm(0)
    op.fail(0, ClusterError("late"), PLACE)
    op.again(0, PLACE)
    assert op.told == ["settled"]


def test_confirmations_of_an_earlier_attempt_count_no_more() -> None:
    op = Op()
    op.waits = 1
    op.again(0, PLACE)
    assert (op.attempt, op.waits) == (1, 0)
    op.waits = 1
    op.confirm(0)
    op.again(0, PLACE)
    op.fail(0, ClusterError("old"), PLACE)
    assert op.told == ["stale"]
    op.confirm(1)
    assert op.told == ["stale", "settled"]


def test_errors_say_what_happened() -> None:
    assert str(QuorumNotMet(2, 1, True)) == "the write needs 2 replicas, and 1 answered in time"
    assert "read" in str(QuorumNotMet(2, 1, False))
    assert "a part may have been applied" in str(ConflictLost(is_partial=True))
    assert "a part" not in str(ConflictLost(is_partial=False))
