"""The lanes and the runner's usual way give the same replies, the same log and the same memtable."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.replica import Replica
from engine.disk import RealDisk
from engine.store import StoreSettings
from respkv.command import TABLE
from respkv.commands import load
from respkv.config import Config
from respkv.node import Node
from respkv.parser import Limits
from respkv.session import Session

load()
SETTINGS = StoreSettings(
    memtable_bytes=1 << 24,
    row_cache_bytes=1 << 20,
    block_cache_bytes=1 << 20,
    log_bytes_max=1 << 24,
)
START_NS = 1_700_000_000_000_000_000


class Served:
    """A node without sockets, at a fixed time, and one session of it."""

    def __init__(self, folder: Path) -> None:
        replica = Replica.open(RealDisk(str(folder)), SETTINGS, 7)
        self.node = Node(
            Config(),
            replica,
            name="test",
            data_dir=str(folder),
            rng=random.Random(1),
            clock_ns=lambda: 0,
            wall_ns=lambda: START_NS,
        )
        self.session = Session(1, "peer", "local", Limits(), 0.0, authenticated=True)

    def run(self, commands: list[list[bytes]]) -> bytes:
        self.node.runner.serve(self.session, commands, START_NS // 1_000_000)
        replies = b"".join(self.session.out)
        self.session.out.clear()
        return replies

    def state(self) -> tuple[list[dict[bytes, bytes]], bytes, int, int, int, int]:
        """Everything that a lane may change."""
        node = self.node
        return (
            node.store.memtable.slots,
            b"".join(node.store.log.pieces),
            node.store.memtable.weight_bytes,
            node.replica.clock.last,
            node.context.hits,
            node.context.misses,
        )

    def close(self) -> None:
        self.node.store.log.pieces.clear()
        self.node.store.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Served, Served]]:
    pair = Served(tmp_path / "lanes"), Served(tmp_path / "usual")
    yield pair
    for served in pair:
        served.close()


def commands(rng: random.Random) -> list[list[bytes]]:
    """A pipeline, mostly of what lanes take, with everything that they must leave alone."""
    key = rng.choice(
        (b"a", b"b", b"c", b"{tag}d", b"{}e", b"k" * 255, b"k" * 256, b"", b"\x00\xff")
    )
    value = rng.choice((b"", b"1", b"x" * 998, b"x" * 999, b"x" * 1000, b"y" * 65537, b"\r\n"))
    return rng.choice(
        (
            [[b"SET", key, value]],
            [[b"set", key, value], [b"GET", key]],
            [[b"GET", key], [b"get", key], [b"GET", b"absent"]],
            [[b"GeT", key], [b"sEt", key, value]],
            [[b"SET", key, value, b"EX", b"100"], [b"GET", key]],
            [[b"SET", key], [b"GET"], [b"GET", key, key]],
            [[b"INCR", key], [b"GET", key]],
            [[b"DEL", key], [b"GET", key]],
            [[b"APPEND", key, b"z"], [b"SET", key, value]],
            [[b"MULTI"], [b"SET", key, value], [b"GET", key], [b"EXEC"]],
            [[b"SELECT", b"%d" % rng.randrange(3)], [b"SET", key, value], [b"GET", key]],
            [[b"HELLO", rng.choice((b"2", b"3"))], [b"GET", b"absent"]],
        )
    )


@pytest.mark.parametrize("seed", range(20))
def test_lanes_do_what_the_usual_way_does(
    pair: tuple[Served, Served], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(f"lane-{seed}")
    lanes = {name: TABLE.commands[name].lane for name in ("GET", "SET")}
    assert None not in lanes.values()
    for _ in range(60):
        pipeline = [command for _ in range(rng.randrange(1, 12)) for command in commands(rng)]
        with_lanes = pair[0].run(pipeline)
        with monkeypatch.context() as patch:
            for name in lanes:
                patch.setattr(TABLE.commands[name], "lane", None)
            usual = pair[1].run(pipeline)
        assert with_lanes == usual, f"seed {seed}: {pipeline}"
        assert pair[0].state() == pair[1].state(), f"seed {seed}: {pipeline}"


def test_a_lane_takes_a_whole_run(pair: tuple[Served, Served]) -> None:
    lane = TABLE.commands["SET"].lane
    assert lane is not None
    served = pair[0]
    served.run([[b"PING"]])  # Binds the context.
    out: list[bytes] = []
    run = [[b"SET", b"k%d" % n, b"v"] for n in range(10)]
    assert lane(served.node.context, [*run, [b"PING"], *run], 0, out) == 10
    assert lane(served.node.context, [[b"PING"], *run], 1, out) == 10
    assert out == [b"+OK\r\n"] * 20


@pytest.mark.parametrize("seed", range(10))
def test_lone_commands_are_done_as_one_by_one(pair: tuple[Served, Served], seed: int) -> None:
    """Many sessions that send one command each: the same replies, log and memtable."""
    rng = random.Random(f"lone-{seed}")
    sessions = [
        [Session(n, "peer", "local", Limits(), 0.0, authenticated=True) for n in range(20)]
        for _ in pair
    ]
    plain = {b"GET", b"get", b"SET", b"set", b"GeT", b"INCR", b"DEL", b"APPEND"}
    now_ms = START_NS // 1_000_000
    for _ in range(60):
        chosen = rng.sample(range(20), rng.randrange(1, 20))
        sent = [
            rng.choice([c for c in commands(rng) if c[0] in plain] or [[b"GET"]]) for _ in chosen
        ]
        together = [sessions[0][n] for n in chosen]
        pair[0].node.runner.serve_lone(together, sent, now_ms)
        one_by_one = [sessions[1][n] for n in chosen]
        for session, command in zip(one_by_one, sent, strict=True):
            pair[1].node.runner.serve(session, [command], now_ms)
        for n, a, b in zip(chosen, together, one_by_one, strict=True):
            assert b"".join(a.out) == b"".join(b.out), f"seed {seed}, session {n}: {sent}"
            a.out.clear()
            b.out.clear()
            a.has_large_reply = b.has_large_reply = False
        assert pair[0].state() == pair[1].state(), f"seed {seed}: {sent}"
