"""DEL, EXISTS, TYPE, RENAME, COPY, MOVE, SWAPDB, OBJECT and their sisters: warm, cold, and as Redis answers."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.record import DELETION
from cluster.slot import row_of, slot_of
from respkv.command import TABLE
from tests.respkv.commands.harness import START_MS, Server
from tests.respkv.commands.redis import needs_redis, play, redis

SYNTAX = b"-ERR syntax error"
NOT_AN_INTEGER = b"-ERR value is not an integer or out of range"
NO_SUCH_KEY = b"-ERR no such key"
SAME = b"-ERR source and destination objects are the same"
OUT_OF_RANGE = b"-ERR DB index is out of range"
NOT_A_DATABASE = b"-ERR value is out of range, value must between -2147483648 and 2147483647"
NO_LFU = (
    b"-ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note that "
    b"when switching between policies at runtime LRU and LFU data will take some time to adjust."
)
LONG_KEY = "k" * 300  # The slow way of finding a row.


def bad_arity(name: str) -> bytes:
    return b"-ERR wrong number of arguments for '%b' command" % name.encode()


REPLIES: list[tuple[str, Any]] = [
    # DEL, UNLINK
    ("DEL k", 0),
    ("SET k v ; DEL k", 1),
    ("SET k v ; DEL k k", 1),
    ("SET k v ; SET l v ; DEL k missing l", 2),
    ("SET k v ; DEL k ; GET k", None),
    ("SET k v ; DEL k ; SET k w ; GET k", b"w"),
    ("SET k v ; UNLINK k k", 1),
    (f"SET {LONG_KEY} v ; DEL {LONG_KEY} ; EXISTS {LONG_KEY}", 0),
    ("SET {tag}k v ; DEL {tag}k ; EXISTS {tag}k", 0),
    ("DEL", bad_arity("del")),
    ("UNLINK", bad_arity("unlink")),
    # EXISTS, TOUCH, TYPE
    ("EXISTS k", 0),
    ("SET k v ; EXISTS k k missing", 2),
    ("SET '' v ; EXISTS ''", 1),
    ("SET k v EX 10 ; EXISTS k", 1),
    (f"SET {LONG_KEY} v ; EXISTS {LONG_KEY} {{tag}}", 1),
    ("SET k v ; TOUCH k missing k", 2),
    ("EXISTS", bad_arity("exists")),
    ("TYPE k", b"none"),
    ("SET k v ; TYPE k", b"string"),
    ("SET k v EX 10 ; TYPE k", b"string"),
    ("TYPE k k", bad_arity("type")),
    # RENAME, RENAMENX
    ("RENAME k l", NO_SUCH_KEY),
    ("RENAME k k", NO_SUCH_KEY),
    ("SET k v ; RENAME k k", b"OK"),
    ("SET k v ; RENAME k k ; GET k", b"v"),
    ("SET k v ; RENAME k l ; EXISTS k", 0),
    ("SET k v ; SET l w ; RENAME k l ; GET l", b"v"),
    ("SET k v EX 100 ; SET l w ; RENAME k l ; TTL l", 100),
    ("SET k v ; SET l w EX 100 ; RENAME k l ; TTL l", -1),
    ("APPEND k a ; APPEND k b ; RENAME k l ; OBJECT ENCODING l", b"raw"),
    ("RENAME k", bad_arity("rename")),
    ("RENAMENX k l", NO_SUCH_KEY),
    ("SET k v ; RENAMENX k k", 0),
    ("SET k v ; RENAMENX k l", 1),
    ("SET k v ; RENAMENX k l ; EXISTS k l", 1),
    ("SET k v ; SET l w ; RENAMENX k l", 0),
    ("SET k v ; SET l w ; RENAMENX k l ; GET l", b"w"),
    # COPY
    ("COPY k l", 0),
    ("COPY k k", SAME),
    ("SET k v ; COPY k l", 1),
    ("SET k v EX 100 ; COPY k l ; TTL l", 100),
    ("APPEND k a ; APPEND k b ; COPY k l ; OBJECT ENCODING l", b"raw"),
    ("SET k v ; SET l w ; COPY k l", 0),
    ("SET k v ; SET l w ; COPY k l ; GET l", b"w"),
    ("SET k v ; SET l w ; COPY k l replace ; GET l", b"v"),
    ("SET k v ; SET l w EX 5 ; COPY k l REPLACE ; TTL l", -1),
    ("SET k v ; COPY k k DB 3", 1),
    ("SET k v ; COPY k k DB 0", SAME),
    ("SET k v ; COPY k k DB 3 ; SELECT 3 ; GET k", b"v"),
    ("SET k v ; COPY k k DB 3 ; COPY k k DB 3", 0),
    ("SET k v ; COPY k l DB 3 DB 4 REPLACE ; SELECT 4 ; EXISTS l", 1),
    ("SET k v ; COPY k l DB", SYNTAX),
    ("SET k v ; COPY k l FOO", SYNTAX),
    ("COPY k l DB 16", OUT_OF_RANGE),
    ("COPY k l DB -1", OUT_OF_RANGE),
    ("COPY k l DB x", NOT_AN_INTEGER),
    ("COPY k l DB 2147483648", NOT_A_DATABASE),
    ("COPY k l DB 16 FOO", OUT_OF_RANGE),
    ("COPY k", bad_arity("copy")),
    # MOVE
    ("MOVE k 1", 0),
    ("SET k v EX 100 ; MOVE k 1", 1),
    ("SET k v EX 100 ; MOVE k 1 ; EXISTS k", 0),
    ("SET k v EX 100 ; MOVE k 1 ; SELECT 1 ; TTL k", 100),
    ("SET k v ; SELECT 1 ; SET k w ; SELECT 0 ; MOVE k 1", 0),
    ("SET k v ; SELECT 1 ; SET k w ; SELECT 0 ; MOVE k 1 ; GET k", b"v"),
    ("SET k v ; MOVE k 0", SAME),
    ("MOVE k 16", OUT_OF_RANGE),
    ("MOVE k x", NOT_AN_INTEGER),
    ("MOVE k -2147483649", NOT_A_DATABASE),
    # SWAPDB
    ("SET k v ; SWAPDB 0 1", b"OK"),
    ("SET k v ; SWAPDB 0 1 ; EXISTS k", 0),
    ("SET k v ; SWAPDB 0 1 ; SELECT 1 ; GET k", b"v"),
    ("SET k v ; SWAPDB 0 1 ; SWAPDB 1 2 ; SELECT 2 ; GET k", b"v"),
    ("SET k v ; SWAPDB 0 1 ; SET k w ; SWAPDB 1 0 ; GET k", b"v"),
    ("SET k v ; SWAPDB 0 0 ; GET k", b"v"),
    ("SET k v ; SWAPDB 0 1 ; COPY k l ; SELECT 1 ; COPY k l DB 0 ; SELECT 0 ; GET l", b"v"),
    ("SET k v ; SWAPDB 0 1 ; MOVE k 1", 0),
    ("SWAPDB x 1", b"-ERR invalid first DB index"),
    ("SWAPDB 99999999999 1", b"-ERR invalid first DB index"),
    ("SWAPDB 1 x", b"-ERR invalid second DB index"),
    ("SWAPDB 1 16", OUT_OF_RANGE),
    ("SWAPDB -1 1", OUT_OF_RANGE),
    # OBJECT
    ("OBJECT ENCODING k", None),
    ("SET k 12345 ; OBJECT ENCODING k", b"int"),
    ("SET k -9223372036854775808 ; OBJECT ENCODING k", b"int"),
    ("SET k 9223372036854775808 ; OBJECT ENCODING k", b"embstr"),
    ("SET k 012 ; OBJECT ENCODING k", b"embstr"),
    ("SET k '' ; OBJECT ENCODING k", b"embstr"),
    (f"SET k {'v' * 44} ; object encoding k", b"embstr"),
    (f"SET k {'v' * 45} ; OBJECT ENCODING k", b"raw"),
    ("SET k 1 ; APPEND k 2 ; OBJECT ENCODING k", b"raw"),
    ("OBJECT REFCOUNT k", None),
    ("SET k 9999 ; OBJECT REFCOUNT k", 2147483647),
    ("SET k 0 ; OBJECT REFCOUNT k", 2147483647),
    ("SET k 10000 ; OBJECT REFCOUNT k", 1),
    ("SET k -1 ; OBJECT REFCOUNT k", 1),
    ("SET k v ; OBJECT REFCOUNT k", 1),
    ("SET k 1 ; APPEND k 2 ; OBJECT REFCOUNT k", 1),
    ("OBJECT IDLETIME k", None),
    ("SET k v ; OBJECT IDLETIME k", 0),
    ("OBJECT FREQ k", None),
    ("SET k v ; OBJECT FREQ k", NO_LFU),
    ("OBJECT", bad_arity("object")),
    ("OBJECT ENCODING", bad_arity("object|encoding")),
    ("OBJECT HELP k", bad_arity("object|help")),
    ("OBJECT NOSUCH k", b"-ERR unknown subcommand 'NOSUCH'. Try OBJECT HELP."),
]


@pytest.mark.parametrize("is_cold", [False, True], ids=["warm", "cold"])
@pytest.mark.parametrize(("script", "reply"), REPLIES, ids=[script for script, _ in REPLIES])
def test_replies(script: str, reply: Any, is_cold: bool) -> None:
    assert Server().play(script, is_cold=is_cold) == reply


@needs_redis
def test_redis_answers_the_same() -> None:
    with redis() as connection:
        for script, reply in REPLIES:
            assert play(connection, "SELECT 0 ; " + script) == reply, script


def test_help_has_the_form_of_redis() -> None:
    lines = Server().run(b"OBJECT", b"HELP")
    assert lines[0] == b"OBJECT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"
    assert [line for line in lines if b"<key>" in line and line[:1] != b" "] == [
        b"ENCODING <key>",
        b"FREQ <key>",
        b"IDLETIME <key>",
        b"REFCOUNT <key>",
    ]


def test_idletime_counts_seconds_since_the_write() -> None:
    server = Server()
    server.run(b"SET", b"k", b"v")
    server.now_ms += 2999
    assert server.run(b"OBJECT", b"IDLETIME", b"k") == 2
    server.now_ms -= 10_000  # A clock that goes back.
    assert server.run(b"OBJECT", b"IDLETIME", b"k") == 0


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("DEL k", 0),
        ("EXISTS k", 0),
        ("TYPE k", b"none"),
        ("RENAME k l", NO_SUCH_KEY),
        ("COPY k l", 0),
        ("MOVE k 1", 0),
        ("RENAMENX l k", 1),
        ("COPY l k", 1),
        ("OBJECT ENCODING k", None),
    ],
)
@pytest.mark.parametrize("is_cold", [False, True], ids=["warm", "cold"])
def test_what_has_expired_is_absent(command: str, reply: Any, is_cold: bool) -> None:
    server = Server()
    server.play("SET l v ; SET k v PX 10")
    server.now_ms += 10
    assert server.play(command, is_cold=is_cold) == reply


@pytest.mark.parametrize(
    ("script", "hits", "misses"),
    [
        ("EXISTS k missing k", 2, 1),
        ("TOUCH k missing", 1, 1),
        ("TYPE k", 1, 0),
        ("TYPE missing", 0, 1),
        ("OBJECT ENCODING k", 1, 0),
        ("OBJECT FREQ missing", 0, 1),
        ("COPY k l", 1, 0),
        ("COPY missing l", 0, 1),
        ("RENAME k l", 0, 0),
        ("MOVE k 1", 0, 0),
        ("DEL k missing", 0, 0),
    ],
)
def test_hits_and_misses_are_counted_as_in_redis(script: str, hits: int, misses: int) -> None:
    server = Server()
    server.run(b"SET", b"k", b"v")
    server.play(script)
    assert (server.context.hits, server.context.misses) == (hits, misses)


@pytest.mark.parametrize(
    ("script", "target"),
    [
        (b"RENAME k l", row_of(0, b"l")),
        (b"RENAMENX k l", row_of(0, b"l")),
        (b"MOVE k 1", row_of(1, b"k")),
    ],
)
def test_a_move_writes_the_target_before_it_removes_the_source(
    script: bytes, target: bytes
) -> None:
    """A log that is cut off between the two has the key twice, never nowhere."""
    server = Server()
    server.run(b"SET", b"k", b"v")
    name, *args = script.split()
    handler = TABLE.by_spelling[name].handler
    assert handler is not None
    server.context.bind(server.session, START_MS)  # type: ignore[arg-type]
    handler(server.context, *args)
    assert list(server.context.effects) == [target, row_of(0, b"k")]


def test_a_deletion_is_a_record_of_its_own() -> None:
    server = Server()
    server.play("SET k v ; DEL k")
    raw = server.replica.store.get(slot_of(b"k"), row_of(0, b"k"))
    assert raw is not None
    assert raw[0] == DELETION


def test_a_deletion_of_nothing_writes_nothing() -> None:
    server = Server()
    server.run(b"DEL", b"k", b"l")
    assert server.replica.store.get(slot_of(b"k"), row_of(0, b"k")) is None
    assert server.now_ms == START_MS
