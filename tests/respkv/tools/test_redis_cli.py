"""Replies as redis-cli shows them, compared with redis-cli where that is easy to see, and what is typed."""

from __future__ import annotations

import shlex
from typing import Any

import hiredis
import pytest

from respkv.tools.redis_cli import command_text, fields, quoted, reply_text


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (None, "(nil)"),
        (7, "(integer) 7"),
        (b"OK", "OK"),
        (b"text", '"text"'),
        (b"", '""'),
        (hiredis.ReplyError("ERR no"), "(error) ERR no"),
        ([], "(empty array)"),
        ([b"a", None], '1) "a"\n2) (nil)'),
        ([b"OK"], '1) "OK"'),
        ([[b"a", 1], [b"b", []]], '1) 1) "a"\n   2) (integer) 1\n2) 1) "b"\n   2) (empty array)'),
        (list(range(10))[::9], "1) (integer) 0\n2) (integer) 9"),
    ],
)
def test_replies(reply: Any, text: str) -> None:
    assert reply_text(reply) == text


def test_numbers_are_aligned() -> None:
    lines = reply_text([*range(9), [b"x", b"y"]]).splitlines()
    assert lines[0] == " 1) (integer) 0"
    assert lines[9:] == ['10) 1) "x"', '    2) "y"']


def test_bytes_are_escaped() -> None:
    assert quoted(b'a"b\\c\n\r\t\a\b\x00\xff') == '"a\\"b\\\\c\\n\\r\\t\\a\\b\\x00\\xff"'


def test_commands_can_be_typed() -> None:
    words = ["KV.PUT", "cart", "milk, bread", "CONTEXT", 'a"b']
    typed = command_text(words, "127.0.0.1", 6380)
    assert shlex.split(typed) == ["redis-cli", "-p", "6380", *words]
    assert command_text(["PING"], "localhost", 6379) == "redis-cli PING"
    assert command_text(["PING"], "10.0.0.1", 6379) == "redis-cli -h 10.0.0.1 PING"


def test_flat_arrays_become_fields() -> None:
    assert fields([b"a", 1, b"b", [b"c", 2]]) == {"a": 1, "b": [b"c", 2]}
    assert fields([]) == {}
