"""Siblings through faults: clients that merge what they read, and those that never read, on a few keys.

    python -m tests.sim.siblings --seeds 300 --from 0
    python -m tests.sim.siblings --canary NAME         a bug is planted: some seed has to find it

The world, its faults and its clients are those of `tests/sim/trial.py`; the workload and the checker are
here. A client reads a key (KV.GET), and writes a value that nobody else writes with the context that it got; or
goes on from the context of its last KV.PUT; or writes without one; or deletes what it has seen. Some keys get
plain SETs from all clients at once.

What is promised, of W a majority (docs/SIBLINGS.md):

    nothing is lost    an acknowledged value is a sibling at the end, or a write whose context covered it was
                       acknowledged or may have been made
    nothing comes back a value that was read is gone, if a write with the context of that reading was acknowledged
    nothing is made up each sibling was written, and not refused
    read your writes   a value is shown by each later reading of who had its acknowledgement, or was covered
    agreement          at the end all nodes show the same siblings
    few siblings       of a key with plain SETs: never more than `siblings.soft_max`
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import trio
import trio.testing

from cluster import delta, sibling
from cluster.clock import SlotClock
from cluster.record import Record
from cluster.sibling import Beside, Seen
from respkv.sections import Siblings
from tests.sim.client import Client
from tests.sim.history import History, Operation
from tests.sim.plan import Plan
from tests.sim.trial import AUDITOR, Result, complete
from tests.sim.world import World

UNDER_WAY_S = (
    5.0  # Commands whose clients have left may take effect till then: `cluster.timeout_ms`.
)
CLIENTS = 8
SOFT_MAX = Siblings().soft_max
CANARIES = (
    "a write replaces all that is here",
    "a context covers nothing",
    "last writer wins",  # A join keeps the latest version only.
)
Values = frozenset[bytes]


@dataclass(slots=True, eq=False)
class Write:
    """A KV.PUT of a value, or a KV.DEL (no value). `read`: what the reading showed whose context it brought."""

    operation: Operation
    key: bytes
    value: bytes
    covered: Values
    read: Values


@dataclass(slots=True)
class Known:
    """What a client has of a key."""

    context: bytes = b""
    covered: Values = frozenset()
    read: Values = frozenset()  # If the context is of a reading.


class Workload:
    """What the clients share: the names of the keys, and all writes."""

    def __init__(self, keys: int) -> None:
        self.keys = [b"cart%d" % number for number in range(keys)]
        self.plain = b"plain"
        self.writes: list[Write] = []
        self.readings: list[tuple[Operation, bytes, Values]] = []
        self.counts: list[tuple[Operation, int]] = []
        self._values = 0
        self._known: dict[int, dict[bytes, Known]] = {}  # By session.

    async def act(self, client: Client) -> None:
        """Do one thing."""
        rng = client.rng
        known = self._known.setdefault(client.session, {key: Known() for key in self.keys})
        choice = rng.random()
        key = rng.choice(self.keys)
        if choice < 0.1:
            await client.ask(b"SET", self.plain, self._value(client))
        elif choice < 0.15:
            read = await client.ask(b"KV.SIBLINGS", self.plain)
            if isinstance(read.reply, list):
                assert isinstance(read.reply[0], list)
                self.counts.append((read, len(read.reply[0])))
        elif choice < 0.5:
            known[key] = await self.read(client, key) or known[key]
        elif choice < 0.58:
            await self._write(client, key, Known())  # It has read nothing.
        elif choice < 0.65:
            await self._delete(client, key, known[key])
        elif choice < 0.75:
            known[key] = await self._write(client, key, known[key])
        else:
            seen = await self.read(client, key)
            if seen is not None:
                known[key] = await self._write(client, key, seen)

    def _value(self, client: Client) -> bytes:
        self._values += 1
        return b"%d-%d" % (client.session, self._values)

    async def read(self, client: Client, key: bytes) -> Known | None:
        operation = await client.ask(b"KV.GET", key)
        if not isinstance(operation.reply, list):
            return None
        versions, context = operation.reply
        assert isinstance(versions, list)
        assert isinstance(context, bytes)
        values = frozenset(version[0] for version in versions)  # type: ignore[index]
        self.readings.append((operation, key, values))  # type: ignore[arg-type]
        return Known(context, values, values)  # type: ignore[arg-type]

    async def _write(self, client: Client, key: bytes, known: Known) -> Known:
        value = self._value(client)
        words = (b"CONTEXT", known.context) if known.context else ()
        # Noted before it is sent: should the run end first, its outcome is unknown.
        write = Write(NEVER, key, value, known.covered, known.read)
        self.writes.append(write)
        write.operation = await client.ask(b"KV.PUT", key, value, *words)
        reply = write.operation.reply
        if not isinstance(reply, list):
            return known
        assert isinstance(reply[1], bytes)
        return Known(reply[1], known.covered | {value})

    async def _delete(self, client: Client, key: bytes, known: Known) -> None:
        if known.context:
            write = Write(NEVER, key, b"", known.covered, known.read)
            self.writes.append(write)
            write.operation = await client.ask(b"KV.DEL", key, b"CONTEXT", known.context)


NEVER = Operation(-1, 0, (b"KV.PUT",), 0)


def check(workload: Workload, final: dict[bytes, Values]) -> Iterator[str]:
    """What was promised and does not hold."""
    for key in workload.keys:
        writes = [
            each for each in workload.writes if each.key == key and not each.operation.is_refused
        ]
        by_value = {each.value: each for each in writes if each.value}
        covered = frozenset().union(*(each.covered for each in writes))
        for value, write in by_value.items():
            if write.operation.is_acknowledged and value not in final[key] | covered:
                yield f"lost: {value!r}: {write.operation}"
        for write in writes:
            if write.operation.is_acknowledged:
                for value in sorted(write.read & final[key]):
                    yield f"came back: {value!r} after {write.operation}"
        yield from (f"made up: {value!r}" for value in sorted(final[key] - by_value.keys()))
        for operation, of_key, values in workload.readings:
            if of_key != key:
                continue
            yield from (f"made up: {v!r} in {operation}" for v in sorted(values - by_value.keys()))
            for value, write in by_value.items():
                is_own = write.operation.session == operation.session
                if (
                    is_own
                    and write.operation.is_acknowledged
                    and write.operation.precedes(operation)
                ):
                    covering = (w for w in writes if value in w.covered)
                    if value not in values and not any(covering):
                        yield f"not shown: {value!r} in {operation}"
    for operation, count in workload.counts:
        if count > SOFT_MAX:
            yield f"too many siblings of a plain key: {operation}"


def run(plan: Plan) -> Result:
    result = Result(plan)
    workload = Workload(plan.keys)
    final: dict[bytes, Values] = {}
    complete(result, workload.act, partial(_end, workload, final))
    if not result.findings:
        result.findings += check(workload, final)
    result.fired["siblings at the end"] += sum(len(values) > 1 for values in final.values())
    return result


def draw(seed: int, *, nodes: int = 5, seconds: float = 30.0) -> Plan:
    """Eight clients and default quorums; the rest as any run."""
    plan = Plan.contended if seed % 2 else Plan.draw
    drawn = plan(seed, nodes=nodes, seconds=seconds, rate=20.0)
    keys = min(drawn.keys, 3)
    return replace(drawn, n=0, r=0, w=0, clients=CLIENTS, cluster_clients=0.0, keys=keys)


async def _end(
    workload: Workload,
    final: dict[bytes, Values],
    world: World,
    history: History,
    result: Result,
) -> None:
    """What was under way has ended, the replicas are the same, and then all nodes show the same."""
    await trio.sleep(UNDER_WAY_S)
    while not world.is_well:  # noqa: ASYNC110
        await trio.sleep(0.5)
    for place, name in enumerate(world.names):
        client = Client(world, AUDITOR + place, history, home=name)
        for key in workload.keys:
            while (known := await workload.read(client, key)) is None:  # noqa: ASYNC110
                await trio.sleep(0.2)
            if final.setdefault(key, known.read) != known.read:
                result.findings.append(f"{name} shows other siblings of {key!r}: {known.read}")


@contextmanager
def planted(name: str) -> Iterator[None]:
    """A bug, for the checker to find."""
    beside, seen_with, join = sibling.beside, sibling.seen_with, vars(delta)["join_records"]

    def replacing_all(stored: bytes, clock: SlotClock, seen: Seen, now_ms: int) -> Beside:
        return beside(stored, clock, Seen(clock), now_ms)

    def seeing_nothing(record: Record, clock: SlotClock) -> Seen:
        return Seen()

    def latest_alone(a: Record, b: Record) -> Record:
        both = join(a, b)
        versions = sorted(both.versions, key=lambda version: version.rank)
        return Record(tuple(versions[-1:]), both.context, both.beyond)

    if name == CANARIES[0]:
        sibling.beside = replacing_all
    elif name == CANARIES[1]:
        sibling.seen_with = seeing_nothing
    else:
        assert name == CANARIES[2]
        vars(delta)["join_records"] = latest_alone
    try:
        yield
    finally:
        sibling.beside, sibling.seen_with = beside, seen_with
        vars(delta)["join_records"] = join


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.sim.siblings")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--log", action="store_true", help="show the log of runs that fail")
    parser.add_argument("--canary", choices=CANARIES, help="plant a bug, and stop when it is found")
    args = parser.parse_args(arguments)
    with planted(args.canary) if args.canary else nullcontext():
        return _campaign(args)


def _campaign(args: argparse.Namespace) -> int:
    failed = 0
    total: Counter[str] = Counter()
    started_s = time.monotonic()
    for seed in range(args.first, args.first + args.seeds):
        result = run(draw(seed, seconds=args.seconds))
        total.update(result.fired)
        total["operations"] += result.operations
        total["acknowledged"] += result.acknowledged
        if result.findings:
            failed += 1
            print(result.log if args.log else "", f"seed {seed}: {result.plan}")
            print(*(f"  {finding}" for finding in result.findings[:5]), sep="\n", flush=True)
            if args.canary:
                print(f"found in run {seed - args.first + 1}")
                return 0
    print(f"{args.seeds} runs, {failed} failed, {time.monotonic() - started_s:.0f} s")
    print(*(f"  {count:8} {kind}" for kind, count in sorted(total.items()) if count), sep="\n")
    return 1 if failed or args.canary else 0


if __name__ == "__main__":
    sys.exit(main())
