"""SLOWLOG and LATENCY as clients see them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from respkv.command import TABLE
from tests.differential.wire import Connection, Reply
from tests.respkv.commands.alone import START_NS, Alone
from tests.servers import respkv_server

MS = 1_000_000


@pytest.fixture
def alone() -> Iterator[Alone]:
    node = Alone()
    yield node
    node.close()


def answered(reply: Reply | None) -> Reply:
    assert reply is not None
    return reply


def args(alone: Alone, words: str) -> list[list[bytes]]:
    entries = answered(alone.ask(words)).items
    return [[arg.text for arg in entry.items[3].items] for entry in entries]


def test_slow_commands_are_listed_newest_first(alone: Alone) -> None:
    alone.text("CONFIG SET slowlog-log-slower-than 0")
    alone.text("SLOWLOG RESET")
    alone.ask("SETEX k 100 v")
    alone.ask("LCS k l")
    assert args(alone, "SLOWLOG GET 2") == [[b"LCS", b"k", b"l"], [b"SETEX", b"k", b"100", b"v"]]
    [entry] = answered(alone.ask("SLOWLOG GET 1")).items
    assert [item.kind for item in entry.items] == [":", ":", ":", "*", "$", "$"]
    assert entry.items[1].text == b"%d" % (START_NS // 10**9)
    assert entry.items[4].text == b"peer:1"
    assert len(args(alone, "SLOWLOG GET -1")) == int(alone.text("SLOWLOG LEN")) - 1
    assert args(alone, "SLOWLOG GET 0") == []


def test_ten_entries_are_given_unasked(alone: Alone) -> None:
    alone.text("CONFIG SET slowlog-log-slower-than 0")
    for number in range(30):
        alone.ask(f"SETEX k{number} 100 v")
    assert len(args(alone, "SLOWLOG GET")) == 10
    assert len(args(alone, "SLOWLOG GET 25")) == 25


def test_passwords_are_hidden_in_the_list(alone: Alone) -> None:
    alone.text("CONFIG SET slowlog-log-slower-than 0")
    alone.text("CONFIG SET requirepass secret")
    assert args(alone, "SLOWLOG GET 1") == [[b"CONFIG", b"SET", b"requirepass", b"(redacted)"]]


def test_events_are_shown_and_forgotten(alone: Alone) -> None:
    alone.text("CONFIG SET latency-monitor-threshold 1")
    latency = alone.node.latency
    latency.add("command", 5 * MS)
    alone.ns += 2_000_000_000
    latency.add("command", 3 * MS)
    latency.add("loop", 9 * MS)
    start_s = START_NS // 10**9
    latest = answered(alone.ask("LATENCY LATEST"))
    assert [[item.text for item in event.items] for event in latest.items] == [
        [b"command", b"%d" % (start_s + 2), b"3", b"5"],
        [b"loop", b"%d" % (start_s + 2), b"9", b"9"],
    ]
    history = answered(alone.ask("LATENCY HISTORY command"))
    assert [[item.text for item in sample.items] for sample in history.items] == [
        [b"%d" % start_s, b"5"],
        [b"%d" % (start_s + 2), b"3"],
    ]
    assert alone.text("LATENCY GRAPH command").startswith(b"command: 3 to 5 ms")
    assert b"loop: 1 times" in alone.text("LATENCY DOCTOR")
    assert alone.text("LATENCY RESET loop nosuch") == b"1"
    assert alone.text("LATENCY RESET") == b"1"
    assert answered(alone.ask("LATENCY LATEST")).items == []


def test_a_slow_tick_and_a_slow_write_are_events(alone: Alone) -> None:
    alone.text("CONFIG SET latency-monitor-threshold 10")
    write = alone.node.store.write

    def slow_write() -> int:
        alone.ns += 20 * MS
        return write()

    alone.node.store.write = slow_write  # type: ignore[method-assign]
    alone.node.begin_tick()
    alone.ns += 15 * MS
    alone.node.commit.write()
    events = alone.node.latency.events
    assert {name: event.worst_ms for name, event in events.items()} == {"aof-write": 20, "loop": 35}


def test_the_histogram_shows_what_was_measured(alone: Alone) -> None:
    for name, sub, elapsed_ns in (
        ("GET", b"", 900),
        ("CONFIG", b"GET", 5000),
        ("CONFIG", b"SET", 3000),
    ):
        command = TABLE.commands[name]
        (command.subcommands[sub] if sub else command).histogram.clear()
        (command.subcommands[sub] if sub else command).histogram.add(elapsed_ns)
    alone.ask("HELLO 3")
    assert answered(alone.ask("LATENCY HISTOGRAM get nosuch")).raw == (
        b"%1\r\n$3\r\nget\r\n%2\r\n$5\r\ncalls\r\n:1\r\n$14\r\nhistogram_usec\r\n%1\r\n:1\r\n:1\r\n"
    )
    shown = answered(alone.ask("LATENCY HISTOGRAM CONFIG")).pairs
    assert set(shown) == {b"config|get", b"config|set"}
    assert set(answered(alone.ask("LATENCY HISTOGRAM config|set")).pairs) == {b"config|set"}
    everything = set(answered(alone.ask("LATENCY HISTOGRAM")).pairs)
    assert everything >= {b"get", b"config|get", b"config|set"}
    alone.text("CONFIG RESETSTAT")
    assert b"config|get" not in answered(alone.ask("LATENCY HISTOGRAM config")).pairs


def test_syncs_that_take_long_are_events_of_a_real_server() -> None:
    with respkv_server("--set", "log.fsync=always") as server:
        connection = Connection(server.host, server.port, timeout_s=10)
        try:
            connection.ask(b"CONFIG", b"SET", b"latency-monitor-threshold", b"1")
            for _ in range(
                200
            ):  # Which of the disk's syncs takes a millisecond is not ours to say.
                connection.ask(b"SET", b"k", bytes(1 << 20))
                names = [
                    event.items[0].text for event in connection.ask(b"LATENCY", b"LATEST").items
                ]
                if b"aof-fsync-always" in names or b"aof-write" in names:
                    break
            else:
                pytest.fail(f"no slow write in 200 MiB; events: {names}")
        finally:
            connection.close()
