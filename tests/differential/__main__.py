"""The long form: `python -m tests.differential --seed N --rounds N`.

Each round sends every command of the tables at least 200 times, in RESP2 and in RESP3, and prints a table of what was
sent. Without `--server` it starts a respkv of its own, or with `--cluster` three that are a cluster. Several servers
are taken for nodes of one cluster: rounds take turns.

It EMPTIES all databases of the servers that it is given.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence

from tests.clusters import respkv_cluster
from tests.servers import ServerDidNotStart, redis_server, respkv_server

from .catalog import BY_NAME, TABLES, chosen
from .command import Scene
from .coverage import Coverage
from .runner import FINDINGS_MAX, Round
from .side import Side

Address = tuple[str, int]

# Where a cluster is known to differ; docs/DIFFERENCES.md tells users.
_NOT_IN_CLUSTER = frozenset(
    {
        "SWAPDB",  # Refused: no single moment is the same at all nodes.
        "WAIT",  # It has replicas to count.
        "WAITAOF",
        "CONFIG REWRITE",  # Nodes of a cluster always have a configuration file.
    }
)
# Refused inside MULTI, since all nodes answer for them.
_WHOLE_KEYSPACE = frozenset({"KEYS", "SCAN", "DBSIZE", "RANDOMKEY", "FLUSHDB", "FLUSHALL"})
_PROGRESS_EVERY_S = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all was equal and enough was sent; 1 otherwise; 2 when a server did not start."""
    options = _parser().parse_args(arguments)
    seed = random.SystemRandom().randrange(10**9) if options.seed is None else options.seed
    commands = chosen(options.only)
    if options.cluster:
        commands = [command for command in commands if command.name not in _NOT_IN_CLUSTER]
    protocols = (options.resp,) if options.resp else (2, 3)
    print(f"seed {seed}", flush=True)
    try:
        with (
            redis_server(binary=options.redis) as redis,
            _servers(options.server, is_cluster=options.cluster) as servers,
        ):
            total = Coverage()
            for number in range(options.rounds):
                for resp in protocols:
                    left = Side("redis", redis.host, redis.port, resp)
                    right = Side("respkv", *servers[number % len(servers)], resp)
                    name = f"{seed + number}"
                    title = f"round {number + 1}/{options.rounds} RESP{resp}"
                    one = Round(left, right, name, commands, options.findings)
                    if options.cluster:
                        one.is_left_out = _differs_in_cluster
                    is_equal = _run(title, one, total)
                    if not is_equal:
                        flag = "".join(f" --only {name!r}" for name in options.only)
                        print(
                            f"again: python -m tests.differential --seed {name} --rounds 1 --resp {resp}{flag}"
                        )
                        return 1
            print(total.table(commands))
            return 0
    except ServerDidNotStart as error:
        print(error, file=sys.stderr)
        return 2


_OF_MANY_KEYS = frozenset({"MSET", "MSETNX", "DEL", "UNLINK", "FLUSHDB", "FLUSHALL"})


def _differs_in_cluster(scene: Scene) -> bool:
    names = {call.name for call in scene}
    # Other nodes tell of each key by itself, and Redis of all keys of a command, or of the flush, at once.
    tracks = "CLIENT TRACKING" in names and not names.isdisjoint(_OF_MANY_KEYS)
    queues = "MULTI" in names and not names.isdisjoint(_WHOLE_KEYSPACE)
    return tracks or queues or not names.isdisjoint(_NOT_IN_CLUSTER)


def _run(title: str, one: Round, total: Coverage) -> bool:
    started = time.monotonic()
    printed = started

    def progress(done: int, planned: int, found: int) -> None:
        nonlocal printed
        if time.monotonic() - printed >= _PROGRESS_EVERY_S:
            printed = time.monotonic()
            left_s = (printed - started) / done * (planned - done)
            print(
                f"{title}: {done}/{planned} scenes, {found} differences, {left_s:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    try:
        one.run(progress)
    finally:
        one.left.close()
        one.right.close()
    print(
        f"{title}: {one.number} commands in {time.monotonic() - started:.1f} s, {one.found.total()} differences"
    )
    for finding in one.findings:
        print(f"\nseed {one.seed}, RESP{one.left.resp}, {finding}")
    if one.found:
        print(
            "\ndifferences by command: "
            + ", ".join(f"{name} {n}" for name, n in one.found.most_common())
        )
        return False
    total.merge(one.coverage)
    shortfalls = one.coverage.shortfalls(one.commands)
    if shortfalls:
        print(one.coverage.table(one.commands))
        print("\nless was sent than the contract asks:", *shortfalls, sep="\n  ")
    return not shortfalls


@contextlib.contextmanager
def _servers(addresses: list[Address] | None, *, is_cluster: bool) -> Iterator[list[Address]]:
    if addresses:
        yield addresses
        return
    if is_cluster:
        with respkv_cluster() as cluster:
            yield [(member.host, member.port) for member in cluster]
        return
    with respkv_server() as server:
        yield [(server.host, server.port)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.differential", description=__doc__.split("\n\n")[0] if __doc__ else ""
    )
    parser.add_argument(
        "--seed", type=int, help="where the random choices start; printed, and drawn when not given"
    )
    parser.add_argument("--rounds", type=int, default=1, help="rounds, each with the next seed")
    parser.add_argument(
        "--resp", type=int, choices=(2, 3), help="one protocol only; both otherwise"
    )
    parser.add_argument(
        "--redis", default="redis-server", metavar="PATH", help="the redis-server to compare with"
    )
    parser.add_argument(
        "--server",
        type=_address,
        nargs="+",
        metavar="HOST:PORT",
        help="running servers; they are EMPTIED",
    )
    parser.add_argument(
        "--cluster", action="store_true", help="a cluster of three respkv nodes instead of one node"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=sorted({*BY_NAME, *TABLES}),
        metavar="NAME",
        help="this command, or this table of them: " + ", ".join(TABLES) + "; repeat it for more",
    )
    parser.add_argument(
        "--findings",
        type=int,
        default=FINDINGS_MAX,
        metavar="N",
        help="stop a round after N differences shown",
    )
    return parser


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, int(port)


if __name__ == "__main__":
    # Ended from outside, it still ends the servers that it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
