"""What happened in the worlds of `tests/crash/simulated.py`: a run that never cut a flush shows nothing about flushes.

Core: plain data.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields

from tests.sim.disk import FAULT_KINDS


@dataclass(slots=True)
class Counts:
    """Sums over all worlds."""

    cycles: int = 0
    acknowledged: int = 0
    lost_unacknowledged: int = 0
    power_cuts: int = 0
    cuts_in_jobs: int = 0
    cuts_in_starts: int = 0
    cuts_in_snapshots: int = 0
    kills: int = 0
    stops: int = 0
    failed_syncs: int = 0
    full_disks: int = 0
    flushes: int = 0
    compactions: int = 0
    moves: int = 0
    removals: int = 0
    late_removals: int = 0
    failed_jobs: int = 0
    levels_max: int = 0
    jobs_beside_another: int = 0
    orphans: int = 0
    snapshots: int = 0
    snapshots_opened: int = 0
    flips_in_tables: int = 0
    flips_in_log: int = 0
    flips_in_manifest: int = 0
    damaged_tails: int = 0
    short_flushes: int = 0
    refused_starts_for_damage: int = 0
    refused_starts_for_errors: int = 0
    refused_jobs_for_damage: int = 0
    refused_reads_for_damage: int = 0
    refused_reads_for_errors: int = 0
    cuts_at_damage: int = 0
    refills: int = 0
    page_faults: int = 0
    values_checked: int = 0
    fired: Counter[str] = field(default_factory=Counter)

    @property
    def missing(self) -> list[str]:
        """What never happened, and has to in a long run."""
        numbers = {name: getattr(self, name) for name in _NAMES}
        return [
            *(name.replace("_", " ") for name, number in numbers.items() if not number),
            *(kind for kind in FAULT_KINDS if not self.fired[kind]),
        ]

    def __str__(self) -> str:
        happened = ", ".join(f"{name.replace('_', ' ')} {getattr(self, name)}" for name in _NAMES)
        faults = ", ".join(f"{kind} {self.fired[kind]}" for kind in FAULT_KINDS)
        return f"{happened}\nfaults: {faults}"


_NAMES = [each.name for each in fields(Counts) if each.name != "fired"]
