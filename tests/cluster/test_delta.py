"""Replicas of one slot that exchange deltas over a bad network, against causal histories written out.

The model keeps, for each replica and row, the set of events that it has seen; what the replica shows
must be what that set shows. Deltas are lost, doubled and reordered, replicas read their rows or not,
and exchange what they lack.
"""

from __future__ import annotations

import random
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import delta as delta_module
from cluster.clock import Actor, Dot, SlotClock
from cluster.delta import Outcome, clock_of, joined, lacks, missing, settle, stripped, whole
from cluster.record import DELETION, STRING, Record, Version, decode, encode, join_records

ROWS = (b"a", b"b", b"c")
NOTHING = Record(())


@dataclass
class Replica:
    """Rows as a store keeps them: a complete entry, and deltas over it that nobody has joined yet."""

    actor: Actor
    clock: SlotClock = field(default_factory=SlotClock)
    complete: dict[bytes, Record] = field(default_factory=dict)
    deltas: dict[bytes, list[Record]] = field(default_factory=dict)
    counter: int = 0

    def read(self, row: bytes) -> Record:
        """All entries of a row joined, newest first, as the engine does it."""
        state = NOTHING
        entries = [*reversed(self.deltas.get(row, [])), self.complete.get(row, NOTHING)]
        for number, entry in enumerate(entries):
            state = decode(encode(entry)) if number == 0 else join_records(state, entry)
        return state

    def write(self, row: bytes, payload: bytes, *, hlc: int, kind: int, is_blind: bool) -> Record:
        """A local write: it replaces all that the replica has seen, or (blind) nothing."""
        self.counter += 1
        version = Version((self.actor, self.counter), hlc, kind, payload)
        context = SlotClock() if is_blind else clock_of(whole(self.read(row), self.clock))
        context.add(version.dot)
        made = Record((version,), *context.freeze())
        self.take(row, made, at_hand=self.read(row) if is_blind else None)
        return made

    def take(self, row: bytes, delta: Record, *, at_hand: Record | None) -> Outcome:
        outcome, record = settle(delta, self.clock, at_hand)
        if outcome is Outcome.READ:
            self.take(row, delta, at_hand=self.read(row))
            return outcome
        if record is not None:
            stored = decode(encode(record))
            assert stored == record
            if outcome is Outcome.COMPLETE:
                self.complete[row] = stored
                self.deltas.pop(row, None)
            else:
                self.deltas.setdefault(row, []).append(stored)
        for version in delta.versions:
            self.clock.add(version.dot)
        return outcome


@dataclass
class Model:
    """Which events each write had seen, by row."""

    replaced: dict[Dot, frozenset[Dot]] = field(default_factory=dict)
    row_of: dict[Dot, bytes] = field(default_factory=dict)

    def shown(self, seen: frozenset[Dot], row: bytes) -> frozenset[Dot]:
        events = frozenset(dot for dot in seen if self.row_of[dot] == row)
        return events - frozenset().union(*(self.replaced[dot] for dot in events))


class World:
    """Three replicas, the deltas under way, and what each replica has seen by the model."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.replicas = [Replica(actor) for actor in (1, 2, 3)]
        self.seen: list[frozenset[Dot]] = [frozenset()] * 3
        self.model = Model()
        self.under_way: list[tuple[int, bytes, Record, frozenset[Dot]]] = []
        self.outcomes: Tally[Outcome] = Tally()
        self.step_count = 0

    def step(self) -> None:
        self.step_count += 1
        choice = self.rng.random()
        if choice < 0.4:
            self.write(self.rng.randrange(3), self.rng.choice(ROWS))
        elif choice < 0.95 and self.under_way:
            self.deliver()
        elif choice > 0.97:
            self.exchange(*self.rng.sample(range(3), 2))
        self.check()

    def write(self, at: int, row: bytes) -> None:
        replica = self.replicas[at]
        is_blind = self.rng.random() < 0.3
        kind = self.rng.choice((STRING, STRING, DELETION))
        before = self.seen[at]
        made = replica.write(
            row, b"%d" % self.step_count, hlc=self.step_count, kind=kind, is_blind=is_blind
        )
        dot = made.versions[0].dot
        self.model.row_of[dot] = row
        # What a write replaces, it replaces for ever: also what its author knew to be replaced.
        known = frozenset(d for d in before if self.model.row_of[d] == row)
        known = known.union(*(self.model.replaced[d] for d in known))
        self.model.replaced[dot] = frozenset() if is_blind else known
        self.seen[at] = before | {dot}
        for other in range(3):
            if other != at and self.rng.random() < 0.8:
                self.under_way.append((other, row, made, frozenset({dot})))

    def deliver(self) -> None:
        index = self.rng.randrange(len(self.under_way))
        to, row, delta, events = self.under_way[index]
        if self.rng.random() < 0.7:
            del self.under_way[index]
        replica = self.replicas[to]
        at_hand = replica.read(row) if self.rng.random() < 0.3 else None
        self.outcomes[replica.take(row, delta, at_hand=at_hand)] += 1
        # The sender's context says what these events replaced, seen or not.
        self.seen[to] |= events

    def exchange(self, at: int, to: int) -> None:
        """`to` gets what it lacks of `at`; the end may be lost, then its clock stays as it is."""
        source, target = self.replicas[at], self.replicas[to]
        if not lacks(target.clock, source.clock):
            return
        rows = [(row, source.read(row)) for row in ROWS]
        sent_clock = joined(source.clock, SlotClock())
        for row, delta in list(missing(rows, source.clock, target.clock)):
            at_hand = target.read(row) if self.rng.random() < 0.3 else None
            self.outcomes[target.take(row, delta, at_hand=at_hand)] += 1
            self.seen[to] |= self.model.shown(self.seen[at], row)
        if self.rng.random() < 0.8:
            target.clock.join(sent_clock)
            self.seen[to] |= self.seen[at]

    def check(self) -> None:
        for replica, seen in zip(self.replicas, self.seen, strict=True):
            for row in ROWS:
                shown = replica.read(row).dots
                assert shown == self.model.shown(seen, row), (replica.actor, row, self.step_count)

    def heal(self) -> None:
        self.under_way.clear()
        rng, self.rng = self.rng, random.Random(1)
        for _ in range(30):
            for at in range(3):
                for to in range(3):
                    if at != to:
                        self.exchange(at, to)
        self.rng = rng
        self.check()


def run(seed: int) -> World:
    """A seed's whole story; raises AssertionError where a replica shows what it should not."""
    world = World(random.Random(f"delta-{seed}"))
    for _ in range(150):
        world.step()
    world.heal()
    everything = frozenset(world.model.row_of)
    for replica, seen in zip(world.replicas, world.seen, strict=True):
        assert seen == everything
        for row in ROWS:
            assert replica.read(row).dots == world.model.shown(everything, row)
        # All gaps are closed, and each clock is one counter per actor.
        assert not replica.clock.beyond
    assert world.replicas[0].clock == world.replicas[1].clock == world.replicas[2].clock
    return world


@pytest.mark.parametrize("seed", range(60))
def test_replicas_show_what_their_histories_show(seed: int) -> None:
    run(seed)


def test_the_worlds_meet_every_outcome() -> None:
    met: Tally[Outcome] = Tally()
    for seed in range(20):
        met += run(seed).outcomes
    assert all(met[outcome] > 10 for outcome in Outcome), met


def test_without_gaps_nothing_is_read_and_the_short_form_stays() -> None:
    """The usual case: one coordinator, every delta comes once and in order."""
    coordinator, other = Replica(1), Replica(2)
    for number in range(100):
        row = ROWS[number % 3]
        made = coordinator.write(row, b"v", hlc=number, kind=STRING, is_blind=False)
        assert other.take(row, made, at_hand=None) is Outcome.COMPLETE
        dot = made.versions[0].dot
        assert other.complete[row].context == coordinator.complete[row].context == (dot,)


def test_a_write_that_was_overtaken_stays_dead() -> None:
    coordinator, late = Replica(1), Replica(2)
    first = coordinator.write(b"a", b"1", hlc=1, kind=STRING, is_blind=False)
    second = coordinator.write(b"a", b"2", hlc=2, kind=STRING, is_blind=False)
    for at_hand in (None, NOTHING):
        late = Replica(2)
        assert late.take(b"a", second, at_hand=None) is Outcome.COMPLETE
        late.take(b"a", first, at_hand=None if at_hand is None else late.read(b"a"))
        assert [v.payload for v in late.read(b"a").versions] == [b"2"]


def test_a_blind_write_does_not_bury_what_its_author_had_not_replaced() -> None:
    coordinator, late = Replica(1), Replica(2)
    first = coordinator.write(b"a", b"1", hlc=1, kind=STRING, is_blind=False)
    second = coordinator.write(b"a", b"2", hlc=2, kind=STRING, is_blind=True)
    late.take(b"a", second, at_hand=None)
    late.take(b"a", first, at_hand=None)
    assert [v.payload for v in late.read(b"a").versions] == [b"2", b"1"]


dots = st.tuples(st.integers(1, 3), st.integers(1, 5))
clocks = st.frozensets(dots, max_size=8).map(
    lambda seen: joined(SlotClock(), SlotClock({}, set(seen)))
)


@settings(max_examples=200)
@given(a=clocks, b=clocks)
def test_lacks_is_not_a_subset(a: SlotClock, b: SlotClock) -> None:
    every = [(actor, counter) for actor in (1, 2, 3) for counter in range(1, 6)]
    assert lacks(a, b) == any(b.covers(dot) and not a.covers(dot) for dot in every)


@settings(max_examples=200)
@given(context=clocks, clock=clocks, held=st.frozensets(dots, min_size=1, max_size=3))
def test_stripping_changes_nothing_that_the_clock_does_not_know(
    context: SlotClock, clock: SlotClock, held: frozenset[Dot]
) -> None:
    for dot in sorted(held):
        context.add(dot)
        clock.add(dot)
    versions = tuple(Version(dot, 1, STRING) for dot in sorted(held, reverse=True))
    kept = stripped(versions, context, clock)
    assert kept.versions == versions
    assert joined(clock_of(kept), clock) == joined(context, clock)


# Each rule broken once, by replacing one function: the worlds above must notice.


def taking_all(self: Replica, row: bytes, delta: Record, *, at_hand: Record | None) -> Outcome:
    outcome = TAKE(self, row, delta, at_hand=at_hand)
    self.clock.join(clock_of(delta))
    return outcome


def context_dropped(versions: tuple[Version, ...], *_clocks: object) -> Record:
    return Record(versions, tuple(sorted(version.dot for version in versions[:1])))


def without_its_own_context(record: Record, clock: SlotClock) -> Record:
    return Record(record.versions, *clock.freeze())


def never(*_clocks: object) -> bool:
    return False


TAKE = Replica.take
PLANTED = [
    ("a clock takes its sender's context", Replica, "take", taking_all),
    ("a context is dropped", delta_module, "stripped", context_dropped),
    ("everything new is complete", delta_module, "lacks", never),
    ("a sent row has the clock's context alone", delta_module, "whole", without_its_own_context),
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
        deque(map(run, range(60)), maxlen=0)
