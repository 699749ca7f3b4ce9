"""INFO's neighbours: TIME ROLE SHUTDOWN DEBUG ACL LOLWUT, and the errors of all commands about the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from respkv.session import CLOSING
from tests.differential.wire import Closed, Connection
from tests.respkv.commands.alone import START_NS, Alone
from tests.respkv.commands.redis import needs_redis, play, redis
from tests.servers import respkv_server

SYNTAX = b"-ERR syntax error"
INTEGER = b"-ERR value is not an integer or out of range"
TIMEOUT = b"-ERR timeout is not an integer or out of range"
NEGATIVE = b"-ERR timeout is negative"


def arity(name: str) -> bytes:
    return f"-ERR wrong number of arguments for '{name}' command".encode()


def unknown(name: str) -> bytes:
    return f"-ERR unknown subcommand 'junk'. Try {name} HELP.".encode()


def malformed(name: str, sub: str) -> bytes:
    text = "-ERR unknown subcommand or wrong number of arguments for '{}'. Try {} HELP."
    return text.format(sub, name).encode()


# The same in Redis 7.0.
TEXTS = [
    ("TIME 1", arity("time")),
    ("ROLE 1", arity("role")),
    ("LASTSAVE 1", arity("lastsave")),
    ("SAVE 1", arity("save")),
    ("BGREWRITEAOF 1", arity("bgrewriteaof")),
    ("BGSAVE junk", SYNTAX),
    ("BGSAVE SCHEDULE SCHEDULE", SYNTAX),
    ("SHUTDOWN junk", SYNTAX),
    ("SHUTDOWN SAVE NOSAVE", SYNTAX),
    ("SHUTDOWN ABORT NOW", SYNTAX),
    ("SHUTDOWN NOW FORCE ABORT", SYNTAX),
    ("SHUTDOWN ABORT", b"-ERR No shutdown in progress."),
    ("SHUTDOWN abort ABORT", b"-ERR No shutdown in progress."),
    ("DEBUG", arity("debug")),
    ("DEBUG junk", malformed("DEBUG", "junk")),
    ("DEBUG sleep", malformed("DEBUG", "sleep")),
    ("DEBUG SLEEP 0 0", malformed("DEBUG", "SLEEP")),
    ("DEBUG SLEEP 0", b"OK"),
    ("DEBUG SLEEP -1", b"OK"),
    ("DEBUG SLEEP junk", b"OK"),
    ("DEBUG SLEEP inf", b"OK"),
    ("WAIT 0 0", 0),
    ("WAIT -5 0", 0),
    ("WAIT junk 0", INTEGER),
    ("WAIT 0 junk", TIMEOUT),
    ("WAIT junk junk", INTEGER),
    ("WAIT 0 -1", NEGATIVE),
    ("WAIT 9223372036854775808 0", INTEGER),
    ("WAIT 0", arity("wait")),
    ("LOLWUT VERSION junk", INTEGER),
    ("LOLWUT VERSION 5 junk", INTEGER),
    ("LOLWUT VERSION 5 1 1 junk", INTEGER),
    ("LOLWUT VERSION 6 1 junk", INTEGER),
    ("ACL", arity("acl")),
    ("ACL junk", unknown("ACL")),
    ("ACL WHOAMI", b"default"),
    ("ACL WHOAMI 1", arity("acl|whoami")),
    ("CONFIG", arity("config")),
    ("CONFIG junk", unknown("CONFIG")),
    ("CONFIG GET", arity("config|get")),
    ("CONFIG SET timeout", arity("config|set")),
    ("CONFIG SET timeout 1 maxclients", SYNTAX),
    ("CONFIG SET nosuch 1", b"-ERR Unknown option or number of arguments for CONFIG SET - 'nosuch'"),
    ("CONFIG RESETSTAT 1", arity("config|resetstat")),
    ("CONFIG REWRITE", b"-ERR The server is running without a config file"),
    ("CONFIG REWRITE 1", arity("config|rewrite")),
    ("CONFIG HELP 1", arity("config|help")),
    ("CONFIG GET databases", [b"databases", b"16"]),
    ("CONFIG GET nosuch", []),
    ("CONFIG SET slowlog-max-len 64", b"OK"),
    ("CONFIG SET timeout 5 ; CONFIG GET timeout", [b"timeout", b"5"]),
    ("CONFIG SET timeout 7 databases 4 ; CONFIG GET timeout", [b"timeout", b"5"]),
    ("MEMORY", arity("memory")),
    ("MEMORY junk", unknown("MEMORY")),
    ("MEMORY USAGE", arity("memory|usage")),
    ("MEMORY USAGE nosuch", None),
    ("MEMORY USAGE nosuch SAMPLES", SYNTAX),
    ("MEMORY USAGE nosuch SAMPLES junk", INTEGER),
    ("MEMORY USAGE nosuch SAMPLES -1", SYNTAX),
    ("MEMORY USAGE nosuch junk 1", SYNTAX),
    ("MEMORY USAGE nosuch SAMPLES 1 SAMPLES", SYNTAX),
    ("MEMORY USAGE nosuch SAMPLES 0 samples 3", None),
    ("MEMORY STATS 1", arity("memory|stats")),
    ("MEMORY DOCTOR 1", arity("memory|doctor")),
    ("MEMORY PURGE 1", arity("memory|purge")),
    ("SLOWLOG", arity("slowlog")),
    ("SLOWLOG junk", unknown("SLOWLOG")),
    ("SLOWLOG GET -2", b"-ERR count should be greater than or equal to -1"),
    ("SLOWLOG GET junk", b"-ERR count should be greater than or equal to -1"),
    ("SLOWLOG GET 1 2", malformed("SLOWLOG", "GET")),
    ("SLOWLOG LEN 1", arity("slowlog|len")),
    ("SLOWLOG RESET", b"OK"),
    ("LATENCY", arity("latency")),
    ("LATENCY junk", unknown("LATENCY")),
    ("LATENCY RESET ; LATENCY LATEST", []),
    ("LATENCY HISTORY nosuch", []),
    ("LATENCY HISTORY", arity("latency|history")),
    ("LATENCY GRAPH nosuch", b"-ERR No samples available for event 'nosuch'"),
    ("LATENCY RESET nosuch", 0),
    ("LATENCY HISTOGRAM nosuch config|nosuch", []),
    ("MULTI ; WAIT 1 0 ; EXEC", [0]),
    ("MULTI ; SAVE", b"-ERR Command not allowed inside a transaction"),
    ("DISCARD", b"OK"),
    ("MULTI ; SHUTDOWN", b"-ERR Command not allowed inside a transaction"),
    ("DISCARD", b"OK"),
]  # fmt: skip


@pytest.fixture
def alone() -> Iterator[Alone]:
    node = Alone()
    yield node
    node.close()


def value(alone: Alone, script: str) -> object:
    reply = None
    for part in script.split(" ; "):
        reply = alone.ask(part)
        if reply is None:
            reply = alone.work()
    assert reply is not None, "it waits"
    if reply.is_error:
        return b"-" + reply.text
    if reply.kind == ":":
        return int(reply.text)
    return [
        int(item.text) if item.kind == ":" else item.text for item in reply.items
    ] if isinstance(reply.value, list) else reply.value  # fmt: skip


def test_replies_and_errors(alone: Alone) -> None:
    found = [(script, value(alone, script)) for script, _ in TEXTS]
    assert found == TEXTS


@needs_redis
def test_redis_gives_the_same() -> None:
    with redis() as connection:
        found = [(script, play(connection, script)) for script, _ in TEXTS]
    assert found == TEXTS


def test_time_is_the_wall_clock_to_the_microsecond(alone: Alone) -> None:
    alone.ns = 1_234_567_890
    reply = alone.ask("TIME")
    assert reply is not None
    assert [item.text for item in reply.items] == [b"%d" % (START_NS // 10**9 + 1), b"234567"]


def test_role_tells_the_position_of_the_log(alone: Alone) -> None:
    alone.ask("SET k v")
    reply = alone.ask("ROLE")
    assert reply is not None
    position = alone.node.store.log.position
    assert position > 0
    assert [item.raw for item in reply.items] == [
        b"$6\r\nmaster\r\n",
        b":%d\r\n" % position,
        b"*0\r\n",
    ]


@pytest.mark.parametrize("words", ["", "SAVE", "nosave now force"])
def test_shutdown_stops_the_node_without_a_reply(alone: Alone, words: str) -> None:
    assert alone.ask(f"SHUTDOWN {words}") is None
    assert alone.node.is_stopping
    assert alone.session.mode & CLOSING
    assert alone.node._is_hurried == ("now" in words)
    other = alone.connect()
    reply = alone.ask("SHUTDOWN ABORT", session=other)
    assert reply is not None
    assert b"cannot be taken back" in reply.text


@pytest.mark.parametrize("words", [(), (b"NOSAVE",), (b"SAVE", b"NOW", b"FORCE")])
def test_a_real_server_ends_and_keeps_its_data(tmp_path: Path, words: tuple[bytes, ...]) -> None:
    data_dir = tmp_path / "data"
    with respkv_server("--set", "log.fsync=no", data_dir=data_dir) as server:
        connection = Connection(server.host, server.port, timeout_s=10)
        assert connection.ask(b"SET", b"k", b"v").text == b"OK"
        with pytest.raises(Closed):
            connection.ask(b"SHUTDOWN", *words)
        assert server.process.wait(10) == 0
    with respkv_server(data_dir=data_dir) as server:
        connection = Connection(server.host, server.port, timeout_s=10)
        assert connection.ask(b"GET", b"k").text == b"v"
        connection.close()


def test_debug_sleep_holds_up_its_own_client_only(alone: Alone) -> None:
    other = alone.connect()
    assert alone.ask("DEBUG SLEEP 1.5") is None
    assert alone.ask("PING", session=other) is not None
    assert alone.pass_time(1.4) is None
    reply = alone.pass_time(0.2)
    assert reply is not None
    assert reply.text == b"OK"


def test_debug_sleep_counts_as_slow(alone: Alone) -> None:
    alone.text("CONFIG SET latency-monitor-threshold 100 slowlog-log-slower-than 200000")
    alone.ask("DEBUG SLEEP 0.15")
    alone.pass_time(0.2)
    assert alone.node.latency.events["command"].worst_ms == 150
    assert not alone.node.slowlog.entries
    alone.ask("DEBUG SLEEP 0.25")
    alone.pass_time(0.3)
    [entry] = alone.node.slowlog.entries
    assert (entry.args, entry.elapsed_us) == ([b"DEBUG", b"SLEEP", b"0.25"], 250_000)


def test_debug_sleep_is_listed_once_when_everything_is(alone: Alone) -> None:
    alone.text("CONFIG SET latency-monitor-threshold 100 slowlog-log-slower-than 0")
    alone.text("SLOWLOG RESET")
    alone.node.slowlog.entries.clear()
    alone.ask("DEBUG SLEEP 0.25")
    alone.pass_time(0.3)
    assert [entry.args[0] for entry in alone.node.slowlog.entries] == [b"DEBUG"]
    assert alone.node.latency.events["command"].worst_ms == 250


def test_debug_does_not_sleep_inside_multi(alone: Alone) -> None:
    alone.text("CONFIG SET latency-monitor-threshold 100")
    assert value(alone, "MULTI ; DEBUG SLEEP 100 ; EXEC") == [b"OK"]
    assert not alone.node.latency.events


def test_lolwut_ends_with_the_version(alone: Alone) -> None:
    for words in (
        "",
        "VERSION 5",
        "VERSION 5 20",
        "VERSION 6 1 1",
        "junk",
        "VERSION",
        "VERSION 5 99999999",
    ):
        text = alone.text(f"LOLWUT {words}")
        assert text.endswith(b"\nrespkv 0.1.0, Redis ver. 7.0.15\n")
        assert text.count(b"*") == 1
    width = max(map(len, alone.text("LOLWUT VERSION 5 20").splitlines()[:-1]))
    assert width <= 20


@pytest.mark.parametrize("name", ["CONFIG", "DEBUG", "ACL", "MEMORY", "SLOWLOG", "LATENCY"])
def test_help_names_every_subcommand(alone: Alone, name: str) -> None:
    from respkv.command import TABLE

    reply = alone.ask(f"{name} HELP")
    assert reply is not None
    assert {item.kind for item in reply.items} == {"+"}
    words = {item.text.split(b" ")[0] for item in reply.items}
    assert words >= set(TABLE.commands[name].subcommands) | {b"HELP"}
