"""Messages as bytes. Run as a program, this prints what one costs in each direction.

.venv/bin/python -m tests.respkv.test_bus_wire
"""

from __future__ import annotations

import random
import time
import tracemalloc

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.handshake import MESSAGE_BYTES_MAX
from respkv import bus_wire
from respkv.bus_wire import FAST_BYTES_MAX, Decoder, Limits, MalformedMessage, encode

messages_of = st.lists(
    st.lists(st.binary(max_size=20) | st.sampled_from([b"*12345", b"\r\n", b"$1\r\n"]), min_size=1)
)


def admitted(limits: Limits | None = None) -> Decoder:
    decoder = Decoder()
    decoder.admit(Limits() if limits is None else limits)
    return decoder


def feed_bytewise(decoder: Decoder, wire: bytes) -> list[list[bytes]]:
    return [found for byte in wire for found in decoder.feed(bytes([byte]))]


@pytest.mark.parametrize(
    ("message", "wire"),
    [
        ([b"PING"], b"*1\r\n$4\r\nPING\r\n"),
        ([b"A", b""], b"*2\r\n$1\r\nA\r\n$0\r\n\r\n"),
        ([b"A", b"\r\n*1\x00"], b"*2\r\n$1\r\nA\r\n$5\r\n\r\n*1\x00\r\n"),
        ([b"x"] * 12, b"*12\r\n" + b"$1\r\nx\r\n" * 12),
        ([bytes(5000)], b"*1\r\n$5000\r\n" + bytes(5000) + b"\r\n"),
    ],
)
def test_what_is_encoded_is_decoded_whole_and_cut_anywhere(
    message: list[bytes], wire: bytes
) -> None:
    assert encode(message) == encode(tuple(message)) == wire
    assert admitted().feed(wire) == [message]
    assert feed_bytewise(admitted(), wire) == [message]
    for cut in range(1, min(len(wire), 300)):
        decoder = admitted()
        assert decoder.feed(wire[:cut]) + decoder.feed(wire[cut:]) == [message]
        assert decoder.feed(wire) == [message]


@given(messages_of, st.lists(st.integers(1, 60)))
def test_both_ways_give_the_same_however_it_is_cut(
    messages: list[list[bytes]], cuts: list[int]
) -> None:
    data = b"".join(map(encode, messages))
    assert admitted().feed(data) == messages
    slow = Decoder()
    slow.admit(Limits())
    slow._is_early = True  # One at a time, and never by hiredis.
    one_by_one = slow.feed(data)
    while more := slow.feed(b""):
        one_by_one += more
    assert one_by_one == messages
    decoder = admitted()
    found = []
    for size in cuts:
        found += decoder.feed(data[:size])
        data = data[size:]
    assert found + decoder.feed(data) == messages
    assert decoder.buffered_bytes == 0


def test_a_long_chunk_and_a_large_field() -> None:
    messages = [[b"WRITE", b"%d" % number, bytes(number)] for number in range(1000)]
    data = b"".join(map(encode, messages))
    assert len(data) > 4 * FAST_BYTES_MAX
    assert admitted().feed(data) == messages
    pieces = admitted()
    found = []
    for start in range(0, len(data), FAST_BYTES_MAX):
        found += pieces.feed(data[start : start + FAST_BYTES_MAX])
    assert found == messages
    large = [b"ROWS", random.Random(1).randbytes(3 << 20)]
    wire = encode(large)
    decoder = admitted()
    for start in range(0, len(wire), FAST_BYTES_MAX):
        found = decoder.feed(wire[start : start + FAST_BYTES_MAX])
    assert found == [large]


@pytest.mark.parametrize(
    "wire",
    [
        b"PING\r\n",
        b"*0\r\n",
        b"*-1\r\n",
        b"*\r\n",
        b"*+1\r\n$1\r\na\r\n",
        b"*01\r\n$1\r\na\r\n",
        b"*1\r\n$-1\r\n",
        b"*1\r\n:1\r\n",
        b"*1\r\n*1\r\n$1\r\na\r\n",
        b"*1\r\n_\r\n",
        b"*1\r\n-ERR no\r\n",
        b"*1\r\n%1\r\n$1\r\na\r\n$1\r\nb\r\n",
        b"%1\r\n$1\r\na\r\n$1\r\nb\r\n",
        b"*1\r\n$1\r\nab\r\n",
        b"*1\r\n$01\r\na\r\n",
        b"*1\r\n" + b"$" + b"1" * 30,
        b"$3\r\nabc\r\n",
        b":1\r\n",
        b"\r\n",
        bytes(100),
    ],
)
def test_what_is_no_message_is_refused(wire: bytes) -> None:
    for before in (b"", encode([b"PING", b"x"]) * 3):
        with pytest.raises(MalformedMessage):
            admitted().feed(before + wire)
        with pytest.raises(MalformedMessage):
            feed_bytewise(admitted(), before + wire)
        if before:
            assert admitted().feed(before)  # What it left behind is no harm to others.


@pytest.mark.parametrize("kind", list("*~>|%"))
@pytest.mark.parametrize("before", [b"", b"*1\r\n", b"*2\r\n$1\r\na\r\n"])
def test_an_announcement_takes_no_memory(kind: str, before: bytes) -> None:
    wire = before + kind.encode() + b"99999999\r\n"
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            admitted().feed(wire)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_values_that_look_like_announcements_are_values() -> None:
    messages = [[b"WRITE", kind + b"99999999\r\n"] for kind in (b"*", b"~", b">", b"|", b"%")]
    assert admitted().feed(b"".join(map(encode, messages))) == messages


def test_what_hiredis_took_and_no_node_sends_does_not_move_the_boundary() -> None:
    wire = (
        b"*1\r\n+a\r\n" + b"xyz" + encode([b"B"])
    )  # The first is three bytes longer when encoded.
    with pytest.raises(MalformedMessage):
        admitted().feed(wire)


def test_decoders_leave_nothing_to_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_wire, "_SHARED", hiredis.Reader())
    one, other = admitted(), admitted()
    assert one.feed(b"*1\r\n$9\r\n") == []
    # The first nine bytes would do for the other's field.
    assert other.feed(encode([b"A"])) == [[b"A"]]
    assert one.feed(b"123456789\r\n") == [[b"123456789"]]


def test_limits_hold_when_a_length_is_announced() -> None:
    limits = Limits(field_count_max=4, field_bytes_max=100, message_bytes_max=150)
    assert admitted(limits).feed(encode([b"a"] * 4)) == [[b"a"] * 4]
    assert admitted(limits).feed(encode([bytes(100)])) == [[bytes(100)]]
    for wire in (b"*5\r\n", b"*1\r\n$101\r\n", b"*2\r\n$80\r\n" + bytes(80) + b"\r\n$80\r\n"):
        with pytest.raises(MalformedMessage):
            admitted(limits).feed(wire)


def test_before_the_handshake_has_ended_next_to_nothing_is_kept() -> None:
    for wire in (b"*25\r\n", b"*1\r\n$4097\r\n"):
        with pytest.raises(MalformedMessage):
            Decoder().feed(wire)
    decoder = Decoder()
    wire = encode([bytes(4000)] * 24)
    with pytest.raises(MalformedMessage):
        feed_bytewise(decoder, wire)
    assert decoder.buffered_bytes <= MESSAGE_BYTES_MAX
    many = encode([b"A"]) * 10_000  # One is taken at a time.
    with pytest.raises(MalformedMessage):
        Decoder().feed(many)


def test_one_at_a_time_until_the_peer_is_admitted() -> None:
    decoder = Decoder()
    rest = [[b"WRITE", bytes(9000)], [b"ACK", b"*99999"], [b"ACK"]]
    assert decoder.feed(encode([b"A"]) + encode([b"B"]) + b"".join(map(encode, rest))[:9000]) == [
        [b"A"]
    ]
    assert decoder.feed(b"") == [[b"B"]]
    decoder.admit(Limits())
    assert decoder.feed(b"") == []
    assert decoder.feed(b"".join(map(encode, rest))[9000:]) == rest


def measure() -> None:
    rng = random.Random(1)
    for batch in (1, 50):
        messages = [
            [b"WRITE", b"%d" % number, b"u", rng.randbytes(60), rng.randbytes(130)]
            for number in range(batch)
        ]
        data = b"".join(map(encode, messages))
        decoder = admitted()
        for name, step in (
            ("encode", lambda m=messages: b"".join(map(encode, m))),
            ("decode", lambda d=decoder, w=data: d.feed(w)),
            ("decode, cut", lambda d=decoder, w=data: (d.feed(w[:-20]), d.feed(w[-20:]))),
        ):
            count = 20_000 // batch
            best_us = 1e9
            for _ in range(5):
                started_s = time.process_time()
                for _ in range(count):
                    step()
                best_us = min(best_us, (time.process_time() - started_s) * 1e6 / count / batch)
            print(f"batch of {batch:2}, {name:11}: {best_us:.2f} us per message")


if __name__ == "__main__":
    measure()
