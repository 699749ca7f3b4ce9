"""Which requests an open-loop load consists of, and when each is due (core).

It sends nothing. Time is cut into ticks of a millisecond. The requests of a tick are due at its
begin, all of them, and go to one connection after another; a rate that is no multiple of a thousand
gives some ticks one more than others. When they are due does not depend on any answer.

A key is hot with `hot_share`: then it is one of the first `hot_keys`, else any. Values are slices
of one random buffer, so making them costs little, and compress to about a half.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from bench.load import key

TICK_NS: Final = 1_000_000
TICKS_PER_S: Final = 1000
VALUE_SOURCE_BYTES: Final = 1 << 20
FRAGMENT_BYTES: Final = 64

IS_WRITE: Final = True


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for. Shares are from 0 to 1; `rate` is requests a second."""

    rate: int
    seconds: float
    key_count: int
    value_bytes: int
    hot_share: float
    hot_keys: int
    write_share: float
    connection_count: int
    seed: int = 1

    @property
    def tick_count(self) -> int:
        return round(self.seconds * TICKS_PER_S)


class Values:
    """Makes values of one length."""

    def __init__(self, value_bytes: int, rng: random.Random) -> None:
        self._value_bytes = value_bytes
        # Fragments twice: compression finds the second.
        count = (VALUE_SOURCE_BYTES + value_bytes) // (2 * FRAGMENT_BYTES) + 1
        source = b"".join([rng.randbytes(FRAGMENT_BYTES) * 2 for _ in range(count)])
        self._source = source
        self._rng = rng

    def make(self) -> bytes:
        at = int(self._rng.random() * VALUE_SOURCE_BYTES)
        return self._source[at : at + self._value_bytes]


def due_until(tick: int, rate: int) -> int:
    """How many requests are due in the ticks before `tick`."""
    return tick * rate // TICKS_PER_S


def set_template(value_bytes: int) -> bytes:
    """A SET with places for a key of 16 bytes and a value."""
    return b"*3\r\n$3\r\nSET\r\n$16\r\n%%b\r\n$%d\r\n%%b\r\n" % value_bytes


GET_TEMPLATE: Final = b"*2\r\n$3\r\nGET\r\n$16\r\n%b\r\n"


class Requests:
    """Encodes the requests of a load, one after another."""

    def __init__(self, load: Load) -> None:
        rng = random.Random(load.seed)
        self._random: Callable[[], float] = rng.random
        self._load = load
        self._make = Values(load.value_bytes, rng).make
        self._set = set_template(load.value_bytes)

    def next(self) -> tuple[bytes, bool]:
        """One request, and whether it writes."""
        load, chance = self._load, self._random
        is_hot = load.hot_share > 0 and chance() < load.hot_share
        wanted = key(int(chance() * (load.hot_keys if is_hot else load.key_count)))
        if chance() < load.write_share:
            return self._set % (wanted, self._make()), IS_WRITE
        return GET_TEMPLATE % wanted, not IS_WRITE


def loading(key_count: int, value_bytes: int, batch: int) -> Iterator[tuple[bytes, int]]:
    """Yield pipelines of SETs that write every key once, and how many commands each holds."""
    make = Values(value_bytes, random.Random(0)).make
    template = set_template(value_bytes)
    for begin in range(0, key_count, batch):
        numbers = range(begin, min(begin + batch, key_count))
        yield b"".join([template % (key(number), make()) for number in numbers]), len(numbers)


def reading(key_count: int, batch: int) -> Iterator[tuple[bytes, int]]:
    """Yield pipelines of GETs that read the first keys once, and how many commands each holds."""
    for begin in range(0, key_count, batch):
        numbers = range(begin, min(begin + batch, key_count))
        yield b"".join([GET_TEMPLATE % key(number) for number in numbers]), len(numbers)


def highest_rate(holds: Callable[[int], bool], first: int, steps: int) -> tuple[int, list[int]]:
    """Search the highest rate that holds: doubled or halved from `first`, then in between.

    Returns it (0 if none held) and the rates that were tried. `steps` bounds how many are.
    """
    low, high = 0, 0  # The highest that held, the lowest that did not.
    rate = first
    tried: list[int] = []
    while len(tried) < steps and rate > 0:
        tried.append(rate)
        if holds(rate):
            low = rate
        else:
            high = rate
        if not high:
            rate = 2 * low
        elif not low:
            rate = high // 2
        else:
            rate = (low + high) // 2
            if high - low <= max(1, low // 20):
                break
    return low, tried
