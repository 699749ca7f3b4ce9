"""LATENCY: events that took long (`respkv/latency.py`), and the times of each command (`respkv/histogram.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from respkv.command import TABLE, Command, Flag, command, container
from respkv.commands.client import help_reply
from respkv.context import Context
from respkv.latency import Event, graph, report
from respkv.reply import Reply, ReplyError, Verbatim

FLAGS: Final = Flag.ADMIN | Flag.NOSCRIPT | Flag.LOADING | Flag.STALE
TIPS: Final = ("nondeterministic_output", "request_policy:all_nodes", "response_policy:special")

container("LATENCY", since="2.8.13", group="server", summary="Commands about what took long")


def _event(ctx: Context, name: bytes) -> Event | None:
    return ctx.node.latency.events.get(name.decode("latin-1"))


@command(
    "LATENCY|LATEST",
    arity=2,
    flags=FLAGS,
    since="2.8.13",
    group="server",
    complexity="O(1)",
    tips=TIPS,
)
def latency_latest(ctx: Context) -> Reply:
    """List the kinds of events: name, time and milliseconds of the last one, and the worst ever."""
    return [
        [name.encode(), event.samples[-1].at_s, event.samples[-1].elapsed_ms, event.worst_ms]
        for name, event in ctx.node.latency.events.items()
    ]


@command(
    "LATENCY|HISTORY", arity=3, flags=FLAGS, since="2.8.13", group="server", complexity="O(1)",
    usage="event", tips=TIPS,
)  # fmt: skip
def latency_history(ctx: Context, name: bytes) -> Reply:
    """List the last events of a kind: time and milliseconds."""
    event = _event(ctx, name)
    return [] if event is None else [[s.at_s, s.elapsed_ms] for s in event.samples]


@command(
    "LATENCY|RESET", arity=-2, flags=FLAGS, since="2.8.13", group="server", complexity="O(1)",
    usage="[event [event ...]]", tips=("request_policy:all_nodes", "response_policy:all_succeeded"),
)  # fmt: skip
def latency_reset(ctx: Context, *names: bytes) -> Reply:
    """Forget events of some kinds, or all; answer of how many kinds there were any."""
    return ctx.node.latency.reset([name.decode("latin-1") for name in names])


@command(
    "LATENCY|GRAPH", arity=3, flags=FLAGS, since="2.8.13", group="server", complexity="O(1)",
    usage="event", tips=TIPS,
)  # fmt: skip
def latency_graph(ctx: Context, name: bytes) -> Reply:
    """Draw the last events of a kind."""
    event = _event(ctx, name)
    if event is None:
        shown = name[:128].replace(b"\r", b" ").replace(b"\n", b" ")
        raise ReplyError(b"ERR No samples available for event '%b'" % shown)
    return Verbatim(graph(name.decode("latin-1"), event, ctx.now_ms // 1000).encode())


@command(
    "LATENCY|DOCTOR",
    arity=2,
    flags=FLAGS,
    since="2.8.13",
    group="server",
    complexity="O(1)",
    tips=TIPS,
)
def latency_doctor(ctx: Context) -> Reply:
    """Tell what took long, and what may help."""
    return Verbatim(report(ctx.node.latency).encode())


@command(
    "LATENCY|HISTOGRAM", arity=-2, flags=FLAGS, since="7.0.0", group="server",
    complexity="O(N) where N is the number of commands shown", usage="[command [command ...]]", tips=TIPS,
)  # fmt: skip
def latency_histogram(ctx: Context, *names: bytes) -> Reply:
    """Show how long commands took: calls within 1, 2, 4, 8, ... microseconds."""
    chosen = [each for name in names for each in _named(name)] if names else TABLE.everything()
    return {
        command.name.lower().encode(): {
            b"calls": command.histogram.count,
            b"histogram_usec": _integers(command),
        }
        for command in chosen
        if command.histogram.count
    }


def _integers(command: Command) -> Reply:
    # As a map whose keys are integers, which `Reply` does not foresee.
    powers: dict[int, int] = command.histogram.by_powers_us()
    return powers  # type: ignore[return-value]


def _named(name: bytes) -> Iterator[Command]:
    """A command and its subcommands; `config|set` names one alone."""
    container_name, bar, sub = name.upper().partition(b"|")
    command = TABLE.find(container_name)
    if command is None:
        return
    if bar:
        if sub in command.subcommands:
            yield command.subcommands[sub]
        return
    yield command
    yield from command.subcommands.values()


HELP: Final = """\
LATENCY <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
DOCTOR
    What took long, and what may help.
GRAPH <event>
    A drawing of the last events of a kind.
HISTORY <event>
    The last events of a kind: time, milliseconds.
LATEST
    All kinds: time and milliseconds of the last one, and the worst ever.
RESET [<event> ...]
    Forget events of some kinds, or all.
HISTOGRAM [<command> ...]
    How many calls of each command took up to 1, 2, 4, 8, ... microseconds.
HELP
    Print this help."""


@command(
    "LATENCY|HELP",
    arity=2,
    flags=Flag.LOADING | Flag.STALE,
    since="2.8.13",
    group="server",
    complexity="O(1)",
)
def latency_help(ctx: Context) -> Reply:
    """Show the subcommands of LATENCY."""
    return help_reply(HELP)
