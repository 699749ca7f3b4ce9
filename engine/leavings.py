"""Files that are not needed any more, on their way off the disk.

Not which these are: who says so has made durable that nothing names them (or waits with them until it
has). Not what reads them: tables come here when no scan does any more.

    replaced table    closed, then removed; or set aside for people, if it was damaged
    other file        removed: a segment of the log, or what a lost job left
    doubtful file     of a lost job, whose manifest may have reached the disk all the same; or one
                      that could not be removed: it waits for the next durable manifest

Removing takes milliseconds a file: the kernel frees all that it has on the disk and in its cache. So
an owner may do it in a thread, with `clear_away`, where it takes its time; else it is done at once. If it
is late, or does not happen before a crash, the next start does it (`engine/opening.py`).

Shell over the disk seam, synchronous.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

from engine.damage import SET_ASIDE_SUFFIX
from engine.disk import Disk
from engine.errors import DiskError, MissingFileError
from engine.job import SUFFIX, Job
from engine.sstable import TEMPORARY_SUFFIX, Table


class Leavings:
    """See the module's docstring. One thread adds; `clear_away` may run in another one meanwhile."""

    def __init__(self, disk: Disk) -> None:
        self.is_cleared_by_owner = False  # Who calls `clear_away`; else it is done at once.
        self._disk = disk
        self._waiting: list[Table | str] = []  # Files that are not tables by their names.
        self._doubtful: list[str] = []  # That may go once the next manifest is durable.
        self._damaged: set[str] = set()  # Tables to be kept for people.

    def add(self, files: Sequence[Table | str]) -> None:
        """These may go: no durable manifest names them, and nobody reads them."""
        self._waiting.extend(files)  # In place: another thread may take from it.
        if not self.is_cleared_by_owner:
            self.clear_away()

    def add_output(self, job: Job) -> None:
        """A job was given up: what it has left may go, now or with the next manifest."""
        with contextlib.suppress(DiskError):  # What is not found now is removed at the next start.
            for name in self._disk.names():
                if not name.startswith(job.output.removesuffix(SUFFIX)):
                    continue
                if name.endswith(TEMPORARY_SUFFIX):
                    self._remove(name)
                else:
                    # The manifest may have reached the disk and only its confirmation failed: then
                    # this table is in use.
                    self._doubtful.append(name)

    def release_doubtful(self) -> None:
        """A manifest has become durable: what waited for that may go."""
        doubtful, self._doubtful = self._doubtful, []
        self.add(doubtful)

    def keep_damaged(self, names: Iterable[str]) -> None:
        """These tables are damaged: when they are replaced, they are set aside."""
        self._damaged.update(names)

    @property
    def has_files(self) -> bool:
        """Whether `clear_away` has something to do."""
        return bool(self._waiting)

    def clear_away(self) -> None:
        """Close and remove the files. Blocks: for a thread."""
        while self._waiting:  # The serving thread may add to it.
            left = self._waiting.pop(0)
            if isinstance(left, str):
                self._remove(left)
                continue
            left.close()
            if left.name in self._damaged:
                self._damaged.discard(left.name)
                set_aside(self._disk, left.name)
            else:
                self._remove(left.name)

    def _remove(self, name: str) -> None:
        """Remove a file that no durable manifest names, now or after the next one."""
        disk = self._disk
        remove = disk.remove_in_pieces if self.is_cleared_by_owner else disk.remove
        try:
            remove(name)
        except MissingFileError:
            pass
        except DiskError:
            self._doubtful.append(name)

    def close(self) -> None:
        """Close the tables that are still here."""
        for left in list(self._waiting):
            if isinstance(left, Table):
                left.close()


def set_aside(disk: Disk, name: str) -> None:
    """Keep a damaged file under a name that nothing reads."""
    with contextlib.suppress(DiskError):  # It stays where it is, or has gone: no data hangs on it.
        disk.rename(name, name + SET_ASIDE_SUFFIX)
