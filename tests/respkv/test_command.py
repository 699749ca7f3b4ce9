"""The table of commands: look-up, arity, positions of keys, and what is said of unknown ones."""

from __future__ import annotations

import pytest

from respkv.command import (
    TABLE,
    Command,
    CommandTable,
    Flag,
    Handler,
    Keys,
    unknown_command,
    unknown_subcommand,
)
from respkv.commands import load
from respkv.reply import ReplyError

load()


def made(name: str, arity: int = 1, *keys: Keys, handler: Handler | None = lambda: None) -> Command:
    return Command(
        name=name, handler=handler, arity=arity, flags=Flag.NONE, keys=keys, since="1.0.0", group="generic",
        summary="", complexity="", usage="", tips=(), acl=(), is_sliced=False,
    )  # fmt: skip


@pytest.fixture
def table() -> CommandTable:
    table = CommandTable()
    table.add(made("LONE", 2))
    table.add(made("BOX", -2, handler=None))
    table.add(made("BOX|OPEN", 2))
    table.add(made("BOTH", -1))
    table.add(made("BOTH|INNER", 3))
    return table


def line(table: CommandTable, *args: bytes) -> bytes:
    with pytest.raises(ReplyError) as caught:
        table.resolve(list(args))
    return caught.value.line


# Look-up


@pytest.mark.parametrize("name", [b"LONE", b"lone", b"LoNe"])
def test_a_name_in_any_case(table: CommandTable, name: bytes) -> None:
    assert table.resolve([name, b"x"]) is table.commands["LONE"]


def test_subcommands(table: CommandTable) -> None:
    box, both = table.commands["BOX"], table.commands["BOTH"]
    assert table.resolve([b"box", b"oPeN"]) is box.subcommands[b"OPEN"]
    assert table.resolve([b"both"]) is both  # It has a handler of its own.
    assert table.resolve([b"both", b"inner", b"x"]) is both.subcommands[b"INNER"]
    assert [command.name for command in table.everything()] == [
        "LONE", "BOX", "BOX|OPEN", "BOTH", "BOTH|INNER",
    ]  # fmt: skip


def test_a_name_is_declared_once(table: CommandTable) -> None:
    with pytest.raises(AssertionError):
        table.add(made("LONE"))


def test_what_is_wrong_with_a_call(table: CommandTable) -> None:
    assert line(table, b"nope", b"a") == (
        b"ERR unknown command 'nope', with args beginning with: 'a' "
    )
    assert line(table, b"lone") == b"ERR wrong number of arguments for 'lone' command"
    assert line(table, b"lone", b"a", b"b") == b"ERR wrong number of arguments for 'lone' command"
    assert line(table, b"box") == b"ERR wrong number of arguments for 'box' command"
    assert line(table, b"box", b"shut") == b"ERR unknown subcommand 'shut'. Try BOX HELP."
    assert line(table, b"both", b"inner") == (
        b"ERR wrong number of arguments for 'both|inner' command"
    )


# Arity


@pytest.mark.parametrize(
    ("arity", "fits", "does_not_fit"),
    [(1, [1], [0, 2]), (3, [3], [1, 2, 4]), (-1, [1, 2, 99], []), (-3, [3, 4, 99], [1, 2])],
)
def test_arity(arity: int, fits: list[int], does_not_fit: list[int]) -> None:
    command = made("X", arity)
    for count in fits:
        command.check_arity(count)
    for count in does_not_fit:
        with pytest.raises(ReplyError, match="wrong number of arguments for 'x' command"):
            command.check_arity(count)


# Keys


@pytest.mark.parametrize(
    ("keys", "words", "positions"),
    [
        ((), "PING", []),
        ((Keys(1, 1, 1),), "GET k", [1]),
        ((Keys(1, -1, 1),), "MGET a b c", [1, 2, 3]),
        ((Keys(1, -1, 2),), "MSET a 1 b 2", [1, 3]),
        ((Keys(2, -1, 1),), "BITOP AND d a b", [2, 3, 4]),
        ((Keys(1, -2, 1),), "BLPOP a b 0", [1, 2]),
        ((Keys(1, -3, 1),), "X a b c d e", [1, 2, 3]),
        ((Keys(1, 2, 1),), "RENAME a b", [1, 2]),
        ((Keys(1, 1, 1), Keys(2, 2, 1)), "COPY a b DB 1", [1, 2]),
        # Of a call that is too short: only what is there.
        ((Keys(1, 2, 1),), "RENAME a", [1]),
        ((Keys(1, -2, 1),), "BLPOP a", []),
    ],
)
def test_positions_of_keys(keys: tuple[Keys, ...], words: str, positions: list[int]) -> None:
    assert made("X", -1, *keys).key_positions([w.encode() for w in words.split()]) == positions


# Unknown commands, letter by letter as in Redis 7.0 (compared in tests/differential)


def test_an_unknown_command_shows_its_arguments() -> None:
    def shown(*args: bytes) -> bytes:
        return unknown_command(list(args)).line.partition(b"beginning with: ")[2]

    assert shown(b"x") == b""
    assert shown(b"x", b"a", b"b c") == b"'a' 'b c' "
    assert shown(b"x", b"y" * 200, b"z") == b"'%b' " % (b"y" * 128)
    assert shown(b"x", b"y" * 120, b"z" * 20) == b"'%b' 'zzzzz' " % (b"y" * 120)
    assert shown(b"x", b"a\r\nb") == b"'a  b' "


def test_an_unknown_name_is_cut() -> None:
    assert unknown_command([b"n" * 300]).line == (
        b"ERR unknown command '%b', with args beginning with: " % (b"n" * 128)
    )
    assert unknown_subcommand("CLIENT", b"n" * 300).line == (
        b"ERR unknown subcommand '%b'. Try CLIENT HELP." % (b"n" * 128)
    )


# The real table


def test_every_command_is_declared_in_full() -> None:
    for command in TABLE.everything():
        assert command.name == command.name.upper()
        assert command.arity != 0, command.name
        assert command.summary, command.name
        assert command.since.count(".") == 2, command.name
        if command.handler is None:
            assert command.subcommands, command.name
        if command.is_plain:  # The runner's short way calls it without a look at these.
            assert not command.subcommands, command.name
            assert not command.is_sliced, command.name
            assert Flag.CONTROL not in command.flags, command.name
        if command.is_write:
            assert command.keys or command.name in ("FLUSHALL", "FLUSHDB", "SWAPDB"), command.name


def test_counters_are_forgotten() -> None:
    command = made("X")
    command.calls, command.elapsed_ns, command.rejected_calls, command.failed_calls = 1, 2, 3, 4
    command.histogram.add(5, 1)
    command.reset()
    assert (command.calls, command.elapsed_ns, command.rejected_calls, command.failed_calls) == (
        0,
        0,
        0,
        0,
    )
    assert command.histogram.count == 0
