"""HELLO, AUTH, SELECT, RESET, QUIT, PING: the scenes on a node and on Redis, and passwords."""

from __future__ import annotations

import pytest

from tests.respkv.commands.redis import needs_redis
from tests.respkv.commands.scene import FOLDER, Scene, ServerStage, node_stage, play, read
from tests.servers import redis_server

SCENES = read(FOLDER / "connection.txt")


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_scene(scene: Scene) -> None:
    with node_stage() as stage:
        assert str(play(scene, stage)) == str(scene)


@needs_redis
def test_scenes_on_redis() -> None:
    with redis_server() as server:
        stage = ServerStage(server)
        for scene in SCENES:
            if not scene.is_ours:
                stage.clear()
                assert str(play(scene, stage)) == str(scene)


