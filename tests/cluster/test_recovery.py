"""What a replica keeps beside its rows, and takes back."""

from __future__ import annotations

import random

import msgspec

from cluster.record import STRING
from cluster.recovery import Recovery
from cluster.replica import Replica
from cluster.slot import SYSTEM_SLOT
from tests.cluster.cluster_world import NOW_MS, SETTINGS, place_of
from tests.sim.disk import SimDisk

ACTOR = 0x1122334455667788


def written_to() -> Replica:
    replica = Replica.open(SimDisk(random.Random(1)), SETTINGS, ACTOR)
    for number in range(100):
        slot, row = place_of(b"k%d" % (number % 40))
        replica.write({row: (slot, STRING, 0, b"%d" % number)}, NOW_MS + number)
    return replica


def test_what_it_keeps_is_what_it_takes_back() -> None:
    replica = written_to()
    other = Recovery(5)
    other.clock.observe(3)
    other.restore(replica.capture())
    assert (other.clocks.actor, other.clock.last) == (ACTOR, replica.clock.last)
    assert other.clocks.own == replica.clocks.own
    assert other.clocks.own is not replica.clocks.own
    assert other.capture() == replica.capture()
    ahead = Recovery(5)
    ahead.clock.observe(replica.clock.last + 10)
    ahead.restore(replica.capture())
    assert ahead.clock.last == replica.clock.last + 10


def test_a_state_without_a_past_is_read() -> None:
    """As the first version wrote it."""
    recovery = Recovery(1)
    recovery.restore(msgspec.msgpack.encode([ACTOR, 5, [0] * (SYSTEM_SLOT + 1)]))
    assert (recovery.clocks.actor, recovery.clocks.columns) == (ACTOR, {})
