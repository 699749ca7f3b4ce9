"""CLIENT TRACKING: the scenes on a node and on Redis, the table's bounds, expiry."""

from __future__ import annotations

import pytest

from tests.respkv.commands.redis import needs_redis
from tests.respkv.commands.scene import (
    FOLDER,
    Client,
    Scene,
    node_stage,
    play,
    play_on_redis,
    read,
    render,
)

SCENES = read(FOLDER / "tracking.txt")


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_scene(scene: Scene) -> None:
    with node_stage() as stage:
        assert str(play(scene, stage)) == str(scene)


@needs_redis
def test_scenes_on_redis() -> None:
    scenes = [scene for scene in SCENES if not scene.is_ours]
    assert list(map(str, play_on_redis(scenes))) == list(map(str, scenes))


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("respkv.tracking.KEYS_MAX", 2)
    with node_stage() as stage:
        client = Client("a3", stage)
        client.ask(b"CLIENT", b"TRACKING", b"on")
        heard = []
        for key in (b"a", b"b", b"c"):
            client.send(b"GET", key)
            stage.settle()
            heard += [render(reply, {}) for reply in client.hear()]
        assert heard == ["nil", "nil", "nil", '>["invalidate", ["a"]]']
        assert stage.node.tracking.key_count == 2
        client.close()


def test_a_client_that_is_gone_leaves_the_short_way_open() -> None:
    with node_stage() as stage:
        client = Client("a3", stage)
        client.ask(b"CLIENT", b"TRACKING", b"on")
        client.ask(b"GET", b"k")
        tracking = stage.node.tracking
        assert (tracking.client_count, tracking.key_count) == (1, 1)
        assert stage.node.runner.has_observers
        client.close()
        stage.settle()
        assert (tracking.client_count, tracking.key_count) == (0, 0)
        assert not stage.node.runner.has_observers


def test_a_longer_life_puts_off_the_message() -> None:
    with node_stage() as stage:
        client, writer = Client("a3", stage), Client("b2", stage)
        client.ask(b"CLIENT", b"TRACKING", b"on", b"BCAST")
        for expiry in (b"10", b"20"):
            writer.ask(b"SET", b"k", b"v", b"EX", expiry)
            assert len(client.hear()) == 1
        stage.sleep(15)
        assert client.hear() == []
        stage.sleep(6)
        assert [render(reply, {}) for reply in client.hear()] == ['>["invalidate", ["k"]]']
        client.close()
        writer.close()


def test_a_page_fault_does_not_lose_a_read() -> None:
    """What is read from a table, not from memory, is tracked as well."""
    with node_stage() as stage:
        client, writer = Client("a3", stage), Client("b2", stage)
        writer.ask(b"SET", b"k", b"v")
        stage.evict()
        client.ask(b"CLIENT", b"TRACKING", b"on")
        assert client.ask(b"GET", b"k").text == b"v"
        writer.ask(b"SET", b"k", b"w")
        assert [render(reply, {}) for reply in client.hear()] == ['>["invalidate", ["k"]]']
        client.close()
        writer.close()
