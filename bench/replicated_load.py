"""What a load on a replicated store consists of: its pipelines, and what answers to expect (core).

It sends nothing. A *pipeline* is a number of SETs or GETs with random keys of one node, sent in one
piece. Redis acknowledges a SET before any replica has it, so its SETs are followed by `WAIT 1 MS`:
after each one, or after every sixteenth as orientation (then up to sixteen are in doubt together).

The answers to a pipeline come in a fixed order, its *pattern*: for each answer its kind, and how many
operations are complete with it. A SET followed by WAIT is complete when WAIT is answered.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from bench.connection import Address, encode_command
from bench.openloop_histogram import Counts, merged
from bench.openloop_schedule import GET_TEMPLATE, Values, set_template
from bench.replicated_route import Route, keys_by_address, shared_out

# Kinds of answers.
OK: Final = 0
VALUE: Final = 1
WAITED: Final = 2

Pattern: TypeAlias = Sequence[tuple[int, int]]
"""For each answer of a pipeline: its kind, and how many operations are complete with it."""

ERROR_TEXTS_MAX: Final = 20
_NUMBERS: Final = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Wait:
    """WAIT after every so many SETs, and after the last one of a pipeline."""

    every: int
    timeout_ms: int
    replica_count: int = 1

    def encoded(self) -> bytes:
        return encode_command(b"WAIT", b"%d" % self.replica_count, b"%d" % self.timeout_ms)


@dataclass(frozen=True, slots=True)
class Job:
    """One run of the generator. `rate` is operations a second; None means a closed loop."""

    command: str
    pipeline: int
    wait: Wait | None
    route: Route
    connection_count: int
    key_count: int
    value_bytes: int
    seconds: float
    rate: int | None
    seed: int

    @property
    def pipelines_per_s(self) -> int:
        """How many pipelines are due in a second, at a fixed rate."""
        assert self.rate is not None
        return max(1, self.rate // self.pipeline)


@dataclass(slots=True)
class Outcome:
    """What the generator did and saw. An answer that is not what it should be is an error."""

    answered_count: int = 0
    unanswered_count: int = 0
    hit_count: int = 0
    missed_count: int = 0
    error_count: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latencies: Counts = field(default_factory=dict)
    lags: Counts = field(default_factory=dict)
    gave_up: bool = False
    cpu_s: float = 0.0
    wall_s: float = 0.0

    def add_error(self, text: str) -> None:
        """Count an error by its text without numbers, while there are not too many different ones."""
        self.error_count += 1
        text = _NUMBERS.sub("N", text)
        if text not in self.errors and len(self.errors) >= ERROR_TEXTS_MAX:
            text = "others"
        self.errors[text] += 1


def pattern(job: Job) -> Pattern:
    """The answers that one pipeline of a job gets."""
    if job.command == "GET":
        return [(VALUE, 1)] * job.pipeline
    if job.wait is None:
        return [(OK, 1)] * job.pipeline
    answers = []
    for begin in range(0, job.pipeline, job.wait.every):
        count = min(job.wait.every, job.pipeline - begin)
        answers += [(OK, 0)] * count + [(WAITED, count)]
    return answers


class Pipelines:
    """Encodes the pipelines of a job, one after another. Hot: some 0.7 us for a SET."""

    def __init__(self, job: Job) -> None:
        rng = random.Random(job.seed)
        self._random, self._choices = rng.random, rng.choices
        self._make = Values(job.value_bytes, rng).make
        self._count = job.pipeline
        self._is_read = job.command == "GET"
        self._tails = _tails(job)
        # A SET up to its value: the template without a value, and without the line end behind it.
        template = GET_TEMPLATE if self._is_read else set_template(job.value_bytes)
        self._heads = {
            address: [
                template % name if self._is_read else (template % (name, b""))[:-2]
                for name in names
            ]
            for address, names in keys_by_address(job.route, job.key_count).items()
        }

    def addresses(self, connection_count: int) -> list[Address]:
        """Where each connection goes; the addresses take turns."""
        weights = {address: len(heads) for address, heads in self._heads.items()}
        left = shared_out(connection_count, weights)
        turns: list[Address] = []
        while any(left.values()):
            for address in [each for each, count in left.items() if count]:
                turns.append(address)
                left[address] -= 1
        return turns

    def next(self, address: Address) -> bytes:
        known = self._heads[address]
        # `choices` costs 2 us, however few are chosen.
        one = [known[int(self._random() * len(known))]]
        heads = one if self._count == 1 else self._choices(known, k=self._count)
        if self._is_read:
            return b"".join(heads)
        make = self._make
        parts: list[bytes] = []
        for head, tail in zip(heads, self._tails, strict=True):
            parts += (head, make(), tail)
        return b"".join(parts)


def divided(job: Job, count: int) -> list[Job]:
    """The job as `count` generators carry it out together."""
    return [
        dataclasses.replace(
            job,
            connection_count=_part(job.connection_count, number, count),
            rate=None if job.rate is None else _part(job.rate, number, count),
            seed=job.seed * count + number,
        )
        for number in range(count)
    ]


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """What several generators saw. CPU time is that of the busiest, which is the one that limits."""
    return Outcome(
        answered_count=sum(each.answered_count for each in outcomes),
        unanswered_count=sum(each.unanswered_count for each in outcomes),
        hit_count=sum(each.hit_count for each in outcomes),
        missed_count=sum(each.missed_count for each in outcomes),
        error_count=sum(each.error_count for each in outcomes),
        errors=sum((each.errors for each in outcomes), Counter[str]()),
        latencies=merged(each.latencies for each in outcomes),
        lags=merged(each.lags for each in outcomes),
        gave_up=any(each.gave_up for each in outcomes),
        cpu_s=max(each.cpu_s for each in outcomes),
        wall_s=max(each.wall_s for each in outcomes),
    )


def _tails(job: Job) -> list[bytes]:
    """What follows the value of each SET of a pipeline."""
    end = b"\r\n"
    if job.wait is None:
        return [end] * job.pipeline
    wait = end + job.wait.encoded()
    every, last = job.wait.every, job.pipeline
    return [wait if at % every == 0 or at == last else end for at in range(1, last + 1)]


def _part(whole: int, number: int, count: int) -> int:
    return whole * (number + 1) // count - whole * number // count
