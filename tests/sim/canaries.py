"""Planted bugs: each takes the place of one function of the product, and a campaign has to find it.

    with CANARIES["early reply"].planted():
        ...

A canary is written against the function as it is: `Canary.make` gets the original and returns what stands in
its place. `planted` refuses if nothing is replaced, so that none does nothing after a change of the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from cluster.delta import clock_of
from cluster.life import Life
from cluster.participant import Participant
from cluster.quorum_messages import SAME
from cluster.record import Record
from cluster.replica import Replica
from cluster.round import Place, WriteRound
from cluster.slot import Slot
from engine.log import CommitLog
from respkv import forwarding, spread
from respkv.group_commit import GroupCommit
from respkv.operation import Operation
from respkv.peers import Peers


@dataclass(frozen=True, slots=True)
class Canary:
    """A bug in place of `owner.name`, which worlds of at least `nodes` nodes can show.

    `plan`: what the plans of its campaign are like, where they do not depend on the seed.
    """

    text: str
    owner: Any
    name: str
    make: Callable[[Any], Any]
    nodes: int = 1
    plan: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def planted(self) -> Iterator[None]:
        original = vars(self.owner)[self.name]
        replacement = self.make(original)
        assert replacement is not original
        setattr(self.owner, self.name, replacement)
        try:
            yield
        finally:
            setattr(self.owner, self.name, original)


def _early_reply(original: property) -> property:
    """Replies leave before the log is synced."""
    return property(lambda commit: 1 << 62)


def _lazy_sync(original: Callable[[CommitLog], int]) -> Callable[[CommitLog], int]:
    """The log says that it is synced, and has not asked the disk."""

    def sync(log: CommitLog) -> int:
        log.synced = log.position
        return log.synced

    return sync


def _same_actor(original: Callable[[Life, str], bool]) -> Callable[[Life, str], bool]:
    """After a power cut a node goes on counting where its log ends: what it had sent and lost has the same dots."""
    return lambda life, boot: True


def _early_promise(original: Callable[..., None]) -> Callable[..., None]:
    """A replica acknowledges before its log was written."""
    return lambda peers, peer, answer: peers.transport.send(peer, answer)


def _counted_twice(original: Callable[..., bool]) -> Callable[..., bool]:
    """An answer that comes twice counts as two."""

    def add_answer(
        round_: WriteRound, peer: str, refused: dict[Place, bytes], *, is_forgetful: bool
    ) -> bool:
        is_again = peer in round_.answers
        is_taken = original(round_, peer, refused, is_forgetful=is_forgetful)
        return is_taken or (is_again and _note_twice(round_, peer, refused))

    return add_answer


def _note_twice(round_: WriteRound, peer: str, refused: dict[Place, bytes]) -> bool:
    round_.answers[peer + " again"] = refused
    return True


def _always_same(original: Callable[..., None]) -> Callable[..., None]:
    """A replica confirms whatever another one has read."""
    return lambda participant, peer, message: participant._promise(peer, (SAME, message[1]))


def _clock_ahead(original: Callable[..., None]) -> Callable[..., None]:
    """A slot's clock takes over what a delta's author had seen, of which nothing may have come."""

    def note(replica: Replica, slot: Slot, row: bytes, record: Record, hlc_max: int) -> None:
        replica.clocks.join(slot, clock_of(record))
        original(replica, slot, row, record, hlc_max)

    return note


def _no_conflict(original: Callable[..., Any]) -> Callable[..., Any]:
    """A replica takes writes of nodes that have missed something."""
    return lambda replica, slot, row, record, clock: (None, None)


def _retried(original: Callable[[Operation], bool]) -> Callable[[Operation], bool]:
    """What was under way at a node that is lost is done again elsewhere, also an increment."""
    return lambda operation: True


def _removed_first(original: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """What is renamed is removed from its old name before it has its new one."""
    return lambda *args, **named: original(*args, **named)[::-1]


# Two nodes that do not reach each other, and a third one that both reach: each writes, and one has to lose.
_TWO_COORDINATORS: Final = {
    "only": ("cut_one_way",),
    "fault_interval_s": 1.0,
    "rate": 60.0,
    "repetition": 0.0,
    "keys": 1,
    "counting": 0.9,
}

CANARIES = {
    "removed first": Canary(
        "RENAME removes before it writes",
        spread,
        "stages",
        _removed_first,
        5,
        {"n": 3, "rate": 80.0, "fault_interval_s": 0.7, "clients": 12, "renaming": 0.8},
    ),
    # What a power cut takes from a log has left for others already; the next process writes to the same
    # slots before it hears of that. So: many commands under way at each cut.
    "reused dot": Canary(
        "a node goes on as the same actor after a power cut",
        Life,
        "lost_nothing",
        _same_actor,
        3,
        {
            "only": ("cut_power_in_operation",),
            "fault_interval_s": 0.2,
            # With so many replicas, since with three a dot has hardly left before its own disk has it.
            "n": 5,
            "r": 3,
            "w": 3,
            "rate": 160.0,
            "clients": 16,
            "pipeline": 0.5,
            "keys": 2,
            "counting": 0.5,
            "loss": 0.0,
            "disk_fault": "",
        },
    ),
    # One disk has the write, the others said so too early, and they are back first.
    "early promise": Canary(
        "a replica acknowledges before its log is written",
        Peers,
        "promise",
        _early_promise,
        3,
        {
            "only": ("slow_disk", "blackout"),
            "fault_interval_s": 1.3,
            "rate": 80.0,
            "clients": 20,
            "counting": 0.3,
            "disk_fault": "",
        },
    ),
    # Two of five nodes are cut off, and do not know it yet: one writes, and the other says so twice. The three
    # others count on without that.
    "counted twice": Canary(
        "an acknowledgement that comes twice counts as two",
        WriteRound,
        "add_answer",
        _counted_twice,
        5,
        {
            "n": 5,
            "r": 3,
            "w": 3,
            "only": ("partition",),
            "fault_interval_s": 2.0,
            "rate": 100.0,
            "clients": 16,
            "keys": 1,
            "counting": 0.9,
            "repetition": 0.9,
            "reordering": 0.1,
            "skew_s": 0.0,
        },
    ),
    "missed refresh": Canary(
        "a replica confirms what it does not have", Participant, "_read", _always_same, 3
    ),
    "clock ahead": Canary(
        "a slot's clock covers what is not there", Replica, "_note_record", _clock_ahead, 3
    ),
    "stale coordinator": Canary(
        "no conflict is ever found", Replica, "_check", _no_conflict, 3, _TWO_COORDINATORS
    ),
    # The node that has done it is well, but its reply does not arrive.
    "retried increment": Canary(
        "a command that is not idempotent is repeated",
        forwarding,
        "is_idempotent",
        _retried,
        3,
        {
            "only": ("cut_one_way", "lossy_link"),
            "fault_interval_s": 0.3,
            "rate": 100.0,
            "clients": 16,
            "keys": 1,
            "counting": 0.9,
        },
    ),
    "early reply": Canary(
        "an acknowledgement before the log is durable", GroupCommit, "releasable", _early_reply
    ),
    "lazy sync": Canary("the commit log is not synced", CommitLog, "sync", _lazy_sync),
}
