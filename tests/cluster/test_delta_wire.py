"""Places, entries and clocks as messages and the log hold them, and damaged ones. Deltas: `test_replica_deltas.py`."""

from __future__ import annotations

import random

import pytest

from cluster.clock import SlotClock
from cluster.delta_wire import (
    MalformedDelta,
    decode_clock,
    encode_clock,
    entries_of,
    pack_place,
    unpack_place,
)
from cluster.participant import decode_contexts
from cluster.record import HEADER_BYTES
from cluster.slot import SLOT_COUNT, row_of
from engine.log_format import COMPLETE, ENVELOPE
from tests.cluster.test_replica_deltas import damaged

ROW = row_of(0, b"key")


def test_a_place_is_its_slot_and_its_row() -> None:
    for slot in (0, 1, SLOT_COUNT - 1):
        assert unpack_place(pack_place(slot, ROW)) == (slot, ROW)
    for packed in (pack_place(SLOT_COUNT, ROW), pack_place(1, ROW[:6]), b""):
        with pytest.raises(MalformedDelta):
            unpack_place(packed)


def test_entries_of_a_blob_cut_anywhere() -> None:
    raws = [bytes([number]) * (HEADER_BYTES + number) for number in range(4)]
    entries = [(COMPLETE, 7 + number, ROW + b"%d" % number, raw) for number, raw in enumerate(raws)]
    parts = [
        ENVELOPE(flags, slot, len(row), len(raw)) + row + raw for flags, slot, row, raw in entries
    ]
    blob = b"".join(parts)
    ends = {len(b"".join(parts[:count])): count for count in range(len(parts) + 1)}
    for length in range(len(blob) + 1):
        if length in ends:
            assert list(entries_of(blob[:length])) == entries[: ends[length]]
        else:
            with pytest.raises(MalformedDelta):
                list(entries_of(blob[:length]))


def test_malformed_clocks_and_contexts() -> None:
    rng = random.Random(2)
    clock = encode_clock(SlotClock({5: 3, 6: 1}, {(5, 9)}))
    packed = (17).to_bytes(2, "little") + len(clock).to_bytes(2, "little") + clock
    assert decode_contexts(packed) == {17: SlotClock({5: 3, 6: 1}, {(5, 9)})}
    assert decode_contexts(b"") == {}
    refused = 0
    for _ in range(2000):
        for decoder, data in ((decode_clock, clock), (decode_contexts, packed)):
            try:
                decoder(damaged(rng, data))
            except MalformedDelta:
                refused += 1
    assert refused > 1000
