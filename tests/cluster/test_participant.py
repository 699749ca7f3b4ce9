"""The participant: what it takes, refuses, says of its rows, and does with what is malformed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from cluster.clock import SlotClock
from cluster.delta_wire import MalformedDelta, encode_clock, pack_place
from cluster.participant import ANSWERS_MAX, Participant
from cluster.quorum_messages import QUESTION
from cluster.record import STRING, Record, Version, decode, encode, encode_version
from cluster.replica import Replica
from cluster.slot import Row, Slot, row_of, slot_of
from engine.log_format import COMPLETE, ENVELOPE
from engine.store import PageFault, StoreSettings
from tests.sim.disk import SimDisk

NOW_MS = 1_700_000_000_000
SETTINGS = StoreSettings(
    1 << 30, row_cache_bytes=1 << 20, block_cache_bytes=0, log_bytes_max=1 << 30
)
SLOT, ROW = slot_of(b"k"), row_of(0, b"k")
OTHER = row_of(0, b"{k}2")
PLACE, OTHER_PLACE = pack_place(SLOT, ROW), pack_place(SLOT, OTHER)


class Seat:
    """A participant, its answers, and the pages that it waits for."""

    def __init__(self) -> None:
        self.replica = Replica.open(SimDisk(random.Random(1)), SETTINGS, 9)
        self.replica.note(is_complete=True)
        self.answers: list[tuple[str, list[bytes]]] = []
        self.waiting: list[Callable[[], None]] = []
        self.participant = Participant(self.replica, promise=self.promise, fetch=self.fetch)
        self.participant.now_ms = NOW_MS

    def promise(self, peer: str, answer: Sequence[bytes]) -> None:
        self.answers.append((peer, list(answer)))

    def fetch(self, fault: PageFault, then: Callable[[], None]) -> None:
        self.waiting.append(then)

    def tell(self, *message: bytes, peer: str = "a") -> list[list[bytes]]:
        """The answers to a message."""
        self.answers.clear()
        assert self.participant.receive(peer, list(message))
        return [answer for _, answer in self.answers]

    def dots(self, row: Row = ROW) -> set[tuple[int, int]]:
        raw = self.replica.store.get(SLOT, row)
        return set() if raw is None else set(decode(raw).dots)


def raw_of(actor: int, counter: int) -> bytes:
    return encode_version(Version((actor, counter), NOW_MS << 16, STRING, b"v"))


def blob(*deltas: tuple[Row, bytes], slot: Slot = SLOT) -> bytes:
    return b"".join(ENVELOPE(COMPLETE, slot, len(row), len(raw)) + row + raw for row, raw in deltas)


def context(clock: SlotClock) -> bytes:
    packed = encode_clock(clock)
    return SLOT.to_bytes(2, "little") + len(packed).to_bytes(2, "little") + packed


def question(row: Row, dots: bytes) -> bytes:
    return QUESTION(SLOT, len(row), len(dots)) + row + dots


def test_a_write_is_taken() -> None:
    seat = Seat()
    assert seat.tell(b"WRITE", b"1", b"c", b"", blob((ROW, raw_of(5, 1)))) == [[b"ACK", b"1"]]
    assert seat.dots() == {(5, 1)}


def test_a_checked_write_that_had_not_seen_what_is_here_is_refused_with_the_state() -> None:
    seat = Seat()
    seat.tell(b"WRITE", b"1", b"c", b"", blob((ROW, raw_of(5, 1))))
    message = (b"WRITE", b"1", b"c", b"", blob((ROW, raw_of(6, 1)), (OTHER, raw_of(6, 2))))
    ((verb, number, place, state),) = seat.tell(*message, peer="b")
    assert (verb, number, place) == (b"ACK", b"1", PLACE)
    assert decode(state).dots == {(5, 1)}
    assert (seat.dots(), seat.dots(OTHER)) == ({(5, 1)}, {(6, 2)})
    assert not seat.replica.clocks.covers(SLOT, (6, 1))


def test_an_unchecked_one_stays_beside_it() -> None:
    seat = Seat()
    seat.tell(b"WRITE", b"1", b"c", b"", blob((ROW, raw_of(5, 1))))
    assert seat.tell(b"WRITE", b"2", b"u", b"", blob((ROW, raw_of(6, 1)))) == [[b"ACK", b"2"]]
    assert seat.dots() == {(5, 1), (6, 1)}


def test_one_that_had_seen_it_replaces_it() -> None:
    seat = Seat()
    seat.tell(b"WRITE", b"1", b"c", b"", blob((ROW, raw_of(5, 1))))
    seen = context(SlotClock({5: 1}))
    assert seat.tell(b"WRITE", b"2", b"c", seen, blob((ROW, raw_of(6, 1)))) == [[b"ACK", b"2"]]
    assert seat.dots() == {(6, 1)}


def test_of_a_unit_nothing_is_taken_if_a_row_is_refused() -> None:
    seat = Seat()
    seat.tell(b"WRITE", b"1", b"c", b"", blob((ROW, raw_of(5, 1))))
    unit = blob((OTHER, raw_of(6, 1)), (ROW, raw_of(6, 2)))
    ((_, _, place, _),) = seat.tell(b"WRITE", b"2", b"a", b"", unit)
    assert place == PLACE
    assert seat.dots(OTHER) == set()
    assert seat.replica.clocks.clock(SLOT) == SlotClock({5: 1})
    seen = context(SlotClock({5: 1}))
    assert seat.tell(b"WRITE", b"3", b"a", seen, unit) == [[b"ACK", b"3"]]
    assert (seat.dots(), seat.dots(OTHER)) == ({(6, 2)}, {(6, 1)})


def test_a_message_that_comes_twice_is_answered_alike() -> None:
    seat = Seat()
    first = (b"WRITE", b"1", b"c", b"", blob((ROW, raw_of(5, 1))))
    answer = seat.tell(*first)
    seat.tell(b"WRITE", b"1", b"c", context(SlotClock({5: 1})), blob((ROW, raw_of(6, 1))), peer="b")
    assert seat.tell(*first) == answer
    refused = (b"WRITE", b"2", b"c", b"", blob((ROW, raw_of(7, 1))))
    answer = seat.tell(*refused, peer="c")
    assert len(answer[0]) == 4
    assert seat.tell(*refused, peer="c") == answer
    assert seat.dots() == {(6, 1)}


def test_few_answers_are_remembered() -> None:
    seat = Seat()
    for number in range(ANSWERS_MAX + 10):
        seat.tell(b"WRITE", b"%d" % number, b"c", b"", blob((ROW, raw_of(5, number + 1))))
    assert len(seat.participant._answers["a"]) == ANSWERS_MAX


def test_questions() -> None:
    seat = Seat()
    raw = raw_of(5, 1)
    seat.tell(b"WRITE", b"1", b"c", b"", blob((ROW, raw)))
    same = question(ROW, raw[1:17]) + question(OTHER, b"")
    assert seat.tell(b"READ", b"2", same) == [[b"SAME", b"2"]]
    ((verb, number, index, state),) = seat.tell(
        b"READ", b"3", question(OTHER, b"") + question(ROW, b"")
    )
    assert (verb, number, index) == (b"STATES", b"3", b"1")
    assert decode(state).dots == {(5, 1)}
    answer = seat.tell(b"READ", b"4", question(OTHER, raw[1:17]))
    assert answer == [[b"STATES", b"4", b"0", b""]]


def test_an_incomplete_replica_answers_no_questions_and_takes_writes() -> None:
    seat = Seat()
    seat.replica.note(is_complete=False)
    assert seat.tell(b"READ", b"1", question(ROW, b"")) == [[b"NOT", b"1", b"incomplete"]]
    assert seat.tell(b"WRITE", b"2", b"c", b"", blob((ROW, raw_of(5, 1)))) == [[b"ACK", b"2"]]


def test_what_is_undecided_here_is_not_told() -> None:
    seat = Seat()
    seat.replica.write({ROW: (SLOT, STRING, 0, b"mine")}, NOW_MS)
    seat.replica.is_undecided = lambda slot, row: row == ROW
    assert seat.tell(b"READ", b"1", question(ROW, b"")) == [[b"NOT", b"1", b"undecided"]]
    refused = seat.tell(b"WRITE", b"2", b"c", b"", blob((ROW, raw_of(5, 1))))
    assert refused == [[b"ACK", b"2", PLACE, b""]]


def test_a_repair_is_joined() -> None:
    seat = Seat()
    seat.tell(b"WRITE", b"1", b"c", b"", blob((ROW, raw_of(5, 1))))
    whole = encode(Record((Version((6, 1), 9, STRING, b"w"),), ((5, 1), (6, 1))))
    assert seat.tell(b"REPAIR", b"2", PLACE, whole) == [[b"ACK", b"2"]]
    assert seat.dots() == {(6, 1)}


def test_what_is_no_request_is_left_to_others() -> None:
    assert not Seat().participant.receive("a", [b"ACK", b"1"])


MALFORMED = [
    [b"WRITE", b"1"],
    [b"WRITE", b"1", b"c", b"\1", b""],
    [b"WRITE", b"1", b"c", b"\1\0\x09\0", b""],
    [b"WRITE", b"1", b"c", b"", b"x"],
    [b"WRITE", b"1", b"c", b"", blob((ROW, raw_of(0, 1)))],
    [b"WRITE", b"1", b"c", b"", blob((ROW, b"\x20" * 30))],
    [b"REPAIR", b"1", PLACE],
    [b"REPAIR", b"1", PLACE, b""],
    [b"REPAIR", b"1", PLACE, b"\x20\x01"],
    [b"REPAIR", b"1", b"\xff\xff" + ROW, raw_of(5, 1)],
    [b"READ", b"1", b"x"],
    [b"READ", b"1", question(ROW, b"")[:-1]],
    [b"READ", b"1", QUESTION(1 << 15, 0, 0)],
    [b"READ", b"1"],
    [b"READ"],
]


@pytest.mark.parametrize("message", MALFORMED)
def test_malformed_requests_are_typed_errors(message: list[bytes]) -> None:
    seat = Seat()
    with pytest.raises(MalformedDelta):
        seat.participant.receive("a", message)
    assert list(seat.replica.clocks.slots()) == []
    assert seat.answers == []


def test_fuzzed_requests_end_in_an_answer_or_a_typed_error() -> None:
    rng = random.Random(3)
    seat = Seat()
    good = [
        [b"WRITE", b"1", b"c", context(SlotClock({5: 1})), blob((ROW, raw_of(6, 1)))],
        [b"REPAIR", b"1", PLACE, encode(Record((Version((6, 1), 9, STRING),), ((5, 1), (6, 1))))],
        [b"READ", b"1", question(ROW, b"x" * 16)],
    ]
    refused = 0
    for number in range(3000):
        message = list(rng.choice(good))
        message[1] = b"%d" % number
        part = rng.randrange(2, len(message))
        changed = bytearray(message[part] or b"\0")
        for _ in range(rng.randrange(1, 3)):
            changed[rng.randrange(len(changed))] = rng.choice((0, 1, 0x20, 0x7F, 0xFF))
        message[part] = bytes(changed[: rng.randrange(1, len(changed) + 1)])
        try:
            assert seat.participant.receive("a", message)
        except MalformedDelta:
            refused += 1
    assert 500 < refused < 3000
