"""The command line: `respkv serve`, `cluster`, `check-config`, `default-config`, `--version`, and the operator's tools.

Not a client, and not the server: `serve` reads the configuration, decides where the data is, and
calls `respkv.serve.run`, which is imported only then, so that help and errors come at once. `cluster`
calls `respkv.supervisor.run` in the same way. The tools are in `respkv/tools/command.py`.

This is where the environment is read (for the usual place of data and the host's name), and otherwise only by
the tools that ask a cluster, for a password. What a user got wrong is one line on standard error and exit
status 2, never a traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from respkv.tools import command as tools
from respkv.version import VERSION

if TYPE_CHECKING:
    from cluster.topology import NodeInfo
    from respkv.config import Config

Run: TypeAlias = "Callable[[Config, str, str], int]"
"""Runs a node with (configuration, data directory, node name) and returns an exit status."""

Supervise: TypeAlias = "Callable[[Config, list[str], bool], int]"
"""Runs all nodes of a configuration with (configuration, overrides, restart those that died)."""

STATUS_MISUSED = 2
STATUS_INTERRUPTED = 130

_DESCRIPTION = """\
A durable key-value store that speaks the Redis protocol.
Every Redis client is a client of it.
"""

_EXAMPLES = """\
examples:
  respkv serve                         run a node on 127.0.0.1:6379
  redis-cli SET greeting hello         use it, from another terminal
  respkv default-config > respkv.toml  see every setting, with its meaning
  respkv check-config respkv.toml      check a file before using it
  respkv cluster cluster.toml          run all nodes of a file on this machine

"respkv COMMAND --help" tells more about a command.
"""

_SERVE = """\
Run a node until it is stopped. Without options it is a single durable node
that only clients of this machine can reach.
"""

_SERVE_MORE = """\
defaults:
  It listens on 127.0.0.1, port 6379. Options win over --set, --set wins over
  the file, and the file wins over the defaults, which "respkv default-config"
  prints with the meaning of every setting.

cluster:
  If the file has [[node]] tables, this runs the one that --node names, or that
  has this host's name. Address, port, data directory and settings of the table
  win over the rest of the file. See "respkv cluster --help".

data:
  Data is in --data-dir. Without one it is in /var/lib/respkv for root or where
  that can be written, else in $XDG_STATE_HOME/respkv, else in
  ~/.local/state/respkv. Every write is logged there before it is answered. The
  log is forced to the disk once a second; log.fsync=always does it before each
  answer.

output:
  Logs go to standard error, and a line "ready HOST:PORT" once clients are
  served. A node of a cluster says "joined HOST:PORT" when it reaches all other
  nodes and they all have compared their data: before that, commands may answer
  NOREPLICAS. It says so again after it had lost one.

stop:
  Ctrl-C, SIGTERM, or SHUTDOWN from a client. What is under way is finished
  first, for at most client.shutdown_grace_s seconds. After kill -9 or a power
  cut the next start recovers from the log.

exit status:
  0 stopped as asked, 1 failed, 2 wrong option or configuration.

examples:
  respkv serve --port 7000 --data-dir ./data
  respkv serve --config respkv.toml --set log.fsync=always
  respkv serve --host 0.0.0.0 --host :: --set client.requirepass=SECRET
  respkv serve --config cluster.toml --node a
"""

_CLUSTER = """\
Run all nodes that a file lists, each as a process of its own on this machine,
until they are stopped.
"""

_CLUSTER_MORE = """\
  On several machines, run "respkv serve --config FILE --node NAME" on each of
  them instead, with the same file.

output:
  On standard error: lines of a node begin with its name, "node a: pid 1234"
  tells its process, "ready HOST:PORT" that it takes connections, "joined
  HOST:PORT" that it and all others work together. "cluster ready: ..." comes
  when all have joined: from then on each node serves every command. If that
  takes more than ten seconds a line says so.

secret:
  Nodes know each other by the secret in cluster.secret_file. If the setting is
  empty the file is cluster.secret beside the data directory of the first node.
  If the file does not exist it is made, readable by its owner alone; it is
  never overwritten.

restarts:
  A node that died is started again, at first after a second, then more and
  more slowly, at most every 30 seconds. One that was stopped (SIGTERM, or
  SHUTDOWN from a client) stays down, and so does one whose configuration is
  wrong. With --no-restart every node stays down.

stop:
  Ctrl-C or SIGTERM stops all nodes and waits for them, for five seconds more
  than client.shutdown_grace_s; what is left then is killed. A second one kills
  at once. If this process is killed, the nodes stop by themselves.

exit status:
  0 stopped as asked, 1 a node failed for good, 2 wrong option or configuration.

examples:
  respkv cluster cluster.toml
  respkv cluster cluster.toml --set log.fsync=always --no-restart
"""

_CHECK = """\
Read a configuration file as "serve" would and say what is wrong, or which
settings differ from their defaults. Exit status 0 if it can be used, else 2.
"""

_DEFAULT = """\
Print a configuration file with every setting at its default, each with its
meaning, unit, bounds, and the name that CONFIG GET and SET of Redis have for it.
"""


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        message = " ".join(message.split())
        self.exit(STATUS_MISUSED, f'{self.prog}: {message}; see "{self.prog} --help"\n')


def main(
    argv: Sequence[str] | None = None, run: Run | None = None, supervise: Supervise | None = None
) -> int:
    """Carry out a command line and return its exit status. None means the real thing."""
    arguments = _parser().parse_args(argv)
    if "tool" in arguments:
        return tools.run(arguments)
    from respkv.setting import ConfigError

    try:
        if arguments.command == "serve":
            return _serve(arguments, run or _run_node)
        if arguments.command == "cluster":
            return _cluster(arguments, supervise or _run_cluster)
        if arguments.command == "check-config":
            return _check_config(arguments.file)
        return _default_config()
    except ConfigError as error:
        print(error.line, file=sys.stderr)
        return STATUS_MISUSED
    except KeyboardInterrupt:
        return STATUS_INTERRUPTED
    except BrokenPipeError:  # Who read the output has seen enough, as `head` has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STATUS_INTERRUPTED


def _parser() -> _Parser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="respkv",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=plain,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"respkv {VERSION}", help="print the version"
    )
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, title="commands"
    )

    def add(name: str, summary: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=description,
            epilog=epilog,
            formatter_class=plain,
            allow_abbrev=False,
        )

    _add_serve_options(add("serve", "run a node", _SERVE, _SERVE_MORE))
    cluster = add("cluster", "run all nodes of a file on this machine", _CLUSTER, _CLUSTER_MORE)
    cluster.add_argument("file", metavar="FILE", help="TOML file with [[node]] tables")
    _add_set_option(cluster)
    cluster.add_argument("--no-restart", action="store_true", help="leave nodes down that died")
    check = add("check-config", "check a configuration file", _CHECK)
    check.add_argument("file", metavar="FILE", help="TOML file")
    add("default-config", "print every setting at its default", _DEFAULT)
    tools.add_to(add)
    return parser


def _add_serve_options(serve: argparse.ArgumentParser) -> None:
    def add(option: str, metavar: str, help: str, *, is_list: bool = False) -> None:
        if is_list:
            serve.add_argument(option, metavar=metavar, help=help, action="append", default=[])
        else:
            serve.add_argument(option, metavar=metavar, help=help)

    add("--config", "FILE", "TOML file with settings")
    add("--node", "NAME", "name of this node (default: this host's name)")
    add("--host", "H", "address to listen on; may be given several times", is_list=True)
    add("--port", "P", "TCP port")
    add("--data-dir", "DIR", "directory of the data, made if it is missing")
    _add_set_option(serve)
    serve.add_argument(
        "--until-stdin-ends",
        action="store_true",
        help='stop when standard input ends, as "respkv cluster" needs it',
    )


def _add_set_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="set any setting; may be given several times",
        action="append",
        default=[],
    )


def _serve(arguments: argparse.Namespace, run: Run) -> int:
    from respkv.config import ConfigError, load

    overrides = list(arguments.set)
    if arguments.host:
        overrides.append(f"client.hosts={','.join(arguments.host)}")
    if arguments.port is not None:
        overrides.append(f"client.port={arguments.port}")
    if arguments.data_dir is not None:
        overrides.append(f"storage.data_dir={arguments.data_dir}")
    node_name = _node_name(arguments.node)
    config = load(arguments.config, overrides, node=arguments.node)
    if config.nodes and arguments.node is None:
        if node_name not in (names := [each.name for each in config.nodes]):
            raise ConfigError(
                f"{arguments.config}: lists nodes, and this host's name, {node_name}, is none of "
                f"them: give --node with one of {', '.join(names)}"
            )
        config = load(arguments.config, overrides, node=node_name)
    config.data_dir = _data_dir(config)
    if arguments.until_stdin_ends:
        from respkv.supervisor import stop_when_stdin_ends

        stop_when_stdin_ends(config.client.shutdown_grace_s)
    return run(config, config.data_dir, node_name)


def _node_name(given: str | None) -> str:
    from respkv.setting import NAME, ConfigError, Rejected, toml_text

    name = os.uname().nodename if given is None else given
    try:
        return NAME.check(name)
    except Rejected as rejected:
        source = "this host's name" if given is None else "--node"
        hint = "; give --node NAME" if given is None else ""
        raise ConfigError(f"{source} = {toml_text(name)}: {rejected}{hint}") from None


def _data_dir(config: Config) -> str:
    from respkv.config import default_data_dir

    if config.storage.data_dir:
        return os.path.abspath(os.path.expanduser(config.storage.data_dir))
    return default_data_dir(os.environ, is_root=os.geteuid() == 0)


def _run_node(config: Config, data_dir: str, node_name: str) -> int:
    from respkv.serve import run

    status: int = run(config, data_dir=data_dir, node_name=node_name)
    return status


def _cluster(arguments: argparse.Namespace, supervise: Supervise) -> int:
    from respkv.config import ConfigError, load, load_nodes

    path, overrides = arguments.file, list(arguments.set)
    nodes = load_nodes(path, overrides)
    if not nodes:
        raise ConfigError(
            f'{path}: has no [[node]] tables; "respkv serve --config {path}" runs a single node'
        )
    overrides.append(f"cluster.secret_file={_secret_path(path, next(iter(nodes.values())))}")
    return supervise(load(path, overrides), overrides, not arguments.no_restart)


def _secret_path(path: str, first: Config) -> str:
    """Where the secret is, or is to be made: beside the data of the first node if nobody says."""
    from respkv.setting import ConfigError

    def absolute(name: str) -> str:
        return os.path.abspath(os.path.expanduser(name))

    if first.cluster.secret_file:
        return absolute(first.cluster.secret_file)
    if not first.storage.data_dir:
        raise ConfigError(
            f'{path}: cluster.secret_file = "": must be given, since node "{first.node}" has no '
            "data_dir beside which the file could be made"
        )
    return os.path.join(os.path.dirname(absolute(first.storage.data_dir)), "cluster.secret")


def _run_cluster(config: Config, overrides: list[str], is_restarting: bool) -> int:
    from respkv.supervisor import run

    return run(config, overrides, is_restarting=is_restarting)


def _check_config(path: str) -> int:
    from respkv.config import Config, load

    config = load(path)
    if config.nodes:
        load(path, node=config.nodes[0].name)  # Refuses what only the start of a node refuses.
    differing = config.differing(Config())
    members = f"{len(config.nodes)} nodes of the cluster {config.cluster.name}; "
    print(
        f"{path}: can be used; {members if config.nodes else ''}"
        f"settings that differ from their defaults: {len(differing)}"
    )
    for setting in differing:
        print("  " + setting.shown(setting.kind.literal(config.get(setting.name))))
    if config.nodes:
        _show_nodes(path, config)
    return 0


def _show_nodes(path: str, config: Config) -> None:
    """Print what differs between the nodes of a file, and what an operator should know of it."""
    from respkv.config import ConfigError, load_nodes, read_secret

    where = f" in each of {config.centre_count} data centres" if config.centre_count > 1 else ""
    print(f"replicas of each key: n = {config.n}{where}, r = {config.r}, w = {config.w}")
    print("nodes:")
    for node, own in zip(config.nodes, load_nodes(path).values(), strict=True):
        print("  " + _node_line(node, own))
        for setting in own.differing(config):
            if setting.name not in ("client.hosts", "client.port", "storage.data_dir"):
                print("    " + setting.shown(setting.kind.literal(own.get(setting.name))))
    if config.r + config.w <= config.replica_count:
        print("note: r + w is not more than all replicas, so a read may miss the latest write")
    try:
        read_secret(config)
    except ConfigError as error:
        print(f"note: {error.line}")


def _node_line(node: NodeInfo, own: Config) -> str:
    from respkv.setting import toml_text

    host = f"[{node.host}]" if ":" in node.host else node.host
    words = [f"{node.name}: {host}:{node.client_port}, cluster port {node.cluster_port}"]
    words.append(f"bus {node.bus_port}, admin {own.admin_ports[node.name]}")
    if own.client.hosts != (node.host,):
        words.append(f"listens on {' '.join(own.client.hosts)}")
    words.append(f"data in {own.storage.data_dir or 'the usual place'}")
    words += [f"zone {toml_text(node.zone)}"] if node.zone else []
    words += [f"data centre {toml_text(node.data_centre)}"] if node.data_centre else []
    words += [f"weight {node.weight}"] if node.weight != 1 else []
    return ", ".join(words)


def _default_config() -> int:
    from respkv.config import reference

    sys.stdout.write(reference())
    return 0
