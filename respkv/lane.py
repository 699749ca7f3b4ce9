"""Lanes: GET and SET for a run of plain commands at once, written for speed.

They are not other commands. A lane does for `GET key` and `SET key value` exactly what
`Context.string` and `Context.put_string`, `Context.commit` and the runner do for one command, in one
loop without calls of our own: a third of the time of a small command went into those calls, attribute
look-ups and the clock. It stops at the first command that is not plain (another name or count of
arguments, a long key, a hash tag, a row that is not in memory, an expiry, siblings, a long value),
and the runner goes on there the usual way. tests/respkv/test_lane.py holds both ways equal, byte by
byte, in replies, log and memtable; bench/serving.py measures.

The run comes from one session's pipeline, or from many sessions that sent one command each
(`Runner.serve_lone`). A lane appends one piece to `out` for each command, but for a large value,
which is a run of its own.

A lane's commands are too small to be slow one by one, so they are timed together.

Core.
"""

from __future__ import annotations

from binascii import crc_hqx
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_64_digest

from cluster.record import HEADER, HEADER_BYTES, STRING
from cluster.slot import MIDDLES
from engine.errors import EngineError
from engine.log_format import COMPLETE, ENVELOPE
from engine.memtable import ENTRY_OVERHEAD_BYTES
from engine.store import PageFault
from respkv.session import LARGE_REPLY_BYTES

if TYPE_CHECKING:
    from respkv.context import Context

OK_BYTES: Final = b"+OK\r\n"
CRLF: Final = b"\r\n"
LENGTHS: Final = 1024
BULK_HEADS: Final = [b"$%d\r\n" % length for length in range(LENGTHS)]
KEY_BYTES_MAX: Final = 255
# A header of our own makes the longest value that a lane takes in far from large.
VALUE_BYTES_MAX: Final = 65536

_pack_header = HEADER.pack
_RAW_BYTES_MAX: Final = HEADER_BYTES + LENGTHS - 1


def get_lane(context: Context, commands: list[list[bytes]], start: int, out: list[bytes]) -> int:
    """Answer plain GETs from `start` on, which is one, into `out`; returns how many."""
    store = context.store
    slots = store.active
    middles = MIDDLES[context.db]
    heads = BULK_HEADS
    done = misses = 0
    name = commands[start][0]
    for args in commands[start:] if start else commands:
        try:
            called, key = args
        except ValueError:
            break
        if called != name:
            break
        length = len(key)
        if length > KEY_BYTES_MAX or b"{" in key:
            break
        slot = crc_hqx(key, 0) & 16383
        row = xxh3_64_digest(key)[:6] + middles[length] + key
        raw = slots[slot].get(row)
        if raw is None:
            try:
                raw = store.lookup(slot, row)
            except (PageFault, EngineError):  # Damage: the usual way meets it again.
                break
            if raw is None:
                out.append(b"_\r\n" if context.session.is_resp3 else b"$-1\r\n")
                misses += 1
                done += 1
                continue
        if raw[0] != STRING or len(raw) > _RAW_BYTES_MAX:
            if not done:
                done = _show_large(context, raw, out)
            break
        out.append(heads[len(raw) - HEADER_BYTES] + raw[HEADER_BYTES:] + CRLF)
        done += 1
    context.hits += done - misses
    context.misses += misses
    return done


def _show_large(context: Context, raw: bytes, out: list[bytes]) -> int:
    """Answer a large value without copying it, unless a large one stands in `out`; returns how many.

    Only one: the runner's budget for large replies counts the others.
    """
    session = context.session
    length = len(raw) - HEADER_BYTES
    if raw[0] != STRING or length < LARGE_REPLY_BYTES or session.has_large_reply:
        return 0
    value = memoryview(raw)[HEADER_BYTES:]
    out += (b"$%d\r\n" % length, value, CRLF)  # type: ignore[arg-type]  # It is joined or sent.
    session.has_large_reply = True
    return 1


def set_lane(context: Context, commands: list[list[bytes]], start: int, out: list[bytes]) -> int:
    """Do plain SETs from `start` on, which is one, answer them into `out`; returns how many."""
    replica = context.replica
    store = context.store
    memtable = store.memtable
    slots = memtable.slots
    pieces = store.log.pieces
    counters = replica.clocks.own
    actor = replica.clocks.actor
    unsettled = replica.unsettled
    clock = replica.clock
    middles = MIDDLES[context.db]
    hlc = context.now_ms << 16
    if hlc <= clock.last:
        hlc = clock.last + 1
    done = weight_bytes = 0
    name = commands[start][0]
    if context.policies is not None:
        commands = commands[: start + context.policies.plain_count(commands, start)]
    for args in commands[start:] if start else commands:
        try:
            called, key, value = args
        except ValueError:
            break
        if called != name:
            break
        length = len(key)
        if length > KEY_BYTES_MAX or b"{" in key or len(value) > VALUE_BYTES_MAX:
            break
        slot = crc_hqx(key, 0) & 16383
        if slot in unsettled:
            break
        row = xxh3_64_digest(key)[:6] + middles[length] + key
        counters[slot] = counter = counters[slot] + 1
        raw = _pack_header(STRING, actor, counter, hlc) + value
        hlc += 1
        pieces += (ENVELOPE(COMPLETE, slot, len(row), len(raw)), row, raw)
        rows = slots[slot]
        old = rows.get(row)
        rows[row] = raw
        if old is not None:
            weight_bytes += len(raw) - len(old)
        else:
            weight_bytes += len(row) + len(raw) + ENTRY_OVERHEAD_BYTES
            store.forget_below(slot, row)
        out.append(OK_BYTES)
        done += 1
    clock.last = hlc - 1
    memtable.weight_bytes += weight_bytes
    return done
