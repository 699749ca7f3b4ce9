"""The coordinator: makes what this node executed count on enough replicas before its reply leaves.

It executes nothing. A command has run on the local replica already, its effects are in the memtable and
staged for the log. Then `begin` is told what it read and wrote:

- Rows that it wrote go to all other replicas of their slot, which accept them or refuse: a *checked*
  write is refused by a replica that holds a live dot of the row that the writer had not seen. W
  acceptances (its own included), and a majority for a checked write, settle it.
- Rows that it read and did not write are confirmed by R-1 other replicas: each says that it holds the
  same, or sends its state. Both sides join what the other had; the command runs again if that
  changed what it saw.

So one round trip serves reads and writes alike, and what a command saw is validated instead of
fetched before. Two successful checked writes of a key are never concurrent: each was taken first by a
majority, and two majorities share a replica.

Everything of a tick goes out together: `begin` gathers, `seal` makes messages, `flush` sends them after
the log was written. The messages are in `cluster/quorum_messages.py`.

A lost write is taken back before its command runs again, if no other replica can have taken it
(`cluster/conflict.py`). Otherwise nobody can know, the error says so, and the row stays hidden until an inquest
has found out (`cluster/inquest.py`).

An *unchecked* write is never refused: what its author had not seen stays beside it. A blind one is sent so where
W is below a majority. KV.PUT and KV.DEL are always sent so: their entry is a record of several versions (those that
stay, and the new one), and its context says what is superseded, so that any replica joins it rightly. They
wait where a version that they would send may yet be taken back.

Nearly always a round needs no more than this. What becomes of writes that some refuse is in `cluster/unaccepted.py`, of
reads that somebody answers otherwise or late in `cluster/unconfirmed.py`; `cluster/undecided.py` looks up which rows
others must not be told of, and `cluster/repair.py` joins and sends whole rows.

Core: time is an argument; what it sends goes through the transport seam. Sources: Dynamo's quorums;
optimistic concurrency control by validation (Kung and Robinson); Riak's read repair.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from cluster.batch import Batch, Quorums, in_turn
from cluster.claim import Preference
from cluster.conflict import Conflicts
from cluster.delta_wire import encode_clock, pack_place
from cluster.held import Held
from cluster.inquest import INQUEST, Inquest
from cluster.quorum_messages import (
    ACK,
    CHECKED,
    INCOMPLETE,
    NOT,
    QUESTION,
    READ,
    SAME,
    SETTLED,
    STATES,
    UNCHECKED,
    UNIT,
    WRITE,
    dots_of,
    number_of,
    refused_of,
)
from cluster.record import MANY, decode
from cluster.repair import Repairs
from cluster.replica import Replica
from cluster.ring import NodeId
from cluster.round import (
    Fetch,
    Pending,
    Place,
    QuorumNotMet,
    ReadEntry,
    ReadRound,
    WriteEntry,
    WriteRound,
)
from cluster.slot import Row, Slot
from cluster.slot_clocks import NOBODY
from cluster.topology import Topology
from cluster.transport import Transport
from cluster.unaccepted import Unaccepted
from cluster.unconfirmed import Unconfirmed
from cluster.undecided import Undecided
from engine.log_format import COMPLETE, ENVELOPE

ROUND_BYTES_MAX: Final = (
    1 << 20
)  # Then a message goes out, and the next writes come into another one.
EVERYTHING: Final = 1 << 62  # A position beyond all of the log.

_NONE: Final[dict[Place, bytes]] = {}  # Never changed.
_NO_CONTEXTS: Final[dict[Slot, bytes]] = {}  # Never changed.


def remembering_of(quorums: Quorums) -> int:
    """How many others that remember all have to take what depends on the old value: one of any earlier majority."""
    return quorums.n - quorums.majority


def _is_plain_question(message: Sequence[bytes]) -> bool:
    return message[0] == READ and INQUEST not in message[3:]


class Coordinator:
    """One per node."""

    def __init__(
        self,
        topology: Topology,
        replica: Replica,
        transport: Transport,
        quorums: Quorums,
        *,
        timeout_s: float,
        retry_s: float,
        first_id: int,
        fetch: Fetch,
        when_durable: Callable[[NodeId, Sequence[bytes]], None],
    ) -> None:
        """`retry_s`: after that a second replica is asked to confirm a read. `first_id`: random, per process.

        `when_durable` sends a message once all that was applied by now is as safe as the configuration asks for.
        """
        self.topology = topology
        self.replica = replica
        self.transport = transport
        self.quorums = quorums
        self.timeout_s = timeout_s
        self.retry_s = retry_s
        self.now_s = 0.0
        self.now_ms = 0
        self._next_id = first_id
        self.fetch = fetch
        # An author and one other are no majority, so those who have taken a write hold it: see `cluster/held.py`.
        self.is_many = quorums.majority > 2
        self.held = Held(self)
        self.inquest = Inquest(self)
        self.conflicts = Conflicts(self)
        self.writes: dict[int, WriteRound] = {}  # In order of their deadlines.
        self.undecided = Undecided(self.writes, self.conflicts, self.inquest, self.held, self.seal)
        self.unaccepted = Unaccepted(self)
        self.unconfirmed = Unconfirmed(self)
        self.repairs = Repairs(self)
        self._unit_rounds: dict[
            Place, WriteRound
        ] = {}  # Of `writes`, by row: the last one of several rows.
        self.reads: dict[int, ReadRound] = {}
        self.outbox: list[tuple[NodeId, Sequence[bytes]]] = []
        # Whether the outbox has writes that nobody may have before this node's disk has them,
        # and up to where the log has those that had left it before.
        self._is_late = False
        self._late_position = 0
        self._when_durable = when_durable
        self.in_flight_bytes = 0
        self.conflicts_total = self.retries_total = 0
        self._interned: dict[tuple[int, int], Quorums] = {(quorums.r, quorums.w): quorums}
        # What commands on the whole keyspace need, so that they miss nothing that any policy promises.
        self.survey_quorums = quorums
        self._open: list[Batch] = []
        # Open batches with other quorums than the usual ones, by the usual batch of the same replicas.
        self._others: dict[Batch, dict[Quorums, Batch]] = {}
        batches: dict[tuple[NodeId, ...], Batch] = {}

        def batch_of(replicas: Preference) -> Batch:
            peers = in_turn(replicas, topology.me)
            return batches.setdefault(peers, Batch(peers, quorums))

        self.batches = topology.by_slot(batch_of)
        self._all_batches = list(batches.values())
        self._looked = -1
        replica.may_be_dropped = self.is_many
        replica.before_hearing = self.seal
        replica.under_way = self.undecided.under_way
        replica.is_undecided = self.undecided.is_hidden
        replica.has_siblings = self.unaccepted.note_siblings
        replica.testimony = lambda slot, row: self.inquest.testimony((slot, row))

    def look(self) -> None:
        """See again, if anything changed, where enough replicas can be reached for plain reads and writes."""
        topology = self.topology
        if self._looked == topology.changes:
            return
        self._looked = topology.changes
        for batch in self._all_batches:
            self._see(batch)
        for others in self._others.values():
            for batch in others.values():
                self._see(batch)

    def _see(self, batch: Batch) -> None:
        quorums = batch.quorums
        needed = self.needed(quorums, is_checked=quorums.checks_all)
        batch.alive = tuple(peer for peer in batch.peers if self.topology.is_reachable(peer))
        confirming = sum(1 for peer in batch.peers if self.can_confirm(peer))
        batch.can_write = len(batch.alive) >= needed
        batch.can_read = confirming >= quorums.r - 1

    # Quorums

    def quorums_of(self, r: int, w: int) -> Quorums:
        """Quorums of an operation: the same object for the same numbers, so that the usual ones are known by it."""
        quorums = self._interned.get((r, w))
        if quorums is None:
            quorums = self._interned[r, w] = Quorums(self.quorums.n, r, w)
        return quorums

    @property
    def has_others(self) -> bool:
        """Whether anything with other quorums than the usual ones is gathered."""
        return bool(self._others)

    def batch_of(self, slot: Slot, quorums: Quorums) -> Batch:
        """Where to gather; it is open."""
        batch = self.batches[slot]
        if quorums is not self.quorums:
            others = self._others.setdefault(batch, {})
            usual, found = batch, others.get(quorums)
            if found is None:
                found = others[quorums] = Batch(usual.peers, quorums)
                self._see(found)
            batch = found
        if not batch.is_open:
            self.open(batch)
        return batch

    def _keep_order(self, writes: Iterable[tuple[Slot, Row, bytes]], quorums: Quorums) -> None:
        """Seal what was gathered if one of these rows was written with other quorums just before.

        Rounds are in the order of the writes: what is built upon a lost one is found behind it.
        """
        for slot, row, _ in writes:
            usual = self.batches[slot]
            for batch in (usual, *self._others.get(usual, {}).values()):
                if batch.is_open and batch.quorums is not quorums and batch.writes_to(row):
                    self.seal()
                    return

    # What was executed

    def lack(
        self, slot: Slot, quorums: Quorums, *, is_write: bool, is_checked: bool, is_blind: bool
    ) -> QuorumNotMet | None:
        """Why a command on this slot has no chance now, or None."""
        needed = quorums.r
        if is_write:
            needed = self.needed(quorums, is_checked=is_checked) + 1
        peers = self.batches[slot].peers
        reachable = 1 + sum(1 for peer in peers if self.topology.is_reachable(peer))
        if reachable < needed:
            return QuorumNotMet(needed, reachable, is_write)
        if is_write and is_checked and not is_blind and self.topology.incomplete:
            remembering = sum(map(self.can_confirm, peers))
            if remembering < remembering_of(quorums):
                return QuorumNotMet(needed, 1 + remembering, is_write)
        return None

    def begin(
        self,
        op: Pending,
        reads: Iterable[tuple[Slot, Row, bytes | None]],
        writes: Sequence[tuple[Slot, Row, bytes]],
        *,
        quorums: Quorums,
        is_checked: bool,
    ) -> None:
        """An attempt of a command has run, and waits if `op.waits` is not 0 afterwards.

        `reads` are rows that it read and did not write, as they are stored. A write of several rows is
        all or nothing at each replica, so far as they share their replicas.
        """
        attempt = op.attempt
        is_usual = quorums is self.quorums
        if self.is_many and quorums.r < quorums.majority:
            self._wait_for_held(op, reads)
        if quorums.r > 1:
            for slot, row, raw in reads:
                batch = self.batches[slot]
                if not (batch.is_open and is_usual):
                    batch = self.batch_of(slot, quorums)
                dots = dots_of(raw)
                batch.reads.append((op, attempt, slot, row, dots))
                batch.questions += (QUESTION(slot, len(row), len(dots)), row, dots)
                op.waits += quorums.r - 1
        if not writes:
            return
        op.written = attempt
        if len(writes) > 1 and is_checked:
            self._begin_unit(op, writes, quorums)
            return
        if is_checked and not op.is_blind:
            self._is_late = not self.is_many
        if self._others or not is_usual:
            self._keep_order(writes, quorums)
        is_waited_for = self.needed(quorums, is_checked=is_checked) > 0
        for slot, row, raw in writes:
            batch = self.batches[slot]
            if not (batch.is_open and is_usual):
                batch = self.batch_of(slot, quorums)
            self.note_context(batch, slot)
            entry = (op, attempt, slot, row, raw)
            if is_checked:
                batch.writes.append(entry)
                batch.pieces += (ENVELOPE(COMPLETE, slot, len(row), len(raw)), row, raw)
            else:
                batch.blind_writes.append(entry)
                batch.blind_pieces += (ENVELOPE(COMPLETE, slot, len(row), len(raw)), row, raw)
            op.waits += is_waited_for
            batch.weight_bytes += len(raw)
            if batch.weight_bytes > ROUND_BYTES_MAX:
                self.seal()

    def _wait_for_held(self, op: Pending, reads: Iterable[tuple[Slot, Row, bytes | None]]) -> None:
        """So few confirm a read that what it saw need not be on a majority: wait for what may be taken back."""
        for slot, row, _ in reads:
            place = (slot, row)
            if self.undecided.is_hidden(*place) and self.undecided.attach(
                op, op.attempt, place, self.now_s + self.timeout_s
            ):
                op.waits += 1

    @staticmethod
    def needed(quorums: Quorums, *, is_checked: bool) -> int:
        """How many other replicas have to take a write. What depends on the old value needs a majority."""
        return (max(quorums.w, quorums.majority) if is_checked else quorums.w) - 1

    def must_wait(self, slot: Slot, row: Row, raw: bytes | None) -> bool:
        """Whether a command on this row must not run now, because its latest write here may be taken back.

        As long as nobody has contradicted, commands build upon writes that are under way. Not upon one of several
        rows: who takes the later write without the earlier one, which may be lost on its way, has a part of that.
        """
        place = (slot, row)
        if self._is_open(place):
            return True
        unit = self._unit_rounds.get(place)
        if unit is not None and unit.needed and not unit.is_decided:
            return True
        if raw is None or not raw[0] & MANY or len(decode(raw).versions) < 2:
            return False
        return self.undecided.pending_write(place) is not None

    def may_be_taken_back(self, place: Place) -> bool:
        """Whether a write of a row may yet lose and be taken back: then nobody else may be sent its version."""
        if self._is_open(place):
            return True
        self.seal()
        return any(
            round_.is_checked and not entry[0].is_blind and (entry[2], entry[3]) == place
            for round_, entry in self.undecided.writes()
        )

    def _is_open(self, place: Place) -> bool:
        return place in self.conflicts.doomed or place in self.inquest.cases or self.held.has(place)

    def open(self, batch: Batch) -> None:
        batch.is_open = True
        self._open.append(batch)

    def note_context(self, batch: Batch, slot: Slot) -> None:
        clocks = self.replica.clocks
        if clocks.sole[slot] != NOBODY and slot not in batch.contexts:
            batch.contexts[slot] = encode_clock(clocks.others(slot))

    def _begin_unit(
        self, op: Pending, writes: Sequence[tuple[Slot, Row, bytes]], quorums: Quorums
    ) -> None:
        """Several rows: a round of their own for each set of replicas, in order with the others."""
        needed = self.needed(quorums, is_checked=True)
        units = self._units(op, writes, quorums, is_whole=False)
        if needed > 0:
            op.waits += len(writes)
        for batch in units:
            self._send_writes(batch, batch.writes, batch.pieces, needed, UNIT)

    def _units(
        self,
        op: Pending,
        writes: Iterable[tuple[Slot, Row, bytes]],
        quorums: Quorums,
        *,
        is_whole: bool,
    ) -> list[Batch]:
        """A batch for each set of replicas that rows have. `is_whole`: the rows bring their contexts themselves."""
        self.seal()
        self.look()
        self._is_late = not self.is_many
        units: dict[tuple[NodeId, ...], Batch] = {}
        for slot, row, raw in writes:
            usual = self.batches[slot]
            batch = units.get(usual.peers)
            if batch is None:
                batch = units[usual.peers] = Batch(usual.peers, quorums, alive=usual.alive)
            if not is_whole:
                self.note_context(batch, slot)
            batch.writes.append((op, op.attempt, slot, row, raw))
            batch.pieces += (ENVELOPE(COMPLETE, slot, len(row), len(raw)), row, raw)
        return list(units.values())

    # Sending

    def seal(self) -> None:
        """Make messages of all that was gathered. Before anything of others is joined: contexts would grow."""
        if not self._open:
            return
        opened, self._open = self._open, []
        self.look()
        if self._others:
            self._others = {}
        for batch in opened:
            batch.is_open = False
            if batch.rows:
                batch.forget_rows()
            batch.weight_bytes = 0
            if batch.writes:
                needed = self.needed(batch.quorums, is_checked=True)
                self._send_writes(batch, batch.writes, batch.pieces, needed, CHECKED)
                batch.writes, batch.pieces = [], []
            if batch.blind_writes:
                needed = self.needed(batch.quorums, is_checked=False)
                self._send_writes(batch, batch.blind_writes, batch.blind_pieces, needed, UNCHECKED)
                batch.blind_writes, batch.blind_pieces = [], []
            if batch.contexts:
                batch.contexts = {}
            if batch.reads:
                used: dict[NodeId, None] = {}
                r = batch.quorums.r
                for _ in range(r - 1):
                    self.ask(batch.peers, used, batch.reads, batch.questions, r)
                batch.reads, batch.questions = [], []

    def _send_writes(
        self,
        batch: Batch,
        entries: list[WriteEntry],
        pieces: list[bytes],
        needed: int,
        flags: bytes,
    ) -> None:
        peers = batch.alive
        blob = b"".join(pieces)
        contexts = b""
        if batch.contexts:
            contexts = b"".join(
                slot.to_bytes(2, "little") + len(clock).to_bytes(2, "little") + clock
                for slot, clock in batch.contexts.items()
            )
        number = self.new_id()
        round_ = WriteRound(
            number,
            peers,
            needed,
            entries,
            self.now_s + self.timeout_s,
            flags == UNIT,
            len(blob),
            batch.contexts or _NO_CONTEXTS,
        )
        round_.is_checked = flags != UNCHECKED
        round_.remembering = remembering_of(batch.quorums)
        self.writes[number] = round_
        if flags == UNIT:
            for entry in entries:
                self._unit_rounds[entry[2], entry[3]] = round_
        self.in_flight_bytes += len(blob)
        message = (WRITE, b"%d" % number, flags, contexts, blob)
        self.outbox += [(peer, message) for peer in peers]
        if len(peers) < needed or not peers:
            self.unaccepted.judge(round_)

    def ask(
        self,
        peers: Sequence[NodeId],
        used: dict[NodeId, None],
        entries: list[ReadEntry],
        questions: list[bytes],
        needed: int,
    ) -> bool:
        """Ask the next replica that can answer; False if there is none."""
        for peer in peers:
            if peer in used or not self.can_confirm(peer):
                continue
            used[peer] = None
            number = self.new_id()
            self.reads[number] = ReadRound(
                number,
                peer,
                entries,
                self.now_s + self.timeout_s,
                self.now_s + self.retry_s,
                used,
                needed,
            )
            self.outbox.append((peer, (READ, b"%d" % number, b"".join(questions))))
            return True
        # Nobody is left: the round waits for its deadline, or for a peer that comes back.
        number = self.new_id()
        self.reads[number] = ReadRound(
            number,
            "",
            entries,
            self.now_s + self.timeout_s,
            self.now_s + self.retry_s,
            used,
            needed,
        )
        return False

    def is_first(self, slot: Slot) -> bool:
        """Whether this node is the first of a slot's preference list."""
        return self.first(slot) == self.topology.me

    def first(self, slot: Slot, *, but: Collection[NodeId] = ()) -> NodeId:
        """The first node of a slot's preference list, but for some, the same for all nodes, wherever they are."""
        nodes = self.topology.nodes
        replicas = [name for name in self.topology.preferences[slot] if name not in but]
        return min(replicas, key=lambda name: nodes[name].data_centre)

    def send_rows(self, op: Pending, rows: Sequence[tuple[Slot, Row, bytes]]) -> None:
        """Have a majority take rows as they are here, whole: a checked write of `op`, all or nothing."""
        units = self._units(op, rows, self.quorums, is_whole=True)
        op.waits = len(rows)
        for batch in units:
            flags = UNIT if len(batch.writes) > 1 else CHECKED
            needed = self.quorums.majority - 1
            self._send_writes(batch, batch.writes, batch.pieces, needed, flags)

    def ask_state(self, peer: NodeId, place: Place, dots: bytes, *flags: bytes) -> int:
        """Ask a replica for its state of a row, unless that is `dots`; the number of the message."""
        slot, row = place
        number = self.new_id()
        question = b"".join((QUESTION(slot, len(row), len(dots)), row, dots))
        self.outbox.append((peer, (READ, b"%d" % number, question, *flags)))
        return number

    def can_confirm(self, peer: NodeId) -> bool:
        return self.topology.is_reachable(peer) and peer not in self.topology.incomplete

    def new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def flush(
        self, *, is_logged: bool = True, position: int = 0, durable: int = EVERYTHING
    ) -> None:
        """Send what was sealed, once the log has been written, up to `position`. It is durable up to `durable`.

        If it could not be, only questions leave: nobody may have a write that this node may yet forget, and
        whose dot it would then give to another. What an inquest asks waits as well: it must not overtake the write
        that it is about.
        """
        self.seal()
        if not self.outbox:
            return
        outbox, self.outbox = self.outbox, []
        if not is_logged:
            self.outbox = [each for each in outbox if not _is_plain_question(each[1])]
            outbox = [each for each in outbox if _is_plain_question(each[1])]
        elif self._is_late:
            self._is_late = False
            self._late_position = position
        send = self.transport.send
        if self._late_position > durable:
            for peer, message in outbox:
                (send if _is_plain_question(message) else self._when_durable)(peer, message)
            return
        for peer, message in outbox:
            send(peer, message)

    # Answers

    def receive(self, peer: NodeId, message: list[bytes]) -> bool:
        """Take an answer; False if the message is none. Raises MalformedDelta."""
        verb = message[0]
        if verb == ACK:
            self._take_ack(peer, message)
        elif verb == STATES and self.inquest.receive(peer, number_of(message), message[3:]):
            pass
        elif verb == SAME:
            round_ = self.reads.get(number_of(message))
            if round_ is not None and round_.peer == peer:
                del self.reads[round_.id]
                for op, attempt, _, _, _ in round_.entries:
                    op.confirm(attempt)
        elif verb == STATES:
            self.unconfirmed.take_states(peer, message)
        elif verb == NOT:
            number = number_of(message)
            if self.inquest.receive(peer, number, None, is_incomplete=INCOMPLETE in message[2:]):
                pass
            elif number in self.writes:
                self._lose_peer(self.writes[number], peer)
            elif (read := self.reads.get(number)) is not None and read.peer == peer:
                read.retry_s = self.now_s + self.retry_s
                self.unconfirmed.ask_another(read, is_late=False)
        else:
            return False
        return True

    def _take_ack(self, peer: NodeId, message: list[bytes]) -> None:
        round_ = self.writes.get(number_of(message))
        if round_ is None:
            return
        refused = _NONE if len(message) == 2 else refused_of(message)
        is_forgetful = peer in self.topology.incomplete
        if not round_.add_answer(peer, refused, is_forgetful=is_forgetful):
            return
        if refused or round_.forgetful or round_.has_refusals:
            self.conflicts_total += len(refused)
            self.unaccepted.judge(round_)
        elif not round_.is_decided and len(round_.answers) >= round_.needed:
            self._accept_all(round_)
        if round_.is_complete:
            self._close(round_)
            if self.conflicts.doomed:
                self.conflicts.judge_all()

    def _accept_all(self, round_: WriteRound) -> None:
        round_.is_decided = True
        if not round_.needed:
            return
        decided = round_.decided
        if self.is_many:
            if not decided:
                self.tell_settled(round_)
            elif rest := [
                (slot, row)
                for number, (_, _, slot, row, _) in enumerate(round_.entries)
                if number not in decided
            ]:
                self.tell_settled(round_, rest)
        for number, entry in enumerate(round_.entries):
            if not decided or number not in decided:
                if round_.contradicted:
                    self.unaccepted.confirm(round_, number)
                else:
                    entry[0].confirm(entry[1])

    def tell_settled(self, round_: WriteRound, places: Sequence[Place] = ()) -> None:
        """What a round wrote, or only some of its rows, counts: those who hold it may show it now."""
        if self.is_many and round_.is_checked and round_.entries:
            message = (SETTLED, b"%d" % round_.id, *(pack_place(*place) for place in places))
            self.outbox += [(peer, message) for peer in round_.peers]

    def _close(self, round_: WriteRound) -> None:
        if self.writes.pop(round_.id, None) is not None:
            self.in_flight_bytes -= round_.weight_bytes
            if round_.is_unit:
                for _, _, slot, row, _ in round_.entries:
                    if self._unit_rounds.get((slot, row)) is round_:
                        del self._unit_rounds[slot, row]

    # Time and losses

    def tick(self, now_s: float) -> None:
        """Ask others where an answer is late, and give up what has no time left."""
        self.now_s = now_s
        for round_ in list(self.writes.values()):
            if round_.deadline_s > now_s:
                break
            for peer in round_.peers:
                round_.add_loss(peer)
            self._close(round_)
            if not round_.is_decided:
                round_.is_decided = True
                for number, entry in enumerate(round_.entries):
                    if number not in round_.decided:
                        self.unaccepted.give_up(round_, entry)
            if self.conflicts.doomed:
                self.conflicts.judge_all()
        if self.is_many:
            self.held.tick(now_s)
        self.inquest.tick(now_s)
        for read in list(self.reads.values()):
            if read.deadline_s <= now_s:
                self.reads.pop(read.id, None)
                for op, attempt, slot, row, _dots in read.entries:
                    op.fail(attempt, QuorumNotMet(read.needed, 1, False), (slot, row))
            elif read.retry_s <= now_s:
                self.unconfirmed.ask_another(read)

    def disconnected(self, peer: NodeId) -> None:
        """What was under way to a peer may be lost."""
        for round_ in list(self.writes.values()):
            self._lose_peer(round_, peer)
        for read in list(self.reads.values()):
            if read.peer == peer and read.id in self.reads:
                self.unconfirmed.ask_another(read)

    def _lose_peer(self, round_: WriteRound, peer: NodeId) -> None:
        if round_.add_loss(peer):
            if not round_.is_decided:
                self.unaccepted.judge(round_)
            if round_.is_complete:
                self._close(round_)
                if self.conflicts.doomed:
                    self.conflicts.judge_all()
