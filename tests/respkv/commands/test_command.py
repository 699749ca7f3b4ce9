"""COMMAND: the scenes, the derived ACL categories and ranges, and every declared command against Redis' own table."""

from __future__ import annotations

from typing import Any

import pytest

from respkv.command import TABLE, Command, Flag, Keys
from respkv.commands import load
from respkv.commands.command import (
    acl_categories,
    command_count,
    command_docs,
    command_info,
    command_list,
    describe,
    document,
    find,
    key_range,
)
from respkv.reply import SetReply
from tests.differential.wire import Connection, Reply
from tests.respkv.commands.redis import needs_redis
from tests.respkv.commands.scene import FOLDER, Scene, node_stage, play, play_on_redis, read
from tests.servers import redis_server

load()
SCENES = read(FOLDER / "command.txt")
COMMANDS = list(TABLE.everything())
INFO_FIELDS = ("name", "arity", "flags", "first", "last", "step", "acl", "tips", "keys")
# Words of our own, and what we do not tell.
OWN_FIELDS = {"summary", "complexity", "history", "arguments", "subcommands", "replaced_by"}
# Arguments that Redis nests in one more block, or names otherwise, with the same syntax for people.
OTHER_TREES = {
    "CLIENT|LIST",
    "PSUBSCRIBE",
    "COMMAND|GETKEYS",
    "COMMAND|GETKEYSANDFLAGS",
    "CONFIG|GET",
}


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_scene(scene: Scene) -> None:
    with node_stage() as stage:
        assert str(play(scene, stage)) == str(scene)


@needs_redis
def test_scenes_on_redis() -> None:
    scenes = [scene for scene in SCENES if not scene.is_ours]
    assert list(map(str, play_on_redis(scenes))) == list(map(str, scenes))


# Against Redis' own table


@needs_redis
def test_every_declared_command_is_as_in_redis() -> None:
    with redis_server() as server:
        redis = Connection(server.host, server.port, timeout_s=10)
        redis.ask(b"HELLO", b"3")
        differences: list[str] = []
        compared = 0
        for command in COMMANDS:
            name = command.name.lower().encode()
            info = theirs(redis.ask(b"COMMAND", b"INFO", name))[0]
            if info is None:
                continue  # A newer Redis has it, or nobody but us.
            compared += 1
            docs = theirs(redis.ask(b"COMMAND", b"DOCS", name))[name.decode()]
            differences += compare(command, info, docs)
        redis.close()
    assert differences == []
    assert compared > 80


def compare(command: Command, info: list[Any], docs: dict[str, Any]) -> list[str]:
    own_info, own_docs = ours(describe(command)), ours(document(command))
    pairs = [*zip(INFO_FIELDS, info, own_info, strict=False)]
    names = (docs.keys() | own_docs.keys()) - OWN_FIELDS
    pairs += [(name, docs.get(name), own_docs.get(name)) for name in sorted(names)]
    if command.name not in OTHER_TREES:
        trees = [[tree(argument) for argument in d.get("arguments", [])] for d in (docs, own_docs)]
        pairs.append(("arguments", trees[0], trees[1]))
    return [f"{command.name}: {name} is {b}, not {a}" for name, a, b in pairs if a != b]


def tree(argument: dict[str, Any]) -> dict[str, Any]:
    """An argument without the names of groups, which are never typed, and without its history."""
    kept: dict[str, Any] = {
        name: argument[name]
        for name in ("type", "token", "flags", "key_spec_index")
        if name in argument
    }
    if argument["type"] not in ("oneof", "block", "pure-token"):
        kept["name"] = argument["name"]
    return kept | {"arguments": [tree(inner) for inner in argument.get("arguments", [])]}


def theirs(reply: Reply) -> Any:
    """A reply in RESP3 as plain values; a set as a sorted list."""
    if reply.kind == "%":
        items = [theirs(item) for item in reply.items]
        pairs = dict(zip(items[::2], items[1::2], strict=True))
        pairs.pop("notes", None)
        return pairs
    if reply.kind == "~":
        return sorted((theirs(item) for item in reply.items), key=str)
    if isinstance(reply.value, list):
        return [theirs(item) for item in reply.value]
    if reply.value is None or reply.kind == ":":
        return None if reply.value is None else int(reply.value)
    return reply.value.decode()


def ours(value: Any) -> Any:
    """What a handler returns, in the same shape."""
    if isinstance(value, SetReply):
        return sorted((ours(item) for item in value), key=str)
    if isinstance(value, dict):
        return {ours(key): ours(item) for key, item in value.items()}
    if isinstance(value, list):
        return [ours(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


# The parts


def declared(
    name: str = "X", *, flags: Flag = Flag.NONE, group: str = "server", acl: tuple[str, ...] = ()
) -> Command:
    return Command(
        name=name, handler=lambda ctx: None, arity=1, flags=flags, keys=(), since="1.0.0", group=group, summary="",
        complexity="", usage="", tips=(), acl=acl, is_sliced=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "categories"),
    [
        (declared(), {"slow"}),
        (declared(flags=Flag.WRITE | Flag.FAST, group="string"), {"fast", "write", "string"}),
        (declared(flags=Flag.READONLY, group="generic"), {"slow", "read", "keyspace"}),
        (declared(flags=Flag.ADMIN), {"slow", "admin", "dangerous"}),
        (declared(flags=Flag.BLOCKING, group="list"), {"slow", "blocking", "list"}),
        (declared(flags=Flag.PUBSUB, group="pubsub"), {"slow", "pubsub"}),
        (declared(group="sorted-set"), {"slow", "sortedset"}),
        (declared(acl=("connection",)), {"slow", "connection"}),
        (declared("WAIT", group="generic", acl=("connection",)), {"slow", "connection"}),
    ],
)
def test_acl_categories(command: Command, categories: set[str]) -> None:
    assert set(acl_categories(command)) == categories


def test_categories_come_in_redis_order() -> None:
    assert acl_categories(TABLE.commands["GET"]) == ["read", "string", "fast"]
    assert acl_categories(TABLE.commands["SHUTDOWN"]) == ["admin", "slow", "dangerous"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_what_a_command_declares_is_a_category(command: Command) -> None:
    assert set(command.acl) <= set(acl_categories(command))


def test_a_container_is_of_no_category() -> None:
    assert acl_categories(TABLE.commands["CLIENT"]) == ["slow"]


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        ((), (0, 0, 0)),
        ((Keys(1, 1, 1, "RO"),), (1, 1, 1)),
        ((Keys(1, -1, 2, "OW"),), (1, -1, 2)),
        ((Keys(1, 1, 1, "RO"), Keys(2, 2, 1, "OW")), (1, 2, 1)),
        ((Keys(2, 2, 1, "OW"), Keys(3, -1, 1, "RO")), (2, -1, 1)),
        ((Keys(1, 1, 1, "RO"), Keys(4, 4, 1, "OW")), (1, 1, 1)),
    ],
)
def test_specifications_that_follow_each_other_make_one_range(
    specs: tuple[Keys, ...], expected: tuple[int, int, int]
) -> None:
    assert key_range(specs) == expected


def test_a_command_is_found_by_its_full_name_in_any_case() -> None:
    assert find(b"GeT") is TABLE.commands["GET"]
    assert find(b"client|ID") is TABLE.commands["CLIENT"].subcommands[b"ID"]
    assert find(b"get|x") is None
    assert find(b"nosuch|id") is None


def test_all_commands_are_counted_listed_and_described() -> None:
    ctx: Any = None  # They use no context.
    names = [command.name.lower() for command in TABLE.commands.values()]
    assert command_count(ctx) == len(names)
    assert [entry[0].decode() for entry in ours_of(command_info(ctx))] == names
    assert list(ours(command_docs(ctx))) == names
    assert ours(command_list(ctx)) == [command.name.lower() for command in COMMANDS]


def ours_of(reply: Any) -> list[Any]:
    assert isinstance(reply, list)
    return reply


def test_a_container_lists_and_documents_its_subcommands() -> None:
    described = ours(describe(TABLE.commands["OBJECT"]))
    assert {sub[0] for sub in described[9]} >= {"object|encoding", "object|help"}
    assert "client|kill" in ours(document(TABLE.commands["CLIENT"]))["subcommands"]


def test_a_superseded_command_says_by_what() -> None:
    docs = ours(document(TABLE.commands["SUBSTR"]))
    assert docs["doc_flags"] == ["deprecated"]
    assert docs["deprecated_since"] == "2.0.0"
    assert docs["replaced_by"] == "`GETRANGE`"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_is_documented(command: Command) -> None:
    docs = ours(document(command))
    assert docs["summary"]
    assert not docs["summary"].endswith(".")
    assert docs["group"]
    assert docs["since"].count(".") == 2
