"""Gossip: the join's laws, each rule by hand, then whole clusters over a bad network in virtual time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from statistics import median

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import gossip as module
from cluster.gossip import (
    DECLARATION_STEP,
    Contact,
    Gossip,
    GossipSettings,
    Member,
    UnknownMember,
)
from cluster.gossip_message import (
    COUNT_MAX,
    MEMBER_COUNT_MAX,
    Answer,
    Digest,
    HostPort,
    InvalidProfile,
    MalformedGossip,
    OtherCluster,
    Profile,
    Statement,
    Status,
    check_of,
    decode_answer,
    decode_digest,
    decode_profile,
    encode,
    encode_profile,
)
from cluster.member_event import (
    DuplicateName,
    Event,
    Incompatible,
    MemberChanged,
    MemberJoined,
    MemberLeft,
    MemberRecovered,
    MemberRestarted,
    MemberSuspected,
    MemberUp,
    TableFull,
)
from tests.cluster.statements import profile, statement

replace = msgspec.structs.replace


def node(
    name: str = "a",
    incarnation: int = 1,
    *,
    said: Profile | None = None,
    settings: GossipSettings | None = None,
) -> Gossip:
    return Gossip("blue", name, incarnation, said or profile(name), settings)


def hear(gossip: Gossip, *statements: Statement, now_s: float = 0.0) -> list[Event]:
    return gossip.merge(Answer("blue", statements), now_s)


def beat(gossip: Gossip, statement: Statement, now_s: float) -> list[Event]:
    """A heartbeat without a body, as in a digest."""
    return hear(gossip, replace(statement, body=b""), now_s=now_s)


def exchange(a: Gossip, b: Gossip, now_s: float = 0.0) -> list[Event]:
    """One whole round, over the wire's encoding."""
    digest = decode_digest(encode(a.digest(now_s)))
    events = b.merge(digest, now_s)
    answer = decode_answer(encode(b.answer(digest, now_s)))
    events += a.merge(answer, now_s)
    events += b.merge(decode_answer(encode(a.tell(answer.wanted, now_s))), now_s)
    return events


def view(gossip: Gossip, now_s: float = 0.0) -> dict[str, Statement]:
    """Everything that is known, as it would be told."""
    return {
        m.name: m.statement(now_s, with_body=True) for m in (gossip.me, *gossip.members.values())
    }


def ageless(gossip: Gossip) -> dict[str, Statement]:
    """The same but for how old tombstones are: that travels with digests only, one way a round."""
    return {name: replace(said, age_s=0) for name, said in view(gossip).items()}


# The laws of the join.

BODIES = [encode_profile(profile(zone=zone, status=status)) for zone in "xy" for status in Status]
# Few values, so that all kinds of ties occur. Only a tombstone has an age, and less than half its life.
statements = st.builds(
    lambda name, incarnation, version, heartbeat, body, age_s: Statement(
        name,
        incarnation,
        version,
        check_of(body),
        heartbeat,
        age_s if decode_profile(body).status is Status.LEFT else 0,
        body,
    ),
    st.sampled_from("bc"),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 3),
    st.sampled_from(BODIES),
    st.integers(0, 5),
)
messages = st.lists(statements, max_size=4)


def table(*heard: Iterable[Statement]) -> dict[str, Statement]:
    gossip = node()
    for message in heard:
        hear(gossip, *message)
    return view(gossip)


@given(a=messages, b=messages, c=messages)
def test_merge_is_associative_commutative_and_idempotent(
    a: list[Statement], b: list[Statement], c: list[Statement]
) -> None:
    ab = [s for s in table(a, b).values() if s.name != "a"]
    bc = [s for s in table(b, c).values() if s.name != "a"]
    assert table(ab, c) == table(a, bc) == table(a, b, c)
    assert table(a, b) == table(b, a)
    assert table(a, a) == table(a)
    assert table(a, ab) == table(ab)


@given(heard=messages, order=st.randoms(use_true_random=False))
def test_the_order_within_a_message_means_nothing(heard: list[Statement], order: Random) -> None:
    shuffled = list(heard)
    order.shuffle(shuffled)
    assert table(heard) == table(shuffled)


@given(a=messages, b=messages)
def test_one_exchange_makes_two_tables_equal(a: list[Statement], b: list[Statement]) -> None:
    left, right = node("l"), node("r")
    hear(left, *a)
    hear(right, *b)
    exchange(left, right)
    assert ageless(left) == ageless(right)
    assert not left.answer(right.digest(0), 0).statements
    assert not left.answer(right.digest(0), 0).wanted


# The rules, by hand.


def test_the_higher_incarnation_wins_wholly() -> None:
    a = node()
    hear(a, statement(incarnation=2, version=1, heartbeat=0))
    assert hear(a, statement(incarnation=1, version=9, heartbeat=99)) == []
    assert (a.members["b"].incarnation, a.members["b"].heartbeat) == (2, 0)
    assert hear(a, statement(incarnation=3)) == [MemberRestarted("b", 2, 3)]


def test_the_higher_version_wins_and_keeps_the_higher_heartbeat() -> None:
    a = node()
    hear(a, statement(version=1, heartbeat=50))
    old, new = profile(), profile(zone="z2")
    assert hear(a, statement(version=2, heartbeat=40, said=new)) == [MemberChanged("b", old, new)]
    assert hear(a, statement(version=1, heartbeat=60)) == []
    member = a.members["b"]
    assert (member.version, member.heartbeat, member.profile.zone) == (2, 60, "z2")


def test_a_change_of_load_is_no_event() -> None:
    a = node()
    hear(a, statement(version=1))
    assert hear(a, statement(version=2, said=replace(profile(), load={"cpu": 0.5}))) == []
    assert a.members["b"].profile.load == {"cpu": 0.5}


def test_two_bodies_of_one_version_converge() -> None:
    left, right = node("l"), node("r")
    down, gone = (profile(status=s) for s in (Status.DOWN, Status.LEFT))
    hear(left, statement(version=7, said=down))
    hear(right, statement(version=7, said=gone))
    exchange(left, right)
    assert view(left)["b"] == view(right)["b"]
    assert left.members["b"].status is Status.LEFT


def test_joining_and_coming_up_are_told_once() -> None:
    a, b = node("a"), node("b", said=profile("b", Status.JOINING))
    assert MemberJoined("b") in exchange(b, a)
    assert not exchange(b, a)
    b.change(profile("b", Status.UP))
    assert exchange(b, a) == [MemberUp("b")]
    assert not exchange(b, a)


def test_a_usual_round_carries_no_bodies() -> None:
    a, b = node("a"), node("b")
    exchange(a, b)
    a.begin(1, Random(1))
    b.begin(1, Random(1))
    digest = a.digest(1)
    b.merge(digest, 1)
    answer = b.answer(digest, 1)
    assert [(s.name, s.body) for s in answer.statements] == [("b", b"")]
    assert answer.wanted == ()
    assert b.members["a"].heartbeat == 1  # Already the digest told it.
    a.merge(answer, 1)
    assert a.members["b"].heartbeat == 1


def test_a_beat_of_an_unknown_incarnation_changes_nothing() -> None:
    a = node()
    assert beat(a, statement(), 0) == []
    assert a.members == {}
    hear(a, statement(incarnation=1, heartbeat=5))
    before = view(a)
    assert beat(a, statement(incarnation=2, heartbeat=9), 0) == []
    assert view(a) == before
    assert a.answer(Digest("blue", (replace(statement(incarnation=2), body=b""),)), 0).wanted == (
        "b",
    )


def test_silence_is_suspected_and_a_heartbeat_recovers() -> None:
    a = node()
    for i in range(30):
        hear(a, statement(heartbeat=i), now_s=i)
        assert a.tick(i) == []
    assert a.live() == ["b"]
    (suspected,) = a.tick(60)
    assert isinstance(suspected, MemberSuspected)
    assert suspected.phi >= 8
    assert a.tick(61) == []
    assert a.live() == []
    assert "b" in a.members
    assert beat(a, statement(heartbeat=30), 62) == [MemberRecovered("b")]
    assert a.is_live("b")


def test_a_repeated_heartbeat_is_no_sign_of_life() -> None:
    a = node()
    for i in range(60):
        hear(a, statement(heartbeat=7), now_s=i)
    assert [type(event) for event in a.tick(60)] == [MemberSuspected]


def test_a_suspicion_is_told_to_nobody() -> None:
    a = node()
    hear(a, statement())
    before = encode(a.digest(100)), encode(a.answer(Digest("blue", ()), 100))
    a.tick(100)
    assert not a.is_live("b")
    assert (encode(a.digest(100)), encode(a.answer(Digest("blue", ()), 100))) == before


def test_a_refused_connection_suspects_at_once() -> None:
    a = node()
    hear(a, statement(heartbeat=1))
    assert a.mark_unreachable("b", 0.1) == [MemberSuspected("b", float("inf"))]
    assert a.mark_unreachable("b", 0.1) == []
    assert a.mark_unreachable("nobody", 0.1) == []
    assert a.tick(0.2) == []
    assert beat(a, statement(heartbeat=2), 1) == [MemberRecovered("b")]


def test_a_pause_of_this_process_suspects_nobody() -> None:
    a = node()
    hear(a, statement())
    a.observe_local_pause(100)
    assert a.tick(101) == []


def test_a_sign_of_life_ends_a_suspicion_and_watches_no_stranger() -> None:
    a = node()
    hear(a, statement())
    assert [type(event) for event in a.tick(100)] == [MemberSuspected]
    assert a.sign_of_life("b", 100) == [MemberRecovered("b")]
    assert a.tick(101) == []
    assert [type(event) for event in a.tick(120)] == [MemberSuspected]
    assert a.sign_of_life("nobody", 100) == []
    hear(a, statement(version=2, said=profile(status=Status.LEFT)))
    assert a.sign_of_life("b", 130) == []
    assert "nobody" not in a.members


def test_a_restart_ends_a_suspicion() -> None:
    a = node()
    hear(a, statement(incarnation=1))
    a.tick(100)
    said = profile(status=Status.JOINING)
    events = hear(a, statement(incarnation=2, said=said), now_s=101)
    assert events == [
        MemberRestarted("b", 1, 2),
        MemberChanged("b", profile(), said),
        MemberRecovered("b"),
    ]
    assert a.is_live("b")


def test_a_declaration_is_refuted_by_whom_it_declares_dead() -> None:
    a, b, c = node("a"), node("b"), node("c")
    for x, y in ((a, b), (b, c), (c, a)):
        exchange(x, y)
    old = a.members["b"].profile
    assert a.declare("b", Status.DOWN, 0) == [
        MemberChanged("b", old, replace(old, status=Status.DOWN))
    ]
    assert not a.is_live("b")
    exchange(a, c)
    assert c.members["b"].status is Status.DOWN
    exchange(c, b)
    assert b.me.status is Status.UP
    assert b.me.version == 1 + DECLARATION_STEP + 1
    exchange(b, c)
    assert exchange(c, a) == [MemberUp("b")]
    assert a.is_live("b")


def test_a_declaration_stands_above_changes_that_its_author_has_not_heard() -> None:
    a, b, c = node("a"), node("b"), node("c")
    exchange(a, b)
    for load in range(10):
        b.change(replace(b.me.profile, load={"cpu": float(load)}))
    exchange(b, c)  # b dies with what only c knows.
    a.declare("b", Status.LEFT, 0)
    exchange(a, c)
    assert c.members["b"].status is a.members["b"].status is Status.LEFT


def test_only_deaths_of_others_are_declared() -> None:
    a = node()
    with pytest.raises(UnknownMember):
        a.declare("b", Status.DOWN, 0)
    with pytest.raises(ValueError, match="down or gone"):
        a.declare("b", Status.UP, 0)


def test_down_is_never_removed() -> None:
    a = node(settings=GossipSettings(tombstone_s=100))
    hear(a, statement(said=profile(status=Status.DOWN)), statement("c"))
    a.tick(1e7)
    assert sorted(a.members) == ["b", "c"]
    assert a.live() == []


def test_a_member_that_left_is_remembered_for_a_time() -> None:
    a = node(settings=GossipSettings(tombstone_s=100))
    hear(a, statement(version=1))
    assert hear(a, statement(version=2, said=profile(status=Status.LEFT))) == [MemberLeft("b")]
    assert a.live() == []
    assert hear(a, statement(version=1, heartbeat=9), now_s=50) == []  # It does not come back.
    assert a.tick(99) == []
    assert a.members["b"].left_at_s == 0
    assert a.tick(100) == []
    assert a.members == {}


def test_a_member_that_left_is_not_watched_any_more() -> None:
    a = node()
    hear(a, statement(version=1))
    assert [type(event) for event in a.tick(100)] == [MemberSuspected]
    gone = statement(version=2, said=profile(status=Status.LEFT))
    assert hear(a, gone, now_s=100) == [MemberLeft("b")]
    assert not a.members["b"].is_suspect
    assert a.detector.phi("b", 200) == 0
    assert a.tick(200) == []


def test_of_two_ages_of_a_tombstone_the_higher_is_kept() -> None:
    gone = statement(said=profile(status=Status.LEFT))
    for ages in ((10, 30), (30, 10)):
        a = node()
        for age_s in ages:
            hear(a, replace(gone, age_s=age_s), now_s=100)
        assert a.members["b"].left_at_s == 70


def test_a_member_that_left_may_come_again() -> None:
    a = node()
    hear(a, statement(version=2, said=profile(status=Status.LEFT)))
    assert hear(a, statement(incarnation=2), now_s=10) == [MemberJoined("b"), MemberUp("b")]
    assert a.is_live("b")
    assert [type(event) for event in a.tick(100)] == [MemberSuspected]  # And is watched again.


def test_a_tombstone_does_not_go_round_for_ever() -> None:
    """Twenty nodes learn of it at different times; all have forgotten it soon after its life."""
    settings = GossipSettings(tombstone_s=100)
    nodes = [node(f"n{i}", settings=settings) for i in range(20)]
    hear(nodes[0], statement(version=2, said=profile(status=Status.LEFT)))
    rng = Random("tombstone")
    had = []
    for step in range(2400):
        now_s = step * 0.1
        for each in nodes:
            each.tick(now_s)
        x, y = rng.sample(nodes, 2)
        exchange(x, y, now_s)
        had.append(sum("b" in each.members for each in nodes))
    assert max(had) == 20
    assert had[980] == 20
    assert not any(had[1100:])


def test_a_fading_tombstone_is_not_asked_for_nor_offered() -> None:
    settings = GossipSettings(tombstone_s=100)
    a, c = node("a", settings=settings), node("c", settings=settings)
    hear(a, statement(version=2, said=profile(status=Status.LEFT)))
    exchange(a, c, now_s=60)
    assert "b" in a.members
    assert "b" not in c.members
    assert c.answer(a.digest(60), 60).wanted == ()
    assert a.answer(c.digest(60), 60).statements == ()


# Two nodes of one name.


def test_the_older_of_two_namesakes_finds_out_and_does_not_fight() -> None:
    witness = node("w")
    older, younger = node("b", 1), node("b", 2, said=profile("elsewhere"))
    exchange(older, witness)
    assert MemberRestarted("b", 1, 2) in exchange(younger, witness)
    found = DuplicateName("b", 2, profile("elsewhere").addresses)
    assert found in exchange(older, witness)
    assert exchange(older, witness) == []  # Told once.
    assert (older.me.incarnation, older.me.version) == (1, 1)
    assert exchange(younger, witness) == []
    assert witness.members["b"].incarnation == 2


def test_namesakes_of_one_incarnation_find_out_by_the_heartbeat() -> None:
    one, two, witness = node("b"), node("b"), node("w")
    for i in range(5):
        one.begin(i, Random(i))
    two.begin(0, Random(0))
    exchange(one, witness)
    assert DuplicateName("b", 1, None) in exchange(two, witness)
    assert exchange(two, witness) == []


def test_a_node_whose_clock_went_back_takes_a_higher_incarnation() -> None:
    witness = node("w")
    exchange(node("b", 100), witness)
    again = node("b", 50)
    (found,) = (e for e in exchange(again, witness) if isinstance(e, DuplicateName))
    assert found == DuplicateName("b", 100, again.me.profile.addresses)
    again.reincarnate(found.incarnation + 1)
    assert exchange(again, witness) == [MemberRestarted("b", 100, 101)]
    with pytest.raises(ValueError, match="higher"):
        again.reincarnate(101)


def test_what_cannot_be_refuted_is_reported() -> None:
    a = node("a")
    assert hear(a, statement("a", 1, COUNT_MAX)) == [DuplicateName("a", 1, None)]
    assert a.me.version == 1


# Rolling upgrades.


class NewerProfile(Profile, array_like=True, frozen=True):
    """Of a release to come."""

    colour: str = "grey"


def newer(said: Profile, colour: str) -> bytes:
    values = msgspec.structs.asdict(said)
    return msgspec.msgpack.encode(NewerProfile(**values, colour=colour))


def test_unknown_fields_at_the_end_are_ignored_and_passed_on() -> None:
    """b is newer; what a, which is older, passes on to c is still what b wrote."""
    body = newer(profile(), "green")
    said = Statement("b", 1, 1, check_of(body), 0, 0, body)
    a, c = node("a"), node("c")
    assert hear(a, said) == [MemberJoined("b"), MemberUp("b")]
    assert a.members["b"].profile == profile()
    exchange(a, c)
    assert msgspec.msgpack.decode(c.members["b"].body, type=NewerProfile).colour == "green"
    a.declare("b", Status.DOWN, 0)
    declared = msgspec.msgpack.decode(a.members["b"].body, type=NewerProfile)
    assert (declared.status, declared.colour) == (Status.DOWN, "green")


def test_unknown_fields_of_messages_are_ignored() -> None:
    a = node("a")
    hear(a, statement())
    for message, decode in (
        (a.digest(0), decode_digest),
        (a.answer(Digest("blue", ()), 0), decode_answer),
    ):
        fields = msgspec.msgpack.decode(encode(message))
        fields[1] = [[*said, "new", {"of": ["a", "release"]}] for said in fields[1]]
        if isinstance(message, Digest):
            fields.append(())  # What an Answer has there must not confuse it.
        assert decode(msgspec.msgpack.encode([*fields, "new", 1])) == message


def test_an_incompatible_member_is_reported_once_and_not_talked_to() -> None:
    a = node("a", said=profile("a", lowest=1, highest=2))
    far = profile("b", lowest=3, highest=4)
    first = hear(a, statement(said=far))
    assert [type(e) for e in first] == [MemberJoined, MemberUp, Incompatible]
    assert hear(a, statement(version=2, said=replace(far, load={"cpu": 1.0}))) == []
    assert a.begin(0, Random(0)) == []
    assert not a.is_live("b")
    assert "b" in a.members
    hear(a, statement(version=3, said=profile("b", lowest=2, highest=4)))
    assert a.is_live("b")


def test_a_change_of_oneself_changes_whom_one_can_talk_to() -> None:
    a = node("a", said=profile("a", lowest=1, highest=2))
    hear(a, statement("b", said=profile("b", lowest=3, highest=4)), statement("c"))
    assert a.live() == ["c"]
    (found,) = a.change(profile("a", lowest=3, highest=4))
    assert isinstance(found, Incompatible)
    assert found.name == "c"
    assert a.live() == ["b"]


def test_members_that_differ_in_the_claim_of_one_epoch_are_incompatible() -> None:
    def said(name: str, epoch: int, digest: bytes) -> Profile:
        return replace(profile(name), epoch=epoch, epoch_digest=digest)

    a = node("a", said=said("a", 1, b"x"))
    hear(a, statement("b", said=said("b", 1, b"x")), statement("d", said=said("d", 2, b"y")))
    (*_, found) = hear(a, statement("c", said=said("c", 1, b"y")))
    assert isinstance(found, Incompatible)
    assert a.live() == ["b", "d"]


def test_a_capability_is_common_once_every_member_has_it() -> None:
    a = node("a", said=profile("a", capabilities=("hints", "trees")))
    assert a.common_capabilities() == ("hints", "trees")
    hear(a, statement("b", said=profile("b", capabilities=("hints",))))
    hear(a, statement("c", said=profile("c", capabilities=("hints", "trees"))))
    a.mark_unreachable("b", 0)  # Down is still a member.
    assert a.common_capabilities() == ("hints",)
    hear(a, statement("b", version=2, said=profile("b", Status.LEFT, capabilities=("hints",))))
    assert a.common_capabilities() == ("hints", "trees")


# Malformed input, and bounds.


def with_field(index: int, value: object) -> bytes:
    fields = msgspec.msgpack.decode(encode_profile(profile()))
    fields[index] = value
    return msgspec.msgpack.encode(fields)


BAD_BODIES = {
    "no MessagePack": b"\xc1",
    "cut": encode_profile(profile())[:-3],
    "trailing bytes": encode_profile(profile()) + b"\0",
    "no array": msgspec.msgpack.encode({"status": 1}),
    "unknown status": with_field(0, 5),
    "empty host": with_field(1, ["", 1, 1, 1]),
    "long host": with_field(1, ["h" * 256, 1, 1, 1]),
    "port": with_field(1, ["h", 1, 1, 65536]),
    "long zone": with_field(2, "z" * 65),
    "negative weight": with_field(4, -0.5),
    "weight is no number": with_field(4, float("nan")),
    "versions": with_field(5, [3, 2]),
    "unsorted capabilities": with_field(6, ["b", "a"]),
    "a capability twice": with_field(6, ["a", "a"]),
    "too many capabilities": with_field(6, [f"{i:03}" for i in range(65)]),
    "infinite load": with_field(8, {"cpu": float("inf")}),
    "too much load": with_field(8, {f"l{i}": 1.0 for i in range(17)}),
    "negative actor": with_field(9, [-1]),
    "too many actors": with_field(9, list(range(17))),
    "epoch": with_field(10, COUNT_MAX + 1),
    "long digest": with_field(11, bytes(65)),
    "no UTF-8": encode_profile(profile()).replace(b"z1", b"\xff\xff"),
}


@pytest.mark.parametrize("case", BAD_BODIES)
def test_a_bad_body_changes_nothing(case: str) -> None:
    body = BAD_BODIES[case]
    a = node("a")
    hear(a, statement("b"))
    before = view(a)
    bad = Statement("c", 1, 1, check_of(body), 1, 0, body)
    with pytest.raises(MalformedGossip):
        hear(a, statement("d"), statement("b", 2), bad, statement("a", 9))
    assert view(a) == before


def test_a_body_that_does_not_match_its_check_changes_nothing() -> None:
    a = node("a")
    with pytest.raises(MalformedGossip, match="check"):
        hear(a, statement("d"), replace(statement("b"), check=1))
    assert a.members == {}


def test_another_cluster_changes_nothing() -> None:
    a, red = node("a"), Gossip("red", "a", 9, profile("a"))
    for call in (
        partial(a.merge, red.digest(0), 0),
        partial(a.merge, red.tell(("a",), 0), 0),
        partial(a.answer, red.digest(0), 0),
    ):
        with pytest.raises(OtherCluster):
            call()
    assert a.members == {}


@given(raw=st.binary(max_size=60), at=st.integers(0, 400), byte=st.integers(0, 255))
def test_nothing_but_typed_errors_comes_out(raw: bytes, at: int, byte: int) -> None:
    b = node("b")
    hear(b, statement("c"))
    whole = bytearray(encode(b.tell(("b", "c"), 0)))
    whole[at % len(whole)] = byte
    for damaged in (raw, bytes(whole), bytes(whole[: at % len(whole)])):
        a = node("a")
        before = view(a)
        if not is_taken(a, damaged):
            assert view(a) == before


def is_taken(gossip: Gossip, raw: bytes) -> bool:
    try:
        gossip.merge(decode_answer(raw), 0)
    except (MalformedGossip, OtherCluster):
        return False
    return True


def test_a_full_table_ignores_newcomers_and_says_so() -> None:
    a = node("a", settings=GossipSettings(member_count_max=3))
    hear(a, statement("b"), statement("c"))
    assert hear(a, statement("d"), statement("e"), statement("b", 2)) == [
        MemberRestarted("b", 1, 2),
        TableFull(2),
    ]
    assert sorted(a.members) == ["b", "c"]
    assert a.answer(Digest("blue", (replace(statement("d"), body=b""),)), 0).wanted == ()


def full_table() -> Gossip:
    a = node("a" * 64)
    huge = profile("h" * 200, capabilities=tuple(f"{i:060}" for i in range(20)))
    for i in range(MEMBER_COUNT_MAX - 1):
        hear(a, statement(f"{i:064}", 2**64 - 1, COUNT_MAX, COUNT_MAX, said=huge))
    assert len(a.members) == MEMBER_COUNT_MAX - 1
    return a


def test_a_full_table_is_told_in_messages_that_are_not_too_long() -> None:
    a, empty = full_table(), node("z")
    digest = decode_digest(encode(a.digest(1e9)))
    assert len(digest.statements) == MEMBER_COUNT_MAX
    everything = encode(empty.answer(digest, 0))
    assert decode_answer(everything).wanted == tuple(s.name for s in digest.statements)
    rounds = 0
    while len(empty.members) < MEMBER_COUNT_MAX - 1:
        before = len(empty.members)
        exchange(empty, a)
        assert len(empty.members) > before
        rounds += 1
    assert rounds > 3


def test_an_answer_that_was_full_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats of all move in every round; nobody's may starve behind those that come first."""
    monkeypatch.setattr(module, "ANSWER_BYTES_MAX", 600)
    a, b = node("a"), node("b")
    everybody = [statement(f"n{i:02}") for i in range(40)]
    hear(a, *everybody)
    hear(b, *everybody)
    heard: set[str] = set()
    for round_ in range(1, 10):
        for said in everybody:
            beat(a, replace(said, heartbeat=round_), round_)
        answer = a.answer(b.digest(round_), round_)
        b.merge(answer, round_)
        assert len(encode(answer)) <= 600 + 20
        heard.update(said.name for said in answer.statements)
    assert len(heard) == 41


@pytest.mark.parametrize(
    "change",
    [
        {"zone": "z" * 65},
        {"weight": -1.0},
        {"capabilities": ("b", "a")},
        {"load": {"no spaces": 1.0}},
    ],
)
def test_a_wrong_configuration_is_found_at_once(change: dict[str, object]) -> None:
    a = node("a")
    with pytest.raises((InvalidProfile, ValueError)):
        a.change(replace(profile("a"), **change))
    assert a.me.version == 1
    with pytest.raises(InvalidProfile):
        node("no spaces")


# Whom to talk to.


def chosen(gossip: Gossip, rounds: int = 2000) -> dict[tuple[Contact, ...], int]:
    rng = Random("chosen")
    counts: dict[tuple[Contact, ...], int] = {}
    for i in range(rounds):
        contacts = tuple(gossip.begin(i, rng))
        counts[contacts] = counts.get(contacts, 0) + 1
    return counts


def contact(name: str) -> Contact:
    return Contact(name, (f"{name}.example", 16379))


def test_alone_a_node_talks_to_its_seeds_and_not_to_itself() -> None:
    seeds = (("a.example", 16379), ("s.example", 1), ("t.example", 1))
    counts = chosen(node("a", settings=GossipSettings(seeds=seeds)))
    assert sorted(counts, key=str) == [(Contact(None, seed),) for seed in seeds[1:]]
    assert min(counts.values()) > 800
    assert chosen(node("a")) == {(): 2000}


def test_each_round_has_a_live_peer_and_sometimes_a_lost_one_or_a_seed() -> None:
    seed = ("s.example", 1)
    a = node("a", settings=GossipSettings(seeds=(seed,)))
    hear(a, *(statement(name) for name in "bcdef"))
    hear(a, statement("gone", said=profile("gone", Status.LEFT)))
    hear(a, statement("down", said=profile("down", Status.DOWN)))
    a.mark_unreachable("b", 0)
    counts: dict[Contact, int] = {}
    for contacts, count in chosen(a, 5000).items():
        assert contacts[0] in [contact(name) for name in "cdef"]
        for each in contacts:
            counts[each] = counts.get(each, 0) + count
    assert contact("gone") not in counts
    for name in "cdef":
        assert counts[contact(name)] == pytest.approx(5000 / 4, rel=0.15)
    for name in ("b", "down"):  # Two of them, to four that are live.
        assert counts[contact(name)] == pytest.approx(5000 * 2 / 5 / 2, rel=0.15)
    assert counts[Contact(None, seed)] == pytest.approx(5000 / 6, rel=0.15)


def test_without_a_live_peer_seeds_and_lost_ones_are_tried() -> None:
    seed = ("s.example", 1)
    a = node("a", settings=GossipSettings(seeds=(seed,)))
    hear(a, statement("b"))
    a.mark_unreachable("b", 0)
    assert chosen(a) == {(contact("b"), Contact(None, seed)): 2000}


def test_a_seed_that_was_chosen_by_name_is_not_talked_to_twice() -> None:
    a = node("a", settings=GossipSettings(seeds=(("b.example", 16379),)))
    hear(a, statement("b"))
    assert chosen(a) == {(contact("b"),): 2000}


# Whole clusters, over a network that loses, delays and cuts.


@dataclass
class Network:
    """Nodes in one loop, in virtual time. Everything is drawn from the seed."""

    seed: str
    loss: float = 0.0
    delay_s: float = 0.005
    period_s: float = 1.0
    nodes: dict[str, Gossip] = field(default_factory=dict)
    # Whether a message from the first to the second is lost for sure.
    is_cut: Callable[[str, str], bool] = lambda a, b: False
    events: list[tuple[float, str, Event]] = field(default_factory=list)
    trace: list[tuple[float, str, str, bytes]] = field(default_factory=list)
    message_bytes: int = 0
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.rng = Random(f"network-{self.seed}")
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._names: dict[HostPort, str] = {}
        self._lives = itertools.count(1)

    def start(self, name: str, incarnation: int, said: Profile, seeds: Iterable[str]) -> Gossip:
        settings = GossipSettings(seeds=tuple(profile_address(seed) for seed in seeds))
        gossip = Gossip("blue", name, incarnation, said, settings)
        self.nodes[name] = gossip
        self._names[profile_address(name)] = name
        rng = Random(f"{name}-{incarnation}-{self.seed}")
        self._at(rng.uniform(0, self.period_s), partial(self._round, name, gossip, rng))
        return gossip

    def stop(self, name: str) -> None:
        del self.nodes[name]

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass. Returns whether `until` came true, which is looked at ten times a second."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            stop_s = min(self.now_s + 0.1, end_s)
            while self._queue and self._queue[0][0] <= stop_s:
                self.now_s, _, action = heapq.heappop(self._queue)
                action()
            self.now_s = stop_s
            if until():
                return True
        return False

    def is_converged(self) -> bool:
        """Everybody knows everybody's present version."""
        expected = {(g.me.name, g.me.incarnation, g.me.version) for g in self.nodes.values()}
        return all(expected <= set(map(identity, known_to(g))) for g in self.nodes.values())

    def seen(self, kind: type[Event], since_s: float = 0.0) -> list[tuple[float, str, Event]]:
        return [
            entry for entry in self.events if isinstance(entry[2], kind) and entry[0] >= since_s
        ]

    def _at(self, after_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now_s + after_s, next(self._sequence), action))

    def _round(self, name: str, gossip: Gossip, rng: Random) -> None:
        if self.nodes.get(name) is not gossip:
            return
        self._note(name, gossip.tick(self.now_s))
        for each in gossip.begin(self.now_s, rng):
            target = self._names.get(each.address)
            if target is not None:
                self._send(name, target, encode(gossip.digest(self.now_s)), self._on_digest)
        self._at(self.period_s * rng.uniform(0.95, 1.05), partial(self._round, name, gossip, rng))

    def _on_digest(self, source: str, gossip: Gossip, raw: bytes) -> None:
        digest = decode_digest(raw)
        self._note(gossip.me.name, gossip.merge(digest, self.now_s))
        answer = gossip.answer(digest, self.now_s)
        self._send(gossip.me.name, source, encode(answer), self._on_answer)

    def _on_answer(self, source: str, gossip: Gossip, raw: bytes) -> None:
        answer = decode_answer(raw)
        self._note(gossip.me.name, gossip.merge(answer, self.now_s))
        if answer.wanted:
            told = gossip.tell(answer.wanted, self.now_s)
            self._send(gossip.me.name, source, encode(told), self._on_answer)

    def _send(
        self, source: str, target: str, raw: bytes, take: Callable[[str, Gossip, bytes], None]
    ) -> None:
        self.message_bytes += len(raw)
        if self.is_cut(source, target) or self.rng.random() < self.loss:
            return

        def deliver() -> None:
            gossip = self.nodes.get(target)
            if gossip is not None:
                self.trace.append((self.now_s, source, target, raw))
                take(source, gossip, raw)

        self._at(self.rng.expovariate(1 / self.delay_s), deliver)

    def _note(self, name: str, events: list[Event]) -> None:
        self.events += [(self.now_s, name, event) for event in events]


def profile_address(name: str) -> HostPort:
    return f"{name}.example", 16379


def known_to(gossip: Gossip) -> list[Member]:
    return [gossip.me, *gossip.members.values()]


def identity(member: Member) -> tuple[str, int, int]:
    return member.name, member.incarnation, member.version


def cluster_of(
    count: int, seed: str, *, loss: float = 0.0, delay_s: float = 0.005, seed_count: int = 2
) -> Network:
    network = Network(seed, loss, delay_s)
    names = [f"n{i:02}" for i in range(count)]
    for name in names:
        network.start(name, 1, profile(name), names[:seed_count])
    return network


@pytest.mark.parametrize(("count", "rounds_max"), [(5, 10), (50, 25)])
@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_a_cluster_finds_itself_and_a_change_gets_around(
    count: int, rounds_max: int, loss: float
) -> None:
    finding, spreading = [], []
    for seed in range(3):
        network = cluster_of(count, f"find-{seed}", loss=loss)
        assert network.run(60, network.is_converged)
        finding.append(network.now_s)
        start_s = network.now_s
        network.nodes["n03"].change(replace(profile("n03"), load={"cpu": 1.0}))
        assert network.run(60, network.is_converged)
        spreading.append(network.now_s - start_s)
    print(
        f"{count} nodes, loss {loss:.0%}: all know all after {max(finding):.1f} rounds, "
        f"a change is known to all after {max(spreading):.1f}"
    )
    assert max(finding) <= rounds_max
    assert max(spreading) <= rounds_max


@pytest.mark.parametrize(
    ("count", "loss", "delay_s", "suspicions_max"),
    [(5, 0.0, 0.005, 0), (5, 0.05, 0.1, 1), (30, 0.0, 0.2, 1), (30, 0.05, 0.1, 3)],
)
def test_jitter_and_loss_make_few_false_suspicions(
    count: int, loss: float, delay_s: float, suspicions_max: int
) -> None:
    network = cluster_of(count, f"false-{count}-{loss}", loss=loss, delay_s=delay_s)
    network.run(20)
    network.message_bytes = 0
    seconds = 1200 if count == 5 else 120
    network.run(seconds)
    falsely = network.seen(MemberSuspected)
    pair_hours = count * (count - 1) * seconds / 3600
    print(
        f"{count} nodes, loss {loss:.0%}, mean delay {delay_s} s: {len(falsely)} false suspicions in "
        f"{pair_hours:.1f} pair-hours, {network.message_bytes / seconds / count:.0f} B/s a node"
    )
    assert len(falsely) <= suspicions_max


@pytest.mark.parametrize(("count", "loss"), [(5, 0.0), (5, 0.1), (30, 0.0), (30, 0.1)])
def test_a_dead_node_is_found_out_in_seconds(count: int, loss: float) -> None:
    times: list[float] = []
    for seed in range(3 if count == 5 else 1):
        network = cluster_of(count, f"dead-{seed}", loss=loss, delay_s=0.05)
        network.run(60)
        died_s = network.now_s
        network.stop("n03")
        network.run(40)
        first: dict[str, float] = {}
        for at_s, observer, event in network.seen(MemberSuspected, died_s):
            if isinstance(event, MemberSuspected) and event.name == "n03":
                first.setdefault(observer, at_s - died_s)
        assert len(first) == count - 1  # Each of the others.
        assert all("n03" in gossip.members for gossip in network.nodes.values())
        times += first.values()
    print(
        f"{count} nodes, loss {loss:.0%}: dead node suspected after {median(times):.1f} s "
        f"(median), {max(times):.1f} s (last)"
    )
    assert median(times) < 10
    assert max(times) < 15


def test_a_cut_in_one_direction_suspects_nobody_whom_others_still_hear() -> None:
    network = cluster_of(5, "one-way")
    network.run(30)
    network.is_cut = lambda a, b: (a, b) == ("n01", "n02")
    network.run(120)
    assert network.seen(MemberSuspected) == []


def test_a_partition_suspects_the_other_side_and_heals() -> None:
    network = cluster_of(6, "halves", seed_count=1)
    network.run(30)
    network.is_cut = lambda a, b: (a < "n03") != (b < "n03")
    network.run(60)
    for name, gossip in network.nodes.items():
        side = [other for other in network.nodes if (other < "n03") == (name < "n03")]
        assert sorted([name, *gossip.live()]) == side
        assert len(gossip.members) == 5
    # Each side changes meanwhile, and hears of the other afterwards.
    network.nodes["n00"].change(profile("n00", zone="z2"))
    network.nodes["n05"].change(profile("n05", zone="z2"))
    network.is_cut = lambda a, b: False
    assert network.run(
        20,
        lambda: all(len(g.live()) == 5 for g in network.nodes.values()) and network.is_converged(),
    )


def test_a_restart_is_noticed_by_all_without_a_suspicion() -> None:
    network = cluster_of(5, "restart", loss=0.05)
    network.run(30)
    network.stop("n02")
    network.run(1)
    network.start("n02", 2, profile("n02"), ["n00"])
    network.run(20)
    restarted = [name for _, name, _ in network.seen(MemberRestarted)]
    assert sorted(restarted) == ["n00", "n01", "n03", "n04"]
    assert network.is_converged()


def test_a_false_declaration_is_refuted_across_the_cluster() -> None:
    network = cluster_of(5, "declared", loss=0.1)
    network.run(20)
    for author in ("n00", "n01"):  # Two operators at once, who disagree.
        status = Status.DOWN if author == "n00" else Status.LEFT
        network._note(author, network.nodes[author].declare("n03", status, network.now_s))
    assert network.nodes["n03"].me.version == 1
    network.run(20)
    assert network.nodes["n03"].me.version > DECLARATION_STEP
    assert network.is_converged()
    assert all(g.is_live("n03") for g in network.nodes.values())


def test_a_namesake_is_reported_and_the_cluster_keeps_calm() -> None:
    network = cluster_of(5, "namesake")
    network.run(20)
    older = network.nodes["n02"]
    network.nodes["old n02"] = older  # It goes on under another key of the simulation.
    network._names["old.example", 16379] = "old n02"
    rng = Random("namesake")
    network._at(0.5, partial(network._round, "old n02", older, rng))
    network.start("n02", 2, profile("elsewhere"), ["n00"])
    network._names[profile_address("elsewhere")] = "n02"
    network.run(60)
    assert [e for _, _, e in network.seen(DuplicateName)] == [
        DuplicateName("n02", 2, profile("elsewhere").addresses)
    ]
    assert len(network.seen(MemberRestarted)) == 4  # Once each: they do not take turns.


def test_a_rolling_upgrade_never_splits_the_cluster() -> None:
    """From versions 1 to 2 by way of 2 to 3, one node at a time, each with a new incarnation."""
    network = Network("upgrade", loss=0.05)
    names = [f"n{i:02}" for i in range(5)]
    releases = [(1, 2, ("hints",)), (2, 3, ("hints", "trees"))]
    for release, (lowest, highest, capabilities) in enumerate(releases, 1):
        for name in names:
            if name in network.nodes:
                network.stop(name)
            said = profile(name, lowest=lowest, highest=highest, capabilities=capabilities)
            network.start(name, release, said, names[:2])
            network.run(10)
            is_last = (release, name) == (2, names[-1])
            if release == 2:
                has_trees = ["trees" in g.common_capabilities() for g in network.nodes.values()]
                assert has_trees == [is_last] * 5
    assert network.run(20, network.is_converged)
    assert network.seen(Incompatible) == []
    # A node that missed the upgrade is told so by all, and kept apart.
    network.start("late", 1, profile("late", lowest=1, highest=1), ["n00"])
    network.run(20)
    told = [name for _, name, e in network.seen(Incompatible) if name != "late"]
    assert sorted(told) == names


@pytest.mark.parametrize("loss", [0.1])
def test_a_seed_gives_the_same_run_twice(loss: float) -> None:
    runs = []
    for _ in range(2):
        network = cluster_of(8, "twice", loss=loss)
        network.run(30)
        runs.append((network.trace, network.events))
    assert runs[0] == runs[1]
    assert len(runs[0][0]) > 400
