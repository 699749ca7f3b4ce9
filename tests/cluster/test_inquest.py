"""What is open when a memtable is flushed, and what becomes of a row without some of its writes.

Whole stories are in `tests/cluster/test_coordinator.py` and in the simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import pytest

from cluster.batch import Quorums
from cluster.case import Case, restored, seen_before
from cluster.clock import SlotClock
from cluster.coordinator import Coordinator
from cluster.delta_wire import record_of
from cluster.errors import ClusterError
from cluster.inquest import Inquest
from cluster.record import STRING, Record, Version, decode
from cluster.recovery import Recovery
from cluster.round import ConflictLost, Pending, QuorumNotMet, WriteEntry, WriteRound
from cluster.undecided import Undecided
from tests.cluster.cluster_world import NOW_MS, TIMEOUT_S, Node, Op, Weather, World, place_of

HERE, THERE = 1, 2


def test_what_is_under_way_when_the_memtable_is_flushed_is_open_for_the_next_process() -> None:
    world = World(1, 3, Quorums(3, 2, 2), Weather(delay_s=0.001))
    world.run(0.05)
    node = world.nodes["n01"]
    world.do("n01", b"SET", b"done", b"1")
    world.run(0.1)
    world.cut = {frozenset(("n01", other)) for other in ("n02", "n03")}
    world.do("n01", b"INCR", b"k")
    kept = Recovery(7)
    kept.restore(node.replica.capture())
    assert list(kept.open_rows.rows) == [place_of(b"k")]
    world.settle()
    again = Recovery(8)
    again.restore(node.replica.capture())
    assert not again.open_rows.rows


def new_world() -> World:
    world = World(1, 3, Quorums(3, 2, 2), Weather(delay_s=0.001))
    world.run(0.05)
    return world


def kept_together(node: Node) -> list[list[tuple[int, bytes]]]:
    """As the next process finds it when the log is gone."""
    kept = Recovery(7)
    kept.restore(node.replica.capture())
    return kept.open_rows.written_together()


def test_what_one_command_has_under_way_is_open_together() -> None:
    world = new_world()
    node = world.nodes["n01"]
    places = [place_of(b"{k}one"), place_of(b"{k}two")]
    op = Op(node, (b"SET", b"{k}one", b"raw"))
    entries: list[WriteEntry] = [(op, 0, slot, row, b"raw") for slot, row in places]
    coordinator = node.coordinator
    for number, is_unit in ((98, False), (99, True)):
        coordinator.writes[number] = WriteRound(
            number, ("n02", "n03"), 1, entries, world.now_s + 1, is_unit=is_unit, weight_bytes=0
        )
    assert kept_together(node) == [places]
    coordinator.writes[99].is_decided = True
    assert kept_together(node) == []


def test_what_is_judged_together_is_open_together() -> None:
    world = new_world()
    node = world.nodes["n01"]
    one, two, three = (place_of(key) for key in (b"{k}one", b"{k}two", b"{k}three"))
    node.coordinator.inquest.open_at_start(
        dict.fromkeys((one, two, three), b""), [[two, three]], world.now_s
    )
    assert kept_together(node) == [[two, three]]


def test_a_write_of_before_the_start_that_others_have_replaced_is_replaced_here() -> None:
    """Its next form is not in the log any more, and nothing tells but what others hold."""
    world = new_world()
    slot, row = place_of(b"k")
    node = world.nodes["n01"]
    lost = b""
    for value in (b"1", b"2"):
        lost = node.replica.store.get(slot, row) or b""
        assert world.do("n01", b"SET", b"k", value) is not None
        world.run(0.2)
    latest = node.replica.store.get(slot, row)
    node.replica.store.apply(slot, row, lost)
    node.replica.clocks.own[slot] = 1
    node.coordinator.inquest.open_at_start({(slot, row): b""}, (), world.now_s)
    world.run(2.5)
    assert not node.coordinator.inquest.cases
    found = node.replica.store.get(slot, row)
    assert found is not None
    assert latest is not None
    assert decode(found).versions == decode(latest).versions != decode(lost).versions


def open_increment(world: World, name: str) -> Case:
    """The case of an INCR of k for which nobody has answered."""
    node = world.nodes[name]
    others = [other for other in world.names if other != name]
    world.cut |= {frozenset((name, other)) for other in others}
    op = world.do(name, b"INCR", b"k")
    world.run(TIMEOUT_S + 0.2)
    assert isinstance(op.outcome, QuorumNotMet)
    return node.coordinator.inquest.cases[place_of(b"k")]


def shown(world: World, name: str) -> list[bytes]:
    """All versions of k at a node."""
    record = world.nodes[name].coordinator.repairs.record(place_of(b"k"))
    return [each.payload for each in record.versions]


def state_of(world: World, name: str) -> Record:
    return record_of(world.nodes[name].replica.state_of(*place_of(b"k")))


def test_an_answer_that_is_older_than_the_row_is_asked_for_again() -> None:
    """Else it brought back what the row had replaced since, and only here: seed 6330 of `test_found`."""
    world = new_world()
    case = open_increment(world, "n01")
    node = world.nodes["n01"]
    answers = []
    for _ in range(2):
        world.do("n02", b"INCR", b"k")
        world.run(0.1)
        answers.append(state_of(world, "n02"))
    case.answers["n02"] = answers[0]
    assert node.replica.repair(*case.place, answers[1], node.coordinator.now_ms)
    node.coordinator.inquest._judge(case.group)
    world.cut.clear()
    world.run(5.0)
    assert not node.coordinator.inquest.cases
    assert [shown(world, name) for name in world.names] == [[b"2"]] * 3


def test_what_a_refused_form_of_a_row_had_seen_is_in_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has seen that, so that nobody would refuse a form without it: seed 6467 of `test_found`."""
    world = new_world()
    slot, _ = place_of(b"k")
    one, name, other = world.nodes["n01"].topology.replicas(
        slot
    )  # One that gives way to the first.
    case = open_increment(world, name)
    node = world.nodes[name]
    world.do(one, b"SET", b"k", b"else")
    world.run(0.1)
    forms: list[bytes] = []

    def send_rows(op: Pending, rows: Sequence[tuple[int, bytes, bytes]]) -> None:
        forms.extend(raw for _, _, raw in rows)

    monkeypatch.setattr(node.coordinator, "send_rows", send_rows)
    for answer in (state_of(world, one), Record(())):  # They need not be of the same replica.
        case.answers.update({one: Record(()), other: answer})
        node.coordinator.inquest._judge(case.group)
        node.coordinator.inquest.begin_again([case])
    assert [each.payload for each in decode(forms[0]).versions] == [b"else"]
    assert shown(world, name) == [b"else"]


def version(actor: int, counter: int, payload: bytes = b"") -> Version:
    return Version((actor, counter), counter, STRING, payload)


BEFORE, OPEN, OTHER = version(HERE, 1), version(HERE, 2), version(THERE, 1)


def test_without_an_open_write_a_row_is_what_it_was_before() -> None:
    past = Record((BEFORE,), ((HERE, 1),))
    assert restored(past, {OPEN.dot}, [], Record((OPEN,), ((HERE, 2),))) == (BEFORE,)


def test_and_what_others_have() -> None:
    past = Record((BEFORE,), ((HERE, 1),))
    held = Record((OPEN,), ((HERE, 2),))
    unaware = Record((OTHER,), ((THERE, 1),))
    assert set(restored(past, {OPEN.dot}, [unaware], held)) == {BEFORE, OTHER}
    successor = Record((OTHER,), ((HERE, 1), (THERE, 1)))
    assert restored(past, {OPEN.dot}, [successor], held) == (OTHER,)


def test_who_has_taken_the_open_write_does_not_hide_what_it_replaced() -> None:
    past = Record((BEFORE,), ((HERE, 1),))
    taken = Record((OPEN,), ((HERE, 2),))
    assert restored(past, {OPEN.dot}, [taken], taken) == (BEFORE,)


# Nodes that end with an open write each, and do not know in their next lives what these had replaced.


STEPS = {"a": 1, "b": 2, "c": 4}


def named(world: World, letters: str) -> list[str]:
    """Nodes by their place in the preference list of `k`: the first is `a`."""
    replicas = world.nodes[world.names[0]].topology.replicas(place_of(b"k")[0])
    return [replicas["abc".index(letter)] for letter in letters]


def forget_cases(coordinator: Coordinator) -> None:
    """As the next process does."""
    coordinator.inquest = Inquest(coordinator)
    coordinator.undecided = Undecided(
        coordinator.writes,
        coordinator.conflicts,
        coordinator.inquest,
        coordinator.held,
        coordinator.seal,
    )
    coordinator.replica.is_undecided = coordinator.undecided.is_hidden
    coordinator.replica.under_way = coordinator.undecided.under_way


def parted(open_at: str, acknowledged: str) -> World:
    """`k` is 10 everywhere; then only one pair can meet, and each of some nodes counts once; then all end."""
    world = World(1, 3, Quorums(3, 2, 2), Weather(delay_s=0.001))
    world.run(0.05)
    op = world.do(world.names[0], b"SET", b"k", b"10")
    world.run(0.2)
    assert op.outcome == b"OK"
    world.cut = {
        frozenset(named(world, line)) for line in ("ab", "ac", "bc") if line != acknowledged
    }
    for letter, name in zip(open_at, named(world, open_at), strict=True):
        counted = world.do(name, b"INCRBY", b"k", b"%d" % STEPS[letter])
        world.run(1.5)
        assert (counted.outcome == 10 + STEPS[letter]) == (letter in acknowledged)
    world.cut = {frozenset(named(world, line)) for line in ("ab", "ac", "bc")}
    for name in named(world, open_at):
        node = world.nodes[name]
        forget_cases(node.coordinator)
        node.coordinator.inquest.open_at_start({place_of(b"k"): b""}, (), world.now_s)
    return world


def meet(world: World, order: Sequence[str]) -> set[object]:
    """What is read at each node after all lines are there again, one after the other."""
    for line in order:
        world.cut.discard(frozenset(named(world, line)))
        world.run(2.5)
    world.settle()
    assert not any(node.coordinator.inquest.cases for node in world.nodes.values())
    reads = [world.do(name, b"GET", b"k") for name in world.names]
    world.run(0.5)
    return {read.outcome for read in reads}


ORDERS = list(permutations(("ab", "ac", "bc")))


@pytest.mark.parametrize("open_at", ["a", "b", "ab", "bc", "abc", "cba", "bca"])
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_nodes_that_have_all_ended_agree_on_one_of_their_open_writes(
    open_at: str, order: tuple[str, ...]
) -> None:
    shown = meet(parted(open_at, ""), order)
    # Nobody was told anything; and nothing from before is lost.
    possible = [{b"%d" % (10 + STEPS[letter])} for letter in open_at]
    assert shown in ([*possible, {b"10"}] if len(open_at) < 3 else possible)


@pytest.mark.parametrize("acknowledged", ["ab", "ac", "bc"])
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_what_one_of_them_had_acknowledged_stays(acknowledged: str, order: tuple[str, ...]) -> None:
    outsider = next(name for name in "abc" if name not in acknowledged)
    for open_at in (acknowledged[0] + outsider, outsider + acknowledged[1]):
        shown = meet(parted(open_at, acknowledged), order)
        told = next(letter for letter in open_at if letter in acknowledged)
        assert shown == {b"%d" % (10 + STEPS[told])}


def late(open_at: str, acknowledged: str) -> World:
    """The second one asks much later than the first."""
    world = parted(open_at, acknowledged)
    (second,) = named(world, open_at[1])
    world.nodes[second].coordinator.inquest.cases[place_of(b"k")].next_s += 5.0
    return world


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_the_first_that_asks_does_not_take_an_open_write_for_a_confirmed_one(
    order: tuple[str, ...],
) -> None:
    assert meet(late("ac", "ab"), order) == {b"11"}
    assert meet(late("ca", "ab"), order) == {b"11"}


def test_a_doubt_that_is_not_told_loses_what_was_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def told(self: Inquest, place: tuple[int, bytes]) -> tuple[bytes, bytes] | None:
        case = self.cases.get(place)
        return None if case is None else (self._coordinator.replica.state_of(*place), b"")

    monkeypatch.setattr(Inquest, "testimony", told)
    assert meet(late("ac", "ab"), ("ac", "ab", "bc")) == {b"14"}


@pytest.mark.parametrize("n", [3, 5])
def test_what_stood_beside_an_open_write_when_its_node_ended_had_not_been_seen(n: int) -> None:
    """It was sent again together with that, and refused by nobody: then the later of the two won."""
    world = World(1, n, Quorums(n, n // 2 + 1, n // 2 + 1), Weather(delay_s=0.001))
    world.run(0.05)
    case = open_increment(world, "n01")
    node = world.nodes["n01"]
    counted = world.do("n02", b"INCRBY", b"k", b"100")
    world.run(0.1)
    assert counted.outcome == 100
    slot, row = case.place
    node.replica.repair(slot, row, state_of(world, "n02"), node.coordinator.now_ms)
    assert sorted(shown(world, "n01")) == [b"1", b"100"]
    forget_cases(node.coordinator)
    node.coordinator.inquest.open_at_start({case.place: b""}, (), world.now_s)
    # All but one are within reach, so that as few as possible refuse it.
    away = world.names[-(n // 2) :]
    world.cut = {frozenset((name, "n01")) for name in away}
    world.run(5.0)
    world.cut.clear()
    world.run(5.0)
    world.settle()
    assert [shown(world, name) for name in world.names] == [[b"100"]] * n


def test_what_had_been_seen_before_some_dots() -> None:
    clock = SlotClock({1: 5, 2: 1, 3: 7}, {(1, 8), (4, 3)})
    left = seen_before(clock, [(1, 3), (2, 1), (9, 9)])
    assert left == SlotClock({1: 2, 3: 7}, {(4, 3)})
    assert clock.covers((1, 8))
    assert seen_before(clock, [(4, 3)]).beyond == {(1, 8)}


def test_what_one_of_two_rows_was_refused_for_counts_for_it_when_both_are_taken_back() -> None:
    """The removal came here otherwise as well, and so beside what it had removed, as far as this node could tell."""
    world = new_world()
    one, two = b"{k}one", b"{k}two"
    for key in (one, two):
        world.do("n01", b"SET", key, b"1")
        world.run(0.2)
    world.cut = {frozenset(("n01", other)) for other in ("n02", "n03")}
    removed = world.do("n02", b"DEL", two)
    world.run(0.2)
    assert removed.outcome == 1
    world.cut = set()
    counted = world.do("n01", b"BOTH", one, two)
    node = world.nodes["n01"]
    there = decode(world.nodes["n02"].replica.state_of(*place_of(two)))
    node.replica.merge(*place_of(two), there, node.coordinator.now_ms)
    world.run(0.5)
    assert counted.outcome == [2, 1]


class TriedBefore(Op):
    """A SET that may have been made elsewhere: it cannot be made again."""

    __slots__ = ()

    @property
    def may_be_twice(self) -> bool:
        return True

    def stale(self) -> None:
        self.is_over = True
        self.end(ConflictLost(is_partial=True))


def test_a_set_that_was_made_elsewhere_as_well_does_not_stay_beside_what_replaced_it() -> None:
    world = new_world()
    world.cut = {frozenset(("n01", other)) for other in ("n02", "n03")}
    replaced = world.do("n02", b"SET", b"k", b"new")
    world.run(0.2)
    assert replaced.outcome == b"OK"
    world.cut.discard(frozenset(("n01", "n02")))
    node = world.nodes["n01"]
    op = TriedBefore(node, (b"SET", b"k", b"again"))
    world.in_tick(node, lambda: node.execute(op))
    world.run(1.5)
    assert isinstance(op.outcome, ClusterError)
    world.cut = set()
    world.settle()
    for each in world.nodes.values():
        raw = each.replica.store.get(*place_of(b"k"))
        assert raw is not None
        assert [version.payload for version in decode(raw).versions] == [b"new"]


def test_a_row_is_not_set_back_to_what_a_replica_has_that_had_missed_the_last_one() -> None:
    """Of two rows that were written together one was overtaken. What was in the other is on two replicas of three."""
    world = new_world()
    first, second, third = world.names
    one, two = b"{k}one", b"{k}two"
    world.cut = {frozenset((first, third)), frozenset((second, third))}
    assert world.do(first, b"INCR", two) is not None
    world.run(0.2)
    world.cut = {frozenset((first, second)), frozenset((first, third))}
    both = world.do(first, b"BOTH", one, two)
    counted = world.do(third, b"INCR", one)
    world.run(1.5)
    assert isinstance(both.outcome, ClusterError)
    assert counted.outcome == 1
    coordinator = world.nodes[first].coordinator
    forget_cases(coordinator)
    places = [place_of(one), place_of(two)]
    coordinator.inquest.open_at_start(dict.fromkeys(places, b""), [places], world.now_s)
    world.cut = {frozenset((first, second))}
    world.run(3)
    assert len(coordinator.inquest.cases) == 2, "decided with the one that had missed it"
    world.cut = set()
    world.settle()
    assert not coordinator.inquest.cases
    assert {node.value(two) for node in (world.nodes[first], world.nodes[second])} == {b"1"}
    read = world.do(third, b"GET", two)
    world.run(0.5)
    assert read.outcome == b"1"


def test_a_doubt_is_not_borne_out_by_the_clock_of_who_has_dropped_the_write_since() -> None:
    world = new_world()
    asking, doubting, _ = world.names
    place = place_of(b"k")
    assert world.do(asking, b"SET", b"k", b"10") is not None
    world.run(0.2)
    before = decode(world.nodes[doubting].replica.store.get(*place) or b"").versions
    world.cut = {frozenset(pair) for pair in permutations(world.names, 2)}
    for name, step in ((asking, b"1"), (doubting, b"2")):
        counted = world.do(name, b"INCRBY", b"k", step)
        world.run(1.5)
        assert isinstance(counted.outcome, ClusterError)
    other = world.nodes[doubting]
    forget_cases(other.coordinator)
    other.coordinator.inquest.open_at_start({place: b""}, (), world.now_s)
    world.run(0.3)
    other.coordinator.inquest.cases[place].next_s += 1000  # It only answers.
    world.cut.discard(frozenset((asking, doubting)))
    world.run(1)
    asked = world.nodes[asking]
    case = asked.coordinator.inquest.cases[place]
    assert case.doubts
    # It drops its write, and a slot that is compared has all that the other one has seen.
    forget_cases(other.coordinator)
    other.replica.put_back(*place, before)
    asked.replica.join_clock(place[0], other.replica.clocks.clock(place[0]), NOW_MS)
    world.run(3)
    assert not asked.coordinator.inquest.cases
    assert [world.nodes[name].value(b"k") for name in (asking, doubting)] == [b"11", b"11"]
