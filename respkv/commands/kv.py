"""KV.*: what Redis has no word for: snapshots of the data folder (`engine/snapshot.py`), damage (`engine/damage.py`),
and what this node holds itself. `kv_ring.py` has those that show the cluster.

A snapshot is taken while others are served: what waits for the disk is done in a thread, and only the
links are made between two commands. It may be interrupted at any time; what it leaves behind is
removed by the next one of that name.

    KV.SNAPSHOT CREATE name     a map: name, path, taken_ms, files, bytes
    KV.SNAPSHOT LIST            such maps
    KV.SNAPSHOT DROP name       OK
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Generator
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

from cluster.replica_state import state_of_copy
from cluster.slot import Key
from engine import snapshot
from engine.disk import Disk
from engine.errors import EngineError
from engine.snapshot import Snapshot
from engine.store import Store
from respkv.command import Flag, command, container
from respkv.commands.client import help_reply
from respkv.context import Context
from respkv.errand import Errand, run
from respkv.reply import OK, Reply, ReplyError

ADMIN: Final = Flag.ADMIN | Flag.NOSCRIPT | Flag.NO_ASYNC_LOADING
SINCE: Final = "0.1.0"
BAD_NAME: Final = ReplyError(
    "ERR a snapshot's name has 1 to 64 letters, digits, dots, dashes and underscores, the first a letter or digit"
)
BUSY: Final = ReplyError(
    "BUSY another client creates or drops a snapshot of that name: try again later"
)
JOB_RUNS: Final = ReplyError("BUSY a flush or compaction is under way: try again in a moment")
_NAME: Final = re.compile(rb"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")
_T = TypeVar("_T")

# The names that are worked on. A thread may go on after its client has left.
_busy: WeakKeyDictionary[Store, set[str]] = WeakKeyDictionary()

container("KV.SNAPSHOT", since=SINCE, group="kv", summary="Commands about snapshots of the data")


@command(
    "KV.SNAPSHOT|CREATE", arity=3, flags=ADMIN | Flag.NO_MULTI, since=SINCE, group="kv",
    complexity="O(N) where N is the number of files; no data is copied", usage="name",
)  # fmt: skip
def kv_snapshot_create(ctx: Context, name: bytes) -> Generator[Errand, None, Reply]:
    """Take a snapshot of all that was written so far, and answer where it is and how large."""
    node, store = ctx.node, ctx.store
    title = _checked(name)
    with _Occupied(store, title) as occupied:
        yield from _done(ctx, lambda: snapshot.make_folder(store.disk, title), occupied)
        folder = snapshot.open_folder(store.disk, title)
        now_ms = ctx.now_ms
        try:
            begun = snapshot.begin(store, folder, state_of_copy(store.manifest.state))
        except EngineError as error:
            yield from _done(ctx, lambda: _give_up(folder), occupied)
            raise _refused(error) from None
        node.commit.want_sync()

        def finish() -> Snapshot:
            try:
                taken = snapshot.finish(store.log, begun, title, now_ms)
            except EngineError:
                _give_up(folder)
                raise
            folder.close()
            return taken

        taken = yield from _done(ctx, finish, occupied)
    node.log.info("snapshot taken", name=title, bytes=taken.file_bytes)
    return _shown(store, taken)


@command(
    "KV.SNAPSHOT|LIST", arity=2, flags=ADMIN, since=SINCE, group="kv",
    complexity="O(N) where N is the number of snapshots", tips=("nondeterministic_output",),
)  # fmt: skip
def kv_snapshot_list(ctx: Context) -> Generator[Errand, None, Reply]:
    """List the snapshots: name, path, time, number of files and bytes of each."""
    store = ctx.store
    found = yield from _done(ctx, lambda: snapshot.snapshots_of(store.disk))
    return [_shown(store, each) for each in found]


@command(
    "KV.SNAPSHOT|DROP", arity=3, flags=ADMIN, since=SINCE, group="kv",
    complexity="O(N) where N is the number of files of the snapshot", usage="name",
)  # fmt: skip
def kv_snapshot_drop(ctx: Context, name: bytes) -> Generator[Errand, None, Reply]:
    """Remove a snapshot. Bytes that only it held are free then."""
    store = ctx.store
    title = _checked(name)
    with _Occupied(store, title) as occupied:
        yield from _done(ctx, lambda: snapshot.drop(store.disk, title), occupied)
    ctx.node.log.info("snapshot dropped", name=title)
    return OK


container(
    "KV.DAMAGE", since=SINCE, group="kv", summary="Commands about data that the disk has lost"
)


@command(
    "KV.DAMAGE|LIST", arity=2, flags=ADMIN, since=SINCE, group="kv",
    complexity="O(N) where N is the number of damages", tips=("nondeterministic_output",),
)  # fmt: skip
def kv_damage_list(ctx: Context) -> Reply:
    """List what was lost: file, offset, reason and slots of each damage."""
    return [
        {
            b"file": damage.name.encode(),
            b"offset": damage.offset,
            b"reason": damage.reason.encode(),
            b"slot_first": damage.slots.start,
            b"slot_last": damage.slots.stop - 1,
        }
        for damage in ctx.store.manifest.damages
    ]


@command(
    "KV.DAMAGE|ACCEPT", arity=2, flags=ADMIN | Flag.NO_MULTI, since=SINCE, group="kv",
    complexity="O(1)",
)  # fmt: skip
def kv_damage_accept(ctx: Context) -> Reply:
    """Give up what was lost, and serve what is left of it; answers how many damages there were."""
    if ctx.store.is_busy:
        raise JOB_RUNS
    try:
        count = ctx.store.accept_damage()
    except EngineError as error:
        raise _refused(error) from None
    ctx.node.log.warning("the loss of data was accepted", damages=count)
    return count


class _Occupied:
    """Keeps a name to one command at a time, and to the threads that work for it. Raises BUSY.

    A client that goes away ends the command at its `yield`, and not the thread: so each of them
    holds the name, and the last one that leaves gives it back.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._names = _busy.setdefault(store, set())
        if name in self._names:
            raise BUSY
        self._names.add(name)
        self._name = name
        self._holders: list[None] = []  # A list: its steps are whole, whichever thread takes them.

    def __enter__(self) -> _Occupied:
        self._holders.append(None)
        return self

    def __exit__(self, *error: object) -> None:
        self._holders.pop()
        if not self._holders:
            self._names.discard(self._name)


def _done(
    ctx: Context, work: Callable[[], _T], occupied: _Occupied | None = None
) -> Generator[Errand, None, _T]:
    """The result of work that a thread does. Raises ReplyError for its EngineError."""
    results: list[_T] = []
    failures: list[EngineError] = []
    if occupied is not None:
        occupied.__enter__()  # Left by the thread.

    def errand() -> None:
        with contextlib.ExitStack() as stack:
            if occupied is not None:
                stack.push(occupied)
            try:
                results.append(work())
            except EngineError as error:
                failures.append(error)

    yield from run(ctx, errand)
    if failures:
        raise _refused(failures[0])
    return results[0]


def _give_up(folder: Disk) -> None:
    snapshot.clear(folder)
    folder.close()


def _checked(name: bytes) -> str:
    if _NAME.fullmatch(name) is None:
        raise BAD_NAME
    return name.decode("ascii")


def _refused(error: EngineError) -> ReplyError:
    return ReplyError(f"ERR {error}")


def _shown(store: Store, found: Snapshot) -> Reply:
    return {
        b"name": found.name.encode(),
        b"path": f"{store.disk.path}/{snapshot.FOLDER}/{found.name}".encode(),
        b"taken_ms": found.taken_ms,
        b"files": found.file_count,
        b"bytes": found.file_bytes,
    }


HELP: Final = """\
KV.SNAPSHOT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
CREATE <name>
    Take a snapshot of all that was written so far, in the folder "snapshots" of the data. It takes no room at first,
    because it shares its files with the data. "respkv backup" copies it elsewhere while the node serves.
LIST
    All snapshots: name, path, time in milliseconds since 1970, number of files, bytes.
DROP <name>
    Remove a snapshot.
HELP
    Print this help."""


@command(
    "KV.SNAPSHOT|HELP", arity=2, flags=Flag.LOADING | Flag.STALE, since=SINCE, group="kv", complexity="O(1)",
)  # fmt: skip
def kv_snapshot_help(ctx: Context) -> Reply:
    """Show the subcommands of KV.SNAPSHOT."""
    return help_reply(HELP)


DAMAGE_HELP: Final = """\
KV.DAMAGE <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
LIST
    What was lost to damage on the disk: file, offset, reason, first and last slot. Reads that may have needed it are
    refused; the file is kept beside the data, as NAME.damaged.
ACCEPT
    Give up what was lost, after refilling it or for good: reads answer what is left. What a lost entry had hidden may
    show again, such as an older value.
HELP
    Print this help."""


@command(
    "KV.DAMAGE|HELP", arity=2, flags=Flag.LOADING | Flag.STALE, since=SINCE, group="kv", complexity="O(1)",
)  # fmt: skip
def kv_damage_help(ctx: Context) -> Reply:
    """Show the subcommands of KV.DAMAGE."""
    return help_reply(DAMAGE_HELP)


# The cluster


@command(
    "KV.LOCAL", arity=2, flags=Flag.READONLY | Flag.FAST, since=SINCE, group="kv", complexity="O(1)",
    usage="key:string",
)  # fmt: skip
def kv_local(ctx: Context, key: Key) -> Reply:
    """Return the string value of a key as this node holds it, without asking others."""
    # Declared without `keys`: a key would have clients and the dispatch look for its replicas.
    return ctx.string(key)


KV_HELP: Final = """\
KV.<command> [<arg> ...]: what Redis has no word for. Commands are:
KV.SNAPSHOT CREATE <name> | LIST | DROP <name>
    Snapshots of the data, taken while it is served.
KV.DAMAGE LIST | ACCEPT
    What the disk has lost.
KV.GET <key>
    All versions of a key, the winner first: value, time (milliseconds since 1970), dot, expiry, type. Then a context
    that says which versions these are, for KV.PUT and KV.DEL. Of a key that is absent: no versions, and a context.
KV.SIBLINGS <key>
    The same without the values: length, time, dot, expiry, type.
KV.PUT <key> <value> [CONTEXT <context>] [EX | PX | EXAT | PXAT <time>]
    Write a version that replaces those that the context covers. Others stay beside it; without a context, all do.
    Answers how many versions there are now, and the context for the next KV.PUT of who has read no others.
KV.DEL <key> [CONTEXT <context>]
    Delete the versions that the context covers, or all that are here; answers how many were here.
KV.RESOLVE <key> [VALUE <value>]
    Keep the winner alone, or the value given instead; answers how many versions that has removed.
KV.POLICY <key>
    What holds for a key: how many replicas a read and a write need, and what says so.
KV.CONSISTENCY [READ <level>] [WRITE <level>]
    How many replicas the commands of this connection need; without arguments: what holds.
KV.WITH [R <level>] [W <level>] [TIMEOUT <ms>] <command> [<arg> ...]
    The same for one command. A level is a number of replicas, or ONE, QUORUM, ALL.
KV.LOCAL <key>
    The value of a key as this node holds it, or nil: no other node is asked, so it may be older than what GET answers.
KV.NODES
    The members of the cluster: name, host and port for clients, and whether this node can reach them, and takes them
    for complete: a node is incomplete as long as it may lack what it had acknowledged, after a crash or a loss.
KV.PREFLIST <key>
    The slot of a key, its replicas in order of preference, and which of them coordinates now.
KV.RING
    Of each node how many slots it is the first replica of, holds and coordinates; of each preference list its slots.
KV.CLOCK <slot>
    What this node has seen of a slot: of each actor the last dot without a gap before it, and the dots beyond gaps;
    and whether a write of the slot is still waiting for its replicas.
KV.TRACE <command> [<arg> ...]
    Run a command on keys: its reply, where it was executed, which replicas were asked what and answered what, and when,
    in microseconds since it came.
KV.DRILL CUT <node> [<node> ...] | MUTE <node> [<node> ...] | HEAL | SHOW
    Play a broken network between nodes of one machine, where the configuration allows it (debug.drill).
KV.HELP
    Print this help."""


@command(
    "KV.HELP", arity=1, flags=Flag.LOADING | Flag.STALE | Flag.FAST, since=SINCE, group="kv", complexity="O(1)",
)  # fmt: skip
def kv_help(ctx: Context) -> Reply:
    """Show the commands that begin with KV."""
    return help_reply(KV_HELP)
