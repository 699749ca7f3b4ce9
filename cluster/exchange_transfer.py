"""One slot on its way between two replicas: `Outgoing` sends what the peer lacks, `Incoming` takes it.

Neither decides that a transfer is needed, nor touches the network: `cluster/exchange.py` does. Who
lacks something leads. It chooses the number of the transfer, says what it has seen, and asks for one
chunk after the other; who has the rows answers what it is asked, and forgets it all after a while.

    Incoming                                    Outgoing
    wants chunk 0, with its clock      ---->    takes its own clock, and begins its scan, at one moment
    stores the rows, one by one        <----    chunk 0: the clock, and rows with a dot that the peer lacks
    asks for chunk 1                   ---->    goes on with the scan
    stores the rows                    <----    chunk 1, the last one
    joins the clock of chunk 0

What must never happen is that a clock covers what is not there. So

- the clock is that of the scan's first moment. What is written later comes with another transfer.
  Each row's context is the same clock (`cluster.delta.whole`), for the rows are of that moment too;
- chunks are counted, and each is taken once, in order, when all before it are stored. So the last
  one says that all are here. What was lost is asked for again, what comes twice is dropped;
- the chunks are of one scan. A request that comes twice, the second time when the first scan is
  forgotten, begins another one, whose chunks begin and end elsewhere. So each scan has a number too;
- the clock is joined after the last row.

**The replica** is seen through a small interface. Rows that are not in memory fault: the owner of the
exchange is handed the fault and a function to call when it has been fetched.

Core.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Protocol

from cluster.clock import SlotClock
from cluster.delta import whole
from cluster.exchange_wire import Next, Rows, ScanId, TransferId, Want, check_record
from cluster.record import HEADER, MANY, Record, decode
from cluster.slot import Row, Slot
from engine.errors import EngineError
from engine.levels import PageFault

Entry = tuple[Row, bytes]  # A row and its raw record.
Page = list[Entry] | PageFault

Resume = Callable[[EngineError | None], None]
"""Tells that a fault was fetched, or why it cannot be."""

Fetch = Callable[[PageFault, Resume], None]
"""Fetches a fault (`PageFault.fetch` and `arrive`) and calls the function, at once or later."""

Order = Callable[[list[Entry]], list[Entry]]
"""In what order the rows of a chunk are sent and stored."""

APPLY_ROWS = 8  # Rows stored in one step, which is to stay well under a millisecond.


class Replica(Protocol):
    """What an exchange needs of `cluster/replica.py`."""

    def clock(self, slot: Slot) -> SlotClock:
        """What was seen of a slot, as a copy."""
        ...

    def seen_slots(self) -> Iterable[Slot]:
        """The slots whose clocks are not empty."""
        ...

    def change_counts(self) -> Sequence[array[int]]:
        """Arrays by slot: where a slot's clock changes, its number grows in at least one of them.

        They are compared with what they were, so this costs the replica nothing but to count.
        """
        ...

    def has_undecided(self, slot: Slot) -> bool:
        """Whether a write of this node is under way there that may have to be taken back."""
        ...

    def pages(self, slot: Slot) -> Generator[Page, None, None]:
        """All rows of a slot as they are at the first `next`, raw, page by page, in any order.

        A fault that it yields has been fetched when it is asked for more. Closed by who made it.
        Raises EngineError.
        """
        ...

    def repair(self, slot: Slot, row: Row, record: Record) -> bool:
        """Join a row's whole state into the store; whether that changed anything.

        Raises PageFault if the row has to be fetched first, and EngineError.
        """
        ...

    def join_clock(self, slot: Slot, clock: SlotClock) -> None:
        """Everything that this clock covers is here. Raises EngineError."""
        ...


def is_missing(raw: bytes, peer: SlotClock) -> bool:
    """Whether a stored record has a dot that the peer lacks: `cluster.delta.missing` without decoding."""
    if raw[0] & MANY:
        return any(not peer.covers(version.dot) for version in decode(raw).versions)
    _, actor, counter, _ = HEADER.unpack_from(raw)
    return not peer.covers((actor, counter))


class _Transfer:
    """What both sides have: a scan or a store that may have to wait for a page."""

    __slots__ = ("_error", "_fetch", "_replica", "id", "is_waiting", "slot")

    def __init__(self, transfer: TransferId, slot: Slot, replica: Replica, fetch: Fetch) -> None:
        self.id = transfer
        self.slot = slot
        self.is_waiting = False  # For a page.
        self._error: EngineError | None = None
        self._replica = replica
        self._fetch = fetch

    def _wait(self, fault: PageFault) -> None:
        self.is_waiting = True
        self._fetch(fault, self._resume)  # May resume at once.

    def _resume(self, error: EngineError | None) -> None:
        self.is_waiting = False
        self._error = error

    def _raise_if_failed(self) -> None:
        if self._error is not None:
            raise self._error


class Outgoing(_Transfer):
    """The sender's side. `message` is the chunk to be sent; tell `sent` when it was."""

    __slots__ = (
        "_bytes_max",
        "_clock",
        "_is_due",
        "_is_exhausted",
        "_message",
        "_number",
        "_order",
        "_pages",
        "_peer_clock",
        "_ready",
        "_ready_bytes",
        "_rows_max",
        "scan",
        "used_s",
    )

    def __init__(
        self,
        want: Want,
        scan: ScanId,
        replica: Replica,
        fetch: Fetch,
        order: Order,
        now_s: float,
        *,
        rows_max: int,
        bytes_max: int,
    ) -> None:
        super().__init__(want.id, want.slot, replica, fetch)
        self.scan = scan
        self.used_s = now_s  # When the peer last asked.
        self._peer_clock = want.clock
        self._rows_max = rows_max
        self._bytes_max = bytes_max
        self._order = order
        self._clock = SlotClock()
        self._pages: Generator[Page, None, None] | None = None
        self._ready: deque[Entry] = deque()  # Scanned, and in no chunk yet.
        self._ready_bytes = 0
        self._is_exhausted = False
        self._number = -1  # Of the chunk that was made last.
        self._message: Rows | None = None  # That chunk, until the next one is asked for.
        self._is_due = True  # A chunk is to be made, or the last one to be sent again.

    def ask(self, number: int, now_s: float) -> None:
        """The peer wants a chunk: the one that it was sent last, or the one after it."""
        self.used_s = now_s
        if number == self._number and self._message is not None:
            self._is_due = True
        elif number == self._number + 1 and self._message and not self._message.is_last:
            self._message = None
            self._is_due = True

    @property
    def message(self) -> Rows | None:
        return self._message if self._is_due else None

    def sent(self) -> None:
        self._is_due = False

    def step(self) -> bool:
        """Scan a page of the chunk that is due; False if there is nothing to do. Raises EngineError."""
        if not self._is_due or self._message is not None or self.is_waiting:
            return False
        self._raise_if_failed()
        if self._pages is None:
            if self._replica.has_undecided(self.slot):
                return False  # In a moment they are decided.
            # One moment: a generator looks at the store when it is first asked.
            self._clock = self._replica.clock(self.slot)
            self._pages = self._replica.pages(self.slot)
            self._scan(self._pages)
        elif not self._is_exhausted and not self._is_full:
            self._scan(self._pages)
        if not self.is_waiting and (self._is_exhausted or self._is_full):
            self._seal()
        return True

    def close(self) -> None:
        """Let the scan go."""
        if self._pages is not None:
            self._pages.close()

    def covered(self) -> SlotClock:
        """What the peer has seen when it has all chunks."""
        return self._clock

    @property
    def _is_full(self) -> bool:
        return len(self._ready) >= self._rows_max or self._ready_bytes >= self._bytes_max

    def _scan(self, pages: Generator[Page, None, None]) -> None:
        page = next(pages, None)
        if page is None:
            self._is_exhausted = True
        elif isinstance(page, PageFault):
            self._wait(page)
        else:
            peer = self._peer_clock
            for row, raw in page:
                if is_missing(raw, peer):
                    self._ready.append((row, raw))
                    self._ready_bytes += len(row) + len(raw)

    def _seal(self) -> None:
        """Make a chunk of what is ready, up to its limits; a row that is larger goes alone."""
        rows: list[Entry] = []
        size = 0
        while self._ready and len(rows) < self._rows_max:
            row, raw = self._ready[0]
            size += len(row) + len(raw)
            if rows and size > self._bytes_max:
                break
            rows.append(self._ready.popleft())
        self._ready_bytes -= sum(len(row) + len(raw) for row, raw in rows)
        self._number += 1
        self._message = Rows(
            self.id,
            self.scan,
            self.slot,
            self._number,
            self._is_exhausted and not self._ready,
            None if self._number else self.covered(),
            tuple(self._order(rows)),
        )


class Incoming(_Transfer):
    """The receiver's side. `request` is what to ask the peer for next."""

    __slots__ = (
        "_clock",
        "_context",
        "_has_chunk",
        "_is_last",
        "_number",
        "_rows",
        "_scan",
        "_want",
        "asked_s",
        "attempts",
        "is_done",
    )

    def __init__(self, want: Want, replica: Replica, fetch: Fetch, now_s: float) -> None:
        super().__init__(want.id, want.slot, replica, fetch)
        self.asked_s = now_s
        self.attempts = 1
        self.is_done = False
        self._want = want
        self._clock = SlotClock()  # What will have been seen at the end.
        self._context = self._clock.freeze()
        self._scan: ScanId = 0  # The peer's, as chunk 0 names it.
        self._number = 0  # Of the chunk that is taken next.
        self._has_chunk = False
        self._is_last = False
        self._rows: deque[tuple[Row, Record]] = deque()

    @property
    def request(self) -> Want | Next | None:
        """What the peer has to be asked, again if it does not answer; None while there are rows to store."""
        if self._has_chunk or self.is_done:
            return None
        if not self._number:
            return self._want
        return Next(self.id, self._scan, self.slot, self._number)

    def take(self, rows: Rows) -> bool:
        """A chunk has come; False if it is not the one that is expected. Raises MalformedExchange."""
        if not self._is_expected(rows):
            return False
        records = [(row, check_record(raw)) for row, raw in rows.rows]
        if rows.clock is not None:
            self._clock = rows.clock
            self._context = rows.clock.freeze()
            self._scan = rows.scan
        self._rows.extend(records)
        self._is_last = rows.is_last
        self._has_chunk = True
        self._number = rows.number + 1
        return True

    def step(self) -> bool:
        """Store some of the rows that are here; False if there is nothing to do. Raises EngineError."""
        if not self._has_chunk or self.is_waiting:
            return False
        self._raise_if_failed()
        for _ in range(min(APPLY_ROWS, len(self._rows))):
            row, record = self._rows[0]
            try:
                self._replica.repair(self.slot, row, self._whole(record))
            except PageFault as fault:
                self._wait(fault)
                return True
            self._rows.popleft()
        if not self._rows:
            self._end_chunk()
        return True

    def _is_expected(self, rows: Rows) -> bool:
        if self._number and rows.scan != self._scan:
            return False
        return rows.number == self._number and not self._has_chunk and not self.is_done

    def _end_chunk(self) -> None:
        self._has_chunk = False
        if self._is_last:
            self._replica.join_clock(self.slot, self._clock)
            self.is_done = True

    def _whole(self, record: Record) -> Record:
        """As `cluster.delta.whole`; nearly always the clock covers all that the record has seen."""
        base = self._clock.base
        if not record.beyond and all(
            counter <= base.get(actor, 0) for actor, counter in record.context
        ):
            return Record(record.versions, *self._context)
        return whole(record, self._clock)
