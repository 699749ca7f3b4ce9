"""`respkv drill partition`: a partition of a local cluster, from the cut to agreement, for its user to watch.

    1. KV.DRILL CUT parts one node from all others
    2. a quorum cannot be had on its side: a usual write is refused; on the other side everything goes on
    3. both sides write one key with W=1: that is accepted, and makes siblings
    4. KV.DRILL HEAL; the replicas compare their clocks and have both versions
    5. KV.GET shows the siblings, KV.PUT with its context replaces exactly those, and both sides agree

Each step is shown as the redis-cli command that does it. Whatever happens, the network is healed at the end.

Core: it is handed ways to ask nodes, to say something and to wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import hiredis

from respkv.tools.redis_cli import command_text, fields, reply_text

KEY: Final = "cart"
KEYS_MAX: Final = 1000  # Tried, to find one with replicas on both sides.
SEEN_S: Final = 20.0  # A node that is silent is noticed within some seconds.
COMPARED_S: Final = 60.0
POLL_S: Final = 0.1
MINORITY_VALUE: Final = "milk"
MAJORITY_VALUE: Final = "bread"


class DrillFailed(Exception):
    """The drill could not go on; the text says why, and what to do."""


class Asker(Protocol):
    """A connection to one node; replies and errors as `hiredis.Reader` gives them."""

    def __call__(self, *words: str) -> Any: ...


@dataclass(frozen=True, slots=True)
class DrillNode:
    """One node of the cluster, and a way to ask it."""

    name: str
    host: str
    port: int
    ask: Asker


class Drill:
    """See the module's docstring. `say` takes a line."""

    def __init__(
        self,
        nodes: Sequence[DrillNode],
        say: Callable[[str], None],
        sleep: Callable[[float], None],
        clock_s: Callable[[], float],
    ) -> None:
        self._nodes = nodes
        self._say = say
        self._sleep = sleep
        self._clock_s = clock_s
        self.one, self.others = nodes[0], nodes[1:]

    def run(self, *, leaves_siblings: bool) -> None:
        """The whole drill. Raises DrillFailed."""
        self._check()
        one, other = self.one, self.others[0]
        key = self._key()
        names = " and ".join(node.name for node in self.others)
        self._tell("All nodes are there:")
        self._show(one, "DEL", key)
        self._tell(f"Node {one.name} is cut off from {names}:")
        try:
            self._show(one, "KV.DRILL", "CUT", *(node.name for node in self.others))
            self._wait_for_views(is_apart=True)
            self._tell(f"{one.name} has no majority on its side; {other.name} has one:")
            self._show(one, "SET", key, MINORITY_VALUE, may_fail=True)
            self._show(other, "GET", key)
            self._tell("With W=1 both sides take writes. Neither sees the other's:")
            weak = ("KV.WITH", "W", "1", "R", "1")
            self._show(one, *weak, "KV.PUT", key, MINORITY_VALUE)
            self._show(other, *weak, "KV.PUT", key, MAJORITY_VALUE)
            self._tell("The network is whole again:")
            self._show(one, "KV.DRILL", "HEAL")
        finally:
            if not self._is_healed():
                one.ask("KV.DRILL", "HEAL")
        self._wait_for_views(is_apart=False)
        self._wait_for_siblings(key)
        if leaves_siblings:
            self._tell(f"Both are kept: the key {key} has siblings now. This shows them:")
            self._say("$ " + self._typed(other, "KV.GET", key))
            return
        self._resolve(key)

    def _resolve(self, key: str) -> None:
        other = self.others[0]
        self._tell("Both values are there, and a context that stands for having seen them:")
        context = _context_of(self._show(other, "KV.GET", key))
        self._tell("A write with that context replaces exactly what was seen:")
        value = f"{MINORITY_VALUE}, {MAJORITY_VALUE}"
        self._show(other, "KV.PUT", key, value, "CONTEXT", context)
        self._tell("Both sides agree:")
        answers = {node.name: self._show(node, "GET", key) for node in (self.one, self.others[-1])}
        if set(answers.values()) != {value.encode()}:
            raise DrillFailed(f"the nodes do not agree: {answers}")

    # Steps

    def _show(self, node: DrillNode, *words: str, may_fail: bool = False) -> Any:
        self._say("$ " + self._typed(node, *words))
        reply = node.ask(*words)
        self._say(reply_text(reply))
        if isinstance(reply, hiredis.ReplyError) and not may_fail:
            raise DrillFailed(f"node {node.name} refused {' '.join(words[:1])}: {reply}")
        return reply

    def _typed(self, node: DrillNode, *words: str) -> str:
        return command_text(words, node.host, node.port)

    def _tell(self, text: str) -> None:
        self._say(f"\n# {text}")

    def _check(self) -> None:
        """Raises DrillFailed if it cannot work."""
        if len(self._nodes) < 2:
            raise DrillFailed("a partition needs two nodes at least")
        reply = self.one.ask("KV.DRILL", "SHOW")
        if isinstance(reply, hiredis.ReplyError):
            raise DrillFailed(str(reply))
        if reply:
            raise DrillFailed(
                f"{self.one.name} is cut off already: "
                f"{self._typed(self.one, 'KV.DRILL', 'HEAL')} ends that"
            )
        if not self._has_views(is_apart=False):
            raise DrillFailed('not all nodes reach each other: see "respkv status"')

    def _key(self) -> str:
        """A key with replicas on both sides."""
        for number in range(KEYS_MAX):
            key = f"{KEY}:{number}" if number else KEY
            told = fields(self.one.ask("KV.PREFLIST", key))
            names = [fields(each)["name"].decode() for each in told["replicas"]]
            if {self.one.name, self.others[0].name} <= set(names):
                return key
        raise DrillFailed("there is no key with replicas on both sides")

    def _wait_for_views(self, *, is_apart: bool) -> None:
        self._wait(
            lambda: self._has_views(is_apart=is_apart),
            SEEN_S,
            "the nodes did not notice" if is_apart else "the nodes did not find each other again",
        )

    def _has_views(self, *, is_apart: bool) -> bool:
        """Whether every node sees itself apart from the other side, or all nodes together."""
        for node in self._nodes:
            for each in map(fields, node.ask("KV.NODES")):
                is_across = (each["name"].decode() == self.one.name) is not (node is self.one)
                if not is_apart and not (each["reachable"] and each["complete"]):
                    return False
                if is_apart and is_across and each["reachable"]:
                    return False
        return True

    def _wait_for_siblings(self, key: str) -> None:
        """Until the replicas have found out by their clocks what they missed."""

        def is_met() -> bool:
            replies = [node.ask("KV.GET", key) for node in (self.one, self.others[0])]
            return all(len(versions_of(reply)) > 1 for reply in replies)

        self._wait(is_met, COMPARED_S, "the replicas did not exchange their versions")

    def _wait(self, is_met: Callable[[], bool], seconds: float, failure: str) -> None:
        until_s = self._clock_s() + seconds
        while not is_met():
            if self._clock_s() >= until_s:
                raise DrillFailed(f"{failure} within {seconds:g} s")
            self._sleep(POLL_S)

    def _is_healed(self) -> bool:
        return bool(self.one.ask("KV.DRILL", "SHOW") == [])


def versions_of(reply: Any) -> Sequence[Any]:
    """The versions that KV.GET shows. Raises DrillFailed for an error."""
    versions: Sequence[Any] = _told(reply)[0]
    return versions


def _context_of(reply: Any) -> str:
    context: bytes = _told(reply)[1]
    return context.decode()


def _told(reply: Any) -> tuple[Any, Any]:
    """Versions and context, which KV.GET answers in this order."""
    if isinstance(reply, hiredis.ReplyError):
        raise DrillFailed(f"KV.GET was refused: {reply}")
    versions, context = reply
    return versions, context
