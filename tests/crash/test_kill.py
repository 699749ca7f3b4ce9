"""`kill -9` under load loses nothing; a server that keeps bytes to itself is found out. The long form is `kill.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.kill import Counts, Rounds
from tests.crash.server import RefusedStart
from tests.crash.workload import Loss

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize(("fsync", "rounds"), [("always", 5), ("everysec", 3)])
def test_nothing_acknowledged_is_lost(tmp_path: Path, fsync: str, rounds: int) -> None:
    counts = Counts()
    Rounds(tmp_path, 1, fsync, counts).run(rounds, is_told=True)
    assert counts.rounds == rounds
    assert counts.acknowledged >= rounds * 1000
    assert counts.in_flight > 0
    assert counts.flushes > 0


def test_a_log_that_is_written_later_is_found(tmp_path: Path) -> None:
    counts = Counts()
    rounds = Rounds(tmp_path, 1, "everysec", counts, module="tests.crash.launch_with_lazy_log")
    with pytest.raises((Loss, RefusedStart)):
        rounds.run(3, is_told=True)
