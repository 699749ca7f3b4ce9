"""Who a node is after a stop, whatever the disk made of it."""

from __future__ import annotations

import contextlib
import random

import pytest

from cluster import life
from cluster.life import Life
from cluster.record import STRING
from cluster.replica import Replica
from cluster.slot import row_of, slot_of
from engine.errors import DiskError
from engine.store import StoreSettings
from tests.sim.disk import PowerCut, SimDisk

NOW_MS = 1_700_000_000_000
SETTINGS = StoreSettings(1 << 30, row_cache_bytes=0, block_cache_bytes=0, log_bytes_max=1 << 30)
FIRST = Life(7, "boot", is_durable=True, is_clean=True, is_complete=False)
SECOND = Life(8, "", is_durable=False, is_clean=False, is_complete=True)


def test_what_is_written_is_read() -> None:
    disk = SimDisk(random.Random(1))
    assert life.read(disk) is None
    for each in (FIRST, SECOND, FIRST):
        life.write(disk, each)
        assert life.read(disk) == each
        disk = disk.crash()
        assert life.read(disk) == each


@pytest.mark.parametrize("cut_at", range(1, 8))
def test_a_power_cut_while_it_is_replaced_leaves_one_or_the_other(cut_at: int) -> None:
    for seed in range(20):
        disk = SimDisk(random.Random(seed))
        life.write(disk, FIRST)
        disk.faults.power_cut_in = cut_at
        with contextlib.suppress(PowerCut):
            life.write(disk, SECOND)
        disk = disk.crash()
        assert life.read(disk) in (FIRST, SECOND)
        life.write(disk, SECOND)  # What the cut has left is in nobody's way.
        assert life.read(disk) == SECOND


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"actor": 1}', b"\xff" * 5000, b'{"actor":"x"}']
)
def test_of_a_damaged_file_nothing_is_known(data: bytes) -> None:
    disk = SimDisk(random.Random(1))
    file = disk.create(life.NAME)
    file.append(data)
    file.close()
    assert life.read(disk) is None


@pytest.mark.parametrize(
    ("is_clean", "was", "now", "lost_nothing"),
    [
        (True, "a", "b", True),
        (False, "a", "a", True),
        (False, "a", "b", False),
        (False, "", "", False),
        (True, "", "", True),
    ],
)
def test_whether_anything_may_be_lost(
    is_clean: bool, was: str, now: str, lost_nothing: bool
) -> None:
    past = Life(1, was, is_durable=False, is_clean=is_clean, is_complete=True)
    assert past.lost_nothing(now) == lost_nothing


def opened(disk: SimDisk, actor: int, boot: str) -> Replica:
    return Replica.open(disk, SETTINGS, actor, boot=boot)


def disk_of(replica: Replica) -> SimDisk:
    disk = replica.store.disk
    assert isinstance(disk, SimDisk)
    return disk


def cut_power_anywhere() -> None:
    """Power goes at any point of start, write and stop: no dot is ever given to two writes."""
    for seed in range(20):
        rng = random.Random(seed)
        disk = SimDisk(random.Random(seed))
        used: dict[tuple[int, int], int] = {}
        for boot in range(1, 8):
            disk.faults.power_cut_in = rng.choice((None, rng.randrange(1, 40)))
            try:
                replica = opened(disk, 1000 + boot, str(boot))
                for number in range(rng.randrange(5)):
                    row = row_of(0, b"k")
                    replica.write({row: (slot_of(b"k"), STRING, 0, b"%d" % number)}, NOW_MS)
                    dot = (replica.actor, replica.clocks.own[slot_of(b"k")])
                    assert dot not in used, f"seed {seed}: {dot} names two writes"
                    used[dot] = boot
                    replica.store.write()
                if rng.random() < 0.5:
                    replica.close()
            except PowerCut:
                pass
            disk = disk.crash()


def test_no_dot_names_two_writes_whenever_the_power_goes() -> None:
    cut_power_anywhere()


def test_a_file_that_says_clean_after_a_power_cut_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the mark of a clean stop is not taken back when the next process begins."""
    monkeypatch.setattr(Life, "lost_nothing", lambda self, boot: True)
    with pytest.raises(AssertionError, match="names two writes"):
        cut_power_anywhere()


def test_the_mark_of_a_clean_stop_is_gone_before_the_first_write() -> None:
    replica = opened(SimDisk(random.Random(1)), 5, "1")
    replica.close()
    disk = disk_of(replica).crash()
    found = life.read(disk)
    assert found is not None
    assert found.is_clean
    replica = opened(disk, 6, "2")
    assert replica.actor == 5
    found = life.read(disk_of(replica).crash())
    assert found is not None
    assert not found.is_clean


def test_a_note_that_changes_nothing_writes_nothing() -> None:
    replica = opened(SimDisk(random.Random(1)), 5, "1")
    replica.note(is_complete=True, is_durable=True)
    disk_of(replica).faults.write_error_in = 1
    replica.note(is_complete=True, is_durable=True)
    found = life.read(disk_of(replica))
    assert found is not None
    assert found.is_complete
    assert found.is_durable


def mark_at_start(disk: SimDisk, boot: str) -> tuple[Replica, tuple[int, int]]:
    replica = opened(disk, 50, boot)
    return replica, replica.mark


def test_a_history_goes_on_for_as_long_as_nothing_can_be_lost() -> None:
    replica, first = mark_at_start(SimDisk(random.Random(1)), "1")
    replica.note(is_complete=True)
    replica.write({row_of(0, b"k"): (slot_of(b"k"), STRING, 0, b"v")}, NOW_MS)
    replica.store.write()
    before = replica.mark
    assert before > first
    replica, killed = mark_at_start(disk_of(replica).kill(), "1")
    assert killed >= before
    assert killed[0] == before[0]
    replica.close()
    replica, stopped = mark_at_start(disk_of(replica).crash(), "2")
    assert stopped >= killed
    assert stopped[0] == before[0]
    _, lost = mark_at_start(disk_of(replica).crash(), "3")
    assert lost[0] == before[0] + 1


def test_where_acknowledgements_wait_for_the_disk_a_mark_does_too() -> None:
    for seed in range(20):
        replica = Replica.open(SimDisk(random.Random(seed)), SETTINGS, 5, boot="1", is_durable=True)
        replica.note(is_complete=True)
        for number in range(5):
            row = row_of(0, b"k%d" % number)
            replica.write({row: (slot_of(b"k"), STRING, 0, b"v")}, NOW_MS)
            replica.store.write()
            if number == 2:
                replica.store.log.sync()
        said = replica.mark
        assert said[1] < replica.store.log.position
        _, found = mark_at_start(disk_of(replica).crash(), "2")
        assert found[0] == said[0]
        assert found >= said


def test_who_is_told_to_be_old_is_incomplete_also_after_a_restart() -> None:
    replica, _ = mark_at_start(SimDisk(random.Random(1)), "1")
    replica.note(is_complete=True)
    replica.begin_history(9)
    assert not replica.is_complete
    replica, mark = mark_at_start(disk_of(replica).kill(), "1")
    assert not replica.is_complete
    assert mark[0] == 10
    assert replica.goes_on
    replica.doubt()
    replica.close()
    replica = opened(disk_of(replica).kill(), 51, "1")
    assert replica.actor == 51
    assert not replica.goes_on


def test_on_a_full_disk_it_is_incomplete_all_the_same() -> None:
    replica, _ = mark_at_start(SimDisk(random.Random(1)), "1")
    replica.note(is_complete=True)
    disk_of(replica).faults.write_error_in = 1
    with pytest.raises(DiskError):
        replica.begin_history(9)
    assert not replica.is_complete
    assert replica.mark[0] == 9


def test_a_life_of_a_release_that_knew_no_history_goes_on() -> None:
    disk = SimDisk(random.Random(1))
    file = disk.create(life.NAME)
    file.append(b'{"actor":7,"boot":"1","is_durable":true,"is_clean":true,"is_complete":true}')
    file.close()
    replica, mark = mark_at_start(disk, "2")
    assert replica.actor == 7
    assert replica.is_complete
    assert mark[0] == 0
