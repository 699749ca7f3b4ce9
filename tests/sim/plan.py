"""What a run is like, drawn from its seed: everything that is not an accident of the run itself.

Also what is promised under its quorums, N, R and W of a cluster's configuration:

    R and W majorities          everything that `check.py` knows
    R no majority, R + W > N    a read sees what was acknowledged before it. But it may also show a write that too
                                few replicas have yet, and the next read, of others, what was before. So no order
                                of all operations of a key, no monotonic reads, and two reads of appended tokens
                                may contradict each other
    W no majority               two nodes may take a SET each at the same time, and the one with the later
                                clock stays: an acknowledged SET may be replaced by one that came before it.
                                What depends on the old value is checked by a majority, which need not hold
                                an acknowledged SET. So counters, locks and transfers hold, of keys that are
                                never SET, and nothing else

Core.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace

from respkv.policy import Policy


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of a run. Printed when it fails."""

    seed: int
    nodes: int = 1
    n: int = 0  # Replicas of a key, R and W; 0: as the product chooses.
    r: int = 0
    w: int = 0
    seconds: float = 60.0
    rate: float = 20.0  # Operations a second, of all clients.
    clients: int = 4
    fsync: str = "always"
    skew_s: float = 0.0  # How far the wall clocks are apart at first.
    loss: float = 0.0
    repetition: float = 0.0
    reordering: float = 0.0
    fault_interval_s: float = 3.0  # On average.
    pipeline: float = 0.2  # Chance of several commands at once.
    runs: float = 0.0  # The share of pipelines of one kind of command, or of records of one shape.
    transfers: float = 0.0  # The share of transactions between some of five keys.
    moves: float = 0.0  # Chance that a client goes to another node before its next command.
    cluster_clients: float = 0.0  # The share of the clients that use the cluster ports.
    policies: tuple[Policy, ...] = ()
    consistency: tuple[
        str, ...
    ] = ()  # What clients say to KV.CONSISTENCY first, such as ("READ", "1").
    keys: int = 6  # Of each workload: few keys make conflicts.
    counting: float = (
        0.0  # The share of INCR and APPEND beside the others: lost ones are always seen.
    )
    renaming: float = 0.0  # The same of RENAME, at the clients' ports.
    has_faults: bool = True
    only: tuple[str, ...] = ()  # The faults that there are, by their names in `Faults`; none: all.
    disk_fault: str = (
        ""  # "lost" or "old": once in the run a machine's disk is empty, or as it was once.
    )

    @classmethod
    def draw(cls, seed: int, *, nodes: int, seconds: float, rate: float) -> Plan:
        rng = random.Random(f"plan-{seed}")
        plan = cls(
            seed=seed,
            nodes=nodes,
            seconds=seconds,
            rate=rate,
            clients=rng.randint(2, 8),
            # Without `always` a power cut loses what only one machine had: then there are few (`fault.py`).
            fsync=rng.choice(("always", "always", "always", "everysec")),
            skew_s=rng.choice((0.0, 0.05, 0.3)),
            loss=rng.choice((0.0, 0.0, 0.01)),
            repetition=rng.choice((0.0, 0.01, 0.05)),
            reordering=rng.choice((0.0, 0.01, 0.1)),
            fault_interval_s=rng.choice((1.0, 2.0, 4.0)),
            pipeline=rng.choice((0.0, 0.2, 0.5)),
            keys=rng.choice((3, 6, 12)),
        )
        if nodes == 1:
            return plan
        n, r, w = rng.choice(_QUORUMS) if nodes >= 5 else (0, 0, 0)
        plan = replace(
            plan,
            n=n,
            r=r,
            w=w,
            moves=rng.choice((0.0, 0.1, 0.5)),
            cluster_clients=rng.choice((0.0, 0.0, 0.5)),
        )
        disk_fault = rng.choice(("", "", "lost", "old"))
        # What was on one disk only may be lost; and who asks nobody cannot know that its disk is old.
        if w == 1 or (r == 1 and disk_fault == "old"):
            return plan
        return replace(plan, disk_fault=disk_fault)

    @classmethod
    def contended(cls, seed: int, *, nodes: int, seconds: float, rate: float) -> Plan:
        """A run with many crashes and with few keys that all clients want: what finds most."""
        rng = random.Random(f"contended-{seed}")
        return replace(
            cls.draw(seed, nodes=nodes, seconds=seconds, rate=rate),
            n=0,
            r=0,
            w=0,
            clients=8,
            fsync="always",
            skew_s=0.3,
            repetition=rng.choice((0.05, 0.2)),
            fault_interval_s=rng.choice((0.5, 1.0)),
            moves=0.5,
            cluster_clients=0.0,
            keys=rng.choice((1, 2)),
        )

    @classmethod
    def mixed(cls, seed: int) -> Plan:
        """A short run of any kind: what the others do not put together. What it finds is seldom found otherwise."""
        rng = random.Random(f"explore-{seed}")
        nodes = rng.choice((3, 3, 3, 5, 5))
        make = rng.choice((cls.contended, cls.contended, cls.draw))
        plan = make(seed, nodes=nodes, seconds=rng.choice((20, 30)), rate=rng.choice((20, 30, 60)))
        if nodes == 5 and rng.random() < 0.4:
            plan = replace(plan, n=5, r=3, w=3)
        elif nodes == 5 and rng.random() < 0.2:
            plan = replace(plan, n=4, r=3, w=3)
        elif nodes == 5:
            plan = replace(plan, n=0, r=0, w=0)
        match rng.choice(("transfers", "renaming", "counting", "runs", "plain")):
            case "transfers":
                plan = replace(plan, transfers=0.7, pipeline=0.0)
            case "renaming":
                plan = replace(plan, renaming=rng.choice((0.3, 0.6)))
            case "counting":
                plan = replace(plan, counting=rng.choice((0.5, 0.8)))
            case "runs":
                plan = replace(plan, runs=0.6, pipeline=0.0)
        plan = replace(
            plan,
            disk_fault=rng.choice(("", "lost", "old")),
            clients=rng.choice((4, 8, 12)),
            keys=rng.choice((1, 2, 3)),
        )
        if rng.random() < 0.3:
            plan = replace(plan, loss=0.01, reordering=0.1)
        if rng.random() < 0.3:
            plan = replace(plan, moves=rng.choice((0.0, 0.5)))
        if rng.random() < 0.2 and not plan.renaming:
            plan = replace(plan, cluster_clients=0.5)
        # At the cluster ports nothing is renamed between slots.
        return replace(plan, cluster_clients=0.0) if plan.renaming else plan

    @classmethod
    def unsynced(cls, seed: int) -> Plan:
        """A mixed run in which one machine after the other loses what it had acknowledged and not synced."""
        rng = random.Random(f"unsynced-{seed}")
        plan = replace(
            cls.mixed(seed), fsync="everysec", fault_interval_s=rng.choice((0.5, 1.0, 2.0))
        )
        if rng.random() < 0.5:
            return plan
        return replace(plan, disk_fault="", only=_AROUND_POWER_CUTS)

    @property
    def is_w_majority(self) -> bool:
        return not self.w or self.w > (self.n or 3) // 2

    @property
    def is_confirmed(self) -> bool:
        """Whether what a reply shows is on so many replicas that the next read meets one of them."""
        return self.is_w_majority and (not self.r or self.r > (self.n or 3) // 2)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())


# What decides who knows of what, before and after a power cut.
_AROUND_POWER_CUTS = (
    "cut_power_of_one", "kill", "pause", "partition", "cut_one_way", "slow_link", "lossy_link",
    "save", "jump",
)  # fmt: skip
_QUORUMS = (
    (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0), (5, 3, 3), (5, 2, 4), (3, 1, 3), (3, 3, 1),
)  # fmt: skip
