"""MULTI, EXEC, DISCARD, WATCH and UNWATCH, between sessions: warm, and with nothing in memory."""

from __future__ import annotations

from typing import Any

import pytest

from tests.differential.wire import Connection
from tests.respkv.commands.redis import needs_redis, plain
from tests.respkv.commands.sessions import Sessions
from tests.servers import redis_server

Script = list[tuple[int, str, Any]]

# Each line: a session's number, a command, its reply.
SCRIPTS: dict[str, Script] = {
    "commands are queued and run": [
        (0, "MULTI", b"OK"),
        (0, "SET k v", b"QUEUED"),
        (0, "GET k", b"QUEUED"),
        (1, "GET k", None),
        (0, "EXEC", [b"OK", b"v"]),
        (1, "GET k", b"v"),
    ],
    "nothing to do": [(0, "MULTI", b"OK"), (0, "EXEC", [])],
    "a command that fails undoes no other": [
        (0, "MULTI", b"OK"),
        (0, "SET k v", b"QUEUED"),
        (0, "RENAME missing k", b"QUEUED"),
        (0, "DEL k", b"QUEUED"),
        (0, "EXEC", [b"OK", b"-ERR no such key", 1]),
    ],
    "a command that is refused breaks the transaction": [
        (0, "MULTI", b"OK"),
        (0, "SET k v", b"QUEUED"),
        (0, "GET", b"-ERR wrong number of arguments for 'get' command"),
        (0, "EXEC", b"-EXECABORT Transaction discarded because of previous errors."),
        (0, "GET k", None),
    ],
    "discarded": [
        (0, "MULTI", b"OK"),
        (0, "SET k v", b"QUEUED"),
        (0, "DISCARD", b"OK"),
        (0, "GET k", None),
        (0, "EXEC", b"-ERR EXEC without MULTI"),
    ],
    "out of place": [
        (0, "EXEC", b"-ERR EXEC without MULTI"),
        (0, "DISCARD", b"-ERR DISCARD without MULTI"),
        (0, "MULTI", b"OK"),
        (0, "MULTI", b"-ERR MULTI calls can not be nested"),
        (0, "WATCH k", b"-ERR WATCH inside MULTI is not allowed"),
        (0, "UNWATCH", b"QUEUED"),
        (0, "EXEC", [b"OK"]),
    ],
    "a watched key was written": [
        (0, "WATCH k", b"OK"),
        (1, "SET k v", b"OK"),
        (0, "MULTI", b"OK"),
        (0, "SET k w", b"QUEUED"),
        (0, "EXEC", None),
        (0, "GET k", b"v"),
        (0, "MULTI", b"OK"),
        (0, "EXEC", []),
    ],
    "a watched key was written the same": [
        (1, "SET k v", b"OK"),
        (0, "WATCH k", b"OK"),
        (1, "SET k v", b"OK"),
        (0, "MULTI", b"OK"),
        (0, "EXEC", None),
    ],
    "a watched key was only read": [
        (1, "SET k v", b"OK"),
        (0, "WATCH k missing", b"OK"),
        (1, "GET k", b"v"),
        (1, "DEL missing", 0),
        (0, "MULTI", b"OK"),
        (0, "EXEC", []),
    ],
    "a watched key came and went": [
        (0, "WATCH k", b"OK"),
        (1, "SET k v", b"OK"),
        (1, "DEL k", 1),
        (0, "MULTI", b"OK"),
        (0, "EXEC", None),
    ],
    "a watched key got an expiry": [
        (1, "SET k v", b"OK"),
        (0, "WATCH k", b"OK"),
        (1, "EXPIRE k 100", 1),
        (0, "MULTI", b"OK"),
        (0, "EXEC", None),
    ],
    "the session itself wrote a watched key": [
        (0, "WATCH k", b"OK"),
        (0, "SET k v", b"OK"),
        (0, "MULTI", b"OK"),
        (0, "EXEC", None),
    ],
    "the first sight of a watched key counts": [
        (0, "WATCH k", b"OK"),
        (1, "SET k v", b"OK"),
        (0, "WATCH k", b"OK"),
        (0, "MULTI", b"OK"),
        (0, "EXEC", None),
    ],
    "a key of that name in another database": [
        (0, "WATCH k", b"OK"),
        (1, "SELECT 1", b"OK"),
        (1, "SET k v", b"OK"),
        (0, "MULTI", b"OK"),
        (0, "EXEC", []),
    ],
    "watched in one database, executed in another": [
        (0, "WATCH k", b"OK"),
        (0, "SELECT 1", b"OK"),
        (1, "SET k v", b"OK"),
        (0, "MULTI", b"OK"),
        (0, "EXEC", None),
    ],
    "unwatched": [
        (0, "WATCH k", b"OK"),
        (1, "SET k v", b"OK"),
        (0, "UNWATCH", b"OK"),
        (0, "MULTI", b"OK"),
        (0, "EXEC", []),
    ],
    "discarding unwatches": [
        (0, "WATCH k", b"OK"),
        (0, "MULTI", b"OK"),
        (0, "DISCARD", b"OK"),
        (1, "SET k v", b"OK"),
        (0, "MULTI", b"OK"),
        (0, "EXEC", []),
    ],
    "unwatching inside comes too late": [
        (0, "WATCH k", b"OK"),
        (1, "SET k v", b"OK"),
        (0, "MULTI", b"OK"),
        (0, "UNWATCH", b"QUEUED"),
        (0, "EXEC", None),
    ],
    "a watched key was flushed": [
        (1, "SET k v", b"OK"),
        (0, "WATCH k", b"OK"),
        (1, "FLUSHDB", b"OK"),
        (0, "MULTI", b"OK"),
        (0, "EXEC", None),
    ],
    "databases with a watched key were swapped": [
        (1, "SET k v", b"OK"),
        (0, "WATCH k", b"OK"),
        (1, "SWAPDB 0 5", b"OK"),
        (1, "SWAPDB 5 0", b"OK"),
        (0, "MULTI", b"OK"),
        (0, "GET k", b"QUEUED"),
        (0, "EXEC", None),
    ],
    "a swap brought the watched key": [
        (1, "SELECT 5", b"OK"),
        (1, "SET k v", b"OK"),
        (0, "WATCH k", b"OK"),
        (1, "SWAPDB 0 5", b"OK"),
        (0, "MULTI", b"OK"),
        (0, "EXEC", None),
    ],
    "a watched key was written after a swap": [
        (0, "WATCH k", b"OK"),
        (1, "SWAPDB 0 5", b"OK"),
        (1, "SET k v", b"OK"),
        (0, "MULTI", b"OK"),
        (0, "EXEC", None),
    ],
    "other databases were swapped": [
        (1, "SET k v", b"OK"),
        (1, "COPY k k DB 4", 1),
        (0, "WATCH k", b"OK"),
        (1, "SWAPDB 4 5", b"OK"),
        (1, "SWAPDB 0 0", b"OK"),
        (0, "MULTI", b"OK"),
        (0, "EXEC", []),
    ],
    "the transaction itself swaps": [
        (0, "SET k v", b"OK"),
        (0, "WATCH k", b"OK"),
        (0, "MULTI", b"OK"),
        (0, "SWAPDB 0 5", b"QUEUED"),
        (0, "GET k", b"QUEUED"),
        (0, "SET k w", b"QUEUED"),
        (0, "SELECT 5", b"QUEUED"),
        (0, "GET k", b"QUEUED"),
        (0, "EXEC", [b"OK", None, b"OK", b"OK", b"v"]),
        (0, "GET k", b"v"),
        (1, "GET k", b"w"),
    ],
    "whole databases inside": [
        (0, "SET a v", b"OK"),
        (0, "SET b v", b"OK"),
        (0, "MULTI", b"OK"),
        (0, "SET c v", b"QUEUED"),
        (0, "DEL a", b"QUEUED"),
        (0, "SET b w", b"QUEUED"),
        (0, "DBSIZE", b"QUEUED"),
        (0, "SCAN 0 MATCH c", b"QUEUED"),
        (0, "KEYS a*", b"QUEUED"),
        (0, "KEYS c", b"QUEUED"),
        (0, "SCAN 0 MATCH c*", b"QUEUED"),
        (0, "FLUSHDB", b"QUEUED"),
        (0, "DBSIZE", b"QUEUED"),
        (0, "RANDOMKEY", b"QUEUED"),
        (0, "SET d v", b"QUEUED"),
        (0, "KEYS *", b"QUEUED"),
        (0, "SCAN 0", b"QUEUED"),
        (0, "RANDOMKEY", b"QUEUED"),
        (0, "DBSIZE", b"QUEUED"),
        (0, "EXISTS a b c d", b"QUEUED"),
        (
            0,
            "EXEC",
            [
                *(b"OK", 1, b"OK", 2, [b"0", [b"c"]], [], [b"c"], [b"0", [b"c"]]),
                *(b"OK", 0, None, b"OK", [b"d"], [b"0", [b"d"]], b"d", 1, 1),
            ],
        ),
        (1, "KEYS *", [b"d"]),
        (1, "DBSIZE", 1),
    ],
    "expiries inside": [
        (0, "MULTI", b"OK"),
        (0, "SET k v", b"QUEUED"),
        (0, "EXPIRE k 100", b"QUEUED"),
        (0, "TTL k", b"QUEUED"),
        (0, "RENAME k l", b"QUEUED"),
        (0, "TTL l", b"QUEUED"),
        (0, "EXPIRE l -1", b"QUEUED"),
        (0, "DBSIZE", b"QUEUED"),
        (0, "EXISTS k l", b"QUEUED"),
        (0, "EXEC", [b"OK", 1, 100, b"OK", 100, 1, 0, 0]),
    ],
    "moves inside": [
        (0, "MULTI", b"OK"),
        (0, "SET k v", b"QUEUED"),
        (0, "MOVE k 3", b"QUEUED"),
        (0, "DBSIZE", b"QUEUED"),
        (0, "SELECT 3", b"QUEUED"),
        (0, "DBSIZE", b"QUEUED"),
        (0, "COPY k l DB 0", b"QUEUED"),
        (0, "EXEC", [b"OK", 1, 0, b"OK", 1, 1]),
        (1, "KEYS *", [b"l"]),
    ],
}


@pytest.mark.parametrize("is_cold", [False, True], ids=["warm", "cold"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts(name: str, is_cold: bool) -> None:
    node = Sessions()
    sessions = [node.open(), node.open()]
    for number, command, reply in SCRIPTS[name]:
        if is_cold:
            node.evict()
        assert node.ask(sessions[number], command) == reply, (number, command)


@needs_redis
@pytest.mark.parametrize("name", SCRIPTS)
def test_redis_answers_the_same(name: str, redis_port: int) -> None:
    connections = [Connection("127.0.0.1", redis_port, timeout_s=10) for _ in range(2)]
    connections[0].ask(b"FLUSHALL")
    for number, command, reply in SCRIPTS[name]:
        words = [word.encode() for word in command.split()]
        assert plain(connections[number].ask(*words)) == _without_sign(reply), (number, command)
    for connection in connections:
        connection.close()


@pytest.fixture(scope="module")
def redis_port() -> Any:
    with redis_server() as server:
        yield server.port


def _without_sign(reply: Any) -> Any:
    """Errors as `plain` gives them."""
    if isinstance(reply, list):
        return [_without_sign(item) for item in reply]
    return reply[1:] if isinstance(reply, bytes) and reply[:1] == b"-" else reply


def test_a_watched_key_that_expires_has_changed() -> None:
    node = Sessions()
    session = node.open()
    node.ask(session, "SET k v PX 100 ; WATCH k")
    node.time_ms += 100
    assert node.ask(session, "MULTI ; EXEC") is None
    # What had expired when it was watched is as good as absent.
    assert node.ask(session, "SET k v PX 100") == b"OK"
    node.time_ms += 10_000
    node.ask(session, "WATCH k")
    assert node.replica.expire(node.time_ms, lambda: False) == 1
    assert node.ask(session, "MULTI ; EXEC") == []


def test_an_expired_key_that_is_swept_has_changed_once() -> None:
    """Its record becomes a stub with the same dot: a look at the dots alone would see no change."""
    node = Sessions()
    session = node.open()
    node.ask(session, "SET l v")
    node.evict()
    node.ask(session, "SET k v PX 100 ; WATCH k")
    node.time_ms += 10_000
    assert node.replica.expire(node.time_ms, lambda: False) == 1
    assert node.ask(session, "MULTI ; EXEC") is None


def test_a_transaction_that_waits_for_pages_runs_once() -> None:
    node = Sessions()
    session = node.open()
    long = "v" * 10_000  # A block of its own.
    node.ask(session, f"MSET a 1 b {long} c {long}")
    node.evict()
    node.ask(session, "WATCH a ; MULTI ; INCR a ; UNWATCH ; SWAPDB 0 1 ; SELECT 1")
    node.ask(session, "APPEND b x ; STRLEN c ; SELECT 0")
    node.faults = 0
    assert node.ask(session, "EXEC") == [2, b"OK", b"OK", b"OK", 10_001, 10_000, b"OK"]
    assert node.faults > 1
    assert node.ask(session, "SELECT 1 ; GET a") == b"2"
    assert node.ask(session, "STRLEN b") == 10_001


def test_a_write_between_two_runs_of_exec_is_noticed() -> None:
    """EXEC waits for a page; meanwhile another session writes the watched key."""
    node = Sessions()
    one, two = node.open(), node.open()
    node.ask(one, f"MSET k v other {'w' * 10_000}")
    node.ask(one, "WATCH k ; MULTI ; UNWATCH ; STRLEN other ; SET k mine")
    node.evict()
    node.send(one, "EXEC")
    node.step()
    assert node.faults == 2  # For k, which is watched, and for the other.
    assert one.out == []
    node.ask(two, "SET k theirs")
    assert node.finish(one) is None
    assert node.ask(two, "GET k") == b"theirs"
