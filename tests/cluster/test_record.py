"""The join against causal histories, the encoding both ways, and what the engine is told of records."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.record import (
    CODEC,
    DELETION,
    EXPIRY_HEADER_BYTES,
    HAS_EXPIRY,
    HEADER_BYTES,
    RAW_ENCODING,
    STRING,
    TEXT_ENCODING,
    Record,
    Version,
    decode,
    decode_version,
    encode,
    encode_version,
    join_records,
)
from cluster.slot import row_of
from engine.codec import Fate
from tests.cluster.causal import EXPIRING_MS, NOW_MS, History, Op, Seen

NOTHING = Record(())
Step = tuple[int, Op, int]


def check_pair(history: History, a: Seen, b: Seen) -> None:
    """Both orders are what the union of the histories shows, as records and as bytes."""
    x, y, expected = history.record_of(a), history.record_of(b), history.record_of(a.union(b))
    assert join_records(x, y) == expected
    assert join_records(y, x) == expected
    if x.versions and y.versions:
        assert CODEC.join(encode(x), encode(y)) == encode(expected)


def check_triple(x: Record, y: Record, z: Record) -> None:
    assert join_records(join_records(x, y), z) == join_records(x, join_records(y, z))
    assert join_records(x, y) == join_records(y, x)
    assert join_records(x, x) == x
    assert join_records(x, NOTHING) == x


def all_histories(depth: int) -> Iterator[tuple[History, list[Seen]]]:
    """Each history of two actors, with all states that its replicas went through, the newest last."""
    steps = [(actor, op, 3 - actor) for actor in (1, 2) for op in Op]

    def grow(
        history: History, states: list[Seen], left: int
    ) -> Iterator[tuple[History, list[Seen]]]:
        yield history, states
        if left == 0:
            return
        for actor, op, other in steps:
            branch = history.branch()
            new = branch.do(actor, op, other)
            if new not in states:
                yield from grow(branch, [*states, new], left - 1)

    for op in (
        Op
    ):  # The first step is actor 1's: the other half would be the same with the names changed.
        history = History({1: Seen(), 2: Seen()})
        yield from grow(history, [Seen(), history.do(1, op, 2)], depth - 1)


# The join


def test_the_join_is_the_union_of_histories_for_all_small_ones() -> None:
    count = 0
    for history, states in all_histories(4):
        for other in states:
            check_pair(history, states[-1], other)
            count += 1
    assert count > 10_000


def test_the_laws_hold_for_all_triples_of_small_histories() -> None:
    for history, states in all_histories(3):
        records = [history.record_of(state) for state in states]
        for x, y in itertools.product(records, repeat=2):
            check_triple(x, y, records[-1])


steps = st.tuples(st.integers(1, 3), st.sampled_from(Op), st.integers(1, 3))


@settings(max_examples=300)
@given(script=st.lists(steps, max_size=25), data=st.data())
def test_the_laws_hold_for_long_histories(script: list[Step], data: st.DataObject) -> None:
    history = History({1: Seen(), 2: Seen(), 3: Seen()})
    states = [Seen()] + [history.do(*step) for step in script]
    a, b, c = data.draw(st.tuples(*[st.sampled_from(states)] * 3))
    check_pair(history, a, b)
    check_triple(*map(history.record_of, (a, b, c)))
    for state in states:
        check_pair(history, states[-1], state)


@pytest.mark.parametrize("now_ms", [NOW_MS, EXPIRING_MS])
def test_no_reader_notices_that_the_dead_became_stubs(now_ms: int) -> None:
    """Not even one who joins the stub with what is above or below it."""
    for history, states in all_histories(3):
        dead = history.record_of(states[-1])
        if not dead.versions or dead.winner(now_ms) is not None:
            continue
        stub = decode(CODEC.stub(encode(dead)))
        for other in map(history.record_of, states):
            joined, expected = join_records(stub, other), join_records(dead, other)
            assert joined.winner(now_ms) == expected.winner(now_ms)
            assert joined.dots == expected.dots
            assert joined.context == expected.context


# The encoding


def short(version: Version) -> Record:
    return Record((version,), (version.dot,))


ONE = Version((0x0102030405060708, 2), 3 << 16, STRING, b"value")
FORMS: list[tuple[str, Record, bytes]] = [
    (
        "a string",
        short(ONE),
        b"\x01\x08\7\6\5\4\3\2\1\2\0\0\0\0\0\0\0\0\0\3\0\0\0\0\0value",
    ),
    ("an empty string", short(Version((1, 1), 1, STRING)), b"\1" + b"\1\0\0\0\0\0\0\0" * 3),
    ("a deletion", short(Version((1, 1), 1, DELETION)), b"\0" + b"\1\0\0\0\0\0\0\0" * 3),
    (
        "a string that expires",
        short(Version((1, 1), 1, STRING, b"v", 0x0203)),
        b"\x11" + b"\1\0\0\0\0\0\0\0" * 3 + b"\3\2\0\0\0\0\0\0v",
    ),
    (
        "a string changed in place",
        short(Version((1, 1), 1, STRING, b"v", encoding=RAW_ENCODING)),
        b"\x41" + b"\1\0\0\0\0\0\0\0" * 3 + b"v",
    ),
    (
        "a computed text",
        short(Version((1, 1), 1, STRING, b"v", encoding=TEXT_ENCODING)),
        b"\x81" + b"\1\0\0\0\0\0\0\0" * 3 + b"v",
    ),
    (
        "changed in place, and expires",
        short(Version((1, 1), 1, STRING, b"v", 1, encoding=RAW_ENCODING)),
        b"\x51" + b"\1\0\0\0\0\0\0\0" * 4 + b"v",
    ),
    (
        "a string that has seen another actor",
        Record((Version((1, 1), 1, STRING, b"v"),), ((1, 1), (2, 1))),
        b"\x20\2\0" + (b"\1\0\0\0\0\0\0\0" * 2 + b"\2\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0") + b"\0\0\1\0"
        b"\x1a\0\0\0" + (b"\1" + b"\1\0\0\0\0\0\0\0" * 3 + b"v"),
    ),
    (
        "siblings",
        Record(
            (Version((1, 1), 1, STRING, b"v"), Version((1, 1), 1, DELETION)),
            ((1, 1),),
        ),
        b"\x20\1\0"
        + b"\1\0\0\0\0\0\0\0" * 2
        + b"\0\0\2\0"
        + (b"\x1a\0\0\0\1" + b"\1\0\0\0\0\0\0\0" * 3 + b"v")
        + (b"\x19\0\0\0\0" + b"\1\0\0\0\0\0\0\0" * 3),
    ),
    (
        "a context without versions",
        Record((), ((1, 1),)),
        b"\x20\1\0" + b"\1\0\0\0\0\0\0\0" * 2 + b"\0\0\0\0",
    ),
    (
        "a context with a gap",
        Record((), (), ((1, 1),)),
        b"\x20\0\0\1\0" + b"\1\0\0\0\0\0\0\0" * 2 + b"\0\0",
    ),
    ("nothing", Record(()), b"\x20\0\0\0\0\0\0"),
]


@pytest.mark.parametrize(("name", "record", "raw"), FORMS, ids=[form[0] for form in FORMS])
def test_each_form_both_ways(name: str, record: Record, raw: bytes) -> None:
    assert encode(record) == raw
    assert decode(raw) == record


u64 = st.integers(0, (1 << 64) - 1)
versions = st.builds(
    Version,
    dot=st.tuples(u64, u64),
    hlc=u64,
    type=st.sampled_from([DELETION, STRING]),
    payload=st.binary(max_size=100),
    expire_at_ms=st.just(0) | u64,
    encoding=st.sampled_from((0, RAW_ENCODING, TEXT_ENCODING)),
)
records = st.builds(
    Record,
    versions=st.lists(versions, max_size=4).map(tuple),
    context=st.lists(st.tuples(u64, u64), max_size=4).map(tuple),
    beyond=st.lists(st.tuples(u64, u64), max_size=2).map(tuple),
)


@given(version=versions)
def test_any_version_both_ways(version: Version) -> None:
    raw = encode_version(version)
    assert decode_version(raw) == version
    assert decode(raw) == short(version)
    assert encode(short(version)) == raw
    head = EXPIRY_HEADER_BYTES if version.expire_at_ms else HEADER_BYTES
    assert raw[head:] == version.payload


@given(record=records)
def test_any_record_both_ways(record: Record) -> None:
    assert decode(encode(record)) == record


# The winner


def at(hlc: int, *, actor: int = 1, counter: int = 1, gone: bool = False, ms: int = 0) -> Version:
    return Version((actor, counter), hlc, DELETION if gone else STRING, b"" if gone else b"v", ms)


@pytest.mark.parametrize(
    ("candidates", "winner_no"),
    [
        ([], None),
        ([at(5)], 0),
        ([at(5, gone=True)], None),
        # The highest timestamp wins, ties are broken by actor, then by counter.
        ([at(5), at(9, actor=2)], 1),
        ([at(9), at(5, actor=2)], 0),
        ([at(5, actor=1, counter=9), at(5, actor=2, counter=1)], 1),
        ([at(5, counter=1), at(5, counter=2)], 1),
        # A concurrent deletion has not seen the write, so it does not delete it.
        ([at(5), at(9, actor=2, gone=True)], 0),
        ([at(5, gone=True), at(9, actor=2, gone=True)], None),
        # Expiry hides the version that it belongs to, from that millisecond on.
        ([at(5, ms=NOW_MS)], None),
        ([at(5, ms=NOW_MS + 1)], 0),
        ([at(5, ms=1)], None),
        ([at(5), at(9, actor=2, ms=NOW_MS)], 0),
        ([at(5, ms=NOW_MS), at(9, actor=2, ms=NOW_MS)], None),
        ([at(5), at(9, actor=2, ms=NOW_MS + 1)], 1),
    ],
)
def test_the_winner(candidates: list[Version], winner_no: int | None) -> None:
    expected = None if winner_no is None else candidates[winner_no]
    for order in itertools.permutations(candidates):
        joined = NOTHING
        for version in order:
            # Siblings of one actor exist where it wrote with an older context: no context here.
            joined = join_records(joined, Record((version,)))
        assert joined.winner(NOW_MS) == expected


# What the engine is told

ROW = row_of(5, b"key")


@settings(max_examples=300)
@given(record=records.filter(lambda record: record.versions), now_ms=u64)
def test_the_fate_is_dead_when_no_version_shows(record: Record, now_ms: int) -> None:
    raw = encode(record)
    shows = any(
        v.type == STRING and (v.expire_at_ms == 0 or v.expire_at_ms > now_ms)
        for v in record.versions
    )
    assert CODEC.fate(ROW, raw, now_ms) is (Fate.LIVE if shows else Fate.DEAD)
    assert (record.winner(now_ms) is not None) == shows


@given(record=records.filter(lambda record: record.versions))
def test_a_record_is_live_just_before_its_expiry_and_dead_from_then_on(record: Record) -> None:
    raw = encode(record)
    expires_at_ms = CODEC.expires_at_ms(raw)
    if all(version.type == DELETION for version in record.versions):
        return
    if expires_at_ms == 0:
        assert CODEC.fate(ROW, raw, (1 << 64) - 1) is Fate.LIVE
    else:
        assert CODEC.fate(ROW, raw, expires_at_ms - 1) is Fate.LIVE
        assert CODEC.fate(ROW, raw, expires_at_ms) is Fate.DEAD


@given(record=records.filter(lambda record: record.versions), now_ms=u64)
def test_a_stub_keeps_the_causal_identity_and_nothing_else(record: Record, now_ms: int) -> None:
    stub = CODEC.stub(encode(record))
    left = decode(stub)
    assert left.context == record.context
    assert [(v.dot, v.hlc) for v in left.versions] == [(v.dot, v.hlc) for v in record.versions]
    assert all(v == Version(v.dot, v.hlc, DELETION) for v in left.versions)
    assert CODEC.fate(ROW, stub, now_ms) is Fate.DEAD
    assert CODEC.expires_at_ms(stub) == 0
    assert CODEC.stub(stub) == stub


def test_a_short_stub_is_a_header() -> None:
    raw = encode_version(Version((1, 2), 3, STRING, b"v" * 100, 5000, encoding=RAW_ENCODING))
    assert raw[0] == STRING | HAS_EXPIRY | RAW_ENCODING
    assert CODEC.stub(raw) == encode_version(Version((1, 2), 3, DELETION))
    assert len(CODEC.stub(raw)) == HEADER_BYTES


@pytest.mark.parametrize("db", range(16))
def test_the_tag_is_the_database(db: int) -> None:
    assert CODEC.tag(row_of(db, b"any")) == db
