"""What the storage engine costs beside LevelDB and RocksDB, in one run (shell).

It asserts nothing and its exit status says nothing about speed: figures stand beside their aims.

    python -m bench.engine [--records N] [--json FILE]
    python -m bench.engine --records 100000      a quick look: about a minute

`bench/engine_subject.py` says how the engines are set up, `bench/engine_workload.py` what they do,
and `bench/engine_child.py` what is measured. For each length of values each engine in turn

1. fills an empty folder in batches of 1, and overwrites it,
2. does the same in another folder in batches of 64,
3. opens that folder again with caches that hold what is read, and reads,
4. opens it once more with caches of 64 KiB, reads, and overwrites. The kernel holds the files.

Each of these is a process of its own, and the engines take turns, so that a machine that slows down
slows all. The whole run is bounded by `--time-limit`: what would begin later is left out and named.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import engine_report, machine, report
from bench.engine_child import Measure
from bench.engine_subject import ENGINES, EngineMissing, version_of
from bench.engine_workload import OVERWRITE, READS, WRITES, Cache, Spec, write_buffer_for
from bench.server import Server

BATCHES: Final = (1, 64)
CACHE_BYTES: Final = 64 << 20
TIME_LIMIT_S: Final = 1800.0


@dataclass(eq=False)
class ChildFailed(Exception):
    """A process of one engine ended badly, or took longer than there was time."""

    what: str

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run consists of."""

    engines: tuple[str, ...]
    record_count: int
    value_lengths: tuple[int, ...]
    write_buffer_bytes: int
    cache_bytes: int
    round_count: int


def specs(plan: Plan, root: Path) -> Iterator[Spec]:
    """Yield what the processes are to do, in order: engines alternate, a folder's processes follow."""
    for number in range(1, plan.round_count + 1):
        for value_bytes in plan.value_lengths:
            for step in _steps():
                for engine in plan.engines:
                    batch, cache, phases = step
                    folder = root / f"{engine}-{value_bytes}-{batch}-{number}"
                    yield Spec(
                        engine=engine,
                        folder=str(folder),
                        record_count=plan.record_count,
                        value_bytes=value_bytes,
                        batch=batch,
                        cache=cache,
                        write_buffer_bytes=plan.write_buffer_bytes,
                        cache_bytes=plan.cache_bytes,
                        phases=phases,
                        seed=number,
                    )


def _steps() -> list[tuple[int, Cache, tuple[str, ...]]]:
    small, large = BATCHES
    return [
        (small, "large", WRITES),
        (large, "large", WRITES),
        (large, "large", READS),
        (large, "tiny", (*READS, OVERWRITE)),
    ]


def run_child(spec: Spec, timeout_s: float) -> list[Measure]:
    """Carry out one spec in a process of its own. Raises ChildFailed."""
    Path(spec.folder).mkdir(exist_ok=True)
    line = [sys.executable, "-m", "bench.engine_child", json.dumps(dataclasses.asdict(spec))]
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(
            line, stdout=subprocess.PIPE, text=True, check=False, timeout=timeout_s, cwd=root
        )
    except subprocess.TimeoutExpired as error:
        raise ChildFailed(f"{spec.engine} did not end within {timeout_s:.0f} s") from error
    if done.returncode != 0:
        raise ChildFailed(f"{spec.engine} ended with status {done.returncode}; see above")
    return [Measure(**each) for each in json.loads(done.stdout)]


def measure(plan: Plan, time_limit_s: float) -> tuple[list[Measure], list[float], list[str]]:
    """Carry out a plan: the measures, what others used of the machine, and what was left out."""
    deadline = time.monotonic() + time_limit_s
    measures: list[Measure] = []
    shares: list[float] = []
    left_out: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bench-engine-") as directory:
        for spec in specs(plan, Path(directory)):
            title = f"{spec.engine}, values of {spec.value_bytes}, batches of {spec.batch},"
            title += f" {spec.cache} cache"
            if time.monotonic() > deadline:
                left_out.append(title)
                continue
            _progress(title)
            before = machine.read_activity()
            measures += run_child(spec, max(1.0, deadline - time.monotonic()))
            after = machine.read_activity()
            shares.append(machine.other_share(before, after, machine.core_count()))
    return measures, shares, left_out


def setup_text(plan: Plan) -> str:
    """The line that says what is alike, and what is not."""
    buffer, cache = plan.write_buffer_bytes / 2**20, plan.cache_bytes / 2**20
    return (
        f"{plan.record_count} records, keys of 16 bytes; write buffer {buffer:.1f} MiB,"
        f" caches {cache:.0f} MiB (tiny: 64 KiB), blocks of 4 KiB, filters of 10 bits;"
        " the log is written and not synced;\n"
        "compression: respkv LZ4, RocksDB LZ4, LevelDB Snappy (it has no LZ4)\n"
    )


def available(wanted: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The versions of the engines that can be measured, and why others cannot."""
    versions, missing = {}, []
    for engine in wanted:
        try:
            versions[engine] = version_of(engine)
        except EngineMissing as error:
            missing.append(str(error))
    return versions, missing


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.engine", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--values", type=_numbers, default=(100, 1024), help="bytes (100,1024)")
    parser.add_argument("--engines", type=_engines, default=tuple(ENGINES), help="all, by commas")
    parser.add_argument("--rounds", type=int, default=1, help="medians are shown (1)")
    parser.add_argument(
        "--write-buffer", type=int, help="bytes (16 MiB; less with fewer than 1000000 records)"
    )
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT_S, help="seconds (1800)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    return parser.parse_args(arguments)


def plan_of(options: argparse.Namespace, engines: Sequence[str]) -> Plan:
    return Plan(
        engines=tuple(engines),
        record_count=options.records,
        value_lengths=options.values,
        write_buffer_bytes=options.write_buffer or write_buffer_for(options.records),
        cache_bytes=CACHE_BYTES,
        round_count=options.rounds,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    versions, missing = available(options.engines)
    for line in missing:
        print(f"bench.engine: {line}", file=sys.stderr)
    if not versions:
        return 1
    load_before = machine.load_average()
    plan = plan_of(options, list(versions))
    facts = machine.read_facts([Server(n, v, ("", 0), os.getpid()) for n, v in versions.items()])
    print(report.facts_text(facts) + setup_text(plan), flush=True)
    try:
        measures, shares, left_out = measure(plan, options.time_limit)
    except ChildFailed as error:
        print(f"bench.engine: {error}", file=sys.stderr)
        return 1
    print(engine_report.text(measures))
    for title in [*left_out, *missing]:
        print(f"not measured: {title}")
    load_after = machine.load_average()
    print(report.noise_text(shares or [0.0], load_before, load_after))
    if options.json is not None:
        found = engine_report.cells(measures)
        document = {
            "facts": dataclasses.asdict(facts),
            "plan": dataclasses.asdict(plan),
            "load_average": {"before": load_before, "after": load_after},
            "other_shares": shares,
            "measures": [dataclasses.asdict(each) for each in measures],
            "cells": [dataclasses.asdict(each) for each in found],
            "ratios": [
                {**dataclasses.asdict(each), "is_met": each.is_met}
                for each in engine_report.ratios(found)
            ],
        }
        options.json.write_text(report.to_json(document))
    return 0


def _progress(text: str) -> None:
    """Say on standard error what goes on; standard output holds the tables."""
    print(text, file=sys.stderr, flush=True)


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(map(int, text.split(",")))
    if min(numbers) < 32:
        raise argparse.ArgumentTypeError("values have at least 32 bytes")
    return numbers


def _engines(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := sorted(set(names) - set(ENGINES)):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(ENGINES)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
