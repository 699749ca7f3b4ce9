"""The slow log: what is listed, in which bounds, and who else hears of it."""

from __future__ import annotations

from respkv.command import TABLE, Command
from respkv.commands import load
from respkv.latency import NEVER_NS, LatencyMonitor
from respkv.parser import Limits
from respkv.session import Session
from respkv.slowlog import Slowlog

load()
US = 1000
MS = 1_000_000


def named(name: str) -> Command:
    container, _, sub = name.partition("|")
    command = TABLE.commands[container]
    return command.subcommands[sub.encode()] if sub else command


class Log:
    def __init__(self, threshold_us: int, *, entries_max: int = 10, threshold_ms: int = 0) -> None:
        self.latency = LatencyMonitor(lambda: 7.5)
        self.latency.configure(threshold_ms)
        self.log = Slowlog(threshold_us, entries_max, lambda: 7.5, self.latency)
        self.session = Session(1, "peer:1", "here:1", Limits(), 0.0, authenticated=True)

    def add(self, elapsed_ns: int, *args: bytes, name: str = "GET") -> None:
        self.log.add(self.session, named(name), list(args), elapsed_ns)

    def args(self) -> list[list[bytes]]:
        return [entry.args for entry in self.log.entries]


def test_an_entry_has_number_time_duration_and_client() -> None:
    log = Log(10)
    log.session.name = b"me"
    log.add(12_345, b"GET", b"k")
    log.add(99_999, b"GET", b"l")
    newest, oldest = log.log.entries
    assert (oldest.number, newest.number) == (0, 1)
    assert (oldest.at_s, oldest.elapsed_us, oldest.peer, oldest.name) == (7, 12, b"peer:1", b"me")


def test_the_oldest_go() -> None:
    log = Log(0, entries_max=2)
    for key in (b"a", b"b", b"c"):
        log.add(1, b"GET", key)
    assert log.args() == [[b"GET", b"c"], [b"GET", b"b"]]
    log.log.configure(0, 1)
    assert log.args() == [[b"GET", b"c"]]
    log.log.configure(0, 0)
    log.add(1, b"GET", b"d")
    assert log.args() == []


def test_long_arguments_and_many_are_cut() -> None:
    log = Log(0)
    log.add(1, b"GET", b"x" * 200)
    assert log.args()[0][1] == b"x" * 128 + b"... (72 more bytes)"
    log.add(1, *[b"a"] * 40)
    assert log.args()[0] == [b"a"] * 31 + [b"... (9 more arguments)"]


def test_passwords_are_not_shown() -> None:
    log = Log(0)
    words = (
        b"CONFIG",
        b"SET",
        b"timeout",
        b"0",
        b"RequirePass",
        b"secret",
        b"client.requirepass",
        b"s2",
    )
    log.add(1, *words, name="CONFIG|SET")
    assert log.args()[0] == [*words[:5], b"(redacted)", words[6], b"(redacted)"]
    log.add(1, b"SET", b"requirepass", b"mine")
    assert log.args()[0] == [b"SET", b"requirepass", b"mine"]


def test_the_lower_of_two_thresholds_is_asked_for() -> None:
    assert Log(-1).log.threshold_ns == NEVER_NS
    assert Log(500).log.threshold_ns == 500 * US
    assert Log(500, threshold_ms=2).log.threshold_ns == 500 * US
    assert Log(5000, threshold_ms=2).log.threshold_ns == 2 * MS
    assert Log(-1, threshold_ms=2).log.threshold_ns == 2 * MS


def test_each_listener_hears_what_concerns_it() -> None:
    log = Log(5000, threshold_ms=2)
    log.add(3 * MS, b"KEYS", b"*", name="KEYS")
    assert not log.log.entries
    assert log.latency.events["command"].worst_ms == 3
    log = Log(1000, threshold_ms=9)
    log.add(3 * MS, b"GET", b"k")
    assert len(log.log.entries) == 1
    assert not log.latency.events
    log.add(9 * MS, b"GET", b"k")
    assert log.latency.events["fast-command"].worst_ms == 9
