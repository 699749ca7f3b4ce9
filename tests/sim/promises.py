"""What each R and W promises, and does not: docs/CONSISTENCY.md's table, run through faults.

    python -m tests.sim.promises --seeds 300               all nine, a table at the end
    python -m tests.sim.promises -r 1 -w 2 --seeds 300     one of them
    python -m tests.sim.promises -r 1 -w 2 --seed 17       one run, with what was found

N is 3. Half of the runs say R and W in the configuration, half in a policy of the keys; half are on three nodes,
half on five. The faults, the world and the clients are those of `tests/sim/trial.py`; the workload and the checkers
are here:

    mine:S     registers that one session SETs to rising numbers, and all read
    shared:K   registers that all SET, and that are read at the end
    count:K    counters that all INCR, and now and then SET
    lock:K     keys that are taken with SET NX, given back with DEL, and now and then SET by force

A promise that is made and broken is a failure. One that is not made has to be broken in some run of all, or
nobody knows that its checker sees anything.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Final

import trio

from respkv.policy import Policy
from tests.sim import linearizable
from tests.sim.client import Client
from tests.sim.history import History, Operation
from tests.sim.linearizable import Verdict
from tests.sim.plan import Plan
from tests.sim.trial import AUDITOR, Result, complete
from tests.sim.world import World

CLIENTS: Final = 6
KEYS: Final = 2  # Of each kind but the first.
SECONDS: Final = 12.0
NODES: Final = 5
READ_YOUR_WRITES: Final = "Read your writes"
MONOTONIC_READS: Final = "Monotonic reads"
NO_LOST_UPDATE: Final = "No lost update"
ONE_HOLDER: Final = "One holder of SET NX"
IN_ORDER: Final = "Concurrent SETs"
PROMISES: Final = (READ_YOUR_WRITES, MONOTONIC_READS, NO_LOST_UPDATE, ONE_HOLDER, IN_ORDER)
_ALL: Final = frozenset(PROMISES)
_CHECKED: Final = frozenset({NO_LOST_UPDATE, ONE_HOLDER, IN_ORDER})
# By R and W, as the table of the documentation.
PROMISED: Final[Mapping[tuple[int, int], frozenset[str]]] = {
    (2, 2): _ALL,
    (2, 3): _ALL,
    (3, 2): _ALL,
    (3, 3): _ALL,
    (1, 3): _CHECKED | {READ_YOUR_WRITES},
    (1, 2): _CHECKED,
    (3, 1): frozenset(),
    (2, 1): frozenset(),
    (1, 1): frozenset(),
}


def draw(seed: int, r: int, w: int, *, seconds: float = SECONDS) -> Plan:
    """Everything but R and W comes from the seed."""
    plan = Plan.contended if seed // 4 % 2 else Plan.draw
    drawn = plan(seed, nodes=NODES, seconds=seconds, rate=20.0)
    is_policy = bool(seed % 2)
    is_lasting = w > 1 and not (r == 1 and drawn.disk_fault == "old")
    return replace(
        drawn,
        nodes=3 if seed // 2 % 2 else NODES,
        n=3,
        r=0 if is_policy else r,
        w=0 if is_policy else w,
        policies=(Policy(pattern="*:*", read=r, write=w),) if is_policy else (),
        clients=CLIENTS,
        fsync="always",
        skew_s=0.3,
        moves=0.5,
        cluster_clients=0.0,
        # What was on one disk only may be lost; and who asks nobody cannot know that its disk is old.
        disk_fault=drawn.disk_fault if is_lasting else "",
    )


def run(plan: Plan) -> Result:
    """One run. Its findings begin with the name of the promise that they break, or have another one."""
    result = Result(plan)
    complete(result, partial(_act, _Numbers()), _audit)
    if not result.findings:
        result.findings += [
            f"{promise}: {text}"
            for promise, checker in CHECKERS.items()
            for text in checker(result.history)
        ]
    return result


def broken(result: Result) -> set[str]:
    """The promises that a run broke; with another name for what is never right."""
    return {finding.partition(":")[0] for finding in result.findings}


# The workload


class _Numbers:
    """Values that are given once in a run."""

    def __init__(self) -> None:
        self.last = 0

    def next(self) -> int:
        self.last += 1
        return self.last


async def _act(numbers: _Numbers, client: Client) -> None:
    rng = client.rng
    if rng.random() < client.world.plan.moves:
        client.leave()
    number = b"%d" % rng.randrange(KEYS)
    value = b"%d" % numbers.next()
    choice = rng.random()
    if choice < 0.1:
        await client.ask(b"SET", b"mine:%d" % client.session, value)
    elif choice < 0.35:
        session = rng.choice((client.session, rng.randrange(CLIENTS)))
        await client.ask(b"GET", b"mine:%d" % session)
    elif choice < 0.5:
        await client.ask(b"SET", b"shared:" + number, value)
    elif choice < 0.57:
        await client.ask(b"SET", b"count:" + number, value + b"0000")
    elif choice < 0.72:
        await client.ask(b"INCR", b"count:" + number)
    elif choice < 0.8:
        await client.ask(b"SET", b"lock:" + number, value)
    else:
        taken = await client.ask(b"SET", b"lock:" + number, value, b"NX")
        if taken.reply == b"OK":
            await trio.sleep(rng.uniform(0, 0.5))
            await client.ask(b"DEL", b"lock:" + number)


async def _audit(world: World, history: History, _: Result) -> None:
    """When the replicas agree, each register is read once more."""
    while not world.is_well:  # noqa: ASYNC110
        await trio.sleep(0.5)
    auditor = Client(world, AUDITOR, history)
    keys = [b"mine:%d" % session for session in range(CLIENTS)]
    keys += [b"shared:%d" % number for number in range(KEYS)]
    for key in keys:
        while not (await auditor.ask(b"GET", key)).is_acknowledged:  # noqa: ASYNC110
            await trio.sleep(0.2)


# The checkers


def _keys(history: History, prefix: bytes) -> list[list[Operation]]:
    """What may have been done to each key of a kind."""
    return [ops for key, ops in sorted(history.by_key().items()) if key.startswith(prefix)]


def _read_your_writes(history: History) -> Iterator[str]:
    """No read shows less than what was acknowledged before it began."""
    for operations in _keys(history, b"mine:"):
        writes = {each.args[2]: each for each in operations if each.name == b"SET"}
        told = [write for write in writes.values() if write.is_acknowledged]
        for read in operations:
            if read.name != b"GET" or not read.is_acknowledged:
                continue
            shown = writes.get(read.reply) if isinstance(read.reply, bytes) else None
            for write in told:
                is_older = shown is None or (shown.is_acknowledged and shown.precedes(write))
                if write.precedes(read) and is_older:
                    yield f"{read} after {write}"
                    break


def _monotonic_reads(history: History) -> Iterator[str]:
    """No read shows less than one that was over before it began."""
    for operations in _keys(history, b"mine:"):
        writes = {each.args[2]: each for each in operations if each.name == b"SET"}
        reads = [
            (each, writes.get(each.reply) if isinstance(each.reply, bytes) else None)
            for each in operations
            if each.name == b"GET" and each.is_acknowledged
        ]
        for read, shown in reads:
            for earlier, seen in reads:
                if seen is None or not seen.is_acknowledged or not earlier.precedes(read):
                    continue
                if shown is None or (shown.is_acknowledged and shown.precedes(seen)):
                    yield f"{read} after {earlier}"
                    break


def _no_lost_update(history: History) -> Iterator[str]:
    """There is an order that explains what was counted."""
    for operations in _keys(history, b"count:"):
        if linearizable.check(operations) is Verdict.VIOLATED:
            yield f"no order explains {operations[0].key!r}"


def _one_holder(history: History) -> Iterator[str]:
    """There is an order that explains who got a lock. Not who did not: with R = 1 that may be known late."""
    for operations in _keys(history, b"lock:"):
        found = [each for each in operations if each.reply not in (None, 0)]
        if linearizable.check(found) is Verdict.VIOLATED:
            yield f"no order explains who held {found[0].key!r}"


def _in_order(history: History) -> Iterator[str]:
    """What is there at the end was not replaced."""
    for operations in _keys(history, b"shared:"):
        found = [each for each in operations if each.name == b"SET" or each.session == AUDITOR]
        if linearizable.check(found) is Verdict.VIOLATED:
            yield f"{found[-1]} was replaced"


CHECKERS: Final[Mapping[str, Callable[[History], Iterator[str]]]] = {
    READ_YOUR_WRITES: _read_your_writes,
    MONOTONIC_READS: _monotonic_reads,
    NO_LOST_UPDATE: _no_lost_update,
    ONE_HOLDER: _one_holder,
    IN_ORDER: _in_order,
}


# The campaign


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0 if what was promised held, and if each promise was broken where none was made."""
    parser = argparse.ArgumentParser("python -m tests.sim.promises")
    parser.add_argument("-r", type=int, choices=(1, 2, 3), help="only this R")
    parser.add_argument("-w", type=int, choices=(1, 2, 3), help="only this W")
    parser.add_argument("--seeds", type=int, default=100, help="how many runs of each R and W")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="do this one, and show what is found")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    args = parser.parse_args(arguments)
    pairs = [
        (r, w)
        for r, w in product((1, 2, 3), repeat=2)
        if args.r in (None, r) and args.w in (None, w)
    ]
    seeds = [args.seed] if args.seed is not None else range(args.first, args.first + args.seeds)
    status = 0
    seen: set[str] = set()
    with ProcessPoolExecutor(args.jobs) as pool:
        for r, w in pairs:
            work = partial(_one, r, w, args.seconds)
            counts: Counter[str] = Counter()
            for seed, found in zip(seeds, pool.map(work, seeds), strict=True):
                names = {text.partition(":")[0] for text in found}
                counts.update(names)
                if args.seed is not None or not names <= _ALL - PROMISED[r, w]:
                    print(f"R={r} W={w} seed {seed}: -r {r} -w {w} --seed {seed}")
                    print(*(f"  {text}" for text in found), sep="\n", flush=True)
                if not names <= _ALL - PROMISED[r, w]:
                    status = 1
            seen |= counts.keys() & _ALL
            print(f"R={r} W={w}: {_row(r, w, counts, len(seeds))}", flush=True)
    if len(pairs) == len(PROMISED) and seen != _ALL:
        print(f"FAILED: nothing ever broke: {', '.join(sorted(_ALL - seen))}")
        status = 1
    return status


def _one(r: int, w: int, seconds: float, seed: int) -> list[str]:
    return run(draw(seed, r, w, seconds=seconds)).findings


def _row(r: int, w: int, counts: Counter[str], runs: int) -> str:
    cells = [
        f"{promise}: "
        + (f"held in {runs - counts[promise]} of {runs}" if promise in PROMISED[r, w] else
           f"not promised, broken in {counts[promise]}")
        for promise in PROMISES
    ]  # fmt: skip
    others = {name: count for name, count in counts.items() if name not in _ALL}
    return "; ".join(cells) + (f"; {others}" if others else "")


if __name__ == "__main__":
    sys.exit(main())
