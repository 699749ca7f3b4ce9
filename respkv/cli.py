"""The command line: `respkv serve`, `check-config`, `default-config`, `--version`, and the operator's tools.

Not a client, and not the server: `serve` reads the configuration, decides where the data is, and
calls `respkv.node.run`, which is imported only then, so that help and errors come at once. The tools are in
`respkv/tools/command.py`.

This is where the environment is read (for the usual place of data and the host's name), and nowhere
else. What a user got wrong is one line on standard error and exit status 2, never a traceback.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from respkv.tools import command as tools
from respkv.version import VERSION

if TYPE_CHECKING:
    from respkv.config import Config

Run: TypeAlias = "Callable[[Config, str, str], int]"
"""Runs a node with (configuration, data directory, node name) and returns an exit status."""

STATUS_MISUSED = 2
STATUS_INTERRUPTED = 130

_NODE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")

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

data:
  Data is in --data-dir. Without one it is in /var/lib/respkv for root or where
  that can be written, else in $XDG_STATE_HOME/respkv, else in
  ~/.local/state/respkv. Every write is logged there before it is answered. The
  log is forced to the disk once a second; log.fsync=always does it before each
  answer.

output:
  Logs go to standard error, and a line "ready HOST:PORT" once clients are
  served.

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


def main(argv: Sequence[str] | None = None, run: Run | None = None) -> int:
    """Carry out a command line and return its exit status. `run` None means the real node."""
    arguments = _parser().parse_args(argv)
    if "tool" in arguments:
        return tools.run(arguments)
    from respkv.setting import ConfigError

    try:
        if arguments.command == "serve":
            return _serve(arguments, run or _run_node)
        if arguments.command == "check-config":
            return _check_config(arguments.file)
        return _default_config()
    except ConfigError as error:
        print(error.line, file=sys.stderr)
        return STATUS_MISUSED
    except KeyboardInterrupt:
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
    add("--set", "SECTION.KEY=VALUE", "set any setting; may be given several times", is_list=True)


def _serve(arguments: argparse.Namespace, run: Run) -> int:
    from respkv.config import load

    overrides = list(arguments.set)
    if arguments.host:
        overrides.append(f"client.hosts={','.join(arguments.host)}")
    if arguments.port is not None:
        overrides.append(f"client.port={arguments.port}")
    if arguments.data_dir is not None:
        overrides.append(f"storage.data_dir={arguments.data_dir}")
    config = load(arguments.config, overrides)
    node_name = _node_name(arguments.node)
    config.data_dir = _data_dir(config)
    return run(config, config.data_dir, node_name)


def _node_name(given: str | None) -> str:
    from respkv.setting import ConfigError, toml_text

    name = os.uname().nodename if given is None else given
    if _NODE_NAME.fullmatch(name):
        return name
    source = "this host's name" if given is None else "--node"
    raise ConfigError(
        f"{source} = {toml_text(name)}: must be 1 to 64 letters, digits, dots, dashes and "
        f"underscores, the first a letter or digit{'; give --node NAME' if given is None else ''}"
    )


def _data_dir(config: Config) -> str:
    from respkv.config import default_data_dir

    if config.storage.data_dir:
        return os.path.abspath(os.path.expanduser(config.storage.data_dir))
    return default_data_dir(os.environ, is_root=os.geteuid() == 0)


def _run_node(config: Config, data_dir: str, node_name: str) -> int:
    from respkv.node import run

    status: int = run(config, data_dir=data_dir, node_name=node_name)
    return status


def _check_config(path: str) -> int:
    from respkv.config import Config, load

    config = load(path)
    differing = config.differing(Config())
    print(f"{path}: can be used; settings that differ from their defaults: {len(differing)}")
    for setting in differing:
        print("  " + setting.shown(setting.kind.literal(config.get(setting.name))))
    return 0


def _default_config() -> int:
    from respkv.config import reference

    sys.stdout.write(reference())
    return 0
