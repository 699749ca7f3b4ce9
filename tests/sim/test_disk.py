"""The simulated disk does what it claims: what survives, what is lost, and each fault.

That it behaves as a real disk does while nothing fails is in `tests/engine/test_disk.py`.
"""

import random
from collections.abc import Callable

import pytest

from engine.errors import DiskError, DiskFullError, LockedError, MissingFileError, SyncError
from tests.sim.disk import FAULT_KINDS, SECTOR_BYTES, Faults, PowerCut, SimDisk, SimFile

SEEDS = range(200)


def new_disk(seed: int = 0) -> SimDisk:
    return SimDisk(random.Random(seed))


def new_file(disk: SimDisk, data: bytes = b"") -> SimFile:
    """A file whose name and first bytes are durable."""
    file = disk.create("file")
    file.append(data)
    file.sync()
    disk.sync_names()
    return file


def content(disk: SimDisk, name: str = "file") -> bytes:
    return disk.open(name).read(0, 1 << 20)


def after_crashes(prepare: Callable[[SimDisk], object]) -> set[bytes]:
    """Return all contents that the file has after a power cut, over many seeds."""
    found = set()
    for seed in SEEDS:
        disk = new_disk(seed)
        prepare(disk)
        found.add(content(disk.crash()))
    return found


# -- Power cuts -------------------------------------------------------------------------------


def test_synced_bytes_survive_every_power_cut() -> None:
    def prepare(disk: SimDisk) -> None:
        new_file(disk, b"durable" * 500)

    assert after_crashes(prepare) == {b"durable" * 500}


def test_unsynced_bytes_survive_wholly_partly_or_not() -> None:
    def prepare(disk: SimDisk) -> None:
        new_file(disk, b"old").append(b"new")

    found = after_crashes(prepare)
    assert {b"old", b"oldnew", b"oldn", b"old\0\0\0"} <= found
    assert all(data.startswith(b"old") for data in found), "a sector lost what was durable in it"


def test_any_subset_of_sectors_survives() -> None:
    a, b, c = (letter * SECTOR_BYTES for letter in (b"a", b"b", b"c"))
    lost = bytes(SECTOR_BYTES)

    def prepare(disk: SimDisk) -> None:
        new_file(disk).append(a + b + c)

    whole = {data for data in after_crashes(prepare) if len(data) == 3 * SECTOR_BYTES}
    # An early sector lost and a later one intact is what finds recovery that trusts the order.
    assert {a + b + c, lost + b + c, a + lost + c, a + b + lost, lost + lost + lost} <= whole
    assert all(data[:SECTOR_BYTES] in (a, lost) for data in whole), "a sector was torn"


def test_sector_may_survive_as_it_was_between_two_writes() -> None:
    def prepare(disk: SimDisk) -> None:
        file = new_file(disk)
        file.append(b"one")
        file.append(b"two")

    assert b"one\0\0\0" in after_crashes(prepare)


def test_truncation_is_durable_only_when_synced() -> None:
    def cut(disk: SimDisk) -> None:
        new_file(disk, b"0123456789").truncate(4)

    def cut_and_sync(disk: SimDisk) -> None:
        file = new_file(disk, b"0123456789")
        file.truncate(4)
        file.sync()

    assert {b"0123", b"0123456789"} <= after_crashes(cut)
    assert after_crashes(cut_and_sync) == {b"0123"}


def test_old_bytes_may_come_back_under_a_rewritten_end() -> None:
    def prepare(disk: SimDisk) -> None:
        file = new_file(disk, b"0123456789")
        file.truncate(4)
        file.append(b"abc")

    assert {b"0123abc", b"0123456"} <= after_crashes(prepare)


def test_names_survive_when_synced() -> None:
    for seed in SEEDS:
        disk = new_disk(seed)
        for name in ("a", "b", "c"):
            disk.create(name)
        disk.rename("a", "z")
        disk.remove("b")
        disk.sync_names()
        assert disk.crash().names() == ["c", "z"]


def test_any_subset_of_unsynced_names_survives() -> None:
    found = set()
    for seed in SEEDS:
        disk = new_disk(seed)
        disk.create("old")
        disk.create("gone")
        disk.sync_names()
        disk.create("new")
        disk.rename("old", "renamed")
        disk.remove("gone")
        found.add(tuple(disk.crash().names()))
    # Each of three changes is kept or lost. A rename never leaves both names, nor none.
    assert found == {
        tuple(sorted([*new, renamed, *gone]))
        for new in ([], ["new"])
        for renamed in ("old", "renamed")
        for gone in ([], ["gone"])
    }


def test_syncing_a_file_does_not_keep_its_name() -> None:
    found = set()
    for seed in SEEDS:
        disk = new_disk(seed)
        disk.create("file").sync()
        found.add(tuple(disk.crash().names()))
    assert found == {(), ("file",)}


def test_lost_rename_leaves_the_old_target() -> None:
    found = set()
    for seed in SEEDS:
        disk = new_disk(seed)
        new_file(disk, b"old")
        new = disk.create("new")
        new.append(b"new")
        new.sync()
        disk.rename("new", "file")
        found.add(content(disk.crash()))
    assert found == {b"old", b"new"}


def test_power_cuts_come_in_the_middle() -> None:
    found = set()
    for seed in SEEDS:
        disk = new_disk(seed)
        file = new_file(disk)
        disk.faults.power_cut_in = 2
        file.append(b"data")
        with pytest.raises(PowerCut):
            file.sync()
        with pytest.raises(AssertionError, match="has ended"):
            file.append(b"more")
        found.add(content(disk.crash()))
    assert {b"", b"data"} <= found


def test_seed_decides_everything() -> None:
    def run(seed: int) -> list[bytes]:
        disk = new_disk(seed)
        file = new_file(disk)
        disk.faults.has_short_writes = True
        found = []
        for _ in range(20):
            file.append(b"data" * 1000)
            disk = disk.crash()
            found.append(content(disk))
            file = disk.open_append("file")
        return found

    assert run(1) == run(1)
    assert run(1) != run(2)


# -- Kills ------------------------------------------------------------------------------------


def test_kill_keeps_everything_and_a_later_power_cut_may_not() -> None:
    found = set()
    for seed in SEEDS:
        disk = new_disk(seed)
        new_file(disk).append(b"data")
        disk.create("other")
        disk = disk.kill()
        assert content(disk) == b"data"
        assert disk.names() == ["file", "other"]
        found.add(content(disk.crash()))
    assert {b"", b"data"} <= found


@pytest.mark.parametrize("end", [SimDisk.kill, SimDisk.crash])
def test_the_end_of_a_process_releases_its_lock_and_its_files(
    end: Callable[[SimDisk], SimDisk],
) -> None:
    disk = new_disk()
    file = new_file(disk)
    disk.lock("lock")
    disk.sync_names()
    with pytest.raises(LockedError):
        disk.again().lock("lock")
    after = end(disk)
    after.lock("lock")
    for operate in (disk.names, file.sync, lambda: file.read(0, 1)):
        with pytest.raises(AssertionError, match="has ended"):
            operate()


# -- Faults -----------------------------------------------------------------------------------


def test_nth_read_fails_once() -> None:
    disk = new_disk()
    file = new_file(disk, b"data")
    disk.faults.read_error_in = 2
    assert file.read(0, 4) == b"data"
    with pytest.raises(DiskError, match="Input/output error"):
        file.read(0, 4)
    assert file.read(0, 4) == b"data"


def test_nth_write_fails_and_lasts_if_told_so() -> None:
    disk = new_disk()
    file = new_file(disk)
    disk.faults.write_error_in = 2
    disk.faults.is_lasting = True
    file.append(b"data")
    for _ in range(3):
        with pytest.raises(DiskError):
            file.append(b"lost")
    disk.faults.write_error_in = None
    file.append(b"more")
    assert content(disk) == b"datamore"


def test_short_write_leaves_a_part_before_an_error() -> None:
    parts = set()
    for seed in SEEDS:
        disk = new_disk(seed)
        file = new_file(disk)
        disk.faults.has_short_writes = True
        disk.faults.write_error_in = 2
        try:
            file.append(b"0123456789")
        except DiskError:
            assert b"0123456789".startswith(content(disk))
        assert file.size == len(content(disk))
        parts.add(file.size)
    assert parts == set(range(1, 11))


def test_disk_runs_full_and_is_emptied() -> None:
    disk = new_disk()
    file = new_file(disk, b"12345")
    disk.faults.capacity_bytes = 8
    assert disk.free_bytes() == 3
    with pytest.raises(DiskFullError) as caught:
        file.append(b"6789")
    assert caught.value.needed == 1
    assert content(disk) == b"12345678"
    assert disk.free_bytes() == 0
    file.truncate(2)
    file.append(b"x")
    disk.remove("file")
    assert disk.free_bytes() == 8


def test_failed_sync_drops_the_data_and_later_reports_success() -> None:
    disk = new_disk()
    file = new_file(disk, b"a" * SECTOR_BYTES)
    file.append(b"b" * SECTOR_BYTES)
    disk.faults.sync_error_in = 1
    with pytest.raises(SyncError):
        file.sync()
    assert file.read(SECTOR_BYTES, 1) == b"b"
    file.append(b"c")
    file.sync()
    expected = b"a" * SECTOR_BYTES + bytes(SECTOR_BYTES) + b"c"
    file.drop_cache()
    assert content(disk) == expected
    assert content(disk.crash()) == expected


def test_failed_sync_of_names_may_succeed_later() -> None:
    disk = new_disk()
    disk.create("a")
    disk.faults.sync_error_in = 1
    with pytest.raises(SyncError):
        disk.sync_names()
    disk.sync_names()
    assert disk.crash().names() == ["a"]


def test_cold_disk_has_nothing_cached() -> None:
    disk = new_disk()
    file = new_file(disk, b"data")
    assert file.read_cached(0, 4) == b"data"
    disk.faults.is_cold = True
    assert file.read_cached(0, 4) is None


def test_lying_disk_keeps_nothing_for_sure() -> None:
    found = set()
    for seed in SEEDS:
        disk = new_disk(seed)
        file = new_file(disk)
        disk.faults.ignores_sync = True
        disk.faults.ignores_sync_names = True
        file.append(b"data")
        file.sync()
        disk.create("other")
        disk.sync_names()
        disk = disk.crash()
        found.add((content(disk), "other" in disk.names()))
    assert {(b"", False), (b"data", True)} <= found


def test_flipped_bit_is_there_after_a_crash() -> None:
    disk = new_disk()
    new_file(disk, b"data")
    disk.flip_bit("file", 1, bit=5)
    assert content(disk) == b"dAta"
    assert content(disk.crash()) == b"dAta"
    with pytest.raises(MissingFileError):
        disk.kill().flip_bit("absent", 0)


def test_a_link_survives_when_the_names_of_its_folder_are_synced() -> None:
    kept = set()
    for seed in SEEDS:
        disk = new_disk(seed)
        new_file(disk, b"1")
        inner = disk.folder("inner")
        disk.link("file", inner)
        disk.sync_names()  # Of the outer folder only.
        kept.add("file" in disk.crash().folder("inner").names())
    assert kept == {True, False}
    for seed in SEEDS:
        disk = new_disk(seed)
        new_file(disk, b"1")
        inner = disk.folder("inner")
        disk.link("file", inner)
        inner.sync_names()
        disk.remove("file")
        assert content(disk.crash().folder("inner")) == b"1"


def test_a_file_is_torn_alike_under_both_names() -> None:
    contents = set()
    for seed in SEEDS:
        disk = new_disk(seed)
        file = new_file(disk, b"1")
        inner = disk.folder("inner")
        disk.link("file", inner)
        inner.sync_names()
        file.append(b"2" * 2 * SECTOR_BYTES)
        disk = disk.crash()
        assert content(disk) == content(disk.folder("inner"))
        contents.add(content(disk))
    assert len(contents) > 3


def test_syncing_a_file_under_one_name_is_enough() -> None:
    disk = new_disk()
    file = new_file(disk, b"1")
    inner = disk.folder("inner")
    disk.link("file", inner)
    inner.sync_names()
    file.append(b"2")
    inner.open("file").sync()
    assert content(disk.crash()) == b"12"


def test_the_removal_of_a_folder_may_come_undone() -> None:
    found = set()
    for seed in SEEDS:
        disk = new_disk(seed)
        disk.folder("inner")
        disk.remove_folder("inner")
        found.add(tuple(disk.crash().names()))
    assert found == {(), ("inner",)}
    for seed in SEEDS:
        disk = new_disk(seed)
        disk.folder("inner")
        disk.remove_folder("inner")
        disk.sync_names()
        assert disk.crash().names() == []


def test_a_file_with_two_names_takes_its_room_once() -> None:
    disk = new_disk()
    new_file(disk, b"1" * 100)
    disk.faults.capacity_bytes = 250
    inner = disk.folder("inner")
    disk.link("file", inner)
    assert disk.free_bytes() == inner.free_bytes() == 150
    disk.remove("file")
    assert disk.free_bytes() == 150
    inner.remove("file")
    assert disk.free_bytes() == 250


def test_a_power_cut_in_a_folder_ends_the_whole_process() -> None:
    disk = new_disk()
    inner = disk.folder("inner")
    disk.faults.power_cut_in = 1
    with pytest.raises(PowerCut):
        inner.create("a")
    with pytest.raises(AssertionError, match="has ended"):
        disk.names()


def test_power_goes_at_a_change_of_names() -> None:
    found = set()
    for seed in range(40):
        disk = new_disk(seed)
        file = new_file(disk, b"x")
        disk.faults.name_cut_in = 2
        file.append(b"y")
        file.sync()
        disk.rename("file", "new")
        with pytest.raises(PowerCut):
            disk.sync_names()
        disk = disk.crash()
        assert disk.faults.name_cut_in is None
        found.add(tuple(disk.names()))
    assert found == {("file",), ("new",)}


# -- Bad disks --------------------------------------------------------------------------------


def test_a_change_of_names_fails_once_and_a_failed_rename_may_have_been_done() -> None:
    found = set()
    for seed in range(20):
        disk = new_disk(seed)
        new_file(disk, b"x")
        disk.faults.name_error_in = 2
        disk.create("other").close()
        with pytest.raises(DiskError, match="rename"):
            disk.rename("file", "new")
        found.add(tuple(disk.names()))
        disk.remove("other")
        assert disk.faults.fired["name error"] == 1
    assert found == {("file", "other"), ("new", "other")}


@pytest.mark.parametrize("operation", ["create", "remove", "link", "folder"])
def test_names_stay_as_they_were_when_the_disk_refuses(operation: str) -> None:
    disk = new_disk()
    new_file(disk, b"x")
    inner = disk.folder("inner")
    operations: dict[str, Callable[[], object]] = {
        "create": lambda: disk.create("new"),
        "remove": lambda: disk.remove("file"),
        "link": lambda: disk.link("file", inner),
        "folder": lambda: disk.folder("second"),
    }
    disk.faults.name_error_in = 1
    with pytest.raises(DiskError):
        operations[operation]()
    assert disk.names() == ["file", "inner"]
    assert inner.names() == []
    operations[operation]()


def test_healing_undoes_a_flip_and_nothing_that_came_after_it() -> None:
    disk = new_disk()
    file = new_file(disk, b"abc")
    flip = disk.flip_bit("file", 1, bit=3)
    assert content(disk) == b"ajc"
    flip.heal()
    flip.heal()
    assert content(disk) == content(disk.crash()) == b"abc"
    again = disk.again()
    file = again.open_append("file")
    flip = again.flip_bit("file", 1)
    file.truncate(1)
    file.append(b"xy")
    file.sync()
    flip.heal()
    assert content(again.crash()) == b"axy"


def test_a_lost_file_is_gone_after_a_crash_too_and_comes_back_when_it_is_healed() -> None:
    for is_named in (True, False):
        disk = new_disk()
        file = new_file(disk, b"abc") if is_named else disk.create("file")
        disk.link("file", disk.folder("other"))
        lost = disk.lose("file")
        file.append(b"d")
        file.sync()
        assert disk.names() == ["other"]
        assert content(disk.folder("other")).endswith(b"d")
        disk = disk.crash()
        assert disk.names() == ["other"]
        lost.heal()
        disk = disk.crash()
        assert content(disk) == (b"abcd" if is_named else b"d")
    with pytest.raises(MissingFileError):
        disk.lose("absent")


def test_healing_reaches_what_was_written_again_with_its_sector() -> None:
    disk = new_disk()
    file = new_file(disk, b"abc")
    flip = disk.flip_bit("file", 1)
    file.append(b"d")
    flip.heal()
    file.sync()
    assert content(disk.crash()) == b"abcd"


def test_a_sector_is_clean_when_it_is_durable() -> None:
    disk = new_disk()
    file = new_file(disk, b"x" * SECTOR_BYTES)
    file.append(b"y")
    assert disk.is_clean("file", SECTOR_BYTES - 1)
    assert not disk.is_clean("file", SECTOR_BYTES)
    disk.faults.sync_error_in = 1
    with pytest.raises(SyncError):
        file.sync()
    assert not disk.is_clean("file", SECTOR_BYTES)
    assert not disk.is_clean("file", SECTOR_BYTES + 1)


def test_what_came_true_is_counted_by_kind() -> None:
    faults = Faults()
    for seed in SEEDS:
        disk = SimDisk(random.Random(seed), faults=faults)
        file = new_file(disk, b"x")
        disk.flip_bit("file", 0)
        disk.lose("file").heal()
        file.append(b"y" * 2000)
        disk.create("lost")
        disk = disk.crash()
        faults.has_short_writes = True
        disk.create("second").append(b"z" * 50)
        faults.has_short_writes = False
        file = disk.open_append("file")
        for fault in ("read", "write", "sync"):
            setattr(faults, f"{fault}_error_in", 1)
        for operate in (
            lambda file=file: file.read(0, 1),
            lambda file=file: file.append(b"a"),
            lambda file=file: (file.append(b"a"), file.sync()),
        ):
            with pytest.raises(DiskError):
                operate()
        faults.name_error_in = faults.sync_error_in = 1
        with pytest.raises(DiskError):
            disk.remove("file")
        with pytest.raises(SyncError):
            disk.sync_names()
        faults.capacity_bytes = 0
        with pytest.raises(DiskFullError):
            file.append(b"a")
        faults.capacity_bytes = None
    assert faults.fired.keys() == set(FAULT_KINDS)
    assert min(faults.fired.values()) > 0
    assert faults.fired["flipped bit"] == faults.fired["power cut"] == len(SEEDS)
    assert faults.fired["data lost after a failed sync"] <= faults.fired["failed sync"]
