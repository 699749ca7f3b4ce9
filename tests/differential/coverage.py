"""How often each command and option was sent, and whether that is what the contract asks.

The contract: each command 200 times, each of its options 50 times, half of the replies neither an error nor nil. A
run that sent less proves less than it claims, and so fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .command import OPTION_TIMES_MIN, TIMES_MIN, Call, Command
from .wire import Answer

TELLING_SHARE_MIN = 0.5
_QUEUED = b"+QUEUED\r\n"


@dataclass(slots=True)
class Count:
    """Of one command: how often sent, how often with a telling reply, how often with each option."""

    times: int = 0
    telling: int = 0
    options: Counter[str] = field(default_factory=Counter)

    @property
    def telling_share(self) -> float:
        return self.telling / self.times if self.times else 0.0


@dataclass(slots=True)
class Coverage:
    """Counts by command, over one round or several."""

    counts: dict[str, Count] = field(default_factory=dict)

    def add(self, call: Call, answer: Answer | None) -> None:
        """Count a call and Redis' answer to it; None where none was due. What was only queued is not counted."""
        if answer is not None and answer.reply.raw == _QUEUED:
            return
        count = self.counts.setdefault(call.counts_as or call.name, Count())
        count.times += 1
        count.telling += answer is None or not (answer.reply.is_error or answer.reply.is_nil)
        count.options.update(call.options)

    def merge(self, other: Coverage) -> None:
        for name, count in other.counts.items():
            mine = self.counts.setdefault(name, Count())
            mine.times += count.times
            mine.telling += count.telling
            mine.options += count.options

    def shortfalls(self, commands: Iterable[Command]) -> list[str]:
        """What is less than the contract asks, one line each."""
        lines: list[str] = []
        for command in commands:
            count = self.counts.get(command.name, Count())
            if count.times < TIMES_MIN:
                lines.append(f"{command.name}: sent {count.times} times, {TIMES_MIN} needed")
            if count.telling_share < TELLING_SHARE_MIN and not command.refused_because:
                lines.append(
                    f"{command.name}: {count.telling_share:.0%} of the replies neither error nor nil"
                )
            lines += [
                f"{command.name} {option}: sent {count.options[option]} times, {OPTION_TIMES_MIN} needed"
                for option in command.options
                if count.options[option] < OPTION_TIMES_MIN
            ]
        return lines

    def table(self, commands: Iterable[Command]) -> str:
        """Command, times, telling replies, options with their counts."""
        rows = [f"{'command':<26}{'times':>7}{'telling':>9}  options"]
        for command in commands:
            count = self.counts.get(command.name, Count())
            options = " ".join(f"{option}:{count.options[option]}" for option in command.options)
            rows.append(
                f"{command.name:<26}{count.times:>7}{count.telling_share:>9.0%}  {options}".rstrip()
            )
        return "\n".join(rows)
