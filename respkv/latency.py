"""The latency monitor that LATENCY shows: the last events of each kind that took at least `latency.threshold_ms`.

It measures nothing itself: who did something that may hold up others tells it how long that took.

    command, fast-command   a command, by its flag FAST (the runner, by way of the slow log)
    loop                    a tick, from its clocks to the end of its write to the commit log
    aof-write               that write
    aof-fsync-always        an fsync of the log that replies waited for
    expire-cycle            a round of the background expiry

While it is off (threshold 0), `threshold_ns` is beyond every duration and asking costs one comparison.

Core: times are arguments.

Source: the names of events and the bounds are those of Redis' latency monitor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

NEVER_NS: Final = 1 << 62
SAMPLES_MAX: Final = 160
GRAPH_LINES_MAX: Final = 40
GRAPH_BAR_MAX: Final = 40


@dataclass(frozen=True, slots=True)
class Sample:
    """The longest that an event took within one second."""

    at_s: int
    elapsed_ms: int


@dataclass(slots=True)
class Event:
    """One kind of event: its last samples, oldest first, and the worst since the last reset."""

    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))
    worst_ms: int = 0


class LatencyMonitor:
    """Events by name. Their names are constants of the code, so their number is bounded."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self.threshold_ns = NEVER_NS
        self.events: dict[str, Event] = {}

    @property
    def is_on(self) -> bool:
        return self.threshold_ns < NEVER_NS

    def configure(self, threshold_ms: int) -> None:
        """0 switches it off; what it knows stays."""
        self.threshold_ns = threshold_ms * 1_000_000 if threshold_ms else NEVER_NS

    def add(self, name: str, elapsed_ns: int) -> None:
        """An event took so long. Of several in a second, the longest is kept."""
        if elapsed_ns < self.threshold_ns:
            return
        event = self.events.setdefault(name, Event())
        sample = Sample(int(self._now_s()), elapsed_ns // 1_000_000)
        event.worst_ms = max(event.worst_ms, sample.elapsed_ms)
        if event.samples and event.samples[-1].at_s == sample.at_s:
            last = event.samples.pop()
            sample = max(sample, last, key=lambda each: each.elapsed_ms)
        event.samples.append(sample)

    def reset(self, names: list[str] | None = None) -> int:
        """Forget events, all or those named. Returns how many there were."""
        known = [name for name in names or list(self.events) if name in self.events]
        for name in dict.fromkeys(known):
            del self.events[name]
        return len(dict.fromkeys(known))


def graph(name: str, event: Event, now_s: int) -> str:
    """A drawing of an event's last samples: a line each, with its age and a bar."""
    samples = list(event.samples)[-GRAPH_LINES_MAX:]
    times = [sample.elapsed_ms for sample in samples]
    lines = [
        f"{name}: {min(times)} to {max(times)} ms in the last {len(samples)}, at most {event.worst_ms} ms ever",
        "",
    ]
    for sample in samples:
        bar = "#" * max(1, GRAPH_BAR_MAX * sample.elapsed_ms // max(1, max(times)))
        age = f"{now_s - sample.at_s} s ago"
        lines.append(f"{age:>14} {sample.elapsed_ms:>8} ms {bar}")
    return "\n".join(lines) + "\n"


ADVICE: Final = {
    "command": "SLOWLOG GET lists the commands that took long, with their arguments.",
    "fast-command": "Commands that are fast by nature took long: other work on this machine, or paging, may be why.",
    "loop": "Many clients were served at once, or something above took the time: see the other events.",
    "aof-write": "The commit log's disk takes writes slowly: look at its load, and whether it is nearly full.",
    "aof-fsync-always": "Replies wait for the disk, as log.fsync = always asks: a faster disk, or everysec, helps.",
    "expire-cycle": "Many keys expire at once: spread their expiries, or lower expiry.budget_ms.",
}


def report(monitor: LatencyMonitor) -> str:
    """What LATENCY DOCTOR says."""
    if not monitor.events:
        if not monitor.is_on:
            return (
                "Nothing is watched: the latency monitor is off. "
                "CONFIG SET latency-monitor-threshold <milliseconds> switches it on.\n"
            )
        return f"All is well: nothing has taken {monitor.threshold_ns // 1_000_000} ms or longer.\n"
    lines = []
    for name, event in monitor.events.items():
        times = [sample.elapsed_ms for sample in event.samples]
        mean = sum(times) / len(times)
        deviation = sum(abs(time - mean) for time in times) / len(times)
        span_s = event.samples[-1].at_s - event.samples[0].at_s
        every = f", one in {span_s / (len(times) - 1):.1f} s" if len(times) > 1 else ""
        lines.append(
            f"{name}: {len(times)} times{every}, {mean:.0f} ms on average (deviation {deviation:.0f} ms), "
            f"at most {event.worst_ms} ms."
        )
        lines += [f"    {ADVICE[name]}"] if name in ADVICE else []
    return "\n".join(lines) + "\n"
