"""The compact clocks against a plain clock per slot."""

from __future__ import annotations

import random

import msgspec
import pytest

from cluster.clock import SlotClock
from cluster.slot_clocks import CLOCK_COUNT, ClocksState, SlotClocks

ME = 7
ACTORS = (ME, 8, 9, 1 << 62)
SLOTS = (0, 1, 5000, CLOCK_COUNT - 1)


class Both:
    """The clocks under test, and the plain ones."""

    def __init__(self) -> None:
        self.clocks = SlotClocks(ME)
        self.plain = {slot: SlotClock() for slot in SLOTS}

    def check(self) -> None:
        for slot, plain in self.plain.items():
            assert self.clocks.clock(slot) == plain
            for actor in ACTORS:
                for counter in range(1, 12):
                    dot = (actor, counter)
                    assert self.clocks.covers(slot, dot) == plain.covers(dot), (slot, dot)
            others = [*plain.base, *(actor for actor, _ in plain.beyond)]
            assert self.clocks.has_others(slot) == any(a != self.clocks.actor for a in others)
        seen = [slot for slot, plain in self.plain.items() if plain != SlotClock()]
        assert list(self.clocks.slots()) == sorted(seen)

    def step(self, rng: random.Random) -> None:
        slot = rng.choice(SLOTS)
        plain = self.plain[slot]
        what = rng.random()
        if what < 0.3:  # A write of its own, as the hot path counts.
            self.clocks.own[slot] += 1
            plain.add((self.clocks.actor, self.clocks.own[slot]))
        elif what < 0.8:
            dot = (rng.choice([a for a in ACTORS if a != self.clocks.actor]), rng.randrange(1, 12))
            self.clocks.add(slot, dot)
            plain.add(dot)
        elif what < 0.9:
            other = SlotClock({rng.choice(ACTORS): rng.randrange(1, 12)})
            if ME not in other.base or self.clocks.actor == ME:
                self.clocks.join(slot, other)
                plain.join(other)
        elif what < 0.95:
            state = msgspec.msgpack.encode(self.clocks.capture())
            self.clocks = SlotClocks.restore(msgspec.msgpack.decode(state, type=ClocksState))


@pytest.mark.parametrize("seed", range(20))
def test_against_a_plain_clock_per_slot(seed: int) -> None:
    rng = random.Random(seed)
    both = Both()
    for _ in range(80):
        both.step(rng)
    both.check()


def test_a_new_actor_keeps_what_the_old_one_did() -> None:
    both = Both()
    rng = random.Random(1)
    for _ in range(40):
        both.step(rng)
    both.clocks.change_actor(ME + 1000)
    both.check()
    assert not any(both.clocks.own)
    both.clocks.own[SLOTS[0]] += 1
    assert both.clocks.covers(SLOTS[0], (ME + 1000, 1))
    assert not both.clocks.covers(SLOTS[0], (ME + 1000, 2))


def test_a_forgotten_dot_of_its_own_is_not_given_out_again() -> None:
    clocks = SlotClocks(ME)
    clocks.add(3, (ME, 10))
    assert clocks.own[3] == 10
    clocks.join(3, SlotClock({ME: 20}))
    assert clocks.own[3] == 20
