"""The ticker: what is due because time has passed, and not because a socket is ready.

It decides nothing itself: it knows how often each part wants to be asked, and asks it, then ends a tick.

    ten times a second    waits and pauses that are over, gossip and other clocks of the peers, samples for INFO's rates
    twenty times          while answers of other nodes are waited for
    expiry.interval_ms    rows that have expired, within a budget
    once a second         clients that are idle or do not read, write stalls, free disk
    when it is due        the first deadline of a waiting client, the end of a delay of writes

Shell: it owns the task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from respkv.admission import Admission

if TYPE_CHECKING:
    from respkv.node import Node

INTERVAL_S: Final = 0.1
PEERS_INTERVAL_S: Final = 0.05  # While answers of other nodes are waited for.
SLACK_S: Final = 0.001  # A tick that comes a little early counts.


class Ticker:
    """One per node."""

    def __init__(self, node: Node, admission: Admission) -> None:
        self._node = node
        self._admission = admission
        self._wake = trio.Event()
        self._expired_s = 0.0  # When the last round of expiry was.
        self.expired_total = 0

    def wake(self) -> None:
        """A wait or a pause has got a new end: look at it."""
        self._wake.set()

    async def run(self) -> None:
        """Tick until cancelled."""
        node, admission = self._node, self._admission
        runner, throttle = node.runner, admission.throttle
        seconds = 0.0
        while True:
            interval_s = min(INTERVAL_S, node.config.expiry.interval_ms / 1000)
            if node.peers is not None and node.peers.is_waiting:
                interval_s = min(interval_s, PEERS_INTERVAL_S)
            next_s = min(runner.next_deadline_s, throttle.wakes_at_s())
            until_s = next_s - node.monotonic_s()
            sleep_s = max(0.0, min(interval_s, until_s))
            due_ns = node.clock_ns() + int(sleep_s * 1e9)
            with trio.move_on_after(sleep_s):
                await self._wake.wait()
            node.note_pause(due_ns)  # It is late by what stood in its way; early if it was woken.
            self._wake = trio.Event()
            now_ms = node.begin_tick()
            runner.expire_waits(node.now_s, now_ms)
            if node.now_s >= throttle.wakes_at_s():
                admission.check_stall()
            if node.now_s - self._expired_s >= node.config.expiry.interval_ms / 1000 - SLACK_S:
                self._expired_s = node.now_s
                self.expire(now_ms)
            if node.peers is not None:
                node.peers.tick(node.now_s)
            self.sample()
            admission.retry(now_ms)
            if node.now_s - seconds >= 1:
                seconds = node.now_s
                node.front.check_clients()
                admission.check_stall()
                admission.check_disk()
            node.front.tick([])

    def expire(self, now_ms: int) -> None:
        """Remove what has expired, and give back memory, within the budget."""
        node = self._node
        clock_ns = node.clock_ns
        started_ns = clock_ns()
        until_ns = started_ns + node.config.expiry.budget_ms * 1_000_000
        self.expired_total += node.replica.expire(now_ms, lambda: clock_ns() >= until_ns)
        node.store.free(lambda: clock_ns() >= until_ns)
        node.tracking.expire(now_ms)
        node.latency.add("expire-cycle", clock_ns() - started_ns)

    def sample(self) -> None:
        """For the rates in INFO."""
        node = self._node
        front, stats = node.front, node.stats
        if stats.is_due(node.now_s):
            stats.sample(
                node.now_s, node.runner.commands_total, front.bytes_in, front.output.bytes_out
            )
            stats.see_memory(node.used_bytes)
