"""LCS: replies as Redis gives them, and the rows of bits against the usual table."""

from __future__ import annotations

import random
from typing import Any

import pytest

from respkv.commands.lcs import Table
from respkv.parser import Limits
from tests.respkv.commands.harness import Server
from tests.respkv.commands.redis import needs_redis, play, redis

SYNTAX = b"-ERR syntax error"
TEXTS = "MSET a ohmytext b mynewtext ; "
RUNS = [[[4, 7], [5, 8]], [[2, 3], [0, 1]]]
# Several subsequences are the longest: which one is answered is a part of the interface.
TIES = "MSET a abcdefgabcdefg b gfedcbaabcdefg c abcbdab d bdcaba ; "

REPLIES: list[tuple[str, Any]] = [
    ("LCS a b", b""),
    ("LCS a b LEN", 0),
    ("SET a abc ; LCS a b", b""),
    ("SET a abc ; LCS a a", b"abc"),
    (TEXTS + "LCS a b", b"mytext"),
    (TEXTS + "LCS b a", b"mytext"),
    (TEXTS + "LCS a b len", 6),
    (TEXTS + "LCS a b LEN WITHMATCHLEN MINMATCHLEN 3", 6),
    (TEXTS + "LCS a b MINMATCHLEN 3", b"mytext"),
    (TEXTS + "LCS a b IDX", [b"matches", RUNS, b"len", 6]),
    (TEXTS + "LCS a b IDX MINMATCHLEN 4", [b"matches", RUNS[:1], b"len", 6]),
    (TEXTS + "LCS a b IDX MINMATCHLEN 2", [b"matches", RUNS, b"len", 6]),
    (TEXTS + "LCS a b IDX MINMATCHLEN -1", [b"matches", RUNS, b"len", 6]),
    (TEXTS + "LCS a b IDX MINMATCHLEN 9 WITHMATCHLEN", [b"matches", [], b"len", 6]),
    (TEXTS + "LCS a b IDX WITHMATCHLEN", [b"matches", [[*RUNS[0], 4], [*RUNS[1], 2]], b"len", 6]),
    (TEXTS + "LCS b a IDX", [b"matches", [[b, a] for a, b in RUNS], b"len", 6]),
    (TIES + "LCS a b", b"gabcdefg"),
    (TIES + "LCS b a", b"aabcdefg"),
    (TIES + "LCS b a IDX", [b"matches", [[[7, 13], [7, 13]], [[6, 6], [0, 0]]], b"len", 8]),
    (TIES + "LCS c d", b"bdab"),
    (TIES + "LCS c d IDX", [b"matches", [[[5, 6], [3, 4]], [[3, 4], [0, 1]]], b"len", 4]),
    (TIES + "LCS d c", b"bcba"),
    ("LCS a b IDX", [b"matches", [], b"len", 0]),
    ("LCS a", b"-ERR wrong number of arguments for 'lcs' command"),
    ("LCS a b IDX LEN", b"-ERR If you want both the length and indexes, please just use IDX."),
    ("LCS a b MINMATCHLEN", SYNTAX),
    ("LCS a b MINMATCHLEN x", b"-ERR value is not an integer or out of range"),
    ("LCS a b junk", SYNTAX),
    ("LCS a b IDX LEN junk", SYNTAX),
]


def flat(reply: Any) -> Any:
    """A map as RESP2 shows it."""
    return [item for pair in reply.items() for item in pair] if isinstance(reply, dict) else reply


@pytest.mark.parametrize("is_cold", [False, True], ids=["warm", "cold"])
@pytest.mark.parametrize(("script", "reply"), REPLIES, ids=[script for script, _ in REPLIES])
def test_replies(script: str, reply: Any, is_cold: bool) -> None:
    assert flat(Server().play(script, is_cold=is_cold)) == reply


@needs_redis
def test_redis_answers_the_same() -> None:
    with redis() as connection:
        for script, reply in REPLIES:
            assert play(connection, script) == reply, script


def test_the_size_of_the_table_is_bounded() -> None:
    server = Server()
    server.node.limits = Limits(bulk_bytes_max=4 * 4 * 5)
    assert server.play("MSET a abc b abcd ; LCS a b LEN") == 3
    assert server.play("APPEND b e ; LCS a b LEN") == (
        b"-ERR Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len"
    )


def test_the_largest_strings_take_no_longer_than_a_blink() -> None:
    """11000 by 12000 bytes, near the limit: cells one by one would take a minute."""
    rng = random.Random(7)
    a, b = (bytes(rng.choices(b"acgt", k=length)) for length in (11_000, 12_000))
    table = Table(a, b)
    subsequence = b"".join(
        a[match.a : match.a + match.length] for match in reversed(table.matches())
    )
    assert len(subsequence) == table.length > 7000
    for text in (a, b):
        rest = iter(text)
        assert all(byte in rest for byte in subsequence)


def obvious(a: bytes, b: bytes) -> tuple[int, list[tuple[int, int]]]:
    """The usual table, and Redis' way back: pairs of positions, last one first."""
    lengths = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            same = lengths[i - 1][j - 1] + 1
            lengths[i][j] = same if x == y else max(lengths[i - 1][j], lengths[i][j - 1])
    pairs = []
    i, j = len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return lengths[-1][-1], pairs


def test_rows_of_bits_against_the_usual_table() -> None:
    rng = random.Random(8)
    for _ in range(1500):
        a, b = (
            bytes(rng.choices(b"abcd"[: rng.randint(1, 4)], k=rng.randint(0, 14))) for _ in range(2)
        )
        length, pairs = obvious(a, b)
        table = Table(a, b)
        assert table.length == length
        found = [
            (match.a + at, match.b + at)
            for match in table.matches()
            for at in range(match.length - 1, -1, -1)
        ]
        assert found == pairs, (a, b)
