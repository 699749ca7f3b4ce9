"""MONITOR: the scenes on a node and on Redis, and the quoting of arguments."""

from __future__ import annotations

import pytest

from respkv.commands.monitor import monitor_line, quote
from respkv.parser import Limits
from respkv.session import Session
from tests.respkv.commands.redis import needs_redis
from tests.respkv.commands.scene import FOLDER, Scene, node_stage, play, play_on_redis, read

SCENES = read(FOLDER / "monitor.txt")


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_scene(scene: Scene) -> None:
    with node_stage() as stage:
        assert str(play(scene, stage)) == str(scene)


@needs_redis
def test_scenes_on_redis() -> None:
    scenes = [scene for scene in SCENES if not scene.is_ours]
    assert list(map(str, play_on_redis(scenes))) == list(map(str, scenes))


@pytest.mark.parametrize(
    ("arg", "quoted"),
    [
        (b"", b'""'),
        (b"plain text", b'"plain text"'),
        (b'say "hi" \\', b'"say \\"hi\\" \\\\"'),
        (b"\a\b\t\n\r", b'"\\a\\b\\t\\n\\r"'),
        (b"\x00\x1f\x7f\x80\xff", b'"\\x00\\x1f\\x7f\\x80\\xff"'),
    ],
)
def test_arguments_are_quoted(arg: bytes, quoted: bytes) -> None:
    assert quote(arg) == quoted


def test_a_line_tells_time_database_client_and_arguments() -> None:
    session = Session(1, "10.0.0.1:5", "local", Limits(), 0.0, authenticated=True)
    session.db = 3
    line = monitor_line(session, [b"AUTH", b"secret"], 1_700_000_000_000_042_999)
    assert line == b'+1700000000.000042 [3 10.0.0.1:5] "AUTH" "(redacted)"\r\n'
