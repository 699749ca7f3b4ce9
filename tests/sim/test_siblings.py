"""Siblings through faults, for some seeds; the long form is `python -m tests.sim.siblings`."""

from __future__ import annotations

import pytest

from tests.sim.siblings import CANARIES, draw, planted, run

SEEDS = 8
SECONDS = 15.0


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_seed_is_well(seed: int) -> None:
    result = run(draw(seed, seconds=SECONDS))
    assert result.findings == [], (
        f"repeat: python -m tests.sim.siblings --from {seed} --seeds 1 --seconds {SECONDS:g}"
    )
    assert result.acknowledged > 50


def test_what_was_found_is_not_found_again() -> None:
    # Three nodes that had ended waited for each other: each had the last write of a row of its own.
    assert run(draw(911, seconds=20.0)).findings == []
    # A node that had ended took its KV.PUT that had replaced all siblings for one that might be refused.
    assert run(draw(1295, seconds=30.0)).findings == []


def test_a_seed_gives_the_same_trace() -> None:
    one, other = (run(draw(3, seconds=5.0)) for _ in range(2))
    assert one.digest == other.digest


@pytest.mark.parametrize("name", CANARIES)
def test_a_planted_bug_is_found(name: str) -> None:
    with planted(name):
        assert any(run(draw(seed, seconds=SECONDS)).findings for seed in range(5))
