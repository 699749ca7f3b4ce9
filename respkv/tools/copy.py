"""`backup` and `restore`: verified copies of a snapshot or of a stopped data folder.

Both copy the files that the manifest needs (not the lock, not leftovers; a backup keeps the note that a
snapshot has), check every checksum of the
copy as the disk has it, and write the manifest last: a folder without one is unfinished. So either
can be interrupted at any time, and run again: what is there with the same bytes is kept. A backup may
be brought up to date in the same way, as long as it is of the same node.

The copy's manifest says that it is one (`cluster.replica_state.state_of_copy`): the node that starts on it
mints a new actor, so that no dot ever names two writes, and knows the dots of the old one as its past.

Shell over the disk seam, synchronous.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec
from xxhash import xxh3_128

from cluster.replica_state import ReplicaState, state_of_copy
from engine import manifest
from engine.disk import Disk, File
from engine.errors import EngineError
from engine.manifest import Manifest
from engine.snapshot import NOTE
from engine.verify import LOCK_NAME, Damage, files_of, is_snapshot, verify

CHUNK_BYTES: Final = 1 << 20
TEMPORARY_SUFFIX: Final = ".tmp"
_OURS: Final = (".sst", ".log", TEMPORARY_SUFFIX)

Step = Callable[[int], None]
"""Told how many bytes more were read or checked."""


class CopyError(EngineError):
    """Nothing was copied, or not all, and the text says what to do."""


@dataclass(eq=False)
class DamagedError(CopyError):
    """The copy is not sound, and so was given no manifest. Mostly because its source is not."""

    path: str
    damages: list[Damage] = field(default_factory=list)

    def __str__(self) -> str:
        lines = "".join(f"\n  {damage}" for damage in self.damages)
        return (
            f"{self.path} is damaged and cannot be used. Run `respkv verify` on the source; if it is "
            f"sound, run this command again: damaged files are copied anew.{lines}"
        )


@dataclass(frozen=True, slots=True)
class Copied:
    """What was done. `kept_count` of the files were there already."""

    file_count: int
    kept_count: int
    file_bytes: int
    entry_count: int


def size_of(source: Disk) -> int:
    """How many bytes a copy of the folder has. Raises CopyError, EngineError."""
    current = _manifest_of(source)
    return sum(source.size(name) for name in files_of(source, current))


def backup(source: Disk, target: Disk, step: Step) -> Copied:
    """Copy a snapshot, a stopped data folder or a backup. `step` hears of twice `size_of` bytes.

    Raises CopyError and EngineError; then the backup is unfinished, or what it was before.
    """
    current = _manifest_of(source)
    names = files_of(source, current)
    if is_snapshot(source):
        names.append(NOTE)
    _refuse_other(source, target, current)
    kept_count = sum(_copy(source, target, name, step) for name in names)
    copied = _finish(target, current, names, kept_count, step)
    _remove_strays(target, names)
    return copied


def restore(source: Disk, target: Disk, step: Step) -> Copied:
    """Make a data folder of a backup or snapshot, in a folder that is empty. As `backup` otherwise.

    An earlier restore of the same files that was interrupted is gone on with.
    """
    current = _manifest_of(source)
    names = files_of(source, current)
    _refuse_used(target, names)
    kept_count = sum(_copy(source, target, name, step) for name in names)
    return _finish(target, current, names, kept_count, step)


def _manifest_of(source: Disk) -> Manifest:
    current = manifest.read(source) if manifest.NAME in source.names() else None
    if current is None:
        raise CopyError(
            f"{source.path} is no data folder, snapshot or backup, or an unfinished one: it has no manifest"
        )
    return current


def _refuse_other(source: Disk, target: Disk, current: Manifest) -> None:
    if LOCK_NAME in target.names():
        raise CopyError(f"{target.path} is the data folder of a node: give the backup another one")
    there = manifest.read(target) if manifest.NAME in target.names() else None
    if there is not None and _actor_of(there) != _actor_of(current):
        raise CopyError(
            f"{target.path} holds a backup of another node than {source.path}: "
            "give this backup a folder of its own"
        )
    ours = (manifest.NAME, NOTE)
    other = [name for name in target.names() if name not in ours and not name.endswith(_OURS)]
    if other:
        raise CopyError(
            f"{target.path} holds something else ({other[0]}): give the backup a folder of its own"
        )


def _refuse_used(target: Disk, names: list[str]) -> None:
    expected = {*names, *(name + TEMPORARY_SUFFIX for name in names)}
    expected.add(manifest.NAME + TEMPORARY_SUFFIX)
    other = [name for name in target.names() if name not in expected]
    if other:
        raise CopyError(
            f"{target.path} is not empty ({other[0]}): restore into a new folder, "
            "and start the node on that one"
        )


def _actor_of(current: Manifest) -> int:
    return msgspec.msgpack.decode(current.state, type=ReplicaState).actor


def _copy(source: Disk, target: Disk, name: str, step: Step) -> bool:
    """Copy a file durably; True if it was there already, with the same bytes."""
    there = name in target.names()
    if there and target.size(name) == source.size(name) and _is_same(source, target, name):
        step(source.size(name))
        return True
    temporary = name + TEMPORARY_SUFFIX
    if temporary in target.names():
        target.remove(temporary)
    reader = source.open(name)
    try:
        writer = target.create(temporary)
        try:
            for chunk in _chunks(reader):
                writer.append(chunk)
                step(len(chunk))
            writer.sync()
        finally:
            writer.close()
    finally:
        reader.close()
    target.rename(temporary, name)
    return False


def _is_same(source: Disk, target: Disk, name: str) -> bool:
    return _digest(source, name) == _digest(target, name)


def _digest(disk: Disk, name: str) -> bytes:
    file = disk.open(name)
    try:
        digest = xxh3_128()
        for chunk in _chunks(file):
            digest.update(chunk)
        return bytes(digest.digest())
    finally:
        file.close()


def _chunks(file: File) -> Iterator[bytes]:
    offset = 0
    while chunk := file.read(offset, CHUNK_BYTES):
        yield chunk
        offset += len(chunk)


def _finish(
    target: Disk, current: Manifest, names: list[str], kept_count: int, step: Step
) -> Copied:
    """Check the copy, and only then give it its manifest."""
    target.sync_names()
    report = verify(target, current=current, is_cold=True, told=lambda name, count: step(count))
    if not report.is_sound:
        raise DamagedError(target.path, report.damages)
    copy = msgspec.structs.replace(current, state=state_of_copy(current.state))
    manifest.write(target, copy)
    sizes = [target.size(name) for name in names]
    return Copied(len(names), kept_count, sum(sizes), report.entry_count)


def _remove_strays(target: Disk, names: list[str]) -> None:
    """Files of the backup that this one was before."""
    for name in target.names():
        if name not in names and (name.endswith(_OURS) or name == NOTE):
            target.remove(name)
    target.sync_names()
