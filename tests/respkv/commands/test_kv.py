"""KV.SNAPSHOT, step by step with `Alone`: what it answers, and what threads and clients that leave do to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.replica import Replica
from cluster.slot import row_of, slot_of
from engine.damage import Damage
from engine.disk import Disk
from respkv.keyspace import Counts
from respkv.store_share import store_settings
from tests.differential.wire import Reply
from tests.respkv.commands.alone import START_NS, Alone

NEW_ACTOR = 99


@pytest.fixture
def alone() -> Iterator[Alone]:
    node = Alone()
    yield node
    node.close()


def finished(alone: Alone, words: str) -> Reply:
    """The reply to a command, with all that threads do for it."""
    reply = alone.ask(words)
    for _ in range(10):
        if reply is not None:
            return reply
        reply = alone.work()
    raise AssertionError("it never ends")


def line(alone: Alone, words: str) -> bytes:
    reply = finished(alone, words)
    return b"-" + reply.text if reply.is_error else reply.text


def fields(reply: Reply) -> dict[bytes, bytes]:
    texts = [item.text for item in reply.items]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def opened(disk: Disk, name: str, alone: Alone) -> Replica:
    """A node's replica on the snapshot."""
    folder = disk.folder("snapshots").folder(name)
    return Replica.open(folder, store_settings(alone.config), NEW_ACTOR)


def test_create_answers_where_and_how_large(alone: Alone) -> None:
    alone.ask("SET k v")
    reply = finished(alone, "KV.SNAPSHOT CREATE monday")
    shown = fields(reply)
    assert shown[b"name"] == b"monday"
    assert shown[b"path"] == b"/sim/snapshots/monday"
    assert int(shown[b"taken_ms"]) == START_NS // 10**6
    folder = alone.disk.folder("snapshots").folder("monday")
    others = [name for name in folder.names() if name not in ("manifest", "snapshot")]
    assert int(shown[b"files"]) == len(others)
    assert int(shown[b"bytes"]) == sum(map(folder.size, others))


def test_a_snapshot_has_what_was_acknowledged_and_not_what_came_later(alone: Alone) -> None:
    alone.ask("SET k before")
    assert alone.ask("KV.SNAPSHOT CREATE s") is None  # A thread makes the folder.
    alone.ask("SET k meanwhile", session=alone.connect())
    alone.work()  # Here it is taken.
    other = alone.connect()
    alone.ask("SET k later", session=other)
    assert alone.work() is not None
    replica = opened(alone.disk, "s", alone)
    (row,) = [row for rows in replica.store.active for row in rows.values()]
    assert row.endswith(b"meanwhile")


def test_a_node_on_a_snapshot_is_a_new_actor(alone: Alone) -> None:
    alone.ask("SET k v")
    finished(alone, "KV.SNAPSHOT CREATE s")
    replica = opened(alone.disk, "s", alone)
    assert replica.actor == NEW_ACTOR
    assert sum(replica.clocks.columns[alone.node.replica.actor]) == 1
    assert alone.node.replica.actor != NEW_ACTOR


def test_snapshots_are_listed_until_they_are_dropped(alone: Alone) -> None:
    assert finished(alone, "KV.SNAPSHOT LIST").items == []
    for name in ("b", "a"):
        finished(alone, f"KV.SNAPSHOT CREATE {name}")
    listed = [fields(item)[b"name"] for item in finished(alone, "KV.SNAPSHOT LIST").items]
    assert listed == [b"a", b"b"]
    assert line(alone, "KV.SNAPSHOT DROP a") == b"OK"
    listed = [fields(item)[b"name"] for item in finished(alone, "KV.SNAPSHOT LIST").items]
    assert listed == [b"b"]
    assert alone.disk.folder("snapshots").names() == ["b"]


@pytest.mark.parametrize(
    "name", ["''", ".", "..", "../x", "a/b", ".hidden", "a\\\\0b", "a" * 65, "é"]
)
@pytest.mark.parametrize("what", ["CREATE", "DROP"])
def test_names_are_checked(alone: Alone, what: str, name: str) -> None:
    assert line(alone, f"KV.SNAPSHOT {what} {name}").startswith(b"-ERR a snapshot's name has")
    assert alone.disk.names().count("snapshots") == 0


def test_what_is_there_and_what_is_not(alone: Alone) -> None:
    finished(alone, "KV.SNAPSHOT CREATE s")
    assert line(alone, "KV.SNAPSHOT CREATE s") == (
        b"-ERR there is a snapshot at /sim/snapshots/s already: drop it first, or choose another name"
    )
    assert line(alone, "KV.SNAPSHOT DROP t") == b"-ERR there is no snapshot at /sim/snapshots/t"


def test_one_client_at_a_time_works_on_a_name(alone: Alone) -> None:
    other = alone.connect()
    assert alone.ask("KV.SNAPSHOT CREATE s") is None
    for words in ("KV.SNAPSHOT CREATE s", "KV.SNAPSHOT DROP s"):
        reply = alone.ask(words, session=other)
        assert reply is not None
        assert reply.text.startswith(b"BUSY ")
    assert alone.ask("KV.SNAPSHOT CREATE t", session=other) is None
    while alone.work() is None:
        pass
    assert line(alone, "KV.SNAPSHOT DROP s") == b"OK"


def test_a_client_that_leaves_keeps_its_name_until_its_thread_is_done(alone: Alone) -> None:
    leaver = alone.connect()
    assert alone.ask("KV.SNAPSHOT CREATE s", session=leaver) is None
    faults, alone.faults = alone.faults, []
    alone.node.runner.forget(leaver)
    assert line(alone, "KV.SNAPSHOT CREATE s").startswith(b"-BUSY ")
    for fault, _, _ in faults:
        fault.resolve()
    assert fields(finished(alone, "KV.SNAPSHOT CREATE s"))[b"name"] == b"s"


def test_a_full_disk_is_told_and_leaves_nothing(alone: Alone) -> None:
    alone.ask("SET k v")
    alone.work()
    alone.disk.faults.capacity_bytes = (1 << 40) - alone.disk.free_bytes() + 10
    reply = line(alone, "KV.SNAPSHOT CREATE s")
    assert reply.startswith(b"-ERR cannot write to /sim")
    assert b"No space left on device" in reply
    alone.disk.faults.capacity_bytes = None
    assert finished(alone, "KV.SNAPSHOT LIST").items == []
    finished(alone, "KV.SNAPSHOT CREATE s")


def test_create_is_refused_in_a_transaction_and_list_is_not(alone: Alone) -> None:
    alone.ask("MULTI")
    assert line(alone, "KV.SNAPSHOT CREATE s").startswith(b"-ERR")
    alone.ask("DISCARD")
    for part in ("MULTI", "KV.SNAPSHOT LIST"):
        alone.ask(part)
    (reply,) = finished(alone, "EXEC").items
    assert reply.items == []


def test_the_family_is_documented(alone: Alone) -> None:
    docs = finished(alone, "COMMAND DOCS KV.SNAPSHOT KV.HELP")
    assert [item.text for item in docs.items[::2]] == [b"kv.snapshot", b"kv.help"]
    assert fields(docs.items[1])[b"group"] == b"kv"
    text = b"\n".join(item.text for item in finished(alone, "KV.SNAPSHOT HELP").items)
    for word in (b"CREATE <name>", b"LIST", b"DROP <name>"):
        assert word in text
    assert b"KV.SNAPSHOT CREATE" in b"\n".join(i.text for i in finished(alone, "KV.HELP").items)


def test_damage_is_listed_refused_and_accepted(alone: Alone) -> None:
    assert line(alone, "KV.DAMAGE ACCEPT") == b"0"
    assert finished(alone, "KV.DAMAGE LIST").items == []
    alone.ask("SET k v")
    store = alone.node.store
    slot = slot_of(b"k")
    key = slot.to_bytes(2, "big")
    store.manifest.damages.append(Damage(key, key + b"\xff", 1 << 40, "7.sst", 12, "a test"))
    (shown,) = finished(alone, "KV.DAMAGE LIST").items
    texts = [item.text for item in shown.items]
    assert texts == [
        b"file", b"7.sst", b"offset", b"12", b"reason", b"a test",
        b"slot_first", b"%d" % slot, b"slot_last", b"%d" % slot,
    ]  # fmt: skip
    # In the memtable it is certain; what would have to be looked up in that slot is not.
    assert alone.text("GET k") == b"v"
    store.memtable.remove(slot, row_of(0, b"k"))
    alone.node.context.counts = Counts(alone.node.replica)  # As after a restart.
    refused = line(alone, "GET k")
    assert refused.startswith(b"-ERR the data cannot be read: it may have stood in 7.sst")
    assert line(alone, "SCAN 0 COUNT 1000").startswith(b"-ERR the data cannot be read")
    assert line(alone, "MGET k k").startswith(b"-ERR the data cannot be read")
    assert not line(alone, "GET another").startswith(b"-")
    assert line(alone, "KV.DAMAGE ACCEPT") == b"1"
    assert not line(alone, "SCAN 0 COUNT 1000").startswith(b"-")
    assert finished(alone, "KV.DAMAGE LIST").items == []


def test_a_node_on_its_own_lists_itself_and_answers_what_it_holds(alone: Alone) -> None:
    (node,) = finished(alone, "KV.NODES").items
    assert fields(node) == {
        b"name": b"alone", b"host": b"127.0.0.1", b"port": b"0",
        b"myself": b"1", b"reachable": b"1", b"complete": b"1", b"state": b"up",
        b"zone": b"", b"data_centre": b"", b"weight": b"1",
    }  # fmt: skip
    alone.ask("SET k v")
    assert line(alone, "KV.LOCAL k") == b"v"
    assert finished(alone, "KV.LOCAL absent").is_nil
