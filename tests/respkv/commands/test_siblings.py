"""KV.GET and its sisters on a node alone: what they answer, what stays, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hiredis
import msgspec
import pytest

from cluster.recovery import Recovery
from cluster.replica import Replica
from cluster.replica_state import state_of_copy
from cluster.slot import row_of, slot_of
from respkv.config import Config
from respkv.config_conflict import conflict_of
from respkv.reply import Fields, encode
from respkv.store_share import store_settings
from tests.respkv.commands.alone import Alone


@pytest.fixture
def alone() -> Iterator[Alone]:
    node = Alone()
    yield node
    node.close()


class Client:
    """Decodes as client libraries do."""

    def __init__(self, alone: Alone, *, resp3: bool = False) -> None:
        self.alone = alone
        self.session = alone.connect()
        self.reader = hiredis.Reader(replyError=lambda text: f"-{text}")  # type: ignore[arg-type,return-value]
        if resp3:
            self.ask("HELLO", "3")

    def ask(self, *args: bytes | str | int) -> Any:
        parts = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
        self.alone.node.runner.serve(self.session, [parts], self.alone.node.begin_tick())
        self.alone.node.front.finish(self.alone.node.now_ms())
        self.reader.feed(b"".join(self.session.out))
        self.session.out.clear()
        return self.reader.gets()

    def put(self, key: str, value: str, context: bytes | None = None) -> bytes:
        """The new context."""
        extra = ("CONTEXT", context) if context is not None else ()
        reply = self.ask("KV.PUT", key, value, *extra)
        assert isinstance(reply, list), reply
        context = reply[1]
        assert isinstance(context, bytes)
        return context

    def values(self, key: str) -> list[bytes]:
        return [version[0] for version in self.ask("KV.GET", key)[0]]

    def context(self, key: str) -> bytes:
        context = self.ask("KV.GET", key)[1]
        assert isinstance(context, bytes)
        return context


@pytest.fixture
def client(alone: Alone) -> Client:
    return Client(alone)


def test_fields_are_a_map_in_resp3_and_the_values_alone_in_resp2() -> None:
    reply = Fields({b"a": 1, b"b": None})
    assert encode(reply, resp3=True) == b"%2\r\n$1\r\na\r\n:1\r\n$1\r\nb\r\n_\r\n"
    assert encode(reply, resp3=False) == b"*2\r\n:1\r\n$-1\r\n"


def test_shapes_in_resp2(alone: Alone, client: Client) -> None:
    client.ask("SET", "k", "old")
    alone.ns += 5_000_000
    client.ask("KV.PUT", "k", "new", "PX", 1000)
    now = alone.node.now_ms()
    versions, context = client.ask("KV.GET", "k")
    assert versions == [
        [b"new", now, b"0000000000000001:2", now + 1000, b"string"],
        [b"old", now - 5, b"0000000000000001:1", None, b"string"],
    ]
    assert isinstance(context, bytes)
    assert client.ask("KV.SIBLINGS", "k") == [
        [[3, *version[1:]] for version in versions],
        context,
    ]
    siblings, context = client.ask("KV.PUT", "k", "both", "CONTEXT", context)
    assert siblings == 1
    assert client.ask("KV.DEL", "k", "CONTEXT", context) == 1


def test_shapes_in_resp3(alone: Alone) -> None:
    client = Client(alone, resp3=True)
    client.ask("SET", "k", "v")
    now = alone.node.now_ms()
    reply = client.ask("KV.GET", "k")
    facts = {b"time": now, b"dot": b"0000000000000001:1", b"expires": None, b"type": b"string"}
    assert reply == {b"versions": [{b"value": b"v", **facts}], b"context": reply[b"context"]}
    assert client.ask("KV.SIBLINGS", "k")[b"versions"] == [{b"length": 1, **facts}]
    reply = client.ask("KV.PUT", "k", "w", "CONTEXT", reply[b"context"])
    assert reply == {b"siblings": 1, b"context": reply[b"context"]}


def test_a_context_replaces_what_was_seen_and_nothing_else(client: Client) -> None:
    client.put("k", "a")
    seen = client.context("k")
    client.put("k", "b", seen)
    assert client.values("k") == [b"b"]
    client.put("k", "c", seen)  # Had seen a, which is gone, and not b.
    assert client.values("k") == [b"c", b"b"]
    client.put("k", "d")
    assert client.values("k") == [b"d", b"c", b"b"]
    client.put("k", "e", client.context("k"))
    assert client.values("k") == [b"e"]


def test_the_context_of_a_write_covers_it_and_not_what_stands_beside(client: Client) -> None:
    first = client.put("k", "a")
    other = client.put("k", "x")
    second = client.put("k", "b", first)
    assert client.values("k") == [b"b", b"x"]
    client.put("k", "c", second)
    assert client.values("k") == [b"c", b"x"]
    client.put("k", "y", other)
    assert client.values("k") == [b"y", b"c"]


def test_chains_of_writes_keep_short_contexts(client: Client) -> None:
    context = client.put("k", "0")
    for number in range(300):
        client.ask("SET", "{k}other", number)  # The slot's other rows.
        context = client.put("k", str(number), context)
    assert client.values("k") == [b"299"]
    assert len(context) < 60


def test_an_absent_key_has_a_context(client: Client) -> None:
    versions, context = client.ask("KV.GET", "k")
    assert versions == []
    client.put("k", "unseen")
    client.put("k", "mine", context)
    assert client.values("k") == [b"mine", b"unseen"]
    assert client.ask("KV.SIBLINGS", "absent")[0] == []


def test_deleting(client: Client) -> None:
    seen = client.put("k", "a")
    client.put("k", "b")
    assert client.ask("KV.DEL", "k", "CONTEXT", seen) == 1
    assert client.values("k") == [b"b"]
    assert client.ask("KV.DEL", "k", "CONTEXT", seen) == 0
    client.put("k", "c")
    assert client.ask("KV.DEL", "k") == 2
    assert client.ask("KV.DEL", "k") == 0
    assert client.ask("EXISTS", "k") == 0
    assert client.ask("KV.GET", "k")[0] == []
    client.put("k", "again", client.context("k"))
    assert client.values("k") == [b"again"]


def test_a_deletion_hides_no_sibling_and_leaves_no_trace_for_ever(
    alone: Alone, client: Client
) -> None:
    client.ask("KV.PUT", "k", "a")
    seen = client.context("k")
    client.put("k", "b")
    for number in range(20):
        client.ask("KV.DEL", "k", "CONTEXT", seen)
        seen = client.put("k", str(number), seen)
    assert client.values("k") == [b"19", b"b"]
    raw = alone.node.store.get(slot_of(b"k"), row_of(0, b"k"))
    assert raw is not None
    assert len(raw) < 150


def test_resolving(client: Client) -> None:
    client.put("k", "a")
    client.put("k", "b")
    client.ask("KV.PUT", "k", "c", "EX", 100)
    assert client.ask("KV.RESOLVE", "k") == 2
    assert client.values("k") == [b"c"]
    assert 0 < client.ask("TTL", "k") <= 100
    assert client.ask("KV.RESOLVE", "k") == 0
    assert client.ask("KV.RESOLVE", "k", "VALUE", "merged") == 1
    assert client.values("k") == [b"merged"]
    assert client.ask("TTL", "k") == -1
    assert client.ask("KV.RESOLVE", "absent") == 0
    assert client.ask("EXISTS", "absent") == 0
    assert client.ask("KV.RESOLVE", "absent", "VALUE", "v") == 0
    assert client.ask("GET", "absent") == b"v"


def test_other_commands_see_the_winner_and_supersede_all(alone: Alone, client: Client) -> None:
    def siblings() -> None:
        client.ask("DEL", "k")
        client.put("k", "5")
        client.put("k", "7")

    siblings()
    assert client.ask("GET", "k") == b"7"
    assert client.ask("EXISTS", "k") == 1
    assert client.ask("DBSIZE") == 1
    assert client.ask("KEYS", "*") == [b"k"]
    assert client.ask("SCAN", 0) == [b"0", [b"k"]]
    assert client.ask("TYPE", "k") == b"string"
    assert client.ask("STRLEN", "k") == 1
    assert client.ask("OBJECT", "ENCODING", "k") == b"int"
    assert client.ask("INCR", "k") == 8
    assert client.values("k") == [b"8"]
    for write in (("SET", "k", "s"), ("APPEND", "k", "s"), ("EXPIRE", "k", 5), ("GETDEL", "k")):
        siblings()
        client.ask(*write)
        assert len(client.values("k")) <= 1
    siblings()
    assert client.ask("RENAME", "k", "l") == b"OK"
    assert client.values("l") == [b"7"]
    assert client.values("k") == []


def test_expired_siblings_are_not_shown_and_not_kept(alone: Alone, client: Client) -> None:
    client.ask("KV.PUT", "k", "short", "PX", 100)
    client.put("k", "long")
    assert client.values("k") == [b"long", b"short"]
    alone.ns += 200_000_000
    assert client.values("k") == [b"long"]
    assert client.ask("KV.PUT", "k", "more")[0] == 2
    client.ask("KV.PUT", "e", "1", "EXAT", alone.node.now_ms() // 1000 + 1)
    client.ask("KV.PUT", "e", "2", "PXAT", alone.node.now_ms() + 1000)
    alone.ns += 2_000_000_000
    assert client.values("e") == []
    assert client.ask("EXISTS", "e") == 0


def test_a_watch_sees_siblings_come_and_go(alone: Alone, client: Client) -> None:
    other = Client(alone)
    seen = client.put("k", "a")
    for change in (
        ("KV.PUT", "k", "b"),
        ("KV.PUT", "k", "c", "CONTEXT", seen),
        ("KV.DEL", "k", "CONTEXT", seen),
        ("KV.RESOLVE", "k"),
    ):
        client.put("k", "more")
        client.ask("WATCH", "k")
        other.ask(*change)
        client.ask("MULTI")
        client.ask("SET", "l", "v")
        is_stopped = client.ask("EXEC") is None
        is_change = change[0] != "KV.DEL"  # What that had seen is gone already.
        assert is_stopped is is_change, change


@pytest.mark.parametrize("name", ["KV.GET", "KV.SIBLINGS", "KV.DEL", "KV.RESOLVE", "KV.PUT"])
def test_not_inside_a_transaction(client: Client, name: str) -> None:
    client.ask("MULTI")
    more = ["v"] if name == "KV.PUT" else []
    assert client.ask(name, "k", *more) == "-ERR Command not allowed inside a transaction"


@pytest.mark.parametrize(
    "words",
    [
        "KV.PUT k v CONTEXT", "KV.PUT k v NX", "KV.PUT k v EX", "KV.PUT k v EX 1 PX 1",
        "KV.PUT k v CONTEXT a CONTEXT b", "KV.DEL k CONTEXT", "KV.DEL k x y", "KV.RESOLVE k VALUE",
        "KV.RESOLVE k x y", "KV.DEL k CONTEXT a b",
    ],
)  # fmt: skip
def test_bad_syntax(client: Client, words: str) -> None:
    assert client.ask(*words.split()) == "-ERR syntax error"
    assert client.ask("EXISTS", "k") == 0


def test_bad_operands(client: Client) -> None:
    assert client.ask("KV.PUT", "k", "v", "EX", 0) == "-ERR invalid expire time in 'kv.put' command"
    assert client.ask("KV.PUT", "k", "v", "EX", "x").startswith("-ERR value is not an integer")
    for context in ("", "x", "A" * 60, b"\xff"):
        assert client.ask("KV.PUT", "k", "v", "CONTEXT", context).startswith("-ERR the context is ")
        assert client.ask("KV.DEL", "k", "CONTEXT", context).startswith("-ERR the context is ")
    context = client.put("other", "v")
    assert client.ask("KV.PUT", "k", "v", "CONTEXT", context).startswith(
        "-ERR the context is of another key"
    )
    assert client.ask("EXISTS", "k") == 0


def test_a_context_of_another_database_is_of_another_key(client: Client) -> None:
    context = client.put("k", "v")
    client.ask("SELECT", 1)
    assert client.ask("KV.PUT", "k", "v", "CONTEXT", context).startswith(
        "-ERR the context is of another key"
    )


def test_limits() -> None:
    config = Config()
    config.siblings.soft_max, config.siblings.hard_max = 2, 4
    alone = Alone(config)
    client = Client(alone)
    seen = client.put("k", "0")
    for number in (1, 2, 3):
        client.put("k", str(number))
    assert client.ask("KV.PUT", "k", "4") == (
        "-ERR too many siblings: the key has 4, and siblings.hard_max is 4: "
        "read it (KV.GET), merge them, and write with the context"
    )
    info = alone.info("respkv")
    assert [info[f"siblings_{name}"] for name in ("made", "warned", "refused")] == ["3", "2", "1"]
    # What adds none is taken at the limit, and beyond it.
    seen = client.put("k", "5", seen)
    assert len(client.values("k")) == 4
    config.siblings.hard_max = 2
    client.put("k", "6", seen)
    assert len(client.values("k")) == 4
    assert client.ask("KV.PUT", "k", "7").startswith("-ERR too many siblings")
    client.put("k", "merged", client.context("k"))
    assert client.values("k") == [b"merged"]
    alone.close()


def test_the_soft_limit_is_at_most_the_hard_one() -> None:
    config = Config()
    assert conflict_of(config) is None
    config.siblings.soft_max = config.siblings.hard_max + 1
    conflict = conflict_of(config)
    assert conflict is not None
    assert conflict[0] == {"siblings.soft_max", "siblings.hard_max"}


def test_siblings_and_contexts_outlive_a_restart_and_a_new_actor(alone: Alone) -> None:
    client = Client(alone)
    seen = client.put("k", "a")
    client.put("k", "b")
    alone.node.store.write()
    before = client.ask("KV.GET", "k")
    settings = store_settings(alone.config)
    replica = alone.node.replica
    replica.close()
    alone.disk.remove("life")  # Nothing is known of the process before: it is another actor.
    replica = Replica.open(alone.disk.kill(), settings, 78)
    alone.open(replica)
    assert replica.actor == 78
    assert replica.origin == 1
    client = Client(alone)
    assert client.ask("KV.GET", "k")[0] == before[0]
    client.put("k", "c", seen)
    assert client.values("k") == [b"c", b"b"]


def test_another_data_folder_is_another_cluster(client: Client) -> None:
    context = client.put("k", "v")
    other = Alone(actor=2)
    assert (
        Client(other)
        .ask("KV.PUT", "k", "v", "CONTEXT", context)
        .startswith("-ERR the context is of another cluster")
    )
    other.close()


def test_a_copy_of_the_data_knows_its_contexts(alone: Alone) -> None:
    other = Recovery(5)
    other.restore(state_of_copy(alone.node.replica.capture()))
    assert other.origin == alone.node.replica.origin == 1


def test_older_data_has_the_actor_that_it_had(alone: Alone) -> None:
    state = msgspec.msgpack.decode(alone.node.replica.capture())
    other = Recovery(5)
    other.restore(msgspec.msgpack.encode(state[:-1]))
    assert other.origin == 1


def test_help_names_every_command(client: Client) -> None:
    text = b"\n".join(client.ask("KV.HELP"))
    for name in (b"KV.GET", b"KV.PUT", b"KV.DEL", b"KV.SIBLINGS", b"KV.RESOLVE"):
        assert name in text
