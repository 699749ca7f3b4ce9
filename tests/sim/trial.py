"""One run of a world from a seed: faults and clients for a minute, then healing, liveness, and the checkers.

    safety    clients work while faults happen
    healing   all faults end
    liveness  within `DEADLINE_S` every node runs and answers, and the replicas agree
    audit     all keys are read once more; then the checkers judge the whole history

`Result` is all that a run leaves: what was found, what fired, and the digest of its trace.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import count

import trio
import trio.testing

from tests.sim import check
from tests.sim.client import Client
from tests.sim.fault import Faults
from tests.sim.history import History
from tests.sim.plan import Plan
from tests.sim.timeline import deterministic
from tests.sim.workload import Workload, audit, audit_tokens
from tests.sim.world import World, claimed_once, quiet

DEADLINE_S = 40.0
AUDITOR = 1000  # Session of the audit, and of the clients that ask for life.


@dataclass(slots=True)
class Result:
    """What a run leaves."""

    plan: Plan
    findings: list[str] = field(default_factory=list)
    fired: Counter[str] = field(default_factory=Counter)
    operations: int = 0
    acknowledged: int = 0
    simulated_s: float = 0.0
    real_s: float = 0.0
    cpu_s: float = 0.0
    digest: str = ""
    log: str = ""
    history: History = field(default_factory=History)
    trace: list[str] = field(default_factory=list)


Act = Callable[[Client], Awaitable[None]]
End = Callable[[World, History, Result], Awaitable[None]]


def run(plan: Plan) -> Result:
    """Do one run. Raises nothing for what the product does wrong: that is in `findings`."""
    result = Result(plan)
    workload = Workload(plan.keys, plan.pipeline)
    world = complete(result, workload.act, partial(_live, workload))
    _judge(world, result.history, result)
    return result


def complete(result: Result, act: Act, end: End) -> World:
    """Clients that do one thing (`act`) after the other through faults; then all is healed, and `end` has its time.

    What is not well by itself is in `result` afterwards.
    """
    plan = result.plan
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    with quiet() as log, deterministic(plan.seed), claimed_once(), _uncollected():
        clock = trio.testing.MockClock(autojump_threshold=0)
        world = trio.run(_run, result, act, end, clock=clock)
    result.real_s = time.perf_counter() - started_s
    result.cpu_s = time.process_time() - started_cpu_s
    result.log = log.getvalue().decode(errors="replace")
    result.findings += [f"product code failed: {failure!r}" for failure in world.failures]
    result.fired = world.fired
    result.operations = len(result.history.operations)
    result.acknowledged = sum(op.is_acknowledged for op in result.history.operations)
    result.digest = world.trace.digest
    result.trace = world.trace.lines
    return world


@contextmanager
def _uncollected() -> Iterator[None]:
    """No collector within a run: it takes time, and calls finalisers at moments that no seed decides."""
    _leave_alone()
    is_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_on:
            gc.enable()
        gc.collect()


@cache
def _leave_alone() -> None:
    """Keep the collector from going through modules and classes after each run: that takes as long again.

    Once in a process: what is left of one run must not be taken for a part of them before the next.
    """
    gc.collect()
    gc.freeze()


async def _run(result: Result, act: Act, end: End) -> World:
    world = World(result.plan)
    history = result.history
    faults = Faults(world)
    async with world.running():
        with _until_failure(world):
            await _work(world, act, faults, history)
            faults.heal()
            with trio.move_on_after(DEADLINE_S) as deadline:
                await end(world, history, result)
            if deadline.cancelled_caught:
                result.findings.append(f"liveness: not all is well {DEADLINE_S} s after healing")
        result.simulated_s = world.timeline.now_s
    return world


@contextmanager
def _until_failure(world: World) -> Iterator[trio.CancelScope]:
    """Leave the block at once when product code has failed."""
    with trio.CancelScope() as scope:
        world.when_failed = scope.cancel
        yield scope


async def _work(world: World, act: Act, faults: Faults, history: History) -> None:
    """Clients and faults for as long as the plan says."""
    plan = world.plan
    with trio.move_on_after(plan.seconds):
        async with trio.open_nursery() as nursery:
            for session in range(plan.clients):
                is_cluster = session < plan.clients * plan.cluster_clients
                client = Client(world, session, history, is_cluster=is_cluster)
                nursery.start_soon(_behave, client, act)
            if plan.has_faults:
                nursery.start_soon(faults.run)


async def _behave(client: Client, act: Act) -> None:
    """Do one thing after the other, with pauses, until cancelled."""
    rng, plan = client.rng, client.world.plan
    interval_s = plan.clients / plan.rate
    while True:
        await trio.sleep(rng.expovariate(1 / interval_s))
        async with client.world.gate:
            if rng.random() < plan.moves:
                client.leave()
            await act(client)


async def _live(workload: Workload, world: World, history: History, result: Result) -> None:
    """Each node answers, the replicas agree, and all keys can be read."""
    for place, name in enumerate(world.names):
        client = Client(world, AUDITOR + 1 + place, history, home=name)
        key = b"alive:%s" % name.encode()
        for attempt in count():
            if (await client.ask(b"SET", key, b"%d" % attempt)).is_acknowledged:
                break
            await trio.sleep(0.2)
    while findings := world.difference():
        result.findings[:] = map(str, findings[:3])
        await trio.sleep(0.5)
    result.findings.clear()
    auditor = Client(world, AUDITOR, history)
    await audit(auditor, workload.keys)
    await audit_tokens(auditor, workload.tokens)


def _judge(world: World, history: History, result: Result) -> None:
    findings = result.findings
    undecided: Counter[str] = Counter()
    plan = world.plan
    checkers = [
        check.check_counters,
        check.check_locks,
        check.check_order,
        check.check_transfers,
    ]
    if plan.is_w_majority:
        checkers += [check.check_registers, check.check_private]
        only = None if plan.is_confirmed else (AUDITOR,)
        findings += map(str, check.check_tokens(history, only))
    if plan.is_confirmed:
        checkers += [check.check_sessions, check.check_appends]
    for checker in checkers:
        findings += map(str, checker(history))
    if plan.is_w_majority:
        findings += map(str, check.check_leases(history, world.skew_max_s))
    if plan.is_confirmed and not findings:  # It takes long where there is no order.
        findings += map(str, check.check_linearity(history, undecided))
    for verdict, times in undecided.items():
        result.fired[f"keys {verdict}"] += times
