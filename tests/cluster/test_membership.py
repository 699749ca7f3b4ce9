"""Membership: whole clusters over broken connections, then each rule by hand.

Times are seconds of virtual time; those measured are printed with `pytest -s`.
"""

from __future__ import annotations

import msgspec
import pytest

from cluster.gossip_message import (
    Answer,
    Beat,
    Digest,
    Statement,
    Status,
    Terms,
    VersionRange,
    check_of,
    decode_beat,
    encode,
    encode_profile,
)
from cluster.member_event import (
    ClockBack,
    ClockOff,
    DuplicateName,
    Event,
    GossipRefused,
    Incompatible,
    MemberChanged,
    MemberRecovered,
    MemberRestarted,
    MemberSuspected,
    PeerReachable,
    PeerUnreachable,
)
from cluster.membership import (
    ANSWER,
    BEAT,
    DIGEST,
    PAST_COUNT_MAX,
    TELL,
    MembershipSettings,
)
from tests.cluster.bus import Bus, Host, QuietTopology, infos

replace = msgspec.structs.replace


def cluster_of(count: int, seed: str, *, delay_s: float = 0.002) -> Bus:
    """All of them, started a quarter of a second after each other, and settled for half a minute."""
    bus = Bus(seed, delay_s)
    nodes = infos(count)
    for node in nodes:
        bus.start(node.name, nodes)
        bus.run(0.25)
    bus.run(30)
    assert bus.is_whole()
    return bus


def times_until(bus: Bus, peer: str, seconds: float) -> dict[str, float]:
    """How long it takes each host to find a peer unreachable."""
    since_s = bus.now_s
    bus.run(seconds)
    return {
        name: at - since_s
        for name, host in bus.hosts.items()
        for at, event in reversed(host.seen(PeerUnreachable, since_s=since_s))
        if isinstance(event, PeerUnreachable) and event.name == peer
    }


# Whole clusters.


def test_nobody_is_reachable_before_anything_was_heard() -> None:
    nodes = infos(3)
    bus = Bus("alone")
    host = bus.start("n01", nodes)
    assert host.reachable == []
    assert host.membership.obstacle("n02") == "it refuses connections"
    bus.run(5)
    assert host.reachable == []
    assert host.seen(PeerReachable) == []
    assert host.membership.topology.changes == 2


def test_a_cluster_comes_up_within_a_second() -> None:
    bus = Bus("up")
    nodes = infos(5)
    for node in nodes:
        bus.start(node.name, nodes)
    assert bus.run(1, bus.is_whole)
    print(f"5 nodes: all reach all after {bus.now_s:.3f} s")
    assert bus.now_s < 0.1  # The first messages of a connection are enough.
    bus.run(60)
    for host in bus.hosts.values():
        assert [type(e) for _, e in host.seen(PeerUnreachable, MemberSuspected)] == []
        assert len(host.seen(PeerReachable)) == 4
        assert host.membership.version_with("n05" if host.name != "n05" else "n04") == 2
        assert host.membership.common_capabilities() == ("hints",)


def test_a_hundred_nodes_converge() -> None:
    bus = Bus("hundred")
    nodes = infos(100)
    for node in nodes:
        bus.start(node.name, nodes, kind=QuietTopology)
    assert bus.run(3, bus.is_whole)
    print(f"100 nodes: all reach all after {bus.now_s:.3f} s")
    for name in ("n07", "n77"):
        membership = bus.hosts[name].membership
        membership.change(replace(membership.profile, load={"cpu": 0.5}), bus.now_s)
    since_s = bus.now_s
    everybody = [host.membership.gossip for host in bus.hosts.values()]

    def is_known() -> bool:
        return all(
            name == gossip.me.name or gossip.members[name].profile.load == {"cpu": 0.5}
            for gossip in everybody
            for name in ("n07", "n77")
        )

    assert bus.run(10, is_known)
    print(f"100 nodes: two changes are known to all after {bus.now_s - since_s:.1f} s")
    sent = [message for at, source, _, message in bus.trace if source == "n50" and at >= since_s]
    seconds = bus.now_s - since_s
    sent_bytes = sum(len(part) for message in sent for part in message)
    print(
        f"100 nodes: each sends {len(sent) / seconds:.0f} messages, {sent_bytes / seconds:.0f} B/s"
    )
    assert len(sent) < 110 * (seconds + 1)
    assert [e for h in bus.hosts.values() for e in h.seen(PeerUnreachable)] == []


@pytest.mark.parametrize(("count", "delay_s"), [(3, 0.002), (5, 0.002), (5, 0.1), (20, 0.002)])
def test_a_silent_node_is_unreachable_within_five_seconds(count: int, delay_s: float) -> None:
    """Its power was cut: connections stay, and nothing comes. Measured: 2.8 to 4.5 s, the tick included."""
    bus = cluster_of(count, f"silent-{count}", delay_s=delay_s)
    bus.vanish("n02")
    times = times_until(bus, "n02", 15)
    assert len(times) == count - 1
    print(
        f"{count} nodes: silence found after {min(times.values()):.1f} to {max(times.values()):.1f} s"
    )
    assert 2.5 < min(times.values()) < max(times.values()) < 5
    for host in bus.hosts.values():
        suspected = [e for _, e in host.seen(MemberSuspected)]
        assert [e.name for e in suspected if isinstance(e, MemberSuspected)] == ["n02"]
        assert "n02" not in host.reachable
        assert "no answer" in str(host.membership.obstacle("n02"))
        assert len(host.reachable) == count - 2


def test_a_silent_coordinator_is_passed_by() -> None:
    bus = cluster_of(3, "passed")
    topology = bus.hosts["n01"].membership.topology
    slot = next(s for s, row in enumerate(topology.preferences) if row[0] == "n02")
    assert topology.coordinator(slot) == "n02"
    bus.vanish("n02")
    bus.run(6)
    assert topology.coordinator(slot) == topology.replicas(slot)[1]


def test_a_killed_node_is_unreachable_at_once() -> None:
    bus = cluster_of(5, "killed")
    bus.stop("n02")
    for host in bus.hosts.values():
        assert "n02" not in host.reachable
        assert host.membership.obstacle("n02") == "the connection broke"
        assert host.events[-2:] == [
            (bus.now_s, MemberSuspected("n02", float("inf"))),
            (bus.now_s, PeerUnreachable("n02", "the connection broke")),
        ]
    bus.run(20)
    assert not any("n02" in host.reachable for host in bus.hosts.values())


def test_a_restarted_node_is_a_new_process_and_reachable_at_once() -> None:
    bus = cluster_of(5, "restarted")
    bus.stop("n02")
    bus.run(3)
    since_s = bus.now_s
    bus.start("n02", infos(5), incarnation=2)
    assert bus.run(1, bus.is_whole)
    assert bus.now_s - since_s < 0.1
    bus.run(20)
    for host in bus.hosts.values():
        if host.name != "n02":
            found = [e for _, e in host.seen(MemberRestarted, MemberRecovered, since_s=since_s)]
            assert found == [MemberRestarted("n02", 1, 2), MemberRecovered("n02")] or found == [
                MemberRecovered("n02"),
                MemberRestarted("n02", 1, 2),
            ]
            assert host.membership.gossip.members["n02"].incarnation == 2
        assert host.seen(PeerUnreachable, since_s=since_s) == []


def test_a_broken_connection_alone_makes_unreachable_only_there() -> None:
    bus = cluster_of(5, "reset")
    bus.reset("n01", "n02")
    assert bus.hosts["n01"].reachable == ["n03", "n04", "n05"]
    assert bus.hosts["n02"].reachable == ["n03", "n04", "n05"]
    bus.run(10)
    assert bus.hosts["n03"].seen(PeerUnreachable, MemberSuspected) == []
    # Others still hear it, so nobody thinks it dead; but there is no connection.
    assert bus.hosts["n01"].membership.gossip.is_live("n02")
    assert bus.hosts["n01"].reachable == ["n03", "n04", "n05"]
    bus.connect("n01", "n02")
    assert "n02" not in bus.hosts["n01"].reachable  # Nothing was heard yet.
    assert bus.run(0.1, bus.is_whole)


def test_a_cut_of_one_direction_is_found_by_both_ends() -> None:
    """Others hear both, so nobody is suspected; the echo alone shows it, within five seconds at both ends."""
    bus = cluster_of(5, "one way")
    since_s = bus.now_s
    bus.is_cut = lambda a, b: (a, b) == ("n01", "n02")
    bus.run(15)
    for name, peer in (("n01", "n02"), ("n02", "n01")):
        ((at, event),) = bus.hosts[name].seen(PeerUnreachable)
        assert isinstance(event, PeerUnreachable)
        assert event.name == peer
        assert "no answer" in event.reason
        print(f"{name} finds after {at - since_s:.1f} s that one direction to {peer} is cut")
        assert at - since_s < 5
        assert bus.hosts[name].membership.gossip.is_live(peer)
    assert [h.seen(PeerUnreachable) for n, h in bus.hosts.items() if n > "n02"] == [[], [], []]
    bus.is_cut = lambda a, b: False
    assert bus.run(3, bus.is_whole)


def test_a_partition_divides_and_heals() -> None:
    bus = cluster_of(6, "halves")
    bus.is_cut = lambda a, b: (a < "n04") != (b < "n04")
    bus.run(30)
    for name, host in bus.hosts.items():
        side = [other for other in bus.hosts if (other < "n04") == (name < "n04")]
        assert sorted([name, *host.reachable]) == side
    bus.is_cut = lambda a, b: False
    assert bus.run(3, bus.is_whole)
    bus.run(30)
    assert bus.is_whole()


def test_a_connection_that_flaps_is_followed() -> None:
    """Twenty breaks, each noticed at both ends at once, and each new connection, too; nobody else cares."""
    bus = cluster_of(4, "flap")
    for _ in range(20):
        bus.reset("n01", "n02")
        assert "n02" not in bus.hosts["n01"].reachable
        bus.run(0.3)
        bus.connect("n01", "n02")
        bus.run(0.3)
        assert "n02" in bus.hosts["n01"].reachable
    kinds = [type(e) for _, e in bus.hosts["n01"].seen(PeerReachable, PeerUnreachable)]
    assert kinds[3:] == [PeerUnreachable, PeerReachable] * 20
    assert bus.hosts["n03"].seen(PeerUnreachable) == []
    bus.run(30)
    assert bus.is_whole()


def test_a_pause_of_one_process_is_no_death_of_the_others() -> None:
    """The others find it silent. It itself, when it goes on, suspects nobody."""
    bus = cluster_of(5, "pause")
    since_s = bus.now_s
    bus.hosts["n01"].is_paused = True
    bus.run(20)
    assert "n01" not in bus.hosts["n02"].reachable
    bus.hosts["n01"].is_paused = False
    assert bus.run(3, bus.is_whole)
    bus.run(10)
    assert bus.hosts["n01"].seen(PeerUnreachable, MemberSuspected, since_s=since_s) == []


@pytest.mark.parametrize("delay_s", [0.002, 0.5])
def test_slow_and_jittery_messages_make_nobody_unreachable(delay_s: float) -> None:
    """Ten minutes, with delays between half and one and a half times the mean."""
    bus = cluster_of(4, "jitter", delay_s=delay_s)
    bus.run(600)
    assert [h.seen(PeerUnreachable, MemberSuspected) for h in bus.hosts.values()] == [[]] * 4


def test_a_late_tick_of_a_deaf_process_suspects_nobody() -> None:
    bus = cluster_of(3, "deaf")
    host = bus.hosts["n01"]
    assert host.membership.tick(bus.now_s + 60, host.wall_ms + 60_000) == []
    assert host.reachable == ["n02", "n03"]


@pytest.mark.parametrize("skew_ms", [-5000, 1500, 5000])
def test_a_skewed_clock_is_found_by_itself_and_by_the_others(skew_ms: int) -> None:
    bus = Bus("skew", delay_s=0.05)
    nodes = infos(5)
    for node in nodes:
        bus.start(node.name, nodes, skew_ms=skew_ms if node.name == "n03" else 0)
    bus.run(1.5)
    for name, host in bus.hosts.items():
        membership = host.membership
        assert membership.is_clock_off is (name == "n03")
        assert membership.is_clock_off_at("n03")
        assert abs(membership.clock_offset_ms() - (skew_ms if name == "n03" else 0)) <= 60
        ((_, event),) = host.seen(ClockOff)
        assert isinstance(event, ClockOff)
        assert event.name == "n03"
        assert abs(event.offset_ms - skew_ms) <= 60
    bus.hosts["n03"].skew_ms = 0  # Somebody has set it right.
    bus.run(8)
    for host in bus.hosts.values():
        assert not host.membership.is_clock_off
        assert [type(e) for _, e in host.seen(ClockOff, ClockBack)] == [ClockOff, ClockBack]
    assert all(host.seen(PeerUnreachable) == [] for host in bus.hosts.values())


def test_clocks_within_the_bound_are_good() -> None:
    bus = Bus("near", delay_s=0.1)
    nodes = infos(5)
    for index, node in enumerate(nodes):
        bus.start(node.name, nodes, skew_ms=400 * index - 800)
    bus.run(60)
    assert all(host.seen(ClockOff) == [] for host in bus.hosts.values())
    assert abs(bus.hosts["n01"].membership.clock_offset_ms() + 800) <= 110


def test_a_node_with_another_claim_is_refused_with_a_reason() -> None:
    """Its file has another weight. Restarted with the right one it is taken in."""
    bus = Bus("claims")
    nodes = infos(4)
    for node in nodes[:3]:
        bus.start(node.name, nodes)
    other = [nodes[0], nodes[1], nodes[2], type(nodes[3])("n04", "h04.example", 1, 1, 1, weight=7)]
    bus.start("n04", other)
    bus.run(30)
    for name, host in bus.hosts.items():
        strangers = ["n04"] if name != "n04" else ["n01", "n02", "n03"]
        assert host.reachable == [n for n in bus.hosts if n not in (*strangers, name)]
        told = [e for _, e in host.seen(Incompatible)]
        assert sorted(e.name for e in told if isinstance(e, Incompatible)) == strangers
        for stranger in strangers:
            reason = str(host.membership.obstacle(stranger))
            assert "configuration files" in reason
            assert "epoch 1" in reason
            assert host.membership.version_with(stranger) is None
    late = [entry for entry in bus.trace if entry[0] > 5 and "n04" in (entry[1], entry[2])]
    assert late == []  # Not talked to.
    bus.stop("n04")
    bus.start("n04", nodes, incarnation=2)
    assert bus.run(1, bus.is_whole)


def test_two_nodes_that_differ_find_each_other_after_a_change() -> None:
    """Nobody else carries the news, and the connection stays."""
    bus = cluster_of(2, "two")
    n01 = bus.hosts["n01"].membership
    right = n01.profile
    n01.change(replace(right, epoch_digest=b"wrong"), bus.now_s)
    assert bus.hosts["n01"].reachable == []
    bus.run(10)
    n01.change(right, bus.now_s)
    assert bus.run(10, bus.is_whole)


def test_a_node_that_the_others_do_not_know_learns_why() -> None:
    """Its file has a node more, itself. It may connect, and is told what the others are."""
    bus = Bus("unknown")
    for node in infos(3):
        bus.start(node.name, infos(3))
    stranger = bus.start("n04", infos(4))
    bus.run(10)
    assert stranger.reachable == []
    assert "configuration files" in str(stranger.membership.obstacle("n01"))
    assert all(len(h.reachable) == 2 for n, h in bus.hosts.items() if n != "n04")


def test_a_rolling_upgrade_never_parts_the_cluster() -> None:
    """A release with one more version, one more capability and a longer profile comes in, one by one."""
    bus = cluster_of(4, "upgrade")
    newer = Terms("blue", VersionRange(2, 3), ("hints", "trees"), ("hints",))
    names = list(bus.hosts)
    for index, name in enumerate(names):
        bus.stop(name)
        bus.run(2)
        bus.start(name, infos(4), incarnation=2, terms=newer)
        assert bus.run(1, bus.is_whole)
        bus.run(5)
        is_last = index == len(names) - 1
        for host in bus.hosts.values():
            common = host.membership.common_capabilities()
            assert common == (("hints", "trees") if is_last else ("hints",))
        spoken = bus.hosts[name].membership.version_with(names[index - 1])
        assert spoken == (2 if index == 0 else 3)
    assert all(host.seen(Incompatible) == [] for host in bus.hosts.values())
    bus.stop("n01")  # Somebody brings an old one back, too old by now.
    bus.start("n01", infos(4), incarnation=3, terms=Terms("blue", VersionRange(1, 1)))
    bus.run(5)
    assert bus.hosts["n01"].reachable == []
    assert "upgrade" in str(bus.hosts["n02"].membership.obstacle("n01"))


def test_capabilities_are_not_common_before_all_were_heard_of() -> None:
    bus = Bus("missing")
    nodes = infos(3)
    for node in nodes[:2]:
        bus.start(node.name, nodes)
    bus.run(5)
    assert bus.hosts["n01"].membership.common_capabilities() == ()


def test_a_seed_gives_the_same_run_twice() -> None:
    runs = []
    for _ in range(2):
        bus = cluster_of(6, "twice")
        bus.stop("n02")
        bus.run(3)
        bus.start("n02", infos(6), incarnation=2)
        bus.is_cut = lambda a, b: (a, b) == ("n05", "n01")
        bus.run(10)
        runs.append((bus.trace, [host.events for host in bus.hosts.values()]))
    assert runs[0] == runs[1]
    assert len(runs[0][0]) > 1000


# The rules, by hand.


def pair() -> tuple[Bus, Host, Host]:
    bus = Bus("pair")
    one, two = (bus.start(node.name, infos(2)) for node in infos(2))
    return bus, one, two


def sent_by(bus: Bus, source: str, verb: bytes, since_s: float) -> list[bytes]:
    return [m[1] for at, s, _, m in bus.trace if s == source and m[0] == verb and at >= since_s]


def test_a_connection_begins_with_a_profile_and_a_beat() -> None:
    bus, one, _ = pair()
    bus.run(0.02)
    first = [message for _, source, _, message in bus.trace if source == one.name]
    assert sorted(message[0] for message in first) == [BEAT, BEAT, TELL]  # One beat answers.
    assert one.membership.clocks.offset_ms("n02") is not None


def test_any_message_is_a_sign_of_life_and_suspicion_still_comes() -> None:
    """A peer that is busy is not suspected by gossip; the rhythm learned is that of beats alone."""
    bus, one, two = pair()
    bus.run(20)
    silence_s = one.membership.gossip.detector.patience_s("n02")
    bus.vanish("n02")
    two.membership.topology.mark("n01", is_reachable=False)
    for _ in range(300):
        bus.run(0.1)
        one.note(one.membership.heard("n02", bus.now_s))
    assert one.seen(MemberSuspected) == []
    assert one.membership.gossip.detector.patience_s("n02") == silence_s
    # But it does not answer: one direction must be cut.
    assert one.reachable == []
    bus.run(10)
    assert [type(e) for _, e in one.seen(MemberSuspected)] == [MemberSuspected]


def test_what_comes_late_from_a_broken_connection_changes_nothing() -> None:
    bus, one, _ = pair()
    bus.run(5)
    (old, *_) = sent_by(bus, "n02", BEAT, 3)
    bus.reset("n01", "n02")
    one.note(one.membership.receive("n02", [BEAT, old], bus.now_s))
    assert one.reachable == []
    bus.run(1)
    bus.is_cut = lambda a, b: True
    bus.connect("n01", "n02")
    one.note(one.membership.receive("n02", [BEAT, old], bus.now_s))
    since_s = bus.now_s
    for _ in range(20):
        bus.run(1)
        one.note(one.membership.receive("n02", [BEAT, old], bus.now_s))
    # An echo of the old connection, again and again, is no answer.
    assert one.reachable == []
    assert one.seen(PeerUnreachable, since_s=since_s)


def test_an_echo_of_the_connection_before_says_nothing_about_clocks() -> None:
    bus, one, _ = pair()
    bus.run(5)
    (*_, old) = sent_by(bus, "n02", BEAT, 3)
    bus.reset("n01", "n02")
    bus.is_cut = lambda a, b: True
    assert one.membership.clocks.offset_ms("n02") == 0
    bus.connect("n01", "n02")
    assert one.membership.clocks.offset_ms("n02") is None  # It may be another machine.
    one.note(one.membership.receive("n02", [BEAT, old], bus.now_s))
    assert one.membership.clocks.offset_ms("n02") is None


def test_what_gossip_knows_of_a_silence_counts_before_the_connection_has_a_rhythm() -> None:
    bus, one, _ = pair()
    bus.run(60)
    bus.reset("n01", "n02")
    bus.connect("n01", "n02")
    bus.run(0.05)
    since_s = bus.now_s
    assert one.reachable == ["n02"]
    bus.vanish("n02")
    bus.run(10)
    ((at, event),) = one.seen(PeerUnreachable, since_s=since_s)
    assert event == PeerUnreachable("n02", "nobody has heard of it for too long")
    assert at - since_s < 5


def test_news_that_come_before_the_late_tick_make_nobody_unreachable() -> None:
    bus = cluster_of(3, "woken")
    one = bus.hosts["n01"].membership
    changed = encode_profile(replace(one.gossip.members["n03"].profile, zone="z9"))
    statement = Statement("n03", 1, 2, check_of(changed), 0, 0, changed)
    told = encode(Answer("blue", (statement,)))
    (event,) = one.receive("n02", [TELL, told], bus.now_s + 60)
    assert isinstance(event, MemberChanged)
    assert bus.hosts["n01"].reachable == ["n02", "n03"]


def test_the_echo_follows_a_clock_that_began_anew() -> None:
    bus, one, _ = pair()
    bus.run(5)
    for sent_us in (2**52, 5):
        beat = encode(Beat(sent_us, 1))
        assert one.membership.receive("n02", [BEAT, beat], bus.now_s) == []
    bus.is_cut = lambda a, b: a == "n02"
    since_s = bus.now_s
    bus.run(2)
    assert {decode_beat(raw).echo_us for raw in sent_by(bus, "n01", BEAT, since_s)} == {5}


def test_a_beat_is_well_formed_though_its_time_is_a_little_before_the_last_one() -> None:
    bus, one, two = pair()
    bus.run(5)
    (*_, beat) = sent_by(bus, "n02", BEAT, 3)
    one.membership.receive("n02", [BEAT, beat], bus.now_s + 0.001)
    one.note(one.membership.tick(bus.now_s, one.wall_ms))
    bus.run(0.1)
    assert two.seen(GossipRefused) == []


def test_an_echo_of_what_was_never_sent_is_ignored() -> None:
    bus, one, _ = pair()
    bus.run(2)
    before = one.membership.clocks.offset_ms("n02")
    for future in (2**50, 2**53):
        beat = encode(Beat(1, 5, future, 0))
        assert one.membership.receive("n02", [BEAT, beat], bus.now_s) == []
    assert one.membership.clocks.offset_ms("n02") == before
    since_s = bus.now_s
    bus.run(20)
    assert one.seen(PeerUnreachable, since_s=since_s) == []


def test_a_beat_echoes_the_last_one_with_the_time_it_was_held() -> None:
    bus, _, _ = pair()
    bus.run(10)
    beats = {
        decode_beat(m[1]).sent_us: at for at, s, _, m in bus.trace if s == "n02" and m[0] == BEAT
    }
    for raw in sent_by(bus, "n01", BEAT, 3):
        beat = decode_beat(raw)
        sent_s = beat.sent_us / 1e6
        assert beats[beat.echo_us] == pytest.approx(sent_s - beat.held_us / 1e6, abs=1e-5)


BAD = {
    "nothing": [DIGEST],
    "no MessagePack": [TELL, b"\xc1"],
    "empty": [ANSWER, b""],
    "a long beat": [BEAT, bytes(5000)],
    "other cluster": [DIGEST, encode(Digest("red", ()))],
    "other cluster tells": [TELL, encode(Answer("red", ()))],
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_message_is_an_event_and_changes_nothing(case: str) -> None:
    bus, one, _ = pair()
    bus.run(5)
    members = dict(one.membership.gossip.members)
    (event,) = one.membership.receive("n02", BAD[case], bus.now_s)
    assert isinstance(event, GossipRefused)
    assert event.name == "n02"
    assert event.reason
    assert one.membership.gossip.members == members
    assert one.reachable == ["n02"]


def test_verbs_and_arguments_of_a_newer_release_are_no_error() -> None:
    bus, one, _ = pair()
    bus.run(5)
    assert one.membership.receive("n02", [b"GOSSIP.SONG", b"la"], bus.now_s) == []
    assert (
        one.membership.receive("n02", [DIGEST, encode(Digest("blue", ())), b"new"], bus.now_s) == []
    )


def test_strangers_and_oneself_are_not_watched() -> None:
    bus, one, _ = pair()
    bus.run(5)
    changes = one.membership.topology.changes
    for name in ("n01", "who"):
        assert one.membership.heard(name, bus.now_s) == []
    assert one.membership.connected("who", bus.now_s) == []
    assert one.membership.disconnected("who", bus.now_s, is_refused=True) == []
    assert one.membership.topology.changes == changes
    assert list(one.membership._links) == ["n02"]


def said_of_me(host: Host, incarnation: int, where: str | None = None) -> list[bytes]:
    profile = host.membership.profile
    if where is not None:
        profile = replace(profile, addresses=replace(profile.addresses, host=where))
    body = encode_profile(profile)
    statement = Statement(host.name, incarnation, 1, check_of(body), 9, 0, body)
    return [TELL, encode(Answer("blue", (statement,)))]


def test_a_node_steps_over_its_own_past() -> None:
    bus, one, two = pair()
    bus.run(5)
    found = one.membership.receive("n02", said_of_me(one, 70), bus.now_s)
    assert found == [MemberRestarted("n01", 1, 71)]
    bus.run(5)
    assert two.membership.gossip.members["n01"].incarnation == 71
    assert bus.is_whole()


def test_a_node_does_not_race_with_another_at_its_addresses() -> None:
    bus, one, _ = pair()
    found: list[Event] = []
    for incarnation in (70, 80, 90, 100):
        found += one.membership.receive("n02", said_of_me(one, incarnation), bus.now_s)
    events = [e for e in found if isinstance(e, MemberRestarted | DuplicateName)]
    assert [type(e) for e in events] == [MemberRestarted] * PAST_COUNT_MAX + [DuplicateName]


def test_a_namesake_elsewhere_is_reported() -> None:
    bus, one, _ = pair()
    bus.run(5)
    (event,) = one.membership.receive("n02", said_of_me(one, 70, "elsewhere"), bus.now_s)
    assert isinstance(event, DuplicateName)
    assert one.membership.gossip.me.incarnation == 1


def test_a_node_declared_down_is_unreachable_until_it_refutes() -> None:
    bus = cluster_of(3, "declared")
    one = bus.hosts["n01"].membership
    one._follow(one.gossip.declare("n02", Status.DOWN, bus.now_s), bus.now_s)
    assert bus.hosts["n01"].reachable == ["n03"]
    assert one.obstacle("n02") == "it was declared down"
    assert bus.run(10, bus.is_whole)


@pytest.mark.parametrize("change", [{"interval_s": 0}, {"clock_skew_max_ms": 0}])
def test_settings_that_make_no_sense_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        MembershipSettings(**change)


@pytest.mark.parametrize("interval_s", [0.1, 1.0, 5.0])
def test_patience_follows_the_interval(interval_s: float) -> None:
    bus = Bus("interval", interval_s=interval_s)
    for node in infos(3):
        bus.start(node.name, infos(3))
    bus.run(40 * interval_s)
    bus.vanish("n02")
    times = times_until(bus, "n02", 10 * interval_s + 2)
    print(f"interval {interval_s} s: silence found after {max(times.values()):.1f} s")
    assert len(times) == 2
    assert max(times.values()) < 4.5 * interval_s + 1
