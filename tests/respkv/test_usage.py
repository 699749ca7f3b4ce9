"""The notation of `usage`: what each form becomes, what is refused, and that every declaration can be read."""

from __future__ import annotations

import pytest

from respkv.command import TABLE, Command
from respkv.commands import load
from respkv.usage import Argument, UsageError, parse

load()


def show(argument: Argument) -> str:
    """The tree on one line: `TOKEN name:type`, `(...)` around blocks, `<...>` around alternatives, flags behind."""
    match argument.type:
        case "pure-token":
            text = argument.token
        case "block" | "oneof":
            is_block = argument.type == "block"
            inner = (" " if is_block else " | ").join(map(show, argument.arguments))
            text = f"({inner})" if is_block else f"<{inner}>"
        case kind:
            text = f"{argument.name}:{kind}"
    if argument.key_spec >= 0:
        text += f"#{argument.key_spec}"
    if argument.token and argument.type != "pure-token":
        text = f"{argument.token} {text}"
    flags = (
        ("?", argument.is_optional),
        ("*", argument.is_multiple),
        ("T", argument.is_token_repeated),
    )
    return text + "".join(sign for sign, is_set in flags if is_set)


def shown(usage: str, *, key_spec_count: int = 0) -> str:
    return " ".join(show(argument) for argument in parse(usage, key_spec_count=key_spec_count))


@pytest.mark.parametrize(
    ("usage", "tree"),
    [
        ("", ""),
        ("word", "word:string"),
        ("seconds value", "seconds:integer value:string"),
        ("increment:double ip:port", "increment:double ip:port:string"),
        ("pattern unix-time-seconds", "pattern:pattern unix-time-seconds:unix-time"),
        ("[message]", "message:string?"),
        ("[NX | XX]", "<NX | XX>?"),
        ("<ON | OFF>", "<ON | OFF>"),
        ("ON | OFF", "<ON | OFF>"),
        ("[EX seconds | KEEPTTL]", "<EX seconds:integer | KEEPTTL>?"),
        ("[TYPE <NORMAL | PUBSUB>]", "TYPE <NORMAL | PUBSUB>?"),
        ("[start end [BYTE | BIT]]", "(start:integer end:integer <BYTE | BIT>?)?"),
        ("name [name ...]", "name:string*"),
        ("[name [name ...]]", "name:string?*"),
        ("name value [name value ...]", "(name:string value:string)*"),
        ("numkeys name [name ...]", "numkeys:integer name:string*"),
        ("ID name [name ...]", "ID name:string*"),
        ("[PREFIX prefix [PREFIX prefix ...]]", "PREFIX prefix:string?*T"),
        ("[GET encoding offset [GET encoding offset ...]]", "GET (encoding:string offset:integer)?*T"),
        ("LIMIT offset count", "LIMIT (offset:integer count:integer)"),
        ("[protover [AUTH username password]]", "(protover:integer AUTH (username:string password:string)?)?"),
        ("FROM name FORCE", "FROM name:string FORCE"),
        ("FORCE [name]", "FORCE name:string?"),
        ("[A a | B b [A a | B b ...]]", "<A a:string | B b:string>?*"),
        ("<a | <B | C> [<B | C> ...]>", "<a:string | <B | C>*>"),
        ("<* | id>", "<* | id:string>"),
    ],
)  # fmt: skip
def test_each_form(usage: str, tree: str) -> None:
    assert shown(usage) == tree


def test_keys_belong_to_the_specifications_in_turn() -> None:
    assert shown("key newkey", key_spec_count=2) == "key:key#0 newkey:key#1"
    assert shown("key1 key2 [LEN]", key_spec_count=1) == "key1:key#0 key2:key#0 LEN?"
    assert (
        shown("operation destkey key [key ...]", key_spec_count=2)
        == "operation:string destkey:key#0 key:key#1*"
    )


def test_a_command_without_keys_has_no_argument_that_is_one() -> None:
    assert shown("key") == "key:string"


def test_groups_are_named_after_their_members() -> None:
    (group,) = parse("[EX seconds | KEEPTTL]")
    assert group.name == "seconds_keepttl"


@pytest.mark.parametrize(
    "usage",
    ["[a", "a]", "<a]", "<a | >", "[]", "a [b ...]", "[a | b [c | d ...]]", "a b [a ...] b [a b ...]"],
)  # fmt: skip
def test_a_slip_is_refused(usage: str) -> None:
    with pytest.raises(UsageError):
        parse(usage)


@pytest.mark.parametrize("command", list(TABLE.everything()), ids=lambda command: command.name)
def test_every_declaration_can_be_read(command: Command) -> None:
    arguments = parse(command.usage, key_spec_count=len(command.keys))
    assert bool(arguments) == bool(command.usage)
    named = {spec for argument in arguments for spec in _key_specs(argument)}
    # Each key that the table knows of is somewhere in the syntax. Shard channels are no keys.
    assert named == set(range(len(command.keys) if command.is_keyed else 0))


def _key_specs(argument: Argument) -> list[int]:
    own = [argument.key_spec] if argument.key_spec >= 0 else []
    return own + [spec for inner in argument.arguments for spec in _key_specs(inner)]
