"""HELLO, AUTH, SELECT, RESET, QUIT, PING: the scenes on a node and on Redis, and passwords."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from respkv.config import Config
from tests.respkv.commands.redis import needs_redis
from tests.respkv.commands.scene import (
    FOLDER,
    Client,
    NodeStage,
    Scene,
    node_stage,
    play,
    play_on_redis,
    read,
)

SCENES = read(FOLDER / "connection.txt")


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_scene(scene: Scene) -> None:
    with node_stage() as stage:
        assert str(play(scene, stage)) == str(scene)


@needs_redis
def test_scenes_on_redis() -> None:
    scenes = [scene for scene in SCENES if not scene.is_ours]
    assert list(map(str, play_on_redis(scenes))) == list(map(str, scenes))


# With a password


@pytest.fixture
def guarded() -> Iterator[NodeStage]:
    config = Config(client=dataclasses.replace(Config().client, requirepass="secret"))
    with node_stage(config) as stage:
        yield stage


def test_nothing_but_authentication_is_served_before_it(guarded: NodeStage) -> None:
    client = Client("a2", guarded, is_greeted=False)
    for line in ("GET k", "CLIENT ID", "COMMAND", "MULTI"):
        assert client.ask(*line.encode().split()).text == b"NOAUTH Authentication required."
    assert client.ask(b"HELLO", b"3").text.startswith(b"NOAUTH HELLO must be called")
    assert client.ask(b"AUTH", b"wrong").text.startswith(b"WRONGPASS")
    assert client.ask(b"AUTH", b"other", b"secret").text.startswith(b"WRONGPASS")
    assert client.ask(b"GET", b"k").is_error
    assert client.ask(b"AUTH", b"default", b"secret").text == b"OK"
    assert client.ask(b"GET", b"k").is_nil
    client.close()


def test_hello_authenticates_names_and_chooses_the_protocol_at_once(guarded: NodeStage) -> None:
    client = Client("a2", guarded, is_greeted=False)
    reply = client.ask(*b"HELLO 3 AUTH default secret SETNAME me".split())
    assert reply.kind == "%"
    assert client.ask(b"CLIENT", b"GETNAME").text == b"me"
    client.close()


def test_reset_asks_for_the_password_again(guarded: NodeStage) -> None:
    client = Client("a2", guarded, is_greeted=False)
    client.ask(b"AUTH", b"secret")
    assert client.ask(b"RESET").text == b"RESET"
    assert client.ask(b"PING").text == b"NOAUTH Authentication required."
    client.close()
