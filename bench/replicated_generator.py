"""The load generator of `bench.replicated`: the same for every system (shell).

It runs in processes of its own, which stay for the whole benchmark. Two kinds of load:

- *closed loop*: each connection sends a pipeline, and the next one when the last answer has come. It
  ends after some seconds; what is under way then is waited for.
- *fixed rate*: pipelines are due at set times (ticks of a millisecond), whatever the answers do, and
  go to one connection after another. Latency counts from when a pipeline was due, so a server that
  stops makes all that was due meanwhile late.

The latency of an operation ends with the answer that completes it. Every answer is checked. What is
not answered `DRAIN_S` after the end is counted as unanswered.

It should not be the bottleneck, so it has raw sockets, one epoll set and hiredis: some 14 us of CPU time
for an operation at pipeline 1, more than half of it in the kernel, and 1.5 us at pipeline 16. How much of
a core it used is in its outcome.
"""

from __future__ import annotations

import multiprocessing
import select
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Final, Self

import hiredis

from bench.connection import Address
from bench.openloop_generator import BACKLOG_BYTES_MAX, GeneratorFailed, Line
from bench.openloop_histogram import bound_of
from bench.openloop_schedule import TICK_NS, TICKS_PER_S, due_until
from bench.replicated_load import (
    OK,
    VALUE,
    Job,
    Outcome,
    Pipelines,
    divided,
    pattern,
    together,
)

DRAIN_S: Final = 10.0
START_WAIT_S: Final = 60.0
RECEIVE_BYTES: Final = 1 << 16
# How long to wait for sockets at most, before what the kernel did not take is sent again.
TURN_S: Final = 0.01


class Client(Line):
    """One connection. Its pipelines are answered in order; `position` is where in the pattern it stands."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self.address = address
        self.position = 0
        self.begun_ns: deque[int] = deque()  # When each unanswered pipeline was sent or due.


class Generator:
    """Carries out one job in this process. `run` returns what it saw."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._pattern = pattern(job)
        self._pipelines = Pipelines(job)
        addresses = self._pipelines.addresses(job.connection_count)
        self._clients = [Client(address) for address in addresses]
        self._by_descriptor = {each.socket.fileno(): each for each in self._clients}
        self._epoll = select.epoll()
        for descriptor in self._by_descriptor:
            self._epoll.register(descriptor, select.EPOLLIN)
        self._outcome = Outcome()
        self._waiting_count = 0  # Pipelines that are not answered.

    def run(self) -> Outcome:
        """Send the load and wait for the answers. Raises GeneratorFailed and OSError."""
        outcome = self._outcome
        cpu_s, began_ns = time.process_time(), time.monotonic_ns()
        try:
            if self._job.rate is None:
                self._loop(began_ns + int(self._job.seconds * 1e9))
            else:
                self._pace(began_ns)
            self._count_unanswered()
        finally:
            for client in self._clients:
                client.socket.close()
            self._epoll.close()
        outcome.cpu_s = time.process_time() - cpu_s
        outcome.wall_s = (time.monotonic_ns() - began_ns) / 1e9
        return outcome

    def _loop(self, end_ns: int) -> None:
        for client in self._clients:
            self._send(client, time.monotonic_ns())
        deadline_ns = end_ns + int(DRAIN_S * 1e9)
        while self._waiting_count and (now_ns := time.monotonic_ns()) < deadline_ns:
            for client in self._ready(TURN_S):
                self._receive(client)
                if not client.begun_ns and now_ns < end_ns:
                    self._send(client, time.monotonic_ns())

    def _pace(self, began_ns: int) -> None:
        rate, clients, turn = self._job.pipelines_per_s, self._clients, 0
        for tick in range(round(self._job.seconds * TICKS_PER_S)):
            due_ns = began_ns + tick * TICK_NS
            self._receive_until(due_ns)
            bound = bound_of(max(0, time.monotonic_ns() - due_ns) // 1000)
            self._outcome.lags[bound] = self._outcome.lags.get(bound, 0) + 1
            for _ in range(due_until(tick, rate), due_until(tick + 1, rate)):
                self._send(clients[turn], due_ns)
                turn = (turn + 1) % len(clients)
            if sum(len(client.unsent) for client in clients) > BACKLOG_BYTES_MAX:
                self._outcome.gave_up = True
                break
        deadline_ns = time.monotonic_ns() + int(DRAIN_S * 1e9)
        while self._waiting_count and time.monotonic_ns() < deadline_ns:
            self._receive_until(time.monotonic_ns() + TICK_NS)

    def _receive_until(self, until_ns: int) -> None:
        """Read answers until it is time for a tick; look at the sockets once at least."""
        while True:
            wait_s = max(0.0, (until_ns - time.monotonic_ns()) / 1e9)
            # epoll rounds its timeout up to milliseconds, select does not.
            select.select([self._epoll], [], [], min(wait_s, TURN_S))
            for client in self._ready(0):
                self._receive(client)
            if time.monotonic_ns() >= until_ns:
                return

    def _ready(self, wait_s: float) -> Iterator[Client]:
        for descriptor, _ in self._epoll.poll(wait_s):
            yield self._by_descriptor[descriptor]
        for client in self._clients:
            if client.unsent:
                client.send_rest()

    def _send(self, client: Client, begun_ns: int) -> None:
        client.begun_ns.append(begun_ns)
        self._waiting_count += 1
        client.send(self._pipelines.next(client.address))

    def _receive(self, client: Client) -> None:
        """Read what has come, check it and count it. Hot: 0.3 us for each answer."""
        try:
            data = client.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise GeneratorFailed(f"port {client.address[1]} closed a connection")
        now_ns = time.monotonic_ns()
        client.reader.feed(data)
        gets, answers, value_bytes = client.reader.gets, self._pattern, self._job.value_bytes
        at, done, begun, outcome = client.position, 0, client.begun_ns, self._outcome
        while (reply := gets()) is not False:
            if not begun:
                raise GeneratorFailed(f"an answer that nobody asked for: {reply!r:.200}")
            kind, complete = answers[at]
            if kind == OK:
                if reply != b"OK":
                    outcome.add_error(f"SET: {reply!s:.200}")
            elif kind == VALUE:
                if reply.__class__ is bytes and len(reply) == value_bytes:
                    outcome.hit_count += 1
                elif reply is None:
                    outcome.missed_count += 1
                else:
                    outcome.add_error(f"GET: {reply!s:.200}")
            elif reply.__class__ is not int or not reply:
                outcome.add_error(f"WAIT: {reply!s:.200}")
            done += complete
            at += 1
            if at == len(answers):
                self._count(begun.popleft(), now_ns, done)
                self._waiting_count -= 1
                at = done = 0
        client.position = at
        if done:
            self._count(begun[0], now_ns, done)

    def _count(self, begun_ns: int, now_ns: int, count: int) -> None:
        bound = bound_of((now_ns - begun_ns) // 1000)
        latencies = self._outcome.latencies
        latencies[bound] = latencies.get(bound, 0) + count
        self._outcome.answered_count += count

    def _count_unanswered(self) -> None:
        for client in self._clients:
            if client.begun_ns:
                done = sum(count for _, count in self._pattern[: client.position])
                asked = len(client.begun_ns) * self._job.pipeline
                self._outcome.unanswered_count += asked - done


class Generators:
    """Processes that generate load together, for the length of a `with` block."""

    def __init__(self, count: int) -> None:
        self._count = count
        # A fork would copy what this process has; spawned ones are as if started by hand.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(count, mp_context=context)

    def __enter__(self) -> Self:
        # They are started now, so that no run pays for that.
        self._pool.submit(time.monotonic).result(START_WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, job: Job) -> Outcome:
        """Carry out a job. Raises GeneratorFailed and OSError."""
        parts = [self._pool.submit(generate, each) for each in divided(job, self._count)]
        try:
            return together([each.result(job.seconds + DRAIN_S + START_WAIT_S) for each in parts])
        except (BrokenProcessPool, TimeoutError) as error:
            raise GeneratorFailed(f"{type(error).__name__}: {error}") from error


def generate(job: Job) -> Outcome:
    """What a generator's process does."""
    try:
        return Generator(job).run()
    except hiredis.ProtocolError as error:
        raise GeneratorFailed(f"not an answer: {error}") from error
