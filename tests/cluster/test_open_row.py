"""Which rows are open after a process that did not end well."""

from __future__ import annotations

import random

from cluster.life import EARLIER_MAX
from cluster.open_row import RECENT_MAX, OpenRows, UnderWay
from cluster.record import STRING
from cluster.recovery import Recovery
from cluster.replica import Replica
from cluster.sibling import Seen, beside
from cluster.slot import row_of, slot_of
from tests.cluster.cluster_world import NOW_MS, SETTINGS, place_of
from tests.sim.disk import SimDisk


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
    assert list(again.open_rows.at_start(2000)) == [place_of(b"new"), place_of(b"newer")]


def test_of_a_long_log_only_the_last_rows_are_remembered() -> None:
    rows = OpenRows()
    for number in range(5 * RECENT_MAX):
        rows.observe_write((number % 7, b"%d" % (number % (3 * RECENT_MAX))), number)
    found = rows.at_start(1 << 40)
    assert RECENT_MAX <= len(found) <= 2 * RECENT_MAX
    last = range(5 * RECENT_MAX - len(found), 5 * RECENT_MAX)
    assert list(found) == [(number % 7, b"%d" % (number % (3 * RECENT_MAX))) for number in last]


def test_what_one_command_wrote_is_found_together() -> None:
    disk = SimDisk(random.Random(1))
    replica = opened(disk)
    keys = [b"%d" % number for number in range(7)]
    for names in (keys[:1], keys[1:3], keys[3:4], keys[4:]):
        effects = {row_of(0, key): (slot_of(key), STRING, 0, b"value") for key in names}
        replica.write(effects, NOW_MS, [])
        replica.store.write()
    again = opened(disk.kill())
    expected = [[place_of(key) for key in names] for names in (keys[1:3], keys[4:])]
    assert again.open_rows.written_together() == expected


def test_what_was_written_beside_siblings_is_not() -> None:
    disk = SimDisk(random.Random(1))
    replica = opened(disk)
    write(replica, b"put", NOW_MS, is_put=True)
    write(replica, b"set", NOW_MS)
    write(replica, b"both", NOW_MS, is_put=True)
    write(replica, b"both", NOW_MS + 1)
    again = opened(disk.kill())
    assert list(again.open_rows.at_start(2000)) == [place_of(b"set"), place_of(b"both")]


def test_what_is_noted_stays_noted_until_it_is_known() -> None:
    disk = SimDisk(random.Random(1))
    replica = opened(disk)
    for key in (b"one", b"two"):
        replica.note_open(*place_of(key), NOW_MS)
    replica.note_known(*place_of(b"two"), NOW_MS)
    replica.store.write()
    again = opened(disk.kill())
    assert list(again.open_rows.at_start(2000)) == [place_of(b"one")]
    kept = Recovery(7)
    kept.restore(again.capture())  # As after a flush, when the log is gone.
    assert list(kept.open_rows.rows) == [place_of(b"one")]


def test_only_so_many_processes_are_remembered() -> None:
    disk = SimDisk(random.Random(1))
    replica = Replica.open(disk, SETTINGS, 7, boot="one", is_durable=True)
    replica.note_open(*place_of(b"key"), NOW_MS)
    replica.store.write()
    for number in range(3 * EARLIER_MAX):
        disk = disk.kill()
        replica = Replica.open(disk, SETTINGS, 8 + number, boot=f"run {number}", is_durable=True)
        assert list(replica.open_rows.at_start(2000)) == [place_of(b"key")]
    assert len(replica.life.earlier) == EARLIER_MAX


def test_what_earlier_processes_wrote_together_is_found_together() -> None:
    disk = SimDisk(random.Random(1))
    replica = opened(disk)
    keys = [b"one", b"two"]
    replica.write({row_of(0, key): (slot_of(key), STRING, 0, b"v") for key in keys}, NOW_MS, [])
    for key in keys:
        replica.note_open(*place_of(key), NOW_MS)
    replica.store.write()
    for number in range(2):
        disk = disk.kill()
        replica = Replica.open(disk, SETTINGS, 8 + number, boot=f"run {number}", is_durable=True)
        assert replica.open_rows.written_together() == [[place_of(key) for key in keys]]


def test_what_goes_together_is_kept_when_the_log_is_cut() -> None:
    disk = SimDisk(random.Random(1))
    replica = opened(disk)
    places = [place_of(key) for key in (b"one", b"two", b"three")]
    replica.under_way = lambda: UnderWay(places, [places[:2]])
    kept = Recovery(7)
    kept.restore(replica.capture())
    assert kept.open_rows.written_together() == [places[:2]]
    assert list(kept.open_rows.rows) == places


def test_until_a_process_has_looked_what_the_one_before_wrote_may_be_open() -> None:
    disk = SimDisk(random.Random(1))
    replica = opened(disk)
    write(replica, b"key", NOW_MS)
    for number in range(3):  # They end before they have looked.
        disk = disk.kill()
        replica = Replica.open(disk, SETTINGS, 8 + number, boot=f"run {number}", is_durable=True)
        assert list(replica.open_rows.at_start(2000)) == [place_of(b"key")]
        assert replica.actors == {7, *range(8, 9 + number)}
    replica.note_looked(NOW_MS)
    write(replica, b"other", NOW_MS)
    replica = Replica.open(disk.kill(), SETTINGS, 20, boot="another run", is_durable=True)
    assert list(replica.open_rows.at_start(2000)) == [place_of(b"other")]
    replica.open_rows.forget_found()
    assert not replica.open_rows.is_any
