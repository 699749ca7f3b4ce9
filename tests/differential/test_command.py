"""Templates, scenes and the plan of a round."""

from __future__ import annotations

import functools
import random
from collections import Counter

import pytest

from .argument import KEYS, KINDS, MISSING_KEYS
from .catalog import BY_NAME, COMMANDS, chosen
from .command import OPTION_TIMES_MIN, TIMES_MIN, Command, Draw, Reference, Scene, SceneMaker, plan
from .coverage import Count, Coverage
from .wire import Answer, Reply


def draw(seed: int = 1, resp: int = 2) -> Draw:
    return Draw(random.Random(seed), resp, BY_NAME)


def test_there_are_twenty_keys_and_the_missing_ones_are_others() -> None:
    assert len(set(KEYS)) == 20
    assert not set(KEYS) & set(MISSING_KEYS)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_kind_draws_from_its_seed_alone(name: str) -> None:
    drawn = [[KINDS[name](rng) for _ in range(50)] for rng in (random.Random(7), random.Random(7))]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_template_can_be_drawn_and_names_its_command(command: Command) -> None:
    drawer = draw()
    sources: list[str | SceneMaker] = [*command.good, *command.bad, *command.scenes]
    for source in sources:
        scene = drawer.scene(source) if isinstance(source, str) else source(drawer)
        assert command.name in {call.counts_as or call.name for call in scene}, source


def test_a_word_with_an_at_sign_is_the_same_all_through_a_scene() -> None:
    first, second, other = draw().scene("SET @key value ; GET @key ; 1> GET @key2")
    assert first.arguments[1] == second.arguments[1]
    assert other.arguments[1] in KEYS
    assert other.connection == 1


def test_literals_count_as_options_in_any_case() -> None:
    scenes = [draw(seed).scene("SET key value NX EX 10")[0] for seed in range(200)]
    assert {call.options for call in scenes} == {frozenset({"NX", "EX"})}
    assert len({call.arguments[3] for call in scenes}) > 2


def test_what_differs_by_server_stays_open() -> None:
    (call,) = draw().scene("CLIENT KILL ID &id2 LADDR &laddr0 !2")
    assert call.arguments[3:6:2] == (Reference("id", 2), Reference("laddr", 0))
    assert call.drops == {2}
    (scan,) = draw().scene("SCAN &cursor")
    assert scan.iterates


def test_exec_knows_what_was_queued_on_its_connection() -> None:
    scene = draw().scene("MULTI ; GET key ; 1> SET key value ; TTL key ; EXEC ; GET key")
    assert [call.name for call in scene[4].queued] == ["GET", "TTL"]


def test_an_unknown_word_is_no_literal() -> None:
    with pytest.raises(AssertionError, match="neither a kind nor a literal"):
        draw().scene("GET kee")


@functools.cache
def _everything(seed: int) -> list[Scene]:
    drawer = draw(seed)
    sources = [source for _, source in plan(COMMANDS, drawer.rng)]
    return [
        drawer.scene(source) if isinstance(source, str) else source(drawer) for source in sources
    ]


def test_a_round_is_the_same_for_the_same_seed() -> None:
    assert _everything(5) == _everything.__wrapped__(5)
    assert _everything(5) != _everything(6)


def test_a_round_sends_what_the_contract_asks() -> None:
    times: Counter[str] = Counter()
    options: Counter[tuple[str, str]] = Counter()
    queued: Counter[str] = Counter()
    for call in (call for scene in _everything(5) for call in scene):
        times[call.counts_as or call.name] += 1
        options.update((call.name, option) for option in call.options)
        queued.update(inner.name for inner in call.queued)
    assert [c.name for c in COMMANDS if times[c.name] - queued[c.name] < TIMES_MIN] == []
    wanted = [(c.name, option) for c in COMMANDS for option in c.options]
    assert [one for one in wanted if options[one] < OPTION_TIMES_MIN] == []


def test_a_command_can_be_left_short_or_long_by_an_argument() -> None:
    drawer = draw()
    scenes = [drawer.with_other_arity(drawer.scene("GET key")) for _ in range(500)]
    lengths = Counter(len(scene[0].arguments) for scene in scenes)
    assert lengths[1] > 5
    assert lengths[3] > 5
    assert lengths[2] > 400


def test_no_argument_more_or_less_leaves_a_connection_or_server_changed() -> None:
    lasting = (
        "MULTI",
        "QUIT",
        "RESET",
        "HELLO",
        "CONFIG SET",
        "CLIENT TRACKING",
        "CLIENT REPLY",
        "CLIENT KILL",
    )
    assert [name for name in lasting if BY_NAME[name].varies_arity] == []


def test_every_transaction_that_is_begun_is_ended() -> None:
    ends = {"EXEC", "DISCARD", "RESET", "QUIT"}
    for scene in _everything(5):
        for connection in {call.connection for call in scene}:
            names = [call.name for call in scene if call.connection == connection]
            if "MULTI" in names and names != ["MULTI"]:
                last_begun = len(names) - 1 - names[::-1].index("MULTI")
                assert ends & set(names[last_begun:]), names


def test_commands_are_chosen_by_name_or_by_table() -> None:
    assert [c.name for c in chosen(["GET", "SET"])] == ["GET", "SET"]
    assert "MULTI" in {c.name for c in chosen(["transaction"])}
    assert chosen([]) == list(COMMANDS)


def test_coverage_says_what_is_short() -> None:
    command = BY_NAME["BGSAVE"]
    enough = Count(TIMES_MIN, TIMES_MIN // 2, Counter({"SCHEDULE": OPTION_TIMES_MIN}))
    assert Coverage({"BGSAVE": enough}).shortfalls([command]) == []
    short = Count(TIMES_MIN - 1, TIMES_MIN // 2 - 1, Counter({"SCHEDULE": OPTION_TIMES_MIN - 1}))
    assert len(Coverage({"BGSAVE": short}).shortfalls([command])) == 3
    assert len(Coverage().shortfalls([command])) == 3


def test_coverage_counts_telling_replies_and_not_what_is_only_queued() -> None:
    (call,) = draw().scene("GET key")
    coverage = Coverage()
    for raw, value in (
        (b"+OK\r\n", b"OK"),
        (b"$-1\r\n", None),
        (b"-ERR\r\n", b"ERR"),
        (b"+QUEUED\r\n", b"QUEUED"),
    ):
        coverage.add(call, Answer(Reply(chr(raw[0]), value, raw)))
    coverage.add(call, None)
    assert (coverage.counts["GET"].times, coverage.counts["GET"].telling) == (4, 2)
    assert "GET" in coverage.table([BY_NAME["GET"]])
