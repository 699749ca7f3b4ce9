"""What a start makes of a data folder's tables: those that the manifest names are opened, leftovers are removed.

A table that is damaged does not stop a start: it is set aside, and its keys become a damage of the
manifest (`engine/damage.py`). The log is for `engine/log_recovery.py`.

Shell over the disk seam, synchronous.
"""

from __future__ import annotations

from engine import manifest
from engine.damage import KEY_END, Damage
from engine.disk import Disk
from engine.errors import CorruptionError
from engine.job import SUFFIX
from engine.leavings import set_aside
from engine.levels import Levels
from engine.manifest import Manifest
from engine.sstable import TEMPORARY_SUFFIX, Table


def open_levels(disk: Disk, current: Manifest) -> Levels:
    """Open all tables. One that is damaged is set aside, and its keys become a damage of the manifest.

    Raises UnknownFormatError, and DiskError: a file that is not there may come back with its disk.
    """
    levels: list[list[Table]] = []
    damaged: list[tuple[int, int, CorruptionError]] = []
    for number, names in enumerate(current.levels):
        opened: list[Table] = []
        for name in names:
            try:
                opened.append(Table.open(disk, name))
            except CorruptionError as error:
                damaged.append((number, len(opened), error))
        levels.append(opened)
    names_damaged = []
    for number, place, found in damaged:
        # A deeper level is a run: what was lost lies between its neighbours.
        run = levels[number] if number else []
        key_min = run[place - 1].meta.key_max if 0 < place <= len(run) else b""
        key_max = run[place].meta.key_min if place < len(run) else KEY_END
        reason = f"expected {found.expected}, found {found.actual}"
        name = found.path.rpartition("/")[2]
        names_damaged.append(name)
        current.damages.append(
            Damage(key_min, key_max, current.log_start, name, found.offset, reason)
        )
    if names_damaged:
        current.levels = [[table.name for table in level] for level in levels]
        manifest.write(disk, current)
        for name in names_damaged:
            set_aside(disk, name)
    return Levels(levels)


def remove_leftovers(disk: Disk, current: Manifest) -> None:
    """Remove tables of jobs that never finished, and files that a finished one had replaced."""
    live = set(current.tables)
    for name in disk.names():
        if name.endswith(TEMPORARY_SUFFIX) or (name.endswith(SUFFIX) and name not in live):
            disk.remove(name)
