"""Messages of gossip: there and back, of other releases, malformed, over their bounds; and who may talk to whom."""

from __future__ import annotations

import msgspec
import pytest

from cluster.gossip_message import (
    BEAT_BYTES_MAX,
    BODY_BYTES_MAX,
    COUNT_MAX,
    MEMBER_COUNT_MAX,
    MESSAGE_BYTES_MAX,
    Answer,
    Beat,
    Digest,
    MalformedGossip,
    Status,
    Terms,
    VersionRange,
    compatible,
    decode_answer,
    decode_beat,
    decode_digest,
    decode_profile,
    encode,
    encode_profile,
    with_status,
)
from tests.cluster.statements import profile, statement

replace = msgspec.structs.replace


def test_what_is_encoded_is_decoded() -> None:
    told = Answer("blue", (statement("b"), statement("c", 3, 4, 5)), ("d", "e"))
    assert decode_answer(encode(told)) == told
    heard = Digest("blue", (replace(statement("b"), body=b""),))
    assert decode_digest(encode(heard)) == heard
    for beat in (Beat(1, 2), Beat(1, 2, 3, 4), Beat(*[COUNT_MAX] * 4)):
        assert decode_beat(encode(beat)) == beat
        assert len(encode(beat)) <= 37


def test_a_message_cut_anywhere_is_refused() -> None:
    whole = encode(Answer("blue", (statement(),), ("d",)))
    for end in range(len(whole)):
        with pytest.raises(MalformedGossip):
            decode_answer(whole[:end])


def test_a_status_is_changed_and_nothing_else() -> None:
    body = msgspec.msgpack.encode([*msgspec.msgpack.decode(encode_profile(profile())), "new"])
    changed = msgspec.msgpack.decode(with_status(body, Status.LEFT))
    assert changed == [int(Status.LEFT), *msgspec.msgpack.decode(body)[1:]]


def test_fields_that_an_older_release_lacks_have_defaults() -> None:
    fields = msgspec.msgpack.decode(encode_profile(profile(capabilities=())))
    assert decode_profile(msgspec.msgpack.encode(fields[:6])) == profile(capabilities=())


@pytest.mark.parametrize(
    ("a", "b", "spoken"),
    [
        ((1, 1), (1, 1), 1),
        ((1, 2), (2, 3), 2),
        ((1, 9), (3, 4), 4),
        ((1, 2), (3, 4), None),
        ((5, 6), (3, 4), None),
    ],
)
def test_the_version_spoken_is_the_highest_of_both(
    a: tuple[int, int], b: tuple[int, int], spoken: int | None
) -> None:
    one, other = Terms("blue", VersionRange(*a)), Terms("blue", VersionRange(*b))
    for verdict in (compatible(one, other), compatible(other, one)):
        if spoken is None:
            assert isinstance(verdict, str)
            assert "upgrade" in verdict
        else:
            assert verdict == spoken


def test_clusters_and_requirements_are_compared() -> None:
    versions = VersionRange(1, 1)
    blue = Terms("blue", versions, ("hints", "trees"), ("hints",))
    assert compatible(blue, blue) == 1
    assert "'red'" in str(compatible(blue, Terms("red", versions, ("hints",))))
    for verdict in (
        compatible(blue, Terms("blue", versions)),
        compatible(Terms("blue", versions), blue),
    ):
        assert isinstance(verdict, str)
        assert "hints" in verdict


BAD_MESSAGES = {
    "empty": b"",
    "no MessagePack": b"\xc1",
    "nested without end": b"\x91" * 100_000,
    "nested where it is ignored": b"\x93\xa4blue\x90" + b"\x91" * 100_000,
    "too long": encode(Digest("b" * (MESSAGE_BYTES_MAX + 1), ())),
    "cluster": encode(Digest("no spaces", ())),
    "too many": encode(Digest("blue", (replace(statement(), body=b""),) * (MEMBER_COUNT_MAX + 1))),
    "name": encode(Digest("blue", (replace(statement(), name="b\n"),))),
    "long name": encode(Digest("blue", (replace(statement(), name="b" * 65),))),
    "negative": encode(Digest("blue", (replace(statement(), version=-1),))),
    "version": encode(Digest("blue", (replace(statement(), version=COUNT_MAX + 1),))),
    "heartbeat": encode(Digest("blue", (replace(statement(), heartbeat=COUNT_MAX + 1),))),
    "body": encode(Digest("blue", (replace(statement(), body=bytes(BODY_BYTES_MAX + 1)),))),
    "a text for a number": encode(Digest("blue", (replace(statement(), incarnation="1"),))),
}


@pytest.mark.parametrize("case", BAD_MESSAGES)
def test_malformed_messages_are_refused(case: str) -> None:
    for decode in (decode_digest, decode_answer):
        with pytest.raises(MalformedGossip):
            decode(BAD_MESSAGES[case])


def test_too_many_wanted_names_are_refused() -> None:
    with pytest.raises(MalformedGossip):
        decode_answer(encode(Answer("blue", (), ("b",) * (MEMBER_COUNT_MAX + 1))))


BAD_BEATS = {
    "empty": b"",
    "no MessagePack": b"\xc1",
    "too long": encode(Beat(1, 2)) + bytes(BEAT_BYTES_MAX),
    "no calendar": msgspec.msgpack.encode([1]),
    "negative": msgspec.msgpack.encode([1, 2, -1, 0]),
    "too large": msgspec.msgpack.encode([COUNT_MAX + 1, 2]),
    "a fraction": msgspec.msgpack.encode([1.5, 2]),
}


@pytest.mark.parametrize("case", BAD_BEATS)
def test_malformed_beats_are_refused(case: str) -> None:
    with pytest.raises(MalformedGossip):
        decode_beat(BAD_BEATS[case])


def test_a_beat_of_a_newer_release_is_understood() -> None:
    assert decode_beat(msgspec.msgpack.encode([1, 2, 3, 4, "new"])) == Beat(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("one", "other", "is_refused"),
    [
        ((1, b"x"), (1, b"x"), False),
        ((1, b"x"), (1, b"y"), True),
        ((1, b"x"), (2, b"y"), False),  # One is behind, and will learn of the later epoch.
        ((1, b"x"), (1, b""), False),
        ((1, b""), (1, b""), False),
    ],
)
def test_one_epoch_has_one_claim(
    one: tuple[int, bytes], other: tuple[int, bytes], is_refused: bool
) -> None:
    a, b = (Terms("blue", VersionRange(1, 1), (), (), *said) for said in (one, other))
    for verdict in (compatible(a, b), compatible(b, a)):
        assert isinstance(verdict, str) is is_refused
        assert not is_refused or "epoch 1" in str(verdict)
