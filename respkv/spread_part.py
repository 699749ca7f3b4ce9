"""The parts of a spread command: what the coordinator of one slot does for it, as commands between nodes.

    SPREAD.FETCH (key db known)*                         the rows, confirmed by R replicas
    SPREAD.COMMIT (key db dots kind expiry payload)*     write them, if all are still as they were seen

They are in no command table: no client can call them, and no count shows them. Another node forwards them
like commands of clients (`respkv/forwarding.py`), so they have numbers, deadlines and one answer each, and
they are executed like them (`respkv/execution.py`), so they are confirmed by quorums and checked.

All keys of a part are of one slot. `db` is the physical database. `dots` identify the state of a row
(`cluster.coordinator.dots_of`). `known` is `=` and the dots of what the asker has of a row, which is then not
sent again, or empty. FETCH answers a list in MessagePack: a record, nil where there is none, true where the
asker has it. COMMIT writes rows with a `kind`, and compares only those without; it answers OK, or STALE if
any row has changed, and then it has written nothing.

Core.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cluster.errors import ClusterError
from cluster.quorum_messages import dots_of
from cluster.replica import Effect
from cluster.round import Place
from cluster.slot import TAG_OFFSET, Key, Row, key_of, row_of, slot_of
from respkv.command import Command, Flag, Keys
from respkv.refusal import TOO_LARGE
from respkv.reply import OK, Reply

if TYPE_CHECKING:
    from respkv.context import Context


class MalformedPart(ClusterError):
    """A node answers a part with what is no answer: a newer one, or a broken one. The caller counts it as lost."""

    def __str__(self) -> str:
        return "malformed answer to a part of a command"


STALE: Final = b"stale"
FETCH_STEP: Final = 3  # Arguments for each row.
COMMIT_STEP: Final = 6
Fetched = list[bytes | bool | None]


def fetch(ctx: Context, *args: bytes) -> Reply:
    """Answer rows as they are stored here."""
    peers = ctx.node.peers
    assert peers is not None
    rows: Fetched = []
    size = 0
    for key, db, known in _groups(args, FETCH_STEP):
        raw = ctx.store.get(slot_of(key), row_of(int(db), key))
        is_known = known[:1] == b"=" and known[1:] == dots_of(raw)
        rows.append(True if is_known else raw)
        size += 0 if is_known or raw is None else len(raw)
    if size > peers.dispatch.message_bytes_max:
        raise TOO_LARGE
    return msgspec.msgpack.encode(rows)


def commit(ctx: Context, *args: bytes) -> Reply:
    """Write rows, if none has changed since it was fetched."""
    effects: dict[Row, Effect] = {}
    for key, db, dots, kind, expire_at_ms, payload in _groups(args, COMMIT_STEP):
        slot, row = slot_of(key), row_of(int(db), key)
        if dots_of(ctx.store.get(slot, row)) != dots:
            return STALE
        if kind:
            effects[row] = (slot, int(kind), int(expire_at_ms), payload)
    ctx.effects.update(effects)
    return OK


def _groups(args: tuple[bytes, ...], step: int) -> Iterator[tuple[bytes, ...]]:
    for at in range(0, len(args), step):
        yield args[at : at + step]


def _command(name: str, handler: Any, flags: Flag, keys: Keys) -> Command:
    return Command(
        name=name, handler=handler, arity=-1 - keys.step, flags=flags, keys=(keys,), since="0.1.0",
        group="generic", summary="", complexity="", usage="", tips=(), acl=(), is_sliced=False,
        is_write=Flag.WRITE in flags,
    )  # fmt: skip


FETCH: Final = _command("SPREAD.FETCH", fetch, Flag.READONLY, Keys(1, -1, FETCH_STEP, "RO"))
COMMIT: Final = _command("SPREAD.COMMIT", commit, Flag.WRITE, Keys(1, -1, COMMIT_STEP, "RW"))
PARTS: Final = {command.name.encode(): command for command in (FETCH, COMMIT)}


def places_of_part(command: Command, args: list[bytes]) -> list[Place]:
    """The rows of a part."""
    positions = command.key_positions(args)
    return [(slot_of(args[at]), row_of(int(args[at + 1]), args[at])) for at in positions]


def fetch_args(rows: Mapping[Row, bytes | None]) -> list[bytes]:
    """Ask for rows: with the dots of what is known of each, None if nothing is."""
    args = [FETCH.name.encode()]
    for row, dots in rows.items():
        args += (*_name_of(row), b"" if dots is None else b"=" + dots)
    return args


def commit_args(rows: Iterable[tuple[Row, bytes, Effect | None]]) -> list[bytes]:
    """Write rows: each with the dots that were seen, and what becomes of it, None if nothing does."""
    args = [COMMIT.name.encode()]
    for row, dots, effect in rows:
        args += (*_name_of(row), dots)
        if effect is None:
            args += (b"", b"0", b"")
        else:
            _, kind, expire_at_ms, payload = effect
            args += (b"%d" % kind, b"%d" % expire_at_ms, payload)
    return args


def fetched(data: bytes) -> Fetched:
    """The rows of an encoded reply to FETCH. Raises MalformedPart."""
    start = data.find(b"\r\n") + 2
    try:
        return msgspec.msgpack.decode(data[start:-2], type=Fetched)
    except msgspec.DecodeError as error:
        raise MalformedPart from error


def _name_of(row: Row) -> tuple[Key, bytes]:
    return key_of(row), b"%d" % row[TAG_OFFSET]
