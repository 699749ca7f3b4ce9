"""Glob patterns: corner cases by table, both matchers against each other and Redis, and bounded time."""

from __future__ import annotations

import random
import time

import pytest

from respkv import glob
from tests.respkv.commands.redis import needs_redis, redis

# Pattern, texts that match, texts that do not.
CASES: list[tuple[bytes, list[bytes], list[bytes]]] = [
    (b"", [b""], [b"a"]),
    (b"*", [b"", b"a", b"a\nb"], []),
    (b"**", [b"a"], [b""]),
    (b"?", [b"a", b"\n", b"\xff"], [b"", b"ab"]),
    (b"a", [b"a"], [b"", b"A", b"ab", b"a\n"]),
    (b"a*", [b"a", b"abc"], [b"", b"ba"]),
    (b"a***", [b"a", b"abc"], [b"", b"ba"]),
    (b"*a", [b"a", b"ba", b"aa"], [b"", b"ab", b"a\n"]),
    (b"*ab*", [b"ab", b"xab", b"abx", b"aab"], [b"ba", b"a"]),
    (b"a*b*c", [b"abc", b"axbxc", b"abcbc"], [b"ac", b"abcb"]),
    (b"a?c", [b"abc", b"a?c"], [b"ac", b"abbc"]),
    (b"[abc]", [b"a", b"c"], [b"", b"d", b"ab"]),
    (b"[a-c]x", [b"ax", b"cx"], [b"dx", b"a"]),
    (b"[c-a]", [b"a", b"b", b"c"], [b"d", b"-"]),
    (b"[^a]", [b"b", b"\n"], [b"a", b""]),
    (b"[^a-c]", [b"d"], [b"b"]),
    (b"[!a]", [b"!", b"a"], [b"b"]),
    (b"[]", [], [b"", b"]", b"[]"]),
    (b"[]]", [], [b"]"]),
    (b"[^]", [b"a", b"]"], [b""]),
    (b"[", [], [b"[", b""]),
    (b"[^", [b"a", b"["], [b""]),
    (b"[ab", [b"a", b"b"], [b"ab", b"["]),
    (b"[a-", [b"a", b"-"], [b"b"]),
    (b"[a-]", [b"a", b"]", b"^", b"_"], [b"-", b"b"]),
    (b"[-a]", [b"-", b"a"], [b"b"]),
    (b"[\\]]", [b"]"], [b"\\"]),
    (b"[\\a-c]", [b"a", b"c", b"-"], [b"b", b"\\"]),
    (b"[a\\", [b"a", b"\\"], [b"b"]),
    (b"\\*", [b"*"], [b"a", b"\\*"]),
    (b"\\a", [b"a"], [b"\\a"]),
    (b"a\\", [b"a\\"], [b"a"]),
    (b"[\x00-\xff]", [b"\x00", b"\xff"], [b"a", b"\x80"]),
    (b"[\x80-\xff]", [b"\x80", b"\xff"], [b"a"]),
    (b"(a|b)+.^$", [b"(a|b)+.^$"], [b"a", b"ab"]),
]
BYTES = [
    b"a",
    b"b",
    b"B",
    b"-",
    b"]",
    b"[",
    b"^",
    b"\\",
    b"*",
    b"?",
    b"\xff",
    b"\x80",
    b"\x00",
    b"\n",
]
# More of what patterns are made of, so that they are not all broken ones.
PATTERN_BYTES = BYTES + [b"*", b"[", b"]", b"-", b"?"] * 3


@pytest.mark.parametrize(("pattern", "good", "bad"), CASES, ids=[repr(case[0]) for case in CASES])
def test_cases(pattern: bytes, good: list[bytes], bad: list[bytes]) -> None:
    matches = glob.matcher(pattern)
    assert [text for text in good if not matches(text)] == []
    assert [text for text in bad if matches(text)] == []


@needs_redis
def test_redis_decides_the_cases_the_same() -> None:
    with redis() as connection:
        for pattern, good, bad in CASES:
            connection.ask(b"FLUSHALL")
            connection.ask(b"MSET", *(word for text in good + bad for word in (text, b"v")))
            found = connection.ask(b"KEYS", pattern).value
            assert isinstance(found, list)
            assert sorted(item.text for item in found) == sorted(good), pattern


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (b"A[B-C]d", [b"abD", b"aCd"], [b"add"]),
        (b"prefix*", [b"PREFIX", b"Prefix-x"], [b"prefi"]),
        (b"[\\A]", [b"A"], [b"a"]),
        (b"literal", [b"LiTeRaL"], [b"literals"]),
    ],
)
def test_case_can_be_ignored(pattern: bytes, good: list[bytes], bad: list[bytes]) -> None:
    matches = glob.matcher(pattern, ignore_case=True)
    assert [text for text in good if not matches(text)] == []
    assert [text for text in bad if matches(text)] == []


@pytest.mark.parametrize("seed", range(5))
def test_both_matchers_agree(seed: int) -> None:
    """The regular expression, and the slow one for long patterns."""
    rng = random.Random(seed)
    texts = [b"".join(rng.choices(BYTES, k=rng.randint(1, 8))) for _ in range(50)]
    for _ in range(300):
        pattern = b"".join(rng.choices(PATTERN_BYTES, k=rng.randint(0, 10)))
        tokens = glob.parse(pattern)
        matches = glob.matcher(pattern)
        for text in texts:
            assert bool(matches(text)) == glob._matches(tokens, text), (seed, pattern, text)


@needs_redis
def test_redis_decides_random_patterns_the_same() -> None:
    seed = 1
    rng = random.Random(seed)
    texts = sorted({b"".join(rng.choices(BYTES, k=rng.randint(0, 6))) for _ in range(300)})
    with redis() as connection:
        connection.ask(b"MSET", *(word for text in texts for word in (text, b"v")))
        for _ in range(1000):
            pattern = b"".join(rng.choices(PATTERN_BYTES, k=rng.randint(0, 9)))
            found = connection.ask(b"KEYS", pattern).value
            assert isinstance(found, list)
            matches = glob.matcher(pattern)
            expected = sorted(item.text for item in found)
            assert [text for text in texts if matches(text)] == expected, (seed, pattern)


def test_long_patterns_are_matched_without_compiling_them() -> None:
    pattern = b"a" * 300 + b"*" + b"[b]" * 100
    assert len(pattern) > glob.COMPILED_BYTES_MAX
    matches = glob.matcher(pattern)
    assert matches(b"a" * 300 + b"x" + b"b" * 100)
    assert not matches(b"a" * 300 + b"b" * 99)


@pytest.mark.parametrize("length", [20, 400], ids=["compiled", "long"])
def test_many_stars_take_no_exponential_time(length: int) -> None:
    """One star more would double the time of a matcher that goes back to every star."""
    matches = glob.matcher(b"a*" * length + b"b")
    started = time.process_time()
    assert not matches(b"a" * 2000)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("pattern", "text"),
    [(b"abc", b"abc"), (b"a\\*c", b"a*c"), (b"", b""), (b"a\\", b"a\\"), (b"a*", None), (b"[a]", None), (b"a?", None)],
)  # fmt: skip
def test_literal(pattern: bytes, text: bytes | None) -> None:
    assert glob.literal(pattern) == text


@pytest.mark.parametrize(
    ("pattern", "prefix"),
    [(b"abc*", b"abc"), (b"a\\[b[c", b"a[b"), (b"*a", b""), (b"ab", b"ab"), (b"a?b", b"a")],
)
def test_literal_prefix(pattern: bytes, prefix: bytes) -> None:
    assert glob.literal_prefix(pattern) == prefix
