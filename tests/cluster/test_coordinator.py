"""Coordinators and participants together: what clients were told must be linearizable, key by key.

The worlds are `tests/cluster/cluster_world.py`; the checker is the simulation's.

"""

from __future__ import annotations

import random
from collections import Counter as Tally
from collections.abc import Callable, Sequence

import pytest

from cluster import conflict
from cluster.batch import Quorums
from cluster.clock import Dot
from cluster.delta_wire import MalformedDelta
from cluster.record import Record, Version, decode
from cluster.replica import Replica
from cluster.round import ConflictLost, QuorumNotMet, WriteRound
from cluster.slot import Row, Slot
from cluster.undecided import Undecided
from tests.cluster.cluster_world import TIMEOUT_S, Node, Op, Weather, World, place_of
from tests.sim.linearizable import Verdict, check

REORDERING = Weather(repeat=0.2, delay_s=0.05, linger=0.3)
LOSING = Weather(loss=0.05, repeat=0.1, delay_s=0.05, late=0.02, linger=0.3)
N3, N5 = Quorums(3, 2, 2), Quorums(5, 3, 3)
KEYS = (b"k0", b"k1")


def commands(kind: str, rng: random.Random) -> Callable[[], tuple[bytes, ...]]:
    count = [0]

    def next_command() -> tuple[bytes, ...]:
        count[0] += 1
        key, number = rng.choice(KEYS), b"%d" % count[0]
        if rng.random() < 0.35:
            return (b"GET", key)
        write, blind = (b"INCRBY", key, rng.choice((b"1", b"10", b"100"))), (b"SET", key, number)
        once = (b"SETNX", key, number)
        of_kind = {"increments": [write], "locks": [once], "blind": [blind]}
        return rng.choice(of_kind.get(kind, [write, once, blind]))

    return next_command


def story(
    seed: int,
    quorums: Quorums,
    kind: str,
    writers: int,
    weather: Weather,
    *,
    mixed: tuple[Quorums, ...] = (),
    keeps_one: bool = False,
) -> World:
    """Four clients, tables that are flushed, connections that break if the weather is bad; then calm."""
    world = World(seed, quorums.n, quorums, weather, mixed=mixed)
    for node in world.nodes.values():
        node.replica.keeps_one = (lambda row: True) if keeps_one else None
    rng = random.Random(f"story-{seed}")
    world.writers = world.names[:writers]
    for _ in range(4):
        world.client(commands(kind, rng), 10)
    for _ in range(6):
        world.run(0.5)
        if weather.loss and rng.random() < 0.5:
            one, other = rng.sample(world.names, 2)
            world.disconnect(one, other)
            world.run(0.2)
            if rng.random() < 0.8:
                world.connect(one, other)
        if rng.random() < 0.5:
            world.nodes[rng.choice(world.names)].flush_memtable()
    world.settle()
    for key in KEYS:
        for name in world.names:
            world.do(name, b"GET", key)
            world.run(0.3)
    return world


def judge(world: World) -> None:
    for key, operations in world.history.by_key().items():
        assert check(operations) is Verdict.LINEARIZABLE, (world.seed, key)
    for operation in world.history.operations:
        assert operation.is_acknowledged or operation.error, f"{world.seed}: no answer: {operation}"
    for node in world.nodes.values():
        coordinator = node.coordinator
        assert not coordinator.writes
        assert not coordinator.reads
        assert not coordinator.in_flight_bytes
        assert not node.parked


STORIES = [
    ("increments", N3, 2, REORDERING),
    ("locks", N3, 2, REORDERING),
    ("all", N3, 2, REORDERING),
    ("blind", N3, 3, LOSING),
    ("blind", N5, 5, LOSING),
    ("increments", N3, 1, LOSING),
    ("increments", N3, 2, LOSING),
    ("increments", N3, 3, LOSING),
    ("locks", N3, 3, LOSING),
    ("all", N3, 3, LOSING),
    ("all", N5, 1, LOSING),
    ("all", N5, 3, LOSING),
    ("increments", N5, 3, LOSING),
    ("increments", Quorums(6, 4, 4), 3, LOSING),
    ("locks", N5, 5, LOSING),
    ("all", Quorums(3, 3, 2), 2, REORDERING),
    ("increments", Quorums(3, 2, 1), 2, REORDERING),
]


@pytest.mark.parametrize(
    ("kind", "quorums", "writers", "weather"),
    STORIES,
    ids=[
        f"{s[0]}-{s[1].n}{s[1].r}{s[1].w}-{s[2]}-{'loss' if s[3].loss else 'calm'}" for s in STORIES
    ],
)
def test_what_clients_are_told_is_linearizable(
    kind: str, quorums: Quorums, writers: int, weather: Weather
) -> None:
    met: Tally[str] = Tally()
    for seed in range(10):
        world = story(seed, quorums, kind, writers, weather)
        judge(world)
        met += world.met
    assert met["answered"] > 400, met
    assert met["fetch"] > 5, met


# A read was confirmed by whom it had just repaired, and who had something later; a SET ran again though a replica
# that was gone had taken it; a row was told to others between its loss and its fate; three writers of one row
# wrote it again and again for ever.
FOUND = [("all", 2, 125), ("all", 2, 191), ("increments", 3, 187), ("increments", 3, 229)]


@pytest.mark.parametrize(("kind", "writers", "seed"), FOUND)
def test_what_was_found_is_not_found_again(kind: str, writers: int, seed: int) -> None:
    judge(story(seed, N3, kind, writers, LOSING))


# Small stories


def quiet(quorums: Quorums = N3, **nodes: int) -> World:
    world = World(1, quorums.n, quorums, Weather(delay_s=0.001))
    world.run(0.05)
    return world


def outcome(op: Op) -> object:
    return op.outcome


def test_a_write_is_on_a_majority_before_it_is_answered() -> None:
    world = quiet()
    a, b, c = world.names
    op = world.do(a, b"INCR", b"k")
    assert outcome(op) == "waits"
    world.run(0.1)
    assert outcome(op) == 1
    assert [world.nodes[name].value(b"k") for name in (a, b, c)] == [b"1"] * 3


@pytest.mark.parametrize("args", [(b"INCR", b"k"), (b"BOTH", b"k", b"l")])
def test_what_was_built_upon_leaves_once_its_own_disk_has_it(args: tuple[bytes, ...]) -> None:
    """Else it may stay with another node alone, which then is no majority with its author: see 3444 in `test_found`."""
    world = quiet()
    a, b, c = world.names
    world.nodes[a].is_disk_late = True
    op = world.do(a, *args)
    later = world.do(a, b"SET", b"x", b"1")  # It follows in order.
    read = world.do(a, b"GET", b"m")  # A question need not wait.
    world.run(0.1)
    assert [world.nodes[name].value(b"k") for name in (a, b, c)] == [b"1", None, None]
    assert [outcome(each) for each in (op, later, read)] == ["waits", "waits", None]
    world.nodes[a].is_disk_late = False
    world.run(0.1)
    assert [outcome(each) for each in (op, later)] == [[1, 1] if args[0] == b"BOTH" else 1, b"OK"]


@pytest.mark.parametrize("is_full", [False, True])
def test_an_inquest_does_not_ask_before_the_write_has_left_that_it_is_about(is_full: bool) -> None:
    """Nobody had it then, so that it was taken back, and came afterwards: seed 287 of `test_found`."""
    world = quiet()
    a, b, c = world.names
    node = world.nodes[a]
    node.is_disk_full, node.is_disk_late = is_full, not is_full
    op = world.do(a, b"INCR", b"k")
    world.run(3 * TIMEOUT_S)
    assert isinstance(outcome(op), QuorumNotMet)
    assert node.coordinator.inquest.cases
    assert not [message for _, source, _, message in world.log if source == a]
    node.is_disk_full = node.is_disk_late = False
    world.run(5.0)
    assert not node.coordinator.inquest.cases
    assert len({world.nodes[name].value(b"k") for name in (a, b, c)}) == 1


def test_what_depends_on_nothing_does_not_wait_for_its_own_disk() -> None:
    world = quiet()
    a, b, _ = world.names
    world.nodes[a].is_disk_late = True
    world.do(a, b"SET", b"k", b"1")
    world.run(0.1)
    assert world.nodes[b].value(b"k") == b"1"


def test_with_many_replicas_nothing_waits_for_its_own_disk() -> None:
    """There an author and one other are no majority anyway (`cluster/held.py`)."""
    world = World(0, 5, N5)
    a, b = world.names[:2]
    world.nodes[a].is_disk_late = True
    world.do(a, b"INCR", b"k")
    world.run(0.1)
    assert world.nodes[b].value(b"k") == b"1"


@pytest.mark.parametrize("is_known", [False, True])
def test_who_may_have_forgotten_does_not_confirm_what_was_built_upon(is_known: bool) -> None:
    """a and c have confirmed an INCR. c is away, and a has lost its disk: b must not count from what it has."""
    world = quiet()
    a, b, c = world.names
    world.disconnect(a, b)
    world.disconnect(b, c)
    first = world.do(a, b"INCR", b"k")
    world.run(0.1)
    assert outcome(first) == 1
    world.nodes[a] = Node(world, a, N3, 7)
    world.disconnect(a, c)
    world.connect(a, b)

    def hear() -> None:
        assert world.nodes[b].topology.mark_complete(a, is_complete=False)

    if is_known:
        hear()
    op = world.do(b, b"INCR", b"k")
    if not is_known:
        hear()  # Before the answer comes.
    world.run(0.1)
    assert isinstance(outcome(op), QuorumNotMet)
    assert (world.nodes[b].value(b"k") is None) == is_known  # Else it is found out about.
    blind = world.do(b, b"SET", b"other", b"1")
    world.run(0.1)
    assert outcome(blind) == b"OK"


def test_two_increments_at_two_nodes_at_the_same_time_both_count() -> None:
    for seed in range(15):
        world = World(seed, 3, N3, Weather(delay_s=0.05))
        a, b, _ = world.names
        ops = [world.do(a, b"INCR", b"k"), world.do(b, b"INCR", b"k")]
        world.run(1.0)
        assert sorted(map(str, map(outcome, ops))) == ["1", "2"], seed
        reads = [world.do(name, b"GET", b"k") for name in world.names]
        world.run(0.5)
        assert [outcome(read) for read in reads] == [b"2"] * 3


def test_one_of_two_locks_is_taken() -> None:
    for seed in range(15):
        world = World(seed, 3, N3, Weather(delay_s=0.05))
        a, b, _ = world.names
        ops = [world.do(a, b"SETNX", b"k", b"a"), world.do(b, b"SETNX", b"k", b"b")]
        world.run(1.0)
        assert sorted(map(str, map(outcome, ops))) == ["0", "1"], seed
        winner = b"a" if outcome(ops[0]) == 1 else b"b"
        reads = [world.do(name, b"GET", b"k") for name in world.names]
        world.run(0.5)
        assert [outcome(read) for read in reads] == [winner] * 3


def test_what_may_be_taken_back_is_told_to_nobody() -> None:
    """A reader elsewhere is not shown a write that its author has to take back."""
    world = quiet()
    a, b, c = world.names
    world.cut = {frozenset((a, b)), frozenset((a, c))}  # Nobody knows yet.
    lost = world.do(a, b"INCRBY", b"k", b"100")
    won = world.do(b, b"INCRBY", b"k", b"1")
    world.run(0.1)
    assert outcome(won) == 1
    world.cut.clear()
    node = world.nodes[a]
    slot, row = place_of(b"k")
    assert node.replica.is_undecided(slot, row)
    read = world.do(c, b"GET", b"k")
    world.run(0.3)
    assert outcome(read) == b"1"
    for name in (b, c):
        raw = world.nodes[name].replica.store.get(slot, row)
        assert raw is not None
        assert node.replica.actor.to_bytes(8, "little") not in raw
    world.run(2.0)
    assert isinstance(outcome(lost), QuorumNotMet)


def values(world: World, name: str) -> set[bytes]:
    """All versions of k at a node."""
    raw = world.nodes[name].replica.store.get(*place_of(b"k"))
    return set() if raw is None else {version.payload for version in decode(raw).versions}


def test_unchecked_writes_stand_beside_each_other_everywhere() -> None:
    for seed in range(15):
        world = World(seed, 3, N3, Weather(delay_s=0.05))
        ops = [world.do(name, b"PUT", b"k", b"of " + name.encode()) for name in world.names]
        world.run(1.0)
        assert [outcome(op) for op in ops] == [b"OK"] * 3
        for name in world.names:
            assert len(values(world, name)) == 3
        world.do(world.names[seed % 3], b"SET", b"k", b"one")
        world.run(0.5)
        assert [values(world, name) for name in world.names] == [{b"one"}] * 3


def siblings_meet_an_increment() -> tuple[World, Op]:
    """An increment at `a` replaces one of two siblings; it has not seen the other, which the others have."""
    world = quiet()
    a, b, _ = world.names
    world.do(a, b"PUT", b"k", b"5")
    world.run(0.2)
    world.cut = {frozenset((a, b))}
    put = world.do(b, b"PUT", b"k", b"1")
    world.run(0.2)
    assert outcome(put) == b"OK"
    world.cut.clear()
    assert values(world, a) == {b"5"}
    op = world.do(a, b"INCR", b"k")
    world.run(0.2)
    return world, op


def test_a_sibling_that_a_lost_write_had_replaced_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else had replaced it, and this node's clock covers it: so it would be gone everywhere."""
    put_back = Replica.put_back
    shown = []

    def noting(self: Replica, slot: Slot, row: Row, versions: tuple[Version, ...]) -> None:
        shown.append({version.payload for version in versions})
        put_back(self, slot, row, versions)

    monkeypatch.setattr(Replica, "put_back", noting)
    world, op = siblings_meet_an_increment()
    assert shown == [{b"5", b"1"}]
    assert outcome(op) == 2  # It ran again, upon both: the later one is what it incremented.
    for name in world.names:
        assert values(world, name) == {b"2"}


def test_a_sibling_waits_for_a_write_that_may_be_taken_back() -> None:
    """Its row would be sent with the version of that write, which then could not be taken back."""
    world = quiet()
    a, b, c = world.names
    world.do(b, b"SET", b"k", b"0")
    world.run(0.2)
    world.cut = {frozenset((a, b)), frozenset((a, c))}
    lost = world.do(a, b"INCRBY", b"k", b"100")
    put = world.do(a, b"PUT", b"k", b"mine")
    assert world.met["parked"]
    won = world.do(b, b"INCR", b"k")
    world.run(0.1)
    assert outcome(won) == 1
    assert outcome(put) == "waits"
    assert not any(b"mine" in part for *_, message in world.log for part in message)
    world.cut.clear()
    world.run(3.0)
    assert isinstance(outcome(lost), QuorumNotMet)
    assert not world.nodes[a].parked


def test_a_lost_write_does_not_wait_for_a_sibling() -> None:
    """An unchecked write after it cannot lose: it is not repeated with it, and its fate is its own."""
    world = quiet()
    a, b, c = world.names
    world.cut = {frozenset((a, b)), frozenset((a, c))}
    world.do(b, b"SET", b"k", b"of b")
    world.run(0.1)
    world.cut.clear()
    lost = world.do(a, b"SET", b"k", b"of a")
    world.cut = {frozenset((a, b)), frozenset((a, c))}
    put = world.do(a, b"PUT", b"k", b"mine")
    world.cut.clear()
    world.run(0.5)
    assert outcome(lost) == b"OK"
    assert world.nodes[a].coordinator.retries_total == 1
    assert outcome(put) == "waits"
    world.run(1.0)
    assert isinstance(outcome(put), QuorumNotMet)


def test_a_write_without_answers_ends_at_its_deadline() -> None:
    world = quiet()
    a, b, c = world.names
    world.cut = {frozenset((a, b)), frozenset((a, c))}
    op = world.do(a, b"INCR", b"k")
    world.run(0.9)
    assert outcome(op) == "waits"
    world.run(0.3)
    error = outcome(op)
    assert isinstance(error, QuorumNotMet)
    assert (error.needed, error.answered, error.is_write) == (2, 1, True)
    assert not world.nodes[a].coordinator.writes


def test_peers_that_are_known_to_be_gone_are_not_waited_for() -> None:
    world = quiet()
    a, b, c = world.names
    op = world.do(a, b"INCR", b"k")
    world.disconnect(a, b)
    world.disconnect(a, c)
    assert isinstance(outcome(op), QuorumNotMet)
    refused = world.do(a, b"GET", b"k")
    error = outcome(refused)
    assert isinstance(error, QuorumNotMet)
    assert (error.needed, error.answered, error.is_write) == (2, 1, False)


def test_a_read_asks_another_peer_if_the_first_is_late_and_one_answer_counts_once() -> None:
    world = quiet(N5)
    a = world.names[0]
    write = world.do(a, b"SET", b"k", b"v")
    world.run(0.1)
    assert outcome(write) == b"OK"
    peers = world.nodes[a].coordinator.batches[place_of(b"k")[0]].peers
    world.cut = {frozenset((a, peer)) for peer in peers[1:]}
    read = world.do(a, b"GET", b"k")  # Two others have to confirm, and only one can be heard.
    world.run(0.5)
    assert outcome(read) == "waits"
    world.cut = {frozenset((a, peer)) for peer in peers[2:]}
    world.run(0.3)
    assert outcome(read) == b"v"


def test_an_answer_that_comes_twice_counts_once() -> None:
    world = quiet(N5)
    world.weather.repeat = 1.0
    a, *others = world.names
    world.cut = {frozenset((a, peer)) for peer in others[1:]}
    ops = [world.do(a, b"INCR", b"k"), world.do(a, b"GET", b"other")]
    world.run(0.4)
    assert [outcome(op) for op in ops] == ["waits", "waits"]
    world.cut.discard(frozenset((a, others[1])))
    world.run(0.5)
    assert outcome(ops[1]) is None
    assert outcome(ops[0]) == "waits"  # What was lost is not sent again.
    world.run(0.5)
    assert isinstance(outcome(ops[0]), QuorumNotMet)


def test_a_reader_brings_what_it_saw_to_enough_replicas() -> None:
    """Monotonic: once a value was read, nobody reads an older one."""
    world = quiet()
    a, b, c = world.names
    world.cut = {frozenset((a, c))}
    world.do(a, b"SET", b"k", b"new")
    world.run(0.1)
    world.cut = {frozenset((a, b))}
    reads = [world.do(name, b"GET", b"k") for name in (b, c)]
    world.run(0.5)
    assert [outcome(read) for read in reads] == [b"new"] * 2
    assert world.nodes[c].value(b"k") == b"new"


def test_a_command_that_wrote_is_not_run_again_for_what_it_read() -> None:
    """MOVE reads one key and increments another: the increment is not taken back, so it must not run twice."""
    world = quiet()
    a, b, c = world.names
    world.cut = {frozenset((a, b)), frozenset((a, c))}
    world.do(b, b"SET", b"from", b"x")
    world.run(0.05)
    world.cut.clear()
    move = world.do(a, b"MOVE", b"from", b"to")
    world.run(2.0)
    assert isinstance(outcome(move), ConflictLost)
    read = world.do(b, b"GET", b"to")
    world.run(0.5)
    assert outcome(read) == b"1"


def test_malformed_answers_are_typed_errors_and_break_nothing() -> None:
    world = quiet()
    a, b, _ = world.names
    world.do(b, b"SET", b"k", b"v")
    world.run(0.1)
    node = world.nodes[a]
    world.cut = {frozenset((a, peer)) for peer in world.names if peer != a}
    read = world.do(a, b"GET", b"k")
    write = world.do(a, b"INCR", b"other")
    (asked,) = node.coordinator.reads.values()
    (sent,) = node.coordinator.writes.values()
    number, write_number = b"%d" % asked.id, b"%d" % sent.id
    place = b"\0\1" + b"r" * 12
    for message in (
        [b"ACK"],
        [b"ACK", b"x"],
        [b"ACK", write_number, b"short", b""],
        [b"ACK", write_number, place, b"\x20"],
        [b"STATES", number, b"x", b""],
        [b"STATES", number, b"0", b"\x20\x01"],
        [b"NOT", b""],
        [b"SAME"],
    ):
        with pytest.raises(MalformedDelta):
            node.coordinator.receive(asked.peer, message)
    assert list(node.coordinator.reads) == [asked.id]
    world.run(2.0)
    assert isinstance(outcome(read), QuorumNotMet)
    assert isinstance(outcome(write), QuorumNotMet)


def test_stray_answers_count_for_nothing() -> None:
    world = quiet()
    a, b, c = world.names
    node = world.nodes[a]
    world.cut = {frozenset((a, b)), frozenset((a, c))}
    read = world.do(a, b"GET", b"k")
    (asked,) = node.coordinator.reads.values()
    other = b if asked.peer == c else c
    number = b"%d" % asked.id
    for peer, message in (
        (other, [b"SAME", number]),
        (other, [b"STATES", number, b"0", b""]),
        (asked.peer, [b"SAME", b"999999"]),
        ("nobody", [b"SAME", number]),
    ):
        assert node.coordinator.receive(peer, message)
    assert outcome(read) == "waits"
    assert node.coordinator.receive(asked.peer, [b"SAME", number])
    assert outcome(read) is None


# Planted bugs


def never_refusing(self: Replica, *args: object) -> tuple[None, None]:
    return None, None


def telling(self: Undecided, place: tuple[Slot, Row]) -> None:
    return None


def counting_twice(
    self: WriteRound, peer: str, refused: dict[object, bytes], *, is_forgetful: bool
) -> bool:
    """Each answer is taken as one of another peer."""
    self.answers[f"{peer}{len(self.answers)}"] = {}
    return True


def test_a_planted_answer_that_counts_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WriteRound, "add_answer", counting_twice)
    with pytest.raises(AssertionError):
        test_an_answer_that_comes_twice_counts_once()


def without_the_winner(
    past: Record, dots: set[Dot], states: Sequence[Record], held: Record
) -> tuple[Version, ...]:
    return past.versions


def everything_of_two_writers() -> None:
    for seed in range(60):
        judge(story(seed, N3, "increments", 2, REORDERING))
    test_one_of_two_locks_is_taken()
    test_two_increments_at_two_nodes_at_the_same_time_both_count()


PLANTED = [
    ("no conflict is looked for", Replica, "_check", never_refusing),
    ("undecided writes are told", Undecided, "round_of", telling),
    ("the loser does not join the winner", conflict, "restored", without_the_winner),
    ("nothing is taken back", Replica, "put_back", lambda self, slot, row, versions: None),
]


@pytest.mark.parametrize(
    ("name", "owner", "function", "replacement"), PLANTED, ids=[each[0] for each in PLANTED]
)
def test_planted_bugs_are_found(
    name: str,
    owner: object,
    function: str,
    replacement: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, function, replacement)
    with pytest.raises(AssertionError):
        everything_of_two_writers()
