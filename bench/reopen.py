"""How long a server takes to serve again, after a clean stop and after a crash (shell).

It asserts nothing: figures stand beside their aims.

    python -m bench.reopen [--records 100000,1000000,3000000] [--rounds 3] [--json FILE]
    python -m bench.reopen --records 100000      a quick look

For each number of records, with values of 100 bytes, in a folder of its own:

1. The records are written over a socket, and background work is waited for.
2. The server is stopped cleanly and started again, `--rounds` times.
3. Random records are overwritten (`--overwrites`), and the server is killed with signal 9 at the
   last reply, started again, and killed again at once, `--rounds` times. Nothing was written since,
   so each start replays the same log.

**ready** is the time from exec to the line `ready`. **store** is its part from opening the folder,
which is the time to the line "data folder opened" less what an empty folder takes. **log** is how
many bytes lay in the log and not in tables, which is what a start replays: `aof_current_size` of
INFO, right after the start. If the store's time per MiB of log is the same for all sizes, starting
takes long for what was not flushed, and not for all data.

The kernel has the files in memory, as after a crash of the process alone. After a crash of the
machine they come from the disk first.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import load, machine, report
from bench.connection import Connection, ConnectionEnded, ErrorAnswered, encode_command
from bench.report import columns, verdict
from bench.restart import RunningServer, started
from bench.server import Server, ServerNotReady, failure_text
from bench.serving import REST_WAIT_AFTER_LOAD_S, rest
from respkv.version import VERSION

CLEAN: Final = "clean stop"
CRASH: Final = "kill -9"
# Seconds to be ready, with this many records.
AIM_RECORDS: Final = 1_000_000
AIMS_S: Final = {CLEAN: 2.0, CRASH: 5.0}
OVERWRITES: Final = 300_000
MIB: Final = 1 << 20
# Beside less log than this a rate is noise.
LOG_BYTES_MIN: Final = MIB

_FAILURES = (ServerNotReady, load.LoadFailed, ConnectionEnded, ErrorAnswered, OSError)


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a server."""

    record_count: int
    after: str
    opened_s: float
    ready_s: float
    log_bytes: int
    log_entries: int
    table_bytes: int
    key_count: int


@dataclass(frozen=True, slots=True)
class Summary:
    """All starts of one kind: medians, and the longest."""

    record_count: int
    after: str
    ready_s: float
    ready_most_s: float
    store_s: float
    log_bytes: int
    log_entries: int
    table_bytes: int

    @property
    def store_ms_per_mib(self) -> float | None:
        """The store's time per MiB of log; None when there was hardly any."""
        if self.log_bytes < LOG_BYTES_MIN:
            return None
        return self.store_s * 1e3 / (self.log_bytes / MIB)

    @property
    def aim_s(self) -> float | None:
        return AIMS_S[self.after] if self.record_count == AIM_RECORDS else None


def summarize(starts: Sequence[Start], empty_opened_s: float) -> Summary:
    """Of starts of one kind. `empty_opened_s` is what opening an empty folder takes."""
    first = starts[0]
    return Summary(
        record_count=first.record_count,
        after=first.after,
        ready_s=statistics.median(each.ready_s for each in starts),
        ready_most_s=max(each.ready_s for each in starts),
        store_s=max(0.0, statistics.median(e.opened_s for e in starts) - empty_opened_s),
        log_bytes=first.log_bytes,
        log_entries=first.log_entries,
        table_bytes=first.table_bytes,
    )


def summaries(starts: Sequence[Start], empty_opened_s: float) -> list[Summary]:
    groups: dict[tuple[int, str], list[Start]] = {}
    for each in starts:
        groups.setdefault((each.record_count, each.after), []).append(each)
    return [summarize(group, empty_opened_s) for group in groups.values()]


def text(found: Sequence[Summary]) -> str:
    """The table, and the aims."""
    rows = [["records", "after", "ready s", "most", "store s", "log MiB", "log entries"]]
    rows[0] += ["tables MiB", "store ms / MiB of log"]
    for each in found:
        rate = each.store_ms_per_mib
        rows.append(
            [
                str(each.record_count),
                each.after,
                f"{each.ready_s:.2f}",
                f"{each.ready_most_s:.2f}",
                f"{each.store_s:.2f}",
                f"{each.log_bytes / MIB:.1f}",
                str(each.log_entries),
                f"{each.table_bytes / MIB:.1f}",
                "-" if rate is None else f"{rate:.1f}",
            ]
        )
    lines = [columns(rows), ""]
    for each in found:
        if each.aim_s is not None:
            words = verdict(f"<= {each.aim_s:g} s", is_met=each.ready_s <= each.aim_s)
            lines.append(
                f"{each.record_count} records after {each.after}: ready in {each.ready_s:.2f} s, {words}"
            )
    if all(each.aim_s is None for each in found):
        lines.append(f"The aims are for {AIM_RECORDS} records.")
    return "\n".join([*lines, ""])


def overwrite(server: RunningServer, record_count: int, count: int, rng: random.Random) -> None:
    """Write random records again, in pipelines, and return at the last reply."""
    with Connection(server.address) as connection:
        for begin in range(0, count, load.LOAD_BATCH):
            size = min(load.LOAD_BATCH, count - begin)
            commands = [
                encode_command(
                    b"SET",
                    load.key(rng.randrange(record_count)),
                    rng.randbytes(load.VALUE_BYTES // 2).hex().encode(),
                )
                for _ in range(size)
            ]
            connection.send(b"".join(commands))
            expected = b"+OK\r\n" * size
            answered = bytes(connection.read_exactly(len(expected)))
            if answered != expected:
                raise load.LoadFailed(f"a SET was answered with {answered[:200]!r}")


def look(server: RunningServer, record_count: int, after: str) -> Start:
    """Ask a server that has just started what it replayed, and that nothing is missing."""
    with Connection(server.address) as connection:
        info = connection.info(b"persistence")
        key_count = connection.command(b"DBSIZE")
    assert isinstance(key_count, int)
    if key_count != record_count:
        raise load.LoadFailed(f"{key_count} of {record_count} records after {after}")
    return Start(
        record_count=record_count,
        after=after,
        opened_s=server.opened_s,
        ready_s=server.ready_s,
        log_bytes=int(info["aof_current_size"]),
        log_entries=int(info["rdb_last_load_keys_loaded"]),
        table_bytes=int(info["table_bytes"]),
        key_count=key_count,
    )


def measure(
    root: Path, record_count: int, overwrites: int, round_count: int, settings: Sequence[str]
) -> list[Start]:
    """All starts with one number of records."""
    folder, log = root / "data", root / "log"
    folder.mkdir()
    rng = random.Random(record_count)
    starts = []
    with started(folder, log=log, settings=settings) as server:
        _progress(f"{record_count} records: writing them")
        load.load_keys(server.address, record_count)
        rest(_as_server(server), wait_s=REST_WAIT_AFTER_LOAD_S)
    for _ in range(round_count):
        with started(folder, log=log, settings=settings) as server:
            starts.append(_noted(look(server, record_count, CLEAN)))
    with started(folder, log=log, settings=settings) as server:
        _progress(f"{record_count} records: overwriting {overwrites}")
        overwrite(server, record_count, overwrites, rng)
        server.kill()
    for _ in range(round_count):
        with started(folder, log=log, settings=settings) as server:
            starts.append(_noted(look(server, record_count, CRASH)))
            server.kill()
    return starts


def measure_empty(
    root: Path, round_count: int, settings: Sequence[str]
) -> tuple[float, machine.Facts]:
    """How long a server takes until an empty folder is open (the least of some starts), and the facts."""
    times = []
    for number in range(round_count):
        folder = root / f"empty-{number}"
        folder.mkdir()
        with started(folder, log=root / "log", settings=settings) as server:
            times.append(server.opened_s)
            facts = machine.read_facts([_as_server(server)])
    return min(times), facts


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.reopen", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument(
        "--records", type=_positives, default=(100_000, 1_000_000, 3_000_000), help="by commas"
    )
    parser.add_argument("--rounds", type=int, default=3, help="starts of each kind (3)")
    parser.add_argument(
        "--overwrites", type=int, default=OVERWRITES, help="before the crash, at most the records"
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    load_before, before = machine.load_average(), machine.read_activity()
    starts: list[Start] = []
    try:
        with tempfile.TemporaryDirectory(prefix="bench-reopen-") as directory:
            empty_s, facts = measure_empty(Path(directory), options.rounds, options.set)
        print(report.facts_text(facts), flush=True)
        for record_count in options.records:
            with tempfile.TemporaryDirectory(prefix="bench-reopen-") as directory:
                overwrites = min(options.overwrites, record_count)
                starts += measure(
                    Path(directory), record_count, overwrites, options.rounds, options.set
                )
    except _FAILURES as error:
        print(f"bench.reopen: {failure_text(error)}", file=sys.stderr)
        return 1
    found = summaries(starts, empty_s)
    print(text(found))
    print(f"An empty folder is open after {empty_s:.2f} s: interpreter and imports.")
    share = machine.other_share(before, machine.read_activity(), machine.core_count())
    load_after = machine.load_average()
    print(report.noise_text([share], load_before, load_after))
    if options.json is not None:
        document = {
            "facts": dataclasses.asdict(facts),
            "load_average": {"before": load_before, "after": load_after},
            "other_share": share,
            "empty_opened_s": empty_s,
            "starts": [dataclasses.asdict(each) for each in starts],
            "summaries": [dataclasses.asdict(each) for each in found],
        }
        options.json.write_text(report.to_json(document))
    return 0


def _as_server(server: RunningServer) -> Server:
    return Server("respkv", VERSION, server.address, server.pid)


def _noted(start: Start) -> Start:
    _progress(
        f"{start.record_count} records after {start.after}: ready in {start.ready_s:.2f} s,"
        f" {start.log_bytes / MIB:.1f} MiB of log"
    )
    return start


def _progress(words: str) -> None:
    """Say on standard error what goes on; standard output holds the tables."""
    print(words, file=sys.stderr, flush=True)


def _positives(words: str) -> tuple[int, ...]:
    numbers = tuple(map(int, words.split(",")))
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{words}: all must be positive")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
