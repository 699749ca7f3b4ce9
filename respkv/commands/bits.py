"""The bit commands: strings seen as arrays of bits, bit 0 the highest of the first byte.

No loop here goes over the bytes of a value in Python. Counting, searching and combining work on
chunks of a size that keeps memory bounded, with the operations that CPython has in C:
`int.bit_count`, `bytes.startswith`, integers of many thousand bytes.

A command that writes marks the value `raw` and lets it grow to the highest bit that it names, even
where it then changes nothing (BITFIELD with OVERFLOW FAIL), as in Redis. What was so already is not
written again, so that WATCH sees no change.

One deliberate difference: `#offset` times the width of a BITFIELD type is refused when it exceeds
64 bits; Redis lets it wrap around, and writes somewhere else.

Core: no I/O.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Final

from cluster.record import RAW_ENCODING, STRING
from cluster.slot import Key
from respkv.command import Flag, Keys, command
from respkv.commands.strings import CHANGE, READ, Current, current
from respkv.context import Context
from respkv.event_class import GENERIC
from respkv.event_class import STRING as STRING_EVENT
from respkv.number import INT64_MAX, integer
from respkv.reply import SYNTAX_ERROR, WRONG_TYPE, Reply, ReplyError

BAD_OFFSET: Final = ReplyError("ERR bit offset is not an integer or out of range")
BAD_BIT: Final = ReplyError("ERR bit is not an integer or out of range")
NOT_A_BIT: Final = ReplyError("ERR The bit argument must be 1 or 0.")
NOT_ONE_SOURCE: Final = ReplyError("ERR BITOP NOT must be called with a single source key.")
BAD_OVERFLOW: Final = ReplyError("ERR Invalid OVERFLOW type specified")
ONLY_GET: Final = ReplyError("ERR BITFIELD_RO only supports the GET subcommand")
BAD_TYPE: Final = ReplyError(
    "ERR Invalid bitfield type. Use something like i16 u8."
    " Note that u64 is not supported but i64 is."
)

CHUNK_BYTES: Final = 1 << 18
BLANK_CHUNKS: Final = (
    bytes(CHUNK_BYTES),
    b"\xff" * CHUNK_BYTES,
)  # Without a bit of 1; without a bit of 0.
EMBEDDED_BYTES_MAX: Final = 44  # A longer string is `raw` without being marked so.
INVERTED: Final = bytes(255 - byte for byte in range(256))
NEW: Final[Current] = (b"", 0, False)


def bit_offset(ctx: Context, arg: bytes, error: ReplyError = BAD_OFFSET) -> int:
    """The offset of a bit that a string may have."""
    offset = integer(arg, error)
    if offset < 0 or offset >> 3 >= ctx.node.limits.bulk_bytes_max:
        raise error
    return offset


def store(ctx: Context, key: Key, new: bytes, found: Current) -> None:
    """Write a value that was changed in place, unless nothing about it has changed."""
    old, expire_at_ms, is_raw = found
    if ctx.notifies and new != old:
        ctx.notify_put(STRING_EVENT, b"setbit", key)
    if new != old or not (is_raw or len(old) > EMBEDDED_BYTES_MAX):
        ctx.put_string(key, new, expire_at_ms=expire_at_ms, encoding=RAW_ENCODING)


# Single bits


@command(
    "SETBIT", arity=4, flags=Flag.WRITE | Flag.DENYOOM, keys=CHANGE,
    since="2.2.0", group="bitmap", complexity="O(1)", usage="key offset value:integer",
)  # fmt: skip
def setbit(ctx: Context, key: Key, offset: bytes, value: bytes) -> Reply:
    """Set or clear a bit of a string, which grows if needed, and answer what the bit was."""
    at, shift = divmod(bit_offset(ctx, offset), 8)
    bit = integer(value, BAD_BIT)
    if bit not in (0, 1):
        raise BAD_BIT
    found = current(ctx, key) or NEW
    old = found[0]
    mask = 0x80 >> shift
    byte = old[at] if at < len(old) else 0
    was = bool(byte & mask)
    if was == bit and at < len(old):
        store(ctx, key, old, found)
        return bit
    view = memoryview(old)
    changed = bytes((byte | mask if bit else byte & ~mask,))
    store(
        ctx,
        key,
        b"".join((view[:at], bytes(max(at - len(old), 0)), changed, view[at + 1 :])),
        found,
    )
    return int(was)


@command(
    "GETBIT", arity=3, flags=Flag.READONLY | Flag.FAST, keys=READ,
    since="2.2.0", group="bitmap", complexity="O(1)", usage="key offset",
)  # fmt: skip
def getbit(ctx: Context, key: Key, offset: bytes) -> Reply:
    """Read a bit of a string; bits beyond its end are 0."""
    at, shift = divmod(bit_offset(ctx, offset), 8)
    value = ctx.string(key) or b""
    return value[at] >> 7 - shift & 1 if at < len(value) else 0


# Counting and searching


def _is_bit_unit(unit: bytes) -> bool:
    name = unit.upper()
    if name not in (b"BIT", b"BYTE"):
        raise SYNTAX_ERROR
    return name == b"BIT"


def _bit_range(length: int, start: int, end: int, *, is_bits: bool) -> tuple[int, int]:
    """The first and the last bit of a range of bits or of bytes.

    Negative offsets count from the end. The range is empty if the first bit lies behind the last.
    """
    size = length * 8 if is_bits else length
    start = max(start + size, 0) if start < 0 else start
    end = max(end + size, 0) if end < 0 else end
    end = min(end, size - 1)
    return (start, end) if is_bits else (start * 8, end * 8 + 7)


def count_bits(value: bytes, first: int, last: int) -> int:
    """How many of the bits from first to last are 1."""
    if first > last:
        return 0
    start, stop = first >> 3, (last >> 3) + 1
    view = memoryview(value)
    count = sum(
        int.from_bytes(view[at : min(at + CHUNK_BYTES, stop)], "little").bit_count()
        for at in range(start, stop, CHUNK_BYTES)
    )
    # The edges were counted as whole bytes.
    count -= (value[start] >> 8 - (first & 7)).bit_count()
    count -= (value[stop - 1] & (0x7F >> (last & 7))).bit_count()
    return count


def find_bit(value: bytes, bit: int, first: int, last: int) -> int:
    """The position of the first 0 or 1 among the bits from first to last, or -1."""
    start, stop = first >> 3, (last >> 3) + 1
    flip = 0 if bit else 0xFF
    if start < stop and first & 7:
        hits = (value[start] ^ flip) & (0xFF >> (first & 7))
        if hits:
            return _checked(start * 8 + 8 - hits.bit_length(), last)
        start += 1
    blank = BLANK_CHUNKS[1 - bit]
    while start < stop:
        if stop - start > CHUNK_BYTES and value.startswith(blank, start):
            start += CHUNK_BYTES
            continue
        chunk = value[start : min(start + CHUNK_BYTES, stop)]
        rest = chunk.lstrip(blank[:1])
        if rest:
            at = start + len(chunk) - len(rest)
            return _checked(at * 8 + 8 - (rest[0] ^ flip).bit_length(), last)
        start += len(chunk)
    return -1


def _checked(position: int, last: int) -> int:
    return position if position <= last else -1


@command(
    "BITCOUNT", arity=-2, flags=Flag.READONLY, keys=READ,
    since="2.6.0", group="bitmap", complexity="O(N)", usage="key [start end [BYTE | BIT]]",
)  # fmt: skip
def bitcount(ctx: Context, key: Key, *args: bytes) -> Reply:
    """Count the bits of a string that are 1, in all of it or between two offsets."""
    value = ctx.string(key)
    if value is None:  # Before any look at the arguments, as in Redis 7.0.
        return 0
    if not args:
        return count_bits(value, 0, len(value) * 8 - 1)
    if len(args) not in (2, 3):
        raise SYNTAX_ERROR
    start, end = integer(args[0]), integer(args[1])
    if start < 0 and end < 0 and start > end:
        return 0
    is_bits = len(args) == 3 and _is_bit_unit(args[2])
    return count_bits(value, *_bit_range(len(value), start, end, is_bits=is_bits))


@command(
    "BITPOS", arity=-3, flags=Flag.READONLY, keys=READ,
    since="2.8.7", group="bitmap", complexity="O(N)", usage="key bit [start [end [BYTE | BIT]]]",
)  # fmt: skip
def bitpos(ctx: Context, key: Key, bit: bytes, *args: bytes) -> Reply:
    """Find the first bit of a string that is 0, or that is 1, in all or a part of it."""
    wanted = integer(bit)
    if wanted not in (0, 1):
        raise NOT_A_BIT
    value = ctx.string(key)
    if value is None:  # An endless row of zeros; the arguments are not looked at, as in Redis 7.0.
        return -wanted
    if len(args) > 3:
        raise SYNTAX_ERROR
    start = integer(args[0]) if args else 0
    is_bits = len(args) == 3 and _is_bit_unit(args[2])
    end = integer(args[1]) if len(args) > 1 else -1
    first, last = _bit_range(len(value), start, end, is_bits=is_bits)
    if first > last:
        return -1
    found = find_bit(value, wanted, first, last)
    if found < 0 and not wanted and len(args) < 2:
        return last + 1  # Without an end, zeros follow the string.
    return found


# Combining


OPERATIONS: Final[dict[bytes, Callable[[int, int], int]]] = {
    b"AND": operator.and_,
    b"OR": operator.or_,
    b"XOR": operator.xor,
}


def combine(operation: Callable[[int, int], int], sources: list[bytes]) -> bytes:
    """Bit by bit; shorter sources are continued by zeros."""
    length = max(map(len, sources))

    def chunks() -> Iterator[bytes]:
        for at in range(0, length, CHUNK_BYTES):
            stop = min(at + CHUNK_BYTES, length)
            # Little endian, so that what a shorter source lacks are the highest, zero bytes.
            numbers = (int.from_bytes(source[at:stop], "little") for source in sources)
            yield reduce(operation, numbers).to_bytes(stop - at, "little")

    return b"".join(chunks())


@command(
    "BITOP", arity=-4, flags=Flag.WRITE | Flag.DENYOOM,
    keys=(Keys(2, 2, 1, "OW", "UPDATE"), Keys(3, -1, 1, "RO", "ACCESS")),
    since="2.6.0", group="bitmap", complexity="O(N)", usage="operation destkey key [key ...]",
)  # fmt: skip
def bitop(ctx: Context, operation: bytes, target: Key, *keys: Key) -> Reply:
    """Combine strings bit by bit (AND, OR, XOR, NOT) and store the result at a key."""
    name = operation.upper()
    if name == b"NOT":
        if len(keys) != 1:
            raise NOT_ONE_SOURCE
    elif name not in OPERATIONS:
        raise SYNTAX_ERROR
    sources = [ctx.string(key) or b"" for key in keys]
    is_there = ctx.exists(target)
    result = (
        combine(OPERATIONS[name], sources) if name in OPERATIONS else sources[0].translate(INVERTED)
    )
    if ctx.notifies and (result or is_there):
        if result:
            ctx.notify_put(STRING_EVENT, b"set", target)
        else:
            ctx.notify(GENERIC, b"del", target)
    if result:
        ctx.put_string(target, result, encoding=RAW_ENCODING)
    elif is_there:
        ctx.remove(target)
    return len(result)


# Integers of any width


@dataclass(frozen=True, slots=True)
class Field:
    """An integer among the bits: where it stands, how wide it is, whether it has a sign."""

    offset: int
    bits: int
    is_signed: bool

    @property
    def minimum(self) -> int:
        return -(1 << self.bits - 1) if self.is_signed else 0

    @property
    def maximum(self) -> int:
        return (1 << self.bits - 1) - 1 if self.is_signed else (1 << self.bits) - 1

    @property
    def bytes_end(self) -> int:
        """How long the string must be to hold it."""
        return (self.offset + self.bits + 7) >> 3

    def wrap(self, number: int) -> int:
        """The lowest bits of a number, read as this type."""
        number &= (1 << self.bits) - 1
        return number - (1 << self.bits) if number > self.maximum else number

    def _window(self, value: bytes | bytearray) -> tuple[int, int]:
        """The bytes that the field touches as one integer, and how many bits of it follow the field."""
        start, end = self.offset >> 3, self.bytes_end
        window = value[start:end].ljust(end - start, b"\0")
        return int.from_bytes(window, "big"), end * 8 - self.offset - self.bits

    def read(self, value: bytes | bytearray) -> int:
        """Bits beyond the end of the string are 0."""
        window, below = self._window(value)
        return self.wrap(window >> below)

    def write(self, value: bytearray, number: int) -> None:
        window, below = self._window(value)
        mask = (1 << self.bits) - 1
        window = window & ~(mask << below) | (number & mask) << below
        start, end = self.offset >> 3, self.bytes_end
        value[start:end] = window.to_bytes(end - start, "big")


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of BITFIELD: GET, SET or INCRBY, with what to do on OVERFLOW (WRAP, SAT, FAIL)."""

    name: bytes
    field: Field
    number: int
    overflow: bytes

    def apply(self, value: bytearray) -> int | None:
        """Do it, and answer what the client hears."""
        old = self.field.read(value)
        if self.name == b"GET":
            return old
        if self.name == b"INCRBY":
            new = old + self.number
        else:
            # An unsigned field takes a negative number for the large one with the same 64 bits.
            new = self.number if self.field.is_signed else self.number & 0xFFFFFFFFFFFFFFFF
        if not self.field.minimum <= new <= self.field.maximum:
            if self.overflow == b"FAIL":
                return None
            if self.overflow == b"WRAP":
                new = self.field.wrap(new)
            else:
                # Redis' check of a number to SET takes it for too large where its distance from the
                # maximum exceeds 64 bits. What it stores is data, so it is the same here.
                beyond = new - self.field.maximum
                is_large = beyond > 0 or (self.name == b"SET" and -beyond > INT64_MAX)
                new = self.field.maximum if is_large else self.field.minimum
        self.field.write(value, new)
        return new if self.name == b"INCRBY" else old


ARGUMENT_COUNTS: Final = {b"GET": 2, b"SET": 3, b"INCRBY": 3, b"OVERFLOW": 1}


def _field(ctx: Context, kind: bytes, offset: bytes) -> Field:
    """From `u8` or `i16`, and an offset in bits or, with `#`, in fields."""
    is_signed = kind[:1] == b"i"
    if kind[:1] not in (b"i", b"u"):
        raise BAD_TYPE
    bits = integer(kind[1:], BAD_TYPE)
    if not 1 <= bits <= (64 if is_signed else 63):
        raise BAD_TYPE
    if offset[:1] != b"#":
        return Field(bit_offset(ctx, offset), bits, is_signed)
    position = integer(offset[1:], BAD_OFFSET) * bits
    if position > INT64_MAX:
        raise BAD_OFFSET
    return Field(bit_offset(ctx, b"%d" % position), bits, is_signed)


def _operations(ctx: Context, args: tuple[bytes, ...]) -> list[Operation]:
    operations = []
    overflow = b"WRAP"
    at = 0
    while at < len(args):
        name = args[at].upper()
        count = ARGUMENT_COUNTS.get(name)
        if count is None or at + count >= len(args):
            raise SYNTAX_ERROR
        if name == b"OVERFLOW":
            overflow = args[at + 1].upper()
            if overflow not in (b"WRAP", b"SAT", b"FAIL"):
                raise BAD_OVERFLOW
        else:
            field = _field(ctx, args[at + 1], args[at + 2])
            number = integer(args[at + 3]) if count == 3 else 0
            operations.append(Operation(name, field, number, overflow))
        at += 1 + count
    return operations


@command(
    "BITFIELD", arity=-2, flags=Flag.WRITE | Flag.DENYOOM,
    keys=Keys(1, 1, 1, "RW", "ACCESS", "UPDATE", "VARIABLE_FLAGS"),
    since="3.2.0", group="bitmap", complexity="O(1) for each subcommand specified",
    usage="key [GET encoding offset | [OVERFLOW <WRAP | SAT | FAIL>]"
    " <SET encoding offset value:integer | INCRBY encoding offset increment>"
    " [GET encoding offset | [OVERFLOW <WRAP | SAT | FAIL>]"
    " <SET encoding offset value:integer | INCRBY encoding offset increment> ...]]",
)  # fmt: skip
def bitfield(ctx: Context, key: Key, *args: bytes) -> Reply:
    """Read, write and increment integers of any width at any bit of a string."""
    operations = _operations(ctx, args)
    writes = [operation.field.bytes_end for operation in operations if operation.name != b"GET"]
    if not writes:
        return _read_fields(ctx, key, operations)
    found = current(ctx, key) or NEW
    value = bytearray(found[0])
    value.extend(bytes(max(max(writes) - len(value), 0)))
    replies: list[Reply] = [operation.apply(value) for operation in operations]
    store(ctx, key, bytes(value), found)
    return replies


@command(
    "BITFIELD_RO", arity=-2, flags=Flag.READONLY | Flag.FAST, keys=READ,
    since="6.0.0", group="bitmap", complexity="O(1) for each subcommand specified",
    usage="key [GET encoding offset [GET encoding offset ...]]",
)  # fmt: skip
def bitfield_ro(ctx: Context, key: Key, *args: bytes) -> Reply:
    """Read integers of any width at any bit of a string."""
    operations = _operations(ctx, args)
    if any(operation.name != b"GET" for operation in operations):
        raise ONLY_GET
    return _read_fields(ctx, key, operations)


def _read_fields(ctx: Context, key: Key, operations: list[Operation]) -> Reply:
    found = ctx.find(key)
    if found is not None and found.type != STRING:
        raise WRONG_TYPE
    value = found.payload if found is not None else b""
    return [operation.field.read(value) for operation in operations]
