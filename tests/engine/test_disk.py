"""The disk seam: the real disk and the simulated one pass the same tests; then what is real
only."""

import ctypes
import errno
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from engine.disk import REMOVAL_REST_S, REMOVED_BYTES_MAX, WRITE_BYTES_MAX, Disk, RealDisk
from engine.errors import (
    DiskError,
    DiskFullError,
    LockedError,
    MissingFileError,
    NameTakenError,
    SyncError,
)
from tests.sim.disk import SimDisk

OpenDisk = Callable[[], Disk]


@pytest.fixture(params=["real", "simulated"])
def open_disk(request: pytest.FixtureRequest, tmp_path: Path) -> OpenDisk:
    """Opens the same folder each time, as another process would."""
    if request.param == "real":
        return lambda: RealDisk(str(tmp_path / "data"))
    return SimDisk(random.Random("conformance")).again


@pytest.fixture
def disk(open_disk: OpenDisk) -> Disk:
    return open_disk()


def write_file(disk: Disk, name: str, data: bytes) -> None:
    with closing(disk.create(name)) as file:
        file.append(data)


def read_file(disk: Disk, name: str) -> bytes:
    with closing(disk.open(name)) as file:
        return file.read(0, 1 << 20)


# -- Both disks -------------------------------------------------------------------------------


def test_new_folder_is_empty(disk: Disk) -> None:
    assert disk.names() == []


def test_appended_bytes_are_read_back_in_order(disk: Disk) -> None:
    with closing(disk.create("a")) as file:
        file.append(b"one")
        file.append(b"")
        file.append(b"two")
        assert (file.name, file.size) == ("a", 6)
        assert file.read(0, 6) == b"onetwo"
        assert file.read(2, 3) == b"etw"


def test_read_is_short_only_at_the_end(disk: Disk) -> None:
    write_file(disk, "a", b"0123456789")
    with closing(disk.open("a")) as file:
        assert file.read(8, 10) == b"89"
        assert file.read(10, 1) == b""
        assert file.read(1000, 1) == b""


@pytest.mark.parametrize("beyond", [-1, 0, 1, WRITE_BYTES_MAX, WRITE_BYTES_MAX + 1, 2_500_001])
def test_large_append_is_written_whole(disk: Disk, beyond: int) -> None:
    data = random.Random(1).randbytes(WRITE_BYTES_MAX + beyond)
    with closing(disk.create("a")) as file:
        file.append(b"before")
        file.append(data)
        file.append(b"after")
        assert file.size == 6 + len(data) + 5
        assert file.read(0, file.size) == b"before" + data + b"after"


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(0, 4, b"0123"), (4, 100, b"456789"), (10, 5, b""), (50, 5, b"")],
)
def test_read_cached_returns_the_bytes_or_none(
    disk: Disk, offset: int, length: int, expected: bytes
) -> None:
    with closing(disk.create("a")) as file:
        file.append(b"0123456789")
        assert file.read_cached(offset, length) in (expected, None)


@pytest.mark.parametrize(("offset", "length"), [(0, 4), (4, 100), (50, 5), (0, 0)])
def test_what_is_announced_is_read_as_always(disk: Disk, offset: int, length: int) -> None:
    with closing(disk.create("a")) as file:
        file.append(b"0123456789")
        file.will_read(offset, length)
        assert file.read(offset, length) == b"0123456789"[offset : offset + length]


def test_reserved_room_is_not_in_the_file(disk: Disk) -> None:
    with closing(disk.create("a")) as file:
        file.append(b"0123456789")
        file.reserve(1 << 20)
        file.reserve(5)
        assert file.size == disk.size("a") == 10
        file.append(b"more")
        assert file.read(0, 100) == b"0123456789more"
        file.truncate(3)
        file.append(b"!")
        file.sync()
    assert read_file(disk, "a") == b"012!"


def test_what_is_written_back_is_in_the_file_as_always(disk: Disk) -> None:
    with closing(disk.create("a")) as file:
        file.write_back()
        for piece in (b"01234", b"", b"56789", b"more"):
            file.append(piece)
            file.write_back()
        file.append(b"!")
        assert file.read(0, 100) == b"0123456789more!"
        file.sync()
    assert read_file(disk, "a") == b"0123456789more!"


def test_a_file_that_cannot_be_written_back_says_so(disk: Disk) -> None:
    """As when it cannot be synced: who hears of it is who asked first, and never again."""
    file = disk.create("a")
    file.append(b"0123456789")
    file.close()
    with pytest.raises(SyncError, match="Bad file descriptor"):
        file.write_back()


def test_where_files_cannot_be_written_back_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: int) -> int:
        ctypes.set_errno(errno.ENOSYS)
        return -1

    monkeypatch.setattr("engine.disk._sync_file_range", refused)
    disk = RealDisk(str(tmp_path))
    with closing(disk.create("a")) as file:
        file.append(b"0123456789")
        file.write_back()
        file.sync()
    assert read_file(disk, "a") == b"0123456789"


def test_a_disk_without_room_to_reserve_says_so_when_it_is_needed(disk: Disk) -> None:
    with closing(disk.create("a")) as file:
        file.reserve(1 << 62)
        file.append(b"0123456789")
    assert read_file(disk, "a") == b"0123456789"


def test_created_name_is_taken(disk: Disk) -> None:
    write_file(disk, "a", b"first")
    with pytest.raises(NameTakenError) as caught:
        disk.create("a")
    assert caught.value.path == f"{disk.path}/a"
    assert read_file(disk, "a") == b"first"


@pytest.mark.parametrize(
    "operate",
    [
        lambda disk: disk.open("absent"),
        lambda disk: disk.open_append("absent"),
        lambda disk: disk.size("absent"),
        lambda disk: disk.remove("absent"),
        lambda disk: disk.rename("absent", "other"),
    ],
)
def test_missing_file_is_named(disk: Disk, operate: Callable[[Disk], object]) -> None:
    with pytest.raises(MissingFileError) as caught:
        operate(disk)
    assert caught.value.path == f"{disk.path}/absent"
    assert caught.value.code == errno.ENOENT
    assert disk.names() == []


@pytest.mark.parametrize("name", ["a/b", "..", "/a", "a\0b"])
def test_paths_are_no_names(disk: Disk, name: str) -> None:
    with pytest.raises(AssertionError):
        disk.create(name)


def test_reopened_file_goes_on_at_its_end(open_disk: OpenDisk) -> None:
    write_file(open_disk(), "a", b"one")
    disk = open_disk()
    with closing(disk.open_append("a")) as file:
        assert file.size == 3
        file.append(b"two")
        assert file.size == 6
    assert read_file(disk, "a") == b"onetwo"
    assert disk.size("a") == 6


def test_truncated_file_goes_on_at_the_cut(disk: Disk) -> None:
    with closing(disk.create("a")) as file:
        file.append(b"0123456789")
        file.truncate(4)
        assert file.size == 4
        file.append(b"x")
        assert file.read(0, 10) == b"0123x"
    with pytest.raises(AssertionError), closing(disk.open_append("a")) as file:
        file.truncate(6)


def test_read_only_file_takes_no_changes(disk: Disk) -> None:
    write_file(disk, "a", b"data")
    with closing(disk.open("a")) as file:
        with pytest.raises(DiskError):
            file.append(b"more")
        with pytest.raises(DiskError):
            file.truncate(0)
        file.sync()  # Allowed: recovery does it.
        file.drop_cache()
        assert file.read(0, 9) == b"data"


def test_closed_file_takes_nothing(disk: Disk) -> None:
    file = disk.create("a")
    file.close()
    file.close()
    with pytest.raises(DiskError):
        file.append(b"data")
    with pytest.raises(DiskError):
        file.read(0, 1)
    with pytest.raises(SyncError):
        file.sync()


def test_names_are_sorted_and_follow_changes(disk: Disk) -> None:
    for name in ("b", "c", "a"):
        write_file(disk, name, name.encode())
    assert disk.names() == ["a", "b", "c"]
    disk.rename("a", "d")
    disk.remove("b")
    disk.sync_names()
    assert disk.names() == ["c", "d"]
    assert read_file(disk, "d") == b"a"


def test_rename_replaces_the_target(disk: Disk) -> None:
    write_file(disk, "new", b"new")
    write_file(disk, "current", b"old")
    disk.rename("new", "current")
    assert disk.names() == ["current"]
    assert read_file(disk, "current") == b"new"
    disk.rename("current", "current")
    assert read_file(disk, "current") == b"new"


def test_removed_file_stays_readable_for_open_handles(disk: Disk) -> None:
    write_file(disk, "a", b"data")
    with closing(disk.open("a")) as file:
        disk.remove("a")
        write_file(disk, "a", b"other")
        assert file.read(0, 10) == b"data"
    assert read_file(disk, "a") == b"other"


def test_what_is_removed_in_pieces_is_gone(disk: Disk) -> None:
    write_file(disk, "a", bytes(100))
    disk.remove_in_pieces("a")
    assert disk.names() == []
    write_file(disk, "a", b"other")
    assert read_file(disk, "a") == b"other"


def test_what_is_removed_in_pieces_stays_whole_under_its_other_name(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.disk.REMOVED_BYTES_MAX", 1000)
    write_file(disk, "a", b"data" * 1000)
    other = disk.folder("other")
    disk.link("a", other)
    disk.remove_in_pieces("a")
    assert disk.names() == ["other"]
    assert read_file(other, "a") == b"data" * 1000


def test_reader_sees_what_was_appended_after_it_opened(disk: Disk) -> None:
    with closing(disk.create("a")) as writer, closing(disk.open("a")) as reader:
        writer.append(b"data")
        assert reader.read(0, 10) == b"data"
        assert reader.size == 0


def test_free_bytes_are_counted(disk: Disk) -> None:
    assert disk.free_bytes() > 1 << 20


def test_folder_has_one_owner(open_disk: OpenDisk) -> None:
    first, second = open_disk(), open_disk()
    first.lock("lock")
    with pytest.raises(LockedError) as caught:
        second.lock("lock")
    assert caught.value.path == f"{first.path}/lock"
    assert caught.value.pid is not None
    assert str(caught.value.pid) in str(caught.value)
    first.close()
    second.lock("lock")
    second.close()


def test_closed_disk_takes_nothing_and_its_files_go_on(disk: Disk) -> None:
    file = disk.create("a")
    disk.close()
    disk.close()
    with pytest.raises(DiskError):
        disk.names()
    with pytest.raises(DiskError):
        disk.create("b")
    file.append(b"data")
    assert file.read(0, 4) == b"data"
    file.close()


def test_folder_is_made_once_and_listed(disk: Disk, open_disk: OpenDisk) -> None:
    with closing(disk.folder("inner")) as inner:
        write_file(inner, "a", b"1")
        assert inner.path == f"{disk.path}/inner"
    assert disk.names() == ["inner"]
    with closing(open_disk().folder("inner")) as again:
        assert read_file(again, "a") == b"1"


def test_file_is_no_folder_and_the_other_way_round(disk: Disk) -> None:
    write_file(disk, "a", b"")
    with pytest.raises(DiskError, match="ot a directory"):
        disk.folder("a")
    disk.folder("b").close()
    with pytest.raises(NameTakenError):
        disk.create("b")


def test_link_is_the_same_file_under_two_names(disk: Disk) -> None:
    with closing(disk.folder("inner")) as inner, closing(disk.create("a")) as file:
        file.append(b"1")
        disk.link("a", inner)
        file.append(b"2")
        assert read_file(inner, "a") == b"12"
        disk.remove("a")
        file.append(b"3")
        assert read_file(inner, "a") == b"123"
        inner.sync_names()


def test_link_replaces_nothing_and_needs_a_file(disk: Disk) -> None:
    with closing(disk.folder("inner")) as inner:
        write_file(disk, "a", b"outer")
        write_file(inner, "a", b"inner")
        with pytest.raises(NameTakenError):
            disk.link("a", inner)
        with pytest.raises(MissingFileError):
            disk.link("b", inner)
        assert read_file(inner, "a") == b"inner"


def test_only_an_empty_folder_is_removed(disk: Disk) -> None:
    with closing(disk.folder("inner")) as inner:
        write_file(inner, "a", b"")
        with pytest.raises(DiskError, match="not empty"):
            disk.remove_folder("inner")
        inner.remove("a")
    disk.remove_folder("inner")
    assert disk.names() == []
    with pytest.raises(MissingFileError):
        disk.remove_folder("inner")


# -- The real disk ----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_folder_and_files_are_private(folder: Path) -> None:
    disk = RealDisk(str(folder))
    write_file(disk, "a", b"")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "a").stat().st_mode & 0o777 == 0o600


def test_parent_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="mount its disk"):
        RealDisk(str(tmp_path / "absent" / "data"))


def test_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"")
    with pytest.raises(DiskError, match="path of a folder"):
        RealDisk(str(tmp_path / "data"))


def test_full_device_is_a_typed_error(folder: Path) -> None:
    disk = RealDisk(str(folder))
    (folder / "full").symlink_to("/dev/full")
    with (
        closing(disk.open_append("full")) as file,
        pytest.raises(DiskFullError, match="Free some space") as caught,
    ):
        file.append(b"12345")
    assert caught.value.needed == 5
    assert caught.value.path == str(folder / "full")


def test_short_write_is_continued_until_the_limit(folder: Path) -> None:
    """A limit on file sizes makes the kernel write a part first, and refuse the rest after."""
    disk = RealDisk(str(folder))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(disk.create("a")) as file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            with pytest.raises(DiskFullError) as caught:
                file.append(b"x" * 150)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.needed == 50
        assert file.size == 100
        file.truncate(0)
        file.append(b"whole")
        assert file.read(0, 10) == b"whole"


@pytest.mark.parametrize("room", [0, 1, WRITE_BYTES_MAX, 2 * WRITE_BYTES_MAX + 5])
def test_a_piece_of_a_long_append_that_is_refused_leaves_the_true_size(
    folder: Path, room: int
) -> None:
    disk = RealDisk(str(folder))
    data = random.Random(3).randbytes(3 * WRITE_BYTES_MAX)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(disk.create("a")) as file:
        file.append(b"kept")
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 + room, hard))
        try:
            with pytest.raises(DiskFullError) as caught:
                file.append(data)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.needed == len(data) - room
        assert file.size == 4 + room
        assert file.read(0, 2 * len(data)) == b"kept" + data[:room]
        file.truncate(4)
        file.append(data)
        assert file.read(0, 2 * len(data)) == b"kept" + data


def test_no_call_writes_much_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    real_write = os.write

    def write(descriptor: int, data: bytes) -> int:
        lengths.append(len(data))
        return real_write(descriptor, data)

    disk = RealDisk(str(folder))
    with closing(disk.create("a")) as file:
        monkeypatch.setattr(os, "write", write)
        file.append(bytes(WRITE_BYTES_MAX))
        file.append(bytes(2 * WRITE_BYTES_MAX + 1))
    assert lengths == [WRITE_BYTES_MAX, WRITE_BYTES_MAX, WRITE_BYTES_MAX, 1]


@pytest.mark.parametrize(
    ("size", "lengths"),
    [
        (0, []),
        (REMOVED_BYTES_MAX, []),
        (REMOVED_BYTES_MAX + 1, [1]),
        (3 * REMOVED_BYTES_MAX + 5, [2 * REMOVED_BYTES_MAX + 5, REMOVED_BYTES_MAX + 5, 5]),
    ],
)
def test_the_space_of_a_large_file_goes_back_in_pieces(
    folder: Path, monkeypatch: pytest.MonkeyPatch, size: int, lengths: list[int]
) -> None:
    disk = RealDisk(str(folder))
    write_file(disk, "a", bytes(size))
    cuts: list[int] = []
    rests: list[float] = []
    monkeypatch.setattr(os, "ftruncate", lambda _, length: cuts.append(length))
    monkeypatch.setattr(time, "sleep", rests.append)
    disk.remove_in_pieces("a")
    assert cuts == lengths
    assert rests == [REMOVAL_REST_S] * len(lengths)
    assert disk.names() == []


def test_read_cached_takes_from_the_page_cache(folder: Path) -> None:
    disk = RealDisk(str(folder))
    with closing(disk.create("a")) as file:
        file.append(b"0123456789")
        data = file.read_cached(2, 3)
        # Only some file systems know how; the disk remembers the first refusal.
        assert data == (b"234" if disk.has_nowait else None)


def test_refused_nowait_is_remembered(folder: Path) -> None:
    """/proc has no reads without waiting, so a link into it behaves as such a file system."""
    disk = RealDisk(str(folder))
    (folder / "plain").symlink_to("/proc/self/cmdline")
    with closing(disk.open("plain")) as file:
        assert file.read_cached(0, 3) is None
        assert not disk.has_nowait
        assert file.read(0, 3)


def test_cold_pages_are_not_waited_for(folder: Path) -> None:
    disk = RealDisk(str(folder))
    data = random.Random(2).randbytes(1 << 16)
    with closing(disk.create("a")) as file:
        file.append(data)
        file.sync()
        file.drop_cache()
        # None where the kernel dropped the pages; memory file systems never do.
        assert file.read_cached(0, 4096) in (None, data[:4096])
        assert file.read(0, 1 << 16) == data


def test_lock_ends_with_its_process(folder: Path) -> None:
    """The lock is the process's: it holds against another one, and goes when that is killed."""
    program = (
        "import sys; from engine.disk import RealDisk;"
        "RealDisk(sys.argv[1]).lock('lock'); print('locked', flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"locked\n"
        disk = RealDisk(str(folder))
        with pytest.raises(LockedError) as caught:
            disk.lock("lock")
        assert caught.value.pid == owner.pid
    finally:
        owner.kill()
        owner.communicate()
    disk.lock("lock")
    assert (folder / "lock").read_bytes() == b"%d\n" % os.getpid()
    disk.close()


def test_errors_say_what_and_where_and_what_to_do(folder: Path) -> None:
    disk = RealDisk(str(folder))
    with pytest.raises(MissingFileError) as caught:
        disk.open("a")
    assert str(caught.value) == (
        f"cannot open {folder}/a: No such file or directory. "
        "Make the folder that should hold it, or mount its disk."
    )
