"""Many runs from many seeds: a campaign.

    python -m tests.sim --seeds 1000 --from 0 --seconds 60 --nodes 5 --jobs 2
    python -m tests.sim --seed 17 --nodes 5           one run, with its log if it fails
    python -m tests.sim --canary NAME --seeds 100     a bug is planted: the campaign has to find it
    python -m tests.sim --like NAME --seeds 20        the same plans without the bug: nothing may be found
    python -m tests.sim --hard                        many crashes and few keys, as for canaries of clusters
    python -m tests.sim --mixed                       runs of all kinds, with their own numbers of nodes and seconds
    python -m tests.sim --unsynced                    the same with everysec, and power cuts of one machine at a time

A canary is found by a run that fails, and does not fail without it.

One run in `--twice-every` is done again, and has to give the same trace; of those, one in ten in another
process under another hash seed. The campaign fails if a run does, if a kind of fault never came true, or if
fewer than half of the operations were acknowledged. A failing seed prints the command that repeats it.

The speed is told twice: by the processor's time, which says what a run costs, and by the clock on the
wall, of which other programs have their share.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace

from tests.sim.canaries import CANARIES
from tests.sim.fault import KINDS_OF_MANY, KINDS_OF_ONE
from tests.sim.plan import Plan
from tests.sim.trial import Result, run

SEEDS_FOR_ALL_KINDS = 50  # In so many runs, everything has to have happened.
PROGRESS_S = 10.0
ACKNOWLEDGED_MIN = 0.5
CHILD_TIMEOUT_S = 300


@dataclass(slots=True)
class Tally:
    """What a campaign has seen so far."""

    runs: int = 0
    failed: list[int] = field(default_factory=list)
    operations: int = 0
    acknowledged: int = 0
    simulated_s: float = 0.0
    real_s: float = 0.0
    cpu_s: float = 0.0
    fired: Counter[str] = field(default_factory=Counter)

    def add(self, result: Result) -> None:
        self.runs += 1
        self.operations += result.operations
        self.acknowledged += result.acknowledged
        self.simulated_s += result.simulated_s
        self.real_s += result.real_s
        self.cpu_s += result.cpu_s
        self.fired.update(result.fired)
        if result.findings:
            self.failed.append(result.plan.seed)

    def missing(self, nodes: int) -> list[str]:
        """The kinds of faults that never came true."""
        kinds = KINDS_OF_ONE if nodes == 1 else KINDS_OF_ONE + KINDS_OF_MANY
        return [kind for kind in kinds if not self.fired[kind]]

    def __str__(self) -> str:
        share = self.acknowledged / max(1, self.operations)
        lines = [
            f"{self.runs} runs, {len(self.failed)} failed; {self.operations} operations, "
            f"{share:.0%} acknowledged",
            f"{self.simulated_s:.0f} s simulated: {_speed(self.simulated_s, self.cpu_s)} of CPU time, "
            f"{_speed(self.simulated_s, self.real_s)} of time",
        ]
        lines += [f"  {count:8} {kind}" for kind, count in sorted(self.fired.items()) if count]
        return "\n".join(lines)


def _speed(simulated_s: float, real_s: float) -> str:
    return f"{simulated_s / max(1e-9, real_s):.1f} to 1 in {real_s:.0f} s"


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0 if all is well, or if a canary was found."""
    args = _parser().parse_args(arguments)
    if args.digest:
        print(_one(args, args.seed).digest)
        return 0
    if args.seed is not None:
        return _repeat(args)
    if args.jobs > 1:
        return _share(args)
    return _campaign(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.sim", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=100, help="how many runs")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="do this one, and show its log if it fails")
    parser.add_argument("--seconds", type=float, default=60.0, help="with faults, per run")
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--rate", type=float, default=20.0, help="operations a second")
    parser.add_argument("--twice-every", type=int, default=10, help="0: never")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--canary", choices=sorted(CANARIES))
    parser.add_argument(
        "--like", choices=sorted(CANARIES), help="plans as for this canary, without its bug"
    )
    parser.add_argument("--hard", action="store_true", help="many crashes, few keys")
    parser.add_argument("--mixed", action="store_true", help="runs of all kinds")
    parser.add_argument(
        "--unsynced",
        action="store_true",
        help="the same, with power cuts that lose what was not synced",
    )
    parser.add_argument(
        "--transfers",
        type=float,
        default=0.0,
        help="share of transactions between some of five keys",
    )
    parser.add_argument(
        "--runs", type=float, default=0.0, help="share of pipelines that a node may do at once"
    )
    parser.add_argument(
        "--count", action="store_true", help="of a canary: in how many runs it is found"
    )
    parser.add_argument("--digest", action="store_true", help="only show the digest of --seed")
    return parser


def _plan(args: argparse.Namespace, seed: int) -> Plan:
    canary = CANARIES.get(args.canary or args.like)
    if args.mixed:
        return Plan.mixed(seed)
    if args.unsynced:
        return Plan.unsynced(seed)
    is_hard = args.hard or (canary is not None and canary.nodes > 1)
    draw = Plan.contended if is_hard else Plan.draw
    plan = draw(seed, nodes=args.nodes, seconds=args.seconds, rate=args.rate)
    if args.transfers or args.runs:
        plan = replace(plan, transfers=args.transfers, runs=args.runs, pipeline=0.0)
    return plan if canary is None else replace(plan, **canary.plan)


def _one(args: argparse.Namespace, seed: int) -> Result:
    plan = _plan(args, seed)
    if not args.canary:
        return run(plan)
    with CANARIES[args.canary].planted():
        return run(plan)


def _options(args: argparse.Namespace) -> list[str]:
    """What makes the plans, for another process."""
    options = ["--nodes", str(args.nodes)]
    options += ["--seconds", f"{args.seconds:g}", "--rate", f"{args.rate:g}"]
    options += ["--hard"] if args.hard else []
    options += ["--mixed"] if args.mixed else []
    options += ["--unsynced"] if args.unsynced else []
    options += ["--transfers", f"{args.transfers:g}"] if args.transfers else []
    options += ["--runs", f"{args.runs:g}"] if args.runs else []
    options += ["--like", args.like] if args.like else []
    return options + (["--canary", args.canary] if args.canary else [])


def _command(args: argparse.Namespace, seed: int) -> list[str]:
    return ["-m", "tests.sim", "--seed", str(seed), *_options(args)]


def _repeat(args: argparse.Namespace) -> int:
    result = _one(args, args.seed)
    if result.findings:
        print(result.log)
    _show(args, result)
    return 1 if result.findings else 0


def _show(args: argparse.Namespace, result: Result) -> None:
    print(f"seed {result.plan.seed}: {len(result.findings)} findings, digest {result.digest}")
    print(f"  {result.plan}")
    for finding in result.findings[:5]:
        print(f"  {finding}")
    if result.findings:
        print(f"  repeat: python {' '.join(_command(args, result.plan.seed))}", flush=True)


def _campaign(args: argparse.Namespace) -> int:
    tally = Tally()
    shown_s = time.monotonic()
    for place, seed in enumerate(range(args.first, args.first + args.seeds)):
        result = _one(args, seed)
        if args.twice_every and not args.canary and place % args.twice_every == 0:
            _check_again(args, result, in_child=place % (10 * args.twice_every) == 0)
        if args.canary and result.findings and run(_plan(args, seed)).findings:
            print(f"seed {seed} fails without the canary too: it does not count")
            result.findings.clear()
        tally.add(result)
        if result.findings:
            if not args.count:
                _show(args, result)
            if args.canary and not args.count:
                print(f"canary {args.canary}: found by seed {seed}, in run {place + 1}")
                return 0
        if time.monotonic() - shown_s > PROGRESS_S:
            shown_s = time.monotonic()
            print(f"{tally.runs} runs, {len(tally.failed)} failed", flush=True)
    print(tally)
    if args.canary:
        print(f"canary {args.canary}: found in {len(tally.failed)} of {args.seeds} runs")
        return 0 if tally.failed else 1
    return _judge(args, tally)


def _judge(args: argparse.Namespace, tally: Tally) -> int:
    status = 1 if tally.failed else 0
    if tally.acknowledged < ACKNOWLEDGED_MIN * tally.operations:
        print("FAILED: fewer than half of the operations were acknowledged")
        status = 1
    missing = tally.missing(args.nodes)
    has_all_kinds = not (args.like or args.unsynced)
    if missing and has_all_kinds and tally.runs >= SEEDS_FOR_ALL_KINDS:
        print(f"FAILED: these never happened: {', '.join(missing)}")
        status = 1
    return status


def _check_again(args: argparse.Namespace, result: Result, *, in_child: bool) -> None:
    """The same seed has to give the same trace; what differs is told as a finding."""
    again = _one(args, result.plan.seed)
    if again.digest != result.digest:
        pairs = zip(result.trace, again.trace, strict=False)
        first = next((f"{one}\n    {other}" for one, other in pairs if one != other), "the length")
        result.findings.append(f"determinism: two runs differ, first here:\n    {first}")
    if in_child:
        environment = {**os.environ, "PYTHONHASHSEED": str(result.plan.seed % 1000 + 1)}
        child = subprocess.run(
            [sys.executable, *_command(args, result.plan.seed), "--digest"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=CHILD_TIMEOUT_S,
            check=True,
        )
        if child.stdout.strip() != result.digest:
            result.findings.append("determinism: under another hash seed the trace is another one")


def _share(args: argparse.Namespace) -> int:
    """Divide the seeds among processes. Each judges its own share."""
    share = -(-args.seeds // args.jobs)
    children = []
    for begin in range(args.first, args.first + args.seeds, share):
        count = min(share, args.first + args.seeds - begin)
        command = [sys.executable, "-m", "tests.sim", "--seeds", str(count), "--from", str(begin)]
        command += ["--twice-every", str(args.twice_every), *_options(args)]
        command += ["--count"] if args.count else []
        children.append(subprocess.Popen(command))
    statuses = [child.wait() for child in children]
    return min(statuses) if args.canary else max(statuses)
