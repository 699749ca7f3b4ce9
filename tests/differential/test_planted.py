"""The tester itself: between two Redis it finds nothing, and each difference that is planted it finds and names.

The second Redis stands behind a proxy that changes requests or replies. Without these tests a comparer that always says
yes would pass for a good one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.servers import RunningServer, redis_server

from .catalog import chosen
from .faulty import Change, faulty_proxy, unchanged
from .runner import Round
from .side import Side

SEED = "20"


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[RunningServer, RunningServer]]:
    with redis_server() as first, redis_server() as second:
        yield first, second


@dataclass(frozen=True)
class Planted:
    """One lie; `found_in` is where the tester must see it, `by_running` the commands that it runs for it."""

    what: str
    by_running: tuple[str, ...]
    found_in: str
    on_request: Change = unchanged
    on_reply: Change = unchanged
    resp: int = 2


def swap(old: bytes, new: bytes) -> Change:
    return lambda data: data.replace(old, new)


def swap_word(old: bytes, new: bytes) -> Change:
    """Another argument of any case and length, with its announced length."""
    pattern = re.compile(rb"\$%d\r\n%b\r\n" % (len(old), re.escape(old)), re.IGNORECASE)
    return lambda data: pattern.sub(b"$%d\r\n%b\r\n" % (len(new), new), data)


def swallow(word: bytes) -> Change:
    return lambda data: b"" if word in data.upper() else data


LIES = (
    Planted("an error text with a capital letter", ("GETRANGE",), "GETRANGE", on_reply=swap(b"ERR value is", b"ERR Value is")),
    Planted("a bulk string for a status", ("SETEX",), "SETEX", on_reply=swap(b"+OK\r\n", b"$2\r\nOK\r\n")),
    Planted("one instead of zero", ("SETNX",), "SETNX", on_reply=swap(b":0\r\n", b":1\r\n")),
    Planted("an empty string for nil", ("GET",), "GET", on_reply=swap(b"$-1\r\n", b"$0\r\n\r\n")),
    Planted("RESP2's nil in RESP3", ("GET",), "GET", on_reply=swap(b"_\r\n", b"$-1\r\n"), resp=3),
    Planted("an array for a map", ("LCS",), "LCS", on_reply=swap(b"%2\r\n", b"*4\r\n"), resp=3),
    Planted("KEEPTTL that keeps nothing", ("SET",), "PEXPIRETIME", on_request=swap_word(b"KEEPTTL", b"GET")),
    Planted("NX taken for XX", ("EXPIRE",), "EXPIRE", on_request=swap_word(b"NX", b"XX")),
    Planted("an encoding", ("OBJECT ENCODING",), "OBJECT ENCODING", on_reply=swap(b"$6\r\nembstr\r\n", b"$3\r\nraw\r\n")),
    Planted("keys that SCAN omits", ("SCAN",), "SCAN", on_request=swap_word(b"SCAN", b"SSCAN")),
    Planted("keys that a pattern does not match", ("KEYS",), "KEYS", on_request=swap_word(b"*", b"*:*")),
    Planted("a watch that is never dirty", ("WATCH",), "EXEC", on_request=swap_word(b"WATCH", b"TOUCH")),
    Planted("a watch's reply", ("WATCH",), "WATCH", on_request=swap_word(b"WATCH", b"TOUCH")),
    Planted("an invalidation too few", ("CLIENT TRACKING",), "PING", on_reply=swap(b"invalidate", b"invalidatf"), resp=3),
    Planted("another flag of a command", ("COMMAND INFO",), "COMMAND INFO", on_reply=swap(b"+readonly\r\n", b"+writable\r\n")),
    Planted("a field of INFO", ("INFO",), "INFO", on_reply=swap(b"connected_clients", b"connected_persons")),
    Planted("a command that gets no answer", ("STRLEN",), "STRLEN", on_request=swallow(b"STRLEN")),
    Planted("a connection that stays open", ("QUIT",), "QUIT", on_request=swap_word(b"QUIT", b"PING")),
    Planted("a value that is stored otherwise", ("MSET",), "dump", on_request=swap_word(b"0.1", b"0.2")),
    Planted("bytes that are not RESP", ("ECHO",), "ECHO", on_reply=swap(b"$5\r\nhello", b"?5\r\nhello")),
)  # fmt: skip


def play(two: tuple[RunningServer, RunningServer], lie: Planted, *, findings_max: int) -> Round:
    """Run the lie's commands. Commands that lead to the same place as others are looked at until all were seen."""
    first, second = two
    with faulty_proxy(
        (second.host, second.port), on_request=lie.on_request, on_reply=lie.on_reply
    ) as (host, port):
        left = Side("redis", first.host, first.port, lie.resp, timeout_s=0.5)
        right = Side("liar", host, port, lie.resp, timeout_s=0.5)
        one = Round(left, right, SEED, chosen(list(lie.by_running)), findings_max)
        try:
            one.run()
        finally:
            one.left.close()
            one.right.close()
    return one


@pytest.mark.parametrize("resp", [2, 3])
def test_two_redis_do_not_differ(two: tuple[RunningServer, RunningServer], resp: int) -> None:
    names = (
        "strings",
        "CLIENT TRACKING",
        "CLIENT LIST",
        "CLIENT KILL",
        "INFO",
        "COMMAND INFO",
        "EXEC",
        "SCAN",
        "malformed",
    )
    one = play(two, Planted("nothing", names, "", resp=resp), findings_max=5)
    assert [str(finding) for finding in one.findings] == []
    assert one.coverage.shortfalls(one.commands) == []


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.what)
def test_a_planted_difference_is_found(
    two: tuple[RunningServer, RunningServer], lie: Planted
) -> None:
    one = play(two, lie, findings_max=6)
    assert lie.found_in in {finding.what for finding in one.findings}, one.found


def test_a_finding_tells_what_a_reader_needs(two: tuple[RunningServer, RunningServer]) -> None:
    lie = Planted(
        "APPEND after KEEPTTL", ("STRLEN",), "STRLEN", on_reply=swap(b":44\r\n", b":45\r\n")
    )
    finding = play(two, lie, findings_max=1).findings[0]
    text = str(finding)
    assert text.startswith(f"command {finding.number}: ")
    assert "redis: :44" in text
    assert "liar: :45" in text
    assert "the last commands on these keys:" in text
    assert finding.reproduction is not None
    assert 1 <= len(finding.reproduction) <= 3


def test_the_same_seed_finds_the_same_again(two: tuple[RunningServer, RunningServer]) -> None:
    lie = Planted("one more", ("STRLEN",), "STRLEN", on_reply=swap(b":44\r\n", b":45\r\n"))
    runs = [play(two, lie, findings_max=2) for _ in range(2)]
    assert [(f.number, f.shown) for f in runs[0].findings] == [
        (f.number, f.shown) for f in runs[1].findings
    ]
