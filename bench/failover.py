"""A node dies and comes back: what clients of the others see, and how soon it has caught up (shell).

It asserts nothing: figures stand beside their aims.

    python -m bench.failover [--operations 10000] [--clients 16] [--further-keys 10000] [--json FILE]

Three nodes, N=3, W=2, R=2. Clients at two of them SET and GET; in the middle of it the third node is
killed with signal 9. Then it is away while further keys are written. At last it is started again,
and asked for every key that was written in its absence by `KV.LOCAL`, which answers what the node
itself holds and asks no other: nothing is read through the cluster, so no read can repair it.

Aims: no errors, the longest operation 1 s; all that it missed 10 s after it was started.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import redis

from bench import machine, report
from bench.connection import Address, ConnectionEnded, ErrorAnswered
from bench.failover_clients import Clients, Operation, Seen, client_of
from bench.load import LoadFailed
from bench.ping import percentile
from bench.replicated import positive, progress
from bench.replicated_servers import Cluster, RunningMember, cluster
from bench.server import ServerNotReady, failure_text

LONGEST_AIM_S: Final = 1.0
CAUGHT_UP_AIM_S: Final = 10.0
CATCH_UP_WAIT_S: Final = 60.0
ASK_BATCH: Final = 500
ASK_PAUSE_S: Final = 0.05
ERROR_TEXTS_SHOWN: Final = 5
WRONG_SHOWN: Final = 5

_FAILURES = (
    ServerNotReady,
    LoadFailed,
    ConnectionEnded,
    ErrorAnswered,
    OSError,
    redis.RedisError,
)


@dataclass(frozen=True, slots=True)
class CatchUp:
    """How a node that was away came back. Times are seconds since it was started."""

    missed_count: int
    ready_s: float
    held_s: float | None  # None: it never had all in the time that it was given.
    lacking_count: int


@dataclass(frozen=True, slots=True)
class Result:
    """Everything that was measured. `after` are operations that ended when the node was dead."""

    operation_count: int
    errors: dict[str, int]
    wrong: list[str]
    p50_ms: float
    p99_ms: float
    longest_s: float
    after_count: int
    after_p50_ms: float
    after_p99_ms: float
    after_longest_s: float
    further_error_count: int
    catch_up: CatchUp


def result(seen: Seen, killed_s: float, further: Sequence[Operation], catch_up: CatchUp) -> Result:
    """Put it together."""
    all_s = [each.took_s for each in seen.operations]
    after_s = [each.took_s for each in seen.after(killed_s)]
    if not after_s:
        raise LoadFailed("no operation ended after the node was killed")
    return Result(
        operation_count=len(all_s),
        errors=dict(seen.errors),
        wrong=seen.wrong,
        p50_ms=percentile(all_s, 0.5) * 1e3,
        p99_ms=percentile(all_s, 0.99) * 1e3,
        longest_s=max(all_s),
        after_count=len(after_s),
        after_p50_ms=percentile(after_s, 0.5) * 1e3,
        after_p99_ms=percentile(after_s, 0.99) * 1e3,
        after_longest_s=max(after_s),
        further_error_count=sum(each.error is not None for each in further),
        catch_up=catch_up,
    )


def text(one: Result) -> str:
    """Everything that is printed."""
    error_count = sum(one.errors.values())
    back = one.catch_up
    lines = [
        f"{one.operation_count} operations: p50 {one.p50_ms:.2f} ms, p99 {one.p99_ms:.2f} ms;"
        f" the {one.after_count} that ended after the kill: p50 {one.after_p50_ms:.2f} ms,"
        f" p99 {one.after_p99_ms:.2f} ms, longest {one.after_longest_s:.3f} s",
        f"Errors: {error_count}, {report.verdict('0', is_met=not error_count)}",
        *(
            f"  {count} times {words}"
            for words, count in sorted(one.errors.items(), key=lambda each: -each[1])[
                :ERROR_TEXTS_SHOWN
            ]
        ),
        f"Wrong answers: {len(one.wrong)}, {report.verdict('0', is_met=not one.wrong)}",
        *(f"  {words}" for words in one.wrong[:WRONG_SHOWN]),
        f"Longest operation: {one.longest_s:.3f} s,"
        f" {report.verdict(f'<= {LONGEST_AIM_S:g} s', is_met=one.longest_s <= LONGEST_AIM_S)}",
    ]
    if one.further_error_count:
        lines.append(f"{one.further_error_count} of the further keys were not written")
    aim = f"<= {CAUGHT_UP_AIM_S:g} s"
    if back.held_s is None:
        lines.append(
            f"{back.lacking_count} of {back.missed_count} keys were still not there"
            f" {CATCH_UP_WAIT_S:g} s after it was ready, {report.verdict(aim, is_met=False)}"
        )
    else:
        lines.append(
            f"It held the {back.missed_count} keys that it had missed {back.held_s:.2f} s after its"
            f" start, {back.held_s - back.ready_s:.2f} s after it was ready,"
            f" {report.verdict(aim, is_met=back.held_s <= CAUGHT_UP_AIM_S)}"
        )
    return "\n".join(lines)


def wait_until_held(
    wanted: Mapping[bytes, bytes],
    ask: Callable[[Sequence[bytes]], Sequence[object]],
    deadline_s: float,
) -> int:
    """Ask for the keys that are not there yet until all have their value; how many are still lacking.

    `ask` returns the values of some keys. What was there once is not asked for again.
    """
    pending = list(wanted)
    while True:
        lacking: list[bytes] = []
        for at in range(0, len(pending), ASK_BATCH):
            names = pending[at : at + ASK_BATCH]
            answers = ask(names)
            lacking += [
                name for name, value in zip(names, answers, strict=True) if value != wanted[name]
            ]
        pending = lacking
        if not pending or time.monotonic() > deadline_s:
            return len(pending)
        time.sleep(ASK_PAUSE_S)


def come_back(one: Cluster, dead: RunningMember, missed: Mapping[bytes, bytes]) -> CatchUp:
    """Start a node again and wait until it holds what it missed."""
    began_s = time.monotonic()
    node = one.start(dead.member)
    node.wait_until_ready()
    ready_s = time.monotonic() - began_s
    ask = local_values(node.address)
    lacking_count = wait_until_held(missed, ask, time.monotonic() + CATCH_UP_WAIT_S)
    held_s = None if lacking_count else time.monotonic() - began_s
    return CatchUp(len(missed), ready_s, held_s, lacking_count)


def local_values(address: Address) -> Callable[[Sequence[bytes]], Sequence[object]]:
    """How to ask a node for what it holds itself."""
    client: Any = client_of(address)  # Its pipelines have no types.

    def ask(names: Sequence[bytes]) -> Sequence[object]:
        with client.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.execute_command("KV.LOCAL", name)
            answers: list[object] = pipeline.execute(raise_on_error=True)
            return answers

    return ask


def measure(options: argparse.Namespace) -> tuple[Result, machine.Facts]:
    """Start the nodes, kill one, start it again."""
    with cluster() as one:
        facts = machine.read_facts(one.group.servers)
        *living, dying = one.nodes
        clients = Clients([node.address for node in living], options.clients)
        killed_s: list[float] = []

        def kill() -> None:
            killed_s.append(time.monotonic())
            dying.kill()

        try:
            progress(f"{options.operations} operations; node {dying.member.name} is killed")
            clients.run(options.operations, kill)
            progress(f"writing {options.further_keys} further keys without it")
            further = clients.write_further(options.further_keys)
        finally:
            clients.close()
        # Written when it was dead for sure: what was under way at the kill may have reached it.
        late = {
            each.name
            for each in [*clients.seen.operations, *further]
            if each.is_write and each.began_s > killed_s[0]
        }
        missed = {name: value for name, value in clients.values().items() if name in late}
        if not missed:
            raise LoadFailed("nothing was written while the node was away")
        progress(f"node {dying.member.name} is started again; it missed {len(missed)} keys")
        catch_up = come_back(one, dying, missed)
        return result(clients.seen, killed_s[0], further, catch_up), facts


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.failover", description=(__doc__ or "").split("\n", 1)[0]
    )
    add = parser.add_argument
    add("--operations", type=positive, default=10_000, help="of all clients together (10000)")
    add("--clients", type=positive, default=16, help="(16)")
    add("--further-keys", type=_count, default=10_000, help="written without the node (10000)")
    add("--json", type=Path, metavar="FILE", help="write every figure there")
    options = parser.parse_args(arguments)
    if options.operations < 4 * options.clients:
        parser.error("--operations must be at least four for each client")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    try:
        measured, facts = measure(options)
    except _FAILURES as error:
        print(f"bench.failover: {failure_text(error)}", file=sys.stderr)
        return 1
    print(report.facts_text(facts))
    print(text(measured))
    if options.json is not None:
        document: dict[str, Any] = {
            "facts": dataclasses.asdict(facts),
            **dataclasses.asdict(measured),
        }
        options.json.write_text(report.to_json(document))
    return 0


def _count(words: str) -> int:
    number = int(words)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{words} is not a number of keys")
    return number


if __name__ == "__main__":
    sys.exit(main())
