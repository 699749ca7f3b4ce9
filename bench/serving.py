"""What one operation costs: respkv and Redis side by side, under the same load, in one run (shell).

It asserts nothing and its exit status says nothing about speed: figures stand beside their aims.

    python -m bench.serving [--rounds 5] [--json FILE]

Both servers run at once; at any time one of them is loaded and the other idles. All keys are
written first. For each workload a short calibration finds how many requests keep both servers
busy for long enough that clock ticks of 10 ms do not matter. Then the rounds go A B A B, so that
a machine that slows down slows both. A run ends when the server has come to rest, so that work it
has put off (flushes, compaction, a rewrite of the log in a fork) is counted to it.

CPU time is the measure, since it does not depend on what else runs and is what an operator pays
for; throughput and latency are those that redis-benchmark sees, on the cores that are left beside
the load generator.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import load, machine, report
from bench.connection import Connection, ConnectionEnded, ErrorAnswered
from bench.load import Lookups, Workload
from bench.process import CpuTime, tree_cpu
from bench.report import Run
from bench.server import Server, ServerNotReady, failure_text, running

CPU_WANTED_S = 2.5
CALIBRATION_REQUESTS = 20_000
COMMANDS = ("SET", "GET")

# A server is at rest when it used less than this share of a core for this long.
REST_SHARE = 0.05
REST_S = 0.5
REST_WAIT_S = 30.0
REST_WAIT_AFTER_LOAD_S = 180.0

# `--large`: respkv's memtable is a quarter of its memory; a record of 16 + 100 bytes counts about
# 330 in it.
LARGE_MEMORY = "64MiB"
MEMTABLE_SHARE = 4
RECORD_BYTES = 330
SIZE_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

_FAILURES = (ServerNotReady, load.LoadFailed, ConnectionEnded, ErrorAnswered, OSError)


@dataclass(frozen=True, slots=True)
class Plan:
    """One table: which workloads run, how often, against which servers."""

    title: str
    servers: tuple[str, ...]
    workloads: tuple[Workload, ...]
    round_count: int
    request_count: int | None
    memory: str | None
    aims: Mapping[int, float]

    @property
    def key_count(self) -> int:
        return self.workloads[0].key_count


def parse_size(text: str) -> int:
    """Return the bytes that `64MiB` or `67108864` means; ValueError when it means none."""
    for unit, factor in SIZE_UNITS.items():
        if text.endswith(unit):
            return int(text.removesuffix(unit)) * factor
    return int(text)


def keys_for_memtables(memory: str, factor: int) -> int:
    """Return how many keys fill respkv's memtable `factor` times."""
    return factor * (parse_size(memory) // MEMTABLE_SHARE) // RECORD_BYTES


def plans(options: argparse.Namespace) -> list[Plan]:
    """Return the tables that the command line asks for."""
    servers = (options.only,) if options.only else ("respkv", "redis")

    def plan(kind: str, key_count: int, memory: str | None, aims: Mapping[int, float]) -> Plan:
        limit = f", respkv's memory {memory}" if memory else ""
        return Plan(
            title=f"{kind}{key_count} keys of 16 bytes, values of {load.VALUE_BYTES},"
            f" {load.CLIENT_COUNT} clients{limit}; median (least-most) of {options.rounds} rounds",
            servers=servers,
            workloads=tuple(
                Workload(command, pipeline, key_count)
                for command in options.commands
                for pipeline in options.pipelines
            ),
            round_count=options.rounds,
            request_count=options.requests,
            memory=memory,
            aims=aims,
        )

    tables = [plan("", options.keys, options.memory, report.RATIO_AIMS)]
    if options.large:
        memory = options.memory or LARGE_MEMORY
        keys = keys_for_memtables(memory, options.keys_factor)
        # The aims are for data in memory; Redis has no other kind, so none is set here.
        tables.append(plan(f"{options.keys_factor} memtables: ", keys, memory, {}))
    return tables


def measure(plan: Plan) -> tuple[list[Run], machine.Facts]:
    """Carry out one plan."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(_start(name, plan)) for name in plan.servers]
        for server in servers:
            _progress(f"{server.name}: writing {plan.key_count} keys")
            load.load_keys(server.address, plan.key_count)
            rest(server, wait_s=REST_WAIT_AFTER_LOAD_S)
        counts = {each: plan.request_count or calibrate(servers, each) for each in plan.workloads}
        runs = []
        for number in range(1, plan.round_count + 1):
            for workload in plan.workloads:
                for server in servers:
                    run = run_once(server, workload, counts[workload], number)
                    _progress(_run_line(run))
                    runs.append(run)
        return runs, machine.read_facts(servers)


def calibrate(servers: Sequence[Server], workload: Workload) -> int:
    """Return a number of requests that gives every server enough to do."""
    count = CALIBRATION_REQUESTS * (4 if workload.pipeline > 1 else 1)
    needed = []
    for server in servers:
        run = run_once(server, workload, count, 0)
        needed.append(load.requests_for(CPU_WANTED_S, run.cpu_s, count, workload.pipeline))
    _progress(f"{workload}: {max(needed)} requests a run")
    return max(needed)


def run_once(server: Server, workload: Workload, request_count: int, round_number: int) -> Run:
    """Send one load to one server and account for it."""
    with Connection(server.address) as connection:
        before = read_lookups(connection)
        cpu_before, activity_before = tree_cpu(server.pid), machine.read_activity()
        result = load.run_benchmark(server.address, workload, request_count)
        # Noise is judged while the load runs: the rest that follows would dilute it.
        activity_after = machine.read_activity()
        cpu_after, is_settled = rest(server, wait_s=REST_WAIT_S)
        after = read_lookups(connection)
    cpu = cpu_after - cpu_before
    return Run(
        server=server.name,
        round_number=round_number,
        workload=workload,
        request_count=request_count,
        user_s=cpu.user_s,
        system_s=cpu.system_s,
        throughput=result.throughput,
        p50_ms=result.p50_ms,
        p99_ms=result.p99_ms,
        hit_rate=load.hit_rate(before, after) if workload.command == "GET" else None,
        other_share=machine.other_share(activity_before, activity_after, machine.core_count()),
        is_settled=is_settled,
    )


def read_lookups(connection: Connection) -> Lookups | None:
    """Return the server's count of keys found and missed; None when it keeps none."""
    try:
        return Lookups.from_info(connection.info(b"stats"))
    except ErrorAnswered:
        return None


def rest(server: Server, *, wait_s: float) -> tuple[CpuTime, bool]:
    """Wait until a server has nothing left to do; return its CPU time and whether it rests."""
    deadline = time.monotonic() + wait_s
    before = tree_cpu(server.pid)
    while True:
        time.sleep(REST_S)
        after = tree_cpu(server.pid)
        is_settled = (after - before).total_s < REST_SHARE * REST_S
        if is_settled or time.monotonic() > deadline:
            return after, is_settled
        before = after


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description=_first_line())
    parser.add_argument("--rounds", type=_positive, default=5)
    parser.add_argument("--requests", type=_positive, help="in each run (default: calibrated)")
    parser.add_argument("--keys", type=_positive, default=100_000)
    parser.add_argument("--memory", type=_size, metavar="BYTES", help="respkv's limit, as 64MiB")
    parser.add_argument("--pipelines", type=_positives, default=[1, 16], help="default: 1,16")
    parser.add_argument("--commands", type=_commands, default=["SET", "GET"], help="SET,GET")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--only", choices=["respkv", "redis"])
    parser.add_argument("--large", action="store_true", help="a second table: keys beyond memory")
    parser.add_argument(
        "--keys-factor", type=_positive, default=10, help="memtables of keys in it (10)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    load_before = machine.load_average()
    tables: list[dict[str, Any]] = []
    shares: list[float] = []
    facts = None
    for plan in plans(options):
        try:
            runs, facts = measure(plan)
        except _FAILURES as error:
            print(f"bench.serving: {failure_text(error)}", file=sys.stderr)
            return 1
        if not tables:
            print(report.facts_text(facts))
        print(report.table_text(plan.title, runs, plan.aims), flush=True)
        shares.extend(run.other_share for run in runs)
        tables.append({"title": plan.title, **report.cell_json(runs, plan.aims)})
    assert facts is not None
    load_after = machine.load_average()
    print(report.noise_text(shares, load_before, load_after))
    if options.json is not None:
        document = {
            "facts": dataclasses.asdict(facts),
            "load_average": {"before": load_before, "after": load_after},
            "tables": tables,
        }
        options.json.write_text(report.to_json(document))
    return 0


def _start(name: str, plan: Plan) -> contextlib.AbstractContextManager[Server]:
    has_limit = name == "respkv" and plan.memory is not None
    return running(name, settings=[f"memory.bytes_max={plan.memory}"] if has_limit else [])


def _progress(text: str) -> None:
    """Say on standard error what goes on; standard output holds the tables."""
    print(text, file=sys.stderr, flush=True)


def _run_line(run: Run) -> str:
    return (
        f"round {run.round_number} {run.workload} {run.server}:"
        f" {run.per_operation_us(run.cpu_s):.2f} us/op, {run.throughput:.0f} ops/s"
    )


def _first_line() -> str:
    return (__doc__ or "").split("\n", 1)[0]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _positives(text: str) -> list[int]:
    return [_positive(word) for word in text.split(",")]


def _commands(text: str) -> list[str]:
    words = text.upper().split(",")
    unknown = sorted(set(words) - set(COMMANDS))
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(COMMANDS)}")
    return words


def _size(text: str) -> str:
    parse_size(text)  # ValueError is argparse's sign of a bad value.
    return text


if __name__ == "__main__":
    sys.exit(main())
