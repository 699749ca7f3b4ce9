"""CLIENT: the scenes on a node and on Redis, and how a client is described."""

from __future__ import annotations

import pytest

from respkv.command import TABLE
from respkv.commands.client import HELP
from tests.respkv.commands.redis import needs_redis
from tests.respkv.commands.scene import FOLDER, Client, Scene, node_stage, play, play_on_redis, read

SCENES = read(FOLDER / "client.txt")


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_scene(scene: Scene) -> None:
    with node_stage() as stage:
        assert str(play(scene, stage)) == str(scene)


@needs_redis
def test_scenes_on_redis() -> None:
    scenes = [scene for scene in SCENES if not scene.is_ours]
    assert list(map(str, play_on_redis(scenes))) == list(map(str, scenes))


# How a client is described


def fields(line: bytes) -> dict[str, str]:
    return dict(field.split("=", 1) for field in line.decode("latin-1").strip().split(" "))


def described(client: Client) -> dict[str, str]:
    return fields(client.ask(b"CLIENT", b"INFO").text)


def test_a_client_is_described_by_what_it_has_set() -> None:
    with node_stage() as stage:
        client = Client("a3", stage)
        stage.sleep(7)
        for command in (
            b"SELECT 3",
            b"CLIENT SETNAME me",
            b"CLIENT SETINFO LIB-NAME lib",
            b"CLIENT NO-EVICT on",
        ):
            client.ask(*command.split())
        seen = described(client)
        client.close()
    expected = {
        "id": str(client.id), "name": "me", "age": "7", "idle": "0", "flags": "e", "db": "3", "multi": "-1",
        "cmd": "client|info", "user": "default", "redir": "-1", "resp": "3", "lib-name": "lib", "lib-ver": "",
    }  # fmt: skip
    assert {name: seen[name] for name in expected} == expected


def test_the_fields_of_redis_are_there_in_its_order() -> None:
    with node_stage() as stage:
        client = Client("a2", stage)
        seen = list(described(client))
        client.close()
    assert seen == [
        "id", "addr", "laddr", "fd", "name", "age", "idle", "flags", "db", "sub", "psub", "ssub", "multi", "qbuf",
        "qbuf-free", "argv-mem", "multi-mem", "rbs", "rbp", "obl", "oll", "omem", "tot-mem", "events", "cmd", "user",
        "redir", "resp", "lib-name", "lib-ver",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("commands", "flags"),
    [
        (["PING"], "N"),
        (["CLIENT TRACKING on"], "t"),
        (["CLIENT TRACKING on BCAST"], "tB"),
        (["MULTI"], "x"),
        (["MONITOR"], "O"),
        (["WAIT 1 0"], "b"),
    ],
)
def test_flags(commands: list[str], flags: str) -> None:
    with node_stage() as stage:
        watcher, client = Client("w2", stage), Client("a2", stage)
        for command in commands:
            client.send(*command.encode().split())
            stage.settle()
        line = watcher.ask(b"CLIENT", b"LIST", b"ID", str(client.id).encode()).text
        watcher.close()
        client.close()
    assert fields(line)["flags"] == flags


def test_a_transaction_is_counted_in_the_description() -> None:
    with node_stage() as stage:
        watcher, client = Client("w2", stage), Client("a2", stage)
        for command in (b"MULTI", b"SET k v", b"GET k"):
            client.ask(*command.split())
        line = watcher.ask(b"CLIENT", b"LIST", b"ID", str(client.id).encode()).text
        watcher.close()
        client.close()
    assert fields(line)["multi"] == "2"
    assert fields(line)["multi-mem"] == "9"


def test_help_names_every_subcommand() -> None:
    lines = HELP.split("\n")
    for name in TABLE.commands["CLIENT"].subcommands:
        assert any(line.split(" ")[0] == name.decode() for line in lines), name
