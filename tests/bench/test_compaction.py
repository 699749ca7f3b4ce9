"""The simulator: it loses no version under any strategy, and the store's own is what it is said to be."""

from __future__ import annotations

import random

import pytest

from bench import compaction
from bench.compaction import STRATEGIES, WORKLOADS, World, Writes, check, line_of, simulate
from engine.compaction import Choice

WRITES = 12_000
KEYS = 3000


def written(world: World) -> float:
    return (world.flushed_bytes + world.compacted_bytes) / world.flushed_bytes


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "MEMTABLE_ENTRIES", 100)
    monkeypatch.setattr(compaction, "TABLE_ENTRIES", 50)


def run(name: str, workload: object) -> World:
    assert callable(workload)
    writes: Writes = workload(random.Random(1), KEYS)
    world = simulate(STRATEGIES[name], writes, WRITES)
    check(world)
    return world


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.__name__)
@pytest.mark.parametrize("name", STRATEGIES)
def test_each_strategy_shows_what_was_written(name: str, workload: object) -> None:
    world = run(name, workload)
    assert line_of(name, world).startswith(f"  {name}")
    assert written(world) >= 1.0
    assert world.flushed_bytes > 0


def test_a_sequence_is_written_once_by_levels_and_again_and_again_by_tiers() -> None:
    assert written(run("leveled", compaction.sequence)) == 1.0
    assert written(run("size-tiered", compaction.sequence)) > 2.0


def test_a_wrong_strategy_is_found() -> None:
    """One that puts a newer table below an older one."""

    def newest_first(world: World) -> Choice | None:
        return Choice("compact", [(0, 0)], 1) if len(world.levels[0]) > 2 else None

    writes = compaction.overwrites(random.Random(1), KEYS)
    with pytest.raises(AssertionError):
        check(simulate(newest_first, writes, WRITES))
