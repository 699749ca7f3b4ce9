"""Time per MiB of large values, and that a changed one is noticed."""

import hashlib
import random

import pytest

from bench import large_value
from bench.connection import Connection
from bench.large_value import MIB, Exchange, ValueChanged, growth, summarize
from tests.bench.scripted_server import scripted


def test_summary_is_the_median_per_mebibyte_by_size() -> None:
    exchanges = [Exchange(8, 0.8, 0.08), Exchange(1, 0.1, 0.2), Exchange(1, 0.3, 0.1)]
    exchanges.append(Exchange(1, 0.2, 0.3))
    small, large = summarize(exchanges)
    assert (small.size_mib, small.count, large.size_mib, large.count) == (1, 3, 8, 1)
    assert small.in_ms_per_mib == pytest.approx(200)
    assert small.out_ms_per_mib == pytest.approx(200)
    assert large.in_ms_per_mib == pytest.approx(100)
    assert large.out_ms_per_mib == pytest.approx(10)


def test_growth_compares_the_largest_with_the_smallest() -> None:
    results = summarize([Exchange(64, 64.0, 640.0), Exchange(8, 9.0, 9.0), Exchange(1, 2.0, 4.0)])
    assert growth(results) == (0.5, 2.5)


def value_of_seed_zero() -> bytes:
    return random.Random(0).randbytes(MIB)


def test_a_value_that_comes_back_whole_is_timed() -> None:
    value = value_of_seed_zero()
    answers = [b"+OK\r\n", b"$%d\r\n" % MIB, value, b"\r\n"]
    exchange = exchanged(answers)
    assert exchange.size_mib == 1
    assert exchange.in_s > 0
    assert exchange.out_s > 0


def test_a_value_with_one_changed_byte_is_noticed() -> None:
    value = bytearray(value_of_seed_zero())
    value[MIB // 2] ^= 1
    assert hashlib.sha256(value).digest() != hashlib.sha256(value_of_seed_zero()).digest()
    with pytest.raises(ValueChanged, match="hash"):
        exchanged([b"+OK\r\n", b"$%d\r\n" % MIB, bytes(value), b"\r\n"])


@pytest.mark.parametrize(
    ("answers", "words"),
    [([b"+NO\r\n"], "SET answered"), ([b"+OK\r\n", b"$-1\r\n"], "GET answered")],
)
def test_other_answers_are_noticed(answers: list[bytes], words: str) -> None:
    with pytest.raises(ValueChanged, match=words):
        exchanged(answers)


def exchanged(answers: list[bytes]) -> Exchange:
    """Exchange one value of 1 MiB with a server that gives these answers."""
    buffer = bytearray(MIB + 2)
    with (
        scripted(answers, closes=False, drains=True) as address,
        Connection(address) as connection,
    ):
        return large_value._exchange(connection, 1, random.Random(0), buffer)
