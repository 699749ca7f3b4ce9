"""The command lines of the tools that ask a running cluster: status, ring and drill.

What they show is made in the modules beside this one, which are imported only when they are used. They speak
RESP to nodes, as any client, and need no file but for `drill`.

Shell: connections, the terminal, the clock, and the environment, which may have a password.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from respkv.tools.client import Client
    from respkv.tools.ring import Ring

Add = Callable[[str, str, str, str], argparse.ArgumentParser]
"""Adds a subcommand: name, summary, description, and what follows the options."""

STATUS_FAILED: Final = 1
STATUS_UNANSWERED: Final = 2
PASSWORD_VARIABLE: Final = "REDISCLI_AUTH"  # As for redis-cli.
NODE_TIMEOUT_S: Final = 3.0
DRILL_TIMEOUT_S: Final = 10.0

_PASSWORD: Final = """\
password:
  --password, or the environment's REDISCLI_AUTH, which no list of processes
  shows. All nodes must have the same one.
"""

_STATUS: Final = """\
Ask a running cluster how each node is, and whether all is well.
"""
_STATUS_MORE: Final = f"""\
  Any node can be asked. It tells who the members are; then each of them is
  asked for itself.

{_PASSWORD}
exit status:
  0 healthy: every node answers, reaches all others, and is complete.
  1 degraded: something is wrong with a node, and every key is served.
  2 failing: some keys have too few replicas within reach of the node that was
    asked, or it does not answer. Also for a wrong option.

examples:
  respkv status
  respkv status --host 10.0.0.1 --json
"""

_RING: Final = """\
Draw who owns which slots of a running cluster, in zones, and who is down.
"""
_RING_MORE: Final = f"""\
  "first" is the part of the slots of which a node is the first replica, "holds"
  the part of which it has a replica. A node that is down is drawn with x.

{_PASSWORD}
exit status:
  0 drawn, 1 the node does not answer, 2 wrong option.

examples:
  respkv ring
  respkv ring --port 6380 --slots
  respkv ring --json
"""

_DRILL: Final = """\
Play a failure on a cluster that runs on this machine ("respkv cluster FILE"),
and show what it does to clients.
"""
_DRILL_MORE: Final = """\
  partition cuts the first node of FILE off from the others, writes one key on
  both sides, heals the network, shows the siblings, resolves them, and checks
  that both sides agree. Each step is printed as the redis-cli command that does
  it. It writes to the key "cart", and nothing else.

  The configuration must have debug.drill = true, which only nodes with loopback
  addresses may have. conf/cluster.toml has it.

  --leave-siblings stops when the network is healed, so that you can look at the
  siblings and resolve them yourself.

exit status:
  0 both sides agree, 1 something did not go as it should, 2 wrong option or
  configuration.

examples:
  respkv drill partition conf/cluster.toml
  respkv drill partition conf/cluster.toml --leave-siblings
"""


class Misused(Exception):
    """What the user got wrong, in one line."""


def add_to(add: Add) -> None:
    """Declare the subcommands; each sets `tool`, which takes the arguments and returns an exit status."""
    status = add("status", "ask a running cluster how it is", _STATUS, _STATUS_MORE)
    _add_node_options(status)
    status.add_argument("--json", action="store_true", help="an object, for scripts")
    status.set_defaults(tool=_status)

    ring = add("ring", "draw who owns which slots", _RING, _RING_MORE)
    _add_node_options(ring)
    ring.add_argument("--slots", action="store_true", help="show every range of slots")
    ring.add_argument("--json", action="store_true", help="an object, for scripts")
    ring.set_defaults(tool=_ring)

    drill = add("drill", "play a failure on a local cluster", _DRILL, _DRILL_MORE)
    drill.add_argument("kind", metavar="partition", choices=("partition",), help="what to play")
    drill.add_argument("file", metavar="FILE", help="TOML file of the running cluster")
    drill.add_argument(
        "--leave-siblings", action="store_true", help="stop when the network is healed"
    )
    drill.set_defaults(tool=_drill)


def _add_node_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", metavar="H", default="127.0.0.1", help="any node (127.0.0.1)")
    parser.add_argument("--port", metavar="P", type=_port, default=6379, help="its port (6379)")
    parser.add_argument("--password", metavar="PASSWORD", help=f"password ({PASSWORD_VARIABLE})")


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError("must be a port, from 1 to 65535")
    return port


def _connect(host: str, port: int, password: str, timeout_s: float) -> Client:
    """Raises ClientError."""
    from respkv.tools.client import Address, Client

    return Client(Address(host, port, 0, password=password), timeout_s)


def _password(arguments: argparse.Namespace) -> str:
    given: str | None = arguments.password
    return os.environ.get(PASSWORD_VARIABLE, "") if given is None else given


# status


def _status(arguments: argparse.Namespace) -> int:
    from respkv.tools import status
    from respkv.tools.client import ClientError
    from respkv.tools.ring import ring_of

    password = _password(arguments)
    try:
        with closing(_connect(arguments.host, arguments.port, password, NODE_TIMEOUT_S)) as client:
            nodes = status.members_of(client.ask("KV.NODES"))
            ring = ring_of(client.ask("KV.RING"))
            for node in nodes:
                _ask_member(node, client, password)
    except ClientError as error:
        print(f"respkv status: {error}", file=sys.stderr)
        return STATUS_UNANSWERED
    verdict, problems = status.judge(nodes, ring)
    if arguments.json:
        print(json.dumps(status.status_json(nodes, ring, verdict, problems), indent=2))
    else:
        print("\n".join(status.status_lines(nodes, ring, verdict, problems)))
    return status.EXIT_STATUS[verdict]


def _ask_member(node: Any, asked: Client, password: str) -> None:
    """Ask a member for itself; the one that is connected already is asked where it is."""
    from respkv.tools import status
    from respkv.tools.client import ClientError

    try:
        with ExitStack() as stack:
            client = asked
            if not node.is_asked:
                opened = _connect(node.host, node.port, password, NODE_TIMEOUT_S)
                client = stack.enter_context(closing(opened))
            status.add_answers(node, client.ask("INFO", "everything"), client.ask("KV.NODES"))
    except ClientError as error:
        node.failure = str(error)


# ring


def _ring(arguments: argparse.Namespace) -> int:
    from respkv.tools.ring import ring_json, ring_lines

    ring = _asked_ring(arguments)
    if arguments.json:
        print(json.dumps(ring_json(ring), indent=2))
    else:
        is_coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print("\n".join(ring_lines(ring, is_coloured=is_coloured, shows_all=arguments.slots)))
    return 0


def _asked_ring(arguments: argparse.Namespace) -> Ring:
    """Raises ClientError."""
    from respkv.tools.ring import ring_of

    with closing(
        _connect(arguments.host, arguments.port, _password(arguments), NODE_TIMEOUT_S)
    ) as client:
        return ring_of(client.ask("KV.RING"))


# drill


def _drill(arguments: argparse.Namespace) -> int:
    from respkv.config import load_nodes
    from respkv.setting import ConfigError
    from respkv.tools.drill import Drill, DrillFailed, DrillNode

    try:
        configs = load_nodes(arguments.file)
    except ConfigError as error:
        raise Misused(error.line) from None
    if not configs:
        raise Misused(f"{arguments.file}: has no [[node]] tables, so there is nothing to cut")
    with ExitStack() as stack:
        nodes = []
        for name, config in configs.items():
            assert config.me is not None
            host, port = config.me.host, config.client.port
            client = _connect(host, port, config.client.requirepass, DRILL_TIMEOUT_S)
            stack.enter_context(closing(client))
            nodes.append(DrillNode(name, host, port, _asker(client)))
        if any(config.client.requirepass for config in configs.values()):
            print(f"# The nodes want their password: put it into {PASSWORD_VARIABLE}.")
        try:
            Drill(nodes, _print_line, time.sleep, time.monotonic).run(
                leaves_siblings=arguments.leave_siblings
            )
        except DrillFailed as error:
            print(f"respkv drill: {error}", file=sys.stderr)
            return STATUS_FAILED
    return 0


def _asker(client: Client) -> Any:
    def ask(*words: str) -> Any:
        (reply,) = client.pipeline([words])
        return reply

    return ask


def _print_line(line: str) -> None:
    print(line, flush=True)
