"""The replica: its fast write against the store's plain one, restarts, expiry, what it keeps."""

from __future__ import annotations

import random
from itertools import repeat

import msgspec
import pytest

from cluster import life
from cluster.clock import Dot, SlotClock
from cluster.record import (
    CODEC,
    DELETION,
    ENCODING_MASK,
    HAS_EXPIRY,
    RAW_ENCODING,
    STRING,
    TEXT_ENCODING,
    TYPE_MASK,
    Record,
    Version,
    decode,
    encode,
    encode_version,
)
from cluster.replica import Effect, Replica
from cluster.replica_state import state_of_copy
from cluster.slot import SYSTEM_SLOT, Row, Slot, row_of, slot_of
from engine import manifest
from engine.codec import Fate
from engine.job import run_job
from engine.store import StoreSettings
from tests.sim.disk import SimDisk

ACTOR = 0x1122334455667788
NOW_MS = 1_700_000_000_000
SETTINGS = StoreSettings(
    memtable_bytes=1 << 30,
    row_cache_bytes=1 << 20,
    block_cache_bytes=1 << 20,
    log_bytes_max=1 << 30,
)
Effects = dict[Row, Effect]
Entries = dict[tuple[Slot, Row], bytes]


def new_replica(settings: StoreSettings = SETTINGS) -> Replica:
    return Replica.open(SimDisk(random.Random(1)), settings, ACTOR)


def reopened(replica: Replica, *, is_clean: bool, actor: int = ACTOR) -> Replica:
    if is_clean:
        replica.close()
    disk = replica.store.disk
    assert isinstance(disk, SimDisk)
    return Replica.open(disk.kill(), replica.store.settings, actor)


def flush_memtable(replica: Replica) -> None:
    """Freeze, and do the job that makes a table of it."""
    store = replica.store
    store.freeze()
    job = store.next_job(NOW_MS)
    assert job is not None
    result = run_job(store.disk, job, CODEC)
    prepared = store.prepare(job, result)
    store.write_manifest(prepared)
    store.install(job, result, prepared)


def random_effects(rng: random.Random) -> Effects:
    effects: Effects = {}
    for _ in range(rng.randrange(1, 6)):
        key = b"{%d}%d" % (rng.randrange(4), rng.randrange(12))
        slot = SYSTEM_SLOT if rng.random() < 0.1 else slot_of(key)
        kind = rng.choice([STRING, STRING, STRING | RAW_ENCODING, STRING | TEXT_ENCODING, DELETION])
        expire_at_ms = rng.choice([0, 0, NOW_MS + rng.randrange(10**6)]) if kind else 0
        payload = rng.randbytes(rng.randrange(30)) if kind else b""
        effects[row_of(rng.randrange(3), key)] = (slot, kind, expire_at_ms, payload)
    return effects


def write_plainly(replica: Replica, effects: Effects, now_ms: int) -> None:
    """What `Replica.write` does, by the functions that it has inlined."""
    hlc = replica.clock.mint(now_ms)
    for row, (slot, kind, expire_at_ms, payload) in effects.items():
        replica.clocks.own[slot] += 1
        version = Version(
            (replica.actor, replica.clocks.own[slot]),
            hlc,
            kind & TYPE_MASK,
            payload,
            expire_at_ms,
            kind & ENCODING_MASK,
        )
        replica.store.apply(slot, row, encode_version(version))
        if expire_at_ms:
            replica.expiry.add(slot, row, expire_at_ms)


def state_of(replica: Replica) -> dict[str, object]:
    memtable = replica.store.memtable
    return {
        "pieces": b"".join(replica.store.log.pieces),
        "slots": memtable.slots,
        "deltas": memtable.deltas,
        "weight": memtable.weight_bytes,
        "counters": replica.clocks.own,
        "hlc": replica.clock.last,
        "expiries": len(replica.expiry),
        "cached rows": len(replica.store.rows),
    }


@pytest.mark.parametrize("seed", range(40))
def test_write_does_what_the_store_does_for_a_complete_entry(seed: int) -> None:
    rng = random.Random(seed)
    fast, plain = new_replica(), new_replica()
    now_ms = NOW_MS
    for _ in range(60):
        kind = rng.random()
        if kind < 0.08:
            assert fast.store.write() == plain.store.write()
        elif kind < 0.14:
            for replica in (fast, plain):
                flush_memtable(replica)
        elif kind < 0.24:  # Another actor's delta, which the next write covers.
            key = b"{%d}%d" % (rng.randrange(4), rng.randrange(12))
            raw = encode_version(Version((7, 1), rng.randrange(99), STRING, b"delta"))
            for replica in (fast, plain):
                replica.store.apply(slot_of(key), row_of(0, key), raw, is_complete=False)
        elif kind < 0.4:  # A read, which fills the row cache.
            key = b"{%d}%d" % (rng.randrange(4), rng.randrange(12))
            found = [r.store.get(slot_of(key), row_of(0, key)) for r in (fast, plain)]
            assert found[0] == found[1]
        else:
            now_ms += rng.choice([0, 0, 1, 1000, -5])
            effects = random_effects(rng)
            fast.write(effects, now_ms)
            write_plainly(plain, effects, now_ms)
        assert state_of(fast) == state_of(plain)
    limit = NOW_MS + 2_000_000
    assert sorted(fast.expiry.due(limit)) == sorted(plain.expiry.due(limit))
    assert fast.store.write() == plain.store.write()
    assert (
        reopened(fast, is_clean=False).store.active == reopened(plain, is_clean=False).store.active
    )


def test_write_gives_each_effect_a_dot_and_all_of_them_one_timestamp() -> None:
    replica = new_replica()
    effects: Effects = {row_of(0, b"{t}%d" % n): (slot_of(b"t"), STRING, 0, b"") for n in range(50)}
    replica.write(effects, NOW_MS)
    replica.write({}, NOW_MS)
    replica.write(effects, NOW_MS - 1000)
    versions = [decode(raw).versions[0] for raw in replica.store.active[slot_of(b"t")].values()]
    assert [v.dot for v in versions] == [(ACTOR, n) for n in range(51, 101)]
    assert {v.hlc for v in versions} == {(NOW_MS << 16) + 1}
    assert replica.clock.mint(NOW_MS) == (NOW_MS << 16) + 2


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("is_clean", [True, False], ids=["clean", "killed"])
def test_no_dot_and_no_timestamp_is_used_twice_over_restarts(seed: int, is_clean: bool) -> None:
    """What is in the log and what is only in tables both count, and time may stand still or go back."""
    rng = random.Random(seed)
    replica = new_replica()
    used: set[tuple[Slot, Dot]] = set()
    highest = 0
    for round_no in range(12):
        for _ in range(rng.randrange(6)):
            effects = random_effects(rng)
            replica.write(effects, NOW_MS - round_no * 1000)
            for row, (slot, *_) in effects.items():
                version = decode(replica.store.active[slot][row]).versions[0]
                assert (slot, version.dot) not in used
                assert version.hlc > highest
                used.add((slot, version.dot))
            highest = version.hlc
            replica.store.write()
        if rng.random() < 0.3:
            replica.flush([rng.randrange(3)])
            replica.store.write()
        if rng.random() < 0.4:
            flush_memtable(replica)
        counters = list(replica.clocks.own)
        replica = reopened(replica, is_clean=is_clean, actor=rng.getrandbits(63))
        assert replica.actor == ACTOR
        assert list(replica.clocks.own) == counters
        assert replica.clock.last >= highest


def test_a_restart_learns_from_siblings_and_from_other_actors() -> None:
    replica = new_replica()
    slot, row = slot_of(b"k"), row_of(0, b"k")
    expires_ms = NOW_MS + 5000
    mine = Version((ACTOR, 9), 7 << 30, STRING, b"mine", expires_ms)
    other = Version((ACTOR + 1, 99), 9 << 30, STRING, b"other", expires_ms - 1)
    record = Record((other, mine), ((ACTOR, 9), (ACTOR + 1, 99)))
    replica.store.apply(slot, row, encode(record))
    replica.store.write()
    replica = reopened(replica, is_clean=False)
    assert replica.clocks.own[slot] == 9
    assert replica.clock.last == 9 << 30
    assert len(replica.expiry) == 1
    assert replica.expire(expires_ms + 1000, lambda: False) == 1
    assert replica.store.get(slot, row) is None


def one_key(replica: Replica, key: bytes, expire_at_ms: int, payload: bytes = b"v") -> None:
    replica.write({row_of(0, key): (slot_of(key), STRING, expire_at_ms, payload)}, NOW_MS)


def entry(replica: Replica, key: bytes) -> bytes | None:
    return replica.store.active[slot_of(key)].get(row_of(0, key))


def test_expire_gives_memory_back_and_leaves_what_lives_longer() -> None:
    replica = new_replica()
    weight = replica.store.memtable.weight_bytes
    one_key(replica, b"soon", NOW_MS + 1000, b"v" * 1000)
    one_key(replica, b"moved", NOW_MS + 1000)
    one_key(replica, b"moved", NOW_MS + 9000)
    one_key(replica, b"kept", NOW_MS + 1000)
    one_key(replica, b"kept", 0)
    assert replica.expire(NOW_MS + 999, lambda: False) == 0
    assert len(replica.expiry) == 3
    assert replica.expire(NOW_MS + 2000, lambda: False) == 1
    assert entry(replica, b"soon") is None
    assert entry(replica, b"moved") is not None
    assert entry(replica, b"kept") is not None
    assert len(replica.expiry) == 1
    assert replica.expire(NOW_MS + 10_000, lambda: False) == 1
    assert entry(replica, b"moved") is None
    one_key(replica, b"kept", NOW_MS + 1)
    replica.expire(NOW_MS + 1000, lambda: False)
    assert replica.store.memtable.weight_bytes == weight


def test_expire_leaves_a_stub_where_a_table_may_hold_an_older_value() -> None:
    replica = new_replica()
    one_key(replica, b"k", 0, b"old")
    flush_memtable(replica)
    one_key(replica, b"k", NOW_MS + 1000, b"new")
    assert replica.expire(NOW_MS + 2000, lambda: False) == 1
    raw = replica.store.get(slot_of(b"k"), row_of(0, b"k"))
    assert raw is not None
    assert raw == encode_version(Version((ACTOR, 2), raw_hlc(raw), DELETION))
    assert CODEC.fate(row_of(0, b"k"), raw, NOW_MS) is Fate.DEAD


def raw_hlc(raw: bytes) -> int:
    return decode(raw).versions[0].hlc


def test_expire_stops_when_its_time_is_up_and_goes_on_later() -> None:
    replica = new_replica()
    for number in range(100):
        one_key(replica, b"%d" % number, NOW_MS + 1000)
    answers = iter([*repeat(False, 9), True])
    assert replica.expire(NOW_MS + 2000, lambda: next(answers)) == 10
    assert len(replica.expiry) == 90
    assert replica.expire(NOW_MS + 2000, lambda: False) == 90
    assert replica.store.memtable.entry_count == 0


def test_what_expired_stays_hidden_after_a_restart_and_is_forgotten_there_too() -> None:
    """Expiry is not logged: the log still holds the value, with its time."""
    replica = new_replica()
    one_key(replica, b"k", NOW_MS + 1000)
    replica.store.write()
    assert replica.expire(NOW_MS + 2000, lambda: False) == 1
    replica = reopened(replica, is_clean=True)
    raw = entry(replica, b"k")
    assert raw is not None
    assert raw[0] & HAS_EXPIRY
    assert CODEC.fate(row_of(0, b"k"), raw, NOW_MS + 1000) is Fate.DEAD
    assert replica.expire(NOW_MS + 2000, lambda: False) == 1
    assert entry(replica, b"k") is None


def test_flush_drops_the_given_databases_only() -> None:
    replica = new_replica()
    for db in range(3):
        replica.write({row_of(db, b"k"): (slot_of(b"k"), STRING, 0, b"%d" % db)}, NOW_MS)
    flush_memtable(replica)
    replica.flush([0, 2])
    replica.store.write()
    assert values_of(replica) == [None, b"1", None]
    assert values_of(reopened(replica, is_clean=False)) == [None, b"1", None]


def values_of(replica: Replica) -> list[bytes | None]:
    found = [replica.store.get(slot_of(b"k"), row_of(db, b"k")) for db in range(3)]
    return [raw and raw[-1:] for raw in found]


# Copies


def as_copy(replica: Replica) -> SimDisk:
    """The replica's disk, marked as a backup of it."""
    replica.close()
    disk = replica.store.disk
    assert isinstance(disk, SimDisk)
    disk = disk.kill()
    current = manifest.read(disk)
    assert current is not None
    marked = msgspec.structs.replace(current, state=state_of_copy(current.state))
    manifest.write(disk, marked)
    disk.remove(life.NAME)  # Which no copy holds.
    return disk


def test_a_copy_goes_on_as_a_new_actor_and_knows_the_old_one_s_dots() -> None:
    replica = new_replica()
    one_key(replica, b"a", 0)
    flush_memtable(replica)
    one_key(replica, b"a", 0)  # One dot is in a table, one in the log, and one is of another slot.
    one_key(replica, b"b", 0)
    last_hlc = replica.clock.last
    copy = Replica.open(as_copy(replica), SETTINGS, 77)
    assert copy.actor == 77
    assert sum(copy.clocks.own) == 0
    assert list(copy.clocks.columns) == [ACTOR]
    assert copy.clocks.columns[ACTOR][slot_of(b"a")] == 2
    assert copy.clocks.columns[ACTOR][slot_of(b"b")] == 1
    assert copy.clock.last >= last_hlc
    one_key(copy, b"a", 0)
    raw = entry(copy, b"a")
    assert raw is not None
    assert decode(raw).versions[0].dot == (77, 1)


def test_a_copy_that_was_flushed_is_a_replica_like_others() -> None:
    replica = new_replica()
    one_key(replica, b"a", 0)
    copy = Replica.open(as_copy(replica), SETTINGS, 77)
    one_key(copy, b"a", 0)
    flush_memtable(copy)
    copy = reopened(copy, is_clean=False, actor=78)
    assert copy.actor == 77
    assert copy.clocks.own[slot_of(b"a")] == 1
    assert copy.clocks.columns[ACTOR][slot_of(b"a")] == 1


@pytest.mark.parametrize("is_clean", [True, False])
def test_a_copy_goes_on_as_its_own_actor_also_if_it_was_not_flushed(is_clean: bool) -> None:
    replica = new_replica()
    one_key(replica, b"a", 0)
    copy = Replica.open(as_copy(replica), SETTINGS, 77)
    one_key(copy, b"a", 0)
    copy.store.write()
    copy = reopened(copy, is_clean=is_clean, actor=78)
    assert copy.actor == 77
    assert copy.clocks.clock(slot_of(b"a")) == SlotClock({ACTOR: 1, 77: 1})


# Who a node is after a stop


@pytest.mark.parametrize("is_durable", [True, False])
def test_after_a_power_cut_it_is_another_actor_and_complete_only_if_nothing_was_promised_early(
    is_durable: bool,
) -> None:
    replica = Replica.open(
        SimDisk(random.Random(1)), SETTINGS, ACTOR, boot="first", is_durable=is_durable
    )
    replica.note(is_complete=True)
    one_key(replica, b"a", 0)
    replica.store.write()
    replica.store.log.sync()
    disk = replica.store.disk
    assert isinstance(disk, SimDisk)
    replica = Replica.open(disk.crash(), SETTINGS, 77, boot="second", is_durable=is_durable)
    assert replica.actor == 77
    assert replica.is_complete == is_durable
    assert replica.clocks.clock(slot_of(b"a")) == SlotClock({ACTOR: 1})
    replica.store.write()
    assert isinstance(replica.store.disk, SimDisk)
    again = Replica.open(replica.store.disk.kill(), SETTINGS, 78, boot="second")
    assert (again.actor, again.is_complete) == (77, is_durable)


def test_a_new_folder_is_incomplete_until_it_is_told_otherwise() -> None:
    replica = new_replica()
    assert not replica.is_complete
    replica.note(is_complete=True)
    assert reopened(replica, is_clean=True).is_complete
