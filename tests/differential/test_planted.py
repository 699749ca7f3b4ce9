"""The tester itself: between two Redis it finds nothing, and each difference that is planted it finds and names.

The second Redis stands behind a proxy that changes requests or replies. Without these tests a comparer that always says
yes would pass for a good one.
"""

# ruff: noqa: E501  A lie is one line.

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.servers import RunningServer, redis_server

from .__main__ import main
from .catalog import chosen
from .faulty import Change, faulty_proxy, unchanged
from .runner import Round
from .side import Side
from .wire import ReplyReader, WireError, encode

SEED = "20"
LIES_TIMEOUT_S = 1.0


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


def edit(change: Callable[[list[bytes]], list[bytes]]) -> Change:
    """Change the arguments of each request that arrives whole; `change` gets its first argument in upper case."""

    def on_request(data: bytes) -> bytes:
        reader = ReplyReader()
        reader.feed(data)
        edited: list[bytes] = []
        try:
            while request := reader.next():
                arguments = [item.text for item in request.items]
                edited.append(encode(change([arguments[0].upper(), *arguments[1:]])))
        except (WireError, IndexError):
            return data
        return b"".join(edited) + reader.pending

    return on_request


def swap_word(old: bytes, new: bytes) -> Change:
    """Another argument, of any case, for one."""
    return edit(lambda arguments: [new if word.upper() == old else word for word in arguments])


def watch_elsewhere(arguments: list[bytes]) -> list[bytes]:
    return (
        [b"WATCH", b"elsewhere"] if arguments[0] == b"WATCH" and len(arguments) > 1 else arguments
    )


def lose_expiry(arguments: list[bytes]) -> list[bytes]:
    return (
        [word for word in arguments if word.upper() != b"KEEPTTL"]
        if arguments[0] == b"SET"
        else arguments
    )


def spoil_third_value(arguments: list[bytes]) -> list[bytes]:
    """What no command of the run reads back."""
    return (
        [*arguments[:-1], b"spoilt"]
        if arguments[0] == b"MSET" and len(arguments) == 7
        else arguments
    )


def never_answer(command: bytes) -> Change:
    return lambda data: b"" if command in data.upper() else data


LIES = (
    Planted("an error text with a capital letter", ("GETRANGE",), "GETRANGE", on_reply=swap(b"ERR value is", b"ERR Value is")),
    Planted("a bulk string for a status", ("SETEX",), "SETEX", on_reply=swap(b"+OK\r\n", b"$2\r\nOK\r\n")),
    Planted("one instead of zero", ("SETNX",), "SETNX", on_reply=swap(b":0\r\n", b":1\r\n")),
    Planted("an empty string for nil", ("GET",), "GET", on_reply=swap(b"$-1\r\n", b"$0\r\n\r\n")),
    Planted("RESP2's nil in RESP3", ("GET",), "GET", on_reply=swap(b"_\r\n", b"$-1\r\n"), resp=3),
    Planted("an array for a map", ("LCS",), "LCS", on_reply=swap(b"%2\r\n", b"*4\r\n"), resp=3),
    Planted("KEEPTTL that keeps nothing", ("SET",), "PEXPIRETIME", on_request=edit(lose_expiry)),
    Planted("NX taken for XX", ("EXPIRE",), "EXPIRE", on_request=swap_word(b"NX", b"XX")),
    Planted("an encoding", ("OBJECT ENCODING",), "OBJECT ENCODING", on_reply=swap(b"$6\r\nembstr\r\n", b"$3\r\nraw\r\n")),
    Planted("keys that SCAN omits", ("SCAN",), "SCAN", on_reply=swap(b"$5\r\nint:1\r\n", b"$5\r\nint:2\r\n")),
    Planted("keys that a pattern does not match", ("KEYS",), "KEYS", on_request=swap_word(b"*", b"*:*")),
    Planted("a watch that is never dirty", ("WATCH",), "EXEC", on_request=edit(watch_elsewhere)),
    Planted("a watch's reply", ("WATCH",), "WATCH", on_request=swap_word(b"WATCH", b"TOUCH")),
    Planted("an invalidation too few", ("CLIENT TRACKING",), "PING", on_reply=swap(b"invalidate", b"invalidatf"), resp=3),
    Planted("another flag of a command", ("COMMAND INFO",), "COMMAND INFO", on_reply=swap(b"+readonly\r\n", b"+writable\r\n")),
    Planted("a field of INFO", ("INFO",), "INFO", on_reply=swap(b"connected_clients", b"connected_persons")),
    Planted("a command that gets no answer", ("STRLEN",), "STRLEN", on_request=never_answer(b"STRLEN")),
    Planted("a connection that stays open", ("QUIT",), "QUIT", on_request=swap_word(b"QUIT", b"PING")),
    Planted("a value that is stored otherwise", ("MSET",), "dump", on_request=edit(spoil_third_value)),
    Planted("bytes that are not RESP", ("ECHO",), "ECHO", on_reply=swap(b"$5\r\nhello", b"?5\r\nhello")),
)  # fmt: skip


class _Enough(Exception):
    """What was planted has been found: the rest of the round would only find it again."""


def play(two: tuple[RunningServer, RunningServer], lie: Planted) -> Round:
    """Run the lie's commands until it is found where it should be, or to the end."""
    first, second = two
    with faulty_proxy(
        (second.host, second.port), on_request=lie.on_request, on_reply=lie.on_reply
    ) as (host, port):
        left = Side("redis", first.host, first.port, lie.resp, timeout_s=LIES_TIMEOUT_S)
        right = Side("liar", host, port, lie.resp, timeout_s=LIES_TIMEOUT_S)
        one = Round(left, right, SEED, chosen(list(lie.by_running)))

        def stop_when_found(_done: int, _planned: int, _found: int) -> None:
            if one.found[lie.found_in]:
                raise _Enough

        try:
            with contextlib.suppress(_Enough):
                one.run(stop_when_found)
        finally:
            left.close()
            right.close()
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
    one = play(two, Planted("nothing", names, "", resp=resp))
    assert [str(finding) for finding in one.findings] == []
    assert one.coverage.shortfalls(one.commands) == []


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.what)
def test_a_planted_difference_is_found(
    two: tuple[RunningServer, RunningServer], lie: Planted
) -> None:
    one = play(two, lie)
    assert lie.found_in in {finding.what for finding in one.findings}, one.found


def test_a_finding_tells_what_a_reader_needs(two: tuple[RunningServer, RunningServer]) -> None:
    lie = Planted("one more", ("STRLEN",), "STRLEN", on_reply=swap(b":45\r\n", b":46\r\n"))
    finding = play(two, lie).findings[0]
    text = str(finding)
    assert text.startswith(f"command {finding.number}: ")
    assert "redis: :45" in text
    assert "liar: :46" in text
    assert "the last commands on these keys:" in text
    assert finding.reproduction is not None
    assert 1 <= len(finding.reproduction) <= 3


def test_the_same_seed_finds_the_same_again(two: tuple[RunningServer, RunningServer]) -> None:
    lie = Planted("one more", ("STRLEN",), "STRLEN", on_reply=swap(b":45\r\n", b":46\r\n"))
    runs = [play(two, lie) for _ in range(2)]
    assert [(f.number, f.shown) for f in runs[0].findings] == [
        (f.number, f.shown) for f in runs[1].findings
    ]


def test_the_command_line_says_what_was_sent_and_ends_well(
    two: tuple[RunningServer, RunningServer], capsys: pytest.CaptureFixture[str]
) -> None:
    where = f"{two[1].host}:{two[1].port}"
    assert (
        main(
            ["--seed", "5", "--only", "BGSAVE", "--only", "ECHO", "--resp", "3", "--server", where]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "seed 5" in printed
    assert "BGSAVE" in printed
    assert "SCHEDULE:" in printed


def test_the_command_line_says_how_to_see_a_difference_again(
    two: tuple[RunningServer, RunningServer], capsys: pytest.CaptureFixture[str]
) -> None:
    with faulty_proxy((two[1].host, two[1].port), on_reply=swap(b":0\r\n", b":7\r\n")) as (
        host,
        port,
    ):
        assert main(["--seed", "5", "--only", "STRLEN", "--server", f"{host}:{port}"]) == 1
    printed = capsys.readouterr().out
    assert "seed 5, RESP2, command " in printed
    assert (
        "again: python -m tests.differential --seed 5 --rounds 1 --resp 2 --only 'STRLEN'"
        in printed
    )
