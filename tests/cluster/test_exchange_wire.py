"""The messages of an exchange: both ways, cut anywhere, and with nonsense in them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.clock import SlotClock
from cluster.delta import joined
from cluster.errors import ClusterError
from cluster.exchange_wire import (
    GROUP_COUNT,
    ClockEntry,
    Clocks,
    Digest,
    ExchangeMessage,
    Gone,
    MalformedExchange,
    Next,
    Rows,
    Same,
    Stop,
    Want,
    check_record,
    decode,
    encode,
    pack_clock,
    unpack_clock,
)
from cluster.record import CODEC, STRING, Record, Version
from cluster.record import encode as encode_record
from cluster.slot import SLOT_COUNT, row_of

FIRST = SlotClock({1: 5, 2**64 - 1: 2**63 - 1}, {(1, 7), (3, 9)})
ROW = row_of(0, b"key")
SHORT = encode_record(Record((Version((1, 2), 3, STRING, b"value"),), ((1, 2),)))
EXPIRING = encode_record(Record((Version((1, 2), 3, STRING, b"", 77),), ((1, 2),)))
LONG = encode_record(
    Record(
        (Version((1, 2), 4, STRING, b"one", 77), Version((2, 1), 3, STRING, b"two")),
        ((1, 2), (2, 1)),
        ((2, 3),),
    )
)
MESSAGES: list[ExchangeMessage] = [
    Digest(1 << 63, True, {0: 5, 127: 2**64 - 1}),
    Digest(0, False, {}),
    Same(7, (0, 1, 8, 127)),
    Clocks(7, (ClockEntry(0, False, pack_clock(FIRST)), ClockEntry(5, True, pack_clock(SlotClock())))),
    Want(2**64 - 1, SLOT_COUNT - 1, FIRST),
    Next(1, 2, 3, 2**32 - 1),
    Rows(1, 2, 3, 0, True, FIRST, ((ROW, SHORT), (ROW, LONG))),
    Rows(1, 2, 3, 4, False, None, ((ROW, EXPIRING),)),
    Rows(1, 2, 3, 1, True, None, ()),
    Stop(1, 2),
    Gone(1, 2),
]  # fmt: skip


def test_the_bytes_are_as_described() -> None:
    assert encode(Digest(1, True, {3: 4})) == [
        b"EXCHANGE.DIGEST",
        b"\1\0\0\0\0\0\0\0\1\3\4\0\0\0\0\0\0\0",
    ]
    assert encode(Same(1, (0, 9))) == [b"EXCHANGE.SAME", b"\1" + bytes(7) + b"\1\2" + bytes(14)]
    assert encode(Next(1, 2, 3, 4)) == [
        b"EXCHANGE.NEXT",
        b"\1" + bytes(7) + b"\2" + bytes(7) + b"\3\0\4\0\0\0",
    ]
    assert pack_clock(SlotClock({2: 3}, {(4, 5)})) == (
        b"\1\0\0\0\1\0\0\0"
        b"\2\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0"
        b"\4\0\0\0\0\0\0\0\5\0\0\0\0\0\0\0"
    )  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_is_encoded_is_decoded(message: ExchangeMessage) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_head_cut_anywhere_is_another_message_or_refused(message: ExchangeMessage) -> None:
    verb, head, *rows = encode(message)
    for size in range(len(head)):
        try:
            found = decode([verb, head[:size], *rows])
        except MalformedExchange:
            continue
        # Only where a list of entries ends.
        assert isinstance(found, Digest | Clocks)
        assert found != message
    if not isinstance(message, Digest):
        with pytest.raises(MalformedExchange):
            decode([verb, head + b"\0", *rows])


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"EXCHANGE.STOP"],
        [b"EXCHANGE.OTHER", b""],
        [b"\xff", b""],
        [*encode(Stop(1, 2)), b""],
        encode(Stop(1, SLOT_COUNT)),
        encode(Gone(1, SLOT_COUNT)),
        encode(Next(1, 1, SLOT_COUNT, 0)),
        encode(Want(1, SLOT_COUNT, FIRST)),
        encode(Rows(1, 2, SLOT_COUNT, 0, True, FIRST, ())),
        encode(Rows(1, 2, 3, 1, True, FIRST, ())),
        encode(Rows(1, 2, 3, 0, True, None, ())),
        encode(Rows(1, 2, 3, 0, True, FIRST, ((b"short", SHORT),))),
        encode(Rows(1, 2, 3, 0, True, FIRST, ((ROW, SHORT),)))[:-1],
        encode(Clocks(1, (ClockEntry(SLOT_COUNT, False, pack_clock(FIRST)),))),
        encode(Clocks(1, (ClockEntry(0, False, b"\xff\xff\xff\xff\0\0\0\0"),))),
        encode(Digest(1, True, {GROUP_COUNT: 1})),
        encode(Digest(1, True, {5: 1, 4: 1})),
        [b"EXCHANGE.DIGEST", bytes(8) + b"\2"],
    ],
    ids=range(19),
)
def test_nonsense_is_refused(parts: list[bytes]) -> None:
    with pytest.raises(MalformedExchange) as raised:
        decode(parts)
    assert isinstance(raised.value, ClusterError)
    assert str(raised.value).startswith("malformed exchange: ")


@pytest.mark.parametrize(
    "packed",
    [
        pack_clock(SlotClock({1: 0})),
        pack_clock(SlotClock({1: 2**63})),
        pack_clock(FIRST) + b"\0",
        b"\2\0\0\0\0\0\0\0" + pack_clock(SlotClock({1: 5}))[8:] * 2,
        b"",
    ],
)
def test_a_clock_that_cannot_be_is_refused(packed: bytes) -> None:
    with pytest.raises(MalformedExchange):
        decode([b"EXCHANGE.WANT", bytes(10) + packed])


@pytest.mark.parametrize("raw", [SHORT, EXPIRING, LONG, CODEC.stub(LONG), CODEC.stub(EXPIRING)])
def test_a_record_that_was_cut_is_refused_before_its_payload(raw: bytes) -> None:
    assert encode_record(check_record(raw)) == raw
    for size in range(len(raw)):
        try:
            record = check_record(raw[:size])
        except MalformedExchange:
            continue
        assert raw == SHORT  # The length of its payload is that of the record.
        assert record.versions[0].dot == (1, 2)


def test_a_record_of_nothing_is_refused() -> None:
    with pytest.raises(MalformedExchange):
        check_record(encode_record(Record((), ((1, 2),))))


@settings(max_examples=300)
@given(st.binary(max_size=120), st.sampled_from([encode(m)[0] for m in MESSAGES]))
def test_any_bytes_give_a_message_or_the_error(data: bytes, verb: bytes) -> None:
    try:
        message = decode([verb, data])
    except MalformedExchange:
        return
    assert decode(encode(message)) == message


def test_changed_bytes_give_a_message_or_the_error() -> None:
    rng = random.Random("wire")
    for raw in (SHORT, LONG, pack_clock(FIRST)):
        for _ in range(2000):
            changed = bytearray(raw)
            changed[rng.randrange(len(raw))] = rng.randrange(256)
            for read in (check_record, unpack_clock):
                try:
                    read(bytes(changed))
                except MalformedExchange:
                    continue


dots = st.tuples(st.integers(1, 3), st.integers(1, 6))


@settings(max_examples=200)
@given(st.frozensets(dots, max_size=9), st.frozensets(dots, max_size=9))
def test_equal_clocks_have_equal_bytes(
    a: frozenset[tuple[int, int]], b: frozenset[tuple[int, int]]
) -> None:
    one = joined(SlotClock(), SlotClock({}, set(a)))
    other = SlotClock()
    for dot in sorted(b, reverse=True):
        other.add(dot)
    assert (pack_clock(one) == pack_clock(other)) == (a == b)
    assert unpack_clock(pack_clock(one)) == one
