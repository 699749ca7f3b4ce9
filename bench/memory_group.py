"""A memory cgroup around a server, where the machine allows it (shell).

In it the kernel's page cache counts as the server's memory, so data that is larger than the group
is read from the disk, as on a small machine. Both versions of cgroups are known; a group is made
directly below the root, takes the command and all its children, and is removed afterwards.

Sources: the kernel's `cgroup-v2.rst` and `cgroup-v1/memory.rst`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
REMOVE_ATTEMPTS_MAX = 50
REMOVE_PAUSE_S = 0.1


class GroupRefused(Exception):
    """There can be no memory cgroup here; the text says why."""


@contextlib.contextmanager
def memory_group(limit_bytes: int, root: Path = ROOT) -> Iterator[list[str]]:
    """Make a group of this size; yield the words that put a command into it. Raises GroupRefused."""
    folder, limit = _place(root)
    try:
        folder.mkdir()
        (folder / limit).write_text(str(limit_bytes))
    except OSError as error:
        _remove(folder)
        raise GroupRefused(f"{folder}: {error.strerror}") from error
    try:
        yield ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(folder / "cgroup.procs")]
    finally:
        _remove(folder)


def _place(root: Path) -> tuple[Path, str]:
    """Where a group may be made, and the file of its limit."""
    name = f"respkv-bench-{os.getpid()}"
    with contextlib.suppress(OSError):
        if "memory" in (root / "cgroup.subtree_control").read_text().split():
            return root / name, "memory.max"
    if (root / "memory" / "memory.limit_in_bytes").exists():
        return root / "memory" / name, "memory.limit_in_bytes"
    raise GroupRefused(f"no memory controller below {root}")


def _remove(folder: Path) -> None:
    """The kernel refuses while a process that has ended is not quite gone."""
    for _ in range(REMOVE_ATTEMPTS_MAX):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(REMOVE_PAUSE_S)
        else:
            return
