"""Which policy a key has, against the obvious way: all that match, and the longest of them."""

from __future__ import annotations

import random
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from respkv.consistency import Scope
from respkv.glob import matcher
from respkv.policy import Policy, read
from respkv.policy_match import Policies, length_of

SCOPE = Scope(3)


def naive(policies: list[Policy], key: bytes) -> Policy | None:
    """The longest match, prefixes before patterns, then the first in the file."""
    found: list[tuple[int, bool, int, Policy]] = []
    for at, policy in enumerate(policies):
        if policy.prefix:
            is_match = key[: len(policy.prefix.encode())] == policy.prefix.encode()
        else:
            is_match = bool(matcher(policy.pattern.encode())(key))
        if is_match:
            found.append((length_of(policy), bool(policy.prefix), -at, policy))
    return max(found, key=lambda each: each[:3])[3] if found else None


def chosen(policies: list[Policy], key: bytes) -> Policy | None:
    rule = Policies(policies, SCOPE).find(key)
    return rule.policy if rule is not None else None


@pytest.mark.parametrize(
    ("policy", "length"),
    [
        (Policy(prefix="cart:"), 5),
        (Policy(prefix="\u00fc"), 2),
        (Policy(pattern="session:*:tmp"), 12),
        (Policy(pattern="user:?[ab]*"), 5),
        (Policy(pattern="a\\*b"), 3),
        (Policy(pattern="[x]y"), 2),
        (Policy(pattern="*"), 0),
    ],
)
def test_length(policy: Policy, length: int) -> None:
    assert length_of(policy) == length


@pytest.mark.parametrize(
    ("key", "matched"),
    [
        (b"cart:1", "cart:"),
        (b"cart:", "cart:"),
        (b"cart", None),
        (b"cart:vip:1", "cart:vip:"),
        (b"session:1", "session:"),
        (b"session:1:tmp", "session:*:tmp"),
        (b"session:1:tmp:", "session:"),
        (b"1:tmp", "*:tmp"),
        (b"cart:1:tmp", "cart:"),
        (b"", None),
        (b"\xff\x00", None),
    ],
)
def test_the_longest_counts(key: bytes, matched: str | None) -> None:
    policies = [
        Policy(pattern="*:tmp"),
        Policy(prefix="cart:"),
        Policy(prefix="cart:vip:"),
        Policy(prefix="session:"),
        Policy(pattern="session:*:tmp"),
    ]
    found = chosen(policies, key)
    assert (found.matched if found else None) == matched


def test_of_equally_long_ones_a_prefix_counts_and_then_the_first() -> None:
    prefix, first, second = Policy(prefix="ab"), Policy(pattern="ab*"), Policy(pattern="a*b")
    assert chosen([second, first, prefix], b"abb") is prefix
    assert chosen([second, first], b"abb") is second
    assert chosen([first, second], b"abb") is first


def test_a_pattern_for_all_is_for_the_empty_key_too() -> None:
    everything = Policy(pattern="*")
    assert chosen([everything], b"") is everything
    assert chosen([Policy(pattern="?*")], b"") is None


def test_as_the_obvious_way_finds_it() -> None:
    rng = random.Random(7)
    letters = "ab:"
    met: Counter[str] = Counter()
    for _ in range(300):
        texts = {
            "".join(rng.choices("ab:*?", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 8))
        }
        policies = [
            Policy(pattern=text)
            if set(text) & set("*?") or rng.random() < 0.2
            else Policy(prefix=text)
            for text in sorted(texts, key=lambda _: rng.random())
        ]
        found = Policies(policies, SCOPE)
        for _ in range(100):
            key = "".join(rng.choices(letters, k=rng.randint(0, 7))).encode()
            rule = found.find(key)
            expected = naive(policies, key)
            assert (rule.policy if rule else None) is expected, (policies, key)
            met["none" if expected is None else "prefix" if expected.prefix else "pattern"] += 1
    assert min(met.values()) > 1000, met


def test_runs_of_keys_without_a_policy() -> None:
    policies = Policies([Policy(prefix="a")], SCOPE)
    commands = [[b"SET", key, b"v"] for key in (b"x", b"y", b"a1", b"z", b"b")]
    assert [policies.plain_count(commands, start) for start in range(5)] == [2, 1, 0, 2, 1]


def test_the_least_and_the_greatest() -> None:
    policies = Policies([Policy(prefix="a", write=1), Policy(prefix="b", read="ALL")], SCOPE)
    assert policies.least_w(2) == 1
    assert policies.greatest(2, 2) == (3, 2)
    assert Policies([Policy(prefix="a")], SCOPE).least_w(2) == 2


def test_keys_of_the_example() -> None:
    tables = tomllib.loads(Path("conf/policies.toml").read_text())["policy"]
    found = Policies(read("conf", tables), SCOPE)
    numbers = {
        key: (rule.r, rule.w)
        for key in (b"cart:1", b"session:1", b"session:1:tmp")
        if (rule := found.find(key))
    }
    assert numbers == {b"cart:1": (2, 3), b"session:1": (1, 1), b"session:1:tmp": (1, 1)}
