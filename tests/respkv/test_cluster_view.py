"""What Redis Cluster clients are shown of a topology, and where they are sent."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from redis._parsers import helpers

from cluster.claim import Claim
from cluster.slot import SLOT_COUNT, Slot, slot_of
from cluster.topology import NodeInfo, Topology
from respkv.cluster_view import (
    BusStats,
    Link,
    Run,
    coordinated,
    coordinated_by_node,
    info_text,
    links_reply,
    moved,
    nodes_text,
    only_reads,
    redirect,
    runs,
    shards_reply,
    slots_of,
    slots_reply,
    with_heads,
)
from respkv.command import TABLE, Command
from respkv.commands import load
from respkv.parser import Limits
from respkv.session import Session, Transaction

load()
redis_py: Any = helpers  # Which has no types.


def node(name: str, number: int, *, host: str = "127.0.0.1", data_centre: str = "") -> NodeInfo:
    return NodeInfo(
        name, host, 7000 + number, 7100 + number, 17000 + number, data_centre=data_centre
    )


def topology(count: int, n: int, *, me: str = "a", down: str = "") -> Topology:
    """`count` nodes named a, b, c, ... as the node `me` sees them; the nodes of `down` are out of its reach."""
    names = "abcdefghijklmnopqrstuvwxyz"[:count]
    made = Topology(me, [node(name, number) for number, name in enumerate(names)], n)
    for name in down:
        made.mark(name, is_reachable=False)
    return made


def by_hand(*parts: tuple[int, str], me: str = "a", down: str = "") -> Topology:
    """A topology of so many slots with that preference list each, in order; the last one has the rest."""
    table = [tuple(names) for count, names in parts for _ in range(count)]
    table += [tuple(parts[-1][1])] * (SLOT_COUNT - len(table))
    members = sorted({name for _, names in parts for name in names})
    nodes = [node(name, number) for number, name in enumerate(members)]
    made = Topology(me, nodes, 3, claim=Claim({"": tuple(table)}))
    for name in down:
        made.mark(name, is_reachable=False)
    return made


CLUSTERS = [
    topology(1, 1),
    topology(2, 2),
    topology(3, 3),
    topology(3, 3, down="b"),
    topology(3, 3, down="bc"),
    topology(4, 3, me="d"),
    topology(6, 3, down="c"),
    topology(6, 2, down="cd"),
    topology(7, 1, down="g"),
    topology(12, 3, me="h", down="b"),
    by_hand((1, "abc"), (1, "bca"), (1, "cab"), (100, "abc")),
    Topology("c", [node(x, i, data_centre="east" if x < "c" else "west") for i, x in enumerate("abcd")], 2),
]  # fmt: skip
every_cluster = pytest.mark.parametrize("cluster", CLUSTERS)


def reachable(cluster: Topology, slot: Slot) -> tuple[str, ...]:
    return tuple(name for name in cluster.replicas(slot) if cluster.is_reachable(name))


# Runs


@every_cluster
def test_runs_say_of_each_slot_who_is_its_master_and_who_are_its_replicas(
    cluster: Topology,
) -> None:
    found: dict[Slot, tuple[str, ...]] = {}
    for run in runs(cluster):
        for slot in range(run.first, run.last + 1):
            assert slot not in found
            found[slot] = (run.primary, *run.replicas)
    for slot in range(SLOT_COUNT):
        assert found.get(slot, ()) == reachable(cluster, slot)
        assert next(iter(found.get(slot, ())), None) == cluster.coordinator(slot)


@every_cluster
def test_runs_are_as_long_as_can_be(cluster: Topology) -> None:
    found = runs(cluster)
    for one, other in pairwise(found):
        is_next = one.last + 1 == other.first
        assert not is_next or (one.primary, one.replicas) != (other.primary, other.replicas)


def test_runs_are_looked_for_again_when_the_view_has_changed() -> None:
    cluster = topology(3, 3)
    before = runs(cluster)
    assert runs(cluster) is before
    cluster.mark("b", is_reachable=False)
    assert {run.primary for run in runs(cluster)} == {"a", "c"}
    cluster.mark("b", is_reachable=True)
    assert runs(cluster) == before


@every_cluster
def test_each_slot_is_in_the_scope_of_its_coordinator_alone(cluster: Topology) -> None:
    for name in cluster.nodes:
        slots = [slot for first, last in coordinated(cluster, name) for slot in range(first, last + 1)]  # fmt: skip
        assert slots == [s for s in range(SLOT_COUNT) if cluster.coordinator(s) == name]
    assert coordinated(cluster) == coordinated(cluster, cluster.me)


def test_neighbouring_runs_of_one_coordinator_are_one_range() -> None:
    cluster = by_hand((5, "abc"), (5, "acb"), (5, "bac"), (5, "abc"), (5, "cab"))
    assert coordinated(cluster) == [(0, 9), (15, 19)]
    assert coordinated_by_node(cluster)["b"] == [(10, 14)]


# SLOTS


def assert_each_is_seen_as_a_master_first(entries: Sequence[Run]) -> None:
    masters = {entry.primary for entry in entries}
    seen: set[str] = set()
    for entry in entries:
        assert not (masters - seen) & set(entry.replicas), entry
        seen.add(entry.primary)


@every_cluster
def test_each_node_is_seen_as_a_master_first(cluster: Topology) -> None:
    assert_each_is_seen_as_a_master_first(with_heads(runs(cluster)))


@every_cluster
def test_heads_change_nothing_but_the_order_and_the_replicas_of_few_slots(
    cluster: Topology,
) -> None:
    shown: dict[Slot, tuple[str, ...]] = {}
    for run in with_heads(runs(cluster)):
        for slot in range(run.first, run.last + 1):
            assert slot not in shown
            shown[slot] = (run.primary, *run.replicas)
    cut = 0
    for slot in range(SLOT_COUNT):
        if (names := reachable(cluster, slot)) != shown.get(slot, ()):
            assert shown[slot][0] == names[0]
            assert set(shown[slot]) < set(names)
            cut += 1
    assert cut <= max(len(names) for names in cluster.preferences)


def test_heads_of_any_runs() -> None:
    rng = random.Random(4)
    for _ in range(300):
        names = "abcdef"[: rng.randint(1, 6)]
        found, first = [], 0
        for _ in range(rng.randint(1, 9)):
            last = first + rng.choice((0, 0, 1, 5))
            order = rng.sample(names, rng.randint(1, len(names)))
            found.append(Run(first, last, order[0], tuple(order[1:])))
            first = last + rng.choice((1, 2))
        shown = with_heads(found)
        assert_each_is_seen_as_a_master_first(shown)
        assert sorted(
            (slot, run.primary) for run in shown for slot in range(run.first, run.last + 1)
        ) == [(slot, run.primary) for run in found for slot in range(run.first, run.last + 1)]


def test_slots_of_three_nodes() -> None:
    cluster = by_hand((100, "abc"), (100, "bca"), (1, "cab"))
    a, b, c = (
        [b"127.0.0.1", info.cluster_port, info.id.encode(), {}] for info in cluster.nodes.values()
    )
    assert slots_reply(cluster) == [
        [0, 0, a],  # Neither of its replicas was a master yet.
        [100, 100, b, a],
        [200, 16383, c, a, b],
        [1, 99, a, b, c],
        [101, 199, b, c, a],
    ]


def test_slots_leave_out_who_cannot_be_reached() -> None:
    cluster = by_hand((100, "abc"), (100, "bca"), (100, "cba"), (1, "bc"), down="b")
    entries: Any = slots_reply(cluster)
    assert {member[1] for entry in entries for member in entry[2:]} == {7100, 7102}
    cluster.mark("c", is_reachable=False)
    entries = slots_reply(cluster)
    assert [entry[:2] for entry in entries] == [[0, 299]]  # The others have no replica left.


# NODES


def test_nodes_are_masters_of_what_they_coordinate() -> None:
    cluster = by_hand((1, "abc"), (99, "bca"), (100, "abc"), (100, "cab"), (1, "bca"), me="b")
    ids = {name: info.id for name, info in cluster.nodes.items()}
    assert nodes_text(cluster, {"a": 1700000000123, "b": 5}).decode().splitlines() == [
        f"{ids['a']} 127.0.0.1:7100@17000 master - 0 1700000000123 1 connected 0 100-199",
        f"{ids['b']} 127.0.0.1:7101@17001 myself,master - 0 0 1 connected 1-99 300-16383",
        f"{ids['c']} 127.0.0.1:7102@17002 master - 0 0 1 connected 200-299",
    ]


def test_who_cannot_be_reached_has_failed_and_has_no_slots() -> None:
    cluster = by_hand((1, "abc"), (1, "bca"), down="b")
    text = nodes_text(cluster, {})
    assert text.endswith(b"\n")
    lines = text.decode().splitlines()
    assert lines[1] == f"{cluster.nodes['b'].id} 127.0.0.1:7101@17001 master,fail - 0 0 1 disconnected"  # fmt: skip
    assert lines[2].endswith(" connected 1-16383")


@every_cluster
def test_redis_py_reads_the_nodes(cluster: Topology) -> None:
    parsed = redis_py.parse_cluster_nodes(nodes_text(cluster, {}).decode())
    assert parsed.keys() == {f"127.0.0.1:{info.cluster_port}" for info in cluster.nodes.values()}
    for info in cluster.nodes.values():
        entry = parsed[f"127.0.0.1:{info.cluster_port}"]
        assert entry["node_id"] == info.id
        assert entry["connected"] is cluster.is_reachable(info.name)
        ranges = coordinated(cluster, info.name)
        assert [tuple(map(int, slots)) for slots in entry["slots"]] == [
            (first,) if first == last else (first, last) for first, last in ranges
        ]


def test_a_name_that_is_no_address_is_announced_as_hostname() -> None:
    cluster = Topology("a", [node("a", 0, host="db1.example"), node("b", 1, host="::1")], 1)
    lines = nodes_text(cluster, {}).decode().splitlines()
    assert lines[0].split()[1] == "db1.example:7100@17000,db1.example"
    assert lines[1].split()[1] == "::1:7101@17001"
    shards: Any = shards_reply(cluster, 0)
    assert shards[0][b"nodes"][0][b"hostname"] == b"db1.example"
    assert b"hostname" not in shards[1][b"nodes"][0]


# SHARDS


def test_a_shard_is_a_node_with_the_replicas_of_all_its_slots() -> None:
    cluster = by_hand((10, "abc"), (10, "adb"), (10, "bcd"), (10, "cda"), (1, "dab"))
    shards: Any = shards_reply(cluster, 99)
    assert [shard[b"slots"] for shard in shards] == [[0, 19], [20, 29], [30, 39], [40, 16383]]
    roles = [[(m[b"port"], m[b"role"]) for m in shard[b"nodes"]] for shard in shards]
    assert roles == [
        [(7100, b"master"), (7101, b"replica")],  # Neither c nor d has all of it.
        [(7101, b"master"), (7102, b"replica"), (7103, b"replica")],
        [(7102, b"master"), (7100, b"replica"), (7103, b"replica")],
        [(7103, b"master"), (7100, b"replica"), (7101, b"replica")],
    ]
    assert shards[0][b"nodes"][0] == {
        b"id": cluster.nodes["a"].id.encode(),
        b"port": 7100,
        b"ip": b"127.0.0.1",
        b"endpoint": b"127.0.0.1",
        b"role": b"master",
        b"replication-offset": 99,
        b"health": b"online",
    }
    assert shards[0][b"nodes"][1][b"replication-offset"] == 0


def test_shards_show_who_cannot_be_reached() -> None:
    cluster = by_hand((10, "abc"), (10, "bca"), (1, "cab"), down="b")
    shards: Any = shards_reply(cluster, 0)
    assert [shard[b"slots"] for shard in shards] == [[0, 9], [], [10, 16383]]
    assert [(m[b"role"], m[b"health"]) for m in shards[1][b"nodes"]] == [(b"master", b"fail")]
    assert [m[b"health"] for m in shards[0][b"nodes"]] == [b"online", b"fail", b"online"]


# INFO and LINKS


def info(cluster: Topology, r: int, w: int, stats: BusStats | None = None) -> dict[str, str]:
    fields: dict[str, str] = redis_py.parse_cluster_info(
        info_text(cluster, r, w, stats or BusStats())
    )
    return fields


@pytest.mark.parametrize(
    ("r", "w", "down", "state", "ok", "pfail", "fail"),
    [
        (2, 2, "", "ok", 16384, 0, 0),
        (2, 2, "b", "ok", 16384, 0, 0),
        (3, 1, "b", "fail", 16084, 300, 0),  # Slots of d and e alone are not touched.
        (1, 3, "b", "fail", 16084, 300, 0),
        (2, 2, "bc", "fail", 16084, 300, 0),
        (1, 1, "bc", "ok", 16384, 0, 0),
        (1, 1, "def", "fail", 300, 0, 16084),
    ],
)
def test_the_state_is_ok_while_each_slot_has_enough_replicas(
    r: int, w: int, down: str, state: str, ok: int, pfail: int, fail: int
) -> None:
    cluster = by_hand((100, "abc"), (100, "bca"), (100, "cab"), (1, "def"), down=down)
    fields = info(cluster, r, w)
    assert fields["cluster_state"] == state
    assert fields["cluster_slots_assigned"] == "16384"
    counts = [int(fields[f"cluster_slots_{name}"]) for name in ("ok", "pfail", "fail")]
    assert counts == [ok, pfail, fail]


def test_info_counts_nodes_and_messages() -> None:
    cluster = topology(4, 3, down="b")
    stats = BusStats({"gossip": 3, "write": 4, "hint": 0}, {"gossip": 5}, overflows=2)
    fields = info(cluster, 2, 2, stats)
    assert fields["cluster_known_nodes"] == "4"
    assert fields["cluster_size"] == "3"
    assert fields["cluster_current_epoch"] == fields["cluster_my_epoch"] == "1"
    messages = {name: value for name, value in fields.items() if "messages" in name}
    assert messages == {
        "cluster_stats_messages_gossip_sent": "3",
        "cluster_stats_messages_write_sent": "4",
        "cluster_stats_messages_sent": "7",
        "cluster_stats_messages_gossip_received": "5",
        "cluster_stats_messages_received": "5",
    }
    assert fields["total_cluster_links_buffer_limit_exceeded"] == "2"


def test_links_name_their_peers_by_id() -> None:
    cluster = topology(2, 1)
    links = [
        Link("b", is_outgoing=True, created_ms=17, events="rw", allocated_bytes=9, used_bytes=4),
        Link("b", is_outgoing=False, created_ms=18, events="r", allocated_bytes=0, used_bytes=0),
        Link("gone", is_outgoing=True, created_ms=1, events="r", allocated_bytes=0, used_bytes=0),
    ]
    reply: Any = links_reply(cluster, links)
    assert reply[0] == {
        b"direction": b"to",
        b"node": cluster.nodes["b"].id.encode(),
        b"create-time": 17,
        b"events": b"rw",
        b"send-buffer-allocated": 9,
        b"send-buffer-used": 4,
    }
    assert [link[b"direction"] for link in reply] == [b"to", b"from"]


# Redirection

# Slots 0 to 9999 belong to a, b, c in that order, the others to d, b, c.
PARTED = ((10000, "abc"), (1, "dbc"))
LOW = b"b"  # Slot 3300.
HIGH = b"a"  # Slot 15495.


def client(*, is_readonly: bool = False, is_asking: bool = False) -> Session:
    session = Session(1, "peer:1", "here:1", Limits(), 0.0, authenticated=True)
    session.is_cluster = True
    session.is_readonly, session.is_asking = is_readonly, is_asking
    return session


def resolve(words: bytes) -> tuple[Command, list[bytes]]:
    args = words.split()
    return TABLE.resolve(args), args


def answer(
    words: bytes, *, me: str, down: str = "", is_readonly: bool = False, is_asking: bool = False
) -> str:
    """What `me` answers instead of running the command; empty if it runs it."""
    session = client(is_readonly=is_readonly, is_asking=is_asking)
    command, args = resolve(words)
    cluster = by_hand(*PARTED, me=me, down=down)
    error = redirect(session, command, slots_of(session, command, args), cluster)
    return error.line.decode() if error is not None else ""


TO_A = "MOVED 3300 127.0.0.1:7100"
TO_D = "MOVED 15495 127.0.0.1:7103"
CROSS = "CROSSSLOT Keys in request don't hash to the same slot"
DOWN = "CLUSTERDOWN Hash slot not served"


@pytest.mark.parametrize(
    ("words", "me", "down", "expected"),
    [
        (b"GET b", "a", "", ""),
        (b"GET b", "b", "", TO_A),
        (b"GET a", "a", "", TO_D),
        (b"SET b v", "b", "a", ""),  # The first replica that can be reached.
        (b"SET b v", "c", "a", "MOVED 3300 127.0.0.1:7101"),
        (b"PING", "b", "", ""),
        (b"DBSIZE", "b", "", ""),
        (b"MGET b b{b} c{b}", "a", "", ""),
        (b"MGET b c{b}", "d", "", TO_A),
        (b"MGET b f", "a", "", CROSS),  # Though it coordinates both slots.
        (b"MSET b 1 a 2", "b", "", CROSS),
        (b"GET a", "a", "dbc", DOWN),
        (b"MGET a b", "a", "dbc", DOWN),  # The first key comes first.
        (b"MGET b a", "a", "dbc", CROSS),
    ],
)
def test_redirection(words: bytes, me: str, down: str, expected: str) -> None:
    assert (slot_of(LOW), slot_of(HIGH), slot_of(b"f")) == (3300, 15495, 3168)
    assert answer(words, me=me, down=down) == expected


def test_who_is_not_fit_to_coordinate_forwards_what_may_come_back_to_it() -> None:
    command, args = resolve(b"SET b v")
    for me, expected in (("a", False), ("b", False), ("d", True)):
        cluster = by_hand(*PARTED, me=me)
        cluster.mark_complete(me, is_complete=False)
        session = client()
        error = redirect(session, command, slots_of(session, command, args), cluster)
        assert (error is not None) == expected


@pytest.mark.parametrize(
    ("words", "me", "expected"),
    [
        (b"GET b", "b", ""),
        (b"GET b", "c", ""),
        (b"GET b", "d", TO_A),  # It is no replica of it.
        (b"EXISTS b", "b", ""),
        (b"SET b v", "b", TO_A),
        (b"GETDEL b", "b", TO_A),
        (b"WATCH b", "b", TO_A),
        (b"MGET b f", "b", CROSS),
    ],
)
def test_after_readonly_any_replica_takes_reads(words: bytes, me: str, expected: str) -> None:
    assert answer(words, me=me, is_readonly=True) == expected


def test_who_comes_back_with_a_read_is_answered() -> None:
    cluster = by_hand(*PARTED, me="b")
    session = client()

    def ask(words: bytes) -> str:
        command, args = resolve(words)
        error = redirect(session, command, slots_of(session, command, args), cluster)
        return error.line.decode() if error is not None else ""

    assert [ask(b"GET b"), ask(b"STRLEN b"), ask(b"GET b")] == [TO_A, "", ""]
    assert ask(b"GET a") == TO_D  # Another slot.
    # A pipeline that writes and reads goes away as a whole.
    assert [ask(b"SET b v"), ask(b"GET b"), ask(b"GET b")] == [TO_A, TO_A, ""]
    # A transaction does, too.
    session.transaction = Transaction()
    assert ask(b"GET b") == TO_A
    session.transaction = None
    # And who is no replica of it never answers.
    elsewhere = by_hand(*PARTED, me="d")
    command, args = resolve(b"GET b")
    for _ in range(3):
        assert redirect(session, command, slots_of(session, command, args), elsewhere) is not None


def test_after_asking_any_replica_takes_the_command() -> None:
    assert answer(b"SET b v", me="b", is_asking=True) == ""
    assert answer(b"SET b v", me="d", is_asking=True) == TO_A
    assert answer(b"MGET b f", me="b", is_asking=True) == CROSS


@pytest.mark.parametrize(
    ("queued", "me", "is_readonly", "expected"),
    [
        ((), "b", False, ""),
        ((b"GET b", b"SET x{b} 1"), "a", False, ""),
        ((b"PING", b"GET b"), "b", False, TO_A),
        ((b"GET b", b"GET c{b}"), "b", True, ""),
        ((b"GET b", b"SET c{b} 1"), "b", True, TO_A),
        ((b"GET b", b"GET a"), "a", False, CROSS),
    ],
)
def test_exec_goes_where_all_that_is_queued_goes(
    queued: tuple[bytes, ...], me: str, *, is_readonly: bool, expected: str
) -> None:
    session = client(is_readonly=is_readonly)
    session.transaction = Transaction()
    for words in queued:
        session.transaction.add(*resolve(words))
    command, args = resolve(b"EXEC")
    error = redirect(session, command, slots_of(session, command, args), by_hand(*PARTED, me=me))
    assert (error.line.decode() if error is not None else "") == expected


def test_exec_without_multi_has_no_slots() -> None:
    command, args = resolve(b"EXEC")
    assert slots_of(client(), command, args) == []
    assert not only_reads(client(), command)


def test_moved_names_the_cluster_port() -> None:
    assert moved(7, node("x", 5, host="db.example")).line == b"MOVED 7 db.example:7105"
