"""Power cuts of a real file system lose nothing at `always`; without fsync they do. The long form is `power.py`."""

from __future__ import annotations

import pytest

from tests.crash.mounted import missing
from tests.crash.power import BROKEN, Counts, run
from tests.crash.server import RefusedStart
from tests.crash.workload import Loss

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
    pytest.mark.timeout(300),
]


def test_nothing_acknowledged_is_lost() -> None:
    counts = Counts()
    run(2, 1, "respkv", counts, is_told=True)
    assert counts.rounds == 2
    assert counts.acknowledged >= 600


def test_a_server_without_fsync_is_found() -> None:
    counts = Counts()
    with pytest.raises((Loss, RefusedStart)):
        run(3, 1, BROKEN, counts, is_told=True)
    assert counts.acknowledged >= 300
