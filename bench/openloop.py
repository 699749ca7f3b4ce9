"""Latency under a load that does not wait: quiet, and during flushes and compactions (shell).

It asserts nothing: figures stand beside their aims.

    python -m bench.openloop [--rate 20000] [--seconds 60] [--keys 10000000] [--json FILE]
    python -m bench.openloop --keys 50000 --rate 5000 --seconds 10 --memory 16MiB     a quick look
    python -m bench.openloop --hot-share 0 --find-rate       all cold: the highest rate that holds
    python -m bench.openloop --then-cold                     both, on the same data

The data is written first, at a bounded pace: 10 GB by default, so mind the disk. Then requests are
sent when they are due, whatever the answers do (`bench/openloop_generator.py`), from a process of
its own; another one PINGs; this one looks at the server (`bench/openloop_watch.py`).

`--find-rate` doubles or halves the rate, and then closes in on the highest that holds: everything is
answered, 99 % of it within 100 ms. `--cgroup SIZE` runs the server in a memory cgroup, so that the
page cache does not hold all data. Where that is not allowed it says so and goes on without.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from bench import machine, openloop_report, report
from bench.connection import Address, Connection, ConnectionEnded, ErrorAnswered
from bench.load import LoadFailed
from bench.memory_group import GroupRefused, memory_group
from bench.openloop_generator import GeneratorFailed, GeneratorProcess
from bench.openloop_report import Result
from bench.openloop_schedule import Load, highest_rate, loading, reading
from bench.openloop_watch import Watch
from bench.ping import Pinger, PingFailed
from bench.restart import RunningServer, started
from bench.server import Server, ServerNotReady, failure_text
from bench.serving import REST_WAIT_AFTER_LOAD_S, parse_size, rest
from respkv.version import VERSION

LOAD_BATCH: Final = 200
PROGRESS_KEYS: Final = 500_000
# Tables before and after a compaction, and the log.
DISK_FACTOR: Final = 3
# The search of the highest rate without hot keys begins at one in so many.
COLD_FACTOR: Final = 4

_FAILURES = (
    ServerNotReady,
    LoadFailed,
    PingFailed,
    GeneratorFailed,
    ConnectionEnded,
    ErrorAnswered,
    OSError,
)


def write_keys(address: Address, key_count: int, value_bytes: int, rate: int) -> None:
    """Write every key once, at most `rate` a second."""
    began_s = time.monotonic()
    written = 0
    with Connection(address) as connection:
        for batch, count in loading(key_count, value_bytes, LOAD_BATCH):
            connection.send(batch)
            expected = b"+OK\r\n" * count
            answered = bytes(connection.read_exactly(len(expected)))
            if answered != expected:
                raise LoadFailed(f"a SET was answered with {answered[:200]!r}")
            before, written = written, written + count
            if written // PROGRESS_KEYS != before // PROGRESS_KEYS:
                _progress(f"{written} of {key_count} keys written")
            ahead_s = written / rate - (time.monotonic() - began_s)
            if ahead_s > 0:
                time.sleep(ahead_s)


def read_hot(address: Address, load: Load) -> None:
    """Read each hot key once: what fits the caches is in them from the first request on."""
    with Connection(address) as connection:
        for batch, count in reading(load.hot_keys, LOAD_BATCH):
            connection.send(batch)
            for _ in range(count):
                connection.read_reply()


def run_load(server: RunningServer, load: Load, memory_bytes_max: int) -> Result:
    """One run, watched."""
    watch = Watch(server.address, server.pid)
    pinger = Pinger(server.address, 1)
    generator = GeneratorProcess(server.address, load)
    sent = generator.result()
    return openloop_report.result(load, sent, watch.stop(), pinger.stop(), memory_bytes_max)


def run_and_tell(server: RunningServer, load: Load, options: argparse.Namespace) -> list[Result]:
    """One load, or the search of the highest rate with it; prints what came out."""
    results: list[Result] = []

    def holds(rate: int) -> bool:
        _progress(f"{rate} requests/s for {load.seconds:g} s")
        loaded = dataclasses.replace(load, rate=rate)
        results.append(run_load(server, loaded, parse_size(options.memory)))
        rest(_as_server(server), wait_s=options.seconds)
        return results[-1].holds

    if load.hot_share:
        _progress(f"reading the {load.hot_keys} hot keys")
        read_hot(server.address, load)
    is_searched = options.find_rate or (options.then_cold and not load.hot_share)
    if not is_searched:
        holds(load.rate)
        print(openloop_report.text(results[0]), flush=True)
        return results
    highest, tried = highest_rate(holds, load.rate, options.steps)
    shown = next((each for each in results if each.load.rate == highest), results[-1])
    print(openloop_report.text(shown))
    print(f"Highest rate that holds: {highest} requests/s; tried: {', '.join(map(str, tried))}")
    if late := [str(each.load.rate) for each in results if each.is_generator_late]:
        print(f"The generator itself was late at {', '.join(late)}: the server may hold more.")
    print(flush=True)
    return results


def loads(options: argparse.Namespace) -> list[Load]:
    """The loads that the command line asks for."""
    first = Load(
        rate=options.rate,
        seconds=options.seconds,
        key_count=options.keys,
        value_bytes=options.value_bytes,
        hot_share=options.hot_share,
        hot_keys=min(options.hot_keys or max(1, options.keys // 100), options.keys),
        write_share=options.writes,
        connection_count=options.connections,
    )
    cold = dataclasses.replace(first, hot_share=0.0, rate=max(1, first.rate // COLD_FACTOR))
    return [first, cold] if options.then_cold else [first]


@contextlib.contextmanager
def grouped(size: str | None) -> Iterator[list[str]]:
    """The words before the server's command: those of a memory cgroup, or none if it is refused."""
    if size is None:
        yield []
        return
    with contextlib.ExitStack() as stack:
        try:
            prefix = stack.enter_context(memory_group(parse_size(size)))
        except GroupRefused as refused:
            print(f"no memory cgroup, so the page cache may hold all data: {refused}\n")
            prefix = []
        else:
            print(f"The server runs in a memory cgroup of {size}.\n", flush=True)
        yield prefix


def check_room(folder: Path, options: argparse.Namespace) -> None:
    """Refuse to fill the disk."""
    needed = DISK_FACTOR * options.keys * (options.value_bytes + 100)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise LoadFailed(f"{folder} has {free >> 20} MiB free, and {needed >> 20} MiB are needed")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.openloop", description=(__doc__ or "").split("\n", 1)[0]
    )
    add = parser.add_argument
    add("--rate", type=_positive, default=20_000, help="requests a second (20000)")
    add("--seconds", type=float, default=60.0, help="of each run (60)")
    add("--keys", type=_positive, default=10_000_000, help="(10000000)")
    add("--value-bytes", type=_positive, default=1024, help="(1024)")
    add("--hot-share", type=_share, default=0.95, help="of the requests (0.95)")
    add("--hot-keys", type=_positive, help="how many keys are hot (a hundredth)")
    add("--writes", type=_share, default=0.5, help="share of SET; the rest are GET (0.5)")
    add("--connections", type=_positive, default=4, help="(4)")
    add("--load-rate", type=_positive, default=30_000, help="keys a second while loading (30000)")
    add("--memory", type=_size, default="1GiB", help="memory.bytes_max (1GiB)")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    add("--cgroup", type=_size, metavar="SIZE", help="a memory cgroup around the server")
    add("--find-rate", action="store_true", help="search the highest rate that holds")
    add("--steps", type=_positive, default=8, help="of the search, at most (8)")
    add(
        "--then-cold",
        action="store_true",
        help="then, without hot keys, search the highest rate that holds",
    )
    add("--folder", type=Path, help="where the data is made and removed (the temporary folder)")
    add("--json", type=Path, metavar="FILE", help="write every figure there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    load_before = machine.load_average()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-openloop-", dir=options.folder) as directory:
            results, facts, shares = measure(Path(directory), options)
    except _FAILURES as error:
        print(f"bench.openloop: {failure_text(error)}", file=sys.stderr)
        return 1
    load_after = machine.load_average()
    print(report.noise_text(shares, load_before, load_after))
    if options.json is not None:
        document: dict[str, Any] = {
            "facts": dataclasses.asdict(facts),
            "load_average": {"before": load_before, "after": load_after},
            "other_shares": shares,
            "runs": [openloop_report.to_plain(each) for each in results],
        }
        options.json.write_text(report.to_json(document))
    return 0


def measure(
    root: Path, options: argparse.Namespace
) -> tuple[list[Result], machine.Facts, list[float]]:
    """Start the server, write the data, run the loads."""
    check_room(root, options)
    folder = root / "data"
    folder.mkdir()
    settings = [f"memory.bytes_max={options.memory}", *options.set]
    results: list[Result] = []
    shares = []
    with (
        grouped(options.cgroup) as prefix,
        started(folder, log=root / "log", settings=settings, prefix=prefix) as server,
    ):
        facts = machine.read_facts([_as_server(server)])
        print(report.facts_text(facts), flush=True)
        _progress(f"writing {options.keys} keys of {options.value_bytes} bytes")
        write_keys(server.address, options.keys, options.value_bytes, options.load_rate)
        rest(_as_server(server), wait_s=REST_WAIT_AFTER_LOAD_S)
        for load in loads(options):
            before = machine.read_activity()
            results += run_and_tell(server, load, options)
            shares.append(
                machine.other_share(before, machine.read_activity(), machine.core_count())
            )
    return results, facts, shares


def _as_server(server: RunningServer) -> Server:
    return Server("respkv", VERSION, server.address, server.pid)


def _progress(words: str) -> None:
    """Say on standard error what goes on; standard output holds the tables."""
    print(words, file=sys.stderr, flush=True)


def _positive(words: str) -> int:
    number = int(words)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{words} is not a positive number")
    return number


def _share(words: str) -> float:
    share = float(words)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{words} is not a share from 0 to 1")
    return share


def _size(words: str) -> str:
    parse_size(words)  # ValueError is argparse's sign of a bad value.
    return words


if __name__ == "__main__":
    sys.exit(main())
