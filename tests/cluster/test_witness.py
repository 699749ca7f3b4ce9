"""What nodes tell each other of how far they have got: an old disk is found out, and nobody else is suspected."""

from __future__ import annotations

import random

import pytest

from cluster.witness import MalformedWord, Mark, Witnesses


def meet(one: Witnesses, one_mark: Mark, other: Witnesses, other_mark: Mark) -> list[Mark | None]:
    """Both say a word, which cross on their way, and then another one each. What the first one finds out."""
    words = one.word_for("other", one_mark), other.word_for("one", other_mark)
    found = [one.hear("other", words[1])]
    assert other.hear("one", words[0]) is None
    found.append(one.hear("other", other.word_for("one", other_mark)))
    assert other.hear("one", one.word_for("other", one_mark)) is None
    return found


def test_a_node_that_goes_on_is_not_suspected() -> None:
    other = Witnesses((1, 50))
    mark = (1, 0)
    for _ in range(5):
        one = Witnesses(mark)  # Started again.
        for _ in range(3):
            assert meet(one, mark, other, (1, 50)) == [None, None]
            mark = (1, mark[1] + 10)


def test_one_that_comes_back_with_less_hears_how_far_it_was() -> None:
    other = Witnesses((1, 50))
    meet(Witnesses((1, 100)), (1, 300), other, (1, 50))
    assert meet(Witnesses((1, 200)), (1, 200), other, (1, 50)) == [(1, 300), (1, 300)]


def test_what_it_writes_before_it_meets_them_hides_nothing() -> None:
    other = Witnesses((1, 50))
    meet(Witnesses((1, 100)), (1, 300), other, (1, 50))
    old = Witnesses((1, 200))
    word = old.word_for("other", (1, 500))
    assert other.hear("one", word) is None
    assert old.hear("other", other.word_for("one", (1, 50))) == (1, 300)


def test_an_older_history_is_older_however_long_its_log_is() -> None:
    other = Witnesses((1, 50))
    meet(Witnesses((2, 0)), (2, 10), other, (1, 50))
    assert meet(Witnesses((1, 900)), (1, 900), other, (1, 50)) == [(2, 10), (2, 10)]
    assert meet(Witnesses((3, 0)), (3, 0), other, (1, 50)) == [None, None]


def test_a_process_that_stood_still_while_another_had_its_disk_is_found_out_too() -> None:
    """The memory of a machine is put back together with its disk: it goes on, and has told others less."""
    other = Witnesses((1, 50))
    one = Witnesses((1, 100))
    meet(one, (1, 150), other, (1, 50))
    meet(Witnesses((1, 150)), (1, 400), other, (1, 50))
    assert meet(one, (1, 200), other, (1, 50)) == [(1, 400), (1, 400)]


def test_a_mark_that_goes_back_is_not_told() -> None:
    """Acknowledgements begin to wait for the disk: what counts from then on is behind what did before."""
    other = Witnesses((1, 50))
    one = Witnesses((1, 100))
    meet(one, (1, 300), other, (1, 50))
    assert meet(one, (1, 250), other, (1, 50)) == [None, None]


@pytest.mark.parametrize("word", [b"", b"x", bytes(31), bytes(33)])
def test_what_is_no_word_changes_nothing(word: bytes) -> None:
    one = Witnesses((1, 100))
    before = one.word_for("other", (1, 300))
    with pytest.raises(MalformedWord, match="two marks"):
        one.hear("other", word)
    assert one.word_for("other", (1, 300)) == before


@pytest.mark.parametrize("seed", range(50))
def test_a_life_is_found_out_if_and_only_if_it_began_before_what_a_peer_heard(seed: int) -> None:
    """Whatever it writes before it hears of it, and whichever words are lost or cross."""
    rng = random.Random(seed)
    peer = Witnesses((1, 0))
    images, furthest_heard = [(1, 0)], (1, 0)
    outcomes = set()
    for _ in range(40):
        start = mark = rng.choice(images) if rng.random() < 0.5 else images[-1]
        node, is_old = Witnesses(start), start < furthest_heard
        found: Mark | None = None
        for _ in range(rng.randrange(6)):
            mark = (mark[0], mark[1] + rng.randrange(20))
            is_crossing = rng.random() < 0.5
            to_node = peer.word_for("node", (1, 0)) if is_crossing else None
            to_peer = node.word_for("peer", mark)
            if rng.random() < 0.7:
                assert peer.hear("node", to_peer) is None
                furthest_heard = max(furthest_heard, said_in(to_peer))
            if rng.random() < 0.7:
                found = node.hear("peer", to_node or peer.word_for("node", (1, 0)))
                assert (found is not None) == is_old
                outcomes.add(is_old)
                if is_old:
                    assert found is not None
                    mark = (found[0] + 1, mark[1])  # As a node does then.
                    break
        images.append(mark)
    assert outcomes == {False, True}


def said_in(word: bytes) -> Mark:
    """The sender's mark."""
    return int.from_bytes(word[:8], "little"), int.from_bytes(word[8:16], "little")
