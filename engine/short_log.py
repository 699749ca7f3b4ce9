"""A short log: what a frozen memtable holds, as a segment of the log, for its flush.

Where rows are written again and again the log has each of them many times, and a flush that reads it pays for every
time. So it may read this instead: the same entries, joined, once each. Nothing hangs on the file. It is not synced,
its name makes the next start remove it, and a flush that cannot use it reads the log.

It is written a frame at a time, since the memtable belongs to the thread that serves. A drop takes rows of the
memtable at once, which the log still has until the marker is durable: one that is not complete then is given up.

Shell over the disk seam, synchronous.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from engine.disk import Disk
from engine.errors import DiskError
from engine.log_format import (
    COMPLETE,
    ENVELOPE,
    ENVELOPE_BYTES,
    FRAME_BYTES,
    FRAME_MAGIC,
    checksum_of,
    encode_header,
    pack_frame_head,
    short_name,
)
from engine.memtable import Memtable

FRAME_BYTES_MIN: Final = 1 << 17
"""So long are its frames, or a little longer: about half a millisecond's work."""

WORTH_FROM: Final = 2
"""It is written if the log is so many times larger than the memory that its entries take."""


class ShortLog:
    """One that is being written, or is complete."""

    __slots__ = ("_disk", "_file", "_pieces", "_position", "is_complete", "name")

    def __init__(self, disk: Disk, memtable: Memtable) -> None:
        """Begin it. Raises DiskError."""
        base = memtable.base_position
        self.name = short_name(base)
        self.is_complete = False
        self._disk = disk
        self._position = base
        self._pieces = _pieces_of(memtable)
        self._file = disk.create(self.name)
        try:
            self._file.append(encode_header(base, base))
        except DiskError:
            self.discard()
            raise

    def write_frame(self) -> None:
        """Write the next frame, or find that there is none. Raises DiskError, and then it is gone."""
        payload = next(self._pieces, None)
        if payload is None:
            self.close()
            self.is_complete = True
            return
        length = len(payload)
        checksum = checksum_of(length, 0, payload, self._position)
        try:
            self._file.append(pack_frame_head(FRAME_MAGIC, length, 0, checksum) + payload)
        except DiskError:
            self.discard()
            raise
        self._position += FRAME_BYTES + length

    def close(self) -> None:
        """Close the file, which nobody writes any more."""
        self._file.close()

    def discard(self) -> None:
        """Remove it, as far as the disk lets it be removed: the next start removes what is left."""
        self.close()
        with contextlib.suppress(DiskError):
            self._disk.remove(self.name)


def _pieces_of(memtable: Memtable) -> Iterator[bytes]:
    """The memtable's entries, as the payloads of frames."""
    pieces: list[bytes] = []
    size = 0
    for slot, rows in enumerate(memtable.slots):
        for row, raw in rows.items():
            pieces += (ENVELOPE(COMPLETE, slot, len(row), len(raw)), row, raw)
            size += ENVELOPE_BYTES + len(row) + len(raw)
            if size >= FRAME_BYTES_MIN:
                yield b"".join(pieces)
                pieces.clear()
                size = 0
    for (slot, row), raw in memtable.deltas.items():
        pieces += (ENVELOPE(0, slot, len(row), len(raw)), row, raw)
    if pieces:
        yield b"".join(pieces)
