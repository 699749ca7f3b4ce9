"""All the tables together: every command that is compared, by name."""

from __future__ import annotations

from typing import Final

from . import connection, keyspace, malformed, server, strings, transaction
from .command import Command

# Commands on keys and values: no difference in type, value or error text is ever by nature.
DATA_COMMANDS: Final = strings.COMMANDS + keyspace.COMMANDS + transaction.COMMANDS
COMMANDS: Final = DATA_COMMANDS + connection.COMMANDS + server.COMMANDS + malformed.COMMANDS
BY_NAME: Final[dict[str, Command]] = {command.name: command for command in COMMANDS}
DATA_NAMES: Final = frozenset(command.name for command in DATA_COMMANDS)

# The tables by name, for runs of a part.
TABLES: Final[dict[str, tuple[Command, ...]]] = {
    "strings": strings.COMMANDS,
    "keyspace": keyspace.COMMANDS,
    "transaction": transaction.COMMANDS,
    "connection": connection.COMMANDS,
    "server": server.COMMANDS,
    "malformed": malformed.COMMANDS,
}

# As COMMAND LIST and COMMAND INFO name them: without subcommands.
SERVER_NAMES: Final = frozenset(
    name.split()[0].lower().encode() for name in BY_NAME if name == name.upper()
)


def chosen(names: list[str]) -> list[Command]:
    """The commands that these names mean: commands, or whole tables. All of them when there are none."""
    if not names:
        return list(COMMANDS)
    return [
        command for name in names for command in TABLES.get(name, (BY_NAME.get(name),)) if command
    ]
