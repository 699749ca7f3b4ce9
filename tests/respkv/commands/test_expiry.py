"""EXPIRE, TTL and their sisters, PERSIST: warm, cold, and as Redis answers."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.record import DELETION
from cluster.slot import row_of, slot_of
from tests.respkv.commands.harness import START_MS, Server
from tests.respkv.commands.redis import needs_redis, play, redis

NOT_AN_INTEGER = b"-ERR value is not an integer or out of range"
NX_EXCLUDES = b"-ERR NX and XX, GT or LT options at the same time are not compatible"
GT_EXCLUDES_LT = b"-ERR GT and LT options at the same time are not compatible"
MAX, MIN = 2**63 - 1, -(2**63)
LATE = 4_000_000_000  # A time in seconds that neither clock has reached.


def bad_expire(name: str) -> bytes:
    return b"-ERR invalid expire time in '%b' command" % name.encode()


def unsupported(option: bytes) -> bytes:
    return b"-ERR Unsupported option " + option


REPLIES: list[tuple[str, Any]] = [
    ("EXPIRE k 10", 0),
    ("SET k v ; EXPIRE k 10", 1),
    ("SET k v ; EXPIRE k 10 ; TTL k", 10),
    ("SET k v ; EXPIRE k 10 ; GET k", b"v"),
    ("SET k v EX 5 ; EXPIRE k 10 ; GET k", b"v"),
    ("SET k v EX 5 ; EXPIRE k 10 ; TTL k", 10),
    ("SET k v ; PEXPIRE k 10400 ; TTL k", 10),
    ("SET k v ; PEXPIRE k 10700 ; TTL k", 11),
    (f"SET k v ; EXPIREAT k {LATE} ; EXPIRETIME k", LATE),
    (f"SET k v ; EXPIREAT k {LATE} ; PEXPIRETIME k", LATE * 1000),
    (f"SET k v ; PEXPIREAT k {LATE}499 ; EXPIRETIME k", LATE),
    (f"SET k v ; PEXPIREAT k {LATE}500 ; EXPIRETIME k", LATE + 1),
    (f"SET k v ; PEXPIREAT k {LATE}500 ; PEXPIRETIME k", LATE * 1000 + 500),
    # Encoding goes along.
    ("APPEND k a ; APPEND k b ; EXPIRE k 10 ; OBJECT ENCODING k", b"raw"),
    ("APPEND k a ; APPEND k b ; EXPIRE k 10 ; PERSIST k ; OBJECT ENCODING k", b"raw"),
    # No expiry, no key.
    ("TTL k", -2),
    ("PTTL k", -2),
    ("EXPIRETIME k", -2),
    ("PEXPIRETIME k", -2),
    ("SET k v ; TTL k", -1),
    ("SET k v ; PTTL k", -1),
    ("SET k v ; EXPIRETIME k", -1),
    ("SET k v ; PEXPIRETIME k", -1),
    ("PERSIST k", 0),
    ("SET k v ; PERSIST k", 0),
    ("SET k v EX 10 ; PERSIST k", 1),
    ("SET k v EX 10 ; PERSIST k ; TTL k", -1),
    ("SET k v EX 10 ; PERSIST k ; GET k", b"v"),
    # A time that has passed deletes.
    ("SET k v ; EXPIRE k 0", 1),
    ("SET k v ; EXPIRE k -1 ; EXISTS k", 0),
    ("SET k v ; PEXPIRE k -1 ; EXISTS k", 0),
    ("SET k v ; EXPIREAT k 1000 ; EXISTS k", 0),
    ("SET k v ; PEXPIREAT k 0 ; EXISTS k", 0),
    (f"SET k v ; PEXPIREAT k {MIN} ; EXISTS k", 0),
    ("EXPIRE k -1", 0),
    # NX, XX, GT, LT
    ("SET k v ; EXPIRE k 10 NX", 1),
    ("SET k v EX 5 ; EXPIRE k 10 nx", 0),
    ("SET k v EX 5 ; EXPIRE k 10 NX ; TTL k", 5),
    ("SET k v ; EXPIRE k 10 XX", 0),
    ("SET k v EX 5 ; EXPIRE k 10 Xx ; TTL k", 10),
    ("SET k v ; EXPIRE k 10 GT", 0),
    ("SET k v EX 5 ; EXPIRE k 10 GT", 1),
    ("SET k v EX 50 ; EXPIRE k 10 GT", 0),
    (f"SET k v PXAT {LATE}000 ; EXPIREAT k {LATE} GT", 0),
    ("SET k v ; EXPIRE k 10 LT", 1),
    ("SET k v EX 5 ; EXPIRE k 10 LT", 0),
    ("SET k v EX 50 ; EXPIRE k 10 LT", 1),
    (f"SET k v PXAT {LATE}000 ; EXPIREAT k {LATE} LT", 0),
    ("SET k v ; EXPIRE k 10 XX LT", 0),
    ("SET k v EX 50 ; EXPIRE k 10 XX LT", 1),
    ("SET k v ; EXPIRE k -1 LT ; EXISTS k", 0),
    ("SET k v ; EXPIRE k -1 GT ; EXISTS k", 1),
    ("SET k v ; EXPIRE k -1 XX ; EXISTS k", 1),
    ("SET k v EX 5 ; EXPIRE k 10 GT GT XX", 1),
    ("SET k v ; EXPIRE k 10 NX XX", NX_EXCLUDES),
    ("SET k v ; EXPIRE k 10 GT NX", NX_EXCLUDES),
    ("SET k v ; EXPIRE k 10 NX LT GT", NX_EXCLUDES),
    ("SET k v ; EXPIRE k 10 LT GT", GT_EXCLUDES_LT),
    ("EXPIRE k 10 LT GT", GT_EXCLUDES_LT),
    ("EXPIRE k 10 FOO", unsupported(b"FOO")),
    ("EXPIRE k x FOO", unsupported(b"FOO")),
    ("EXPIRE k 10 LT GT foo", unsupported(b"foo")),
    ("EXPIRE k 10 'a\r\nb\r\n'", unsupported(b"a  b")),
    ("EXPIRE k 10 'a\0b'", unsupported(b"a")),
    ("EXPIRE k 10 ''", unsupported(b"")),
    # Numbers
    ("EXPIRE k x", NOT_AN_INTEGER),
    ("EXPIRE k 1.5", NOT_AN_INTEGER),
    ("EXPIRE k ''", NOT_AN_INTEGER),
    (f"PEXPIREAT k {MAX + 1}", NOT_AN_INTEGER),
    (f"EXPIRE k {MAX}", bad_expire("expire")),
    (f"EXPIRE k {MIN}", bad_expire("expire")),
    (f"EXPIRE k {MAX // 1000}", bad_expire("expire")),
    (f"EXPIREAT k {MAX // 1000 + 1}", bad_expire("expireat")),
    (f"EXPIREAT k {-(MAX // 1000) - 1}", bad_expire("expireat")),
    (f"SET k v ; EXPIREAT k {-(MAX // 1000)} ; EXISTS k", 0),
    (f"SET k v ; EXPIREAT k {MAX // 1000} ; EXPIRETIME k", MAX // 1000),
    (f"PEXPIRE k {MAX}", bad_expire("pexpire")),
    (f"SET k v ; PEXPIREAT k {MAX} ; PEXPIRETIME k", MAX),
    (f"SET k v ; PEXPIREAT k {MAX} ; EXPIRETIME k", MAX // 1000 + 1),
    # Arity
    ("EXPIRE k", b"-ERR wrong number of arguments for 'expire' command"),
    ("TTL", b"-ERR wrong number of arguments for 'ttl' command"),
    ("PERSIST k k", b"-ERR wrong number of arguments for 'persist' command"),
]


@pytest.mark.parametrize("is_cold", [False, True], ids=["warm", "cold"])
@pytest.mark.parametrize(("script", "reply"), REPLIES, ids=[repr(script) for script, _ in REPLIES])
def test_replies(script: str, reply: Any, is_cold: bool) -> None:
    assert Server().play(script, is_cold=is_cold) == reply


@needs_redis
def test_redis_answers_the_same() -> None:
    with redis() as connection:
        for script, reply in REPLIES:
            assert play(connection, script) == reply, script


@pytest.mark.parametrize("key", ["k", "{tag}k", "k" * 300])
def test_a_key_lives_until_its_expiry(key: str) -> None:
    server = Server()
    server.play(f"SET {key} v ; PEXPIRE {key} 1000")
    server.now_ms += 499
    assert server.play(f"TTL {key}") == 1
    server.now_ms += 2
    assert server.play(f"TTL {key}") == 0
    assert server.play(f"PTTL {key}") == 499
    server.now_ms = START_MS + 999
    assert server.play(f"PTTL {key}") == 1
    server.now_ms += 1
    assert server.play(f"PTTL {key}") == -2
    assert server.play(f"EXPIRE {key} 10") == 0
    assert server.play(f"PERSIST {key}") == 0


def test_an_expiry_at_this_very_millisecond_has_passed() -> None:
    server = Server()
    server.play(f"SET k v ; PEXPIREAT k {START_MS}")
    raw = server.replica.store.get(slot_of(b"k"), row_of(0, b"k"))
    assert raw is not None
    assert raw[0] == DELETION
    assert server.play(f"SET k v ; PEXPIREAT k {START_MS} ; EXISTS k") == 0
    assert server.play(f"SET k v ; PEXPIREAT k {START_MS + 1} ; EXISTS k") == 1


def test_reading_an_expiry_counts_a_hit_or_a_miss_and_setting_one_does_not() -> None:
    server = Server()
    server.play("SET k v ; TTL k ; PTTL missing ; EXPIRETIME k ; PEXPIRETIME k")
    assert (server.context.hits, server.context.misses) == (3, 1)
    server.play("EXPIRE k 10 ; EXPIRE missing 10 ; PERSIST k ; PERSIST missing")
    assert (server.context.hits, server.context.misses) == (3, 1)
