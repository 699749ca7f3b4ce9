"""Keys, command lines and answers of the load generator."""

import random

import pytest

from bench.load import (
    CLIENT_COUNT,
    LoadFailed,
    LoadResult,
    Lookups,
    Workload,
    benchmark_command,
    hit_rate,
    key,
    load_batches,
    parse_benchmark,
    requests_for,
)

CSV = """\
WARNING: Could not fetch server CONFIG
"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
"SET","555555.56","1.148","0.376","0.943","2.495","2.887","3.015"
"GET","909090.94","0.724","0.304","0.687","1.071","1.247","1.687"
"""


def test_keys_have_twelve_digits() -> None:
    assert key(0) == b"key:000000000000"
    assert key(123_456) == b"key:000000123456"


@pytest.mark.parametrize("key_count", [1, 999, 1000, 1001, 2500])
def test_every_key_is_written_once(key_count: int) -> None:
    batches = list(load_batches(key_count, random.Random(0)))
    words = b"".join(batch for batch, _ in batches).split(b"\r\n")
    # A command is *3 $3 SET $16 key $100 value: seven lines.
    assert words[4::7] == [key(number) for number in range(key_count)]
    assert {len(value) for value in words[6::7]} == {100}
    assert words[:4] == [b"*3", b"$3", b"SET", b"$16"]
    assert sum(count for _, count in batches) == key_count
    assert max(count for _, count in batches) <= 1000


def test_benchmark_command_names_every_choice() -> None:
    line = benchmark_command(("127.0.0.1", 7001), Workload("GET", 16, 5000), 800)
    assert " ".join(line) == (
        "redis-benchmark -h 127.0.0.1 -p 7001 -n 800 -c 50 -P 16 -r 5000 -d 100 -t get --csv"
    )


def test_benchmark_answers_are_read_by_name() -> None:
    assert parse_benchmark(CSV, "SET") == LoadResult(555555.56, 0.943, 2.887)
    assert parse_benchmark(CSV, "GET") == LoadResult(909090.94, 0.687, 1.247)


@pytest.mark.parametrize("text", ["", "Could not connect", CSV.replace('"GET"', '"PING"')])
def test_missing_figures_are_an_error(text: str) -> None:
    with pytest.raises(LoadFailed, match="no figures for GET"):
        parse_benchmark(text, "GET")


@pytest.mark.parametrize(
    ("before", "after", "rate"),
    [
        (Lookups(10, 0), Lookups(110, 0), 1.0),
        (Lookups(10, 5), Lookups(85, 30), 0.75),
        (Lookups(0, 0), Lookups(0, 50), 0.0),
        (Lookups(7, 7), Lookups(7, 7), None),
        (None, Lookups(1, 1), None),
        (Lookups(1, 1), None, None),
    ],
)
def test_hit_rate(before: Lookups | None, after: Lookups | None, rate: float | None) -> None:
    assert hit_rate(before, after) == rate


def test_lookups_are_read_from_info_or_unknown() -> None:
    assert Lookups.from_info({"keyspace_hits": "12", "keyspace_misses": "3"}) == Lookups(12, 3)
    assert Lookups.from_info({"keyspace_hits": "12"}) is None


@pytest.mark.parametrize("pipeline", [1, 16])
def test_requests_fill_the_time_and_all_pipelines(pipeline: int) -> None:
    count = requests_for(2.5, 0.2, 20_000, pipeline)
    assert count % (CLIENT_COUNT * pipeline) == 0
    assert count >= 250_000
    assert count - CLIENT_COUNT * pipeline < 250_000
