"""The drawing of LOLWUT."""

from __future__ import annotations

from random import Random

import pytest

from respkv.picture import COLUMNS_MAX, REPLICAS, ring_picture


@pytest.mark.parametrize("columns", [1, 2, 3, 10, 64, COLUMNS_MAX])
def test_it_fits_and_shows_a_key(columns: int) -> None:
    lines = ring_picture(Random(3), columns).splitlines()
    assert max(map(len, lines)) <= columns
    assert sum(line.count("*") for line in lines) == 1


def test_a_key_has_as_many_keepers_as_replicas() -> None:
    assert ring_picture(Random(4), 120).count("@") == REPLICAS


def test_the_same_randomness_draws_the_same() -> None:
    assert ring_picture(Random(1), 64) == ring_picture(Random(1), 64) != ring_picture(Random(2), 64)
