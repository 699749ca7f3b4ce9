"""The parts of spread commands: what stands in them, and what they do to a row."""

from __future__ import annotations

import msgspec
import pytest

from cluster.record import DELETION, STRING
from cluster.replica import Effect
from cluster.slot import row_of, slot_of
from respkv.command import TABLE
from respkv.commands import load
from respkv.gather_place import places_of
from respkv.reply import encode
from respkv.spread_part import (
    COMMIT,
    COMMIT_STEP,
    FETCH,
    PARTS,
    MalformedPart,
    commit_args,
    fetch_args,
    fetched,
    places_of_part,
)
from tests.respkv.gather_harness import Cluster, clustered

load()
KEYS = (b"{t}one", b"{t}two", b"{t}" + b"long" * 100)
ROWS = [row_of(3, key) for key in KEYS]
PLACES = [(slot_of(b"t"), row) for row in ROWS]


def test_they_are_in_no_table() -> None:
    assert not any(TABLE.find(name) for name in PARTS)


def test_a_part_names_its_rows_with_their_database() -> None:
    args = fetch_args(dict.fromkeys(ROWS))
    assert args[:4] == [b"SPREAD.FETCH", KEYS[0], b"3", b""]
    assert places_of_part(FETCH, args) == PLACES
    args = commit_args((row, b"dots", None) for row in ROWS)
    assert places_of_part(COMMIT, args) == PLACES
    assert places_of(COMMIT, args, 0, range(16)) == PLACES  # Whatever the session's database is.


def test_a_commit_says_what_becomes_of_each_row() -> None:
    slot = slot_of(b"t")
    effects: list[Effect | None] = [(slot, STRING, 77, b"value"), (slot, DELETION, 0, b""), None]
    args = commit_args(zip(ROWS, (b"a", b"", b"c"), effects, strict=True))
    assert args[0] == b"SPREAD.COMMIT"
    assert args[1 : 1 + COMMIT_STEP] == [KEYS[0], b"3", b"a", b"1", b"77", b"value"]
    assert args[1 + COMMIT_STEP : 1 + 2 * COMMIT_STEP] == [KEYS[1], b"3", b"", b"0", b"0", b""]
    assert args[1 + 2 * COMMIT_STEP :] == [KEYS[2], b"3", b"c", b"", b"0", b""]


@pytest.mark.parametrize("rows", [[], [None], [True, b"raw", None], [b"x" * 100_000]])
def test_what_was_fetched_comes_back(rows: list[bytes | bool | None]) -> None:
    assert fetched(encode(msgspec.msgpack.encode(rows), resp3=False)) == rows


@pytest.mark.parametrize("data", [b"", b"+OK", b"$1\r\nx\r\n", b"$2\r\n\x91\r\n"])
def test_what_is_no_answer_is_no_answer(data: bytes) -> None:
    with pytest.raises(MalformedPart):
        fetched(data)


def test_parts_at_a_node_and_forwarded() -> None:
    """The handlers, called as the dispatch calls them."""

    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        node = cluster.node("a")
        context = node.context
        key = KEYS[0]
        assert await cluster.ask("a", "SET", key, "v") == b"OK"
        row = row_of(0, key)
        raw = context.store.get(slot_of(key), row)
        assert raw is not None
        assert FETCH.handler is not None
        assert COMMIT.handler is not None

        def fetch(dots: bytes | None) -> list[bytes | bool | None]:
            reply = FETCH.handler(context, *fetch_args({row: dots})[1:])  # type: ignore[misc]
            return fetched(encode(reply, resp3=False))

        dots = raw[1:17]
        assert fetch(None) == [raw]
        assert fetch(b"") == [raw]  # It had known that there is none.
        assert fetch(dots) == [True]
        effect: Effect = (slot_of(key), STRING, 0, b"w")
        other = row_of(0, KEYS[1])
        for seen, other_seen, answer in (
            (b"", b"", b"stale"),
            (dots, dots, b"stale"),
            (dots, b"", b"OK"),
        ):
            context.drop()
            args = commit_args([(row, seen, effect), (other, other_seen, None)])
            assert COMMIT.handler(context, *args[1:]) == answer
            assert context.effects == ({row: effect} if answer == b"OK" else {})
        context.drop()
