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

# As COMMAND LIST and COMMAND INFO name them: without subcommands.
SERVER_NAMES: Final = frozenset(
    name.split()[0].lower().encode() for name in BY_NAME if name == name.upper()
)
