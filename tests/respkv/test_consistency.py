"""Levels, and who has the last word."""

from __future__ import annotations

import pytest

from respkv.commands import load
from respkv.consistency import Consistency, Decision, Scope, decide, level_of, unwrapped
from respkv.policy import Policy
from respkv.policy_match import Policies
from respkv.reply import ReplyError
from respkv.setting import Rejected

load()

THREE, FIVE, ALONE, TWO_CENTRES = Scope(3), Scope(5), Scope(1, 1, is_alone=True), Scope(3, 2)
USUAL = Consistency(2, 2)
POLICIES = Policies([Policy(prefix="w:", write=1), Policy(prefix="r:", read="ALL", write=3)], THREE)


@pytest.mark.parametrize(
    ("scope", "level", "count"),
    [
        (THREE, 0, 0), (THREE, 3, 3), (THREE, "ONE", 1), (THREE, "QUORUM", 2), (THREE, "ALL", 3),
        (THREE, "LOCAL_QUORUM", 2), (THREE, "EACH_QUORUM", 2), (FIVE, "QUORUM", 3), (FIVE, "ALL", 5),
        (ALONE, "ONE", 1), (ALONE, "QUORUM", 1), (ALONE, "ALL", 1), (ALONE, 1, 1),
        # A majority of all replicas, so that two of them share one.
        (TWO_CENTRES, "QUORUM", 4), (TWO_CENTRES, "ALL", 6), (TWO_CENTRES, 6, 6),
    ],
)  # fmt: skip
def test_counts(scope: Scope, level: int | str, count: int) -> None:
    assert scope.count(level) == count


@pytest.mark.parametrize(
    ("scope", "level", "why"),
    [
        (THREE, 4, "must be at most cluster.n (3)"),
        (ALONE, 2, "must be at most 1: a node alone holds each key once"),
        (TWO_CENTRES, 7, "must be at most 6, cluster.n in each of 2 data centres"),
        (TWO_CENTRES, "LOCAL_QUORUM", "not counted by data centre yet"),
        (TWO_CENTRES, "EACH_QUORUM", "not counted by data centre yet"),
    ],
)
def test_refused(scope: Scope, level: int | str, why: str) -> None:
    with pytest.raises(Rejected, match=why.replace("(", r"\(").replace(")", r"\)")):
        scope.count(level)


@pytest.mark.parametrize(
    ("keys", "connection", "request_", "expected"),
    [
        ([], None, None, Decision(2, 2, "configuration", "configuration")),
        ([b"x"], None, None, Decision(2, 2, "configuration", "configuration")),
        ([b"w:1"], None, None, Decision(2, 1, "configuration", "policy")),
        ([b"r:1"], None, None, Decision(3, 3, "policy", "policy")),
        ([b"r:1"], Consistency(1, 0), None, Decision(1, 3, "connection", "policy")),
        ([b"r:1"], Consistency(1, 1), Consistency(0, 2), Decision(1, 2, "connection", "request")),
        ([b"x"], None, Consistency(3, 0), Decision(3, 2, "request", "configuration")),
        # Several keys: the strictest of each, where a key without a policy counts too.
        ([b"w:1", b"r:1"], None, None, Decision(3, 3, "policy", "policy")),
        ([b"w:1", b"x"], None, None, Decision(2, 2, "configuration", "configuration")),
        ([b"w:1", b"w:2"], None, None, Decision(2, 1, "configuration", "policy")),
    ],
)
def test_who_has_the_last_word(
    keys: list[bytes],
    connection: Consistency | None,
    request_: Consistency | None,
    expected: Decision,
) -> None:
    assert decide(USUAL, POLICIES, keys, connection, request_) == expected


@pytest.mark.parametrize("word", [b"0", b"-1", b"x", b"", b"\xff", b"4", b"1.0"])
def test_a_level_of_a_client_is_checked(word: bytes) -> None:
    with pytest.raises(ReplyError, match=r"^ERR R"):
        level_of("R", word, THREE)


def test_a_request_is_taken_apart() -> None:
    request = unwrapped(b"kv.with r one W all timeout 50 set k v".split(), THREE, 2000)
    assert request.consistency == Consistency(1, 3)
    assert request.timeout_ms == 50
    assert (request.command.name, request.args) == ("SET", [b"set", b"k", b"v"])
    assert unwrapped(b"KV.WITH GET k".split(), THREE, 2000).consistency == Consistency()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("KV.WITH R 1", "ERR wrong number of arguments for 'kv.with' command"),
        ("KV.WITH R", "ERR wrong number of arguments for 'kv.with' command"),
        ("KV.WITH R 1 R 2 GET k", "ERR KV.WITH: R stands there twice"),
        ("KV.WITH R 4 GET k", r"ERR R 4: must be at most cluster.n \(3\)"),
        ("KV.WITH W NONE GET k", "ERR W must be a number of replicas or one of ONE, QUORUM"),
        ("KV.WITH TIMEOUT 0 GET k", "ERR TIMEOUT must be from 1 to 2000 milliseconds"),
        ("KV.WITH TIMEOUT 2001 GET k", "ERR TIMEOUT must be from 1 to 2000 milliseconds"),
        ("KV.WITH R 1 KV.WITH R 1 GET k", "ERR KV.WITH cannot be used inside KV.WITH"),
        ("KV.WITH R 1 GET", "ERR wrong number of arguments for 'get' command"),
        ("KV.WITH R 1 NOSUCH k", "ERR unknown command 'NOSUCH'"),
        ("KV.WITH R 1 PING", "ERR KV.WITH takes a command on keys, which PING is not"),
        ("KV.WITH R 1 WATCH k", "ERR KV.WITH takes a command on keys, which WATCH is not"),
        ("KV.WITH R 1 CLIENT ID", "ERR KV.WITH takes a command on keys, which CLIENT ID is not"),
    ],
)
def test_what_a_request_may_not_be(text: str, why: str) -> None:
    with pytest.raises(ReplyError) as error:
        unwrapped(text.encode().split(), THREE, 2000)
    assert error.match(why)
