"""What hostile clients cost everybody else: memory, latency, and Redis' answers or others (shell).

It starts the server itself and asserts nothing: figures stand beside their aims.

    python -m bench.hostile [--server respkv] [--copies 4] [--rounds 3] [--json FILE]

First, some sessions of each kind in `bench.hostile_session` run at once, several times over, each
in a thread. Meanwhile the server's resident memory is watched, and a process of its own PINGs; it
did so before as well. Memory in the kernel's socket buffers is not resident memory of the server
and does not count. Then, on a server that nobody has bothered, values of 1, 8 and 64 MiB go in
and out.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench import large_value, machine
from bench.connection import Address, Connection, ConnectionEnded, ErrorAnswered
from bench.hostile_session import (
    BIG_KEY,
    MIB,
    PATIENCE_S,
    Hostile,
    Outcome,
    hostile_sessions,
    read_nothing,
    run_session,
    slow_session,
)
from bench.large_value import SizeResult, ValueChanged
from bench.ping import Latency, Pinger, PingFailed
from bench.process import Pid, peak_bytes, resident_bytes
from bench.report import columns, facts_text, to_json, verdict
from bench.server import Server, ServerNotReady, failure_text, running

PING_COUNT = 1000
GROWTH_AIM_BYTES = 64 * MIB
LARGE_RATIO_AIM = 2.0
SAMPLE_S = 0.01
# Redis has no limit by default; this is respkv's own default.
REDIS_OUTPUT_LIMIT = ("--client-output-buffer-limit", "normal", "64mb", "0", "0")

_FAILURES = (ServerNotReady, PingFailed, ValueChanged, ConnectionEnded, ErrorAnswered, OSError)


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of the server and its children."""

    before_bytes: int
    peak_bytes: int
    after_bytes: int

    @property
    def growth_bytes(self) -> int:
        return self.peak_bytes - self.before_bytes


@dataclass(frozen=True, slots=True)
class Answers:
    """What all sessions of one kind got, and how often."""

    name: str
    outcomes: dict[str, int]
    unexpected: dict[str, int]


@dataclass(frozen=True, slots=True)
class AttackResult:
    """What the hostile sessions got, and what the others noticed."""

    answers: list[Answers]
    memory: Memory
    ping_before: Latency
    ping_during: Latency


class MemoryWatch:
    """Reads a server's resident memory again and again between `__init__` and `stop`."""

    def __init__(self, pid: Pid) -> None:
        self._pid = pid
        self._stopped = threading.Event()
        self._before = resident_bytes(pid)
        self._kernel_peak_before = peak_bytes(pid)
        self._most = self._before
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> Memory:
        self._stopped.set()
        self._thread.join()
        after = resident_bytes(self._pid)
        most = max(self._most, after)
        # What rose and fell between two samples shows in the kernel's own peak, if that is new.
        kernel_peak = peak_bytes(self._pid)
        if kernel_peak > self._kernel_peak_before:
            most = max(most, kernel_peak)
        return Memory(before_bytes=self._before, peak_bytes=most, after_bytes=after)

    def _watch(self) -> None:
        while not self._stopped.wait(SAMPLE_S):
            self._most = max(self._most, resident_bytes(self._pid))


def attack(address: Address, copies: int, round_count: int) -> list[Answers]:
    """Run `copies` sessions of every kind at once, `round_count` times; collect the outcomes."""
    slow = slow_session()

    def ordinary(hostile: Hostile) -> Callable[[], Outcome]:
        return lambda: run_session(address, hostile)

    kinds = [(hostile, ordinary(hostile)) for hostile in hostile_sessions()]
    kinds.append((slow, lambda: read_nothing(address, MIB, PATIENCE_S)))
    outcomes: dict[str, list[Outcome]] = {hostile.name: [] for hostile, _ in kinds}
    with ThreadPoolExecutor(max_workers=copies * len(kinds)) as threads:
        for _ in range(round_count):
            futures = [
                (hostile.name, threads.submit(call))
                for hostile, call in kinds
                for _ in range(copies)
            ]
            for name, future in futures:
                outcomes[name].append(future.result())
    return [collect(hostile, outcomes[hostile.name]) for hostile, _ in kinds]


def measure_attack(server: Server, copies: int, round_count: int) -> AttackResult:
    """Attack a server, and say what that did to it and to a client that only PINGs."""
    with Connection(server.address) as connection:
        connection.command(b"SET", BIG_KEY, bytes(MIB))
        connection.command(b"GET", BIG_KEY)
    before = Pinger(server.address, PING_COUNT).stop()
    watch = MemoryWatch(server.pid)
    pinger = Pinger(server.address, PING_COUNT)
    answers = attack(server.address, copies, round_count)
    return AttackResult(answers, ping_during=pinger.stop(), memory=watch.stop(), ping_before=before)


def collect(hostile: Hostile, outcomes: Sequence[Outcome]) -> Answers:
    """Count the outcomes of one kind of session, and those that are not as in Redis."""
    return Answers(
        name=hostile.name,
        outcomes=dict(Counter(str(each) for each in outcomes)),
        unexpected=dict(Counter(str(each) for each in outcomes if not hostile.is_expected(each))),
    )


def answers_text(answers: Sequence[Answers]) -> str:
    """Return the table of what the sessions got; one line for each outcome."""
    rows = [["times", "as in Redis", "session and what it got"]]
    for each in answers:
        for outcome, count in each.outcomes.items():
            is_expected = "no" if outcome in each.unexpected else "yes"
            rows.append([str(count), is_expected, f"{each.name}: {outcome}"])
    # The last column is text and reads better from the left.
    width = max(len(row[2]) for row in rows)
    return columns([[*row[:2], row[2].ljust(width)] for row in rows])


def attack_text(result: AttackResult, copies: int, round_count: int) -> str:
    """Return everything that is printed about the hostile sessions."""
    return "\n".join(
        [
            f"Every session {copies} times at once, {round_count} times over:",
            "",
            answers_text(result.answers),
            "",
            memory_text(result.memory),
            ping_text("before", result.ping_before),
            ping_text("during", result.ping_during),
            "",
        ]
    )


def memory_text(memory: Memory) -> str:
    before, peak, after, growth = (
        f"{count / MIB:.1f} MiB"
        for count in (
            memory.before_bytes,
            memory.peak_bytes,
            memory.after_bytes,
            memory.growth_bytes,
        )
    )
    words = verdict("< 64 MiB", is_met=memory.growth_bytes < GROWTH_AIM_BYTES)
    return (
        f"Resident memory: {before} before, at most {peak} during, {after} after; grew by {growth}"
        f" (without sockets' kernel buffers), {words}"
    )


def ping_text(when: str, latency: Latency) -> str:
    return (
        f"PING {when}: p50 {latency.p50_ms:.3f} ms, p99 {latency.p99_ms:.3f} ms,"
        f" most {latency.most_ms:.3f} ms ({latency.count} times)"
    )


def values_text(results: Sequence[SizeResult]) -> str:
    """Return the table of large values with its two ratios."""
    rows = [["value", "count", "in ms/MiB", "out ms/MiB", "whole"]]
    for each in results:
        times = [f"{each.in_ms_per_mib:.3f}", f"{each.out_ms_per_mib:.3f}"]
        rows.append([f"{each.size_mib} MiB", str(each.count), *times, "yes"])
    lines = [columns(rows), ""]
    for way, ratio in zip(("in", "out"), large_value.growth(list(results)), strict=True):
        words = verdict(f"<= {LARGE_RATIO_AIM}", is_met=ratio <= LARGE_RATIO_AIM)
        lines.append(f"64 MiB to 1 MiB, time per MiB {way}: {ratio:.2f}, {words}")
    return "\n".join(lines)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.hostile", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--server", choices=["respkv", "redis"], default="respkv")
    parser.add_argument("--copies", type=int, default=4, help="of each session at once (4)")
    parser.add_argument("--rounds", type=int, default=3, help="how often all of them run (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    settings = REDIS_OUTPUT_LIMIT if options.server == "redis" else ()
    try:
        with running(options.server, settings=settings) as server:
            facts = machine.read_facts([server])
            print(facts_text(facts))
            result = measure_attack(server, options.copies, options.rounds)
        print(attack_text(result, options.copies, options.rounds), flush=True)
        with running(options.server) as server:
            values = large_value.exchange_values(server.address)
        print(values_text(values))
    except _FAILURES as error:
        print(f"bench.hostile: {failure_text(error)}", file=sys.stderr)
        return 1
    if options.json is not None:
        document = {
            "facts": dataclasses.asdict(facts),
            "attack": {
                **dataclasses.asdict(result),
                "memory_growth_bytes": result.memory.growth_bytes,
            },
            "values": [dataclasses.asdict(each) for each in values],
        }
        options.json.write_text(to_json(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
