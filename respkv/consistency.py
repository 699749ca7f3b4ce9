"""Consistency: how many replicas a read and a write ask, as people say it, and who has the last word.

Not what is done with the numbers: that is `cluster/coordinator.py`. Not the tables of the configuration
(`policy.py`) nor how the one of a key is found (`policy_match.py`).

A *level* is a number of replicas or a word: ONE, QUORUM (a majority of all), ALL. LOCAL_QUORUM and
EACH_QUORUM count replicas by data centre. With one data centre both are QUORUM; with several, replicas
are not counted by data centre yet, so these two are refused.

Four say something about a command, and the first that does decides, for R and W each:

    request        KV.WITH R 1 GET key
    connection     KV.CONSISTENCY READ 1
    policy         a [[policy]] table that matches the key
    configuration  cluster.r and cluster.w

A command on several keys takes the strictest of their policies: the largest R, the largest W.

Core.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from respkv.command import TABLE, Command, Flag
from respkv.number import integer_or_none
from respkv.reply import ReplyError, wrong_arity
from respkv.setting import Kind, Rejected

if TYPE_CHECKING:
    from respkv.node_config import Config
    from respkv.policy_match import Policies

WORDS: Final = ("ONE", "QUORUM", "ALL", "LOCAL_QUORUM", "EACH_QUORUM")
BY_CENTRE: Final = ("LOCAL_QUORUM", "EACH_QUORUM")
DEFAULT: Final = b"DEFAULT"
NUMBER_MAX: Final = 64
NESTED: Final = ReplyError("ERR KV.WITH cannot be used inside KV.WITH")

Level = int | str  # 0: it is left to whoever comes next.


@dataclass(frozen=True)
class Levels(Kind[Level]):
    """A level, in the configuration."""

    def allowed(self) -> str:
        words = ", ".join(f'"{word}"' for word in WORDS)
        return f"a number from 0 to {NUMBER_MAX} or one of {words}"

    def check(self, value: object) -> Level:
        if type(value) is int and 0 <= value <= NUMBER_MAX:
            return value
        if isinstance(value, str) and value in WORDS:
            return value
        raise self._rejected()


@dataclass(frozen=True, slots=True)
class Scope:
    """How many replicas each key has: `n` in each of so many data centres. `is_alone`: no cluster."""

    n: int
    centre_count: int = 1
    is_alone: bool = False

    @classmethod
    def of(cls, config: Config) -> Scope:
        return cls(config.n, config.centre_count, not config.nodes)

    @property
    def replica_count(self) -> int:
        return self.n * self.centre_count

    def count(self, level: Level) -> int:
        """The number of replicas that a level means. Raises Rejected, with what is allowed."""
        if isinstance(level, int):
            if level > self.replica_count:
                raise Rejected(f"must be at most {self._bound}")
            return level
        if level in BY_CENTRE and self.centre_count > 1:
            raise Rejected(
                "must be a number, ONE, QUORUM or ALL: replicas are not counted by data centre yet, "
                f"and the nodes are in {self.centre_count}"
            )
        counts = {"ONE": 1, "ALL": self.replica_count}
        return counts.get(level, self.replica_count // 2 + 1)

    @property
    def _bound(self) -> str:
        if self.is_alone:
            return "1: a node alone holds each key once"
        if self.centre_count > 1:
            return f"{self.replica_count}, cluster.n in each of {self.centre_count} data centres"
        return f"cluster.n ({self.n})"


@dataclass(frozen=True, slots=True)
class Consistency:
    """What a connection or a request wants: how many replicas, 0 where it says nothing."""

    r: int = 0
    w: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """R and W of a command, and who decided each: request, connection, policy or configuration."""

    r: int
    w: int
    r_source: str
    w_source: str


def decide(
    usual: Consistency,
    policies: Policies | None,
    keys: Iterable[bytes],
    connection: Consistency | None,
    request: Consistency | None = None,
) -> Decision:
    """Who has the last word about R and W of a command on these keys; `usual` is what the configuration says."""
    r, w, r_source, w_source = usual.r, usual.w, "configuration", "configuration"
    rules = [policies.find(key) for key in keys] if policies is not None else []
    if any(rules):
        reads = [(rule.r, "policy") if rule and rule.r else (r, r_source) for rule in rules]
        writes = [(rule.w, "policy") if rule and rule.w else (w, w_source) for rule in rules]
        r, r_source = max(reads)
        w, w_source = max(writes)
    for said, source in ((connection, "connection"), (request, "request")):
        if said is not None and said.r:
            r, r_source = said.r, source
        if said is not None and said.w:
            w, w_source = said.w, source
    return Decision(r, w, r_source, w_source)


def level_of(name: str, word: bytes, scope: Scope) -> int:
    """The number of replicas that a client's word means. Raises ReplyError; `name` is what was to be set."""
    number = integer_or_none(word)
    text = word.decode("latin-1").upper()
    if number is None and text not in WORDS:
        raise ReplyError(f"ERR {name} must be a number of replicas or one of {', '.join(WORDS)}")
    if number is not None and number < 1:
        raise ReplyError(f"ERR {name} {number}: must be at least 1")
    try:
        return scope.count(text if number is None else number)
    except Rejected as rejected:
        raise ReplyError(f"ERR {name} {text}: {rejected}") from None


@dataclass(frozen=True, slots=True)
class Request:
    """A command out of KV.WITH, and what was asked for it. `timeout_ms` 0: as the configuration says."""

    command: Command
    args: list[bytes]
    consistency: Consistency
    timeout_ms: int = 0


def behind_with(args: list[bytes]) -> int:
    """Where the command begins in the arguments of KV.WITH; their number if there is none."""
    at = 1
    while at < len(args) and args[at].upper() in (b"R", b"W", b"TIMEOUT"):
        at += 2
    return min(at, len(args))


def unwrapped(args: list[bytes], scope: Scope, timeout_max_ms: int) -> Request:
    """What a KV.WITH asks. Raises ReplyError."""
    start = behind_with(args)
    if start >= len(args):
        raise wrong_arity("KV.WITH")
    consistency, timeout_ms = Consistency(), 0
    seen: set[bytes] = set()
    for at in range(1, start, 2):
        name, word = args[at].upper(), args[at + 1]
        if name in seen:
            raise ReplyError(f"ERR KV.WITH: {name.decode()} stands there twice")
        seen.add(name)
        if name == b"R":
            consistency = replace(consistency, r=level_of("R", word, scope))
        elif name == b"W":
            consistency = replace(consistency, w=level_of("W", word, scope))
        else:
            timeout_ms = _timeout_ms(word, timeout_max_ms)
    inner = args[start:]
    command = TABLE.resolve(inner)
    if command.name == "KV.WITH":
        raise NESTED
    if not command.keys or Flag.CONTROL in command.flags:
        shown = command.name.replace("|", " ")
        raise ReplyError(f"ERR KV.WITH takes a command on keys, which {shown} is not")
    return Request(command, inner, consistency, timeout_ms)


def _timeout_ms(word: bytes, max_ms: int) -> int:
    value = integer_or_none(word)
    if value is None or not 1 <= value <= max_ms:
        raise ReplyError(
            f"ERR TIMEOUT must be from 1 to {max_ms} milliseconds (cluster.timeout_ms)"
        )
    return value
