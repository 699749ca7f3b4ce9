"""Each checker on histories made by hand: what it must not mind, and what it must see."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.sim import check
from tests.sim.history import FOREVER, History, Reply

Row = tuple[int, int, int, str, Reply]
"""Session, begin, end (0: unknown), the command, and its reply."""


def made(*rows: Row) -> History:
    """A history, written in any order of beginning; numbers in a session follow it."""
    history = History()
    for session, begin, end, text, reply in sorted(rows, key=lambda row: row[1]):
        operation = history.begin(session, [word.encode() for word in text.split()])
        operation.begin, operation.end = begin, end or FOREVER
        if end:
            operation.reply = reply
    return history


OK = b"OK"
A = (1, 1, 2, "SET k a", OK)
B = (1, 3, 4, "SET k b", OK)
UNKNOWN_B = (2, 3, 0, "SET k b", None)

GOOD_REGISTERS: dict[str, Sequence[Row]] = {
    "the last value": (A, B, (2, 5, 6, "GET k", b"b")),
    "nothing before": ((1, 1, 2, "GET k", None), (1, 3, 4, "SET k a", OK)),
    "either of two at a time": (
        (1, 1, 5, "SET k a", OK),
        (2, 2, 6, "SET k b", OK),
        (3, 7, 8, "GET k", b"a"),
    ),
    "an unknown write, late": (A, UNKNOWN_B, (3, 5, 6, "GET k", b"a"), (3, 7, 8, "GET k", b"b")),
    "a write under way": ((1, 1, 9, "SET k a", OK), (2, 2, 3, "GET k", b"a")),
    "a read under way": (A, (2, 3, 9, "GET k", b"a"), (1, 4, 5, "SET k b", OK)),
}
BAD_REGISTERS: dict[str, Sequence[Row]] = {
    "what was replaced": (A, B, (2, 5, 6, "GET k", b"a")),
    "nothing after a write": (A, (2, 3, 4, "GET k", None)),
    "what nobody wrote": (A, (2, 3, 4, "GET k", b"z")),
    "what is written later": ((2, 1, 2, "GET k", b"a"), (1, 3, 4, "SET k a", OK)),
    "under an unknown one": (A, B, (3, 5, 0, "SET k c", None), (2, 6, 7, "GET k", b"a")),
}


@pytest.mark.parametrize("name", GOOD_REGISTERS)
def test_a_register_may_show(name: str) -> None:
    history = made(*GOOD_REGISTERS[name])
    assert not check.check_registers(history)
    assert not check.check_sessions(history)
    assert not check.check_linearity(history)


@pytest.mark.parametrize("name", BAD_REGISTERS)
def test_a_register_must_not_show(name: str) -> None:
    history = made(*BAD_REGISTERS[name])
    assert check.check_registers(history)
    assert check.check_linearity(history)


def test_an_audit_judges_its_own_reads_only() -> None:
    stale = (2, 5, 6, "GET k", b"a")
    assert not check.check_registers(made(A, B, stale), sessions=[9])
    assert check.check_registers(made(A, B, (9, 7, 8, "GET k", b"a")), sessions=[9])


def test_a_session_reads_its_own_write() -> None:
    assert check.check_sessions(made(A, B, (1, 5, 6, "GET k", b"a")))
    assert check.check_sessions(made(A, (1, 3, 4, "GET k", None)))
    assert not check.check_sessions(made(A, B, (2, 5, 6, "GET k", b"a"))), "another session's"


def test_a_session_never_goes_back() -> None:
    seen = (A, B, (2, 5, 6, "GET k", b"b"))
    assert check.check_sessions(made(*seen, (2, 7, 8, "GET k", b"a")))
    assert not check.check_sessions(made(*seen, (3, 7, 8, "GET k", b"a")))


def test_a_value_does_not_come_back_to_a_session() -> None:
    """Even if both were written at the same time, or nobody knows when."""
    writes: Sequence[Row] = ((1, 1, 0, "SET k a", None), (2, 2, 0, "SET k b", None))
    reads: Sequence[Row] = ((3, 3, 4, "GET k", b"a"), (3, 5, 6, "GET k", b"b"))
    assert not check.check_sessions(made(*writes, *reads))
    assert check.check_sessions(made(*writes, *reads, (3, 7, 8, "GET k", b"a")))
    assert not check.check_sessions(made(*writes, *reads, (4, 7, 8, "GET k", b"a")))


def test_a_pipeline_is_in_the_order_of_its_commands() -> None:
    """Begun together: the session's order alone says what came first."""
    history = made((1, 1, 4, "SET k a", OK), (1, 2, 5, "SET k b", OK), (1, 3, 6, "GET k", b"a"))
    assert check.check_sessions(history)
    assert check.check_linearity(history)


def test_a_pipeline_does_not_see_its_own_future() -> None:
    history = made((1, 1, 4, "GET k", b"a"), (1, 2, 5, "SET k a", OK))
    assert check.check_sessions(history)
    assert check.check_linearity(history)
    assert not check.check_sessions(made((1, 1, 4, "GET k", b"a"), (2, 2, 5, "SET k a", OK)))


def test_appends() -> None:
    two: Sequence[Row] = ((1, 1, 2, "APPEND k a;", 2), (2, 3, 4, "APPEND k b;", 4))
    unknown: Row = (3, 5, 0, "APPEND k c;", None)
    good: Sequence[Reply] = (b"a;b;", b"a;b;c;")
    for reply in good:
        assert not check.check_appends(made(*two, unknown, (4, 6, 7, "GET k", reply)))
    bad: Sequence[Reply] = (b"a;", None, b"b;a;", b"a;b;b;", b"a;b;z;", b"a;b;c;c;", b"a;c;b;")
    for reply in bad:
        assert check.check_appends(made(*two, unknown, (4, 6, 7, "GET k", reply))), reply


def test_reads_of_appends_agree() -> None:
    both: Sequence[Row] = ((1, 1, 9, "APPEND k a;", 2), (2, 2, 9, "APPEND k b;", 4))
    one: Row = (3, 3, 4, "GET k", b"a;")
    assert not check.check_appends(made(*both, one, (3, 5, 6, "GET k", b"a;b;")))
    assert check.check_appends(made(*both, one, (3, 5, 6, "GET k", b"b;a;")))


def test_counters() -> None:
    known: Sequence[Row] = ((1, 1, 2, "INCR k", 1), (1, 3, 4, "INCRBY k 5", 6))
    unknown: Row = (2, 5, 0, "INCRBY k 10", None)
    for good in (b"6", b"16"):
        assert not check.check_counters(made(*known, unknown, (3, 6, 7, "GET k", good)))
    for bad in (b"5", b"17", b"26", None):
        assert check.check_counters(made(*known, unknown, (3, 6, 7, "GET k", bad))), bad
    assert check.check_counters(made(*known, (3, 5, 6, "INCR k", 6))), "a reply that repeats"
    assert check.check_linearity(made(*known, (3, 5, 6, "INCR k", 8)))


def test_what_was_refused_was_not_done() -> None:
    history = made((1, 1, 2, "INCR k", 1), (2, 3, 0, "INCR k", None), (1, 4, 5, "GET k", b"2"))
    assert not check.check_counters(history)
    history.failed(history.operations[1], b"MISCONF", is_refused=True)
    assert check.check_counters(history)


def test_locks() -> None:
    first: Row = (1, 1, 2, "SET k a NX", OK)
    freed: Row = (1, 5, 6, "DEL k", 1)
    assert not check.check_locks(made(first, freed, (2, 7, 8, "SET k b NX", OK)))
    assert not check.check_locks(made(first, (2, 3, 4, "SET k b NX", None)))
    assert check.check_locks(made(first, (2, 3, 4, "SET k b NX", OK)))
    assert check.check_locks(made(first, freed, (2, 3, 4, "SET k b NX", OK)))


def test_a_lock_is_not_judged_behind_an_unknown_release() -> None:
    history = made(
        (1, 1, 2, "SET k a NX", OK),
        (1, 3, 0, "DEL k", None),
        (2, 5, 6, "SET k b NX", OK),  # Then the DEL comes.
        (3, 7, 8, "SET k c NX", OK),
    )
    assert not check.check_locks(history)


def test_order() -> None:
    assert not check.check_order(made((1, 1, 2, "ECHO x", b"x"), (1, 3, 0, "ECHO y", None)))
    assert check.check_order(made((1, 1, 2, "ECHO x", b"y")))


def test_convergence() -> None:
    same = {(1, b"row"): "value"}
    other = {(1, b"row"): "another"}
    assert not check.check_convergence({"a": same, "b": dict(same)}, lambda slot: ["a", "b"])
    assert check.check_convergence({"a": same, "b": other}, lambda slot: ["a", "b"])
    assert check.check_convergence({"a": same, "b": {}}, lambda slot: ["a", "b"])
    assert not check.check_convergence({"a": same, "b": {}}, lambda slot: ["a"])


def test_a_finding_shows_what_happened() -> None:
    finding = check.check_registers(made(A, (2, 3, 4, "GET k", None)))[0]
    assert "SET k a -> b'OK'" in str(finding)


# Several keys, and time


def done(history: History, session: int, *args: bytes, reply: Reply, now_s: float = 0.0) -> None:
    operation = history.begin(session, args, now_s=now_s)
    operation.ended_s = now_s
    history.answered(operation, reply)


def test_private_keys_are_followed_command_by_command() -> None:
    a, b = b"{private:1:0}a", b"{private:1:0}b"
    history = History()
    done(history, 1, b"SET", a, b"1", reply=b"OK")
    done(history, 1, b"RENAME", a, b, reply=b"OK")
    together = (b"INCRBY " + b + b" 4", b"GET " + a)
    done(history, 1, b"EXEC", b"{private:1:0}", *together, reply=[5, None])
    done(history, 1, b"EXISTS", a, b, reply=1)
    assert check.check_private(history) == []
    done(history, 1, b"GET", b, reply=b"4")
    assert [finding.promise for finding in check.check_private(history)] == ["private"]


def test_private_keys_are_not_judged_after_an_unknown_outcome() -> None:
    key = b"{private:1:0}a"
    history = History()
    done(history, 1, b"SET", key, b"1", reply=b"OK")
    history.begin(1, (b"DEL", key))
    done(history, 1, b"GET", key, reply=b"1")
    assert check.check_private(history) == []


def test_a_refused_command_on_private_keys_does_nothing() -> None:
    key = b"{private:1:0}a"
    history = History()
    done(history, 1, b"SET", key, b"1", reply=b"OK")
    history.failed(history.begin(1, (b"DEL", key)), b"NOREPLICAS", is_refused=True)
    done(history, 1, b"GET", key, reply=None)
    assert len(check.check_private(history)) == 1


def test_a_transfer_is_seen_whole() -> None:
    history = History()
    done(history, 1, b"EXEC", b"pair:1", b"DECRBY a 3", b"INCRBY b 3", reply=[-3, 3])
    done(history, 2, b"EXEC", b"pair:1", b"GET a", b"GET b", reply=[b"-3", b"3"])
    done(history, 2, b"EXEC", b"pair:2", b"GET a", b"GET b", reply=[None, None])
    assert check.check_transfers(history) == []
    done(history, 2, b"EXEC", b"pair:1", b"GET a", b"GET b", reply=[b"-3", None])
    assert len(check.check_transfers(history)) == 1


@pytest.mark.parametrize(
    ("read_s", "reply", "is_found"),
    [
        (1.5, b"v", False),
        (1.5, None, True),
        (2.9, None, False),  # Within what the clocks may be apart.
        (3.1, b"v", False),
        (3.3, None, False),
        (3.3, b"v", True),
    ],
)
def test_a_lease_is_there_until_its_end(read_s: float, reply: Reply, is_found: bool) -> None:
    history = History()
    done(history, 1, b"SET", b"lease:1", b"v", b"PX", b"2000", reply=b"OK", now_s=1.0)
    done(history, 2, b"GET", b"lease:1", reply=reply, now_s=read_s)
    assert bool(check.check_leases(history, skew_s=0.1)) is is_found


def test_a_lease_that_never_was_is_found() -> None:
    history = History()
    done(history, 1, b"SET", b"lease:1", b"v", reply=b"OK")
    done(history, 1, b"PEXPIRE", b"lease:1", b"2000", reply=0)
    assert len(check.check_leases(history, skew_s=0.1)) == 1


def test_a_lock_by_setnx_is_held_by_one() -> None:
    history = History()
    done(history, 1, b"SETNX", b"lock:0:1", b"1.1", reply=1)
    done(history, 2, b"SETNX", b"lock:0:1", b"2.1", reply=0)
    assert check.check_locks(history) == []
    done(history, 2, b"SETNX", b"lock:0:1", b"2.2", reply=1)
    assert len(check.check_locks(history)) == 1


# Tokens

MADE = (1, 1, 2, "SET {token:1:0 t", OK)
MOVED = (1, 3, 4, "RENAME {token:1:0 {token:1:1", OK)
UNKNOWN_MOVE = (1, 3, 0, "RENAME {token:1:0 {token:1:1", None)
LOOK = "EXEC {token:1 GET GET"

GOOD_TOKENS: dict[str, Sequence[Row]] = {
    "where it was put": (MADE, (2, 3, 4, LOOK, [b"t", None])),
    "where it was moved": (MADE, MOVED, (2, 5, 6, LOOK, [None, b"t"])),
    "twice while it is moved": (
        MADE,
        (1, 3, 6, "RENAME {token:1:0 {token:1:1", OK),
        (2, 4, 5, LOOK, [b"t", b"t"]),
    ),
    "twice after an unknown move": (MADE, UNKNOWN_MOVE, (2, 5, 6, LOOK, [b"t", b"t"])),
    "not yet": ((2, 1, 4, LOOK, [None, None]), (1, 2, 3, "SET {token:1:0 t", OK)),
    "an unknown beginning": (
        (1, 1, 0, "SET {token:1:0 t", None),
        (2, 3, 4, LOOK, [None, None]),
    ),
}
BAD_TOKENS: dict[str, Sequence[Row]] = {
    "nowhere": (MADE, MOVED, (2, 5, 6, LOOK, [None, None])),
    "nowhere after an unknown move": (MADE, UNKNOWN_MOVE, (2, 5, 6, LOOK, [None, None])),
    "nowhere while it is moved": (
        MADE,
        (1, 3, 6, "RENAME {token:1:0 {token:1:1", OK),
        (2, 4, 5, LOOK, [None, None]),
    ),
    "twice": (MADE, MOVED, (2, 5, 6, LOOK, [b"t", b"t"])),
}


@pytest.mark.parametrize("name", GOOD_TOKENS)
def test_a_token_may_be(name: str) -> None:
    assert not check.check_tokens(made(*GOOD_TOKENS[name]))


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_a_token_must_not_be(name: str) -> None:
    assert check.check_tokens(made(*BAD_TOKENS[name]))
    assert check.check_tokens(made(*BAD_TOKENS[name]), (2,))
    assert not check.check_tokens(made(*BAD_TOKENS[name]), (3,))


def test_a_token_may_be_doubled_by_each_unknown_move_but_not_by_a_refused_one() -> None:
    history = made(MADE, UNKNOWN_MOVE, (2, 5, 6, LOOK, [b"t", b"t"]))
    history.operations[1].is_refused = True
    assert check.check_tokens(history)
    history.operations[1].is_refused, history.operations[1].error = False, b"ERR no such key"
    assert check.check_tokens(history)
