"""Large values in and out: whole, and in a time that grows with their size and no faster.

A server that copies what it has received each time more comes is quadratic, which shows as time
per MiB that grows. Sizes take turns, so that a slow moment hits all of them; each value is new,
random and checked by its hash, outside of the time that is measured.
"""

from __future__ import annotations

import hashlib
import random
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

from bench.connection import Address, Connection

MIB = 2**20
SIZES_MIB = (1, 8, 64)
# Small ones vary more, so there are more of them.
TURNS = 5
REPEATS: Mapping[int, int] = {1: 10, 8: 2, 64: 1}


@dataclass(eq=False)
class ValueChanged(Exception):
    """A value came back other than it went in."""

    size_mib: int
    what: str

    def __str__(self) -> str:
        return f"a value of {self.size_mib} MiB: {self.what}"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One value, written and read."""

    size_mib: int
    in_s: float
    out_s: float


@dataclass(frozen=True, slots=True)
class SizeResult:
    """Median time per MiB of all values of one size, all of which came back whole."""

    size_mib: int
    count: int
    in_ms_per_mib: float
    out_ms_per_mib: float


def summarize(exchanges: list[Exchange]) -> list[SizeResult]:
    """Return one result for each size, smallest first."""
    results = []
    for size in sorted({each.size_mib for each in exchanges}):
        group = [each for each in exchanges if each.size_mib == size]
        results.append(
            SizeResult(
                size_mib=size,
                count=len(group),
                in_ms_per_mib=statistics.median(each.in_s for each in group) * 1e3 / size,
                out_ms_per_mib=statistics.median(each.out_s for each in group) * 1e3 / size,
            )
        )
    return results


def growth(results: list[SizeResult]) -> tuple[float, float]:
    """Return time per MiB of the largest size over that of the smallest, in and out."""
    least, most = results[0], results[-1]
    return (
        most.in_ms_per_mib / least.in_ms_per_mib,
        most.out_ms_per_mib / least.out_ms_per_mib,
    )


def exchange_values(address: Address) -> list[SizeResult]:
    """Write and read values of all sizes; `ValueChanged` when one does not come back as it was."""
    rng = random.Random(0)
    buffers = {size: bytearray(size * MIB + len(b"\r\n")) for size in SIZES_MIB}
    exchanges = []
    with Connection(address) as connection:
        for size in SIZES_MIB:
            _exchange(connection, size, rng, buffers[size])  # To warm up, at both ends.
        for _ in range(TURNS):
            for size in SIZES_MIB:
                for _ in range(REPEATS[size]):
                    exchanges.append(_exchange(connection, size, rng, buffers[size]))
    return summarize(exchanges)


def _exchange(
    connection: Connection, size_mib: int, rng: random.Random, buffer: bytearray
) -> Exchange:
    value = rng.randbytes(size_mib * MIB)
    name = b"value:%d" % size_mib
    head = b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(name), name, len(value))
    request = b"".join((head, value, b"\r\n"))
    start = time.perf_counter()
    connection.send(request)
    answer = connection.read_reply()
    written = time.perf_counter()
    if answer != b"OK":
        raise ValueChanged(size_mib, f"SET answered {answer!r}")

    asked = time.perf_counter()
    connection.send(b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name))
    length = connection.read_line()
    if length != b"$%d" % len(value):
        raise ValueChanged(size_mib, f"GET answered {length[:80]!r}")
    with memoryview(buffer) as view:
        connection.read_into(view)
        read = time.perf_counter()
        if hashlib.sha256(view[: len(value)]).digest() != hashlib.sha256(value).digest():
            raise ValueChanged(size_mib, "its hash is not what was written")
    return Exchange(size_mib, in_s=written - start, out_s=read - asked)
