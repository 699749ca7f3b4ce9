"""A disk in memory that can lose power, run full, fail and lie, from a random number generator.

It keeps the same protocol and the same rules as `engine.disk.RealDisk`, and passes the same tests.
It is synchronous and takes no time.

What it models, and where it is harsher than most real disks:

- A file has *content* (what readers see: the kernel's cache) and *durable* bytes (what the platter
  has). Between two syncs each 512-byte sector keeps all versions that it went through, and so does
  the length. A power cut picks one version of each sector and any length on its own, so any subset
  of the unsynced writes survives, in any order, with zeros where the length survived and the data
  did not. One sector is written as a whole.
- Names have an order of unsynced changes. A power cut keeps any subset of them. Syncing a file does
  not keep its name.
- A failed sync drops the unsynced data: readers go on seeing it, later syncs succeed, and the
  platter never gets it. `drop_cache` shows the truth. A failed sync of names drops nothing:
  journals keep the changes or stop the file system.
- `crash` is a power cut: it returns the disk as the next start finds it. `kill` is the end of the
  process only: the cache survives, and a later `crash` can still lose it. Both release the lock,
  and make the old object and its files unusable, so that no test goes on with a dead process by
  mistake.

Faults are set in `Disk.faults`, by the number of operations until they happen. They belong to the
whole disk and outlive kills and crashes, as a bad disk does.
"""

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from engine.errors import (
    DiskError,
    DiskFullError,
    LockedError,
    MissingFileError,
    NameTakenError,
    SyncError,
)

SECTOR_BYTES = 512


class PowerCut(Exception):
    """The power went away in the middle of an operation: the test takes `crash()` and starts again.

    Not an `EngineError`, so that no code under test handles it.
    """


@dataclass(slots=True)
class Faults:
    """What will go wrong. A count of 1 means the next operation of that kind; None means never."""

    read_error_in: int | None = None
    write_error_in: int | None = None
    sync_error_in: int | None = None
    # An error that came once comes every time from then on.
    is_lasting: bool = False
    # Any operation that changes the disk, which may or may not have been done when the power goes.
    power_cut_in: int | None = None
    # Each append is written in pieces. Harmless alone; with an error or no room a part remains.
    has_short_writes: bool = False
    # None: endless. Removing and truncating files gives room back.
    capacity_bytes: int | None = None
    # `read_cached` finds nothing.
    is_cold: bool = False
    # Lies: success is reported, and nothing is durable.
    ignores_sync: bool = False
    ignores_sync_names: bool = False


class Inode:
    """The bytes of one file, as readers see them and as the platter has them."""

    __slots__ = ("content", "dropped", "durable", "sectors", "sizes")

    def __init__(self) -> None:
        self.content = bytearray()
        self.durable = bytearray()
        # The versions since the last sync, oldest first, of each sector touched since.
        self.sectors: dict[int, list[bytes]] = {}
        # All lengths since the last sync, and the one at it.
        self.sizes = [0]
        # Sectors that readers see and that a failed sync lost.
        self.dropped: set[int] = set()

    def append(self, data: bytes) -> None:
        begin = len(self.content)
        self.content += data
        self._touch(begin, len(self.content))

    def truncate(self, length: int) -> None:
        end = len(self.content)
        del self.content[length:]
        self._touch(length, end)

    def _touch(self, begin: int, end: int) -> None:
        self.sizes.append(len(self.content))
        for sector in range(begin // SECTOR_BYTES, -(-end // SECTOR_BYTES)):
            at = sector * SECTOR_BYTES
            version = bytes(self.content[at : at + SECTOR_BYTES]).ljust(SECTOR_BYTES, b"\0")
            self.sectors.setdefault(sector, []).append(version)
            self.dropped.discard(sector)

    def sync(self) -> None:
        for sector, versions in self.sectors.items():
            _put(self.durable, sector, versions[-1])
        _resize(self.durable, len(self.content))
        self.sectors.clear()
        self.sizes = [len(self.content)]

    def fail_sync(self) -> None:
        """Lose the unsynced sectors, but not from the cache. The length is not data, and waits."""
        self.dropped.update(self.sectors)
        self.sectors.clear()

    def drop_cache(self) -> None:
        for sector in self.dropped:
            at = sector * SECTOR_BYTES
            if at < len(self.content):
                end = min(at + SECTOR_BYTES, len(self.content))
                self.content[at:end] = bytes(self.durable[at:end]).ljust(end - at, b"\0")
        self.dropped.clear()

    def cut_power(self, rng: random.Random) -> None:
        """Keep any subset of what is not durable."""
        # Mixed most of the time; the extremes find other bugs, and a fair coin hardly ever makes
        # them.
        newest_chance = rng.choice((0.0, 0.5, 0.5, 0.9, 1.0))
        for sector in sorted(self.sectors):
            versions = self.sectors[sector]
            if rng.random() < newest_chance:
                _put(self.durable, sector, versions[-1])
            elif kept := rng.randrange(len(versions)):
                _put(self.durable, sector, versions[kept - 1])
        _resize(self.durable, self._surviving_size(rng))
        self.content = bytearray(self.durable)
        self.sectors.clear()
        self.dropped.clear()
        self.sizes = [len(self.content)]

    def _surviving_size(self, rng: random.Random) -> int:
        kind = rng.randrange(4)
        if kind == 0:
            return self.sizes[-1]
        if kind == 1:
            return rng.choice(self.sizes)
        return rng.randint(min(self.sizes), max(self.sizes))


_NameChange = tuple[str | None, str | None, Inode]
"""The old name (None: a creation), the new name (None: a removal), and whose name it is."""

_Error = TypeVar("_Error", bound=DiskError)


@dataclass(slots=True)
class _Platter:
    """What outlives a process: shared by all objects that stand for the same disk."""

    rng: random.Random
    faults: Faults
    names: dict[str, Inode] = field(default_factory=dict)
    durable_names: dict[str, Inode] = field(default_factory=dict)
    name_changes: list[_NameChange] = field(default_factory=list)
    lock_owner: "SimDisk | None" = None
    pid: int = 1


class SimDisk:
    """A simulated data folder, empty and without faults at first."""

    def __init__(
        self, rng: random.Random, *, path: str = "/sim", faults: Faults | None = None
    ) -> None:
        self._begin(_Platter(rng, faults or Faults()), path)

    def _begin(self, platter: _Platter, path: str) -> None:
        self.path = path
        self._platter = platter
        self._is_closed = False
        self._is_dead = False

    @property
    def faults(self) -> Faults:
        return self._platter.faults

    def again(self) -> "SimDisk":
        """Return the same folder as another process sees it at the same time."""
        other = SimDisk.__new__(SimDisk)
        other._begin(self._platter, self.path)
        return other

    # -- The protocol ------------------------------------------------------------------------

    def create(self, name: str) -> "SimFile":
        path = self._check(name, "create")
        if name in self._platter.names:
            raise _error(NameTakenError, errno.EEXIST, path, "create")
        inode = Inode()
        self._change_name((None, name, inode))
        return SimFile(self, name, inode, is_writable=True)

    def open_append(self, name: str) -> "SimFile":
        return SimFile(self, name, self._find(name, "open for writing"), is_writable=True)

    def open(self, name: str) -> "SimFile":
        return SimFile(self, name, self._find(name, "open"), is_writable=False)

    def names(self) -> list[str]:
        self._check("", "list")
        return sorted(self._platter.names)

    def size(self, name: str) -> int:
        return len(self._find(name, "look at").content)

    def rename(self, old: str, new: str) -> None:
        inode = self._find(old, f"rename to {new}")
        self._check(new, "rename")
        if old != new:
            self._change_name((old, new, inode))

    def remove(self, name: str) -> None:
        self._change_name((name, None, self._find(name, "remove")))

    def sync_names(self) -> None:
        path = self._check("", "sync")
        self.change(lambda: self._sync_names(path))

    def free_bytes(self) -> int:
        self._check("", "measure")
        return self.room()

    def total_bytes(self) -> int:
        self._check("", "measure")
        return self.faults.capacity_bytes or 1 << 40

    def lock(self, name: str) -> None:
        platter = self._platter
        path = self._check(name, "open")
        if platter.lock_owner is not None:
            raise LockedError(path, platter.pid)
        if name not in platter.names:
            self.create(name).close()
        platter.lock_owner = self

    def close(self) -> None:
        if self._platter.lock_owner is self:
            self._platter.lock_owner = None
        self._is_closed = True

    # -- The end of a process ----------------------------------------------------------------

    def kill(self) -> "SimDisk":
        """End the process (`kill -9`), and return the disk as the next one finds it."""
        self._is_dead = True
        self._platter.lock_owner = None
        self._platter.pid += 1
        return self.again()

    def crash(self) -> "SimDisk":
        """Cut the power, and return the disk as it is found afterwards."""
        platter = self._platter
        rng = platter.rng
        platter.faults.power_cut_in = None
        # Each file once, in the order of the names' changes, so that a seed decides everything.
        inodes = {id(inode): inode for inode in platter.durable_names.values()}
        inodes.update((id(inode), inode) for _, _, inode in platter.name_changes)
        for inode in inodes.values():
            inode.cut_power(rng)
        chance = rng.choice((0.0, 0.5, 1.0))
        for change in platter.name_changes:
            if rng.random() < chance:
                _apply(platter.durable_names, change)
        platter.name_changes.clear()
        platter.names = dict(platter.durable_names)
        return self.kill()

    # -- Damage ------------------------------------------------------------------------------

    def flip_bit(self, name: str, offset: int, bit: int = 0) -> None:
        """Damage one bit of a file, in the cache and on the platter."""
        inode = self._find(name, "damage")
        assert offset < len(inode.content), offset
        for data in (inode.content, inode.durable):
            if offset < len(data):
                data[offset] ^= 1 << bit

    # -- For SimFile -------------------------------------------------------------------------

    def check_alive(self) -> None:
        assert not self._is_dead, "the process of this disk has ended: use what crash() returned"

    def is_due(self, fault: str) -> bool:
        """Count one operation, and say if it is the one that fails."""
        count: int | None = getattr(self.faults, fault)
        if count is None:
            return False
        if count > 1:
            setattr(self.faults, fault, count - 1)
            return False
        if not self.faults.is_lasting:
            setattr(self.faults, fault, None)
        return True

    def change(self, operate: Callable[[], None]) -> None:
        """Change the disk; if the power goes away, then just before that or just after."""
        if not self.is_due("power_cut_in"):
            operate()
            return
        if self._platter.rng.random() < 0.5:
            operate()
        self._is_dead = True
        raise PowerCut

    def room(self) -> int:
        """How many bytes may still be written."""
        capacity = self.faults.capacity_bytes
        if capacity is None:
            return 1 << 40
        used = sum(len(inode.content) for inode in self._platter.names.values())
        return max(0, capacity - used)

    def shortened(self, count: int) -> int:
        """How many of `count` bytes the next system call writes."""
        return self._platter.rng.randint(1, count) if self.faults.has_short_writes else count

    # -- Inside ------------------------------------------------------------------------------

    def _check(self, name: str, operation: str) -> str:
        """Refuse what the real disk refuses; return the path for messages."""
        self.check_alive()
        assert not {"/", "\0"} & set(name), name
        assert name not in (".", ".."), name
        path = f"{self.path}/{name}" if name else self.path
        if self._is_closed:
            raise _error(DiskError, errno.EBADF, path, operation)
        return path

    def _find(self, name: str, operation: str) -> Inode:
        path = self._check(name, operation)
        inode = self._platter.names.get(name)
        if inode is None:
            raise _error(MissingFileError, errno.ENOENT, path, operation)
        return inode

    def _change_name(self, change: _NameChange) -> None:
        def operate() -> None:
            _apply(self._platter.names, change)
            self._platter.name_changes.append(change)

        self.change(operate)

    def _sync_names(self, path: str) -> None:
        platter = self._platter
        if self.is_due("sync_error_in"):
            raise _error(SyncError, errno.EIO, path, "sync")
        if not platter.faults.ignores_sync_names:
            for change in platter.name_changes:
                _apply(platter.durable_names, change)
            platter.name_changes.clear()


class SimFile:
    """An open file of a `SimDisk`."""

    __slots__ = ("_disk", "_inode", "_is_closed", "_is_writable", "_path", "name", "size")

    def __init__(self, disk: SimDisk, name: str, inode: Inode, *, is_writable: bool) -> None:
        self.name = name
        self.size = len(inode.content)
        self._disk = disk
        self._path = f"{disk.path}/{name}"
        self._inode = inode
        self._is_writable = is_writable
        self._is_closed = False

    def append(self, data: bytes) -> None:
        self._check("write to", is_change=True)
        while data:
            count = min(self._disk.shortened(len(data)), self._disk.room())
            if self._disk.is_due("write_error_in"):
                raise _error(DiskError, errno.EIO, self._path, "write to")
            if count <= 0:
                error = _error(DiskFullError, errno.ENOSPC, self._path, "write to")
                error.needed = len(data)
                raise error
            self._write(data[:count])
            data = data[count:]

    def _write(self, data: bytes) -> None:
        self._disk.change(lambda: self._inode.append(data))
        self.size += len(data)

    def read(self, offset: int, length: int) -> bytes:
        self._check("read")
        assert offset >= 0, offset
        if self._disk.is_due("read_error_in"):
            raise _error(DiskError, errno.EIO, self._path, "read")
        return bytes(self._inode.content[offset : offset + length])

    def read_cached(self, offset: int, length: int) -> bytes | None:
        self._check("read")
        return None if self._disk.faults.is_cold else self.read(offset, length)

    def sync(self) -> None:
        self._disk.check_alive()
        if self._is_closed:
            raise _error(SyncError, errno.EBADF, self._path, "sync")
        self._disk.change(self._sync)

    def _sync(self) -> None:
        if self._disk.is_due("sync_error_in"):
            self._inode.fail_sync()
            raise _error(SyncError, errno.EIO, self._path, "sync")
        if not self._disk.faults.ignores_sync:
            self._inode.sync()

    def drop_cache(self) -> None:
        self._check("drop the cache of")
        self._inode.drop_cache()

    def truncate(self, length: int) -> None:
        self._check("truncate", is_change=True)
        assert 0 <= length <= self.size, (length, self.size)
        if self._disk.is_due("write_error_in"):
            raise _error(DiskError, errno.EIO, self._path, "truncate")
        self._disk.change(lambda: self._inode.truncate(length))
        self.size = length

    def close(self) -> None:
        self._is_closed = True

    def _check(self, operation: str, *, is_change: bool = False) -> None:
        self._disk.check_alive()
        if self._is_closed or (is_change and not self._is_writable):
            raise _error(DiskError, errno.EBADF, self._path, operation)


def _apply(names: dict[str, Inode], change: _NameChange) -> None:
    old, new, inode = change
    if old is not None and names.get(old) is inode:
        del names[old]
    if new is not None:
        names[new] = inode


def _put(data: bytearray, sector: int, version: bytes) -> None:
    at = sector * SECTOR_BYTES
    if len(data) < at:
        data += bytes(at - len(data))
    data[at : at + SECTOR_BYTES] = version


def _resize(data: bytearray, length: int) -> None:
    del data[length:]
    data += bytes(length - len(data))


def _error(kind: type[_Error], code: int, path: str, operation: str) -> _Error:
    return kind(path, operation, code, os.strerror(code))
