"""Snapshots: the whole store as of one moment, taken while it serves, without copying data.

Not a backup: a snapshot is on the same disk as the data, and shares its bytes (`respkv backup` copies
one elsewhere). It knows nothing of sessions and starts no thread.

A snapshot is a folder `snapshots/NAME` in the data folder, and a valid data folder itself:

    tables       hard links to the live tables
    segments     hard links to the sealed segments of the commit log
    last segment a header and no frame, which says that all before it is durable: damage anywhere in
                 the snapshot's log is then corruption, and never taken for a torn end
    snapshot     when it was taken, and how large it is: JSON of `Snapshot`
    manifest     that of the store, with the owner's state as the caller wants it in a copy; written
                 last, so that a folder without one is an unfinished snapshot, which nothing starts on

Tables and sealed segments never change, so that links are copies. What is in the active segment is
sealed first; the memtable need not be flushed, because its segments are there. No mark of a clean
stop is in a snapshot.

Taking one has three parts, because links must be made while no job can remove what they name
(`Store.install` runs in the serving thread), and the serving thread must not wait for a disk:

    make_folder   any thread      makes the folder, clears an unfinished one of that name    blocks
    begin         serving thread  writes and rolls the log, links all files                  30 µs a file
    finish        any thread      makes it durable: segments, names, manifest                blocks

`begin` reads the store, and `finish` only what `begin` gave it and the log, whose `sync` may run in
any thread. If one of them fails, `clear` (any thread) removes what is there.

Shell over the disk seam; the time is an argument. Source of the idea: Cassandra's snapshots and
LevelDB's immutable files.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

import msgspec

from engine import manifest
from engine.disk import Disk
from engine.errors import EngineError, MissingFileError, SyncError
from engine.log import CommitLog
from engine.log_recovery import Recovery
from engine.manifest import Manifest
from engine.store import Store

FOLDER: Final = "snapshots"
NOTE: Final = "snapshot"


@dataclass(eq=False)
class SnapshotExistsError(EngineError):
    """There is a finished snapshot of that name at `path`. The caller chooses another one, or drops that."""

    path: str

    def __str__(self) -> str:
        return f"there is a snapshot at {self.path} already: drop it first, or choose another name"


@dataclass(eq=False)
class NoSuchSnapshotError(EngineError):
    """There is no finished snapshot at `path`."""

    path: str

    def __str__(self) -> str:
        return f"there is no snapshot at {self.path}"


class Snapshot(msgspec.Struct, frozen=True):
    """A finished snapshot. `file_bytes` is the size of its files; the data's own are the same bytes."""

    name: str
    taken_ms: int
    file_count: int
    file_bytes: int


@dataclass(frozen=True, slots=True)
class Begun:
    """What `finish` has to make durable."""

    folder: Disk
    manifest: Manifest
    segments: tuple[str, ...]
    log_end: int


def make_folder(disk: Disk, name: str) -> None:
    """Make an empty folder for a snapshot. Blocks. Raises SnapshotExistsError, DiskError."""
    folder = open_folder(disk, name)
    try:
        if manifest.NAME in folder.names():
            raise SnapshotExistsError(folder.path)
        _empty(folder)
    finally:
        folder.close()


def open_folder(disk: Disk, name: str) -> Disk:
    """Open the folder of a snapshot; the caller closes it. Blocks only if it has to be made."""
    snapshots = disk.folder(FOLDER)
    try:
        return snapshots.folder(name)
    finally:
        snapshots.close()


def begin(store: Store, folder: Disk, state: bytes) -> Begun:
    """Link everything applied so far into an empty folder. In the serving thread.

    `state` is what a store that opens the snapshot is to give its owner; it tells at least what the
    manifest's own state tells. Raises LogFailedError, DiskError; then the store is as before.
    """
    log = store.log
    log.write()
    if log.segment_bytes:
        log.roll()
    segments = tuple(segment.name for segment in log.sealed)
    for name in segments:
        store.disk.link(name, folder)
    for table in store.tables:
        store.disk.link(table.name, folder)
    return Begun(folder, _manifest_of(store, state), segments, log.position)


def finish(log: CommitLog, begun: Begun, name: str, now_ms: int) -> Snapshot:
    """Make the snapshot durable. Blocks. Raises SyncError, LogFailedError, DiskError: it is unfinished then."""
    folder = begun.folder
    for segment in begun.segments:
        try:
            _sync_file(folder, segment)
        except SyncError as error:
            # The log has the same file, and its own sync might report success next time.
            log.failure = log.failure or error
            raise
    # After the files: if one of these syncs, or one of the log's own meanwhile, lost bytes of a
    # segment that both share, the log has failed, and says so.
    log.sync()
    # A log that begins and ends at the end of this one: its only segment vouches for all before.
    end = Recovery(begun.log_end, begun.log_end, 0, 0, (), ())
    closing = CommitLog.open(folder, end)
    closing.close()
    _sync_file(folder, closing.segment.name)
    sizes = [folder.size(each) for each in folder.names()]
    taken = Snapshot(name, now_ms, len(sizes), sum(sizes))
    _write_file(folder, NOTE, msgspec.json.encode(taken))
    folder.sync_names()
    manifest.write(folder, begun.manifest)
    return taken


def take(store: Store, name: str, state: bytes, now_ms: int) -> Snapshot:
    """Take a snapshot at once, for those who may wait. Raises as the three parts do."""
    make_folder(store.disk, name)
    folder = open_folder(store.disk, name)
    try:
        return finish(store.log, begin(store, folder, state), name, now_ms)
    except EngineError:
        clear(folder)
        raise
    finally:
        folder.close()


def clear(folder: Disk) -> None:
    """Give an unfinished snapshot up: its files go, as far as the disk lets them. Blocks."""
    with contextlib.suppress(EngineError):
        _empty(folder)


def snapshots_of(disk: Disk) -> list[Snapshot]:
    """The finished snapshots in a data folder, by name. Blocks. Raises EngineError."""
    if FOLDER not in disk.names():
        return []
    snapshots = disk.folder(FOLDER)
    try:
        found = [_read_note(snapshots, name) for name in snapshots.names()]
    finally:
        snapshots.close()
    return [each for each in found if each is not None]


def drop(disk: Disk, name: str) -> Snapshot:
    """Remove a finished snapshot and say what it was. Blocks. Raises NoSuchSnapshotError, DiskError."""
    path = f"{disk.path}/{FOLDER}/{name}"
    if FOLDER not in disk.names():
        raise NoSuchSnapshotError(path)
    snapshots = disk.folder(FOLDER)
    try:
        dropped = _read_note(snapshots, name) if name in snapshots.names() else None
        if dropped is None:
            raise NoSuchSnapshotError(path)
        folder = snapshots.folder(name)
        try:
            _empty(folder)
        finally:
            folder.close()
        snapshots.remove_folder(name)
        snapshots.sync_names()
        return dropped
    finally:
        snapshots.close()


def _manifest_of(store: Store, state: bytes) -> Manifest:
    """The store's manifest as it is on the disk: drops above `log_start` are in the log."""
    current = store.manifest
    drops = [drop for drop in current.drops if drop.position <= current.log_start]
    return msgspec.structs.replace(current, drops=drops, state=state)


def _read_note(snapshots: Disk, name: str) -> Snapshot | None:
    """What the folder says of itself; None if it is no finished snapshot."""
    try:
        folder = snapshots.folder(name)
    except EngineError:  # A file that somebody put there.
        return None
    try:
        if manifest.NAME not in folder.names():
            return None
        file = folder.open(NOTE)
        try:
            note = msgspec.json.decode(file.read(0, file.size), type=Snapshot)
        finally:
            file.close()
    except (MissingFileError, msgspec.MsgspecError):
        sizes = [folder.size(each) for each in folder.names()]
        return Snapshot(name, 0, len(sizes), sum(sizes))
    finally:
        folder.close()
    return msgspec.structs.replace(note, name=name)


def _empty(folder: Disk) -> None:
    """Remove all files. The manifest goes first, durably, so that half a snapshot is never taken for a whole one."""
    names = folder.names()
    if manifest.NAME in names:
        folder.remove(manifest.NAME)
        folder.sync_names()
        names.remove(manifest.NAME)
    for name in names:
        folder.remove(name)
    folder.sync_names()


def _sync_file(folder: Disk, name: str) -> None:
    file = folder.open(name)
    try:
        file.sync()
    finally:
        file.close()


def _write_file(folder: Disk, name: str, data: bytes) -> None:
    file = folder.create(name)
    try:
        file.append(data)
        file.sync()
    finally:
        file.close()
