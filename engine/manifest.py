"""The manifest: which tables are live, where the log starts, and what was dropped.

One file, `manifest`, replaced atomically: written to `manifest.tmp`, synced, renamed, and the
folder synced. It is small (a line per table and a blob of the owner's), and changes once per flush
or compaction, so a log of edits would save nothing.

    8 bytes   magic "RKVMANI1"
    8 bytes   length of the body, little endian
    8 bytes   xxh3_64 of the body
    n bytes   body: MessagePack of `Manifest`

Upgrade rule: `format_version` names the layout of the whole data folder. A folder with a higher
version than this build knows is refused (`UnknownFormatError`); a lower one is converted at
opening, or refused with the version that can convert it.

- Version 1 had one list of tables, newest first, in the place of the levels. They become level 0,
  and compaction moves them down.
- Version 2 has levels, drops of slots, and markers in the log that name slots (`engine/drop.py`).

Core, but for `read` and `write`, which take the disk.
"""

from __future__ import annotations

from typing import Final

import msgspec
from xxhash import xxh3_64_intdigest

from engine.codec import SLOT_MAX
from engine.damage import Damage
from engine.disk import Disk, replace_file
from engine.errors import CorruptionError, UnknownFormatError

MAGIC: Final = b"RKVMANI1"
FORMAT_VERSION: Final = 2
NAME: Final = "manifest"
ALL_TAGS: Final = -1
"""The tag of a drop that takes every keyspace."""

_TEMPORARY: Final = "manifest.tmp"


class Drop(msgspec.Struct, array_like=True, frozen=True):
    """The rows of `tag` in these slots, written before log position `position`, are gone."""

    position: int
    tag: int  # Or ALL_TAGS.
    slot_min: int = 0
    slot_max: int = SLOT_MAX


class Manifest(msgspec.Struct, array_like=True):
    """The live state of a data folder.

    `levels` are file names: of level 0 newest first, of each deeper level in the order of their
    keys, which do not overlap. What stands in a level is newer than what any deeper one has of the
    same key. What stands here rests on the log up to `vouched`, which had been durable: a log that ends
    before that has lost something.
    """

    format_version: int
    log_start: int  # Everything below stands in tables.
    next_table: int
    levels: list[list[str]]
    drops: list[Drop]
    state: bytes  # The owner's: what it must know of everything below `log_start`.
    # Manifests of this version may end before one of these.
    damages: list[Damage] = []  # What was lost on this disk.
    vouched: int = 0  # A position of the log.

    @property
    def tables(self) -> list[str]:
        """All live tables."""
        return [name for level in self.levels for name in level]


class _ManifestOf1(msgspec.Struct, array_like=True):
    """The manifest as format 1 had it: `tables` are newest first."""

    format_version: int
    log_start: int
    next_table: int
    tables: list[str]
    drops: list[Drop]
    state: bytes


def write(disk: Disk, manifest: Manifest) -> None:
    """Replace the manifest; durable when it returns."""
    body = msgspec.msgpack.encode(manifest)
    head = MAGIC + len(body).to_bytes(8, "little") + xxh3_64_intdigest(body).to_bytes(8, "little")
    replace_file(disk, NAME, _TEMPORARY, head + body)


def read(disk: Disk) -> Manifest | None:
    """The manifest of a data folder, or None for a new one. Raises CorruptionError, UnknownFormatError.

    One of an older format comes back as one of this format; the disk is left as it is. A new folder
    gets its manifest before anything else, so that one with data and without a manifest has lost it.
    """
    names = disk.names()
    path = f"{disk.path}/{NAME}"
    if NAME not in names:
        if any(name.endswith((".log", ".sst")) for name in names):
            raise CorruptionError(path, 0, "a manifest, because there is data", "no such file")
        return None
    file = disk.open(NAME)
    try:
        data = file.read(0, file.size)
    finally:
        file.close()
    body = data[24:]
    expected = int.from_bytes(data[16:24], "little")
    actual = xxh3_64_intdigest(body)
    is_whole = len(data) >= 24 and len(body) == int.from_bytes(data[8:16], "little")
    if data[:8] != MAGIC or not is_whole or expected != actual:
        raise CorruptionError(path, 0, expected, actual)
    # The version stands first, so that it can be read of a layout that is not known.
    version = msgspec.msgpack.decode(body, type=list[msgspec.Raw])[0]
    found = msgspec.msgpack.decode(version, type=int)
    if found == 1:
        return _converted(msgspec.msgpack.decode(body, type=_ManifestOf1))
    if found != FORMAT_VERSION:
        raise UnknownFormatError(path, found, FORMAT_VERSION)
    return msgspec.msgpack.decode(body, type=Manifest)


def _converted(old: _ManifestOf1) -> Manifest:
    return Manifest(
        FORMAT_VERSION, old.log_start, old.next_table, [old.tables], old.drops, old.state
    )
