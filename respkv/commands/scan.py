"""Commands on whole databases: KEYS, SCAN, RANDOMKEY, DBSIZE, FLUSHDB, FLUSHALL.

They are sliced: generators that yield where others may be served, and the page faults that they
meet (`respkv/keyspace.py`). Each takes its view of the database before the first yield and looks at
the context no more.

SCAN keeps nothing between two calls. Its cursor says where to go on, in storage order: the slot in
the upper bits, the 48-bit hash of the key below. What is written or deleted meanwhile moves no
other key, so a full iteration returns each key at least once that was there all the time. Rows of
one hash are never split between two calls.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass
from random import Random
from typing import Final

from cluster.slot import HASH_BYTES, KEY_OFFSET, SLOT_COUNT, TAG_OFFSET, Key, Row, Slot, slot_of
from engine.store import PageFault
from respkv import glob
from respkv.command import Flag, command
from respkv.context import Context
from respkv.keyspace import (
    PAGE_ROWS,
    PLAIN_KINDS,
    TYPE_NAMES,
    Page,
    Raw,
    Step,
    View,
    is_live,
    type_of,
)
from respkv.number import integer
from respkv.reply import OK, SYNTAX_ERROR, Reply, ReplyError

INVALID_CURSOR: Final = ReplyError("ERR invalid cursor")
DEFAULT_COUNT: Final = 10
# Rows of other databases lie between, and one call should not go on for ever.
# Redis looks at ten empty places per row.
LOOKS_PER_ROW: Final = 10
LOOKS_AT_LEAST: Final = 2000
RANDOM_TRIES: Final = 8
_HASH_BITS: Final = 8 * HASH_BYTES
_CURSOR_MAX: Final = (1 << 64) - 1
_cursor = re.compile(rb"([+-]?)([0-9]{1,40})").fullmatch

Sliced = Generator[Step, None, Reply]


@command(
    "KEYS",
    arity=2,
    flags=Flag.READONLY,
    since="1.0.0",
    group="generic",
    complexity="O(N) with N the number of keys in the database.",
    usage="pattern",
    tips=("request_policy:all_shards", "nondeterministic_output_order"),
    acl=("keyspace", "dangerous"),
)
def keys(ctx: Context, pattern: bytes) -> Sliced:
    """List the keys whose names match a pattern."""
    view = View(ctx)
    only = glob.literal(pattern)
    if only is not None:
        return [only] if (yield from exists(view, only)) else []
    matches = glob.matcher(pattern)
    slot = slot_of_pattern(pattern)
    db, now_ms = view.db, view.now_ms
    found: list[Reply] = []
    for part in view.pages() if slot is None else view.pages_of(slot):
        if isinstance(part, PageFault):
            yield part
            continue
        found += [
            row[KEY_OFFSET:]
            for row, raw in part
            if row[TAG_OFFSET] == db
            and matches(row[KEY_OFFSET:])
            and (raw[0] in PLAIN_KINDS or is_live(raw, now_ms))
        ]
        yield None
    return found


@command(
    "SCAN",
    arity=-2,
    flags=Flag.READONLY,
    since="2.8.0",
    group="generic",
    complexity="O(1) for every call, O(N) for a whole iteration over N keys.",
    usage="cursor [MATCH pattern] [COUNT count] [TYPE type]",
    tips=("nondeterministic_output", "request_policy:special"),
    acl=("keyspace",),
)
def scan(ctx: Context, cursor: bytes, *options: bytes) -> Sliced:
    """Iterate over the keys of the database, some at a time."""
    position = parse_cursor(cursor)
    search = Search.parse(options)
    view = View(ctx)
    if search.type is not None and search.type not in TYPE_NAMES.values():
        return [b"0", []]
    if search.key is not None:
        is_ahead = position <= slot_of(search.key) << _HASH_BITS | ((1 << _HASH_BITS) - 1)
        is_found = is_ahead and (yield from exists(view, search.key))
        return [b"0", [search.key] if is_found else []]
    position, found, _ = yield from scan_rows(view, position, search)
    return [b"%d" % position, found]


@dataclass(frozen=True, slots=True)
class Search:
    """The options of SCAN. `key` and `slot`: the only ones that can match, if that is known."""

    count: int = DEFAULT_COUNT
    matches: glob.Matcher | None = None
    type: bytes | None = None
    key: Key | None = None
    slot: Slot | None = None

    @classmethod
    def parse(cls, options: tuple[bytes, ...]) -> Search:
        """Raises ReplyError."""
        count, pattern, type_name = DEFAULT_COUNT, b"*", None
        for at in range(0, len(options), 2):
            name = options[at].upper()
            if at + 1 == len(options) or name not in (b"COUNT", b"MATCH", b"TYPE"):
                raise SYNTAX_ERROR
            value = options[at + 1]
            if name == b"COUNT":
                count = integer(value)
                if count < 1:
                    raise SYNTAX_ERROR
            elif name == b"MATCH":
                pattern = value
            else:
                type_name = value.lower()
        return cls(
            count,
            None if pattern == b"*" else glob.matcher(pattern),
            type_name,
            glob.literal(pattern),
            slot_of_pattern(pattern),
        )

    def select(self, rows: list[tuple[Row, Raw]], now_ms: int) -> list[Reply]:
        """The keys of live rows that match."""
        matches = self.matches
        return [
            row[KEY_OFFSET:]
            for row, raw in rows
            if (matches is None or matches(row[KEY_OFFSET:]))
            and (raw[0] in PLAIN_KINDS or is_live(raw, now_ms))
            and (self.type is None or TYPE_NAMES[type_of(raw, now_ms)] == self.type)
        ]


def parse_cursor(text: bytes) -> int:
    """A cursor as C's `strtoul` reads it: nothing is 0, and signs are taken. Raises ReplyError."""
    text = text.split(b"\0", 1)[0]
    if not text:
        return 0
    match = _cursor(text)
    value = int(match[2]) if match else _CURSOR_MAX + 1
    if match is None or value > _CURSOR_MAX:
        raise INVALID_CURSOR
    return -value & _CURSOR_MAX if match[1] == b"-" else value


def slot_of_pattern(pattern: bytes) -> Slot | None:
    """The only slot whose keys can match, because the pattern has a literal hash tag, or None."""
    prefix = glob.literal_prefix(pattern)
    start = prefix.find(b"{") + 1
    return slot_of(prefix) if start and prefix.find(b"}", start) > start else None


def exists(view: View, key: Key) -> Generator[Step, None, bool]:
    while True:
        try:
            return view.get(key) is not None
        except PageFault as fault:
            yield fault


def scan_rows(
    view: View, position: int, search: Search, end: Slot = SLOT_COUNT
) -> Generator[Step, None, tuple[int, list[Reply], int]]:
    """Look at about `search.count` rows from a cursor on, before the slot `end`.

    Returns the next cursor (0 at the end), the keys found, and the number of rows.
    """
    found: list[Reply] = []
    slot = position >> _HASH_BITS
    start = (position & ((1 << _HASH_BITS) - 1)).to_bytes(HASH_BYTES, "big")
    if search.slot is not None and slot != search.slot:
        if slot > search.slot:
            return 0, found, 0
        slot, start = search.slot, b""
    rows = looks = 0
    is_sparse = False  # The last page had rows of other databases only.
    looks_max = search.count * LOOKS_PER_ROW + LOOKS_AT_LEAST
    while rows < search.count and looks < looks_max:
        if search.slot is None:
            occupied = yield from _seek(view, slot)
            if occupied is None or occupied >= end:
                return 0, found, rows
            if occupied > slot:
                slot, start = occupied, b""
        page = yield from _page(view, slot, start, PAGE_ROWS if is_sparse else search.count - rows)
        while page.is_split and page.next_row is not None:
            found += search.select(page.rows, view.now_ms)
            page = yield from _page(view, slot, page.next_row, 1)
        found += search.select(page.rows, view.now_ms)
        rows += len(page.rows)
        looks += page.looked_at + 1
        is_sparse = not page.rows
        if page.next_row is not None:
            start = page.next_row[:HASH_BYTES]
        elif search.slot is not None:
            return 0, found, rows
        else:
            slot, start = slot + 1, b""
        yield None
    if not start:
        occupied = yield from _seek(view, slot)
        if occupied is None or occupied >= end:
            return 0, found, rows
        slot = occupied
    return slot << _HASH_BITS | int.from_bytes(start, "big"), found, rows


def _seek(view: View, slot: Slot) -> Generator[Step, None, Slot | None]:
    """The first slot from `slot` on that may hold rows, waiting for pages."""
    while slot < SLOT_COUNT:
        try:
            return view.next_slot(slot)
        except PageFault as fault:
            yield fault
    return None


def _page(view: View, slot: Slot, start: bytes, limit: int) -> Generator[Step, None, Page]:
    """A page of the view, waiting for what it needs."""
    while True:
        try:
            return view.page(slot, start, min(limit, PAGE_ROWS))
        except PageFault as fault:
            yield fault


@command(
    "RANDOMKEY",
    arity=1,
    flags=Flag.READONLY,
    since="1.0.0",
    group="generic",
    complexity="O(1)",
    tips=("request_policy:all_shards", "nondeterministic_output"),
    acl=("keyspace",),
)
def randomkey(ctx: Context) -> Sliced:
    """Return the name of a key chosen at random."""
    view, counts, rng = View(ctx), ctx.counts, ctx.rng
    for _ in range(RANDOM_TRIES):
        slot = rng.randrange(SLOT_COUNT)
        if view.may_hold(slot):
            key = yield from random_key(view, slot, rng)
            if key is not None:
                return key
    # Few slots hold keys: find out which.
    weights = dict.fromkeys(view.overlay, 1)
    if not view.is_flushed:
        yield from counts.exact(view)
        weights |= counts.slots_of(view.db)
    while weights:
        slot = rng.choices(list(weights), list(weights.values()))[0]
        key = yield from random_key(view, slot, rng)
        if key is not None:
            return key
        del weights[slot]  # Nothing is left there.
    return None


def random_key(view: View, slot: Slot, rng: Random) -> Generator[Step, None, Key | None]:
    """The first live key of a slot from a random hash on, or else from the slot's beginning."""
    middle = rng.getrandbits(_HASH_BITS).to_bytes(HASH_BYTES, "big")
    for start, end in ((middle, None), (b"", middle)):
        at: bytes | None = start
        limit = 8
        while at is not None and (end is None or at < end):
            page = yield from _page(view, slot, at, limit)
            for row, raw in page.rows:
                if is_live(raw, view.now_ms):
                    return row[KEY_OFFSET:]
            at = page.next_row
            limit *= 4
            yield None
    return None


@command(
    "DBSIZE",
    arity=1,
    flags=Flag.READONLY | Flag.FAST,
    since="1.0.0",
    group="server",
    complexity="O(1) if nothing changed, else O(N) with N the keys in the slots that did.",
    tips=("request_policy:all_shards", "response_policy:agg_sum"),
    acl=("keyspace",),
)
def dbsize(ctx: Context) -> Sliced:
    """Return how many keys the database holds."""
    view, counts = View(ctx), ctx.counts
    if view.is_flushed:
        size = 0
    else:
        yield from counts.exact(view)
        size = counts[view.db].keys
    for slot, rows in view.overlay.items():
        for row, raw in rows.items():
            size += is_live(raw, view.now_ms) - (yield from _is_stored(view, slot, row))
    return size


def _is_stored(view: View, slot: Slot, row: Row) -> Generator[Step, None, bool]:
    """Whether the store, without the transaction's own writes, shows a live row."""
    while not view.is_flushed:
        try:
            raw = view.store.get(slot, row)
        except PageFault as fault:
            yield fault
            continue
        return raw is not None and is_live(raw, view.now_ms)
    return False


@command(
    "FLUSHDB",
    arity=-1,
    flags=Flag.WRITE,
    since="1.0.0",
    group="server",
    complexity="O(N) with N the number of keys of the database that are in memory.",
    usage="[ASYNC | SYNC]",
    tips=("request_policy:all_shards", "response_policy:all_succeeded"),
    acl=("keyspace", "dangerous"),
)
def flushdb(ctx: Context, *mode: bytes) -> Reply:
    """Remove all keys of the database."""
    check_flush_mode(mode)
    ctx.flush([ctx.db])
    return OK


@command(
    "FLUSHALL",
    arity=-1,
    flags=Flag.WRITE,
    since="1.0.0",
    group="server",
    complexity="O(N) with N the number of keys that are in memory.",
    usage="[ASYNC | SYNC]",
    tips=("request_policy:all_shards", "response_policy:all_succeeded"),
    acl=("keyspace", "dangerous"),
)
def flushall(ctx: Context, *mode: bytes) -> Reply:
    """Remove all keys of all databases."""
    check_flush_mode(mode)
    ctx.flush(sorted(ctx.databases))
    return OK


def check_flush_mode(mode: tuple[bytes, ...]) -> None:
    """Raises SYNTAX_ERROR. Both modes are one: keys vanish now, their space comes back later."""
    if len(mode) > 1 or (mode and mode[0].upper() not in (b"ASYNC", b"SYNC")):
        raise SYNTAX_ERROR


__all__ = [
    "PLAIN_KINDS",
    "Search",
    "exists",
    "parse_cursor",
    "random_key",
    "scan_rows",
    "slot_of_pattern",
]
