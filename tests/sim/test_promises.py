"""What R and W promise, for some seeds; the long form is `python -m tests.sim.promises`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.promises import PROMISED, PROMISES, broken, draw, run

SEEDS = 4
TABLE = Path(__file__).parents[2] / "docs/CONSISTENCY.md"


def told() -> dict[tuple[int, int], set[str]]:
    """The table of the documentation: by R and W, what is promised."""
    lines = TABLE.read_text().splitlines()
    heads = next(line for line in lines if line.startswith("| R and W ")).split("|")
    rows = [line.split("|") for line in lines if line.startswith("| ") and " | R = " in line]
    found = {}
    for row in rows:
        cells = dict(zip(map(str.strip, heads), map(str.strip, row), strict=True))
        r, w = (int(word[0]) for word in cells["With N = 3"].split(" = ")[1:])
        yes = {name for name in PROMISES if cells[name] in ("yes", "one after the other")}
        assert all(
            cells[name] in ("yes", "one after the other", "no", "siblings") for name in PROMISES
        )
        found[r, w] = yes
    return found


def test_the_documentation_promises_the_same() -> None:
    assert told() == PROMISED


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize(("r", "w"), PROMISED)
def test_what_is_promised_holds(r: int, w: int, seed: int) -> None:
    result = run(draw(seed, r, w))
    repeat = f"repeat: python -m tests.sim.promises -r {r} -w {w} --seed {seed}"
    assert broken(result) <= set(PROMISES) - PROMISED[r, w], "\n".join([repeat, *result.findings])
    assert result.acknowledged > 30


# An inquest waited for replicas that waited for its slot; a SET that had been forwarded to two nodes ran again at one,
# after others had built upon it at the other. And an inquest was contradicted by replicas that all had lost data:
# nobody could tell, and they waited for each other.
FOUND = [(1, 1, 1023), (1, 2, 1117), (2, 2, 1180), (2, 1, 247), (3, 1, 221)]


@pytest.mark.parametrize(("r", "w", "seed"), FOUND)
def test_what_was_found_is_not_found_again(r: int, w: int, seed: int) -> None:
    assert broken(run(draw(seed, r, w))) <= set(PROMISES) - PROMISED[r, w]


@pytest.mark.parametrize("promise", ["Read your writes", "Monotonic reads", "No lost update"])
def test_what_is_not_promised_is_seen_to_break(promise: str) -> None:
    assert any(promise in broken(run(draw(seed, 1, 1))) for seed in range(60))
