"""Log lines: their text, their JSON, their levels."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from respkv import logs

NOW_S = 1769860800.25
TIME = "2026-01-31T12:00:00.250Z"


@pytest.fixture
def output() -> Iterator[io.BytesIO]:
    """A stream that takes the lines while a test runs. Afterwards all is as it was."""
    stream = io.BytesIO()
    logs.setup(stream=stream, now=lambda: NOW_S)
    yield stream
    logs.setup()


def lines(output: io.BytesIO) -> list[str]:
    return output.getvalue().decode().splitlines()


def test_a_line_of_text(output: io.BytesIO) -> None:
    logs.get_logger("respkv.node").info("serving", host="127.0.0.1", port=6379)
    assert lines(output) == [f"{TIME} info    respkv.node: serving host=127.0.0.1 port=6379"]


def test_a_line_of_json() -> None:
    stream = io.BytesIO()
    logs.setup("info", "json", stream=stream, now=lambda: NOW_S)
    try:
        logs.get_logger("respkv.node").warning("slow", key=b"a\xff\n", took_ms=1.5, peer=None)
    finally:
        logs.setup()
    assert stream.getvalue().endswith(b"\n")
    assert stream.getvalue().count(b"\n") == 1
    fields = json.loads(stream.getvalue())
    assert list(fields)[:4] == ["time", "level", "logger", "event"]
    assert fields == {
        "time": TIME,
        "level": "warning",
        "logger": "respkv.node",
        "event": "slow",
        "key": "a\\xff\n",
        "took_ms": 1.5,
        "peer": None,
    }


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("plain", "plain"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('a"b', '"a\\"b"'),
        ("x\n2026 error forged", '"x\\n2026 error forged"'),
        ("\x1b[31m", '"\\u001b[31m"'),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("ñ", "ñ"),
        ("ñ ñ", '"ñ ñ"'),
        (None, "None"),
        ("x" * 2000, "x" * 1000 + "..."),
    ],
)
def test_a_value_cannot_be_taken_for_another_word_or_line(
    output: io.BytesIO, value: object, word: str
) -> None:
    logs.get_logger("a").info("b", c=value)
    assert lines(output) == [f"{TIME} info    a: b c={word}"]


def test_lines_below_the_level_are_left_out(output: io.BytesIO) -> None:
    log = logs.get_logger("a")
    for level in logs.LEVELS:
        logs.set_level(level)
        for name in logs.LEVELS:
            getattr(log, name)(f"{name} at {level}")
    written = [line.split(": ")[1] for line in lines(output)]
    assert written == [
        f"{name} at {level}"
        for i, level in enumerate(logs.LEVELS)
        for name in logs.LEVELS[i:]
    ]  # fmt: skip


def test_a_logger_keeps_its_context_and_follows_the_level(output: io.BytesIO) -> None:
    log = logs.get_logger("a").bind(peer="n2")
    logs.set_level("error")
    log.info("no")
    logs.set_level("debug")
    log.debug("yes", n=1)
    assert lines(output) == [f"{TIME} debug   a: yes peer=n2 n=1"]


def test_other_packages_get_the_same_lines_from_structlog(output: io.BytesIO) -> None:
    log = structlog.get_logger("engine.log")
    log.debug("no")
    log.info("yes", n=1)
    logs.set_level("debug")
    log.debug("now", n=2)
    assert lines(output) == [
        f"{TIME} info    engine.log: yes n=1",
        f"{TIME} debug   engine.log: now n=2",
    ]


def test_an_exception_follows_its_line(output: io.BytesIO) -> None:
    try:
        raise ValueError("bad")
    except ValueError:
        logs.get_logger("a").exception("failed", n=1)
    first, *rest = lines(output)
    assert first == f"{TIME} error   a: failed n=1"
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-1] == "    ValueError: bad"


def test_a_logger_without_a_name(output: io.BytesIO) -> None:
    structlog.get_logger().info("b")
    assert lines(output) == [f"{TIME} info    b"]


def test_without_a_stream_lines_go_to_standard_error(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    logs.setup(now=lambda: NOW_S)
    logs.get_logger("a").info("b")
    logs.setup()
    captured = capfdbinary.readouterr()
    assert captured.err == f"{TIME} info    a: b\n".encode()
    assert captured.out == b""


class Broken(io.BytesIO):
    """A stream whose reader has gone."""

    def write(self, data: object) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [Broken(), io.BytesIO()])
def test_a_stream_that_is_gone_is_no_error(output: io.BytesIO, stream: io.BytesIO) -> None:
    stream.close()
    logs.setup(stream=stream)
    logs.get_logger("a").error("b")
