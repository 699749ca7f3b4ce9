"""The commit log: what was written since the last flush, in order, and how much of it is durable.

It does not know what a row or its raw bytes mean, and does not decide when to sync, to roll or to
remove. It only writes: its bytes are told in `engine/log_format.py`, how they are read in
`engine/log_segment.py`, and what a crash may leave of them, and what is made of that, in
`engine/log_recovery.py`.

Recovery bears any order in which the operating system writes what is not synced. So `roll` needs no
sync, and neither segment nor name has to be durable before the next one is used: `sync` does all
files in order, then the names, and only then moves `synced`. `close` ends with an empty frame that
vouches for everything before it.

Shell over the disk seam (`engine/disk.py`): it reads no clock and runs no thread of its own.

Sources: Rebello et al., "Can Applications Recover from fsync Failures?" (2020), for why a failed sync
is final.
"""

import contextlib
import threading
from bisect import bisect_right

from xxhash import xxh3_64, xxh3_64_intdigest

from engine.disk import Disk, File
from engine.errors import DiskError, DiskFullError, EngineError, LogFailedError, SyncError
from engine.log_format import (
    ENVELOPE,
    FRAME_BYTES,
    FRAME_MAGIC,
    HEADER_BYTES,
    Segment,
    encode_header,
    pack_covered,
    pack_frame_head,
    segment_name,
)
from engine.log_recovery import Recovery

# What is this long is written by itself: copying it into the frame would cost more than the call.
_LONG_PIECE_BYTES = 1 << 18

# Room for the next bytes is found while they are not there yet: a sync that has to find it for those that came
# keeps the file from taking more, and so the next write waits (on ext4 for tens of milliseconds where tables are
# written as well). For so many times what came since the last sync, and at least a part of the segment.
_AHEAD_TIMES = 2
_AHEAD_PART = 8
_AHEAD_BYTES_MAX = 32 << 20


class CommitLog:
    """The log of this process, open for writing. Made by `CommitLog.open` after `recover`.

    One thread stages, writes, rolls and forgets. `sync` may run in another one meanwhile, and calls
    of it wait for each other. Hot callers extend `pieces` themselves, which is what `stage` does.
    """

    __slots__ = (
        "_disk",
        "_file",
        "_has_new_names",
        "_reserved",
        "_sealed",
        "_segment",
        "_segment_synced",
        "_sync_lock",
        "_unsynced",
        "failure",
        "pieces",
        "position",
        "synced",
    )

    # Of the next frame: an envelope, a row and raw for each entry, or several entries as one piece.
    pieces: list[bytes]
    position: int  # The end of what was written.
    synced: int  # The end of what is durable.
    failure: EngineError | None  # Why the log takes nothing any more.

    def __init__(self, disk: Disk, recovery: Recovery) -> None:
        """Use `CommitLog.open`."""
        self._disk = disk
        self.pieces = []
        self.position = self.synced = recovery.end
        self.failure = None
        self._sealed = list(recovery.segments)
        # Open files that may hold unsynced bytes, oldest first, the current one last. The syncing
        # thread copies and shortens this list while the writing thread appends to it: each of these
        # is one step under the interpreter's lock.
        self._unsynced: list[File] = []
        self._sync_lock = threading.Lock()
        # In which file there is room already, and up to which size.
        self._reserved: tuple[File | None, int] = (None, 0)
        self._has_new_names = False
        self._start_segment()

    @classmethod
    def open(cls, disk: Disk, recovery: Recovery) -> "CommitLog":
        """Go on after `recovery`, in a new segment. Raises `DiskError`."""
        return cls(disk, recovery)

    @property
    def segment(self) -> Segment:
        """The segment that is written now."""
        return self._segment

    @property
    def segment_bytes(self) -> int:
        """The bytes of frames in the current segment: the measure for `roll`."""
        return self.position - self._segment.base

    @property
    def sealed(self) -> tuple[Segment, ...]:
        """The segments that are not written any more and not removed yet, oldest first."""
        return tuple(self._sealed)

    def stage(self, flags: int, slot: int, row: bytes, raw: bytes) -> None:
        """Add one entry to the next frame."""
        self.pieces += (ENVELOPE(flags, slot, len(row), len(raw)), row, raw)

    def write(self) -> int:
        """Write all that is staged as one frame, and return `position`, which is now its end.

        Nothing staged: nothing is written. On `DiskError` (`DiskFullError`) nothing of the frame
        remains in the file, the entries stay staged, and the next `write` tries again: the caller
        has them in memory already, so a log that forgot them would contradict it. On
        `LogFailedError` the log does not go on. More than 4 GiB in one frame raise `struct.error`:
        the caller's limits are far below.
        """
        return self.write_frame() if self.pieces else self.position

    def write_frame(self) -> int:
        """As `write`, in a frame even if nothing is staged. Hot: for callers who look at `pieces` themselves."""
        if self.failure is not None:
            raise LogFailedError(self._disk.path, str(self.failure))
        pieces = self.pieces
        if len(pieces) == 3 and len(pieces[2]) >= _LONG_PIECE_BYTES:
            return self._write_long_frame()  # Nearly always, a long one is alone.
        payload = b"".join(pieces)
        position = self.position
        length = len(payload)
        synced = self.synced
        seed = xxh3_64_intdigest(pack_covered(length, synced), position)
        head = pack_frame_head(FRAME_MAGIC, length, synced, xxh3_64_intdigest(payload, seed))
        try:
            if length < _LONG_PIECE_BYTES:
                self._file.append(head + payload)
            else:
                self._file.append(head)
                self._file.append(payload)
        except DiskError as error:
            self._undo_append(error)
            raise
        pieces.clear()
        self.position = position = position + FRAME_BYTES + length
        return position

    def _write_long_frame(self) -> int:
        """As `write_frame`, for one long entry, which is not copied: the same bytes in two calls."""
        pieces = self.pieces
        envelope, row, raw = pieces
        length = len(envelope) + len(row) + len(raw)
        synced = self.synced
        seed = xxh3_64_intdigest(pack_covered(length, synced), self.position)
        checksum = xxh3_64(seed=seed)
        for piece in pieces:
            checksum.update(piece)
        head = pack_frame_head(FRAME_MAGIC, length, synced, checksum.intdigest())
        try:
            self._file.append(head + envelope + row)
            self._file.append(raw)
        except DiskError as error:
            self._undo_append(error)
            raise
        pieces.clear()
        self.position += FRAME_BYTES + length
        return self.position

    def _undo_append(self, cause: DiskError) -> None:
        """Cut off what a failed append left, or give up: frames must follow each other."""
        try:
            self._file.truncate(HEADER_BYTES + self.segment_bytes)
        except DiskError as error:
            self.failure = error
            raise LogFailedError(self._disk.path, str(error)) from cause

    def roll(self) -> str:
        """Seal the current segment, go on in a new one, and return the name of the sealed one.

        Staged entries are written to the old one first. Neither of the two is durable before the
        next `sync`: that would block the caller, and recovery does not need it. An empty segment is
        not sealed, because the new one would have its name: `ValueError`. On `DiskError` the log
        goes on in the current segment.
        """
        self.write()
        if self.failure is not None:
            raise LogFailedError(self._disk.path, str(self.failure))
        if not self.segment_bytes:
            raise ValueError("the current segment holds nothing to seal")
        sealed = self._segment
        self._start_segment()
        self._sealed.append(sealed)
        return sealed.name

    def _start_segment(self) -> None:
        segment = Segment(segment_name(self.position), self.position)
        file = self._disk.create(segment.name)
        try:
            synced = self.synced
            file.append(encode_header(segment.base, synced))
        except DiskError as cause:
            self._undo_create(file, cause)
            raise
        # In this order: once `sync` sees the file, it also sees that a name is new.
        self._has_new_names = True
        self._unsynced.append(file)
        self._segment = segment
        self._segment_synced = synced  # What its header vouches for.
        self._file = file

    def _undo_create(self, file: File, cause: DiskError) -> None:
        """Take back a segment that got no header.

        Durably: the log goes on in the old segment, and a file that comes back after a power cut
        would stand in the middle of it.
        """
        try:
            file.close()
            self._disk.remove(file.name)
            self._disk.sync_names()
        except DiskError as error:
            self.failure = error
            raise LogFailedError(self._disk.path, str(error)) from cause

    def sync(self) -> int:
        """Make durable all that was written before this call; return `synced`.

        May run in another thread while the log is written. Raises `SyncError` the first time that
        it fails and `LogFailedError` ever after: a failed sync must not be tried again.
        """
        with self._sync_lock:
            if self.failure is not None:
                raise LogFailedError(self._disk.path, str(self.failure))
            target = self.position  # Before the files: they hold at least what this covers.
            if target == self.synced:
                return target
            files = list(self._unsynced)
            self._reserve(files[-1], target - self.synced)
            try:
                for file in files:
                    file.sync()
                if self._has_new_names:
                    self._has_new_names = False  # First: `roll` may set it meanwhile.
                    self._disk.sync_names()
            except SyncError as error:
                self.failure = error
                raise
            self._drop_files(files[:-1])
            self.synced = target
            return target

    def write_back(self) -> None:
        """Have what was written sent to the disk before `sync` asks for all of it. Nothing is durable by that.

        As `sync`, it may run in another thread, raises `SyncError` the first time that it fails and
        `LogFailedError` ever after.
        """
        with self._sync_lock:
            if self.failure is not None:
                raise LogFailedError(self._disk.path, str(self.failure))
            try:
                self._file.write_back()
            except SyncError as error:
                self.failure = error
                raise

    def _reserve(self, file: File, since_bytes: int) -> None:
        """Find room for what comes until the next sync, if it is as much as since the last one."""
        ahead = max(_AHEAD_TIMES * since_bytes, file.size // _AHEAD_PART)
        wanted = file.size + min(ahead, _AHEAD_BYTES_MAX)
        reserved = self._reserved[1] if self._reserved[0] is file else 0
        if reserved < wanted:
            wanted += min(ahead, _AHEAD_BYTES_MAX)
            file.reserve(wanted)
            self._reserved = file, wanted

    def _drop_files(self, files: list[File]) -> None:
        """Close sealed files. The caller holds the lock, so that none of them is being synced."""
        for file in files:
            self._unsynced.remove(file)
            file.close()

    def forget_before(self, position: int) -> list[str]:
        """Give up the sealed segments that lie wholly below `position`, and return their names, oldest first.

        The caller removes the files, in a thread if it likes: that takes a while for large ones. All
        their entries must be durable elsewhere, and so must be the `start` >= `position` of the next
        recovery: then it is harmless that the removal itself is late, or not synced. A file that is
        being synced right now is closed by the next `sync` or call of this.
        """
        ends = [segment.base for segment in self._sealed[1:]] + [self._segment.base]
        count = bisect_right(ends, position) if self._sealed else 0
        names = [segment.name for segment in self._sealed[:count]]
        del self._sealed[:count]
        if self._sync_lock.acquire(blocking=False):
            try:
                kept = {segment.name for segment in self._sealed} | {self._segment.name}
                self._drop_files([file for file in self._unsynced if file.name not in kept])
            finally:
                self._sync_lock.release()
        return names

    def close(self) -> None:
        """Write and sync what is left, vouch for it with an empty frame, and close all files.

        A log that failed is only closed.
        """
        try:
            if self.failure is None:
                self.write()
                self.sync()
                if self.segment_bytes or self._segment_synced < self.position:
                    self._vouch()
        finally:
            with self._sync_lock:
                self._drop_files(list(self._unsynced))
                self.failure = self.failure or _Closed()

    def _vouch(self) -> None:
        """End with an empty frame, which says that all before it is durable. Worth no error."""
        with contextlib.suppress(DiskFullError):
            self.write_frame()
            self.sync()


class _Closed(EngineError):
    """The failure of a log that was closed."""

    def __str__(self) -> str:
        return "the log was closed."
