"""Publish/subscribe and keyspace events: the scenes on a node and on Redis, and what bounds a listener."""

from __future__ import annotations

from itertools import pairwise

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
    render,
)

SCENES = [*read(FOLDER / "pubsub.txt"), *read(FOLDER / "notification.txt")]
KIB = 1 << 10


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_scene(scene: Scene) -> None:
    with node_stage() as stage:
        assert str(play(scene, stage)) == str(scene)


@needs_redis
def test_scenes_on_redis() -> None:
    scenes = [scene for scene in SCENES if not scene.is_ours]
    assert list(map(str, play_on_redis(scenes))) == list(map(str, scenes))


def heard(client: Client, stage: NodeStage) -> list[str]:
    stage.settle()
    return [render(reply, {}) for reply in client.hear()]


def test_all_of_many_names_are_left_in_the_order_of_subscription() -> None:
    with node_stage() as stage:
        client = Client("a2", stage)
        client.send(b"SUBSCRIBE", b"c", b"a", b"b")
        assert len(heard(client, stage)) == 3
        client.send(b"UNSUBSCRIBE")
        assert heard(client, stage) == [
            '["unsubscribe", "c", :2]',
            '["unsubscribe", "a", :1]',
            '["unsubscribe", "b", :0]',
        ]


def test_a_client_that_is_gone_is_forgotten() -> None:
    with node_stage() as stage:
        client, other = Client("a2", stage), Client("b2", stage)
        client.send(b"SUBSCRIBE", b"x")
        client.send(b"PSUBSCRIBE", b"*")
        client.send(b"SSUBSCRIBE", b"s")
        stage.settle()
        assert other.ask(b"PUBLISH", b"x", b"1").text == b"2"
        client.close()
        stage.settle()
        assert other.ask(b"PUBLISH", b"x", b"1").text == b"0"
        assert other.ask(b"PUBSUB", b"CHANNELS").value == []
        assert other.ask(b"PUBSUB", b"SHARDCHANNELS").value == []
        assert not stage.node.pubsub.has_listeners


def test_the_names_of_one_client_are_bounded() -> None:
    config = Config()
    config.put("pubsub.subscription_bytes_max", 64 * KIB)
    with node_stage(config) as stage:
        client = Client("a3", stage)
        refused = client.ask(b"SUBSCRIBE", *(b"%d" % n for n in range(1000)))
        assert refused.text.startswith(b"ERR too many subscriptions")
        assert client.ask(b"PUBSUB", b"CHANNELS").value == []  # All of them, or none.
        count = 0
        while not client.ask(b"SUBSCRIBE", b"%d" % count).is_error:
            count += 1
        assert 100 < count < 200
        assert client.ask(b"SUBSCRIBE", b"0").kind == ">"  # One that it has already.
        assert client.ask(b"UNSUBSCRIBE", b"0").kind == ">"
        assert client.ask(b"SUBSCRIBE", b"new").kind == ">"


def test_a_listener_that_does_not_read_is_closed_at_the_hard_limit_and_others_hear_on() -> None:
    config = Config()
    config.put("pubsub.output_buffer_bytes_max", 256 * KIB)
    with node_stage(config) as stage:
        slow, quick, speaker = Client("a2", stage), Client("b2", stage), Client("c2", stage)
        for client in (slow, quick):
            assert client.ask(b"SUBSCRIBE", b"x").kind == "*"
        payload = bytes(32 * KIB)
        most = said = 0
        while len(stage.node.front.by_session) == 3:
            speaker.send(b"PUBLISH", b"x", payload)
            said += 1
            heard(speaker, stage)
            assert len(heard(quick, stage)) == 1
            most = max(most, max(s.unsent_bytes for s in stage.node.front.by_session))
            assert said < 10_000
        assert most < 256 * KIB + 3 * len(payload)
        assert speaker.ask(b"PUBLISH", b"x", b"1").text == b"1"


def test_a_listener_beyond_the_soft_limit_is_closed_when_its_time_is_over() -> None:
    config = Config()
    config.put("pubsub.output_buffer_soft_bytes", 64 * KIB)
    with node_stage(config) as stage:
        slow, speaker = Client("a2", stage), Client("c2", stage)
        slow.ask(b"SUBSCRIBE", b"x")
        session = next(s for s in stage.node.front.by_session if s.subscriptions is not None)
        while session.unsent_bytes <= 64 * KIB:
            speaker.ask(b"PUBLISH", b"x", bytes(32 * KIB))
        stage.node.front.check_clients()
        stage.sleep(config.pubsub.output_buffer_soft_s - 1)
        stage.node.front.check_clients()
        assert session in stage.node.front.by_session
        while session.unsent_bytes:  # It reads, and is within the limit again.
            heard(slow, stage)
        stage.node.front.check_clients()
        stage.sleep(2)
        stage.node.front.check_clients()
        assert session in stage.node.front.by_session
        while session.unsent_bytes <= 64 * KIB:
            speaker.ask(b"PUBLISH", b"x", bytes(32 * KIB))
        stage.node.front.check_clients()
        stage.sleep(config.pubsub.output_buffer_soft_s + 1)
        stage.node.front.check_clients()
        assert session not in stage.node.front.by_session


def test_a_silent_listener_is_not_idle() -> None:
    config = Config()
    config.put("client.idle_timeout_s", 5)
    with node_stage(config) as stage:
        listener, idle = Client("a2", stage), Client("b2", stage)
        listener.ask(b"SUBSCRIBE", b"x")
        stage.sleep(6)
        stage.node.front.check_clients()
        heard(idle, stage)
        assert idle.is_closed
        heard(listener, stage)
        assert not listener.is_closed


def test_large_messages_are_shared_and_not_copied() -> None:
    with node_stage() as stage:
        clients = [Client("a2", stage) for _ in range(2)]
        speaker = Client("c2", stage)
        for client in clients:
            client.ask(b"SUBSCRIBE", b"x")
        sessions = [s for s in stage.node.front.by_session if s.subscriptions is not None]
        payload = b"v" * (100 * KIB)
        stage.node.pubsub.publish(b"c", b"x", payload)
        assert [len(s.out) for s in sessions] == [1, 1]
        assert sessions[0].out[0] is sessions[1].out[0]
        assert speaker.ask(b"PING").text == b"PONG"
        for client in clients:
            stage.settle()
            replies = client.hear()
            while not replies:
                stage.settle()
                replies = client.hear()
            assert replies[0].value[2].value == payload  # type: ignore[index,union-attr]


def test_events_take_plain_commands_from_the_lanes_only_while_somebody_listens() -> None:
    with node_stage() as stage:
        client, listener = Client("a2", stage), Client("b3", stage)
        node = stage.node
        client.ask(b"CONFIG", b"SET", b"notify-keyspace-events", b"KEA")
        assert not node.context.notifies
        assert not node.runner.has_observers
        listener.ask(b"SUBSCRIBE", b"__keyevent@0__:set")
        assert node.context.notifies
        assert node.runner.has_observers
        for number in range(20):  # As a pipeline: a run for the lane.
            client.send(b"SET", b"k%d" % number, b"v")
        events = heard(listener, stage)
        assert events == [
            f'>["message", "__keyevent@0__:set", "k{number}"]' for number in range(20)
        ]
        listener.ask(b"UNSUBSCRIBE")
        assert not node.runner.has_observers
        assert not node.context.notifies


def test_a_command_that_waits_for_a_page_is_told_once() -> None:
    with node_stage() as stage:
        client, listener = Client("a2", stage), Client("b3", stage)
        client.ask(b"MSET", b"a", b"1", b"b", b"2")
        client.ask(b"CONFIG", b"SET", b"notify-keyspace-events", b"EAmn")
        listener.ask(b"PSUBSCRIBE", b"__key*")
        stage.evict()
        client.send(b"MULTI")
        client.send(b"SUBSCRIBE", b"first")
        client.send(b"INCR", b"a")
        client.send(b"PUBLISH", b"first", b"hello")
        client.send(b"INCR", b"b")
        client.send(b"EXEC")
        stage.settle()
        replies = [render(reply, {}) for reply in client.hear()]
        assert replies[-1].endswith('[["subscribe", "first", :1], :2, :1, :3]')
        assert replies.count('["message", "first", "hello"]') == 1
        events = heard(listener, stage)
        assert [event.split('", "')[-2:] for event in events] == [
            ["__keyevent@0__:incrby", 'a"]'],
            ["__keyevent@0__:incrby", 'b"]'],
        ]


def test_a_key_that_lives_longer_by_now_is_told_when_that_is_over() -> None:
    with node_stage() as stage:
        client, listener = Client("a2", stage), Client("b3", stage)
        client.ask(b"CONFIG", b"SET", b"notify-keyspace-events", b"Ex")
        listener.ask(b"PSUBSCRIBE", b"__key*")
        client.ask(b"SET", b"k", b"v", b"PX", b"1000")
        client.ask(b"PEXPIRE", b"k", b"5000")
        stage.evict()  # It is in a table only when its first time comes.
        stage.sleep(2.5)
        assert heard(listener, stage) == []
        stage.sleep(4)
        assert heard(listener, stage) == ['>["pmessage", "__key*", "__keyevent@0__:expired", "k"]']
        stage.sleep(4)
        assert heard(listener, stage) == []


def test_messages_of_one_publisher_are_in_order() -> None:
    with node_stage() as stage:
        speaker, listener = Client("a2", stage), Client("b3", stage)
        listener.ask(b"PSUBSCRIBE", b"x*")
        for number in range(3000):
            speaker.send(b"PUBLISH", b"x%d" % (number % 7), b"%d" % number)
        said: list[int] = []
        while len(said) < 3000:
            stage.settle()
            speaker.hear()
            said += [int(reply.value[3].text) for reply in listener.hear()]  # type: ignore[union-attr,index]
        assert all(after == before + 1 for before, after in pairwise(said))
