"""The disk seam: everything the engine asks of a file system, and the real one.

Shell. It takes no decision beyond turning every OSError into a typed `EngineError`. It knows no
file format, and it does not run anything in threads: the caller decides which calls may block it.

A `Disk` is one folder. Names are names in it, never paths. The rules that both the real
disk and the simulated one (`tests/sim/disk.py`) keep, and that their common tests check:

- What `append` and `truncate` did is durable once `sync` of that file has returned, and not before.
  After a power cut any part of it may be there.
- What `create`, `rename` and `remove` did to names is durable once `sync_names` has returned.
  Syncing a file does not make its name durable.
- `rename` replaces the target in one step.
- A folder may hold folders, each a `Disk` of its own. That one was made is durable at once; that one
  was removed is durable once `sync_names` of the outer folder has returned.
- `link` gives a file a second name in another folder of the same file system: one file from then on,
  whose bytes go with the last name. The new name is durable once `sync_names` *of that folder* has
  returned.
- A failed `append` may leave a part of the data in the file; `size` then tells the true end.
- A failed `sync` is final. The kernel may drop the unwritten data, keep showing it to readers from
  its cache, and report success the next time. `drop_cache` is the way back to the truth: the next
  `read` comes from the disk.
- `sync`, `write_back` and `reserve` may run in one thread while another one appends to the same file. Nothing else may
  overlap on one file, and `close` least of all: the number of a closed descriptor is used again.

Linux is assumed: `fdatasync`, `flock` and `preadv` with `RWF_NOWAIT`.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import time
from typing import Protocol

from engine.errors import (
    DiskError,
    DiskFullError,
    LockedError,
    MissingFileError,
    NameTakenError,
    SyncError,
)

_FOLDER_MODE = 0o700
_FILE_MODE = 0o600

# No process has this descriptor, so every call on it fails with EBADF. Minus one would not do: some
# functions of `os` take it for the current folder.
_CLOSED = (1 << 31) - 1

# More than this is written in pieces. For a call of many MiB ext4 takes page cache in blocks of 2 MiB, and such
# blocks, when free, are what a virtual machine gives back to its host. Getting them again made a call of
# 64 MiB take 160 ms; in pieces, which fit into memory that was in use a moment ago, it takes 25. Where nothing is
# given back, the pieces cost a few per cent (`bench/large_value.py`).
WRITE_BYTES_MAX = 512 * 1024

# To give back the blocks of a large file keeps the disk busy at one stretch, where it is told of it at once (`mount -o
# discard`) for tens of milliseconds, and whoever needs a block meanwhile waits: a sync of the log, and behind
# it the next write to it. So space goes back in pieces, with time between for the others.
REMOVED_BYTES_MAX = 4 * 1024 * 1024
REMOVAL_REST_S = 0.005

_libc = ctypes.CDLL(None, use_errno=True)
# `os.posix_fallocate` would change the size.
_fallocate = getattr(_libc, "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
_KEEP_SIZE = 1
_sync_file_range = getattr(_libc, "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_long, ctypes.c_long, ctypes.c_uint)
_START, _FINISH = 2, 7  # Write; wait, write and wait.
# Where less than so many times as much is free, others may need it more than who reserves it.
PLENTY_TIMES = 8

_FULL_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_NOWAIT_CODES = (errno.EOPNOTSUPP, errno.ENOSYS)
# The file system cannot, or the container must not: the bytes are written with the next `sync`.
_NO_RANGE_CODES = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ESPIPE, errno.EPERM)

_ADVICE = {
    errno.EIO: "The disk may be failing: look at the kernel's log, and replace it if it is.",
    errno.ENOSPC: "Free some space, or move the data folder to a larger disk.",
    errno.EDQUOT: "Raise the disk quota of the user that runs the node, or free some space.",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f).",
    errno.EACCES: "Let the user that runs the node own the data folder.",
    errno.EPERM: "Let the user that runs the node own the data folder.",
    errno.EROFS: "The file system is read-only: look at the kernel's log, and mount it writable.",
    errno.EMFILE: "Raise the limit on open files (ulimit -n).",
    errno.ENFILE: "Raise the system's limit on open files (fs.file-max).",
    errno.ENOTDIR: "Give the node the path of a folder.",
    errno.EXDEV: "Both must be on one file system.",
    errno.ENOTEMPTY: "Look at what is in it; it was not put there by this program.",
    errno.ENOENT: "Make the folder that should hold it, or mount its disk.",
    errno.EBADF: "The file is closed, or open for the other direction: this is a bug.",
}


class File(Protocol):
    """An open file. `size` is its length at opening, plus the changes made by this handle."""

    name: str
    size: int

    def append(self, data: bytes) -> None:
        """Write all of `data` at the end. Raises `DiskFullError` or `DiskError`."""

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes at `offset`; fewer than `length` only at the end of the file."""

    def read_cached(self, offset: int, length: int) -> bytes | None:
        """Do as `read`, but only if no disk access is needed. None: ask `read`, in a thread."""

    def will_read(self, offset: int, length: int) -> None:
        """Say that these bytes will be read soon, so that several reads wait for the disk together."""

    def reserve(self, length: int) -> None:
        """Say that the file will grow to `length` bytes, so that room is found before the bytes come.

        Advice: nothing tells whether there was any. The size stays. It may wait for the disk.
        """

    def write_back(self) -> None:
        """Have written what came since the last call, and wait for what came before that.

        So a large file goes to the disk evenly while it is made. Nothing is durable by that: `sync` is. Raises
        `SyncError`, after which no retry is allowed, nor a `sync`.
        """

    def sync(self) -> None:
        """Make all bytes durable. Raises `SyncError`, after which no retry is allowed."""

    def drop_cache(self) -> None:
        """Forget what is cached and clean, so that `read` shows what the disk really has."""

    def truncate(self, length: int) -> None:
        """Cut the file to `length` bytes, which is at most its size."""

    def close(self) -> None:
        """Give the file back. Closing twice is allowed; any other use afterwards is an error."""


class Disk(Protocol):
    """One folder."""

    path: str

    def create(self, name: str) -> File:
        """Make a new empty file, open for appending and reading. `NameTakenError` if it exists."""

    def open_append(self, name: str) -> File:
        """Open an existing file for appending and reading."""

    def open(self, name: str) -> File:
        """Open an existing file for reading."""

    def names(self) -> list[str]:
        """Return the names of all files and folders in it, sorted."""

    def size(self, name: str) -> int:
        """Return the length of a file in bytes."""

    def rename(self, old: str, new: str) -> None:
        """Give a file another name; a file that had that name is gone."""

    def remove(self, name: str) -> None:
        """Take a name away. Handles that are open go on working."""

    def remove_in_pieces(self, name: str) -> None:
        """Do as `remove`, and give the space back little by little. Blocks for a while: for a thread.

        For a file whose bytes nobody needs: those who have it open find it shorter. What has another name
        (`link`) keeps all.
        """

    def link(self, name: str, target: "Disk") -> None:
        """Give a file the same name in `target`, a folder of the same kind on the same file system.

        Nothing is copied. `NameTakenError` if the name exists there.
        """

    def folder(self, name: str) -> "Disk":
        """Open a folder in this one; it is made, durably, if it is absent."""

    def remove_folder(self, name: str) -> None:
        """Take an empty folder away. `DiskError` if it is not empty."""

    def sync_names(self) -> None:
        """Make all changes of names durable. Raises `SyncError`."""

    def free_bytes(self) -> int:
        """Return how many bytes may still be written."""

    def total_bytes(self) -> int:
        """Return how many bytes the file system that holds the folder has for its users: used ones and free ones."""

    def lock(self, name: str) -> None:
        """Own the folder until `close` or the end of the process. Raises `LockedError`."""

    def close(self) -> None:
        """Give up the lock and the folder. Files that are open go on working."""


def replace_file(disk: Disk, name: str, temporary: str, data: bytes) -> None:
    """Replace a small file as a whole: a crash leaves the old one or the new one. Durable when it returns.

    Raises DiskError, SyncError.
    """
    if temporary in disk.names():
        disk.remove(temporary)
    file = disk.create(temporary)
    try:
        file.append(data)
        file.sync()
    finally:
        file.close()
    disk.rename(temporary, name)
    disk.sync_names()


class RealDisk:
    """A folder of the operating system, made if it is absent (its parent must be there).

    A missing parent is refused and not made, because it usually means that a disk is not mounted.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        # Learned from the first refusal: the whole folder is on one file system.
        self.has_nowait = True
        self._lock_descriptor: int | None = None
        if _make_folder(path):
            _sync_folder(os.path.dirname(os.path.abspath(path)))
        # All names are looked up from this descriptor, so nothing else can slip below the path.
        self._descriptor = _open_folder(path)

    def create(self, name: str) -> "RealFile":
        return self._open(name, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, "create")

    def open_append(self, name: str) -> "RealFile":
        return self._open(name, os.O_RDWR | os.O_APPEND, "open for writing")

    def open(self, name: str) -> "RealFile":
        return self._open(name, os.O_RDONLY, "open")

    def _open(self, name: str, flags: int, operation: str) -> "RealFile":
        path = self._path_of(name)
        try:
            descriptor = os.open(name, flags, _FILE_MODE, dir_fd=self._descriptor)
            return RealFile(self, name, descriptor)
        except OSError as error:
            raise _typed(error, path, operation) from error

    def names(self) -> list[str]:
        try:
            return sorted(os.listdir(self._descriptor))
        except OSError as error:
            raise _typed(error, self.path, "list") from error

    def size(self, name: str) -> int:
        path = self._path_of(name)
        try:
            return os.stat(name, dir_fd=self._descriptor).st_size
        except OSError as error:
            raise _typed(error, path, "look at") from error

    def rename(self, old: str, new: str) -> None:
        path = self._path_of(old)
        assert _is_name(new), new
        try:
            os.rename(old, new, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except OSError as error:
            raise _typed(error, path, f"rename to {new}") from error

    def remove(self, name: str) -> None:
        path = self._path_of(name)
        try:
            os.unlink(name, dir_fd=self._descriptor)
        except OSError as error:
            raise _typed(error, path, "remove") from error

    def remove_in_pieces(self, name: str) -> None:
        path = self._path_of(name)
        try:
            descriptor = os.open(name, os.O_RDWR, dir_fd=self._descriptor)
        except OSError as error:
            raise _typed(error, path, "open for removing") from error
        try:
            self.remove(name)
            status = os.fstat(descriptor)
            if status.st_nlink:
                return
            with contextlib.suppress(OSError):  # The rest goes with the descriptor.
                for length in range(status.st_size - REMOVED_BYTES_MAX, 0, -REMOVED_BYTES_MAX):
                    os.ftruncate(descriptor, length)
                    time.sleep(REMOVAL_REST_S)
        finally:
            os.close(descriptor)

    def link(self, name: str, target: Disk) -> None:
        assert isinstance(target, RealDisk), target
        path = self._path_of(name)
        try:
            os.link(name, name, src_dir_fd=self._descriptor, dst_dir_fd=target._descriptor)
        except OSError as error:
            raise _typed(error, path, f"link into {target.path}") from error

    def folder(self, name: str) -> "RealDisk":
        return RealDisk(self._path_of(name))

    def remove_folder(self, name: str) -> None:
        path = self._path_of(name)
        try:
            os.rmdir(name, dir_fd=self._descriptor)
        except OSError as error:
            raise _typed(error, path, "remove the folder") from error

    def sync_names(self) -> None:
        _sync_descriptor(self._descriptor, self.path)

    def free_bytes(self) -> int:
        try:
            space = os.fstatvfs(self._descriptor)
        except OSError as error:
            raise _typed(error, self.path, "measure") from error
        return space.f_bavail * space.f_frsize

    def total_bytes(self) -> int:
        try:
            space = os.fstatvfs(self._descriptor)
        except OSError as error:
            raise _typed(error, self.path, "measure") from error
        # As `df` counts: without what only root may fill.
        return (space.f_blocks - space.f_bfree + space.f_bavail) * space.f_frsize

    def lock(self, name: str) -> None:
        assert self._lock_descriptor is None, "the folder is locked already"
        path = self._path_of(name)
        try:
            flags = os.O_RDWR | os.O_CREAT
            descriptor = os.open(name, flags, _FILE_MODE, dir_fd=self._descriptor)
        except OSError as error:
            raise _typed(error, path, "open") from error
        try:
            _take_lock(descriptor, path)
        except BaseException:
            os.close(descriptor)
            raise
        self._lock_descriptor = descriptor

    def close(self) -> None:
        for descriptor in (self._lock_descriptor, self._descriptor):
            if descriptor not in (None, _CLOSED):
                os.close(descriptor)
        self._lock_descriptor = None
        self._descriptor = _CLOSED

    def _path_of(self, name: str) -> str:
        assert _is_name(name), name
        return os.path.join(self.path, name)


class RealFile:
    """A file of a `RealDisk`. All methods are plain system calls on one descriptor."""

    __slots__ = ("_descriptor", "_disk", "_path", "_writing", "name", "size")

    def __init__(self, disk: RealDisk, name: str, descriptor: int) -> None:
        self.name = name
        self._disk = disk
        self._path = os.path.join(disk.path, name)
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self._writing = (self.size, self.size)  # From where to where `write_back` has it written.

    def append(self, data: bytes) -> None:
        # The usual case is one system call and no slice: this is on the path of every write.
        written = 0
        try:
            if len(data) <= WRITE_BYTES_MAX:
                written = os.write(self._descriptor, data)
                self.size += written
            if written < len(data):
                with memoryview(data) as view:
                    while written < len(data):
                        piece = view[written : written + WRITE_BYTES_MAX]
                        count = os.write(self._descriptor, piece)
                        self.size += count
                        written += count
        except OSError as error:
            raise _typed(error, self._path, "write to", needed=len(data) - written) from error

    def read(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._descriptor, length, offset)
            while len(data) < length:
                more = os.pread(self._descriptor, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise _typed(error, self._path, "read") from error
        return data

    def read_cached(self, offset: int, length: int) -> bytes | None:
        if not self._disk.has_nowait:
            return None
        buffer = bytearray(length)
        try:
            count = os.preadv(self._descriptor, (buffer,), offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno not in _NO_NOWAIT_CODES:
                raise _typed(error, self._path, "read") from error
            self._disk.has_nowait = False
            return None
        if count == length:
            return bytes(buffer)
        # Short: either the file ends here, or only the first pages are cached.
        return bytes(buffer[:count]) if offset + count >= self.size else None

    def will_read(self, offset: int, length: int) -> None:
        with contextlib.suppress(OSError):  # Only advice: `read` will tell what is wrong.
            os.posix_fadvise(self._descriptor, offset, length, os.POSIX_FADV_WILLNEED)

    def reserve(self, length: int) -> None:
        if _fallocate is None or length <= self.size:
            return
        with contextlib.suppress(DiskError):
            if self._disk.free_bytes() > PLENTY_TIMES * (length - self.size):
                _fallocate(self._descriptor, _KEEP_SIZE, self.size, length - self.size)

    def write_back(self) -> None:
        start, end = self._writing
        self._writing = (end, self.size)
        self._write_range(end, self.size, _START)
        self._write_range(start, end, _FINISH)

    def _write_range(self, start: int, end: int, flags: int) -> None:
        if _sync_file_range is None or start == end:
            return
        if _sync_file_range(self._descriptor, start, end - start, flags) == 0:
            return
        code = ctypes.get_errno()
        if code not in _NO_RANGE_CODES:
            raise _sync_error(OSError(code, os.strerror(code)), self._path)

    def sync(self) -> None:
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise _sync_error(error, self._path) from error

    def drop_cache(self) -> None:
        try:
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise _typed(error, self._path, "drop the cache of") from error

    def truncate(self, length: int) -> None:
        assert 0 <= length <= self.size, (length, self.size)
        try:
            os.ftruncate(self._descriptor, length)
        except OSError as error:
            raise _typed(error, self._path, "truncate") from error
        self.size = length

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, _CLOSED
        if descriptor != _CLOSED:
            os.close(descriptor)


def _is_name(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _make_folder(path: str) -> bool:
    """Make the folder; False if it is there."""
    try:
        os.mkdir(path, _FOLDER_MODE)
    except FileExistsError:
        return False
    except OSError as error:
        raise _typed(error, path, "make the folder") from error
    return True


def _open_folder(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _typed(error, path, "open the folder") from error


def _sync_folder(path: str) -> None:
    descriptor = _open_folder(path)
    try:
        _sync_descriptor(descriptor, path)
    finally:
        os.close(descriptor)


def _sync_descriptor(descriptor: int, path: str) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise _sync_error(error, path) from error


def _take_lock(descriptor: int, path: str) -> None:
    """Lock the open file, and leave our process number in it for the next one's message."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        number = os.pread(descriptor, 20, 0).strip()
        raise LockedError(path, int(number) if number.isdigit() else None) from None
    except OSError as error:
        raise _typed(error, path, "lock") from error
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    except OSError as error:
        # A full disk must not keep a node from starting: the lock holds without the number.
        if error.errno not in _FULL_CODES:
            raise _typed(error, path, "write to") from error


def _typed(error: OSError, path: str, operation: str, *, needed: int = 0) -> DiskError:
    code = error.errno or 0
    reason = error.strerror or str(error)
    advice = _ADVICE.get(code, DiskError.advice)
    if code in _FULL_CODES:
        return DiskFullError(path, operation, code, reason, advice, needed)
    kind = {errno.ENOENT: MissingFileError, errno.EEXIST: NameTakenError}.get(code, DiskError)
    return kind(path, operation, code, reason, advice)


def _sync_error(error: OSError, path: str) -> SyncError:
    code = error.errno or 0
    advice = "What was written last may be lost: check the disk, then restart the node."
    return SyncError(path, "sync", code, error.strerror or str(error), advice)
