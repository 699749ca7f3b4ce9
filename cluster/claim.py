"""The claim: the table of preference lists, of every slot in every data centre.

It says who owns what, and is part of the ownership epoch; how it is computed stands in
`cluster/placement.py`. Claims are immutable, equal lists are one tuple, and two claims with the same
table have the same bytes and the same digest.

The bytes, where `vint` is a LEB128 number and `text` is its length as vint and UTF-8:

    u8     format version, 1
    vint   how many data centres, then each in order of its name:
      text   its name
      vint   how many nodes occur, then each as text, in order
      vint   how many runs of slots, then each:
        vint   slots in the run
        vint   length of the list, then each node as vint, an index into the nodes above
    16 B   blake3 of all before

Core: plain data, no I/O.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Final

from blake3 import blake3

from cluster.errors import ClusterError
from cluster.quota import EXCESS_MAX, fair_primaries, fair_shares
from cluster.ring import Member, NodeId
from cluster.slot import SLOT_COUNT, Slot

Preference = tuple[NodeId, ...]

FORMAT_VERSION: Final = 1
DIGEST_BYTES: Final = 16
DATA_CENTRES_MAX: Final = 256
NODES_MAX: Final = 16384  # In one data centre: a node without a slot is of no use.


@dataclass(eq=False)
class ClaimFormatError(ClusterError):
    """These bytes are no claim of a known format. The receiver drops them and asks another node."""

    what: str

    def __str__(self) -> str:
        return f"not a claim: {self.what}"


@dataclass(frozen=True)
class Claim:
    """Preference lists by data centre (in order of name) and slot, the primary first."""

    tables: Mapping[str, tuple[Preference, ...]]

    def __post_init__(self) -> None:
        assert list(self.tables) == sorted(self.tables)
        assert all(len(table) == SLOT_COUNT for table in self.tables.values())

    def preference(self, slot: Slot, data_centre: str | None = None) -> Preference:
        """The owners of a slot in one data centre, or in all, one data centre after the other.

        A data centre without a table owns nothing.
        """
        if data_centre is not None:
            table = self.tables.get(data_centre)
            return table[slot] if table else ()
        return tuple(node for table in self.tables.values() for node in table[slot])

    def owned(self, node: NodeId) -> tuple[Slot, ...]:
        """The slots that a node is a replica of, in order."""
        return tuple(
            slot for table in self.tables.values() for slot, row in enumerate(table) if node in row
        )

    def replica_counts(self, data_centre: str) -> Counter[NodeId]:
        """How many slots each node owns; nodes that own none are absent and count 0."""
        counts: Counter[NodeId] = Counter()
        for row, slot_count in Counter(self.tables.get(data_centre, ())).items():
            for node in row:
                counts[node] += slot_count
        return counts

    def primary_counts(self, data_centre: str) -> Counter[NodeId]:
        """How many slots each node is first for."""
        counts: Counter[NodeId] = Counter()
        for row, slot_count in Counter(self.tables.get(data_centre, ())).items():
            if row:
                counts[row[0]] += slot_count
        return counts

    def runs(self, data_centre: str) -> Iterator[tuple[Slot, Slot, Preference]]:
        """First slot, last slot and list of each run of slots that share one, as CLUSTER SLOTS says it."""
        first = 0
        for row, group in groupby(self.tables.get(data_centre, ())):
            after = first + sum(1 for _ in group)
            yield first, after - 1, row
            first = after

    @cached_property
    def encoded(self) -> bytes:
        """The bytes that an epoch carries."""
        out = bytearray([FORMAT_VERSION])
        _put(out, len(self.tables))
        for name in self.tables:
            nodes = sorted(self.replica_counts(name))
            index_of = {node: index for index, node in enumerate(nodes)}
            runs = list(self.runs(name))
            _put_text(out, name)
            _put(out, len(nodes))
            for node in nodes:
                _put_text(out, node)
            _put(out, len(runs))
            for first, last, row in runs:
                _put(out, last - first + 1)
                _put(out, len(row))
                for node in row:
                    _put(out, index_of[node])
        return bytes(out) + blake3(out).digest(DIGEST_BYTES)

    @property
    def digest(self) -> bytes:
        """16 bytes that name this table: equal exactly if the tables are."""
        return self.encoded[-DIGEST_BYTES:]


def decode(data: bytes) -> Claim:
    """The claim that these bytes encode; `ClaimFormatError` if they are damaged or of a newer format."""
    body = data[:-DIGEST_BYTES]
    if len(data) <= DIGEST_BYTES or blake3(body).digest(DIGEST_BYTES) != data[-DIGEST_BYTES:]:
        raise ClaimFormatError("its digest does not match")
    if body[0] != FORMAT_VERSION:
        raise ClaimFormatError(f"format version {body[0]}, and only {FORMAT_VERSION} is known")
    reader = _Reader(body, 1)
    tables = {}
    for _ in range(reader.number(DATA_CENTRES_MAX)):
        name = reader.text()
        tables[name] = reader.table()
    if reader.offset != len(body) or list(tables) != sorted(tables):
        raise ClaimFormatError("bytes follow its end, or its data centres are not in order")
    return Claim(tables)


@dataclass(frozen=True, slots=True)
class Move:
    """What changes for one slot in one data centre. With nothing gained or lost, only the order does."""

    slot: Slot
    data_centre: str
    gained: Preference
    lost: Preference


def diff(old: Claim, new: Claim) -> list[Move]:
    """What has to happen to come from one claim to the other, by data centre and slot."""
    moves = []
    for name in sorted({*old.tables, *new.tables}):
        for slot in range(SLOT_COUNT):
            before, after = old.preference(slot, name), new.preference(slot, name)
            if before is after or before == after:
                continue
            gained = tuple(node for node in after if node not in before)
            lost = tuple(node for node in before if node not in after)
            moves.append(Move(slot, name, gained, lost))
    return moves


def moved_count(moves: Iterable[Move]) -> int:
    """How many replicas are copied: each node that gains a slot reads it once."""
    return sum(len(move.gained) for move in moves)


@dataclass(frozen=True, slots=True)
class Overload:
    """A node that owns more than the allowed excess over its fair share."""

    node: NodeId
    count: int
    fair: float


@dataclass(frozen=True, slots=True)
class Violations:
    """Where one data centre falls short of what placement promises. All empty: it keeps it."""

    data_centre: str
    short: tuple[Slot, ...]  # Fewer replicas than N and the members allow.
    crowded: tuple[Slot, ...]  # Fewer zones than N and the members' zones allow.
    strangers: tuple[NodeId, ...]  # Own slots, and are no members with weight.
    replicas: tuple[Overload, ...]
    primaries: tuple[Overload, ...]

    def __bool__(self) -> bool:
        return bool(self.short or self.crowded or self.strangers or self.replicas or self.primaries)


def violations(
    claim: Claim, members: Iterable[Member], n_by_dc: Mapping[str, int]
) -> list[Violations]:
    """Check a claim against its members; data centres that keep every promise are left out."""
    everyone = sorted((m for m in members if m.weight), key=lambda m: m.id)
    found = (
        _violations(
            claim, name, [m for m in everyone if m.data_centre == name], n_by_dc.get(name, 0)
        )
        for name in sorted({*claim.tables, *n_by_dc})
    )
    return [each for each in found if each]


def _violations(claim: Claim, name: str, members: Sequence[Member], n: int) -> Violations:
    zone_of = {member.id: member.zone for member in members}
    length = min(n, len(members))
    zones_most = min(length, len({member.zone for member in members}))
    short: list[Slot] = []
    crowded: list[Slot] = []
    for first, last, row in claim.runs(name) if name in claim.tables else [(0, SLOT_COUNT - 1, ())]:
        known = {node for node in row if node in zone_of}
        if len(known) < length:
            short += range(first, last + 1)
        if len({zone_of[node] for node in known}) < zones_most:
            crowded += range(first, last + 1)
    replica_counts, primary_counts = claim.replica_counts(name), claim.primary_counts(name)
    weights = [member.weight for member in members]
    replica_shares = fair_shares(weights, length) if length else []
    primary_shares = fair_primaries(weights) if length else []
    return Violations(
        data_centre=name,
        short=tuple(short),
        crowded=tuple(crowded),
        strangers=tuple(sorted(node for node in replica_counts if node not in zone_of)),
        replicas=tuple(
            Overload(member.id, replica_counts[member.id], float(share))
            for member, share in zip(members, replica_shares, strict=length > 0)
            if replica_counts[member.id] > max(EXCESS_MAX * share, share + 1)
        ),
        primaries=tuple(
            Overload(member.id, primary_counts[member.id], float(share))
            for member, share in zip(members, primary_shares, strict=length > 0)
            if primary_counts[member.id] > max(EXCESS_MAX * share, share + 1)
        ),
    )


def _put(out: bytearray, number: int) -> None:
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)


def _put_text(out: bytearray, text: str) -> None:
    data = text.encode()
    _put(out, len(data))
    out += data


class _Reader:
    """Reads what `Claim.encoded` wrote, and trusts none of it."""

    def __init__(self, data: bytes, offset: int) -> None:
        self._data = data
        self.offset = offset

    def number(self, most: int) -> int:
        value = shift = 0
        while self.offset < len(self._data):
            byte = self._data[self.offset]
            self.offset += 1
            value |= (byte & 127) << shift
            if byte < 128:
                if value > most:
                    raise ClaimFormatError(f"{value} where at most {most} may stand")
                return value
            shift += 7
            if shift > 28:
                raise ClaimFormatError("a number is too long")
        raise ClaimFormatError("it ends too early")

    def text(self) -> str:
        length = self.number(len(self._data) - self.offset - 1)
        data = self._data[self.offset : self.offset + length]
        self.offset += length
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise ClaimFormatError("a name is not UTF-8") from error

    def table(self) -> tuple[Preference, ...]:
        nodes = [self.text() for _ in range(self.number(NODES_MAX))]
        lists: dict[tuple[int, ...], Preference] = {}  # Equal lists become one tuple.
        table: list[Preference] = []
        for _ in range(self.number(SLOT_COUNT)):
            count = self.number(SLOT_COUNT - len(table))
            length = self.number(len(nodes))
            row = tuple(self.number(len(nodes) - 1) for _ in range(length))
            if row not in lists:
                if len(set(row)) < length:
                    raise ClaimFormatError("a node stands twice in a list")
                lists[row] = tuple(nodes[index] for index in row)
            table += [lists[row]] * count
        if len(table) != SLOT_COUNT:
            raise ClaimFormatError(f"it has {len(table)} slots of {SLOT_COUNT}")
        return tuple(table)
