"""Whole runs: a few seeds are well, a seed says everything, and planted bugs are found."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from tests.sim import run as campaign
from tests.sim.canaries import CANARIES
from tests.sim.fault import KINDS_OF_ONE
from tests.sim.plan import Plan
from tests.sim.trial import run

SHORT_S = 15.0


def plan(seed: int, *, nodes: int = 1, seconds: float = SHORT_S) -> Plan:
    return Plan.draw(seed, nodes=nodes, seconds=seconds, rate=20)


@pytest.mark.parametrize("seed", range(3))
def test_a_seed_is_well(seed: int) -> None:
    result = run(plan(seed))
    assert result.findings == [], f"repeat: python -m tests.sim --nodes 1 --seed {seed}"
    assert result.acknowledged > 100


def test_a_seed_gives_one_trace() -> None:
    first = run(plan(1))
    assert run(plan(1)).digest == first.digest
    assert run(plan(2)).digest != first.digest


def test_a_seed_gives_the_same_trace_under_another_hash_seed() -> None:
    command = [sys.executable, "-m", "tests.sim", "--nodes", "1", "--seed", "1", "--digest"]
    command += ["--seconds", f"{SHORT_S:g}"]
    for hash_seed in ("1", "2"):
        child = subprocess.run(
            command, env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, timeout=100
        )
        assert child.stdout.strip() == run(plan(1)).digest, child.stderr


def test_without_faults_everything_is_acknowledged() -> None:
    calm = replace(plan(3, seconds=5), has_faults=False)
    result = run(calm)
    assert result.findings == []
    # But for those that were under way at the end.
    assert 50 < result.operations - calm.clients <= result.acknowledged


@pytest.mark.parametrize("name", [name for name, each in CANARIES.items() if each.nodes == 1])
def test_a_canary_is_found(name: str) -> None:
    arguments = ["--nodes", "1", "--seeds", "20", "--canary", name]
    assert campaign.main(arguments) == 0


def test_a_canary_is_gone_afterwards() -> None:
    for canary in CANARIES.values():
        before = vars(canary.owner)[canary.name]
        with canary.planted():
            assert vars(canary.owner)[canary.name] is not before
        assert vars(canary.owner)[canary.name] is before


def test_a_campaign_fails_if_something_never_happened() -> None:
    tally = campaign.Tally(runs=100, operations=10, acknowledged=10)
    args = campaign._parser().parse_args(["--nodes", "1"])
    assert campaign._judge(args, tally) == 1
    tally.fired.update(KINDS_OF_ONE)
    assert campaign._judge(args, tally) == 0
    tally.acknowledged = 4
    assert campaign._judge(args, tally) == 1
