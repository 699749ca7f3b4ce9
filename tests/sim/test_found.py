"""Runs that have found a bug of the product. Each stays, with what it was; it may never be found the same way again,

so what can be told without a run is told by a test of its own, here or beside the module.
"""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from cluster.batch import Quorums
from cluster.record import STRING
from cluster.replica import Effect, Replica
from cluster.slot import row_of, slot_of
from engine.errors import EngineError
from engine.log_format import COMPLETE, ENVELOPE
from engine.store import StoreSettings
from respkv import commands
from respkv.command import TABLE
from respkv.dispatch import Dispatch
from respkv.group import Answers, Group
from respkv.operation import Operation
from respkv.parser import Limits
from respkv.refusal import NO_REPLICA, TIMED_OUT, TRIED, doubted
from respkv.session import Session
from respkv.unlogged import Unlogged
from tests.sim.canaries import CANARIES
from tests.sim.disk import SimDisk
from tests.sim.plan import Plan
from tests.sim.trial import run

NOW_MS = 1_700_000_000_000
SETTINGS = StoreSettings(1 << 30, row_cache_bytes=0, block_cache_bytes=0, log_bytes_max=1 << 30)
FOUND = {
    14: "a DEL of two keys was refused for one and run again for the other, beside a value that a RENAME had removed",
    287: "a row was asked for before the write had left that waited for a full disk, and was taken back too early",
    351: "with N = 5, a write that two had taken and that its author took back won over what others had acknowledged",
    413: "a SET NX that nobody confirmed was dropped, came back with an old disk, and stayed where others had none",
    959: "a SET that was tried at two nodes came back beside what had replaced it, and looked later",
    1019: "after a failed sync a node noted that it had stopped well, and used its dots again",
    1023: "an error said that nothing was done, of a SET that had been tried at a node that was lost",
    1027: "the same, in a cluster of N = 5 and W = 4",
    1120: "a SET tried at a second node was taken for done: clocks apart made an older value look later",
    1136: "the same with R less than W: what was found there was on too few replicas",
    1139: "a disk that failed when a node became complete ended it with a traceback",
    20030: "with N = 5, EXEC read one row of a RENAME that was under way, and asked others for the other row",
    40008: "an APPEND that had failed won by its timestamp, after its node had been killed",
    50038: "a SET that was done elsewhere meanwhile ran again, after a later SET",
    100508: "of a pipeline, a GET was answered before an MGET of the same key, which then ran again and showed more",
    100857: "with N = 5, an INCR that a majority had refused stood, since they had heard of it from each other",
}


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_found_is_not_found_again(seed: int) -> None:
    result = run(Plan.draw(seed, nodes=5, seconds=60, rate=20))
    assert result.findings == []


# Five replicas of a few keys, and a fault every second.
FOUND_MANY = {
    25: "an APPEND in doubt came back as a sibling after a restart, and won over what was acknowledged",
    29: "a write was held by two, refused by two, and the fifth was incomplete as long as it was",
    90: "a write of which nothing was noted was sent again, and what stood beside it was lost",
    99: "as 25, with a SETNX",
}


@pytest.mark.parametrize("seed", FOUND_MANY)
def test_what_was_found_with_five_replicas_is_not_found_again(seed: int) -> None:
    plan = Plan.draw(seed, nodes=5, seconds=20, rate=60)
    result = run(
        replace(plan, n=5, r=3, w=3, keys=2, clients=12, fault_interval_s=1.0, disk_fault="")
    )
    assert result.findings == []


# The same with many crashes and few keys, on three nodes.
FOUND_HARD = {
    3415: "a node whose disk was put back as it was earlier counted for reads, and what it had acknowledged was missed",
    7230: "the same, of single keys",
    7013: "an INCR that had failed won by its timestamp, after its node had been killed",
    7029: "a SET was made twice: the node that made it first had a clock behind that of the node that was asked",
    7050: "two rounds that asked a replica again gave it up twice: a traceback",
    7041: "an APPEND lost its race, nobody said what had won, and it won by its timestamp",
    7044: "the same of an INCR for which nobody had answered",
    7138: "a SET was done at two nodes, and what the slower one had made of it came back beside a later DEL",
}

# The same with transactions that meet in five keys.
FOUND_TOGETHER = {
    3029: "two nodes wrote with a third that had forgotten all, and their transactions stood beside each other",
    3068: "a message came again after it was heard that its sender is another process, and an INCRBY was done twice",
    3444: "a node lost its own part of a transaction with its power, and the one that had it told of it key by key",
    6114: "as 3444, with an old disk",
    6133: "as 3444, with an old disk",
    6330: "with a lost disk, an inquest went by an answer that was older than the row, and brought back what was gone",
    6467: "with a lost disk, a row was written again, refused, and written again without what the first form had seen",
}


@pytest.mark.parametrize("seed", FOUND_HARD)
def test_what_was_found_with_few_keys_is_not_found_again(seed: int) -> None:
    plan = Plan.contended(seed, nodes=3, seconds=60, rate=20)
    if seed == 3415:
        plan = replace(Plan.contended(seed, nodes=3, seconds=30, rate=30), transfers=0.7)
    assert run(plan).findings == []


@pytest.mark.parametrize("seed", FOUND_TOGETHER)
def test_what_was_found_with_transactions_is_not_found_again(seed: int) -> None:
    plan = Plan.contended(seed, nodes=3, seconds=30, rate=30)
    if seed >= 6000:
        plan = replace(plan, disk_fault="old" if seed < 6300 else "lost")
    assert run(replace(plan, transfers=0.7, pipeline=0.0)).findings == []


FOUND_MIXED = {
    1023: "with N = 4, two against two did not come to an end, since one replica could not say what it had had",
    2006: "with N = 5, an open write of before the start was sent again with what stood beside it, and won over that",
}


@pytest.mark.parametrize("seed", FOUND_MIXED)
def test_what_was_found_in_mixed_runs_is_not_found_again(seed: int) -> None:
    assert run(Plan.mixed(seed)).findings == []


FOUND_UNSYNCED = {
    29: "with N = 4, two had a write of which nobody knew, two had not, and who had refused it did not any more",
    200: "all three had an open write of a row, one had lost its power, and the others refused each other for ever",
}


@pytest.mark.parametrize("seed", FOUND_UNSYNCED)
def test_what_power_cuts_at_everysec_found_is_not_found_again(seed: int) -> None:
    assert run(Plan.unsynced(seed)).findings == []


def test_an_inquest_does_not_wait_for_a_replica_that_waits_for_its_end() -> None:
    """A transaction had been refused by a node that lost its power then, and was complete only with that row."""
    faults = ("cut_power_of_one", "kill", "pause", "partition", "cut_one_way", "lossy_link", "save")
    plan = Plan.contended(185, nodes=3, seconds=20, rate=30)
    plan = replace(plan, fsync="everysec", disk_fault="", only=(*faults, "slow_link", "jump"))
    assert run(plan).findings == []


def test_what_was_acknowledged_is_not_hidden_by_what_failed() -> None:
    """Of two nodes that write at once, each has refused the other before either was decided.

    An APPEND or INCR that had lost stayed beside the one that won, and hid it by a later timestamp.
    """
    plans = [Plan.contended(seed, nodes=5, seconds=20, rate=20) for seed in (2, 9, 10, 13)]
    findings = [run(replace(plan, **CANARIES["stale coordinator"].plan)).findings for plan in plans]
    assert not any(findings)


def write(replica: Replica, key: bytes) -> None:
    effects: dict[bytes, Effect] = {row_of(0, key): (slot_of(key), STRING, 0, b"value")}
    replica.write(effects, NOW_MS)
    replica.store.write()


@pytest.mark.parametrize("is_noted", [False, True])
def test_a_failed_log_makes_the_next_process_another_actor(is_noted: bool) -> None:
    disk = SimDisk(random.Random(1))
    replica = Replica.open(disk, SETTINGS, 7, boot="one", is_durable=True)
    write(replica, b"key")
    disk.faults.sync_error_in = 1
    with pytest.raises(EngineError):
        replica.store.log.sync()
    if is_noted:
        replica.doubt()
    replica.close()
    again = Replica.open(disk.kill(), SETTINGS, 8, boot="two" if not is_noted else "one")
    assert again.actor == 8


def test_without_a_failure_it_stays_the_same() -> None:
    disk = SimDisk(random.Random(1))
    replica = Replica.open(disk, SETTINGS, 7, boot="one", is_durable=True)
    write(replica, b"key")
    replica.close()
    assert Replica.open(disk.kill(), SETTINGS, 8, boot="two").actor == 7


def entry(key: bytes) -> list[bytes]:
    row, raw = row_of(0, key), bytes(30)
    return [ENVELOPE(COMPLETE, slot_of(key), len(row), len(raw)), row, raw]


def test_what_a_full_disk_does_not_take_may_be_several_entries_in_one_piece() -> None:
    """A replica's deltas are staged as they came; a node ended when its disk was full then."""
    commands.load()
    session = Session(1, "peer:1", "here:1", Limits(), 0.0, authenticated=True)
    unlogged = Unlogged()
    unlogged.add([*entry(b"one"), b"".join(entry(b"two") + entry(b"three")), *entry(b"four")])
    for key in (b"one", b"two", b"three", b"four"):
        assert unlogged.is_shown_by(TABLE.commands["GET"], [b"GET", key], session)
    assert not unlogged.is_shown_by(TABLE.commands["GET"], [b"GET", b"five"], session)


@pytest.mark.parametrize("is_forwarded", [False, True])
def test_what_another_node_has_forwarded_it_may_have_done_elsewhere_as_well(
    is_forwarded: bool,
) -> None:
    commands.load()
    session = Session(1, "peer:1", "here:1", Limits(), 0.0, authenticated=True)
    node = SimpleNamespace(clock_ns=lambda: 0)
    dispatch = cast(Dispatch, SimpleNamespace(node=node, forwarding=None))
    group = Group(dispatch, TABLE.commands["SET"], NOW_MS)
    part_of = Answers(dispatch, "b", b"1", 1) if is_forwarded else None
    group.members.append((session, part_of, 0, [b"SET", b"k", b"v"]))
    assert group.may_be_twice is is_forwarded


def test_of_what_was_tried_before_no_error_says_that_nothing_was_done() -> None:
    commands.load()
    session = Session(1, "peer:1", "here:1", Limits(), 0.0, authenticated=True)
    nobody = cast(Dispatch, SimpleNamespace(coordinator=SimpleNamespace(quorums=Quorums(3, 2, 2))))
    operation = Operation(nobody, session, TABLE.commands["SET"], [b"SET", b"k", b"v"], 0, 1.0)
    operation.is_blind = True
    assert not operation.may_have_run
    operation.written = 0
    assert not operation.may_have_run  # That is this attempt.
    operation.attempt = 1
    assert operation.may_have_run
    operation.written, operation.hlc = -1, 17
    assert operation.may_have_run
    assert operation.may_be_twice
    operation.hlc = 0
    assert not operation.may_be_twice
    operation.is_forwarded = True
    assert operation.may_be_twice
    assert not operation.may_have_run
    assert doubted(NO_REPLICA) is TRIED
    assert doubted(TIMED_OUT) is TIMED_OUT
