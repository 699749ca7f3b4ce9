"""Log lines on standard error, as text for people or as JSON for machines.

Not the commit log, and not metrics. `setup` is called once where a node is composed; a simulation
hands in its own clock and stream.

How it works: structlog keeps a logger's context (`log.bind(peer=name)`) and is set up for all
packages, so that `engine` and `cluster`, which must not import this module, get the same lines
from `structlog.get_logger("engine.log")`. Three things differ from its usual set-up:

- The level is a property of the class `Logger`: `set_level` swaps the methods below the level for
  one that does nothing. So CONFIG SET loglevel holds at once for every logger, and a filtered
  call costs an attribute and an empty call.
- The processors are one list that is changed in place, so loggers made before `setup` follow it.
- A line is one write of bytes, and an output that is gone is no error: a server must not fail for
  its log.

A line of text: time in UTC, level, logger, event, and the rest as `key=value`:

    2026-01-31T12:00:00.250Z info    respkv.node: serving host=127.0.0.1 port=6379
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, BinaryIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LEVELS = ("debug", "info", "warning", "error")
VALUE_CHARS_MAX = 1000
"""A longer value, such as a key that a client sent, is cut in a line of text."""

_LEADING = ("time", "level", "logger", "event")


class Sink:
    """Where the lines of one name go: to the stream of all. A stream that fails is no error."""

    stream: BinaryIO | None = None
    """For all sinks; None means standard error."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def write(self, line: bytes) -> None:
        stream = Sink.stream or sys.stderr.buffer
        with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed.
            stream.write(line)
            stream.flush()

    debug = info = warning = error = write


class Logger(structlog.BoundLoggerBase):
    """A logger with a context. Each method logs an event, a constant text, with its facts."""

    def debug(self, event: str, **facts: Any) -> None:
        self._proxy_to_logger("debug", event, **facts)

    def info(self, event: str, **facts: Any) -> None:
        self._proxy_to_logger("info", event, **facts)

    def warning(self, event: str, **facts: Any) -> None:
        self._proxy_to_logger("warning", event, **facts)

    def error(self, event: str, **facts: Any) -> None:
        self._proxy_to_logger("error", event, **facts)

    def exception(self, event: str, **facts: Any) -> None:
        """Log an error with the traceback of the exception that is being handled."""
        self._proxy_to_logger("error", event, **({"exc_info": True} | facts))


def _filtered(self: Logger, event: str, **facts: Any) -> None:
    """Stand in for a method below the level."""


_METHODS: dict[str, Callable[..., None]] = {level: getattr(Logger, level) for level in LEVELS}
_PROCESSORS: list[Processor] = []


def setup(
    level: str = "info",
    format: str = "text",
    *,
    stream: BinaryIO | None = None,
    now: Callable[[], float] = time.time,
) -> None:
    """Set up logging for this process. `stream` None is standard error, `now` gives Unix time."""
    Sink.stream = stream
    _PROCESSORS[:] = _processors(format, now)
    set_level(level)
    structlog.configure(
        processors=_PROCESSORS,
        wrapper_class=Logger,
        context_class=dict,
        logger_factory=Sink,
        cache_logger_on_first_use=True,
    )


def _processors(format: str, now: Callable[[], float]) -> list[Processor]:
    def stamp(sink: WrappedLogger, method: str, facts: EventDict) -> EventDict:
        if sink.name:
            facts["logger"] = sink.name
        facts["time"] = _time_text(now())
        facts["level"] = method
        return facts

    render: Processor = _render_json if format == "json" else _render_text
    return [stamp, structlog.processors.format_exc_info, render]


def set_level(level: str) -> None:
    """Write lines of this level and above from now on, whatever logger they come from."""
    lowest = LEVELS.index(level)
    for i, name in enumerate(LEVELS):
        setattr(Logger, name, _METHODS[name] if i >= lowest else _filtered)


def get_logger(name: str) -> Logger:
    """Return a logger whose lines carry a name. It may be made before `setup`."""
    return Logger(Sink(name), _PROCESSORS, {})


def _time_text(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")


def _render_json(_: WrappedLogger, __: str, facts: EventDict) -> bytes:
    ordered = {key: facts.pop(key) for key in _LEADING if key in facts} | dict(facts)
    return json.dumps(ordered, default=_plain).encode() + b"\n"


def _render_text(_: WrappedLogger, __: str, facts: EventDict) -> bytes:
    exception = facts.pop("exception", None)
    moment, level, name, event = (facts.pop(key, "") for key in _LEADING)
    words = [f"{moment} {level:<7} {name}:" if name else f"{moment} {level:<7}"]
    words.append(event if event.isprintable() else json.dumps(event))
    words += [f"{key}={_word(value)}" for key, value in facts.items()]
    line = " ".join(words) + "\n"
    if exception:
        line += "".join(f"    {part}\n" for part in exception.splitlines())
    return line.encode(errors="backslashreplace")


def _word(value: object) -> str:
    """Return a value as one word that cannot be taken for another word or line."""
    text = _plain(value)
    if len(text) > VALUE_CHARS_MAX:
        text = text[:VALUE_CHARS_MAX] + "..."
    if text and text.isprintable() and not set(text) & set(' "='):
        return text
    return json.dumps(text, ensure_ascii=not text.replace(" ", "").isprintable())


def _plain(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


_PROCESSORS[:] = _processors("text", time.time)  # What is logged before `setup`.
set_level("info")
