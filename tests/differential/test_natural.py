"""The table of differences by nature, and each rule: what it lets pass and what it does not."""

# ruff: noqa: E501  A case is one line.

from __future__ import annotations

import pytest

from .catalog import BY_NAME, DATA_NAMES
from .command import Call
from .natural import NATURAL, RULES, compare, compare_replies
from .wire import Answer, Reply, ReplyReader

FORBIDDEN_FOR_DATA = {"value", "type", "error"}


def reply(raw: bytes) -> Reply:
    reader = ReplyReader()
    reader.feed(raw)
    whole = reader.next()
    assert whole is not None
    assert not reader.pending
    return whole


def bulk(text: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text)


def array(*items: bytes) -> bytes:
    return b"*%d\r\n" % len(items) + b"".join(items)


def test_no_difference_by_nature_concerns_type_value_or_error_of_a_data_command() -> None:
    lines = [(line.command, line.scope) for line in NATURAL if line.command in DATA_NAMES]
    assert lines  # TTL and KEYS, at least: else the names no longer match and nothing is tested.
    assert [line for line in lines if line[1] in FORBIDDEN_FOR_DATA] == []


def test_each_difference_names_a_command_once_and_a_reason() -> None:
    assert [line.command for line in NATURAL if line.command not in BY_NAME] == []
    assert len(RULES) == len(NATURAL)
    assert [line.command for line in NATURAL if len(line.reason) < 10] == []


INFO = b"# Clients\r\nconnected_clients:%b\r\nblocked_clients:0\r\n\r\n# Keyspace\r\ndb0:keys=%b,expires=0,avg_ttl=%b\r\n"
ROW = b"id=%b addr=127.0.0.1:%b name=%b db=0 cmd=client|info\n"
GREETING = (bulk(b"server"), bulk(b"redis"), bulk(b"proto"), b":2\r\n", bulk(b"id"))
ENTRY = (
    bulk(b"get"),
    b":2\r\n",
    array(b"+readonly\r\n", b"+fast\r\n"),
    b":1\r\n",
    b":1\r\n",
    b":1\r\n",
    array(b"+@read\r\n"),
)
DOC = (bulk(b"summary"), bulk(b"one"), bulk(b"since"), bulk(b"1.0.0"))

# Command, Redis' reply, one that passes, one that does not.
CASES = (
    ("GET", bulk(b"a"), bulk(b"a"), bulk(b"b")),
    ("GET", b"-ERR a\r\n", b"-ERR a\r\n", b"-ERR b\r\n"),
    ("TTL", b":100\r\n", b":101\r\n", b":102\r\n"),
    ("TTL", b":-1\r\n", b":-1\r\n", b":0\r\n"),
    ("TTL", b":0\r\n", b":1\r\n", b":-1\r\n"),
    ("TTL", b":100\r\n", b":99\r\n", b"$3\r\n100\r\n"),
    ("PTTL", b":100000\r\n", b":100300\r\n", b":100301\r\n"),
    ("EXPIRETIME", b":5\r\n", b":4\r\n", b":3\r\n"),
    ("PEXPIRETIME", b":5000\r\n", b":4700\r\n", b":4699\r\n"),
    ("KEYS", array(bulk(b"a"), bulk(b"b")), array(bulk(b"b"), bulk(b"a")), array(bulk(b"a"), bulk(b"a"))),
    ("SCAN", array(bulk(b"a"), bulk(b"b")), array(bulk(b"b"), bulk(b"a")), array(bulk(b"a"))),
    ("RANDOMKEY", bulk(b"int:1"), bulk(b"int:2"), bulk(b"never")),
    ("RANDOMKEY", bulk(b"int:1"), bulk(b"int:2"), b"$-1\r\n"),
    ("OBJECT IDLETIME", b":0\r\n", b":1\r\n", bulk(b"0")),
    ("MEMORY USAGE", b":50\r\n", b":70\r\n", b"$-1\r\n"),
    ("OBJECT HELP", array(b"+a\r\n"), array(b"+b\r\n", b"+c\r\n"), array(bulk(b"a"))),
    ("TIME", array(bulk(b"10"), bulk(b"5")), array(bulk(b"11"), bulk(b"0")), array(bulk(b"12"), bulk(b"5"))),
    ("TIME", array(bulk(b"10"), bulk(b"5")), array(bulk(b"10"), bulk(b"6")), array(b":10\r\n", b":6\r\n")),
    ("CLIENT ID", b":3\r\n", b":9\r\n", b":0\r\n"),
    ("CLIENT GETREDIR", b":-1\r\n", b":-1\r\n", b":0\r\n"),
    ("LOLWUT", bulk(b"art"), bulk(b"other art"), bulk(b"")),
    ("INFO", bulk(INFO % (b"3", b"7", b"0")), bulk(INFO % (b"4", b"7", b"9")), bulk(INFO % (b"4", b"8", b"0"))),
    ("INFO", bulk(INFO % (b"3", b"7", b"0")), bulk(INFO % (b"4", b"7", b"9")), bulk(INFO % (b"some", b"7", b"0"))),
    ("INFO", bulk(INFO % (b"3", b"7", b"0")), bulk(INFO % (b"4", b"7", b"9")), bulk(b"# Clients\r\n# Keyspace\r\n")),
    ("CLIENT INFO", bulk(ROW % (b"3", b"9", b"x")), bulk(ROW % (b"5", b"8", b"x")), bulk(ROW % (b"5", b"8", b"y"))),
    ("CLIENT LIST", bulk(ROW % (b"3", b"9", b"x")), bulk(ROW % (b"5", b"8", b"x")), bulk(ROW % (b"5", b"8", b"x") * 2)),
    ("HELLO", array(*GREETING, b":5\r\n"), array(*GREETING, b":6\r\n"), array(*GREETING, bulk(b"5"))),
    ("HELLO", array(*GREETING, b":5\r\n"), array(*GREETING, b":6\r\n"), array(*GREETING[:2], *GREETING[4:], b":6\r\n")),
    ("COMMAND INFO", array(array(*ENTRY)), array(array(*ENTRY[:2], array(b"+fast\r\n", b"+readonly\r\n"), *ENTRY[3:])), array(b"*-1\r\n")),
    ("COMMAND INFO", array(array(*ENTRY)), array(array(*ENTRY)), array(array(ENTRY[0], b":-2\r\n", *ENTRY[2:]))),
    ("COMMAND LIST", array(bulk(b"get"), bulk(b"blpop")), array(bulk(b"kv.get"), bulk(b"get")), array(bulk(b"blpop"))),
    ("COMMAND DOCS", array(bulk(b"get"), array(*DOC)), array(bulk(b"get"), array(DOC[0], bulk(b"two"), *DOC[2:])), array(bulk(b"get"), array(*DOC[:2]))),
    ("COMMAND DOCS", array(bulk(b"get"), array(*DOC)), array(bulk(b"get"), array(*DOC)), array(bulk(b"get"), array(*DOC[:3], bulk(b"2.0.0")))),
    ("CONFIG GET", array(bulk(b"timeout"), bulk(b"0"), bulk(b"dir"), bulk(b"/a")), array(bulk(b"timeout"), bulk(b"0")), array(bulk(b"timeout"), bulk(b"1"))),
    ("CONFIG GET", array(bulk(b"port"), bulk(b"1")), array(bulk(b"port"), bulk(b"2")), array()),
    ("ROLE", array(bulk(b"master"), b":0\r\n", b"*0\r\n"), array(bulk(b"master"), b":9\r\n", b"*0\r\n"), array(bulk(b"master"), b":0\r\n")),
    ("LATENCY LATEST", array(), array(array(bulk(b"x"), b":1\r\n", b":1\r\n", b":1\r\n")), array(bulk(b"x"))),
    ("LATENCY LATEST", array(array(bulk(b"command"), b":1\r\n", b":1\r\n", b":1\r\n")), array(array(bulk(b"command"), b":1\r\n", b":1\r\n", b":2\r\n")), array()),
    ("LATENCY HISTORY", array(array(b":1\r\n", b":2\r\n")), array(array(b":3\r\n", b":4\r\n"), array(b":5\r\n", b":6\r\n")), array()),
    ("LATENCY RESET", b":1\r\n", b":2\r\n", bulk(b"1")),
    ("COMMAND DOCS", array(bulk(b"get"), array(*DOC)), array(bulk(b"get"), array(*DOC), bulk(b"kv.get"), array(*DOC)), array()),
    ("MEMORY STATS", array(bulk(b"keys.count"), b":1\r\n"), array(bulk(b"keys.count"), b":2\r\n"), array(bulk(b"keys.count"), bulk(b"1"))),
    ("SLOWLOG GET", array(array(b":1\r\n", b":2\r\n", b":3\r\n", array(bulk(b"GET")))), array(array(b":4\r\n", b":5\r\n", b":6\r\n", array(bulk(b"GET")))), array(array(b":1\r\n", b":2\r\n", b":3\r\n", array(bulk(b"SET"))))),
)  # fmt: skip


@pytest.mark.parametrize(("name", "left", "alike", "unlike"), CASES)
def test_a_rule_lets_pass_what_differs_by_nature_and_nothing_else(
    name: str, left: bytes, alike: bytes, unlike: bytes
) -> None:
    call = Call((name.encode(),), name=name)
    assert compare_replies(call, reply(left), reply(alike), 0.0) is None
    assert compare_replies(call, reply(left), reply(unlike), 0.0) is not None


@pytest.mark.parametrize("name", sorted(RULES))
def test_errors_and_nils_never_differ_by_nature(name: str) -> None:
    call = Call((name.encode(),), name=name)
    for left, right in (
        (b"-ERR a\r\n", b"-ERR b\r\n"),
        (b"$-1\r\n", b":1\r\n"),
        (b":1\r\n", b"-ERR a\r\n"),
        (b"$-1\r\n", b"*-1\r\n"),
    ):
        assert compare_replies(call, reply(left), reply(right), 0.0) is not None


def test_slow_answers_widen_the_rules_of_time_by_as_much() -> None:
    call = Call((b"PTTL",), name="PTTL")
    assert compare_replies(call, reply(b":1000\r\n"), reply(b":1800\r\n"), 0.5) is None
    assert compare_replies(call, reply(b":1000\r\n"), reply(b":1801\r\n"), 0.5) is not None


def test_each_element_of_exec_follows_its_own_rule() -> None:
    queued = (Call((b"TTL",), name="TTL"), Call((b"GET",), name="GET"))
    call = Call((b"EXEC",), name="EXEC", queued=queued)
    left = reply(array(b":100\r\n", bulk(b"a")))
    assert compare_replies(call, left, reply(array(b":101\r\n", bulk(b"a"))), 0.0) is None
    assert compare_replies(call, left, reply(array(b":100\r\n", bulk(b"b"))), 0.0) is not None
    assert compare_replies(call, left, reply(array(b":101\r\n")), 0.0) is not None


def test_push_messages_are_part_of_an_answer() -> None:
    call = Call((b"PING",), name="PING")
    pong, push = reply(b"+PONG\r\n"), reply(b">1\r\n+invalidate\r\n")
    assert compare(call, Answer(pong, (push,)), Answer(pong, (push,)), 0.0) is None
    assert compare(call, Answer(pong, (push,)), Answer(pong), 0.0) is not None
