"""The string commands: every option and error, expiries and `raw` marks, warm and with nothing in memory."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.record import DELETION, RAW_ENCODING, Version
from cluster.slot import row_of, slot_of
from respkv.command import TABLE
from respkv.commands import strings
from respkv.parser import Limits
from respkv.reply import WRONG_TYPE as WRONG_TYPE_ERROR
from tests.respkv.commands.harness import START_MS, Server
from tests.respkv.commands.redis import needs_redis, plain, play, redis

SYNTAX = b"-ERR syntax error"
NOT_AN_INTEGER = b"-ERR value is not an integer or out of range"
NOT_A_FLOAT = b"-ERR value is not a valid float"
TOO_LONG = b"-ERR string exceeds maximum allowed size (proto-max-bulk-len)"
OVERFLOW = b"-ERR increment or decrement would overflow"
INFINITE = b"-ERR increment would produce NaN or Infinity"
MAX, MIN = "9223372036854775807", "-9223372036854775808"


def bad_expire(name: str) -> bytes:
    return b"-ERR invalid expire time in '%b' command" % name.encode()


def bad_arity(name: str) -> bytes:
    return b"-ERR wrong number of arguments for '%b' command" % name.encode()


REPLIES: list[tuple[str, Any]] = [
    ("GET k", None),
    ("SET k v ; GET k", b"v"),
    ("SET '' v ; GET ''", b"v"),
    ("GET", bad_arity("get")),
    ("GET k k", bad_arity("get")),
    # SET
    ("SET k v", b"OK"),
    ("SET k", bad_arity("set")),
    ("SET k v nx", b"OK"),
    ("SET k a ; SET k b NX", None),
    ("SET k a ; SET k b NX ; GET k", b"a"),
    ("SET k b XX", None),
    ("SET k b XX ; GET k", None),
    ("SET k a ; SET k b Xx ; GET k", b"b"),
    ("SET k b GET", None),
    ("SET k a ; SET k b GET", b"a"),
    ("SET k a ; SET k b GET ; GET k", b"b"),
    ("SET k a ; SET k b GET NX", b"a"),
    ("SET k a ; SET k b NX GET ; GET k", b"a"),
    ("SET k b NX GET", None),
    ("SET k b NX GET ; GET k", b"b"),
    ("SET k b XX GET ; GET k", None),
    ("SET k v NX XX", SYNTAX),
    ("SET k v XX NX", SYNTAX),
    ("SET k v NX NX", b"OK"),
    ("SET k v GET GET", None),
    ("SET k v EX", SYNTAX),
    ("SET k v EX 1 PX 1", SYNTAX),
    ("SET k v EX 10 EX 20 EX", SYNTAX),
    ("SET k v PXAT 1 KEEPTTL", SYNTAX),
    ("SET k v KEEPTTL EXAT 1", SYNTAX),
    ("SET k v KEEPTTL KEEPTTL", b"OK"),
    ("SET k v PERSIST", SYNTAX),
    ("SET k v junk", SYNTAX),
    ("SET k v ''", SYNTAX),
    ("SET k v EX 0", bad_expire("set")),
    ("SET k v PX -1", bad_expire("set")),
    ("SET k v EXAT 0", bad_expire("set")),
    ("SET k v PXAT -5", bad_expire("set")),
    ("SET k v EX 9223372036854776", bad_expire("set")),
    ("SET k v EX 9223372036854775", bad_expire("set")),
    ("SET k v EXAT 9223372036854775", b"OK"),
    (f"SET k v PX {MAX}", bad_expire("set")),
    (f"SET k v PXAT {MAX}", b"OK"),
    ("SET k v EX 1.5", NOT_AN_INTEGER),
    ("SET k v EX ''", NOT_AN_INTEGER),
    ("SET k v EX 0 junk", SYNTAX),
    ("SET k v EXAT 1 ; GET k", None),
    ("SET k v ; SET k w PXAT 1", b"OK"),
    ("SET k v ; SET k w PXAT 1 ; GET k", None),
    ("SET k v ; SET k w EXAT 1 GET", b"v"),
    # Its relatives
    ("SETNX k v", 1),
    ("SET k a ; SETNX k v", 0),
    ("SET k a ; SETNX k v ; GET k", b"a"),
    ("SETEX k 10 v", b"OK"),
    ("SETEX k 10 v ; GET k", b"v"),
    ("SETEX k 0 v", bad_expire("setex")),
    ("SETEX k 9223372036854776 v", bad_expire("setex")),
    ("SETEX k x v", NOT_AN_INTEGER),
    ("PSETEX k 10 v ; GET k", b"v"),
    ("PSETEX k -1 v", bad_expire("psetex")),
    ("PSETEX k 1 v junk", bad_arity("psetex")),
    ("GETSET k v", None),
    ("SET k a ; GETSET k v", b"a"),
    ("SET k a ; GETSET k v ; GET k", b"v"),
    ("GETDEL k", None),
    ("SET k a ; GETDEL k", b"a"),
    ("SET k a ; GETDEL k ; GET k", None),
    ("GETEX k", None),
    ("GETEX k EX 0", None),
    ("GETEX k junk", SYNTAX),
    ("SET k a ; GETEX k", b"a"),
    ("SET k a ; GETEX k EX 0", bad_expire("getex")),
    ("SET k a ; GETEX k PX x", NOT_AN_INTEGER),
    ("SET k a ; GETEX k EX 10", b"a"),
    ("SET k a ; GETEX k EXAT 1", b"a"),
    ("SET k a ; GETEX k EXAT 1 ; GET k", None),
    ("SET k a ; GETEX k PERSIST EX 1", SYNTAX),
    ("SET k a ; GETEX k EX 1 PERSIST", SYNTAX),
    ("SET k a ; GETEX k KEEPTTL", SYNTAX),
    ("SET k a ; GETEX k NX", SYNTAX),
    ("SET k a ; GETEX k GET", SYNTAX),
    # Several keys
    ("MGET", bad_arity("mget")),
    ("SET a 1 ; SET b 2 ; MGET a x b a", [b"1", None, b"2", b"1"]),
    ("MSET a 1 b", bad_arity("mset")),
    ("MSET a 1 b 2 ; MGET a b", [b"1", b"2"]),
    ("MSET a 1 a 2 ; GET a", b"2"),
    ("MSETNX a 1 b", bad_arity("msetnx")),
    ("MSETNX a 1 b 2", 1),
    ("MSETNX a 1 a 2 ; GET a", b"2"),
    ("SET b x ; MSETNX a 1 b 2", 0),
    ("SET b x ; MSETNX a 1 b 2 ; MGET a b", [None, b"x"]),
    # Parts
    ("STRLEN k", 0),
    ("SET k abc ; STRLEN k", 3),
    ("APPEND k abc", 3),
    ("SET k abc ; APPEND k de", 5),
    ("SET k abc ; APPEND k de ; GET k", b"abcde"),
    ("APPEND k '' ; GET k", b""),
    ("GETRANGE k 0 -1", b""),
    ("SET k abcdef ; GETRANGE k 1 3", b"bcd"),
    ("SET k abcdef ; GETRANGE k 0 -1", b"abcdef"),
    ("SET k abcdef ; GETRANGE k -3 -2", b"de"),
    ("SET k abcdef ; GETRANGE k -2 -3", b""),
    ("SET k abcdef ; GETRANGE k -100 1", b"ab"),
    ("SET k abcdef ; GETRANGE k 0 -100", b"a"),
    ("SET k abcdef ; GETRANGE k -200 -100", b"a"),
    ("SET k abcdef ; GETRANGE k 4 2", b""),
    (f"SET k abcdef ; GETRANGE k 4 {MAX}", b"ef"),
    (f"SET k abcdef ; GETRANGE k {MIN} {MAX}", b"abcdef"),
    ("SET k '' ; GETRANGE k 0 -1", b""),
    ("GETRANGE k a 1", NOT_AN_INTEGER),
    ("GETRANGE k 1 a", NOT_AN_INTEGER),
    ("SET k abcdef ; SUBSTR k 1 3", b"bcd"),
    ("SUBSTR k a 3", NOT_AN_INTEGER),
    ("SETRANGE k 3 x", 4),
    ("SETRANGE k 3 x ; GET k", b"\0\0\0x"),
    ("SETRANGE k 3 '' ; GET k", None),
    ("SET k abcdef ; SETRANGE k 1 XY", 6),
    ("SET k abcdef ; SETRANGE k 1 XY ; GET k", b"aXYdef"),
    ("SET k abcdef ; SETRANGE k 5 XY ; GET k", b"abcdeXY"),
    ("SET k ab ; SETRANGE k 3 XY ; GET k", b"ab\0XY"),
    ("SET k ab ; SETRANGE k 3 ''", 2),
    ("SETRANGE k -1 x", b"-ERR offset is out of range"),
    ("SETRANGE k -1 ''", b"-ERR offset is out of range"),
    ("SETRANGE k a x", NOT_AN_INTEGER),
    ("SETRANGE k 536870912 x", TOO_LONG),
    (f"SETRANGE k {MAX} x", TOO_LONG),
    (f"SETRANGE k {MAX} ''", 0),
    # Numbers
    ("INCR k", 1),
    ("DECR k", -1),
    ("SET k 41 ; INCR k", 42),
    ("SET k 41 ; INCR k ; GET k", b"42"),
    ("SET k -5 ; DECR k ; GET k", b"-6"),
    ("SET k 5 ; INCRBY k -7", -2),
    ("SET k 5 ; DECRBY k -7", 12),
    (f"SET k {MAX} ; INCR k", OVERFLOW),
    (f"SET k {MIN} ; DECR k", OVERFLOW),
    (f"SET k {MIN} ; DECR k ; GET k", MIN.encode()),
    (f"SET k 1 ; INCRBY k {MAX}", OVERFLOW),
    (f"INCRBY k {MAX}", int(MAX)),
    (f"INCRBY k {MIN}", int(MIN)),
    (f"DECRBY k {MIN}", b"-ERR decrement would overflow"),
    ("SET k '1 ' ; INCR k", NOT_AN_INTEGER),
    ("SET k '' ; INCR k", NOT_AN_INTEGER),
    ("SET k a ; INCRBY k b", NOT_AN_INTEGER),
    ("INCRBY k 1.0", NOT_AN_INTEGER),
    ("DECRBY k +1", NOT_AN_INTEGER),
    ("INCRBYFLOAT k 0.1", b"0.1"),
    ("SET k 10.50 ; INCRBYFLOAT k 0.1", b"10.6"),
    ("SET k 3.0e3 ; INCRBYFLOAT k 200 ; GET k", b"3200"),
    ("SET k 1.5 ; INCRBYFLOAT k -1.5", b"0"),
    ("SET k a ; INCRBYFLOAT k 1", NOT_A_FLOAT),
    ("SET k '' ; INCRBYFLOAT k 1", NOT_A_FLOAT),
    ("INCRBYFLOAT k 1x", NOT_A_FLOAT),
    ("INCRBYFLOAT k nan", NOT_A_FLOAT),
    ("INCRBYFLOAT k inf", INFINITE),
    ("SET k inf ; INCRBYFLOAT k -inf", INFINITE),
    ("SET k 1e4932 ; INCRBYFLOAT k 1e4932", INFINITE),
]


@pytest.mark.parametrize("is_cold", [False, True], ids=["warm", "cold"])
@pytest.mark.parametrize(("script", "reply"), REPLIES, ids=[script for script, _ in REPLIES])
def test_replies(script: str, reply: Any, is_cold: bool) -> None:
    found = Server().play(script, is_cold=is_cold)
    assert found == reply
    assert type(found) is type(reply) or found == b"OK"


# Expiry: the time after a command, as milliseconds since the start; 0 is none.
EXPIRIES: list[tuple[str, int]] = [
    ("SET k v", 0),
    ("SET k v EX 10", 10_000),
    ("SET k v PX 10", 10),
    (f"SET k v EXAT {START_MS // 1000 + 7}", 7_000),
    (f"SET k v PXAT {START_MS + 7}", 7),
    ("SET k v EX 10 EX 20", 20_000),
    ("SETEX k 10 v", 10_000),
    ("PSETEX k 10 v", 10),
    ("SET k v EX 10 ; SET k w", 0),
    ("SET k v EX 10 ; SET k w KEEPTTL", 10_000),
    ("SET k v KEEPTTL", 0),
    ("SET k v EX 10 ; SET k w XX KEEPTTL GET", 10_000),
    ("SET k v EX 10 ; SET k w PX 3", 3),
    ("SET k v EX 10 ; GETSET k w", 0),
    ("SET k v EX 10 ; MSET k w", 0),
    ("SET k v EX 10 ; GETEX k", 10_000),
    ("SET k v EX 10 ; GETEX k PERSIST", 0),
    ("SET k v ; GETEX k PERSIST", 0),
    ("SET k v EX 10 ; GETEX k PX 5", 5),
    ("SET k v ; GETEX k EX 5", 5_000),
    (f"SET k v ; GETEX k PXAT {START_MS + 1}", 1),
    ("SET k v EX 10 ; APPEND k w", 10_000),
    ("SET k v EX 10 ; SETRANGE k 0 w", 10_000),
    ("SET k 1 EX 10 ; INCR k", 10_000),
    ("SET k 1 EX 10 ; DECRBY k 5", 10_000),
    ("SET k 1 EX 10 ; INCRBYFLOAT k 5", 10_000),
]


@pytest.mark.parametrize("is_cold", [False, True], ids=["warm", "cold"])
@pytest.mark.parametrize(("script", "expire_in_ms"), EXPIRIES)
def test_expiry_is_kept_or_forgotten(script: str, expire_in_ms: int, is_cold: bool) -> None:
    server = Server()
    server.play(script, is_cold=is_cold)
    version = server.version(b"k")
    assert version is not None
    assert version.expire_at_ms == (START_MS + expire_in_ms if expire_in_ms else 0)


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("GET k", None),
        ("MGET k", [None]),
        ("STRLEN k", 0),
        ("INCR k", 1),
        ("APPEND k x", 1),
        ("SETRANGE k 1 x", 2),
        ("SET k w NX", b"OK"),
        ("SET k w XX", None),
        ("SET k w GET", None),
        ("SETNX k w", 1),
        ("MSETNX k w", 1),
        ("GETEX k PERSIST", None),
        ("GETDEL k", None),
    ],
)
def test_what_has_expired_is_absent(command: str, reply: Any) -> None:
    server = Server()
    server.play("SET k 5 PX 10")
    server.now_ms += 9
    assert server.play("GET k") == b"5"
    server.now_ms += 1
    assert server.play(command) == reply
    version = server.version(b"k")
    assert version is None or version.expire_at_ms == 0


OTHER_TYPE = 2
WRONG_TYPE = b"-WRONGTYPE Operation against a key holding the wrong kind of value"
ON_ANOTHER_TYPE: list[tuple[str, Any]] = [
    ("GET k", WRONG_TYPE),
    ("MGET k s", [None, b"5"]),
    ("STRLEN k", WRONG_TYPE),
    ("GETRANGE k 0 1", WRONG_TYPE),
    ("GETRANGE k a 1", NOT_AN_INTEGER),
    ("SET k v", b"OK"),
    ("SET k v GET", WRONG_TYPE),
    ("SET k v XX", b"OK"),
    ("SET k v NX", None),
    ("SETNX k v", 0),
    ("MSETNX s 1 k v", 0),
    ("GETSET k v", WRONG_TYPE),
    ("GETDEL k", WRONG_TYPE),
    ("GETEX k EX 0", WRONG_TYPE),
    ("APPEND k v", WRONG_TYPE),
    ("SETRANGE k 0 ''", WRONG_TYPE),
    ("INCR k", WRONG_TYPE),
    ("INCRBYFLOAT k x", WRONG_TYPE),
    ("SETBIT k 0 1", WRONG_TYPE),
    ("GETBIT k 0", WRONG_TYPE),
    ("BITCOUNT k a b", WRONG_TYPE),
    ("BITPOS k 1 a", WRONG_TYPE),
    ("BITOP AND d s k", WRONG_TYPE),
    ("BITOP NOT k s", 1),
    ("BITFIELD k", WRONG_TYPE),
    ("BITFIELD k SET u8 0 1", WRONG_TYPE),
    ("BITFIELD_RO k GET u8 0", WRONG_TYPE),
    ("LCS k s junk", b"-ERR The specified keys must contain string values"),
]


@pytest.mark.parametrize("is_cold", [False, True], ids=["warm", "cold"])
@pytest.mark.parametrize(("command", "reply"), ON_ANOTHER_TYPE)
def test_a_key_of_another_type(command: str, reply: Any, is_cold: bool) -> None:
    server = Server()
    server.run(b"SET", b"s", b"5")
    server.put(b"k", Version((0, 0), 0, OTHER_TYPE, b"payload"))
    assert server.play(command, is_cold=is_cold) == reply


@needs_redis
def test_redis_answers_the_same_on_another_type() -> None:
    with redis() as connection:
        for command, reply in ON_ANOTHER_TYPE:
            assert play(connection, "SET s 5 ; LPUSH k x ; " + command) == reply, command


def test_getex_in_the_past_deletes_at_once() -> None:
    server = Server()
    server.play("SET k v ; GETEX k PXAT 1")
    record = server.replica.store.get(slot_of(b"k"), row_of(0, b"k"))
    assert record is not None
    assert record[0] == DELETION


def test_mget_keeps_no_frames_alive() -> None:
    """The error is one object for all: each raise would add its frames, with their values, to its traceback."""
    server = Server()
    server.put(b"k", Version((0, 0), 0, OTHER_TYPE))
    server.run(b"MGET", b"k", b"k")
    assert WRONG_TYPE_ERROR.__traceback__ is None


@pytest.mark.parametrize(
    ("script", "is_raw"),
    [
        ("SET k v", False),
        ("APPEND k v", False),
        ("SET k v ; APPEND k v", True),
        ("SET k 1 ; APPEND k ''", True),
        ("SETRANGE k 0 v", True),
        ("SET k v ; SETRANGE k 0 w", True),
        ("SET k v ; SETRANGE k 0 ''", False),
        ("SET k 1 ; APPEND k 1 ; INCR k", False),
        ("SET k 1 ; APPEND k 1 ; SET k 1 KEEPTTL", False),
        ("SET k 1 ; APPEND k 1 ; GETEX k EX 10", True),
        ("SET k 1 ; APPEND k 1 ; GETEX k", True),
        ("SET k 1 ; APPEND k 1 ; INCRBYFLOAT k 1", False),
    ],
)
def test_what_was_changed_in_place_is_marked_raw(script: str, is_raw: bool) -> None:
    server = Server()
    server.play(script)
    version = server.version(b"k")
    assert version is not None
    assert (version.encoding == RAW_ENCODING) == is_raw


def test_reads_that_serve_a_write_are_no_hits_or_misses() -> None:
    server = Server()
    for command in (
        "INCR k",
        "APPEND k 1",
        "SETRANGE k 0 5",
        "SETNX k v",
        "SET k 1 XX KEEPTTL",
        "MSETNX k v",
    ):
        server.play(command)
    assert (server.context.hits, server.context.misses) == (0, 0)
    server.play(
        "GET k ; GET none ; MGET k none ; STRLEN k ; SET k 2 GET ; GETEX none ; GETDEL k ; GETSET k 3"
    )
    assert (server.context.hits, server.context.misses) == (5, 4)


@pytest.mark.parametrize(
    "command", ["GETEX k PERSIST", "SET k x NX", "GETEX k", "SETRANGE k 0 ''", "SETNX k x"]
)
def test_what_changes_nothing_writes_nothing(command: str) -> None:
    server = Server()
    server.play("SET k v")
    before = server.version(b"k")
    server.play(command)
    assert server.version(b"k") == before


def test_a_string_may_grow_to_the_limit_and_no_further() -> None:
    server = Server()
    server.node.limits = Limits(bulk_bytes_max=8)
    assert server.play("SET k 1234567 ; APPEND k 8") == 8
    assert server.play("APPEND k 9") == TOO_LONG
    assert server.play("APPEND k ''") == 8
    assert server.play("SETRANGE k 7 x") == 8
    assert server.play("SETRANGE k 8 x") == TOO_LONG
    assert server.play("SETRANGE none 8 x") == TOO_LONG
    assert server.play("GET k") == b"1234567x"


def test_options_name_no_more_than_the_table_says() -> None:
    """Each option of the usage is known to the parser and the other way round."""
    for name, known in (("SET", strings.SET_OPTIONS), ("GETEX", strings.GETEX_OPTIONS)):
        words = {word.strip("[]") for word in TABLE.commands[name].usage.split()}
        assert {word.encode() for word in words if word.isupper()} == known


@needs_redis
def test_redis_answers_the_same() -> None:
    with redis() as connection:
        for script, reply in REPLIES:
            assert play(connection, script) == reply, script


@needs_redis
def test_commands_are_declared_as_redis_declares_them() -> None:
    ours = [command for command in TABLE.commands.values() if command.group in ("string", "bitmap")]
    assert len(ours) == 29
    with redis() as connection:
        for command in ours:
            name = command.name.encode()
            _, arity, flags, first, last, step, categories, tips, specs, _ = plain(
                connection.ask(b"COMMAND", b"INFO", name)
            )[0]
            docs = as_dict(plain(connection.ask(b"COMMAND", b"DOCS", name))[1])
            assert command.arity == arity, name
            assert {flag.name.lower().encode() for flag in command.flags if flag.name} == set(
                flags
            ), name
            assert (command.keys[0].first, command.keys[-1].last, command.keys[0].step) == (
                first,
                last,
                step,
            ), name
            assert b"@" + command.group.encode() in categories, name
            assert [tip.encode() for tip in command.tips] == tips, name
            assert [accesses(spec.access) for spec in command.keys] == [
                sorted(flag.upper() for flag in as_dict(spec)[b"flags"]) for spec in specs
            ], name
            assert command.since.encode() == docs[b"since"], name
            assert command.group.encode() == docs[b"group"], name


def accesses(access: tuple[str, ...]) -> list[bytes]:
    return sorted(flag.encode() for flag in access)


def as_dict(flat: list[Any]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
