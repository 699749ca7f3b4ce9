"""What can go wrong in the engine, as typed errors with fields.

Core: plain data. Nothing here decides anything, and no text is parsed by anyone: a caller reads the
fields, a person reads `str(error)`. Each text names the path and what to do about it.

    EngineError
        DiskError               the operating system refused an operation on a file
            MissingFileError    the file is not there
            NameTakenError      a file of that name is there already
            DiskFullError       no room, or a quota or a limit is reached
            SyncError           the disk did not confirm what was written
        LockedError             another process owns the data folder
        CorruptionError         bytes on disk are not what was written
        UnknownFormatError      the file was written by another version of this program
        LogFailedError          the commit log takes no more writes in this process
"""

from dataclasses import dataclass


class EngineError(Exception):
    """The root of all errors that the engine raises on purpose."""


@dataclass(eq=False)
class DiskError(EngineError):
    """The operating system refused `operation` on `path`. The caller gives up that operation.

    `code` is the errno, `reason` its text, `advice` one sentence for the operator.
    """

    path: str
    operation: str
    code: int
    reason: str
    advice: str = "Check the disk and the permissions of the data folder."

    def __str__(self) -> str:
        return f"cannot {self.operation} {self.path}: {self.reason}. {self.advice}"


class MissingFileError(DiskError):
    """There is no such file. Not found is an error here: the engine names only files it knows."""


class NameTakenError(DiskError):
    """`create` found a file of that name, and left it alone."""


@dataclass(eq=False)
class DiskFullError(DiskError):
    """No room for `needed` more bytes. The caller refuses writes and goes on serving reads."""

    needed: int = 0

    def __str__(self) -> str:
        return f"{super().__str__()} ({self.needed} more bytes were needed)"


class SyncError(DiskError):
    """The disk did not confirm what was written to `path`.

    The caller must not try again: the kernel may have dropped the data, and would then report
    success. Whatever was not confirmed before counts as lost, and the node leaves service.
    """


@dataclass(eq=False)
class LockedError(EngineError):
    """Another process (`pid`, or None when it left no number) owns the data folder of `path`."""

    path: str
    pid: int | None

    def __str__(self) -> str:
        owner = "another process" if self.pid is None else f"process {self.pid}"
        return (
            f"the data folder is in use: {owner} holds {self.path}. "
            "Stop that process, or give this one a folder of its own."
        )


@dataclass(eq=False)
class CorruptionError(EngineError):
    """Bytes on disk are not what was written. The caller sets the file aside and refills its slots.

    `offset` is where in the file the damaged unit begins. `expected` and `actual` are checksums,
    or other words for what should be there and what is.
    """

    path: str
    offset: int
    expected: int | str
    actual: int | str

    def __str__(self) -> str:
        return (
            f"{self.path} is damaged at offset {self.offset}: expected {_shown(self.expected)}, "
            f"found {_shown(self.actual)}. Check the disk, and refill the node from its replicas "
            "or from a backup."
        )


@dataclass(eq=False)
class UnknownFormatError(EngineError):
    """`path` is intact, but in format `version`, and this program reads only `supported`."""

    path: str
    version: int
    supported: int

    def __str__(self) -> str:
        return (
            f"{self.path} has format version {self.version}, and this program reads version "
            f"{self.supported}. Start the version of the program that wrote it."
        )


@dataclass(eq=False)
class LogFailedError(EngineError):
    """The commit log in `path` failed before, because of `cause`, and takes nothing any more.

    The caller takes the node out of service. A restart reads what the disk really has.
    """

    path: str
    cause: str

    def __str__(self) -> str:
        return (
            f"the commit log {self.path} takes no more writes after a failure: {self.cause} "
            "Repair the disk, then restart the node."
        )


def _shown(value: int | str) -> str:
    return value if isinstance(value, str) else f"{value:#x}"
