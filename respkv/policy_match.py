"""Which policy a key has: the longest match, found in a fraction of a microsecond.

Not what a policy says (`policy.py`).

The *length* of a prefix is the number of its bytes; that of a pattern the number of bytes that must stand
in a key as they are: `session:*:tmp` has 12, `user:?[ab]*` has 5. The longest match counts. Of equally long
ones a prefix counts before a pattern, and of patterns the one that stands first in the file.

Every command asks, so what cannot match is not looked at: the first byte of the key leads to a *group* of
steps, which begins with what they have in common. A *step* is a prefix, a dict of prefixes of one length, or
a pattern; the longest come first.

Core. Hot: see bench/policy.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.slot import Key, Row, key_of
from respkv.consistency import Scope
from respkv.glob import literal_prefix, matcher, parse
from respkv.policy import Policy


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """A policy, ready for use. `r` and `w` are 0 where it says nothing."""

    policy: Policy
    r: int
    w: int
    ttl_ms: int

    @classmethod
    def of(cls, policy: Policy, scope: Scope) -> Rule:
        """Raises Rejected if the cluster cannot carry it out."""
        r, w = scope.count(policy.read), scope.count(policy.write)
        return cls(policy, r, w, policy.ttl_s * 1000)


TABLE_MIN = 4  # So many prefixes of one length are faster looked up than compared.
# What a key has to begin with; the rule; what it has to end with, if anything, and its least length; or, if there
# is no rule, whom to ask.
_Step = tuple[bytes, Rule | None, bytes | None, int, Callable[[Key], Rule | None] | None]
# What all steps of a first byte want at the beginning, the steps, and the rule of a key that has no more than that.
_Group = tuple[bytes, tuple[_Step, ...], Rule | None]


class Policies:
    """All policies of a node. There is none where the configuration has no table."""

    def __init__(self, policies: Sequence[Policy], scope: Scope) -> None:
        self.rules = tuple(Rule.of(policy, scope) for policy in policies)
        self.touches_writes = any(rule.ttl_ms or rule.policy.value_bytes_max for rule in self.rules)
        self._groups: list[_Group | None] = [
            _group([rule for rule in self.rules if _may_begin(rule, byte)]) for byte in range(256)
        ]
        self._of_nothing = next((rule for rule in self.rules if rule.policy.pattern == "*"), None)

    def find(self, key: Key) -> Rule | None:
        """The rule of a key; None if there is none for it."""
        try:
            group = self._groups[key[0]]
        except IndexError:
            return self._of_nothing
        if group is None:
            return None
        start, steps, last = group
        if not key.startswith(start):
            return None
        for head, rule, tail, length, ask in steps:
            if key.startswith(head):
                if rule is None:
                    assert ask is not None
                    rule = ask(key)
                    if rule is not None:
                        return rule
                elif tail is None or (key.endswith(tail) and len(key) >= length):
                    return rule
        return last

    def plain_count(self, commands: Sequence[list[bytes]], start: int = 0) -> int:
        """How many commands from `start` on have a first key without a rule, one after the other."""
        for at in range(start, len(commands)):
            if len(commands[at]) > 1 and self.find(commands[at][1]) is not None:
                return at - start
        return len(commands) - start

    def keeps_one(self, row: Row) -> bool:
        """Whether only the winner of several versions of a row is kept."""
        rule = self.find(key_of(row))
        return rule is not None and rule.policy.last_writer_wins

    @property
    def keeps_one_somewhere(self) -> bool:
        return any(rule.policy.last_writer_wins for rule in self.rules)

    def least_w(self, usual: int) -> int:
        """The smallest W of any key."""
        return min([usual, *(rule.w for rule in self.rules if rule.w)])

    def greatest(self, usual_r: int, usual_w: int) -> tuple[int, int]:
        """The largest R and W of any key."""
        return (
            max([usual_r, *(rule.r for rule in self.rules)]),
            max([usual_w, *(rule.w for rule in self.rules)]),
        )


def length_of(policy: Policy) -> int:
    """How much of a key a policy pins down: see the module's docstring."""
    if policy.prefix:
        return len(policy.prefix.encode())
    tokens = parse(policy.pattern.encode())
    return sum(1 for token in tokens if token is not None and len(token) == 1)


def _may_begin(rule: Rule, byte: int) -> bool:
    """Whether a key that this rule is for may begin with a byte."""
    policy = rule.policy
    head = policy.prefix.encode() or literal_prefix(policy.pattern.encode())
    return not head or head[0] == byte


def _group(rules: Sequence[Rule]) -> _Group | None:
    if not rules:
        return None
    steps = _steps(rules)
    start = _common_start([step[0] for step in steps])
    head, rule, tail, _, ask = steps[-1]
    if head == start and tail is None and ask is None:
        return start, steps[:-1], rule
    return start, steps, None


def _steps(rules: Sequence[Rule]) -> tuple[_Step, ...]:
    steps: list[_Step] = []
    for length in sorted({length_of(rule.policy) for rule in rules}, reverse=True):
        same = [rule for rule in rules if length_of(rule.policy) == length]
        prefixes = {rule.policy.prefix.encode(): rule for rule in same if rule.policy.prefix}
        if len(prefixes) < TABLE_MIN:
            steps += [(prefix, rule, None, 0, None) for prefix, rule in prefixes.items()]
        else:
            start = _common_start(list(prefixes))
            steps.append((start, None, None, 0, _ask_table(prefixes, length)))
        steps += [_step_of(rule) for rule in same if not rule.policy.prefix]
    return tuple(steps)


def _ask_table(prefixes: dict[bytes, Rule], length: int) -> Callable[[Key], Rule | None]:
    return lambda key: prefixes.get(key[:length])


def _step_of(rule: Rule) -> _Step:
    pattern = rule.policy.pattern.encode()
    head, tail = literal_prefix(pattern), _literal_end(pattern)
    tokens = parse(pattern)
    if tokens.count(None) == 1 and len(tokens) == len(head) + 1 + len(tail) and head:
        return head, rule, tail, len(head) + len(tail), None  # Only a star between them.
    matches = matcher(pattern)
    return head, None, None, 0, lambda key: rule if key.endswith(tail) and matches(key) else None


def _common_start(texts: Sequence[bytes]) -> bytes:
    """What all of them begin with."""
    first, last = min(texts), max(texts)
    count = next((at for at, byte in enumerate(first) if last[at : at + 1] != bytes([byte])), None)
    return first[:count]


def _literal_end(pattern: bytes) -> bytes:
    """What every text that matches ends with."""
    tail = bytearray()
    for token in reversed(parse(pattern)):
        if token is None or len(token) != 1:
            break
        tail += bytes(token)
    return bytes(reversed(tail))
