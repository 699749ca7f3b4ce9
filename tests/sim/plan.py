"""What a run is like, drawn from its seed: everything that is not an accident of the run itself.

Core.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of a run. Printed when it fails."""

    seed: int
    nodes: int = 1
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
    keys: int = 6  # Of each workload: few keys make conflicts.
    has_faults: bool = True
    has_crashes_when_full: bool = False  # Processes end while their disk is full.

    @classmethod
    def draw(cls, seed: int, *, nodes: int, seconds: float, rate: float) -> Plan:
        rng = random.Random(f"plan-{seed}")
        return cls(
            seed=seed,
            nodes=nodes,
            seconds=seconds,
            rate=rate,
            clients=rng.randint(2, 8),
            # Without `always` a power cut may lose what was acknowledged: there are none then.
            fsync=rng.choice(("always", "always", "always", "everysec")),
            skew_s=rng.choice((0.0, 0.05, 0.3)),
            loss=rng.choice((0.0, 0.0, 0.01)),
            repetition=rng.choice((0.0, 0.01, 0.05)),
            reordering=rng.choice((0.0, 0.01, 0.1)),
            fault_interval_s=rng.choice((1.0, 2.0, 4.0)),
            pipeline=rng.choice((0.0, 0.2, 0.5)),
            keys=rng.choice((3, 6, 12)),
        )

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())
