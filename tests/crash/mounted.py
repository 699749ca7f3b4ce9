"""File systems of a test's own: an ext4 image on a loop device, and a small tmpfs. They need root.

    with image(folder, 256 << 20) as mounted:
        ...                       # mounted.path is its root
        mounted.cut_power()       # the ioctl that stops ext4 without writing its journal out
        mounted.remount()         # as after the machine is back: the journal is replayed

What is mounted is unmounted at the end, whatever happened, and the loop device with it. `missing()`
says in one line why a machine cannot do this.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN
_WITHOUT_JOURNAL = 2  # FS_SHUTDOWN_FLAGS_NOLOGFLUSH
_UNMOUNT_TIMEOUT_S = 10.0


class MountFailed(Exception):
    """A tool for file systems failed; the text is what it said."""


@dataclass(frozen=True)
class Image:
    """An ext4 file system in a file."""

    path: Path
    file: Path

    def cut_power(self) -> None:
        """Stop the file system at once: what is not on the disk, in place or in the journal, is lost."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _WITHOUT_JOURNAL))
        finally:
            os.close(descriptor)

    def remount(self) -> None:
        """Unmount and mount again."""
        _unmount(self.path)
        _run("mount", "-o", "loop", str(self.file), str(self.path))


@contextlib.contextmanager
def image(folder: Path, size_bytes: int) -> Iterator[Image]:
    """Make and mount an ext4 image. `folder` is on another file system, which holds the image's file."""
    made = Image(folder / "mounted", folder / "image")
    made.path.mkdir()
    with made.file.open("wb") as file:
        file.truncate(size_bytes)
    _run("mkfs.ext4", "-q", "-F", str(made.file))
    _run("mount", "-o", "loop", str(made.file), str(made.path))
    try:
        yield made
    finally:
        _unmount(made.path)


@contextlib.contextmanager
def tmpfs(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a small file system in memory on a new folder in `folder`."""
    path = folder / "tmpfs"
    path.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "respkv-test", str(path))
    try:
        yield path
    finally:
        _unmount(path)


@cache
def missing() -> str | None:
    """Why there are no such file systems here, or None if there are."""
    if os.geteuid() != 0:
        return "needs root, to mount file systems"
    for tool in ("mkfs.ext4", "mount", "umount"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    with tempfile.TemporaryDirectory(prefix="respkv-mount-") as name:
        try:
            with image(Path(name), 8 << 20) as made:
                made.cut_power()
        except (MountFailed, OSError) as error:
            return f"cannot mount and stop an ext4 image: {error}"
    return None


def _unmount(path: Path) -> None:
    """Unmount, waiting for processes that were killed and have not let go yet."""
    deadline = time.monotonic() + _UNMOUNT_TIMEOUT_S
    while os.path.ismount(path):
        try:
            _run("umount", str(path))
        except MountFailed:
            if time.monotonic() > deadline:
                _run("umount", "--lazy", str(path))
                raise
            time.sleep(0.05)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise MountFailed(f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")
