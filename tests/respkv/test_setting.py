"""Kinds of settings: what each allows, in each of its spellings."""

from __future__ import annotations

from typing import Any

import pytest

from respkv.setting import (
    Addresses,
    Choice,
    Integer,
    Kind,
    Number,
    Rejected,
    Size,
    Switch,
    Text,
    size_text,
    toml_text,
)

MIB = 1 << 20
LEVEL = Choice(
    ("low", "mid", "high", "top"),
    redis=(("lo", "low"), ("medium", "mid"), ("middle", "mid"), ("hi", "high")),
)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (Integer(1, 9), 1, 1),
        (Integer(1, 9), 9, 9),
        (Size(0, 1 << 50), 5, 5),
        (Size(0, 1 << 50), "5", 5),
        (Size(0, 1 << 50), "5B", 5),
        (Size(0, 1 << 50), "64MiB", 64 * MIB),
        (Size(0, 1 << 50), "64 MiB", 64 * MIB),
        (Size(0, 1 << 50), "1GB", 10**9),
        (Size(0, 1 << 50), "64MB", 64 * 10**6),
        (Size(0, 1 << 50), "3KiB", 3072),
        (Size(0, 1 << 50), "2TiB", 2 << 40),
        (Number(0, 1), 1, 1.0),
        (Number(0, 1), 0.5, 0.5),
        (Switch(), True, True),
        (Choice(("a", "b")), "b", "b"),
        (Text("x", 4), "añb", "añb"),
        (Addresses(), ["127.0.0.1", "::1"], ("127.0.0.1", "::1")),
        (Addresses(), ["localhost", "localhost", "fe80::1%eth0"], ("localhost", "fe80::1%eth0")),
    ],
)
def test_toml_values_are_taken(kind: Kind[Any], value: object, expected: object) -> None:
    checked = kind.check(value)
    assert checked == expected
    assert type(checked) is type(expected)
    assert kind.check(kind.literal(checked)) == expected


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Integer(1, 9), 0),
        (Integer(1, 9), 10),
        (Integer(0, 1), True),
        (Integer(1, 9), 2.0),
        (Integer(1, 9), "2"),
        (Size(10, 100), 9),
        (Size(10, 100), "1KB"),
        (Size(0, 1 << 50), "64mb"),
        (Size(0, 1 << 50), "1.5GiB"),
        (Size(0, 1 << 50), ""),
        (Size(0, 1 << 50), "-5"),
        (Size(0, 1 << 50), "9" * 30),
        (Number(0, 1), 1.01),
        (Number(0, 1), float("nan")),
        (Number(0, 1), True),
        (Number(0, 1), "1"),
        (Switch(), 1),
        (Switch(), "yes"),
        (Choice(("a", "b")), "A"),
        (Choice(("a", "b")), ["a"]),
        (Text("x", 4), "añañ"),
        (Text("x", 4), "a\0"),
        (Text("x", 4), "\udcff"),
        (Text("x", 4), 3),
        (Text("x", 4, "[0-7]{3}"), "700\n"),
        (Addresses(), []),
        (Addresses(), "127.0.0.1"),
        (Addresses(), ["127.0.0.1", 1]),
        (Addresses(), ["300.0.0.1"]),
        (Addresses(), ["::g"]),
        (Addresses(), ["a b"]),
        (Addresses(), [""]),
        (Addresses(count_max=2), ["a", "b", "c"]),
    ],
)
def test_other_toml_values_are_rejected_with_what_is_allowed(
    kind: Kind[Any], value: object
) -> None:
    with pytest.raises(Rejected) as rejected:
        kind.check(value)
    assert str(rejected.value) == f"must be {kind.allowed()}"


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (Integer(-1, 9), "-1", -1),
        (Size(0, 1 << 50), "64MiB", 64 * MIB),
        (Size(0, 1 << 50), "1000", 1000),
        (Number(0, 1), "0.25", 0.25),
        (Switch(), "yes", True),
        (Switch(), "False", False),
        (Choice(("a", "b")), "a", "a"),
        (Text("x", 9), "", ""),
        (Addresses(), "::1,127.0.0.1 localhost", ("::1", "127.0.0.1", "localhost")),
    ],
)
def test_words_are_parsed_and_shown_so_that_they_parse_again(
    kind: Kind[Any], text: str, expected: object
) -> None:
    assert kind.parse(text) == expected
    assert kind.parse(kind.show(expected)) == expected


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Integer(1, 9), "x"),
        (Integer(1, 9), "10"),
        (Integer(1, 9), " 1"),
        (Integer(1, 9), "٣"),
        (Integer(1, 9), "1" * 5000),
        (Size(0, 9), "MiB"),
        (Number(0, 1), "much"),
        (Number(0, 1), "inf"),
        (Switch(), "maybe"),
        (Addresses(), ""),
    ],
)
def test_other_words_are_rejected_with_what_is_allowed(kind: Kind[Any], text: str) -> None:
    with pytest.raises(Rejected) as rejected:
        kind.parse(text)
    assert str(rejected.value) == f"must be {kind.allowed()}"


@pytest.mark.parametrize(
    ("kind", "text", "expected", "shown"),
    [
        (Integer(0, 9), "7", 7, "7"),
        (Size(0, 1 << 50), "1k", 1000, "1000"),
        (Size(0, 1 << 50), "1Kb", 1024, "1024"),
        (Size(0, 1 << 50), "2GB", 2 << 30, str(2 << 30)),
        (Size(0, 1 << 50), "2g", 2 * 10**9, str(2 * 10**9)),
        (Size(0, 1 << 50), "7b", 7, "7"),
        (Switch(), "YES", True, "yes"),
        (Switch(), "no", False, "no"),
        (LEVEL, "LO", "low", "lo"),
        (LEVEL, "medium", "mid", "middle"),
        (Text("x", 9), "a", "a", "a"),
    ],
)
def test_the_words_of_redis(kind: Kind[Any], text: str, expected: object, shown: str) -> None:
    assert kind.from_redis(text) == expected
    assert kind.to_redis(expected) == shown


def test_what_redis_has_no_word_for_is_shown_as_its_last_word() -> None:
    assert LEVEL.to_redis("top") == "hi"
    assert Text("a mode", 4, redis_empty="0").to_redis("") == "0"


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0"), (1, "1"), (1023, "1023"), (1024, "1KiB"), (1 << 30, "1GiB"), (3 << 19, "1536KiB")],
)
def test_sizes_are_shown_in_the_largest_unit_that_divides_them(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (5, "5"),
        ('a"b', '"a\\"b"'),
        ("ñ", '"ñ"'),
        ("a\nb\x1b", '"a\\nb\\u001b"'),
        (("a", 1), '["a", 1]'),
        ({"a": 1}, "a table"),
    ],
)
def test_values_in_messages_stay_on_one_line(value: object, text: str) -> None:
    assert toml_text(value) == text


def test_long_values_in_messages_are_cut() -> None:
    assert len(toml_text("x" * 1000)) == 100
    assert toml_text(["x" * 1000]).endswith("...")
