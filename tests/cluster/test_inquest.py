"""What is left open by a process that ends, and what becomes of a row without some of its writes.

Whole stories are in `tests/cluster/test_coordinator.py` and in the simulation.
"""

from __future__ import annotations

import random

from cluster.inquest import restored
from cluster.record import STRING, Record, Version
from cluster.replica import Replica
from cluster.sibling import Seen, beside
from tests.cluster.cluster_world import NOW_MS, SETTINGS, place_of
from tests.sim.disk import SimDisk

HERE, THERE = 1, 2


def opened(disk: SimDisk) -> Replica:
    return Replica.open(disk, SETTINGS, 7, boot="one", is_durable=True)


def write(replica: Replica, key: bytes, now_ms: int, *, is_put: bool = False) -> None:
    slot, row = place_of(key)
    besides = {}
    if is_put:
        stored = replica.store.get(slot, row) or b""
        besides[row] = beside(stored, replica.clocks.view(slot), Seen(), now_ms)
    replica.write({row: (slot, STRING, 0, b"value")}, now_ms, [], besides)
    replica.store.write()


def test_what_was_written_in_the_last_moments_may_be_open() -> None:
    disk = SimDisk(random.Random(1))
    replica = opened(disk)
    write(replica, b"old", NOW_MS)
    write(replica, b"new", NOW_MS + 5000)
    write(replica, b"newer", NOW_MS + 6000)
    again = opened(disk.kill())
    assert again.open_at_start(2000) == [place_of(b"new"), place_of(b"newer")]
    assert again.open_at_start(2000) == []  # Once.


def test_what_was_written_beside_siblings_is_not() -> None:
    disk = SimDisk(random.Random(1))
    replica = opened(disk)
    write(replica, b"put", NOW_MS, is_put=True)
    write(replica, b"set", NOW_MS)
    write(replica, b"both", NOW_MS, is_put=True)
    write(replica, b"both", NOW_MS + 1)
    again = opened(disk.kill())
    assert again.open_at_start(2000) == [place_of(b"set"), place_of(b"both")]


def test_what_is_noted_stays_noted_until_it_is_known() -> None:
    disk = SimDisk(random.Random(1))
    replica = opened(disk)
    for key in (b"one", b"two"):
        replica.note_open(*place_of(key), NOW_MS, is_open=True)
    replica.note_open(*place_of(b"two"), NOW_MS, is_open=False)
    replica.store.write()
    again = opened(disk.kill())
    assert again.open_at_start(2000) == [place_of(b"one")]
    kept = Replica(7)
    kept.restore(again.capture())  # As after a flush, when the log is gone.
    assert list(kept.open_rows) == [place_of(b"one")]


def version(actor: int, counter: int, payload: bytes = b"") -> Version:
    return Version((actor, counter), counter, STRING, payload)


BEFORE, OPEN, OTHER = version(HERE, 1), version(HERE, 2), version(THERE, 1)


def test_without_an_open_write_a_row_is_what_it_was_before() -> None:
    past = Record((BEFORE,), ((HERE, 1),))
    assert restored(past, {OPEN.dot}, [], Record((OPEN,), ((HERE, 2),))) == (BEFORE,)


def test_and_what_others_have() -> None:
    past = Record((BEFORE,), ((HERE, 1),))
    held = Record((OPEN,), ((HERE, 2),))
    unaware = Record((OTHER,), ((THERE, 1),))
    assert set(restored(past, {OPEN.dot}, [unaware], held)) == {BEFORE, OTHER}
    successor = Record((OTHER,), ((HERE, 1), (THERE, 1)))
    assert restored(past, {OPEN.dot}, [successor], held) == (OTHER,)


def test_who_has_taken_the_open_write_does_not_hide_what_it_replaced() -> None:
    past = Record((BEFORE,), ((HERE, 1),))
    taken = Record((OPEN,), ((HERE, 2),))
    assert restored(past, {OPEN.dot}, [taken], taken) == (BEFORE,)
