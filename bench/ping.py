"""A client that only PINGs, in a process of its own, and what it measured.

It has its own process so that the interpreter lock of whoever makes the load does not show in its
figures. It sends one PING at a time with a pause between, until it has sent enough and is told to
stop.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe

from bench.connection import Address, Connection, ConnectionEnded, ErrorAnswered

PAUSE_S = 0.001
STOP_WAIT_S = 60.0


@dataclass(eq=False)
class PingFailed(Exception):
    """A PING was not answered: the server is gone, or refused it."""

    what: str

    def __str__(self) -> str:
        return f"PING failed: {self.what}"


@dataclass(frozen=True, slots=True)
class Latency:
    """How long replies took."""

    count: int
    p50_ms: float
    p99_ms: float
    most_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        return cls(
            count=len(seconds),
            p50_ms=percentile(seconds, 0.50) * 1e3,
            p99_ms=percentile(seconds, 0.99) * 1e3,
            most_ms=max(seconds) * 1e3,
        )


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that is not below `share` of all (the nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Pinger:
    """PINGs from when it is made until `stop`, and at least `count_min` times."""

    def __init__(self, address: Address, count_min: int) -> None:
        # A fork would copy the threads' locks of whoever makes the load.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_ping, args=(address, count_min, theirs), daemon=True
        )
        self._process.start()
        theirs.close()
        if not self._pipe.poll(STOP_WAIT_S):
            raise PingFailed("its process did not start")
        self._pipe.recv()  # It is connected: what comes next is "during".

    def stop(self) -> Latency:
        """Let it finish, and return what it measured; `PingFailed` when a PING was not answered."""
        self._pipe.send("stop")
        if not self._pipe.poll(STOP_WAIT_S):
            self._process.kill()
            raise PingFailed("no answer")
        answer = self._pipe.recv()
        self._process.join()
        if isinstance(answer, str):
            raise PingFailed(answer)
        return Latency.of(answer)


def _ping(address: Address, count_min: int, pipe: Pipe) -> None:
    """The process: send the list of latencies in seconds, or the text of what went wrong."""
    latencies: list[float] = []
    try:
        with Connection(address) as connection:
            connection.command(b"PING")
            pipe.send("connected")
            while len(latencies) < count_min or not pipe.poll():
                start = time.perf_counter()
                connection.command(b"PING")
                latencies.append(time.perf_counter() - start)
                time.sleep(PAUSE_S)
    except (OSError, ConnectionEnded, ErrorAnswered) as error:
        pipe.send(f"{type(error).__name__}: {error} after {len(latencies)} answers")
    else:
        pipe.send(latencies)
