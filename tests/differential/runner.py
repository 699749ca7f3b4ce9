"""One round: every command of the tables, in lock-step on two servers, compared.

Not the judge (`natural`) nor the author (`command`, the tables). Each call is sent to both servers and both are
awaited, so that their states stay equal; every 500 commands both are dumped and the dumps compared. A difference is
recorded with what led to it and with a shrunk reproduction; then both servers are emptied and the round goes on, so
that one run shows many.

The order and arguments of commands come from the seed alone, never from a reply: number n of a seed is always the
same command, whatever the servers answered before.
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from .command import Call, Command, Draw, Scene, SceneMaker, plan
from .coverage import Coverage
from .natural import compare
from .shape import MILLISECONDS_APART_MAX
from .shrink import relevant, shrink
from .side import Dump, Side, StoredKey
from .wire import Answer, Closed, Reply, Unanswered, WireError, quote, render

DUMP_EVERY = 500
PLANT_EVERY = 20  # Scenes.
FINDINGS_MAX = 20
FINDINGS_OF_A_KIND_MAX = 2
BREAKS_MAX = 5  # Each costs a timeout or a reconnection: a server that breaks off so often is not looked at further.
_DRAWS_MAX = 20
_PLANTED_OFTEN = 3
_PLANTED_ALL = 6
_SHOWN_COMMANDS = 8
_LOG_COMMANDS = 4000
_HISTORY_SCENES = 4000
_SHRINK_S = 4.0
_LATEST_SCENES = 400
_SHRINK_TIMEOUT_S = 1.0
_EMPTYING = frozenset({"FLUSHALL", "FLUSHDB", "SWAPDB"})

Progress = Callable[[int, int, int], None]
_BROKEN = (Unanswered, Closed, WireError, OSError)


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference. `reproduction` is a shorter run that shows it, where one was found in time."""

    what: str  # The command, or `dump` where the databases differ.
    number: int
    shown: str
    problem: str
    answers: tuple[str, str]
    labels: tuple[str, str]
    led_here: tuple[str, ...]
    reproduction: tuple[str, ...] | None

    def __str__(self) -> str:
        width = max(map(len, self.labels))
        lines = [f"command {self.number}: {self.shown}", f"  {self.problem}"]
        lines += [
            f"  {label:>{width}}: {answer}"
            for label, answer in zip(self.labels, self.answers, strict=True)
        ]
        lines += ["  the last commands on these keys:", *(f"    {line}" for line in self.led_here)]
        if self.reproduction is not None:
            lines += [
                "  on empty servers this is enough:",
                *(f"    {line}" for line in self.reproduction),
            ]
        return "\n".join(lines)


class _Differs(Exception):
    """Ends a scene at its first difference. `keys` are those that a report looks for."""

    def __init__(
        self, shown: str, problem: str, answers: tuple[str, str], keys: frozenset[bytes], what: str
    ) -> None:
        super().__init__(problem)
        self.shown = shown
        self.problem = problem
        self.answers = answers
        self.keys = keys
        self.what = what


def show(call: Call) -> str:
    """A call as one would type it; the connection in front where it is not the first."""
    where = f"{call.connection}> " if call.connection else ""
    if call.only_reads:
        return f"{where}(reads the next reply)"
    if call.bytes_as_sent is not None:
        return f"{where}(as sent) {call.bytes_as_sent[:200]!r}"
    return where + " ".join(quote(a) if isinstance(a, bytes) else str(a) for a in call.arguments)


@dataclass(slots=True)
class Round:
    """One round with one seed over one protocol. `left` is right by definition."""

    left: Side
    right: Side
    seed: str
    commands: Sequence[Command]
    findings_max: int = FINDINGS_MAX
    # A scene in which the servers are known to differ is drawn anew.
    is_left_out: Callable[[Scene], bool] = lambda _: False
    coverage: Coverage = field(default_factory=Coverage)
    findings: list[Finding] = field(default_factory=list)
    # All differences by command, with those beyond the limits.
    found: Counter[str] = field(default_factory=Counter)
    number: int = 0
    _breaks: int = 0
    _lag_s: float = 0.0
    _log: deque[tuple[int, Call, Reply | None]] = field(
        default_factory=lambda: deque(maxlen=_LOG_COMMANDS)
    )
    _history: deque[Scene] = field(default_factory=lambda: deque(maxlen=_HISTORY_SCENES))

    def run(self, progress: Progress = lambda done, planned, found: None) -> None:
        """Play the round. Raises `OSError` and its like when a server cannot be reached any more."""
        rng = random.Random(f"{self.seed}/{self.left.resp}")
        draw = self._draw(rng)
        planned = plan(self.commands, rng)
        self._start_afresh()
        dumped_at = 0
        for done, (command, source) in enumerate(planned, start=1):
            scene = self._scene(draw, command, source)
            if scene is None:
                continue
            self._play(scene)
            empties = any(call.name in _EMPTYING for call in scene)
            for call in draw.plant(
                _PLANTED_ALL if empties else _PLANTED_OFTEN if done % PLANT_EVERY == 0 else 0
            ):
                self._play((call,))
            if self.number - dumped_at >= DUMP_EVERY or done == len(planned):
                dumped_at = self.number
                self._guarded((), self._check_dumps)
            progress(done, len(planned), self.found.total())
            if len(self.findings) >= self.findings_max or self._breaks >= BREAKS_MAX:
                return

    def _scene(self, draw: Draw, command: Command, source: str | SceneMaker) -> Scene | None:
        """A scene that is not left out; None if its source gives no other."""
        for _ in range(_DRAWS_MAX):
            scene = draw.scene(source) if isinstance(source, str) else source(draw)
            if command.varies_arity:
                scene = draw.with_other_arity(scene)
            if not self.is_left_out(scene):
                return scene
        return None

    def _draw(self, rng: random.Random) -> Draw:
        return Draw(rng, self.left.resp, {command.name: command for command in self.commands})

    def _start_afresh(self) -> None:
        """Empty servers, then values for most keys, from a seed of their own: the round's commands stay as they are."""
        self._reset()
        draw = self._draw(random.Random(f"{self.seed}/planted"))
        for call in draw.plant(_PLANTED_ALL):
            self._exchange(call)
            self._history.append((call,))

    def _reset(self) -> None:
        self.left.reset()
        self.right.reset()
        self._history.clear()

    def _play(self, scene: Scene) -> None:
        first = self.number

        def each_call() -> None:
            for call in scene:
                self.number += 1
                answers = self._exchange(call)
                self._note(call, answers)
                self._judge(call, answers)

        self._guarded(scene, each_call)
        self.number = first + len(scene)

    def _play_each(self, calls: Scene) -> None:
        """Each call as a scene of its own, so that each can be left out of a reproduction."""
        for call in calls:
            self._play((call,))

    def _guarded(self, scene: Scene, play: Callable[[], None]) -> None:
        """Play; record a difference, and start afresh after it."""
        first = self.number
        try:
            play()
        except _Differs as difference:
            self._record(difference, scene[: self.number - first])
            self._start_afresh()
        else:
            self._history.append(scene)

    def _exchange(self, call: Call) -> tuple[Answer, Answer] | None:
        """Send to both, then read from both; None where no reply is due. A server that breaks off differs."""
        started = time.monotonic()
        sides = (self.left, self.right)
        answers: list[Answer] = []
        side = self.left
        try:
            for side in sides:
                side.send(call)
            if not (call.is_silent or call.is_deferred):
                for side in sides:
                    answers.append(side.receive(call))
            self._lag_s = max(self._lag_s, time.monotonic() - started)
            if call.drops or call.settles or call.is_deferred:
                for side in sides:
                    side.finish(call)
        except _BROKEN as error:
            raise _broken_off(side, call, error) from error
        if call.pause_s:
            time.sleep(call.pause_s)
        return (answers[0], answers[1]) if answers else None

    def _note(self, call: Call, answers: tuple[Answer, Answer] | None) -> None:
        self._log.append((self.number, call, answers[0].reply if answers else None))
        if not call.is_deferred:
            self.coverage.add(call, answers[0] if answers else None)

    def _judge(self, call: Call, answers: tuple[Answer, Answer] | None) -> None:
        if answers is None:
            return
        problem = compare(call, *answers, self._lag_s)
        chosen = answers[1].reply
        if (
            problem is None
            and call.name == "RANDOMKEY"
            and chosen.kind == "$"
            and not chosen.is_nil
        ):
            problem = None if self.right.has(chosen.text) else "not a key that exists"
        if problem is not None:
            shown = (_shown(answers[0]), _shown(answers[1]))
            raise _Differs(show(call), problem, shown, call.keys, call.counts_as or call.name)

    def _check_dumps(self) -> None:
        dumps: list[Dump] = []
        side = self.left
        try:
            for side in (self.left, self.right):
                dumps.append(side.dump())
        except _BROKEN as error:
            raise _broken_off(side, None, error) from error
        left, right = dumps
        for place in sorted(left.keys() | right.keys()):
            a, b = left.get(place), right.get(place)
            if not self._is_alike(a, b):
                shown = f"the databases differ at database {place[0]}, key {quote(place[1])}"
                answers = (str(a or "absent"), str(b or "absent"))
                raise _Differs(
                    shown, "found by comparing dumps", answers, frozenset({place[1]}), "dump"
                )

    def _is_alike(self, a: StoredKey | None, b: StoredKey | None) -> bool:
        if a is None or b is None or a == b:
            return a == b
        apart_ms = abs(a.expires_at_ms - b.expires_at_ms)
        have_expiry = a.expires_at_ms >= 0 and b.expires_at_ms >= 0
        is_near = have_expiry and apart_ms <= MILLISECONDS_APART_MAX + self._lag_s * 1000
        return is_near and replace(a, expires_at_ms=b.expires_at_ms) == b

    def _record(self, difference: _Differs, scene: Scene) -> None:
        self.found[difference.what] += 1
        self._breaks += isinstance(difference.__cause__, _BROKEN)
        if self.found[difference.what] > FINDINGS_OF_A_KIND_MAX:
            return
        keys = difference.keys or frozenset(key for call in scene for key in call.keys)
        related = [one for one in self._log if not keys or one[1].keys & keys]
        led_here = [
            f"{number}: {show(call)} -> {render(reply, 120) if reply else '(no reply due)'}"
            for number, call, reply in related[-_SHOWN_COMMANDS:]
        ]
        finding = Finding(
            what=difference.what,
            number=self.number,
            shown=difference.shown,
            problem=difference.problem,
            answers=difference.answers,
            labels=(self.left.label, self.right.label),
            led_here=tuple(led_here),
            reproduction=self._shrunk(scene, keys | {key for call in scene for key in call.keys}),
        )
        self.findings.append(finding)

    def _shrunk(self, scene: Scene, keys: frozenset[bytes]) -> tuple[str, ...] | None:
        deadline = time.monotonic() + _SHRINK_S

        def is_late() -> bool:
            return time.monotonic() > deadline

        kept_timeouts_s = self.left.timeout_s, self.right.timeout_s
        for side in (self.left, self.right):
            side.timeout_s = min(side.timeout_s, _SHRINK_TIMEOUT_S)
        try:
            # The keys tell what matters, mostly; what a connection or the server remembers is among the latest.
            for pool in (relevant(self._history, keys), tuple(self._history)[-_LATEST_SCENES:]):
                scenes = shrink(pool, lambda before: self._still_differs(before, scene), is_late)
                if scenes is not None:
                    return tuple(show(call) for part in (*scenes, scene) for call in part)
        except _BROKEN:
            return None
        finally:
            self.left.timeout_s, self.right.timeout_s = kept_timeouts_s
        return (
            None
            if scenes is None
            else tuple(show(call) for part in (*scenes, scene) for call in part)
        )

    def _still_differs(self, before: Sequence[Scene], scene: Scene) -> bool:
        """Play on empty servers. What differs before the scene itself is not what is looked for."""
        history = tuple(self._history)
        self._reset()
        self._history.extend(history)
        try:
            for call in (call for part in before for call in part):
                self._exchange(call)
        except _Differs:
            return False
        try:
            for call in scene:
                self._judge(call, self._exchange(call))
            if not scene:
                self._check_dumps()
        except _Differs:
            return True
        return False


def _broken_off(side: Side, call: Call | None, error: Exception) -> _Differs:
    shown = show(call) if call else "a dump of all databases"
    problem = f"{side.label} did not answer properly: {type(error).__name__}: {error}"
    keys = call.keys if call else frozenset[bytes]()
    what = (call.counts_as or call.name) if call else "dump"
    return _Differs(shown, problem, ("", ""), keys, what)


def _shown(answer: Answer) -> str:
    pushes = "".join(f" after push {render(push)}" for push in answer.pushes)
    return render(answer.reply) + pushes
