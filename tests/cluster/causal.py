"""Causal histories written out: what `cluster.record` says in clocks, said in sets of events.

A replica of one row is the set of events that it has seen. A version is shown while no event that
was seen has overwritten it. Joining two replicas is the union. Nothing here compares counters, and
`record_of` is the only way from here to a `Record`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

from cluster.clock import Actor, Dot
from cluster.record import DELETION, STRING, Record, Version

NOW_MS = 1000
EXPIRED_MS = NOW_MS
EXPIRING_MS = NOW_MS + 1


class Op(Enum):
    """What an actor does to its own replica."""

    SET = "overwrite all that was seen"
    ADD = "write beside all that was seen"
    DELETE = "delete all that was seen"
    SET_EXPIRED = "overwrite by what has expired by now"
    SET_EXPIRING = "overwrite by what expires later"
    ADD_EXPIRED = "write what has expired beside all that was seen"
    STUB = "drop the payload, if nothing is live"
    MERGE = "see what another replica has seen"


@dataclass(frozen=True)
class Seen:
    """A replica: events seen, and those of which only the stub is left."""

    events: frozenset[Dot] = frozenset()
    stubs: frozenset[Dot] = frozenset()

    def union(self, other: Seen) -> Seen:
        return Seen(self.events | other.events, self.stubs | other.stubs)


@dataclass
class History:
    """All events so far, and each actor's replica."""

    replicas: dict[Actor, Seen]
    versions: dict[Dot, Version] = field(default_factory=dict)
    overwritten: dict[Dot, frozenset[Dot]] = field(default_factory=dict)

    def branch(self) -> History:
        return History(dict(self.replicas), dict(self.versions), dict(self.overwritten))

    def do(self, actor: Actor, op: Op, other: Actor) -> Seen:
        mine = self.replicas[actor]
        if op is Op.MERGE:
            new = mine.union(self.replicas[other])
        elif op is Op.STUB:
            new = mine
            shown = self.shown(mine)
            if not any(self.versions[dot].is_live(NOW_MS) for dot in shown):
                new = Seen(mine.events, mine.stubs | shown)
        else:
            new = self._write(actor, op, mine)
        self.replicas[actor] = new
        return new

    def _write(self, actor: Actor, op: Op, mine: Seen) -> Seen:
        count = len(self.versions)
        dot = (actor, 1 + sum(known == actor for known, _ in self.versions))
        expiry = {Op.SET_EXPIRED: EXPIRED_MS, Op.ADD_EXPIRED: EXPIRED_MS}.get(op, 0)
        if op is Op.SET_EXPIRING:
            expiry = EXPIRING_MS
        kind = DELETION if op is Op.DELETE else STRING
        payload = b"" if op is Op.DELETE else b"%d" % count
        # Two events of a kind have the same timestamp, so that ties occur.
        self.versions[dot] = Version(dot, 100 + count // 2, kind, payload, expiry)
        is_beside = op in (Op.ADD, Op.ADD_EXPIRED)
        self.overwritten[dot] = frozenset() if is_beside else mine.events
        return Seen(mine.events | {dot}, mine.stubs)

    def shown(self, seen: Seen) -> frozenset[Dot]:
        gone: set[Dot] = set()
        for dot in seen.events:
            gone |= self.overwritten[dot]
        return seen.events - gone

    def record_of(self, seen: Seen) -> Record:
        """What a replica that has seen this must hold."""
        versions = []
        for dot in self.shown(seen):
            version = self.versions[dot]
            if dot in seen.stubs:
                version = replace(version, type=DELETION, payload=b"", expire_at_ms=0)
            versions.append(version)
        versions.sort(key=lambda version: (version.hlc, version.dot), reverse=True)
        upto: dict[Actor, int] = {}
        for actor, counter in seen.events:
            upto[actor] = max(counter, upto.get(actor, 0))
        return Record(tuple(versions), tuple(sorted(upto.items())))
