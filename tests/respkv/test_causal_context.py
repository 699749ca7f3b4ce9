"""Contexts as texts: what goes in comes out, and whatever was changed, cut or made elsewhere is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.clock import SlotClock
from cluster.sibling import Seen
from cluster.slot import row_of
from respkv.causal_context import (
    DAMAGED,
    FOREIGN,
    FORMAT,
    NEWER,
    OF_ANOTHER_KEY,
    TEXT_BYTES_MAX,
    TOO_LONG,
    ContextSeal,
)
from respkv.reply import ReplyError

SEAL = ContextSeal(b"the secret of a cluster")
ROW = row_of(0, b"cart")
TEXT = SEAL.seal(ROW, Seen(SlotClock({1 << 60: 300, 7: 1}, {(9, 4), (9, 5)}), frozenset({(7, 1)})))
ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

actors = st.integers(1, (1 << 64) - 1)
counters = st.integers(1, (1 << 63) - 1)
dots = st.tuples(actors, counters)
close_dots = st.tuples(st.integers(1, 2), st.integers(1, 12))
seens = st.builds(
    lambda base, beyond, holes: Seen(SlotClock(base, beyond), holes),
    st.dictionaries(actors, counters, max_size=5),
    st.sets(dots | close_dots, max_size=20),
    st.frozensets(dots, max_size=5),
)


@settings(max_examples=300, deadline=None)
@given(seens)
def test_what_goes_in_comes_out(seen: Seen) -> None:
    assert SEAL.open(ROW, SEAL.seal(ROW, seen)) == seen


def test_a_context_is_short_and_of_harmless_letters() -> None:
    text = SEAL.seal(ROW, Seen(SlotClock({1 << 62: 100_000})))
    assert len(text) < 50
    assert set(text) <= set(ALPHABET)


def refusal(seal: ContextSeal, row: bytes, text: bytes) -> ReplyError:
    with pytest.raises(ReplyError) as caught:
        seal.open(row, text)
    return caught.value


def test_every_change_of_every_letter_is_refused() -> None:
    for at in range(len(TEXT)):
        for letter in ALPHABET:
            if letter != TEXT[at]:
                changed = TEXT[:at] + bytes([letter]) + TEXT[at + 1 :]
                error = refusal(SEAL, ROW, changed)
                assert error in (DAMAGED, NEWER, FOREIGN), (at, letter)
                # The format and the cluster stand first: behind them, it is damage.
                assert at < 4 or error is DAMAGED


def test_every_cut_and_every_addition_is_refused() -> None:
    for at in range(len(TEXT)):
        assert refusal(SEAL, ROW, TEXT[:at]) is DAMAGED
        assert refusal(SEAL, ROW, TEXT[at + 1 :]) in (DAMAGED, NEWER)
        for more in (b"A", b"=", b" ", b"\n", b"\0", b"\xff"):
            assert refusal(SEAL, ROW, TEXT[:at] + more + TEXT[at:]) in (DAMAGED, NEWER, FOREIGN)
    assert refusal(SEAL, ROW, TEXT + b"=") is DAMAGED
    assert refusal(SEAL, ROW, TEXT + TEXT) is DAMAGED


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(ALPHABET.decode(), max_size=200).map(str.encode))
def test_garbage_is_refused(text: bytes) -> None:
    assert refusal(SEAL, ROW, text) in (DAMAGED, NEWER, FOREIGN)


def test_what_is_of_another_key_or_cluster_or_format_is_called_so() -> None:
    assert refusal(SEAL, row_of(0, b"other"), TEXT) is OF_ANOTHER_KEY
    assert refusal(SEAL, row_of(1, b"cart"), TEXT) is OF_ANOTHER_KEY
    assert refusal(ContextSeal(b"the secret of another one"), ROW, TEXT) is FOREIGN
    assert FORMAT == 1
    assert refusal(SEAL, ROW, b"Ag" + TEXT[2:]) is NEWER


def test_lengths_are_bounded() -> None:
    assert refusal(SEAL, ROW, b"A" * (TEXT_BYTES_MAX + 1)) is DAMAGED
    one_run = Seen(SlotClock({}, {(5, counter) for counter in range(10, 60_000)}))
    assert len(SEAL.seal(ROW, one_run)) < 60
    with pytest.raises(ReplyError) as caught:
        SEAL.seal(ROW, Seen(SlotClock({}, {(5, 2 * counter) for counter in range(1, 10_000)})))
    assert caught.value is TOO_LONG
