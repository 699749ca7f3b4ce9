"""The partition drill against a cluster that is played: its steps, and that it heals whatever goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import hiredis
import pytest

from respkv.tools.drill import Drill, DrillFailed, DrillNode, versions_of

QUORUM = hiredis.ReplyError("NOREPLICAS writes need 2 replicas of this key, and 1 can be reached")


@dataclass
class Played:
    """Three nodes that hold everything; versions are sets of values, by node."""

    names: tuple[str, ...] = ("a", "b", "c")
    is_allowed: bool = True
    ignores: str = ""  # Does nothing.
    refuses: str = ""
    cut: dict[str, list[str]] = field(default_factory=dict)
    values: dict[str, set[bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    now_s: float = 0.0

    def sees(self, one: str, other: str) -> bool:
        return other not in self.cut.get(one, []) and one not in self.cut.get(other, [])

    def side(self, name: str) -> list[str]:
        return [other for other in self.names if self.sees(name, other)]

    def ask(self, name: str, *words: str) -> Any:
        self.asked.append(f"{name}: {' '.join(words)}")
        if words[0] == "KV.WITH":
            return self._do(name, words[5:], needed=1)
        return self._do(name, words, needed=2)

    def _do(self, name: str, words: tuple[str, ...], *, needed: int) -> Any:
        if words[0] == self.refuses:
            return hiredis.ReplyError(f"ERR unknown command '{words[0]}'")
        if words[0] == self.ignores:
            return b"OK"
        match words:
            case ("KV.DRILL", what, *others):
                return self._drill(name, what, others)
            case ("KV.NODES",):
                return [
                    [b"name", other.encode(), b"reachable", int(self.sees(name, other)), b"complete", 1]
                    for other in self.names
                ]  # fmt: skip
            case ("KV.PREFLIST", _):
                return [b"replicas", [[b"name", other.encode()] for other in self.names]]
        side = self.side(name)
        if len(side) < needed:
            return QUORUM
        seen = set().union(*(self.values.get(other, set()) for other in side))
        match words:
            case ("GET", _):
                return max(seen, default=None)
            case ("KV.GET", _):
                versions = [[b"value", value] for value in sorted(seen)]
                return [versions, b"c" + b"".join(sorted(seen))]
            case ("DEL", _):
                seen = set()
            case ("KV.PUT", _, value):
                seen.add(value.encode())
            case ("KV.PUT", _, value, "CONTEXT", context):
                assert context.encode() == b"c" + b"".join(sorted(seen))
                seen = {value.encode()}
            case _:
                raise AssertionError(words)
        for other in side:
            self.values[other] = set(seen)
        return b"OK"

    def _drill(self, name: str, what: str, others: list[str]) -> Any:
        if not self.is_allowed:
            return hiredis.ReplyError("ERR KV.DRILL is off")
        if what == "SHOW":
            return [[b"name", each.encode()] for each in self.cut.get(name, [])]
        self.cut[name] = others
        if what == "HEAL":
            self.cut.clear()
        return b"OK"


def drill_of(played: Played) -> tuple[Drill, list[str]]:
    said: list[str] = []

    def asker(name: str) -> Callable[..., Any]:
        return lambda *words: played.ask(name, *words)

    nodes = [
        DrillNode(name, "127.0.0.1", 6379 + number, asker(name))
        for number, name in enumerate(played.names)
    ]

    def sleep(seconds: float) -> None:
        played.now_s += seconds

    return Drill(nodes, said.append, sleep, lambda: played.now_s), said


def test_the_whole_story() -> None:
    played = Played()
    drill, said = drill_of(played)
    drill.run(leaves_siblings=False)
    typed = [line for line in said if line.startswith("$ ")]
    assert typed == [
        "$ redis-cli DEL cart",
        "$ redis-cli KV.DRILL CUT b c",
        "$ redis-cli SET cart milk",
        "$ redis-cli -p 6380 GET cart",
        "$ redis-cli KV.WITH W 1 R 1 KV.PUT cart milk",
        "$ redis-cli -p 6380 KV.WITH W 1 R 1 KV.PUT cart bread",
        "$ redis-cli KV.DRILL HEAL",
        "$ redis-cli -p 6380 KV.GET cart",
        "$ redis-cli -p 6380 KV.PUT cart 'milk, bread' CONTEXT cbreadmilk",
        "$ redis-cli GET cart",
        "$ redis-cli -p 6381 GET cart",
    ]
    assert f"(error) {QUORUM}" in said
    assert not played.cut
    assert said[-1] == '"milk, bread"'
    assert all(values == {b"milk, bread"} for values in played.values.values())


def test_siblings_can_be_left() -> None:
    played = Played()
    drill, said = drill_of(played)
    drill.run(leaves_siblings=True)
    assert not played.cut
    assert len(versions_of(played.ask("c", "KV.GET", "cart"))) == 2
    assert said[-1] == "$ redis-cli -p 6380 KV.GET cart"


@pytest.mark.parametrize("word", ["KV.PUT", "KV.WITH", "GET"])
def test_it_heals_when_a_step_fails(word: str) -> None:
    class Refusing(Played):
        def ask(self, name: str, *words: str) -> Any:
            if words[0] == word:
                return hiredis.ReplyError("ERR unknown command")
            return super().ask(name, *words)

    played = Refusing()
    drill, said = drill_of(played)
    with pytest.raises(DrillFailed, match="unknown command"):
        drill.run(leaves_siblings=False)
    assert not played.cut
    assert any("CUT" in line for line in said)


def test_it_heals_when_its_user_ends_it() -> None:
    class Ended(Played):
        def ask(self, name: str, *words: str) -> Any:
            if words[0] == "KV.WITH":
                raise KeyboardInterrupt
            return super().ask(name, *words)

    played = Ended()
    with pytest.raises(KeyboardInterrupt):
        drill_of(played)[0].run(leaves_siblings=False)
    assert not played.cut


def test_it_gives_up_waiting() -> None:
    played = Played(ignores="KV.DRILL")  # Takes the command, and cuts nothing.
    drill, _ = drill_of(played)
    drill._check = lambda: None  # type: ignore[method-assign]
    with pytest.raises(DrillFailed, match="the nodes did not notice within 20 s"):
        drill.run(leaves_siblings=False)


@pytest.mark.parametrize(
    ("played", "reason"),
    [
        (Played(is_allowed=False), "ERR KV.DRILL is off"),
        (Played(cut={"a": ["b"]}), "a is cut off already: redis-cli KV.DRILL HEAL ends that"),
        (Played(cut={"b": ["c"]}), "not all nodes reach each other"),
        (Played(names=("a",)), "a partition needs two nodes"),
    ],
)
def test_it_does_not_begin_where_it_cannot_work(played: Played, reason: str) -> None:
    drill, _ = drill_of(played)
    with pytest.raises(DrillFailed, match=reason):
        drill.run(leaves_siblings=False)
    assert not any("CUT" in line or "PUT" in line for line in played.asked)


def test_disagreement_is_told() -> None:
    class Split(Played):
        def ask(self, name: str, *words: str) -> Any:
            if words[0] == "GET" and name == "c":
                return b"another"
            return super().ask(name, *words)

    with pytest.raises(DrillFailed, match="the nodes do not agree"):
        drill_of(Split())[0].run(leaves_siblings=False)
