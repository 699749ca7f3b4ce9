"""KV.POLICY, KV.CONSISTENCY and KV.WITH on a node alone, and what policies do to its writes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from respkv.config import Config
from respkv.policy import Policy
from tests.respkv.commands.alone import Alone

POLICIES = (
    Policy(prefix="cart:", write="ALL", siblings="error"),
    Policy(prefix="session:", read="ONE", ttl_s=60, value_bytes_max=10),
    Policy(pattern="session:*:tmp", last_writer_wins=True),
)


@pytest.fixture
def alone() -> Iterator[Alone]:
    node = Alone(Config(policies=POLICIES))
    yield node
    node.close()


def fields(alone: Alone, words: str) -> dict[str, str]:
    reply = alone.ask(words)
    assert reply is not None
    texts = [item.text.decode() for item in reply.items]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def test_kv_policy_says_which_and_why(alone: Alone) -> None:
    assert fields(alone, "KV.POLICY cart:1") == {
        "policy": "prefix", "matched": "cart:", "length": "5", "n": "1",
        "read": "1", "read_source": "configuration", "write": "1", "write_source": "policy",
        "strict": "1", "siblings": "error", "last_writer_wins": "0", "ttl_ms": "0",
        "value_bytes_max": "0",
    }  # fmt: skip
    shown = fields(alone, "KV.POLICY session:1")
    assert (shown["matched"], shown["ttl_ms"], shown["value_bytes_max"]) == (
        "session:",
        "60000",
        "10",
    )
    shown = fields(alone, "KV.POLICY session:1:tmp")
    assert (shown["policy"], shown["length"], shown["last_writer_wins"]) == ("pattern", "12", "1")
    shown = fields(alone, "KV.POLICY other")
    assert (shown["policy"], shown["matched"], shown["siblings"]) == ("none", "", "winner")


def test_kv_consistency_holds_until_it_is_taken_back(alone: Alone) -> None:
    assert alone.text("KV.CONSISTENCY READ one") == b"OK"
    assert fields(alone, "KV.CONSISTENCY")["read_source"] == "connection"
    assert fields(alone, "KV.CONSISTENCY")["write_source"] == "configuration"
    assert alone.text("KV.CONSISTENCY WRITE ALL READ DEFAULT") == b"OK"
    assert fields(alone, "KV.CONSISTENCY") == {
        "read": "1", "read_source": "configuration", "write": "1", "write_source": "connection",
    }  # fmt: skip
    assert fields(alone, "KV.POLICY cart:1")["write_source"] == "connection"
    assert alone.text("RESET") == b"RESET"
    assert fields(alone, "KV.CONSISTENCY")["write_source"] == "configuration"
    assert alone.session.consistency is None
    assert not alone.session.mode


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("KV.CONSISTENCY READ", b"-ERR syntax error"),
        ("KV.CONSISTENCY READ 1 READ 1", b"-ERR syntax error"),
        ("KV.CONSISTENCY SPEED 1", b"-ERR syntax error"),
        (
            "KV.CONSISTENCY READ 2",
            b"-ERR READ 2: must be at most 1: a node alone holds each key once",
        ),
        ("KV.WITH W 2 SET k v", b"-ERR W 2: must be at most 1: a node alone holds each key once"),
        ("KV.WITH KV.WITH GET k", b"-ERR KV.WITH cannot be used inside KV.WITH"),
        ("KV.WITH", b"-ERR wrong number of arguments for 'kv.with' command"),
    ],
)
def test_what_is_refused_changes_nothing(alone: Alone, words: str, line: bytes) -> None:
    assert alone.text(words) == line
    assert alone.session.consistency is None


def test_kv_with_runs_the_command(alone: Alone) -> None:
    assert alone.text("KV.WITH W ALL TIMEOUT 100 SET k v") == b"OK"
    assert alone.text("kv.with r quorum get k") == b"v"
    assert alone.text("KV.WITH INCR n") == b"1"
    assert (
        alone.text("KV.WITH LPUSHX") == b"-ERR unknown command 'LPUSHX', with args beginning with: "
    )
    reply = alone.ask("COMMAND GETKEYS KV.WITH R 1 MSET a 1 b 2")
    assert reply is not None
    assert [item.text for item in reply.items] == [b"a", b"b"]


def test_kv_with_and_kv_consistency_do_not_stand_in_a_transaction(alone: Alone) -> None:
    for words in ("KV.WITH R 1 GET k", "KV.CONSISTENCY READ 1"):
        assert alone.text("MULTI") == b"OK"
        assert alone.text(words) == b"-ERR Command not allowed inside a transaction"
        assert alone.text("EXEC").startswith(b"-EXECABORT")


def test_kv_with_gets_around_no_check(alone: Alone) -> None:
    alone.node.config.client.requirepass = "secret"
    alone.text("RESET")
    assert alone.text("KV.WITH SET k v").startswith(b"-NOAUTH")


# What policies do to writes


def test_a_default_expiry(alone: Alone) -> None:
    key = "session:1"
    for words in (
        f"SET {key} 1",
        f"SETNX {key} 1",
        f"INCR {key}",
        f"APPEND {key} 1",
        f"MSET {key} 1",
        f"KV.WITH SET {key} 1",
    ):
        alone.ask(f"DEL {key}")
        alone.ask(words)
        assert alone.text(f"PTTL {key}") == b"60000", words
    alone.ask("SET other 1")
    assert alone.text("PTTL other") == b"-1"
    alone.ask(f"RENAME other {key}")
    assert alone.text(f"PTTL {key}") == b"60000"


def test_an_expiry_of_its_own_or_the_lack_of_one_stays(alone: Alone) -> None:
    key = "session:1"
    alone.ask(f"SET {key} 1 PX 5000")
    assert alone.text(f"PTTL {key}") == b"5000"
    alone.ask(f"INCR {key}")
    assert alone.text(f"PTTL {key}") == b"5000"
    alone.ask(f"PERSIST {key}")
    for words in (f"INCR {key}", f"APPEND {key} 1", f"SET {key} 2 KEEPTTL"):
        alone.ask(words)
        assert alone.text(f"PTTL {key}") == b"-1", words
    alone.ask(f"SET {key} 2")
    assert alone.text(f"PTTL {key}") == b"60000"


def test_a_default_expiry_in_a_transaction(alone: Alone) -> None:
    for words in (
        "MULTI",
        "SET session:1 1",
        "PERSIST session:1",
        "INCR session:1",
        "SET session:2 1",
        "EXEC",
    ):
        alone.ask(words)
    assert alone.text("PTTL session:1") == b"-1"
    assert alone.text("PTTL session:2") == b"60000"


def test_the_longest_value(alone: Alone) -> None:
    refused = b'-ERR the value has 11 bytes: policy "session:" allows at most 10 (value_bytes_max)'
    assert alone.text("SET session:1 01234567890") == refused
    assert alone.text("EXISTS session:1") == b"0"
    assert alone.text("SET session:1 0123456789") == b"OK"
    assert alone.text("APPEND session:1 x") == refused
    assert alone.text("GET session:1") == b"0123456789"
    assert alone.text("MSET a 1 session:1 01234567890") == refused
    assert alone.text("EXISTS a") == b"0"
    assert alone.text("SET other 01234567890") == b"OK"
    assert alone.text("RENAME other session:1") == refused
    assert alone.text("EXPIRE session:1 100") == b"1"


def test_a_pipeline_is_checked_key_by_key(alone: Alone) -> None:
    """The lane takes what has no policy, and leaves the others to the long way."""
    keys = [b"x", b"session:1", b"y", b"session:2", b"session:3:tmp", b"z"]
    commands = [[b"SET", key, b"01234567890"] for key in keys]
    alone.node.runner.serve(alone.session, commands, alone.node.begin_tick())
    alone.node.front.finish(alone.node.now_ms())
    replies = [alone.reply() for _ in keys]
    assert [reply is not None and reply.is_error for reply in replies] == [
        False, True, False, True, False, False,
    ]  # fmt: skip
    sessions = [alone.connect() for _ in keys]
    alone.node.runner.serve_lone(sessions, commands, alone.node.begin_tick())
    alone.node.front.finish(alone.node.now_ms())
    found = [alone.reply(session) for session in sessions]
    assert [reply is not None and reply.is_error for reply in found] == [
        False, True, False, True, False, False,
    ]  # fmt: skip
