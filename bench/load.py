"""The load: keys as redis-benchmark makes them, its command line, and its answer.

It does not decide what to measure (that is `bench.serving`). Keys are `key:` and twelve digits,
which is what `redis-benchmark -r` puts in place of its random number, so keys that are loaded
here are the ones it reads.
"""

from __future__ import annotations

import csv
import math
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from bench.connection import Address, Connection, encode_command

CLIENT_COUNT = 50
VALUE_BYTES = 100
LOAD_BATCH = 1000


@dataclass(eq=False)
class LoadFailed(Exception):
    """redis-benchmark, or the loading of keys, did not end well. The text says how."""

    what: str

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of load: what a cell of the table stands for."""

    command: str
    pipeline: int
    key_count: int

    def __str__(self) -> str:
        return f"{self.command} at pipeline {self.pipeline}"


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What redis-benchmark saw from its side."""

    throughput: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Lookups:
    """How many keys a server found and missed so far (`keyspace_hits`, `keyspace_misses`)."""

    hits: int
    misses: int

    @classmethod
    def from_info(cls, stats: dict[str, str]) -> Lookups | None:
        """Read INFO stats; None when the server does not count."""
        if "keyspace_hits" not in stats or "keyspace_misses" not in stats:
            return None
        return cls(int(stats["keyspace_hits"]), int(stats["keyspace_misses"]))


def hit_rate(before: Lookups | None, after: Lookups | None) -> float | None:
    """Return the share of lookups that found a key between two readings; None without lookups."""
    if before is None or after is None:
        return None
    hits, misses = after.hits - before.hits, after.misses - before.misses
    return hits / (hits + misses) if hits + misses > 0 else None


def key(number: int) -> bytes:
    """Return the key that redis-benchmark makes of a random number."""
    return b"key:%012d" % number


def load_batches(key_count: int, rng: random.Random) -> Iterator[tuple[bytes, int]]:
    """Yield pipelines of SETs that write every key once, and how many commands each holds."""
    for start in range(0, key_count, LOAD_BATCH):
        numbers = range(start, min(start + LOAD_BATCH, key_count))
        commands = [
            encode_command(b"SET", key(number), rng.randbytes(VALUE_BYTES // 2).hex().encode())
            for number in numbers
        ]
        yield b"".join(commands), len(numbers)


def load_keys(address: Address, key_count: int) -> None:
    """Write all keys over one connection."""
    with Connection(address) as connection:
        for batch, count in load_batches(key_count, random.Random(0)):
            connection.send(batch)
            expected = b"+OK\r\n" * count
            answered = bytes(connection.read_exactly(len(expected)))
            if answered != expected:
                raise LoadFailed(f"a SET was answered with {answered[:200]!r}")


def benchmark_command(address: Address, workload: Workload, request_count: int) -> list[str]:
    """Return the redis-benchmark call of one run."""
    host, port = address
    options = {
        "-h": host,
        "-p": port,
        "-n": request_count,
        "-c": CLIENT_COUNT,
        "-P": workload.pipeline,
        "-r": workload.key_count,
        "-d": VALUE_BYTES,
        "-t": workload.command.lower(),
    }
    words = [str(word) for pair in options.items() for word in pair]
    return ["redis-benchmark", *words, "--csv"]


def parse_benchmark(text: str, command: str) -> LoadResult:
    """Read what `redis-benchmark --csv` wrote about one command."""
    # Warnings may precede the table on the same stream.
    lines = [line for line in text.splitlines() if line.startswith('"')]
    for row in csv.DictReader(lines):
        if row["test"] == command:
            return LoadResult(
                throughput=float(row["rps"]),
                p50_ms=float(row["p50_latency_ms"]),
                p99_ms=float(row["p99_latency_ms"]),
            )
    raise LoadFailed(f"redis-benchmark gave no figures for {command}: {text[:500]!r}")


def run_benchmark(address: Address, workload: Workload, request_count: int) -> LoadResult:
    """Send the load and wait for its end."""
    line = benchmark_command(address, workload, request_count)
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LoadFailed(f"{' '.join(line)} failed: {(done.stdout + done.stderr)[-500:]}")
    return parse_benchmark(done.stdout, workload.command)


def requests_for(cpu_wanted_s: float, cpu_used_s: float, request_count: int, pipeline: int) -> int:
    """Return how many requests use `cpu_wanted_s`, when `request_count` used `cpu_used_s`.

    Rounded up to full pipelines of every client, so that none sends less than the others.
    """
    per_request_s = cpu_used_s / request_count
    step = CLIENT_COUNT * pipeline
    return max(1, math.ceil(cpu_wanted_s / per_request_s / step)) * step
