"""The runner over a real store on the simulated disk, without sockets and under a clock of the test's own.

`tests/respkv/commands/` holds what commands answer; here is what happens between commands: two ways to
run them, pages that are not in memory, slices, waits, pauses, budgets, and the order of replies.
"""

from __future__ import annotations

import random
import shlex
from typing import Any

import pytest

from respkv.admission import DISK_FULL
from respkv.command import TABLE
from respkv.reply import ReplyError
from respkv.session import CLOSING, LARGE_REPLY_BYTES, REPLY_BYTES_PER_TICK, WAITING, Session
from tests.respkv.commands.sessions import Sessions

STEPS_MAX = 10_000
Command = list[bytes]


def words(script: str) -> list[Command]:
    """Commands separated by ` ; `, with quotes as in a shell."""
    return [[word.encode("latin-1") for word in shlex.split(part)] for part in script.split(" ; ")]


class Rig(Sessions):
    """`Sessions` with pipelines, a front's part of a tick, and time-outs."""

    def serve(self, session: Session, commands: str | list[Command]) -> None:
        commands = words(commands) if isinstance(commands, str) else commands
        self.runner.serve(session, commands, self.time_ms)

    def tick(self, *sessions: Session) -> None:
        """What the front does for sessions that have commands left over."""
        for session in sessions:
            if session.queue and not session.mode & WAITING:
                self.runner.serve_queue(session, self.time_ms)
        self.store.write()

    def drain(self, *sessions: Session) -> None:
        """Until nobody has anything to do; a session that waits for a time stays as it is."""
        for _ in range(STEPS_MAX):
            self.tick(*sessions)
            self.step()
            is_busy = any(s.queue and not s.mode & WAITING for s in sessions)
            if not (is_busy or self._waiting or self.runner.long_way.sliced):
                return
        raise AssertionError("it never ends")

    def pass_time(self, now_s: float) -> None:
        """It is so many seconds after the start. (The clock itself has hardly moved.)"""
        self.runner.expire_waits(now_s, self.time_ms)

    def said(self, session: Session) -> list[Any]:
        """The replies that came since, errors as `-` and their line."""
        reader = self._readers[session]
        for part in session.out:
            reader.feed(bytes(part))
        session.out.clear()
        replies = []
        while (reply := reader.gets()) is not False:
            replies.append(reply)
        return replies

    def all_of(self, session: Session, commands: str | list[Command]) -> list[Any]:
        """All replies to a pipeline, whatever has to be fetched."""
        self.serve(session, commands)
        self.drain(session)
        return self.said(session)

    def fail_fetch(self, session: Session) -> None:
        """The page that the session waits for cannot be read."""
        assert session.wait is not None
        pins = session.wait.pins
        failed = [resume for _, of, resume in self._waiting if of is pins]
        self._waiting = [item for item in self._waiting if item[1] is not pins]
        for resume in failed:
            resume(self.time_ms, ReplyError("ERR the data cannot be read: x"))

    def close(self, session: Session) -> None:
        """Its client is gone."""
        del self.front.by_session[session]
        session.queue.clear()
        session.mode |= CLOSING
        self.forget(session)

    def chill(self) -> None:
        """All caches are empty."""
        self.store.rows.clear()
        size = self.store.blocks.bytes_max
        self.store.blocks.resize(0)
        self.store.blocks.resize(size)

    def step(self) -> None:
        self.arrive()
        self.runner.long_way.advance(self.time_ms)
        self.store.write()

    def arrive(self) -> None:
        """Pages arrive, as the node has them do; nothing else happens."""
        waiting, self._waiting = self._waiting, []
        for fault, pins, resume in waiting:
            fault.fetch()
            fault.arrive(pins)
            resume(self.time_ms, None)


@pytest.fixture
def rig() -> Rig:
    return Rig()


# Two ways, one answer


def random_pipeline(rng: random.Random) -> list[Command]:
    """Some commands over few keys: plain ones, faulty ones, long ones, transactions, slices, other databases."""
    keys = (b"a", b"b", b"c", b"{t}d", b"", b"x" * 300)

    def key() -> bytes:
        return rng.choice(keys)

    def value() -> bytes:
        return rng.choice((b"", b"1", b"-5", b"text", b"v" * 1500, b"w" * 70_000))

    makers = [
        lambda: [b"SET", key(), value()],
        lambda: [b"set", key(), value(), b"EX", b"100"],
        lambda: [b"GET", key()],
        lambda: [b"GET", key()],
        lambda: [b"get", key()],
        lambda: [b"MGET", key(), key(), key()],
        lambda: [b"MSET", key(), value(), key(), value()],
        lambda: [b"INCR", key()],
        lambda: [b"APPEND", key(), value()],
        lambda: [b"DEL", key(), key()],
        lambda: [b"EXISTS", key()],
        lambda: [b"TTL", key()],
        lambda: [b"EXPIRE", key(), b"50"],
        lambda: [b"SETRANGE", key(), b"700000", b"end"],
        lambda: [b"RENAME", key(), key()],
        lambda: [b"PING"],
        lambda: [b"ECHO", value()],
        lambda: [b"NOPE", value()],
        lambda: [b""],
        lambda: [b"GET"],
        lambda: [b"SET", key()],
        lambda: [b"CLIENT", b"NOPE"],
        lambda: [b"SELECT", rng.choice((b"0", b"1", b"99"))],
        lambda: [b"DBSIZE"],
        lambda: [b"KEYS", b"*"],
        lambda: [b"MULTI"],
        lambda: [b"EXEC"],
        lambda: [b"EXEC"],
        lambda: [b"DISCARD"],
        lambda: [b"WATCH", key()],
        lambda: [b"SWAPDB", b"0", b"1"],
        lambda: [b"FLUSHDB"] if rng.random() < 0.2 else [b"PING", b"x"],
        lambda: [b"HELLO", rng.choice((b"2", b"3"))],
        lambda: [b"CLIENT", b"REPLY", rng.choice((b"ON", b"SKIP"))],
    ]
    return [rng.choice(makers)() for _ in range(rng.randint(1, 40))]


def raw_replies(rig: Rig, session: Session) -> bytes:
    replies = b"".join(session.out)
    session.out.clear()
    session.has_large_reply = False
    return replies


@pytest.mark.parametrize("seed", range(12))
def test_the_short_and_the_long_way_and_cold_pages_answer_the_same(seed: int) -> None:
    short, long, cold = Rig(), Rig(), Rig()
    sessions = [rig.open() for rig in (short, long, cold)]
    rng = random.Random(seed)
    for _ in range(8):
        pipeline = random_pipeline(rng)
        is_evicted = rng.random() < 0.4
        replies = []
        for rig, session in zip((short, long, cold), sessions, strict=True):
            if rig is cold and is_evicted:
                rig.store.write()
                if rig.store.log.position > rig.store.memtable.base_position:
                    rig.evict()
            rig.runner.has_observers = rig is long
            rig.serve(session, [list(command) for command in pipeline])
            rig.drain(session)
            replies.append(raw_replies(rig, session))
        assert replies[1] == replies[0], pipeline
        assert replies[2] == replies[0], pipeline
    assert short.store.memtable.slots == long.store.memtable.slots
    assert short.replica.clocks.own == long.replica.clocks.own == cold.replica.clocks.own
    assert (short.context.hits, short.context.misses) == (long.context.hits, long.context.misses)


def test_the_long_way_counts_what_the_short_way_counts() -> None:
    counts = []
    for is_long in (False, True):
        rig = Rig()
        rig.reset_stats()
        session = rig.open()
        rig.runner.has_observers = is_long
        rig.all_of(session, "SET k v ; GET k ; GET k ; INCR k ; INCR k ; PING ; MGET k")
        shown = {
            n: (TABLE.commands[n].calls, TABLE.commands[n].failed_calls)
            for n in ("GET", "INCR", "PING")
        }
        counts.append((shown, rig.runner.commands_total, rig.errors))
        assert session.last_command is TABLE.commands["MGET"]
    assert counts[0] == counts[1]
    assert counts[0][0] == {"GET": (2, 0), "INCR": (2, 2), "PING": (1, 0)}


# Pages that are not in memory


def test_a_fault_in_the_middle_of_a_pipeline_holds_up_what_follows(rig: Rig) -> None:
    one, two = rig.open(), rig.open()
    rig.ask(one, "SET cold v")
    rig.evict()
    rig.serve(one, "SET a 1 ; GET a ; GET cold ; SET a 2 ; GET a")
    assert rig.said(one) == [b"OK", b"1"]
    assert one.mode & WAITING
    rig.serve(one, "GET a ; PING")  # Comes while it waits.
    assert rig.said(one) == []
    assert rig.all_of(two, "GET a") == [b"1"]  # Nobody else waits,
    assert not two.mode & WAITING
    rig.drain(one)
    assert rig.said(one) == [b"v", b"OK", b"2", b"2", b"PONG"]  # and the order is kept.


def test_a_command_runs_again_at_the_time_of_its_first_run(rig: Rig) -> None:
    one = rig.open()
    rig.ask(one, "SET k v PX 1000")
    rig.evict()
    rig.serve(one, "PTTL k ; GET k")
    rig.time_ms += 5000
    rig.arrive()
    assert rig.said(one) == [1000, None]  # The next one runs at its own time.


def test_a_handler_that_faults_late_leaves_nothing_of_its_first_run(rig: Rig) -> None:
    one = rig.open()
    rig.ask(one, "SET cold v ; SET warm w")
    rig.evict()
    rig.ask(one, "SET warm 1")
    assert rig.all_of(one, "MSET x 1 y 2 ; RENAME cold warm ; MGET cold warm x") == [
        b"OK", b"OK", [None, b"v", b"1"],
    ]  # fmt: skip
    assert rig.faults
    assert rig.context.effects == {}


def test_a_page_is_kept_for_who_waited_for_it(rig: Rig) -> None:
    one = rig.open()
    rig.all_of(one, [[b"MSET", *(word for n in range(300) for word in (b"k%d" % n, b"v" * 200))]])
    rig.evict()
    rig.store.blocks.resize(0)  # No cache keeps anything.
    rig.store.rows.resize(0)
    replies = rig.all_of(one, [[b"MGET", *(b"k%d" % n for n in range(300))]])
    assert replies == [[b"v" * 200] * 300]
    assert rig.faults < 300 * 3
    assert not rig.store.pinned


def test_a_page_that_cannot_be_read(rig: Rig) -> None:
    one = rig.open()
    rig.ask(one, "SET cold v")
    rig.evict()
    rig.reset_stats()
    rig.serve(one, "GET cold ; PING")
    rig.fail_fetch(one)
    rig.drain(one)
    assert rig.said(one) == [b"-ERR the data cannot be read: x", b"PONG"]
    assert rig.errors == {b"ERR": 1}
    assert TABLE.commands["GET"].failed_calls == 1
    rig.serve(one, "KEYS *")
    rig.fail_fetch(one)
    assert rig.said(one) == [b"-ERR the data cannot be read: x"]
    rig.serve(one, "MULTI ; GET cold ; EXEC")
    rig.fail_fetch(one)
    assert rig.said(one)[-1] == b"-ERR the data cannot be read: x"
    assert one.transaction is None
    assert rig.all_of(one, "GET cold") == [b"v"]


def test_a_page_that_comes_after_its_session_has_gone(rig: Rig) -> None:
    one, two = rig.open(), rig.open()
    rig.ask(one, "SET cold v")
    rig.evict()
    for command in ("GET cold", "KEYS *", "MULTI ; GET cold ; EXEC"):
        session = rig.open()
        rig.serve(session, command)
        assert session in rig.runner.long_way.waiting
        session.out.clear()
        rig.close(session)
        rig.arrive()
        assert rig.runner.long_way.waiting == rig.runner.long_way.sliced == {}
        assert session.out == []
        rig.chill()
    assert rig.all_of(two, "GET cold") == [b"v"]


# EXEC and pages


def test_exec_runs_again_as_a_whole(rig: Rig) -> None:
    one = rig.open()
    rig.ask(one, "SET cold v ; SELECT 1 ; SET cold w ; SELECT 0")
    rig.evict()
    script = "MULTI ; INCR n ; SELECT 1 ; SET k 1 ; GET cold ; SELECT 0 ; GET cold ; INCR n ; EXEC ; GET n"
    rig.serve(one, script)
    assert one.mode & WAITING
    assert (one.db, one.out[-1]) == (0, b"+QUEUED\r\n")
    rig.drain(one)
    assert rig.said(one)[-2:] == [[1, b"OK", b"OK", b"w", b"OK", b"v", 2], b"2"]
    assert one.db == 0
    assert TABLE.commands["EXEC"].calls


@pytest.mark.parametrize("is_changed", [True, False])
def test_a_watched_key_that_changes_while_exec_waits(rig: Rig, is_changed: bool) -> None:
    one, two = rig.open(), rig.open()
    rig.ask(one, "SET cold v ; SET watched w")
    rig.evict()
    assert rig.all_of(one, "WATCH watched ; GET watched") == [b"OK", b"w"]
    rig.chill()
    rig.serve(one, "MULTI ; GET cold ; SET n 1 ; EXEC")
    assert one.mode & WAITING
    if is_changed:
        rig.serve(two, "SET watched x")
    rig.drain(one)
    assert rig.said(one)[-1] == (None if is_changed else [b"v", b"OK"])
    assert rig.all_of(two, "GET n")[-1] == (None if is_changed else b"1")


def test_watch_faults_and_notes_all_keys_or_none(rig: Rig) -> None:
    one, two = rig.open(), rig.open()
    rig.ask(one, "SET a 1 ; SET b 1")
    rig.evict()
    rig.serve(one, "WATCH a b ; MULTI ; PING ; EXEC")
    assert one.watches == {}
    rig.serve(two, "SET a 2")  # Before the WATCH is answered, so it does not count.
    rig.drain(one)
    assert rig.said(one)[-1] == [b"PONG"]


def test_a_swap_of_databases_changes_a_watched_key(rig: Rig) -> None:
    one, two = rig.open(), rig.open()
    rig.all_of(one, "SET k v ; WATCH k")
    rig.all_of(two, "SWAPDB 0 1")
    assert rig.all_of(one, "MULTI ; PING ; EXEC")[-1] is None
    rig.all_of(one, "WATCH k")
    rig.all_of(two, "SWAPDB 2 3")
    assert rig.all_of(one, "MULTI ; PING ; EXEC")[-1] == [b"PONG"]


# MULTI


def test_the_queue_of_a_transaction_is_bounded(rig: Rig) -> None:
    one = rig.open()
    limit = rig.config.client.query_buffer_bytes_max = 1 << 20
    value = b"v" * 100_000
    replies = rig.all_of(one, [[b"MULTI"], *([b"SET", b"k", value] for _ in range(20))])
    refused = replies.index(
        b"-ERR the commands queued since MULTI take more than client.query_buffer_bytes_max: "
        b"EXEC will discard them"
    )
    assert replies[1:refused] == [b"QUEUED"] * (limit // 100_200)
    assert one.transaction is not None
    assert one.transaction.commands == []  # Nothing is kept for a transaction that will not run.
    assert rig.all_of(one, "SET k w ; EXEC ; GET k") == [
        b"QUEUED", b"-EXECABORT Transaction discarded because of previous errors.", None,
    ]  # fmt: skip


def test_many_small_commands_count_with_what_they_take(rig: Rig) -> None:
    one = rig.open()
    rig.config.client.query_buffer_bytes_max = 1 << 20
    rig.all_of(one, [[b"MULTI"], *([b"GET", b""] for _ in range(10_000))])
    assert one.transaction is not None
    assert one.transaction.is_broken


def test_an_exec_of_writes_is_refused_when_writes_are(rig: Rig) -> None:
    one, two = rig.open(), rig.open()
    rig.all_of(one, "MULTI ; SET k v")
    rig.all_of(two, "MULTI ; GET k")
    rig.refusal = DISK_FULL
    assert rig.all_of(one, "EXEC ; EXEC ; SET k v ; GET k") == [
        b"-EXECABORT Transaction discarded because of: " + DISK_FULL.line,
        b"-ERR EXEC without MULTI",
        b"-" + DISK_FULL.line,
        None,
    ]
    assert rig.all_of(two, "EXEC") == [[None]]
    assert rig.all_of(two, "MULTI ; SET k v ; EXEC")[1:] == [
        b"-" + DISK_FULL.line, b"-EXECABORT Transaction discarded because of previous errors.",
    ]  # fmt: skip
    rig.refusal = None
    assert rig.all_of(one, "SET k v ; GET k") == [b"OK", b"v"]


# Slices


def test_sliced_commands_let_others_in_between(rig: Rig) -> None:
    one, two, three = rig.open(), rig.open(), rig.open()
    rig.all_of(one, [[b"SET", b"k%d" % n, b"v"] for n in range(2000)])
    rig.serve(one, "KEYS * ; SET after 1 ; GET after")
    rig.serve(three, "DBSIZE ; PING")
    assert rig.said(one) == rig.said(three) == []
    steps = 0
    while one in rig.runner.long_way.waiting:
        rig.serve(two, "GET k1 ; EXISTS after")
        assert rig.said(two) == [b"v", 0]  # What follows KEYS waits for it.
        rig.runner.long_way.advance(rig.time_ms)
        steps += 1
    assert steps > 3
    rig.drain(one, three)
    keys, *rest = rig.said(one)
    assert len(keys) == 2000
    assert rest == [b"OK", b"1"]
    assert rig.said(three)[1:] == [b"PONG"]


def test_a_sliced_command_waits_for_pages_too(rig: Rig) -> None:
    one, two = rig.open(), rig.open()
    rig.all_of(one, [[b"SET", b"k%d" % n, b"v" * 100] for n in range(500)])
    rig.evict()
    rig.serve(one, "KEYS * ; PING")
    assert one.wait is not None
    assert one.wait.fault is not None
    assert not rig.runner.long_way.sliced  # Nothing to advance: the front may sleep.
    rig.runner.long_way.advance(rig.time_ms)
    assert one.wait.fault is not None
    while one.wait is not None:
        assert bool(rig.runner.long_way.sliced) == (one.wait.fault is None)
        assert len(one.wait.pins) < 5  # The pages that it has passed are not kept for it.
        rig.step()
    keys, pong = rig.said(one)
    assert sorted(keys) == sorted(b"k%d" % n for n in range(500))
    assert pong == b"PONG"
    assert rig.all_of(two, "DBSIZE") == [500]


def test_a_sliced_command_counts_all_its_slices(rig: Rig) -> None:
    one = rig.open()
    rig.all_of(one, [[b"SET", b"k%d" % n, b"v"] for n in range(2000)])
    rig.reset_stats()
    rig.slowlog.configure(0, 10)
    start = rig.clock_ns()
    rig.all_of(one, "KEYS *")
    spent = rig.clock_ns() - start
    command = TABLE.commands["KEYS"]
    assert command.calls == 1
    assert command.elapsed_ns > spent / 2  # Between its slices the clock was read as well.


def test_slices_share_the_time_of_a_tick(rig: Rig) -> None:
    sessions = [rig.open() for _ in range(8)]
    rig.all_of(sessions[0], [[b"SET", b"k%d" % n, b"v"] for n in range(3000)])
    rig.slice_ns = 40

    def advanced(count: int) -> int:
        for session in sessions[:count]:
            rig.serve(session, "KEYS *")
        start = rig.clock_ns()
        rig.runner.long_way.advance(rig.time_ms)
        spent = rig.clock_ns() - start
        rig.drain(*sessions)
        return spent

    assert advanced(8) < 2.5 * advanced(1)


def test_a_killed_session_stops_its_slices(rig: Rig) -> None:
    one, two = rig.open(), rig.open()
    rig.all_of(one, [[b"SET", b"k%d" % n, b"v"] for n in range(2000)])
    one.out.clear()
    rig.serve(one, "KEYS *")
    slices = one.wait.slices if one.wait is not None else None
    assert slices is not None
    rig.close(one)
    with pytest.raises(StopIteration):  # Closed, not only forgotten.
        next(slices)
    rig.drain(two)
    assert rig.runner.long_way.sliced == rig.runner.long_way.waiting == {}
    assert one.out == []


# Waits


def test_blocked_until_the_time_is_up(rig: Rig) -> None:
    one, two = rig.open(), rig.open()
    rig.serve(one, "WAIT 1 2000 ; PING")
    assert rig.said(one) == []
    rig.pass_time(1.9)
    assert rig.said(one) == []
    assert rig.all_of(two, "PING") == [b"PONG"]
    rig.pass_time(2.1)
    assert rig.said(one) == [0, b"PONG"]
    rig.pass_time(9.0)
    assert rig.said(one) == []


def test_blocked_for_ever_until_unblocked(rig: Rig) -> None:
    one, two = rig.open(), rig.open()
    rig.serve(one, "WAIT 1 0 ; PING")
    rig.pass_time(1e9)
    assert rig.said(one) == []
    assert rig.all_of(two, f"CLIENT UNBLOCK {one.id}") == [1]
    rig.pass_time(0.0)
    assert rig.said(one) == [0, b"PONG"]
    assert rig.all_of(two, f"CLIENT UNBLOCK {one.id}") == [0]
    rig.serve(one, "WAIT 1 0")
    rig.all_of(two, f"CLIENT UNBLOCK {one.id} ERROR")
    rig.pass_time(0.0)
    assert rig.said(one) == [b"-UNBLOCKED client unblocked via CLIENT UNBLOCK"]


def test_only_who_waits_for_a_time_can_be_unblocked(rig: Rig) -> None:
    one, two = rig.open(), rig.open()
    rig.ask(one, "SET cold v")
    rig.evict()
    rig.serve(one, "GET cold")
    assert rig.all_of(two, f"CLIENT UNBLOCK {one.id}") == [0]
    rig.serve(two, "CLIENT PAUSE 1000")
    assert rig.said(two) == [b"OK"]
    rig.arrive()
    assert rig.said(one) == [b"v"]


def test_a_session_that_another_one_closes_as_both_waits_end(rig: Rig) -> None:
    """The first one to go on kills the second one, whose time was up as well."""
    one, two, three = rig.open(), rig.open(), rig.open()
    rig.front.clients.close_session = rig.close  # type: ignore[method-assign]
    rig.serve(one, f"WAIT 1 1000 ; CLIENT KILL ID {two.id} ; PING")
    rig.serve(two, "WAIT 1 1000 ; SET k v")
    rig.pass_time(2.0)
    assert rig.said(one) == [0, 1, b"PONG"]
    assert two.out == []
    assert rig.all_of(three, "GET k") == [None]
    # The same with slices.
    rig.all_of(three, [[b"SET", b"k%d" % n, b"v"] for n in range(500)])
    two = rig.open()
    rig.serve(one, f"KEYS * ; CLIENT KILL ID {two.id}")
    rig.serve(two, "KEYS *")
    rig.drain(one, two)
    assert two.out == []
    assert rig.said(one)[1] == 1


def test_a_session_that_vanishes_while_blocked(rig: Rig) -> None:
    one = rig.open()
    rig.serve(one, "WAIT 1 1000 ; SET k v")
    rig.close(one)
    rig.pass_time(2.0)
    assert one.out == []
    assert rig.runner.long_way.waiting == {}


# Pauses


def test_a_pause_of_all(rig: Rig) -> None:
    one, two = rig.open(), rig.open()
    rig.serve(one, "CLIENT PAUSE 1000 ; PING")
    rig.serve(two, "GET k ; PING")
    rig.serve(two, "PING x")
    rig.pass_time(0.9)
    assert (rig.said(one), rig.said(two)) == ([b"OK"], [])
    rig.pass_time(1.1)
    assert (rig.said(one), rig.said(two)) == ([b"PONG"], [None, b"PONG", b"x"])
    assert not rig.runner.has_observers


def test_a_pause_of_writes(rig: Rig) -> None:
    one, two, three = rig.open(), rig.open(), rig.open()
    rig.all_of(one, "MULTI ; SET k v ; GET k")
    rig.all_of(three, "MULTI ; GET k")
    rig.serve(two, "CLIENT PAUSE 1000 WRITE ; GET k ; SET k w ; GET k")
    rig.serve(one, "EXEC ; PING")
    rig.serve(three, "EXEC ; PING")
    assert rig.said(two) == [b"OK", None]
    assert rig.said(one) == []
    assert rig.said(three) == [[None], b"PONG"]
    rig.all_of(three, "CLIENT UNPAUSE")
    rig.pass_time(0.0)
    assert sorted(map(repr, rig.said(two) + rig.said(one))) == sorted(
        map(repr, [b"OK", b"w", [b"OK", b"v"], b"PONG"])
    )


def test_a_pause_is_not_made_shorter_or_milder(rig: Rig) -> None:
    rig.runner.gate.pause(5.0, only_writes=False)
    rig.runner.gate.pause(1.0, only_writes=True)
    rig.observe_changed()
    one = rig.open()
    rig.serve(one, "GET k")
    rig.pass_time(4.0)
    assert rig.said(one) == []
    rig.pass_time(5.1)
    assert rig.said(one) == [None]


def test_a_paused_session_that_vanishes_or_pauses_again(rig: Rig) -> None:
    one, two, three = rig.open(), rig.open(), rig.open()
    rig.serve(one, "CLIENT PAUSE 1000")
    rig.serve(two, "CLIENT PAUSE 5000 ; PING")
    rig.serve(three, "SET k v")
    rig.close(three)
    rig.pass_time(1.1)
    assert rig.said(two) == [b"OK"]  # It has paused everybody anew, itself too.
    rig.pass_time(7.0)
    assert rig.said(two) == [b"PONG"]
    assert rig.all_of(one, "GET k")[1:] == [None]


def test_a_paused_session_that_the_first_one_to_go_on_closes(rig: Rig) -> None:
    one, two, three = rig.open(), rig.open(), rig.open()
    rig.front.clients.close_session = rig.close  # type: ignore[method-assign]
    rig.serve(one, "CLIENT PAUSE 1000")
    rig.serve(two, f"CLIENT KILL ID {three.id}")
    rig.serve(three, "SET k v ; SET l w")
    rig.pass_time(1.1)
    assert rig.said(two) == [1]
    assert three.out == []
    assert rig.all_of(two, "GET k ; GET l") == [None, None]


def test_writes_wait_while_the_store_is_stalled(rig: Rig) -> None:
    one, two = rig.open(), rig.open()
    rig.runner.gate.is_stalled = True
    rig.observe_changed()
    rig.serve(one, "GET k ; SET k v ; GET k")
    assert rig.said(one) == [None]
    assert rig.all_of(two, "PING") == [b"PONG"]
    rig.runner.gate.is_stalled = False
    rig.observe_changed()
    rig.runner.gate.try_again(rig.time_ms)
    assert rig.said(one) == [b"OK", b"v"]


# CLIENT REPLY


def test_replies_that_nobody_wants(rig: Rig) -> None:
    one = rig.open()
    rig.ask(one, "SET cold v")
    rig.evict()
    assert rig.all_of(one, "CLIENT REPLY SKIP ; GET cold ; PING") == [b"PONG"]
    assert (
        rig.all_of(one, "CLIENT REPLY OFF ; GET cold ; NOPE ; CLIENT REPLY SKIP ; PING ; SET k v")
        == []
    )
    assert rig.all_of(one, "CLIENT REPLY ON ; GET k") == [b"OK", b"v"]
    assert rig.all_of(one, "CLIENT REPLY SKIP ; NOPE ; PING") == [b"PONG"]


# Budgets


def test_commands_of_one_tick(rig: Rig) -> None:
    rig.config.client.commands_per_tick_max = 10
    for mode in (False, True):
        one, two = rig.open(), rig.open()
        rig.runner.has_observers = mode
        one.queue.extend([b"APPEND", b"k", b"%d," % n] for n in range(35))
        ticks = []
        while one.queue:
            rig.tick(one)
            ticks.append(len(rig.said(one)))
            assert rig.all_of(two, "PING") == [b"PONG"]
        assert ticks == [10, 10, 10, 5]
        assert rig.ask(two, "GETDEL k") == b"".join(b"%d," % n for n in range(35))


def test_large_replies_of_one_tick(rig: Rig) -> None:
    for mode in (False, True):
        one = rig.open()
        rig.runner.has_observers = mode
        rig.all_of(one, [[b"SET", b"big", b"x" * (REPLY_BYTES_PER_TICK // 3)]])
        rig.serve(one, [[b"GET", b"big"]] * 20 + [[b"PING"]])
        ticks = [sum(map(len, one.out))]
        replies = rig.said(one)
        while one.queue:
            one.has_large_reply = False  # The front has sent it.
            rig.tick(one)
            ticks.append(sum(map(len, one.out)))
            replies += rig.said(one)
        assert max(ticks) < 2 * REPLY_BYTES_PER_TICK
        assert len(ticks) > 3
        assert [len(reply) for reply in replies] == [REPLY_BYTES_PER_TICK // 3] * 20 + [4]


def test_a_large_reply_is_marked_for_the_front(rig: Rig) -> None:
    for mode in (False, True):
        one = rig.open()
        rig.runner.has_observers = mode
        rig.all_of(
            one,
            [
                [b"SET", b"k", b"x" * LARGE_REPLY_BYTES],
                [b"SET", b"l", b"y" * (LARGE_REPLY_BYTES - 1)],
            ],
        )
        rig.all_of(one, "GET l")
        assert not one.has_large_reply
        rig.serve(one, "GET k")
        assert one.has_large_reply


def test_the_session_ends_at_quit(rig: Rig) -> None:
    one = rig.open()
    rig.serve(one, "PING ; QUIT ; SET k v")
    rig.serve(one, "SET k v")  # Comes later.
    assert rig.said(one) == [b"PONG", b"OK"]
    assert not one.queue
    assert rig.ask(rig.open(), "GET k") is None


# Order, with everything at once


@pytest.mark.parametrize("seed", range(6))
def test_replies_are_in_order_whatever_they_wait_for(seed: int) -> None:
    """Each session counts on a key of its own, so that each reply says where it belongs."""
    rng = random.Random(seed)
    rig = Rig(seed)
    rig.config.client.commands_per_tick_max = 7
    sessions = [rig.open() for _ in range(5)]
    answered = {session: [0] for session in sessions}
    asked = dict.fromkeys(sessions, 0)
    for _ in range(150):
        session = rng.choice(sessions)
        key = b"count%d" % session.id
        for _ in range(rng.randint(1, 12)):
            kind = rng.random()
            if kind < 0.7:
                rig.serve(session, [[b"INCR", key]])
            elif kind < 0.8:
                rig.serve(session, [[b"MULTI"], [b"INCR", key], [b"EXEC"]])
            elif kind < 0.9:
                rig.serve(session, [[b"KEYS", b"*"], [b"INCR", key]])
            else:
                rig.serve(session, [[b"WAIT", b"1", b"1"], [b"INCR", key]])
            asked[session] += 1
        happening = rng.random()
        if happening < 0.3:
            rig.pass_time(float(rig.clock_ns()))
        elif happening < 0.4 and rig.store.write() > rig.store.memtable.base_position:
            rig.evict()
        elif happening < 0.5:
            rig.sim_disk.faults.is_cold = not rig.sim_disk.faults.is_cold
        elif happening < 0.8:
            rig.step()
        rig.tick(*sessions)
        collect(rig, answered)
    while any(s.queue or s.mode & WAITING for s in sessions):
        rig.pass_time(float(rig.clock_ns()))
        rig.drain(*sessions)
    collect(rig, answered)
    for session in sessions:
        assert answered[session] == list(range(asked[session] + 1))


def collect(rig: Rig, answered: dict[Session, list[int]]) -> None:
    """Keep the answers of INCR, inside EXEC too. WAIT answers 0, KEYS a list of keys."""
    for session, numbers in answered.items():
        for reply in rig.said(session):
            match reply:
                case [int(number)] | int(number) if number:
                    numbers.append(number)
                case 0 | list() | b"OK" | b"QUEUED":
                    pass
                case _:
                    raise AssertionError(reply)


# Bugs


@pytest.mark.parametrize(
    ("name", "line"),
    [("APPEND", "APPEND k x"), ("CONFIG|GET", "CONFIG GET save"), ("KEYS", "KEYS *")],
)
def test_a_bug_in_a_handler_is_an_error_reply_and_changes_nothing(
    name: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig()
    client = rig.open()
    command = next(each for each in TABLE.everything() if each.name == name)

    def slices() -> Any:
        yield
        raise ZeroDivisionError

    def broken(context: Any, *args: bytes) -> Any:
        if command.is_sliced:
            return slices()
        context.put_string(b"k", b"half")
        raise ZeroDivisionError

    assert rig.all_of(client, "SET k v") == [b"OK"]
    with monkeypatch.context() as patch:
        patch.setattr(command, "handler", broken)
        said = rig.all_of(client, f"{line} ; PING")
        in_exec = rig.all_of(client, f"MULTI ; {line} ; PING ; EXEC")
    assert f"internal error in '{name.lower()}'" in str(said[0])
    assert said[1] == b"PONG"
    assert "internal error" in str(in_exec[-1][0] if isinstance(in_exec[-1], list) else in_exec[-1])
    assert rig.all_of(client, "GET k") == [b"v"]
