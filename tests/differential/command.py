"""What a command is to the tester, and how templates become calls.

Not a list of commands (`strings`, `keyspace`, ...) and no network. A `Command` declares templates; a template makes a
`Scene`, the calls that belong together. Both are plain data from a seed, so that a run can be repeated and cut down.

A template is one line: calls separated by ` ; `, arguments separated by blanks. An argument is

    GET, 0, -1      a literal; upper case names of `Command.options` are counted as used
    =nosuch         a literal in lower case
    key, ttl-s      a kind of `argument.KINDS`
    @key, @key2     a kind drawn once per scene: the same word gives the same argument again; digits tell two apart
    &id2            what differs by server: the id, address (`&addr2`) or server address (`&laddr2`) of a connection,
                    and `&cursor`, which makes the runner iterate to the end
    &resp           the protocol of this run
    command-name    one of the commands of the tables
    !2              at the end of a call: the server closes connection 2 upon it; several may follow
    ~               at the end of a call: it gets no reply
    1>              at the start of a call: it goes over connection 1 instead of 0 (or 2: `2>`)

Connection 0 does most; 1 is the second client of watches and invalidations; 2 is the one that is killed, quits, tracks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from .argument import KEYS, KINDS, MISSING_KEYS, draw_suitable_value

CONNECTION_COUNT = 3
TIMES_MIN = 200
OPTION_TIMES_MIN = 50
_MARGIN = 1.1  # Variants that drop or add arguments cost some of what was planned.
_BAD_SHARE = 0.22
_VARIANT_CHANCE = 0.05  # Of one argument too few, or one too many.
_ODD_CASE_CHANCE = 0.1
_KNOWN_KEYS = frozenset(KEYS + MISSING_KEYS)

_SAVING = ("SAVE", "BGSAVE", "BGREWRITEAOF")

CONTAINERS = frozenset(
    ("CLIENT", "COMMAND", "CONFIG", "OBJECT", "MEMORY", "SLOWLOG", "LATENCY", "DEBUG", "ACL")
)


@dataclass(frozen=True, slots=True)
class Reference:
    """An argument that each server has its own value for: `what` is id, addr, laddr or cursor."""

    what: str
    connection: int = 0

    def __str__(self) -> str:
        return (
            f"<{self.what} of connection {self.connection}>"
            if self.what != "cursor"
            else "<cursor>"
        )


Argument = bytes | Reference


@dataclass(frozen=True, slots=True)
class Call:
    """One command over one connection, and what the runner has to do about it."""

    arguments: tuple[Argument, ...]
    connection: int = 0
    options: frozenset[str] = frozenset()  # Those of the command's options that the template used.
    name: str = ""  # `GET`, `CLIENT LIST`: what is counted, and what rule applies.
    counts_as: str = ""  # Counted under this name instead.
    queued: tuple[Call, ...] = ()  # For EXEC: what it will run, each with its own rule.
    is_silent: bool = False  # No reply is due.
    is_deferred: bool = (
        False  # The reply is read by the next `only_reads` call of the same connection.
    )
    only_reads: bool = False
    drops: frozenset[int] = frozenset()  # Connections that the server closes upon this.
    settles: bool = False  # Wait afterwards until no background save runs.
    pause_s: float = 0.0  # Wait afterwards.
    bytes_as_sent: bytes | None = None  # Instead of an encoded request.

    @property
    def iterates(self) -> bool:
        return Reference("cursor") in self.arguments

    @property
    def keys(self) -> frozenset[bytes]:
        return frozenset(a for a in self.arguments if isinstance(a, bytes) and a in _KNOWN_KEYS)


Scene = tuple[Call, ...]
SceneMaker = Callable[["Draw"], Scene]


@dataclass(frozen=True, slots=True)
class Command:
    """One command of the list: how to call it well and badly.

    `good` templates mostly give replies that are neither errors nor nil, `bad` ones errors. `scenes` are functions for
    what a template cannot say. `refused_because` names the reason where errors or nils are the most that a client
    can get here, and lifts the requirement that half of the replies are more than that.
    """

    name: str
    good: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    scenes: tuple[SceneMaker, ...] = ()
    varies_arity: bool = True
    refused_because: str = ""


@dataclass(slots=True)
class Draw:
    """A seeded source of arguments for one run. `resp` is the protocol that the connections speak."""

    rng: random.Random
    resp: int
    commands: dict[str, Command]
    _same: dict[str, tuple[Argument, ...]] = field(default_factory=dict)

    def scene(self, template: str) -> Scene:
        """The calls of a template."""
        self._same.clear()
        return self.calls(template)

    def calls(self, template: str) -> Scene:
        """The calls of a template, with the words marked `@` as they were drawn earlier in this scene."""
        return link_transactions([self._call(text.split()) for text in template.split(" ; ")])

    def _call(self, words: list[str]) -> Call:
        connection = 0
        if words[0][:-1].isdigit() and words[0].endswith(">"):
            connection = int(words.pop(0)[:-1])
        closing = {int(word[1:]) for word in words if word.startswith("!")}
        is_silent = words[-1] == "~"
        words = [word for word in words if not word.startswith(("!", "~"))]
        arguments: list[Argument] = []
        for word in words:
            arguments.extend(self._argument(word))
        name = " ".join(words[:2]) if words[0] in CONTAINERS and len(words) > 1 else words[0]
        known = self.commands.get(name)
        used = frozenset(words).intersection(known.options) if known else frozenset[str]()
        return Call(
            tuple(arguments),
            connection,
            used,
            name,
            is_silent=is_silent,
            drops=frozenset({connection} if name == "QUIT" else closing),
            settles=name in _SAVING,
        )

    def _argument(self, word: str) -> tuple[Argument, ...]:
        if word.startswith("@"):
            if word not in self._same:
                self._same[word] = self._argument(word[1:].rstrip("0123456789"))
            return self._same[word]
        if word == "command-name":
            return (self.rng.choice(self._names()),)
        if word == "&resp":
            return (b"%d" % self.resp,)
        if word.startswith("&"):
            what = word[1:].rstrip("0123456789")
            return (Reference(what, int(word[1 + len(what) :] or 0)),)
        if word.startswith("="):
            return (word[1:].encode("latin-1"),)
        if word in KINDS:
            drawn = KINDS[word](self.rng)
            return drawn if isinstance(drawn, tuple) else (drawn,)
        assert word == word.upper(), f"{word!r} is neither a kind nor a literal"
        return (self._literal(word),)

    def _names(self) -> list[bytes]:
        """Every command of the tables as COMMAND INFO names it: `get`, `client|list`."""
        words = [name for name in self.commands if name == name.upper()]
        return [name.lower().replace(" ", "|").encode() for name in words]

    def _literal(self, word: str) -> bytes:
        if self.rng.random() >= _ODD_CASE_CHANCE:
            return word.encode()
        odd = (
            word.lower(),
            word.capitalize(),
            "".join(self.rng.choice((c, c.lower())) for c in word),
        )
        return self.rng.choice(odd).encode()

    def with_other_arity(self, scene: Scene) -> Scene:
        """Now and then the scene with its last call one argument shorter or longer.

        Scenes of several calls are left alone: what follows may rely on what precedes.
        """
        if len(scene) != 1 or self.rng.random() >= _VARIANT_CHANCE:
            return scene
        (call,) = scene
        if len(call.arguments) > 1 and self.rng.random() < 0.6:
            name = call.name if len(call.arguments) > 2 else call.name.split()[0]
            return (replace(call, arguments=call.arguments[:-1], name=name, options=frozenset()),)
        extra = self._argument(self.rng.choice(("junk", "key", "small")))
        return (replace(call, arguments=call.arguments + extra, options=frozenset()),)

    def plant(self, count: int, connection: int = 0) -> Scene:
        """SET `count` of the keys to what their names promise, a third of them with an expiry."""
        calls = []
        for key in self.rng.sample(KEYS, count):
            value = draw_suitable_value(self.rng, key)
            expiry = self.rng.choice(("", "", "", "", "EX ttl-s", "PXAT at-ms"))
            (call,) = self.scene(f"SET {expiry}".strip())
            arguments = (call.arguments[0], key, value, *call.arguments[1:])
            calls.append(replace(call, arguments=arguments, connection=connection))
        return tuple(calls)


def link_transactions(calls: Sequence[Call]) -> Scene:
    """Tell each EXEC which calls of its connection were queued, so that each element is judged by its own rule."""
    linked: list[Call] = []
    queues: dict[int, list[Call] | None] = {}
    for call in calls:
        queue = queues.get(call.connection)
        if call.name == "EXEC":
            linked.append(replace(call, queued=tuple(queue or ())))
            queues[call.connection] = None
            continue
        if call.name == "MULTI" and queue is None:
            queues[call.connection] = []
        elif call.name in ("DISCARD", "RESET", "QUIT"):
            queues[call.connection] = None
        elif queue is not None and call.name not in ("MULTI", "WATCH"):
            queue.append(call)
        linked.append(call)
    return tuple(linked)


def plan(commands: Sequence[Command], rng: random.Random) -> list[tuple[Command, str | SceneMaker]]:
    """One round: every template as often as the contract asks, in random order."""
    planned: list[tuple[Command, str | SceneMaker]] = []
    for command in commands:
        planned += [(command, source) for source in _sources(command)]
    rng.shuffle(planned)
    return planned


def _sources(command: Command) -> Iterator[str | SceneMaker]:
    good: list[str | SceneMaker] = [*command.good, *command.scenes]
    bad_times = int(TIMES_MIN * _BAD_SHARE) if command.bad else 0
    good_times = int(TIMES_MIN * _MARGIN) - bad_times
    # Round-robin, then more of the templates whose options would come too seldom.
    times = {source: good_times // len(good) + 1 for source in good}
    for option in command.options:
        users = [s for s in command.good if option in s.split()]
        assert users or command.scenes, f"no template of {command.name} uses {option}"
        while users and sum(times[s] for s in users) < OPTION_TIMES_MIN * _MARGIN + 3:
            for user in users:
                times[user] += 1
    for source in good:
        yield from [source] * times[source]
    for i in range(bad_times):
        yield command.bad[i % len(command.bad)]
