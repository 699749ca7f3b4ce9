"""Merging against the obvious implementation, and against what a reader sees before and after."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from engine.codec import COMPLETE, Entry, Fate, Key, RecordCodec
from engine.merge import GROUP_BYTES, Drops, groups_of, merge, merge_groups
from tests.engine.toy import RegisterCodec, SetCodec, register

NOW_MS = 1000
Layers = list[list[Entry]]
"""Runs of entries, the newest first."""


def merged(layers: Layers, codec: RecordCodec, **options: object) -> list[Entry]:
    is_bottom = bool(options.get("is_bottom", False))
    drops = options.get("drops")
    assert drops is None or callable(drops)
    sources = [iter(layer) for layer in layers]
    return list(merge(sources, codec, now_ms=NOW_MS, is_bottom=is_bottom, drops=drops))


def obvious(layers: Layers, codec: RecordCodec, is_bottom: bool, drops: Drops) -> list[Entry]:
    """Do what the module's docstring says, a key at a time."""
    tables = [{key: (flags, raw) for key, flags, raw in layer} for layer in layers]
    result: list[Entry] = []
    for key in sorted({key for table in tables for key in table}):
        versions = [t[key] for no, t in enumerate(tables) if key in t and not drops(no, key)]
        if not versions:
            continue
        flags, raw = versions[0]
        for older_flags, older in versions[1:]:
            if flags & COMPLETE:
                break
            flags, raw = flags | older_flags & COMPLETE, codec.join(raw, older)
        is_dead = codec.fate(key[2:], raw, NOW_MS) is Fate.DEAD
        if is_bottom and is_dead:
            continue
        result.append(
            (key, flags | (COMPLETE if is_bottom else 0), codec.stub(raw) if is_dead else raw)
        )
    return result


def seen(layers: Layers, codec: RecordCodec, key: Key) -> bytes | None:
    """Return what a reader sees: the joined state, None if it is dead or absent."""
    state: bytes | None = None
    for layer in layers:
        for found, flags, raw in layer:
            if found == key:
                state = raw if state is None else codec.join(state, raw)
                if flags & COMPLETE:
                    return None if codec.fate(key[2:], state, NOW_MS) is Fate.DEAD else state
    if state is None or codec.fate(key[2:], state, NOW_MS) is Fate.DEAD:
        return None
    return state


def kind_of(rng: random.Random) -> tuple[RecordCodec, Callable[[random.Random, int, int], Layers]]:
    if rng.random() < 0.5:
        return RegisterCodec(), register_layers
    return SetCodec(), set_layers


def register_layers(rng: random.Random, count: int, keys: int) -> Layers:
    """Make layers as flushes do: newer ones have later times, complete ones have seen the rest."""
    layers: Layers = []
    for time in range(1, count + 1):
        layer: list[Entry] = []
        for number in sorted(rng.sample(range(keys), rng.randrange(keys + 1))):
            raw = register(
                time,
                b"%d" % rng.randrange(9),
                expires_at_ms=rng.choice([0, 0, NOW_MS, NOW_MS + 1]),
                dead=rng.random() < 0.3,
            )
            layer.append((b"\0\1%c%03d" % (number % 3, number), rng.randrange(2), raw))
        layers.insert(0, sorted(layer))
    return layers


def set_layers(rng: random.Random, count: int, keys: int) -> Layers:
    """Make layers of deltas, and of complete entries that hold all that lies below them."""
    layers: Layers = []
    for _ in range(count):
        layer: list[Entry] = []
        for number in sorted(rng.sample(range(keys), rng.randrange(keys + 1))):
            key = b"\0\1%03d" % number
            raw = bytes(sorted(rng.sample(range(100, 120), rng.randrange(4))))
            flags = rng.randrange(2)
            if flags:
                raw = SetCodec().join(raw, seen(layers, SetCodec(), key) or b"")
            layer.append((key, flags, raw))
        layers.insert(0, layer)
    return layers


@pytest.mark.parametrize("seed", range(150))
def test_merge_equals_the_obvious_implementation(seed: int) -> None:
    rng = random.Random(seed)
    codec, make = kind_of(rng)
    layers = make(rng, rng.randrange(1, 6), rng.choice([1, 5, 60]))
    is_bottom = rng.random() < 0.5
    dropped = {(rng.randrange(5), tag) for tag in range(3) if rng.random() < 0.3}

    def drops(source_no: int, key: Key) -> bool:
        return (source_no, key[2]) in dropped

    chosen = drops if rng.random() < 0.5 else None
    expected = obvious(layers, codec, is_bottom, chosen or (lambda source_no, key: False))
    assert merged(layers, codec, is_bottom=is_bottom, drops=chosen) == expected


@pytest.mark.parametrize("seed", range(100))
def test_readers_see_the_same_after_a_merge_of_neighbours(seed: int) -> None:
    rng = random.Random(seed)
    codec, make = kind_of(rng)
    layers = make(rng, 6, 20)
    first = rng.randrange(6)
    end = rng.randrange(first + 1, 7)
    middle = merged(layers[first:end], codec, is_bottom=end == 6)
    after = [*layers[:first], middle, *layers[end:]]
    for key in sorted({entry[0] for layer in layers for entry in layer}):
        assert seen(after, codec, key) == seen(layers, codec, key)


@pytest.mark.parametrize("seed", range(30))
def test_the_cut_into_groups_does_not_matter(seed: int) -> None:
    rng = random.Random(seed)
    codec = SetCodec()
    layers = set_layers(rng, 5, 60)
    expected = merged(layers, codec)

    def cut(layer: list[Entry]) -> Iterator[list[Entry]]:
        while layer:
            size = rng.choice([0, 1, 1, 2, 10])
            yield layer[:size]
            layer = layer[size:]

    groups = merge_groups([cut(layer) for layer in layers], codec, now_ms=NOW_MS, is_bottom=False)
    assert [entry for group in groups for entry in group] == expected


def test_versions_are_joined_down_to_the_first_complete_one() -> None:
    key = b"\0\1k"
    layers = [[(key, 0, b"d")], [(key, 0, b"c")], [(key, COMPLETE, b"b")], [(key, 0, b"a")]]
    assert merged(layers, SetCodec()) == [(key, COMPLETE, b"bcd")]
    assert merged(layers[:2], SetCodec()) == [(key, 0, b"cd")]
    assert merged(layers[:2], SetCodec(), is_bottom=True) == [(key, COMPLETE, b"cd")]


def test_the_dead_become_stubs_and_vanish_at_the_bottom() -> None:
    codec = RegisterCodec()
    layer = [
        (b"\0\1a", COMPLETE, register(1, b"gone", dead=True)),
        (b"\0\1b", 0, register(2, b"late", expires_at_ms=NOW_MS)),
        (b"\0\1c", COMPLETE, register(3, b"live", expires_at_ms=NOW_MS + 1)),
    ]
    assert merged([layer], codec) == [
        (b"\0\1a", COMPLETE, register(1, dead=True)),
        (b"\0\1b", 0, register(2, dead=True)),
        layer[2],
    ]
    assert merged([layer], codec, is_bottom=True) == [layer[2]]
    assert merged([layer[:2]], codec, is_bottom=True) == []


def test_a_dropped_version_does_not_hide_what_lies_below() -> None:
    key = b"\0\1k"
    layers = [[(key, COMPLETE, b"new")], [(key, COMPLETE, b"old")]]
    kept = merged(layers, SetCodec(), drops=lambda source_no, key: source_no == 0)
    assert kept == [(key, COMPLETE, b"old")]


@pytest.mark.parametrize("layers", [[], [[]], [[], []]])
def test_nothing_merges_to_nothing(layers: Layers) -> None:
    assert merged(layers, SetCodec()) == []


def test_long_runs_of_different_density() -> None:
    codec = SetCodec()
    layers = [
        [(b"\0\1%08d" % number, COMPLETE, b"x" * step) for number in range(0, 20_000, step)]
        for step in (7, 1, 1000, 3)
    ]
    expected = obvious(layers, codec, False, lambda source_no, key: False)
    assert merged(layers, codec) == expected


def test_memory_is_bounded_by_groups() -> None:
    """No source is read further ahead than a few groups beyond what has come out."""
    value = bytes(1000)
    taken = [0, 0, 0]

    def source(number: int) -> Iterator[Entry]:
        for index in range(2000):
            taken[number] += 1
            yield (b"\0\1%08d%d" % (index, number), COMPLETE, value)

    for given, _ in enumerate(
        merge([source(number) for number in range(3)], SetCodec(), now_ms=1, is_bottom=False)
    ):
        assert (sum(taken) - given) * 1000 <= 7 * GROUP_BYTES
    assert taken == [2000] * 3


def test_groups_are_bounded_in_bytes_and_number() -> None:
    sizes = [10] * 3000 + [GROUP_BYTES * 3] * 3 + [1000] * 300
    entries = [(b"%08d" % number, 1, bytes(size)) for number, size in enumerate(sizes)]
    groups = list(groups_of(entries))
    assert [entry for group in groups for entry in group] == entries
    for group in groups:
        group_bytes = sum(len(key) + len(raw) for key, _, raw in group)
        assert len(group) == 1 or (group_bytes <= GROUP_BYTES and len(group) <= 1024)
    assert len(groups) < 20


def test_at_the_bottom_stubs_stay_where_they_may_not_be_forgotten() -> None:
    layers = [
        [(b"\0\1a", 0, register(2, dead=True)), (b"\0\1b", 0, register(2, b"v"))],
        [(b"\0\1a", COMPLETE, register(1, b"old"))],
    ]
    for is_bottom in (True, False):
        sources = [iter(layer) for layer in layers]
        found = list(
            merge(sources, RegisterCodec(), now_ms=NOW_MS, is_bottom=is_bottom, may_forget=False)
        )
        assert found == [
            (b"\0\1a", COMPLETE, register(2, dead=True)),
            (b"\0\1b", COMPLETE if is_bottom else 0, register(2, b"v")),
        ]
    sources = [iter(layer) for layer in layers]
    assert [k for k, _, _ in merge(sources, RegisterCodec(), now_ms=NOW_MS, is_bottom=True)] == [
        b"\0\1b"
    ]
    # Above the bottom nothing is forgotten, whoever allows it.
    sources = [iter(layer) for layer in layers]
    assert len(list(merge(sources, RegisterCodec(), now_ms=NOW_MS, is_bottom=False))) == 2
