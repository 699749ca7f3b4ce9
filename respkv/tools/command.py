"""The command lines of the tools: what they are told, what they print, and their exit status.

Shell, and the place where folders are opened, the terminal is written to and the clock is read. What
the tools do is in the modules beside this one, which are imported only when they are used.

Results go to standard output, progress and errors to standard error. What a user got wrong is one line.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Final

from respkv.tools import live

if TYPE_CHECKING:
    from engine.disk import Disk, RealDisk
    from respkv.tools.importer import Importer, ImportState
    from respkv.tools.progress import Progress

STATUS_FAILED: Final = 1
STATUS_MISUSED: Final = 2
STATUS_INCOMPLETE: Final = 3
STATUS_INTERRUPTED: Final = 130

Add = Callable[[str, str, str, str], argparse.ArgumentParser]
"""Adds a subcommand: name, summary, description, and what follows the options."""

_BACKUP: Final = """\
Copy a snapshot, a stopped node's data folder or another backup to TARGET,
check every checksum of the copy as it is on the disk, and finish it.
"""
_BACKUP_MORE: Final = """\
  SOURCE is best a snapshot: "KV.SNAPSHOT CREATE name" takes one while the node
  serves, and answers its path. TARGET is made if it is missing.

  An interrupted backup is gone on with by the same command: files that are
  there with the same bytes are kept. In the same way a backup of a node is
  brought up to date: only what is new is copied.

exit status:
  0 the backup is whole, 1 it is not (and cannot be used), 2 wrong option.

examples:
  redis-cli KV.SNAPSHOT CREATE monday
  respkv backup /var/lib/respkv/snapshots/monday /mnt/backup/monday
  redis-cli KV.SNAPSHOT DROP monday
"""

_RESTORE: Final = """\
Make a data folder of a backup or a snapshot, for a node to start on.
"""
_RESTORE_MORE: Final = """\
  DATA_DIR must be empty or missing. Every checksum is checked before the
  folder is finished. The node that starts on it writes under a new identity
  (actor), so that its writes are never taken for those of the node that the
  backup was made of.

exit status:
  0 the folder can be used, 1 it cannot, 2 wrong option.

examples:
  respkv restore /mnt/backup/monday /var/lib/respkv2
  respkv serve --data-dir /var/lib/respkv2
"""

_VERIFY: Final = """\
Read a whole data folder, snapshot or backup, and check every checksum of
every table, log segment and the manifest, that all files are there, and that
tables do not contradict each other. Nothing is changed.
"""
_VERIFY_MORE: Final = """\
  A folder that a running node uses is refused: take a snapshot of it, and
  verify that. A torn end of the log, as kill -9 or a power cut leave it, is
  reported and is no damage: the next start cuts it off.

exit status:
  0 all is sound, 1 something is damaged (each damage is a line with file and
  offset), 2 wrong option.

examples:
  respkv verify /mnt/backup/monday
  respkv verify --cold /var/lib/respkv
"""

_DUMP: Final = """\
Show what stands in a table (.sst), a log segment (.log) or a manifest, a line
for each entry; of a folder all of these.
"""
_DUMP_MORE: Final = """\
  Columns: slot, hash of the key, database, key, kind, dot (actor:counter), time
  of writing, expiry, flags, payload. Keys and payloads are escaped and cut;
  --json shows them whole. Damaged parts are lines that begin with "!".

exit status:
  0 all was read, 1 something was damaged, 2 wrong option.

examples:
  respkv dump --limit 20 /var/lib/respkv
  respkv dump --key user:1 --json /var/lib/respkv/snapshots/monday
"""

_IMPORT: Final = """\
Copy all keys of a database of a running Redis into a running respkv, while
both serve.
"""
_IMPORT_MORE: Final = """\
  Strings are copied, with their expiry. Keys of other types are not supported
  yet: they are counted and reported.

  An interrupted import is gone on with by the same command; where it stands is
  in the progress file. Repeating it does no harm: keys are overwritten with
  what the source holds. Keys that are written to the source during the import
  may be copied as they were before. In the end each string key of the source
  is looked for in the target.

  SOURCE and --to are redis://[[USER]:PASSWORD@]HOST[:PORT][/DB].

exit status:
  0 every key is in the target, 1 failed or interrupted by an error, 2 wrong
  option, 3 finished, but keys of types that are not supported were left out.

examples:
  respkv import redis://10.0.0.5:6379/0 --to redis://127.0.0.1:6380/0
"""


def add_to(add: Add) -> None:
    """Declare the subcommands; each sets `tool`, which takes the arguments and returns an exit status."""
    backup = add("backup", "copy a snapshot or stopped data folder", _BACKUP, _BACKUP_MORE)
    backup.add_argument("source", metavar="SOURCE", help="snapshot, stopped data folder or backup")
    backup.add_argument("target", metavar="TARGET", help="folder of the backup")
    backup.set_defaults(tool=_backup)

    restore = add("restore", "make a data folder of a backup", _RESTORE, _RESTORE_MORE)
    restore.add_argument("source", metavar="BACKUP", help="backup or snapshot")
    restore.add_argument("target", metavar="DATA_DIR", help="new data folder")
    restore.set_defaults(tool=_restore)

    verify = add("verify", "check all checksums of a folder", _VERIFY, _VERIFY_MORE)
    verify.add_argument("folder", metavar="FOLDER", help="data folder, snapshot or backup")
    verify.add_argument(
        "--cold",
        action="store_true",
        help="read tables from the disk itself and not from the kernel's cache",
    )
    verify.set_defaults(tool=_verify)

    dump = add("dump", "show what stands in data files", _DUMP, _DUMP_MORE)
    dump.add_argument("path", metavar="FILE|FOLDER", help="table, log segment, manifest or folder")
    dump.add_argument("--json", action="store_true", help="an object a line, nothing cut")
    dump.add_argument("--limit", metavar="N", type=_positive, help="show at most N entries")
    dump.add_argument("--key", metavar="KEY", help="show the entries of this key only")
    dump.set_defaults(tool=_dump)

    load = add("import", "copy keys from a running Redis", _IMPORT, _IMPORT_MORE)
    load.add_argument("source", metavar="SOURCE", help="URL of the Redis to read")
    load.add_argument("--to", metavar="URL", required=True, help="URL of the respkv to write")
    load.add_argument(
        "--batch", metavar="N", type=_positive, default=1000, help="keys per SCAN (default 1000)"
    )
    load.add_argument(
        "--progress",
        metavar="FILE",
        help="progress file (default: respkv-import-HOST-PORT-DB.json, in this directory)",
    )
    load.set_defaults(tool=_import)
    live.add_to(add)


def run(arguments: argparse.Namespace) -> int:
    """Carry out a tool; what it fails with is a line on standard error."""
    from engine.errors import EngineError
    from respkv.tools.client import ClientError

    name = arguments.command
    try:
        status: int = arguments.tool(arguments)
        sys.stdout.flush()
        return status
    except (_Misused, live.Misused) as error:
        return _say(f"respkv {name}: {error}", STATUS_MISUSED)
    except (EngineError, ClientError) as error:
        return _say(f"respkv {name}: {error}", STATUS_FAILED)
    except BrokenPipeError:  # Who reads has had enough, such as `head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _say(
            f"respkv {name}: interrupted; the same command goes on where it can",
            STATUS_INTERRUPTED,
        )


class _Misused(Exception):
    """What the user got wrong, in one line."""


def _say(line: str, status: int) -> int:
    print(line, file=sys.stderr)
    return status


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


# Folders


@contextmanager
def _existing(path: str) -> Iterator[RealDisk]:
    """An existing folder, which no node uses until the block ends.

    A folder without a lock file was never used by a node: a snapshot or a backup. It is not locked
    either, so that nothing is written to it.
    """
    from engine.disk import RealDisk
    from engine.errors import LockedError
    from engine.verify import LOCK_NAME

    if not os.path.isdir(path):
        raise _Misused(f"{path}: no such folder")
    with closing(RealDisk(os.path.abspath(path))) as disk:
        if LOCK_NAME in disk.names():
            try:
                disk.lock(LOCK_NAME)
            except LockedError as error:
                raise _Misused(
                    f"{path} is in use by a node (process {error.pid}): take a snapshot with "
                    "KV.SNAPSHOT CREATE, and give this command the snapshot's path"
                ) from None
        yield disk


@contextmanager
def _made(path: str) -> Iterator[RealDisk]:
    """A folder, made if it is missing."""
    from engine.disk import RealDisk

    with closing(RealDisk(os.path.abspath(path))) as disk:
        yield disk


@contextmanager
def _progress(title: str, total: int, shown: Callable[[float], str]) -> Iterator[Progress]:
    from respkv.tools.progress import Progress

    progress = Progress(
        title,
        total,
        shown=shown,
        write=lambda text: print(text, end="", file=sys.stderr, flush=True),
        clock_s=time.monotonic,
        is_terminal=sys.stderr.isatty(),
    )
    try:
        yield progress
    finally:
        progress.end()


# The tools


def _backup(arguments: argparse.Namespace) -> int:
    from respkv.tools.copy import backup, size_of
    from respkv.tools.progress import bytes_text

    with (
        _existing(arguments.source) as source,
        _made(arguments.target) as target,
        _progress("backup", 2 * size_of(source), bytes_text) as progress,
    ):
        copied = backup(source, target, progress.add)
    print(
        f"{arguments.target}: backup finished and verified: {copied.file_count} files, "
        f"{bytes_text(copied.file_bytes)}, {copied.kept_count} of them were there already"
    )
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    from respkv.tools.copy import restore, size_of
    from respkv.tools.progress import bytes_text

    with (
        _existing(arguments.source) as source,
        _made(arguments.target) as target,
        _progress("restore", 2 * size_of(source), bytes_text) as progress,
    ):
        copied = restore(source, target, progress.add)
    print(
        f"{arguments.target}: restored and verified: {copied.file_count} files, "
        f"{bytes_text(copied.file_bytes)}; start with: respkv serve --data-dir {arguments.target}"
    )
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from engine.verify import verify
    from respkv.tools.progress import bytes_text

    with _existing(arguments.folder) as disk:
        total = sum(disk.size(name) for name in disk.names() if name.endswith((".sst", ".log")))
        with _progress("verify", total, bytes_text) as progress:
            report = verify(
                disk, is_cold=arguments.cold, told=lambda name, count: progress.add(count)
            )
    for damage in report.damages:
        print(f"damaged: {damage}")
    for torn in report.torn:
        print(
            f"note: the log has a torn end in {torn.name} at offset {torn.offset} "
            f"({torn.bytes_count} bytes): the next start cuts it off"
        )
    for name in report.strays:
        print(f"note: nothing names {name}")
    verdict = "sound" if report.is_sound else f"{len(report.damages)} damages"
    print(
        f"{arguments.folder}: {verdict}; {report.table_count} tables, {report.segment_count} log "
        f"segments, {report.entry_count} entries, {bytes_text(report.checked_bytes)} checked"
    )
    return 0 if report.is_sound else STATUS_FAILED


def _dump(arguments: argparse.Namespace) -> int:
    from engine import manifest
    from engine.disk import RealDisk
    from engine.dump import kind_of

    path = arguments.path
    folder, name = (path, "") if os.path.isdir(path) else os.path.split(path)
    folder = os.path.abspath(folder or ".")
    if not os.path.isdir(folder) or (name and not os.path.exists(path)):
        raise _Misused(f"{path}: no such file or folder")
    if name and kind_of(name) is None:
        raise _Misused(
            f"{path}: not a table (.sst), a log segment (.log) or a manifest, by its name"
        )
    with closing(RealDisk(folder)) as disk:
        if not name and manifest.NAME not in disk.names():
            raise _Misused(f"{path}: no data folder: it has no manifest")
        return _dump_files(disk, [name] if name else None, arguments)


def _dump_files(disk: Disk, names: list[str] | None, arguments: argparse.Namespace) -> int:
    """Show files, all of a folder if none are named."""
    from engine import manifest
    from engine.verify import files_of
    from respkv.tools.show import COLUMNS, KeyFilter, manifest_lines

    is_json = arguments.json
    key = None if arguments.key is None else KeyFilter(os.fsencode(arguments.key))
    if names is None:
        current = manifest.read(disk)
        assert current is not None
        names = [manifest.NAME, *files_of(disk, current)]
    left = arguments.limit
    status = 0
    for name in names:
        if name == manifest.NAME:
            if key is None:
                current = manifest.read(disk)
                assert current is not None
                print("\n".join(manifest_lines(current, is_json=is_json)))
            continue
        if left == 0:
            break
        if not is_json:
            print(f"# {name}\n{COLUMNS}")
        shown, is_whole = _dump_file(disk, name, key, left, is_json=is_json)
        left = None if left is None else left - shown
        status = status if is_whole else STATUS_FAILED
    return status


def _dump_file(
    disk: Disk, name: str, key: object, limit: int | None, *, is_json: bool
) -> tuple[int, bool]:
    """Show a file: how many entries that were, and whether all could be read."""
    from engine.dump import entries_of, kind_of
    from engine.errors import CorruptionError
    from respkv.tools.show import KeyFilter, damage_line, json_of, line_of

    chosen = key if isinstance(key, KeyFilter) else None
    is_table = kind_of(name) == "table"
    count = 0
    is_whole = True
    for found in entries_of(disk, name, chosen.start if chosen is not None else None):
        if isinstance(found, CorruptionError):
            is_whole = False
            print(damage_line(found, name, is_json=is_json))
            continue
        if chosen is not None and not (found.is_marker or chosen.passes(found)):
            if is_table and chosen.is_behind(found):
                break
            continue
        print(json_of(found, name) if is_json else line_of(found))
        count += 1
        if count == limit:
            break
    return count, is_whole


def _import(arguments: argparse.Namespace) -> int:
    from respkv.tools.client import Client, parse_url
    from respkv.tools.importer import Importer, ImportState, check, run_id_of
    from respkv.tools.progress import count_text

    try:
        addresses = [parse_url(url) for url in (arguments.source, arguments.to)]
    except ValueError as error:
        raise _Misused(str(error)) from None
    with closing(Client(addresses[0])) as source, closing(Client(addresses[1])) as target:
        here = addresses[0]
        path = arguments.progress or f"respkv-import-{here.host}-{here.port}-{here.db}.json"
        fresh = ImportState(str(here), str(addresses[1]), run_id_of(source))
        state = _resumed(path, fresh)
        importer = Importer(source, target, state, lambda kept: _save(path, kept), arguments.batch)
        _copy_all(importer, int(source.ask("DBSIZE")))
        with _progress("check", 0, count_text) as progress:
            found = check(source, target, arguments.batch, progress.add)
        sizes = source.ask("DBSIZE"), target.ask("DBSIZE")
    print(
        f"copied {state.copied_count} string keys from {state.source} to {state.target}; "
        f"{state.gone_count} went away meanwhile"
    )
    print(
        f"checked: {found.string_count - found.missing_count} of {found.string_count} string keys "
        f"of the source are in the target; keys in all: {sizes[0]} in the source, {sizes[1]} in the target"
    )
    if found.missing_count:
        examples = " ".join(map(repr, found.examples))
        print(f"missing in the target: {found.missing_count} keys, such as {examples}")
        return STATUS_FAILED
    os.unlink(path)
    if state.other_count:
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(state.other_types.items()))
        print(f"not copied: {state.other_count} keys of types that are not supported yet: {kinds}")
        return STATUS_INCOMPLETE
    return 0


def _copy_all(importer: Importer, total: int) -> None:
    from respkv.tools.progress import count_text

    state = importer.state
    with _progress("import", total, count_text) as progress:
        while not state.is_scanned:
            progress.add(importer.step())


def _resumed(path: str, fresh: ImportState) -> ImportState:
    """The state in the progress file if it is of this import, else a fresh one."""
    import msgspec

    try:
        with open(path, "rb") as file:
            kept = msgspec.json.decode(file.read(), type=type(fresh))
    except FileNotFoundError:
        return fresh
    except (OSError, msgspec.MsgspecError) as error:
        raise _Misused(f"{path} is no progress file: {error}; remove it to begin anew") from None
    if (kept.source, kept.target) != (fresh.source, fresh.target):
        raise _Misused(
            f"{path} is of an import from {kept.source} to {kept.target}: "
            "name another file with --progress, or remove it"
        )
    if kept.run_id != fresh.run_id:
        print("the source was restarted since: the import begins anew", file=sys.stderr)
        return fresh
    print(f"going on after {kept.copied_count} copied keys", file=sys.stderr)
    return kept


def _save(path: str, state: ImportState) -> None:
    """Replace the progress file in one step. Not synced: after a power cut the import begins anew."""
    import msgspec

    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(msgspec.json.encode(state))
        os.replace(temporary, path)
    except OSError as error:
        raise _Misused(f"cannot write {path}: {error.strerror}") from None
