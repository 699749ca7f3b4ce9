"""LCS: the longest common subsequence of two strings.

The usual table has a number for each pair of positions. Here the positions of one string are the
rows, and a row is an integer with one bit per position of the other string, so that a row is made
from the one above by a handful of operations in C:

    V      row: bit j is 0 where the length grows from position j to j+1
    M      the positions where the other side has this row's byte
    V'  =  (V + (V & M)) | (V & ~M)

The rows are those of the shorter string, which keeps their number, and Python's share of the work,
small. The way back through the table, which tells the subsequence and its ranges, looks in each row
only for the highest position, not above the current one, where the way takes a turn: one mask and
one `bit_length`.

Several subsequences can be the longest. The way back makes Redis' choice, so that the answers are
equal: it takes each match that it meets, and otherwise shortens the first string only if shortening
the second would lose length. Redis' bound on the table's size (four bytes per pair of positions, at
most `proto-max-bulk-len`) is kept too; this table is 32 times smaller.

Core: no I/O. Source: Hyyro, Bit-parallel LCS-length computation revisited (2004).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cluster.record import STRING
from cluster.slot import Key
from respkv.command import Flag, Keys, command
from respkv.context import Context
from respkv.number import integer
from respkv.reply import SYNTAX_ERROR, Reply, ReplyError

NOT_STRINGS: Final = ReplyError("ERR The specified keys must contain string values")
BOTH_ASKED: Final = ReplyError("ERR If you want both the length and indexes, please just use IDX.")
TOO_LARGE: Final = ReplyError(
    "ERR Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len"
)
CELL_BYTES: Final = 4  # Of the table that Redis would allocate.


@dataclass(frozen=True, slots=True)
class Match:
    """A run of bytes that both strings have: offsets of its first byte in each."""

    a: int
    b: int
    length: int


class Table:
    """The lengths of the longest common subsequences of all prefixes of `a` and `b`."""

    def __init__(self, a: bytes, b: bytes) -> None:
        self.is_swapped = len(a) > len(b)  # Then b gives the rows.
        self.down, self.across = (b, a) if self.is_swapped else (a, b)
        full = (1 << len(self.across)) - 1
        backwards = self.across[::-1]  # So that the first position is the lowest bit.
        self.masks = {byte: _positions(backwards, byte) for byte in set(self.down)}
        self.rows = [full]
        row = full
        for byte in self.down:
            both = row & self.masks[byte]
            row = (row + both | row ^ both) & full
            self.rows.append(row)

    @property
    def length(self) -> int:
        return len(self.across) - self.rows[-1].bit_count()

    def matches(self) -> list[Match]:
        """The runs of the longest common subsequence, last one first."""
        found: list[Match] = []
        at = len(self.across)
        for number in range(len(self.down), 0, -1):
            mask = self.masks[self.down[number - 1]]
            turns = (mask | self._turns(number)) & ((1 << at) - 1)
            at = turns.bit_length()
            if not at:
                break
            if mask >> at - 1 & 1:
                at -= 1
                found.append(
                    Match(at, number - 1, 1) if self.is_swapped else Match(number - 1, at, 1)
                )
        return _joined(found)

    def _turns(self, number: int) -> int:
        """Where the way back leaves a row for the one above without a match.

        If the rows are the first string's: where the step across would lose length. If they are
        the second's: where the step up loses none, so that this row and the one above are equal.
        Bits beyond the row mean nothing.
        """
        row = self.rows[number]
        if not self.is_swapped:
            return ~row
        # The lengths of the two rows differ from each place where only this one grows to the next
        # where only the one above grows. As bits, a run of ones is the difference of the powers of
        # two at its ends. If the last run has no end, the difference is negative; the bits of the
        # row are right all the same.
        above = self.rows[number - 1]
        begins, ends = above & ~row, row & ~above
        return ~(ends - begins)


def _positions(text: bytes, byte: int) -> int:
    """An integer with a 1 for each place, last to first, where the text has the byte."""
    table = bytearray(b"0" * 256)
    table[byte] = ord("1")
    return int(text.translate(table) or b"0", 2)


def _joined(found: list[Match]) -> list[Match]:
    """Neighbours as one match. Order is kept: from the end of the strings to their beginning."""
    joined: list[Match] = []
    for match in found:
        last = joined[-1] if joined else None
        if last is not None and last.a == match.a + 1 and last.b == match.b + 1:
            joined[-1] = Match(match.a, match.b, last.length + 1)
        else:
            joined.append(match)
    return joined


@dataclass(slots=True)
class Options:
    """What was asked besides the subsequence itself."""

    is_len: bool = False
    is_idx: bool = False
    is_with_length: bool = False
    length_min: int = 0


def _parse(args: tuple[bytes, ...]) -> Options:
    options = Options()
    rest = iter(args)
    for arg in rest:
        name = arg.upper()
        if name == b"LEN":
            options.is_len = True
        elif name == b"IDX":
            options.is_idx = True
        elif name == b"WITHMATCHLEN":
            options.is_with_length = True
        elif name == b"MINMATCHLEN":
            length = next(rest, None)
            if length is None:
                raise SYNTAX_ERROR
            options.length_min = integer(length)
        else:
            raise SYNTAX_ERROR
    if options.is_len and options.is_idx:
        raise BOTH_ASKED
    return options


@command(
    "LCS", arity=-3, flags=Flag.READONLY, keys=Keys(1, 2, 1, "RO", "ACCESS"),
    since="7.0.0", group="string", complexity="O(N*M) where N and M are the lengths of the strings",
    usage="key1 key2 [LEN] [IDX] [MINMATCHLEN len] [WITHMATCHLEN]",
)  # fmt: skip
def lcs(ctx: Context, key1: Key, key2: Key, *args: bytes) -> Reply:
    """Find the longest common subsequence of two strings, its length, or where its parts stand."""
    found = [ctx.find(key) for key in (key1, key2)]
    if any(version is not None and version.type != STRING for version in found):
        raise NOT_STRINGS
    options = _parse(args)
    a, b = (version.payload if version is not None else b"" for version in found)
    if (len(a) + 1) * (len(b) + 1) * CELL_BYTES > ctx.node.limits.bulk_bytes_max:
        raise TOO_LARGE
    table = Table(a, b)
    if options.is_len:
        return table.length
    matches = table.matches()
    if not options.is_idx:
        return b"".join(a[match.a : match.a + match.length] for match in reversed(matches))
    ranges: list[Reply] = []
    for match in matches:
        if match.length >= options.length_min:
            shown: list[Reply] = [_range(match.a, match.length), _range(match.b, match.length)]
            ranges.append([*shown, match.length] if options.is_with_length else shown)
    return {b"matches": ranges, b"len": table.length}


def _range(start: int, length: int) -> Reply:
    return [start, start + length - 1]
