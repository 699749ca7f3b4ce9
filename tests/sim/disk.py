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
- A file may have names in several folders (`link`), and is torn once for all of them. Folders are
  made durably at once; the removal of one can come undone until names are synced. `crash` and
  `kill` are for the outermost folder, and end the process for the inner ones as well.
- A failed sync drops the unsynced data: readers go on seeing it, later syncs succeed, and the
  platter never gets it. `drop_cache` shows the truth. A failed sync of names drops nothing:
  journals keep the changes or stop the file system.
- `crash` is a power cut: it returns the disk as the next start finds it. `kill` is the end of the
  process only: the cache survives, and a later `crash` can still lose it. Both release the lock,
  and make the old object and its files unusable, so that no test goes on with a dead process by
  mistake.

- `flip_bit` damages what is on the platter, `lose` takes a file away, and `heal` of what they return takes that back.

Faults are set in `Disk.faults`, by the number of operations until they happen. They belong to the
whole disk and outlive kills and crashes, as a bad disk does. `Faults.fired` counts what came true, by
the names in `FAULT_KINDS`: a campaign in which a kind never fired shows nothing about it.
"""

import errno
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from engine.disk import Disk
from engine.errors import (
    DiskError,
    DiskFullError,
    LockedError,
    MissingFileError,
    NameTakenError,
    SyncError,
)

SECTOR_BYTES = 512

FAULT_KINDS = (
    "read error",
    "write error",
    "name error",
    "failed sync",
    "failed sync of names",
    "data lost after a failed sync",
    "full disk",
    "short write",
    "power cut",
    "lost bytes",
    "zeros for lost bytes",
    "torn write",
    "lost name",
    "flipped bit",
    "lost file",
)
"""What can come true of a disk. A write is torn if some of its sectors survive a power cut and some do not."""


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
    # Making, renaming, linking and removing. A rename that fails may have been done.
    name_error_in: int | None = None
    # An error that came once comes every time from then on.
    is_lasting: bool = False
    # Any operation that changes the disk, which may or may not have been done when the power goes.
    power_cut_in: int | None = None
    # Counts only changes of names and their syncs: these decide what a power cut leaves of a swap.
    name_cut_in: int | None = None
    # Each append is written in pieces. Harmless alone; with an error or no room a part remains.
    has_short_writes: bool = False
    # None: endless. Removing and truncating files gives room back.
    capacity_bytes: int | None = None
    # `read_cached` finds nothing.
    is_cold: bool = False
    # Lies: success is reported, and nothing is durable.
    ignores_sync: bool = False
    ignores_sync_names: bool = False
    # What came true so far, by its kind.
    fired: Counter[str] = field(default_factory=Counter)


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

    def fail_sync(self, fired: Counter[str]) -> None:
        """Lose the unsynced sectors, but not from the cache. The length is not data, and waits."""
        fired["failed sync"] += 1
        fired["data lost after a failed sync"] += bool(self.sectors)
        self.dropped.update(self.sectors)
        self.sectors.clear()

    def drop_cache(self) -> None:
        for sector in self.dropped:
            at = sector * SECTOR_BYTES
            if at < len(self.content):
                end = min(at + SECTOR_BYTES, len(self.content))
                self.content[at:end] = bytes(self.durable[at:end]).ljust(end - at, b"\0")
        self.dropped.clear()

    def cut_power(self, rng: random.Random, fired: Counter[str]) -> None:
        """Keep any subset of what is not durable."""
        cached = bytes(self.content)
        dirty = sorted(self.sectors)
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
        self._tell(cached, dirty, fired)

    def _tell(self, cached: bytes, dirty: list[int], fired: Counter[str]) -> None:
        """Count what the power cut did to the dirty sectors of what readers saw."""
        ranges = [slice(n * SECTOR_BYTES, (n + 1) * SECTOR_BYTES) for n in dirty]
        lost = [each for each in ranges if self.content[each] != cached[each]]
        fired["lost bytes"] += bool(lost)
        fired["torn write"] += 0 < len(lost) < len(ranges)
        fired["zeros for lost bytes"] += any(
            any(cached[each]) and self.content[each] and not any(self.content[each])
            for each in lost
        )

    def _surviving_size(self, rng: random.Random) -> int:
        kind = rng.randrange(4)
        if kind == 0:
            return self.sizes[-1]
        if kind == 1:
            return rng.choice(self.sizes)
        return rng.randint(min(self.sizes), max(self.sizes))


@dataclass(frozen=True, slots=True)
class Flip:
    """One damaged bit of a file, which `heal` puts right, as a repair from elsewhere would."""

    inode: Inode
    offset: int
    mask: int
    damaged: int

    def heal(self) -> None:
        """Put it right, if the damaged byte is still there."""
        for data in (self.inode.content, self.inode.durable):
            if self.offset < len(data) and data[self.offset] == self.damaged:
                data[self.offset] ^= self.mask
        # It was written again with its sector, if something was appended to that.
        number, at = divmod(self.offset, SECTOR_BYTES)
        versions = self.inode.sectors.get(number, [])
        for place, version in enumerate(versions):
            if version[at] == self.damaged:
                healed = bytes([version[at] ^ self.mask])
                versions[place] = version[:at] + healed + version[at + 1 :]


@dataclass(frozen=True, slots=True)
class LostFile:
    """A file that is gone, and that `heal` puts back, as a repair from elsewhere would."""

    platter: "_Platter"
    name: str
    inode: Inode

    def heal(self) -> None:
        """Put it back, durably."""
        self.platter.names[self.name] = self.platter.durable_names[self.name] = self.inode


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
    folders: dict[str, "_Platter"] = field(default_factory=dict)
    removed_folders: dict[str, "_Platter"] = field(default_factory=dict)
    lock_owner: "SimDisk | None" = None
    pid: int = 1

    def cut_power(self) -> None:
        """Keep any subset of the changes of names, and any of the folders whose removal is not durable."""
        chance = self.rng.choice((0.0, 0.5, 1.0))
        for change in self.name_changes:
            if self.rng.random() < chance:
                _apply(self.durable_names, change)
            else:
                self.faults.fired["lost name"] += 1
        self.name_changes.clear()
        self.names = dict(self.durable_names)
        for name, folder in self.removed_folders.items():
            if self.rng.random() < 0.5:
                self.folders.setdefault(name, folder)
        self.removed_folders.clear()

    def tree(self) -> "list[_Platter]":
        """This folder and all in it, those among them whose removal is not durable."""
        inner = [*self.folders.values(), *self.removed_folders.values()]
        return [self, *(each for platter in inner for each in platter.tree())]


@dataclass(slots=True)
class _Process:
    """What ends when a process does: shared by the folders that it opened."""

    is_dead: bool = False


class SimDisk:
    """A simulated data folder, empty and without faults at first."""

    def __init__(
        self, rng: random.Random, *, path: str = "/sim", faults: Faults | None = None
    ) -> None:
        platter = _Platter(rng, faults or Faults())
        self._begin(platter, path, root=platter, process=_Process())

    def _begin(self, platter: _Platter, path: str, *, root: _Platter, process: _Process) -> None:
        self.path = path
        self._platter = platter
        self._root = root
        self._process = process
        self._is_closed = False

    @property
    def faults(self) -> Faults:
        return self._platter.faults

    def again(self) -> "SimDisk":
        """Return the same folder as another process sees it at the same time."""
        return self._opened(self._platter, self.path, _Process())

    def _opened(self, platter: _Platter, path: str, process: _Process) -> "SimDisk":
        other = SimDisk.__new__(SimDisk)
        other._begin(platter, path, root=self._root, process=process)
        return other

    # -- The protocol ------------------------------------------------------------------------

    def create(self, name: str) -> "SimFile":
        path = self._check(name, "create")
        if name in self._platter.names or name in self._platter.folders:
            raise _error(NameTakenError, errno.EEXIST, path, "create")
        self._fail_if_due(path, "create")
        inode = Inode()
        self._change_name((None, name, inode))
        return SimFile(self, name, inode, is_writable=True)

    def open_append(self, name: str) -> "SimFile":
        return SimFile(self, name, self._find(name, "open for writing"), is_writable=True)

    def open(self, name: str) -> "SimFile":
        return SimFile(self, name, self._find(name, "open"), is_writable=False)

    def names(self) -> list[str]:
        self._check("", "list")
        return sorted([*self._platter.names, *self._platter.folders])

    def size(self, name: str) -> int:
        return len(self._find(name, "look at").content)

    def rename(self, old: str, new: str) -> None:
        inode = self._find(old, f"rename to {new}")
        self._check(new, "rename")
        try:
            self._fail_if_due(f"{self.path}/{old}", f"rename to {new}")
        except DiskError:
            if self._platter.rng.random() < 0.5:
                self._change_name((old, new, inode))
            raise
        if old != new:
            self._change_name((old, new, inode))

    def remove(self, name: str) -> None:
        inode = self._find(name, "remove")
        self._fail_if_due(f"{self.path}/{name}", "remove")
        self._change_name((name, None, inode))

    def remove_in_pieces(self, name: str) -> None:
        inode = self._find(name, "remove")
        self.remove(name)
        if all(inode not in platter.names.values() for platter in self._root.tree()):
            # A power cut may bring the name back, and not all of the bytes.
            self.change(lambda: inode.truncate(self._root.rng.randint(0, len(inode.content))))

    def link(self, name: str, target: Disk) -> None:
        assert isinstance(target, SimDisk), target
        assert target._root is self._root, "another file system"
        inode = self._find(name, f"link into {target.path}")
        path = target._check(name, "link")
        if name in target._platter.names or name in target._platter.folders:
            raise _error(NameTakenError, errno.EEXIST, path, "link")
        self._fail_if_due(path, "link")
        target._change_name((None, name, inode))

    def folder(self, name: str) -> "SimDisk":
        path = self._check(name, "make the folder")
        platter = self._platter
        if name in platter.names:
            raise _error(DiskError, errno.ENOTDIR, path, "open the folder")
        if name not in platter.folders:
            self._fail_if_due(path, "make the folder")
            inner = _Platter(platter.rng, platter.faults)
            self.change(lambda: platter.folders.update({name: inner}))
        return self._opened(platter.folders[name], path, self._process)

    def remove_folder(self, name: str) -> None:
        path = self._check(name, "remove the folder")
        platter = self._platter
        inner = platter.folders.get(name)
        if inner is None:
            raise _error(MissingFileError, errno.ENOENT, path, "remove the folder")
        if inner.names or inner.folders:
            raise _error(DiskError, errno.ENOTEMPTY, path, "remove the folder")

        def operate() -> None:
            platter.removed_folders[name] = platter.folders.pop(name)

        self.change(operate)

    def sync_names(self) -> None:
        path = self._check("", "sync")
        self.change(lambda: self._sync_names(path), is_of_names=True)

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
        assert self._platter is self._root, "the process ends with its outermost folder"
        self._process.is_dead = True
        for platter in self._root.tree():
            platter.lock_owner = None
            platter.pid += 1
        return self.again()

    def crash(self) -> "SimDisk":
        """Cut the power, and return the disk as it is found afterwards."""
        rng, faults = self._root.rng, self._root.faults
        faults.power_cut_in = faults.name_cut_in = None
        faults.fired["power cut"] += 1
        tree = self._root.tree()
        # Each file once, in the order of the names' changes, so that a seed decides everything.
        inodes: dict[int, Inode] = {}
        for platter in tree:
            inodes.update((id(inode), inode) for inode in platter.durable_names.values())
            inodes.update((id(inode), inode) for _, _, inode in platter.name_changes)
        for inode in inodes.values():
            inode.cut_power(rng, faults.fired)
        for platter in tree:
            platter.cut_power()
        return self.kill()

    # -- Damage ------------------------------------------------------------------------------

    def is_clean(self, name: str, offset: int) -> bool:
        """Whether the sector of a byte is durable as readers see it."""
        inode = self._find(name, "look at")
        number = offset // SECTOR_BYTES
        is_dirty = number in inode.sectors or number in inode.dropped
        return not is_dirty and offset < min(len(inode.durable), len(inode.content))

    def flip_bit(self, name: str, offset: int, bit: int = 0) -> Flip:
        """Damage one bit of a file, in the cache and on the platter."""
        self.faults.fired["flipped bit"] += 1
        inode = self._find(name, "damage")
        assert offset < len(inode.content), offset
        for data in (inode.content, inode.durable):
            if offset < len(data):
                data[offset] ^= 1 << bit
        return Flip(inode, offset, 1 << bit, inode.content[offset])

    def lose(self, name: str) -> LostFile:
        """Take a file away, as a damaged file system does: no name of it remains in this folder."""
        self.faults.fired["lost file"] += 1
        inode = self._find(name, "lose")
        platter = self._platter
        platter.name_changes = [each for each in platter.name_changes if each[2] is not inode]
        for names in (platter.names, platter.durable_names):
            names.pop(name, None)
        return LostFile(platter, name, inode)

    # -- For SimFile -------------------------------------------------------------------------

    def check_alive(self) -> None:
        assert not self._process.is_dead, (
            "the process of this disk has ended: use what crash() returned"
        )

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

    def change(self, operate: Callable[[], None], *, is_of_names: bool = False) -> None:
        """Change the disk; if the power goes away, then just before that or just after."""
        is_cut = self.is_due("power_cut_in")
        if is_of_names and self.is_due("name_cut_in"):
            is_cut = True
        if not is_cut:
            operate()
            return
        if self._platter.rng.random() < 0.5:
            operate()
        self._process.is_dead = True
        raise PowerCut

    def room(self) -> int:
        """How many bytes may still be written."""
        capacity = self.faults.capacity_bytes
        if capacity is None:
            return 1 << 40
        return max(0, capacity - self.used_bytes())

    def used_bytes(self) -> int:
        """How many bytes all files take; one with several names takes its room once."""
        inodes = {id(inode): inode for p in self._root.tree() for inode in p.names.values()}
        return sum(len(inode.content) for inode in inodes.values())

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

    def _fail_if_due(self, path: str, operation: str) -> None:
        if self.is_due("name_error_in"):
            self.faults.fired["name error"] += 1
            raise _error(DiskError, errno.EIO, path, operation)

    def _change_name(self, change: _NameChange) -> None:
        def operate() -> None:
            _apply(self._platter.names, change)
            self._platter.name_changes.append(change)

        self.change(operate, is_of_names=True)

    def _sync_names(self, path: str) -> None:
        platter = self._platter
        if self.is_due("sync_error_in"):
            self.faults.fired["failed sync of names"] += 1
            raise _error(SyncError, errno.EIO, path, "sync")
        if not platter.faults.ignores_sync_names:
            for change in platter.name_changes:
                _apply(platter.durable_names, change)
            platter.name_changes.clear()
            platter.removed_folders.clear()


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
            fired = self._disk.faults.fired
            if self._disk.is_due("write_error_in"):
                fired["write error"] += 1
                raise _error(DiskError, errno.EIO, self._path, "write to")
            if count <= 0:
                fired["full disk"] += 1
                error = _error(DiskFullError, errno.ENOSPC, self._path, "write to")
                error.needed = len(data)
                raise error
            fired["short write"] += count < len(data)
            self._write(data[:count])
            data = data[count:]

    def _write(self, data: bytes) -> None:
        self._disk.change(lambda: self._inode.append(data))
        self.size += len(data)

    def read(self, offset: int, length: int) -> bytes:
        self._check("read")
        assert offset >= 0, offset
        if self._disk.is_due("read_error_in"):
            self._disk.faults.fired["read error"] += 1
            raise _error(DiskError, errno.EIO, self._path, "read")
        return bytes(self._inode.content[offset : offset + length])

    def read_cached(self, offset: int, length: int) -> bytes | None:
        self._check("read")
        return None if self._disk.faults.is_cold else self.read(offset, length)

    def will_read(self, offset: int, length: int) -> None:
        self._check("read")

    def reserve(self, length: int) -> None:
        self._check("reserve")

    def write_back(self) -> None:
        self._check_syncable()
        self._fail_sync_if_due()  # What is not synced may be there after a crash in any case.

    def sync(self) -> None:
        self._check_syncable()
        self._disk.change(self._sync)

    def _sync(self) -> None:
        self._fail_sync_if_due()
        if not self._disk.faults.ignores_sync:
            self._inode.sync()

    def _check_syncable(self) -> None:
        self._disk.check_alive()
        if self._is_closed:
            raise _error(SyncError, errno.EBADF, self._path, "sync")

    def _fail_sync_if_due(self) -> None:
        if self._disk.is_due("sync_error_in"):
            self._inode.fail_sync(self._disk.faults.fired)
            raise _error(SyncError, errno.EIO, self._path, "sync")

    def drop_cache(self) -> None:
        self._check("drop the cache of")
        self._inode.drop_cache()

    def truncate(self, length: int) -> None:
        self._check("truncate", is_change=True)
        assert 0 <= length <= self.size, (length, self.size)
        if self._disk.is_due("write_error_in"):
            self._disk.faults.fired["write error"] += 1
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
