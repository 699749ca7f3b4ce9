"""The open-loop generator: sends each request when it is due, whatever the answers do (shell).

It runs in a process of its own, so that the interpreter lock of whoever watches the server does not
delay it. Each millisecond it sends what is due, one piece per connection; between, it reads answers.
A latency runs from the time at which the request was due, not from when it was sent: a server (or a
generator) that stops for a second makes a thousand ticks late, and each of them counts (no coordinated
omission). What has not been answered `DRAIN_S` after the last tick is counted as having taken until then.

How far each tick was sent behind its time is counted too: that is the generator's own fault, and a
part of what it calls latency.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import selectors
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from typing import Final

import hiredis

from bench.connection import Address
from bench.openloop_histogram import WINDOW_TICKS, Counts, Recorder, bound_of
from bench.openloop_schedule import TICK_NS, Load, Requests, due_until

DRAIN_S: Final = 10.0
RECEIVE_BYTES: Final = 1 << 18
# Sent to nobody: a server this far behind does not hold the rate, and memory is bounded.
BACKLOG_BYTES_MAX: Final = 256 << 20
START_WAIT_S: Final = 60.0
START_DELAY_S: Final = 0.05
READY: Final = "ready"


@dataclass(eq=False)
class GeneratorFailed(Exception):
    """The generator's process ended badly, or a connection was closed."""

    what: str

    def __str__(self) -> str:
        return self.what


@dataclass(slots=True)
class Sent:
    """What a generator did and saw. Times are of the monotonic clock."""

    began_ns: int
    windows: list[Counts] = field(default_factory=list)
    reads: Counts = field(default_factory=dict)
    writes: Counts = field(default_factory=dict)
    lags: Counts = field(default_factory=dict)
    sent_count: int = 0
    answered_count: int = 0
    unanswered_count: int = 0
    missed_count: int = 0
    error_count: int = 0
    first_error: str = ""
    gave_up: bool = False
    cpu_s: float = 0.0
    wall_s: float = 0.0


class Line:
    """One connection: what is to be sent, and what is to be answered, in order."""

    def __init__(self, address: Address) -> None:
        self.socket = socket.create_connection(address, timeout=10.0)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.reader = hiredis.Reader()
        self.unsent = bytearray()
        self.due: deque[tuple[int, bool]] = deque()  # Tick and whether it is a write.

    def send(self, data: bytes) -> None:
        """Send, and keep what the kernel does not take."""
        if self.unsent:
            self.unsent += data
            return
        try:
            count = self.socket.send(data)
        except BlockingIOError:
            count = 0
        if count < len(data):
            self.unsent += memoryview(data)[count:]

    def send_rest(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.unsent:
                count = self.socket.send(memoryview(self.unsent)[:RECEIVE_BYTES])
                del self.unsent[:count]


class Generator:
    """Carries out one load. `run` returns what it saw."""

    def __init__(self, address: Address, load: Load) -> None:
        self._load = load
        self._requests = Requests(load)
        self._lines = [Line(address) for _ in range(load.connection_count)]
        self._recorder = Recorder(load.tick_count // WINDOW_TICKS + 1)
        self._selector = selectors.SelectSelector()  # epoll would round up to milliseconds.
        for line in self._lines:
            self._selector.register(line.socket, selectors.EVENT_READ, line)
        self._sent = Sent(began_ns=0)
        self._turn = 0

    def run(self) -> Sent:
        sent, load = self._sent, self._load
        cpu_s = time.process_time()
        sent.began_ns = began_ns = time.monotonic_ns() + int(START_DELAY_S * 1e9)
        for tick in range(load.tick_count):
            self._receive_until(began_ns + tick * TICK_NS)
            lag_us = (time.monotonic_ns() - began_ns - tick * TICK_NS) // 1000
            bound = bound_of(max(0, lag_us))
            sent.lags[bound] = sent.lags.get(bound, 0) + 1
            self._send_tick(tick)
            if sum(len(line.unsent) for line in self._lines) > BACKLOG_BYTES_MAX:
                sent.gave_up = True
                break
        deadline_ns = time.monotonic_ns() + int(DRAIN_S * 1e9)
        while any(line.due for line in self._lines) and time.monotonic_ns() < deadline_ns:
            self._receive_until(time.monotonic_ns() + TICK_NS)
        self._count_unanswered()
        sent.cpu_s = time.process_time() - cpu_s
        sent.wall_s = (time.monotonic_ns() - began_ns) / 1e9
        sent.windows = self._recorder.windows
        for line in self._lines:
            line.socket.close()
        self._selector.close()
        return sent

    def _send_tick(self, tick: int) -> None:
        load, lines, make = self._load, self._lines, self._requests.next
        count = due_until(tick + 1, load.rate) - due_until(tick, load.rate)
        pieces: list[list[bytes]] = [[] for _ in lines]
        for _ in range(count):
            data, is_write = make()
            at = self._turn = (self._turn + 1) % len(lines)
            pieces[at].append(data)
            lines[at].due.append((tick, is_write))
        for line, parts in zip(lines, pieces, strict=True):
            if parts:
                line.send(b"".join(parts))
        self._sent.sent_count += count

    def _receive_until(self, until_ns: int) -> None:
        """Read answers, and send what waits, until it is time for a tick. Looks at the sockets once at least."""
        for line in self._lines:
            if line.unsent:
                line.send_rest()
        while True:
            wait_ns = until_ns - time.monotonic_ns()
            for selected, _ in self._selector.select(max(0.0, wait_ns / 1e9)):
                self._receive(selected.data)
            if time.monotonic_ns() >= until_ns:
                return

    def _receive(self, line: Line) -> None:
        try:
            data = line.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise GeneratorFailed("the server closed a connection")
        now_ns = time.monotonic_ns()
        sent, due = self._sent, line.due
        line.reader.feed(data)
        gets, began_ns = line.reader.gets, sent.began_ns
        counts: dict[tuple[int, bool], int] = {}
        while (reply := gets()) is not False:
            what = due.popleft()
            counts[what] = counts.get(what, 0) + 1
            if reply is None:
                sent.missed_count += 1
            elif reply.__class__ is hiredis.ReplyError:
                sent.error_count += 1
                sent.first_error = sent.first_error or str(reply)
        for (tick, is_write), count in counts.items():
            self._count(tick, is_write, (now_ns - began_ns - tick * TICK_NS) // 1000, count)
            sent.answered_count += count

    def _count(self, tick: int, is_write: bool, latency_us: int, count: int) -> None:
        self._recorder.add(tick, latency_us, count)
        counts = self._sent.writes if is_write else self._sent.reads
        bound = bound_of(latency_us)
        counts[bound] = counts.get(bound, 0) + count

    def _count_unanswered(self) -> None:
        now_ns = time.monotonic_ns()
        for line in self._lines:
            for tick, is_write in line.due:
                late_us = (now_ns - self._sent.began_ns - tick * TICK_NS) // 1000
                self._count(tick, is_write, late_us, 1)
                self._sent.unanswered_count += 1


class GeneratorProcess:
    """A generator in a process of its own, which begins when this is made."""

    def __init__(self, address: Address, load: Load) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._load = load
        self._process = context.Process(target=_generate, args=(address, load, theirs), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(START_WAIT_S):
            self._process.kill()
            raise GeneratorFailed("the generator's process did not start")
        if (answer := self._pipe.recv()) != READY:
            self._process.join()
            raise GeneratorFailed(answer)

    @property
    def is_done(self) -> bool:
        return self._pipe.poll()

    def result(self) -> Sent:
        """Wait for its end. Raises GeneratorFailed."""
        try:
            if not self._pipe.poll(self._load.seconds + DRAIN_S + START_WAIT_S):
                raise GeneratorFailed("the generator did not end in time")
            answer = self._pipe.recv()
        except EOFError as error:
            raise GeneratorFailed("the generator's process ended") from error
        finally:
            self._process.kill()
            self._process.join()
        if isinstance(answer, str):
            raise GeneratorFailed(answer)
        assert isinstance(answer, Sent)
        return answer


def _generate(address: Address, load: Load, pipe: Pipe) -> None:
    """The process."""
    try:
        generator = Generator(address, load)
        pipe.send(READY)
        pipe.send(generator.run())
    except (OSError, GeneratorFailed) as error:
        pipe.send(f"{type(error).__name__}: {error}")
