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
opening, or refused with the version that can convert it. Version 1 is the first.

Core, but for `read` and `write`, which take the disk.
"""

from __future__ import annotations

from typing import Final

import msgspec
from xxhash import xxh3_64_intdigest

from engine.disk import Disk
from engine.errors import CorruptionError, UnknownFormatError

MAGIC: Final = b"RKVMANI1"
FORMAT_VERSION: Final = 1
NAME: Final = "manifest"
_TEMPORARY: Final = "manifest.tmp"


class Drop(msgspec.Struct, array_like=True, frozen=True):
    """The rows of `tag` written before log position `position` are gone."""

    position: int
    tag: int


class Manifest(msgspec.Struct, array_like=True):
    """The live state of a data folder. `tables` are file names, newest first."""

    format_version: int
    log_start: int  # Everything below stands in tables.
    next_table: int
    tables: list[str]
    drops: list[Drop]
    state: bytes  # The owner's: what it must know of everything below `log_start`.


def write(disk: Disk, manifest: Manifest) -> None:
    """Replace the manifest; durable when it returns."""
    body = msgspec.msgpack.encode(manifest)
    if _TEMPORARY in disk.names():
        disk.remove(_TEMPORARY)
    file = disk.create(_TEMPORARY)
    try:
        file.append(
            MAGIC
            + len(body).to_bytes(8, "little")
            + xxh3_64_intdigest(body).to_bytes(8, "little")
            + body
        )
        file.sync()
    finally:
        file.close()
    disk.rename(_TEMPORARY, NAME)
    disk.sync_names()


def read(disk: Disk) -> Manifest | None:
    """The manifest of a data folder, or None for a new one. Raises CorruptionError, UnknownFormatError.

    A new folder gets its manifest before anything else, so that one with data and without a
    manifest has lost it.
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
    if found != FORMAT_VERSION:
        raise UnknownFormatError(path, found, FORMAT_VERSION)
    return msgspec.msgpack.decode(body, type=Manifest)
