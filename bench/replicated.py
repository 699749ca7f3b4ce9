"""What one replicated operation costs: three nodes of respkv beside Redis with two replicas (shell).

It asserts nothing and its exit status says nothing about speed: figures stand beside their aims.

    python -m bench.replicated [--rounds 3] [--json FILE]
    python -m bench.replicated --rounds 1 --seconds 1 --pipelines 1 --modes closed    a quick look

Two stores hold every key three times and answer a write when two servers have it: Redis, whose
primary gets `WAIT 1` after each SET (and, as orientation, after every sixteenth), and a cluster of
respkv with N=3, W=2, R=2. The cluster is used in two ways: *by slot*, each key sent to the cluster port
of the node that coordinates it, as cluster clients do; and through *one node*'s client port. GET asks
Redis' primary alone, which promises less than R=2 does, so it has no aim.

One generator loads all of them in the same way (`bench/replicated_generator.py`). First each system
gets each load for a second; half of the least that any of them did is the fixed rate. Then come the
rounds: all systems in turns, in a closed loop and at that rate. A run ends when the servers
have come to rest, so that work they put off is counted.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from bench import machine, report
from bench.connection import Connection, ConnectionEnded, ErrorAnswered
from bench.load import LoadFailed
from bench.openloop import write_keys
from bench.openloop_generator import GeneratorFailed
from bench.process import CpuTime
from bench.replicated_generator import Generators
from bench.replicated_load import Job, Wait
from bench.replicated_report import (
    BY_SLOT,
    CLOSED,
    FIXED,
    ONE_NODE,
    REDIS,
    REDIS_WAIT,
    REDIS_WAIT_16,
    Run,
    run_of,
    text,
    to_plain,
)
from bench.replicated_route import Route, RouteUnusable, everything_at
from bench.replicated_servers import Cluster, Group, cluster, read_route, redis_with_replicas
from bench.server import ServerNotReady, failure_text
from bench.serving import REST_WAIT_AFTER_LOAD_S, REST_WAIT_S

COMMANDS: Final = ("SET", "GET")
MODES: Final = {"closed": CLOSED, "fixed": FIXED}
WAIT_EVERY_LONG: Final = 16
# Of what the slowest system does in a closed loop.
RATE_SHARE: Final = 0.5
WARM_UP_S: Final = 1.0
IDLE_S: Final = 2.0
UNBOUNDED_RATE: Final = 10**9

_FAILURES = (
    ServerNotReady,
    LoadFailed,
    GeneratorFailed,
    RouteUnusable,
    ConnectionEnded,
    ErrorAnswered,
    OSError,
)

Workload: TypeAlias = tuple[str, int]
"""Command and pipeline."""


@dataclass(frozen=True, slots=True)
class System:
    """One way to use one of the stores."""

    label: str
    group: Group
    wait: Wait | None
    read_route: Callable[[], Route]


def systems_for(
    workload: Workload, redis: Group | None, store: Cluster | None, wait_timeout_ms: int
) -> list[System]:
    """Who gets a load, in turns."""
    command, pipeline = workload
    found = []
    if redis is not None:
        whole = everything_at(redis.address)
        waits: dict[str, Wait | None] = {REDIS: None}
        if command == "SET":
            waits = {REDIS_WAIT: Wait(1, wait_timeout_ms)}
            if pipeline > 1:
                waits[REDIS_WAIT_16] = Wait(WAIT_EVERY_LONG, wait_timeout_ms)
        found += [System(label, redis, wait, lambda: whole) for label, wait in waits.items()]
    if store is not None:
        group, asked = store.group, store.members[0].cluster_address
        found += [
            System(BY_SLOT, group, None, lambda: read_route(asked)),
            System(ONE_NODE, group, None, lambda: everything_at(group.address)),
        ]
    return found


class Bench:
    """Servers and generators that run, and what is asked of them."""

    def __init__(
        self,
        options: argparse.Namespace,
        generators: Generators,
        redis: Group | None,
        store: Cluster | None,
    ) -> None:
        self._options = options
        self._generators = generators
        self._redis, self._store = redis, store
        self.groups = [each for each in (redis, store.group if store else None) if each]
        self.workloads = [
            (command, pipeline) for command in options.commands for pipeline in options.pipelines
        ]

    def fill(self) -> None:
        """Write every key once at each store."""
        for group in self.groups:
            progress(f"{group.name}: writing {self._options.keys} keys")
            write_keys(group.address, self._options.keys, self._options.value_bytes, UNBOUNDED_RATE)
            with Connection(group.address) as connection:
                if group.name == "redis":
                    connection.command(b"WAIT", b"2", b"60000")
            group.settled_cpu(REST_WAIT_AFTER_LOAD_S)

    def idle_text(self) -> str:
        """What the servers use when nobody asks: it is in the figures of all runs."""
        before = [sum_of(group.cpu()) for group in self.groups]
        time.sleep(IDLE_S)
        used = [sum_of(group.cpu()) - past for group, past in zip(self.groups, before, strict=True)]
        shares = (
            f"{group.name} {100 * each.total_s / IDLE_S:.1f} % of a core"
            for group, each in zip(self.groups, used, strict=True)
        )
        return f"Idle servers use: {', '.join(shares)}."

    def warm_up(self) -> dict[Workload, int]:
        """Load each system for a second; return the fixed rate of each workload."""
        rates = {}
        for workload in self.workloads:
            runs = [
                self.run_once(each, workload, 0, rate=None, seconds=WARM_UP_S)
                for each in self._systems(workload)
            ]
            least = min(run.throughput for run in runs)
            rates[workload] = self._options.rate or max(workload[1], int(RATE_SHARE * least))
        return rates

    def rounds(self, rates: dict[Workload, int]) -> Iterator[Run]:
        """All runs, in turns."""
        for number in range(1, self._options.rounds + 1):
            for workload in self.workloads:
                for mode in self._options.modes:
                    rate = None if mode == CLOSED else rates[workload]
                    for system in self._systems(workload):
                        run = self.run_once(
                            system, workload, number, rate=rate, seconds=self._options.seconds
                        )
                        progress(_run_line(run))
                        yield run

    def run_once(
        self, system: System, workload: Workload, number: int, *, rate: int | None, seconds: float
    ) -> Run:
        """Load one system once and account for it."""
        options, (command, pipeline) = self._options, workload
        job = Job(
            command=command,
            pipeline=pipeline,
            wait=system.wait,
            route=system.read_route(),
            connection_count=options.connections,
            key_count=options.keys,
            value_bytes=options.value_bytes,
            seconds=seconds,
            rate=rate,
            seed=number + 1,
        )
        before, activity_before = system.group.cpu(), machine.read_activity()
        outcome = self._generators.run(job)
        # Noise is judged while the load runs: the rest that follows would dilute it.
        activity_after = machine.read_activity()
        after, is_settled = system.group.settled_cpu(REST_WAIT_S)
        return run_of(
            system.label,
            job,
            number,
            outcome,
            [late - early for late, early in zip(after, before, strict=True)],
            other_share=machine.other_share(activity_before, activity_after, machine.core_count()),
            is_settled=is_settled,
        )

    def _systems(self, workload: Workload) -> list[System]:
        return systems_for(workload, self._redis, self._store, self._options.wait_timeout_ms)


def sum_of(parts: Sequence[CpuTime]) -> CpuTime:
    return sum(parts, CpuTime(0.0, 0.0))


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.replicated", description=(__doc__ or "").split("\n", 1)[0]
    )
    add = parser.add_argument
    add("--rounds", type=positive, default=3, help="(3)")
    add("--seconds", type=_seconds, default=4.0, help="of each run (4)")
    add("--keys", type=positive, default=100_000, help="(100000)")
    add("--value-bytes", type=positive, default=100, help="(100)")
    add("--connections", type=positive, default=50, help="(50)")
    add("--pipelines", type=_positives, default=[1, 16], metavar="N,N", help="(1,16)")
    add("--commands", type=_commands, default=list(COMMANDS), metavar="NAMES", help="(SET,GET)")
    add("--modes", type=_modes, default=list(MODES.values()), help="(closed,fixed)")
    add("--rate", type=positive, help="operations a second (half of the slowest system's most)")
    add("--wait-timeout-ms", type=positive, default=1000, help="of WAIT (1000)")
    add("--generators", type=positive, default=1, help="processes that make the load (1)")
    add("--only", choices=["redis", "respkv"])
    add("--json", type=Path, metavar="FILE", help="write every figure there")
    options = parser.parse_args(arguments)
    if options.connections < options.generators * 3:
        parser.error("--connections must be at least three for each generator")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    load_before = machine.load_average()
    try:
        runs, facts, idle = measure(options)
    except _FAILURES as error:
        print(f"bench.replicated: {failure_text(error)}", file=sys.stderr)
        return 1
    load_after, shares = machine.load_average(), [run.other_share for run in runs]
    print(report.facts_text(facts))
    print(text(title(options), runs))
    print(idle)
    print(report.noise_text(shares, load_before, load_after))
    if options.json is not None:
        document: dict[str, Any] = {
            "facts": dataclasses.asdict(facts),
            "load_average": {"before": load_before, "after": load_after},
            **to_plain(runs),
        }
        options.json.write_text(report.to_json(document))
    return 0


def measure(options: argparse.Namespace) -> tuple[list[Run], machine.Facts, str]:
    """Start the servers, write the keys, run the rounds."""
    with contextlib.ExitStack() as stack:
        generators = stack.enter_context(Generators(options.generators))
        redis = stack.enter_context(redis_with_replicas()) if options.only != "respkv" else None
        store = stack.enter_context(cluster()) if options.only != "redis" else None
        bench = Bench(options, generators, redis, store)
        bench.fill()
        idle = bench.idle_text()
        runs = list(bench.rounds(bench.warm_up()))
        servers = [server for group in bench.groups for server in group.servers]
        return runs, machine.read_facts(servers), idle


def title(options: argparse.Namespace) -> str:
    return (
        f"Three servers hold each of {options.keys} keys of 16 bytes, values of"
        f" {options.value_bytes}; {options.connections} connections, {options.seconds:g} s a run;"
        f" median (least-most) of {options.rounds} rounds"
    )


def _run_line(run: Run) -> str:
    words = "" if run.is_sound else f", {run.fault_count} ERRORS"
    return (
        f"round {run.round_number} {run.place}, {run.system}:"
        f" {run.per_operation_us(run.cpu_s):.2f} us/op, {run.throughput:.0f} ops/s{words}"
    )


def progress(words: str) -> None:
    """Say on standard error what goes on; standard output holds the tables."""
    print(words, file=sys.stderr, flush=True)


def positive(words: str) -> int:
    number = int(words)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{words} is not a positive number")
    return number


def _positives(words: str) -> list[int]:
    return [positive(word) for word in words.split(",")]


def _seconds(words: str) -> float:
    seconds = float(words)
    if not 0 < seconds <= 600:
        raise argparse.ArgumentTypeError(f"{words} is not a time from 0 to 600 s")
    return seconds


def _commands(words: str) -> list[str]:
    return _some_of(words.upper(), COMMANDS)


def _modes(words: str) -> list[str]:
    return [MODES[each] for each in _some_of(words, tuple(MODES))]


def _some_of(words: str, known: Sequence[str]) -> list[str]:
    chosen = words.split(",")
    if unknown := [each for each in chosen if each not in known]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(known)}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
