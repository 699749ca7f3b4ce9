"""The configuration: read from a TOML file and the command line, checked, and written back.

Not the list of settings (`sections.py`, their values `node_config.py`), nor what CONFIG GET and SET make of it
(`config_redis.py`); both are offered here too, so that a user needs this module only. Reading and
writing the file are this module's I/O; they happen at a start and at CONFIG REWRITE, never while
serving a command.

    config = load("respkv.toml", ["client.port=7000"])
    config.client.port                              7000
    redis_get(config, b"maxc*")                     [("maxclients", "10000")]
    redis_set(config, [(b"maxclients", b"50")])     {"client.clients_max"}
    rewrite(config, "respkv.toml")                  clients_max = 50, and port as it was

The file has one table per section and one key per setting; what it leaves out has its default. A
file with [[node]] tables (`members.py`) is for a whole cluster: `load` puts one node's table in.
[[policy]] tables (`policy.py`) are for some keys, and the same for all nodes.
The first thing wrong ends the reading with a `ConfigError`, whose line names the file, the
setting, its value and what is allowed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from respkv.config_conflict import conflict_of
from respkv.config_redis import redis_get, redis_set
from respkv.node_config import SECTIONS, SETTINGS, Config
from respkv.setting import ConfigError, Rejected, Setting, did_you_mean, near, plain, toml_text

if TYPE_CHECKING:
    from cluster.topology import NodeInfo
    from respkv.members import NodeTable
    from respkv.policy import Policy

__all__ = [
    "Config",
    "ConfigError",
    "default_data_dir",
    "load",
    "load_nodes",
    "read_secret",
    "redis_get",
    "redis_set",
    "reference",
    "rewrite",
]

FILE_BYTES_MAX = 1 << 20
SECRET_BYTES_MAX = 4096
SYSTEM_DATA_DIR = "/var/lib/respkv"


def load(path: str | None, overrides: Sequence[str] = (), node: str | None = None) -> Config:
    """Return the configuration of a file (None: defaults), with `section.key=value` overrides.

    If the file has [[node]] tables, `node` says which of them to put in, over the sections and
    below the overrides. None puts none in: then the configuration holds for all nodes, and so do
    the overrides. Every node is checked in any case, so a file is right or wrong for all of them.
    In a file without nodes `node` has no meaning.

    Raises `ConfigError` for the first thing that is wrong.
    """
    shared, configs = _load(path, overrides, node)
    if node is None or not configs:
        return shared
    if node not in configs:
        names = ", ".join(configs)
        raise ConfigError(f"{path}: no node has the name {toml_text(node)}; there are {names}")
    config = configs[node]
    if not config.cluster.secret_file:
        _refuse_open_bus(config)
    return config


def load_nodes(path: str, overrides: Sequence[str] = ()) -> dict[str, Config]:
    """Return the configuration of every node of a file, by name; none if the file has no nodes.

    As from `load`, but whether there must be a secret is not checked.
    """
    return _load(path, overrides, None)[1]


def _load(
    path: str | None, overrides: Sequence[str], node: str | None
) -> tuple[Config, dict[str, Config]]:
    """Return what holds for all nodes, and the configuration of each."""
    tables = dict(_read_toml(path)) if path is not None else {}
    listed = tables.pop("node", None)
    policies = _read_policies(path, tables)
    if path is None or listed is None:
        return _loaded(path, tables, overrides, policies), {}
    from respkv import members

    listed_nodes = members.read(path, listed)
    nodes = tuple(each.info for each in listed_nodes)
    shared = _loaded(path, tables, overrides, policies, nodes)
    configs = {}
    for each in listed_nodes:
        ours = overrides if node in (None, each.name) else ()
        configs[each.name] = _loaded(path, tables, ours, policies, nodes, each)
    _refuse_sharing(path, nodes, configs)
    shared.admin_ports = {each.name: each.admin_port for each in listed_nodes}
    for config in configs.values():
        config.admin_ports = shared.admin_ports
    return shared, configs


def _loaded(
    path: str | None,
    tables: Mapping[str, object],
    overrides: Sequence[str],
    policies: tuple[Policy, ...] = (),
    nodes: tuple[NodeInfo, ...] = (),
    node: NodeTable | None = None,
) -> Config:
    source = path or "command line"
    config = Config(path=path, nodes=nodes, policies=policies)
    _put_tables(config, source, tables)
    if node is not None:
        client = tables.get("client")
        is_bound = isinstance(client, dict) and "hosts" in client
        _put_node(config, source, node, is_bound=is_bound)
    for override in overrides:
        _put_override(config, override)
    if nodes and "client.port" in config.overridden:
        shown = f"client.port = {config.client.port}"
        why = f"the other nodes read the port in {source}"
        raise ConfigError(f"command line: {shown}: cannot be given for a node of a cluster: {why}")
    if node is not None and not node.settings:
        return config  # No more can contradict than in what holds for all, which is checked too.
    if conflict := conflict_of(config):
        label = f": node {toml_text(node.name)}" if node is not None else ""
        raise ConfigError(f"{source}{label}: {conflict[1]}")
    if policies:
        from respkv.consistency import Scope
        from respkv.policy import refuse_impossible

        refuse_impossible(source, policies, Scope.of(config))
    return config


def _read_policies(path: str | None, tables: dict[str, Any]) -> tuple[Policy, ...]:
    """Take the [[policy]] tables out of a file's."""
    if path is None or "policy" not in tables:
        return ()
    from respkv import policy

    return policy.read(path, tables.pop("policy"))


_OWN_KEYS = {"client.port": "port", "storage.data_dir": "data_dir"}
_SAME_FOR_ALL = {f"cluster.{key}" for key in ("name", "n", "r", "w", "consistency")}


def _put_node(config: Config, source: str, node: NodeTable, *, is_bound: bool) -> None:
    """Put one node's table in. `is_bound`: the file says for all nodes where they listen."""
    config.node = node.name
    config.client.port = node.port
    if not is_bound:
        config.client.hosts = (node.host,)
    if node.data_dir:
        config.storage.data_dir = node.data_dir
    where = f"{source}: node {toml_text(node.name)}"
    for name, value in node.settings.items():
        if name not in SETTINGS:
            raise ConfigError(f"{where}: settings: {_unknown_setting(name)}")
        if key := _OWN_KEYS.get(name):
            raise ConfigError(f"{where}: settings: {name}: give {key} of the node instead")
        if name in _SAME_FOR_ALL:
            raise ConfigError(f"{where}: settings: {name}: must be the same for all nodes")
        _put(config, f"{where}: settings", SETTINGS[name], value, SETTINGS[name].kind.check)


def _refuse_sharing(path: str, nodes: Sequence[NodeInfo], configs: Mapping[str, Config]) -> None:
    """Refuse two nodes of one machine that would use the same folder or Unix socket."""
    from respkv.members import machine_of

    users: dict[tuple[str, str, str], str] = {}
    for node in nodes:
        name, config, machine = node.name, configs[node.name], machine_of(node.host)
        folder = _absolute(config.storage.data_dir)
        for setting, place in (
            ("storage.data_dir", folder),
            ("client.unix_socket", config.client.unix_socket),
        ):
            if not place and setting == "client.unix_socket":
                continue
            user = users.setdefault((setting, machine, place), name)
            if user != name:
                why = "data_dir" if setting == "storage.data_dir" else "settings"
                shown = SETTINGS[setting].shown(config.get(setting))
                raise ConfigError(
                    f"{path}: nodes {toml_text(user)} and {toml_text(name)} are on one machine, "
                    f"and have the same {shown}: give each its own, in its {why}"
                )


def _absolute(folder: str) -> str:
    return os.path.realpath(os.path.expanduser(folder)) if folder else ""


def _refuse_open_bus(config: Config) -> None:
    from respkv.members import is_loopback

    if away := next((each for each in config.nodes if not is_loopback(each.host)), None):
        raise ConfigError(
            f'{config.path}: cluster.secret_file = "": must be given, since the host of node '
            f"{toml_text(away.name)}, {away.host}, is no loopback address"
        )


def read_secret(config: Config) -> bytes | None:
    """Return the cluster's secret, without white space at its end; None if it has none.

    Raises `ConfigError` if the file cannot be read or has too little in it.
    """
    path = config.cluster.secret_file
    if not path:
        return None
    from cluster.handshake import SECRET_BYTES_MIN

    shown = f"{config.path or 'command line'}: cluster.secret_file = {toml_text(path)}"
    try:
        with open(os.path.expanduser(path), "rb") as file:
            secret = file.read(SECRET_BYTES_MAX + 1).rstrip()
    except OSError as error:
        raise ConfigError(f"{shown}: cannot be read: {error.strerror}") from error
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        limits = f"{SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes"
        raise ConfigError(f"{shown}: has {len(secret)} bytes: must have {limits}")
    return secret


def _read_toml(path: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{path}: has more than {FILE_BYTES_MAX} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line, column = _position(data[: error.start].decode(), error.start)
        raise ConfigError(f"{path}: line {line}, column {column}: not UTF-8") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_syntax_line(path, text, str(error))) from error


def _syntax_line(path: str, text: str, message: str) -> str:
    """Return one line for a syntax error. `tomllib` has the place only in its message."""
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.S)
    if match is None:
        return f"{path}: not TOML: {message}"
    line, column = match[2], match[3]
    if line is None:
        line, column = map(str, _position(text, len(text)))
    reason = match[1].replace("\n", " ")
    return f"{path}: line {line}, column {column}: not TOML: {reason}"


def _position(text: str, offset: int) -> tuple[int, int]:
    """Return line and column, both from 1, of a place in a text."""
    before = text[:offset]
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def _put_tables(config: Config, path: str, tables: Mapping[str, object]) -> None:
    for section, table in tables.items():
        if section not in SECTIONS:
            raise ConfigError(f"{path}: {_unknown_section(section, table)}")
        if not isinstance(table, dict):
            shown = f"{section} = {toml_text(table)}"
            raise ConfigError(f"{path}: {shown}: must be a table, which begins with [{section}]")
        for key, value in table.items():
            name = f"{section}.{key}"
            if name not in SETTINGS:
                raise ConfigError(f"{path}: {_unknown_setting(name)}")
            _put(config, path, SETTINGS[name], value, SETTINGS[name].kind.check)


def _put_override(config: Config, override: str) -> None:
    name, equals, text = override.partition("=")
    name = name.strip()
    source = "command line"
    if not equals:
        shown = toml_text(override)
        raise ConfigError(f"{source}: a setting is given as section.key=value, not as {shown}")
    if name not in SETTINGS:
        raise ConfigError(f"{source}: {_unknown_setting(name)}")
    _put(config, source, SETTINGS[name], text, SETTINGS[name].kind.parse)
    config.overridden.add(name)


def _put(
    config: Config, source: str, setting: Setting, value: Any, read: Callable[[Any], object]
) -> None:
    try:
        config.put(setting.name, read(value))
    except Rejected as rejected:
        raise ConfigError(f"{source}: {setting.shown(value)}: {rejected}") from None


def _unknown_section(section: str, value: object) -> str:
    if not isinstance(value, dict):
        return f"{plain(section)} stands outside a section{did_you_mean(_suggested(section))}"
    found = near(section, SECTIONS)
    hint = f"; did you mean [{found}]?" if found else f"; sections are {', '.join(SECTIONS)}"
    return f"unknown section [{plain(section)}]{hint}"


def _unknown_setting(name: str) -> str:
    return f"unknown setting {plain(name)}{did_you_mean(_suggested(name))}"


def _suggested(name: str) -> str | None:
    """Return the setting that was probably meant: by Redis' name, key, full name, any key."""
    section, _, key = name.rpartition(".")
    if redis := [s.name for s in SETTINGS.values() if s.redis == key.replace("_", "-")]:
        return redis[0]
    if found := near(key, [s.key for s in SETTINGS.values() if s.section == section]):
        return f"{section}.{found}"
    keys = {s.key: s.name for s in SETTINGS.values()}
    if found := near(name, SETTINGS):
        return found
    return keys[found] if (found := near(key, keys)) else None


def default_data_dir(
    environ: Mapping[str, str],
    is_root: bool,
    is_writable: Callable[[str], bool] = lambda path: os.access(path, os.W_OK | os.X_OK),
) -> str:
    """Return the usual place of data: the system's for root or a writer of it, else the user's.

    Raises `ConfigError` if the environment does not say where the user's is.
    """
    if is_root or is_writable(SYSTEM_DATA_DIR):
        return SYSTEM_DATA_DIR
    state = environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(state):  # The XDG specification: a relative path is to be ignored.
        return os.path.join(state, "respkv")
    home = environ.get("HOME", "")
    if os.path.isabs(home):
        return os.path.join(home, ".local", "state", "respkv")
    raise ConfigError("no usual place for data, since HOME is not set: give --data-dir DIR")


def reference() -> str:
    """Return a file with every setting at its default, each with its meaning, bounds and names."""
    parts = [_REFERENCE_HEAD]
    for section, declared in SECTIONS.items():
        doc = _comment(" ".join((declared.__doc__ or "").split()))
        parts.append(f"[{section}]\n{doc}")
        parts += [_entry(s) for s in SETTINGS.values() if s.section == section]
    from respkv import policy

    return "\n".join(parts) + "\n" + _node_example() + policy.example(_comment)


_REFERENCE_HEAD = """\
# Every setting of respkv, at its default. A file needs only what differs.
#
#   respkv serve --config FILE      run with a file
#   respkv check-config FILE        check a file
#   respkv default-config           print this one
#
# Sizes are bytes, or strings with a unit: "64MiB" is 64 * 1024 * 1024, "64MB" is 64 * 1000 * 1000.
# "Live" settings can be changed by CONFIG SET, under their own name or Redis' name, and are kept by
# CONFIG REWRITE. The others need a restart.
"""


_NODE_HEAD = """\
# The nodes of a cluster: one such table each, in the same file for all of them. "respkv serve
# --config FILE --node NAME" runs one of them, "respkv cluster FILE" all of them on this machine.
"""

_NODE_EXAMPLE = {"name": "a", "host": "127.0.0.1", "port": 6379, "data_dir": "data/a"}

_NODE_SETTINGS = """\
#
# # Any settings for this node alone, by their full names.
# [node.settings]
# "memory.bytes_max" = "2GiB"
"""


def _node_example() -> str:
    """Return a [[node]] table as comments, with every key, its meaning and bounds."""
    from respkv.members import KEYS

    lines = [_NODE_HEAD, "#\n# [[node]]\n"]
    for key, each in KEYS.items():
        doc = _comment(f"{each.doc} Must be {each.kind.allowed()}.", "# # ")
        value = toml_text(_NODE_EXAMPLE.get(key, each.default))
        lines.append(f"#\n{doc}# {key} = {value}\n")
    return "".join(lines) + _NODE_SETTINGS


def _entry(setting: Setting) -> str:
    comments = [setting.doc, f"Must be {setting.kind.allowed()}."]
    names = [f"Redis: {setting.redis}."] if setting.redis else []
    live = ["Live."] if setting.is_live else []
    comments += [" ".join(names + live)] if names or live else []
    value = toml_text(setting.kind.literal(setting.default))
    return "".join(map(_comment, comments)) + f"{setting.key} = {value}\n"


def _comment(text: str, mark: str = "# ") -> str:
    import textwrap

    width = 100 - len(mark)
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return "".join(f"{mark}{line}\n" for line in lines)


def rewrite(config: Config, path: str) -> None:
    """Carry out CONFIG REWRITE: write into the file what differs, keep all else and comments.

    What the command line gave stays on the command line, unless CONFIG SET named it since. A node
    of a cluster writes into its own [[node]] table, because CONFIG SET changed it alone. The
    file is replaced in one step, so that a crash leaves the old one or the new one; both are
    durable. Blocks on the disk. Raises `ConfigError` if the file cannot be written, or cannot be
    read as it stands.
    """
    import tomlkit

    exists = os.path.exists(path)
    before = _before(path, config.node) if exists else Config()
    differing = config.differing(before)
    changed = [setting for setting in differing if setting.name not in config.overridden]
    if not changed:
        return
    try:
        with open(path, "rb") if exists else contextlib.nullcontext() as file:
            document = tomlkit.parse(file.read() if file else b"")
        for setting in changed:
            value = setting.kind.literal(config.get(setting.name))
            if before.node:
                _write_for_node(document["node"], config.node, setting, value)
            else:
                document.setdefault(setting.section, tomlkit.table())[setting.key] = value
        _replace(os.path.realpath(path), tomlkit.dumps(document).encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def _before(path: str, node: str) -> Config:
    """Return what the file says now; a secret may be missing, since the command line may give it."""
    shared, configs = _load(path, (), None)
    if node and configs and node not in configs:
        raise ConfigError(f"{path}: cannot be rewritten: it has no node {toml_text(node)} any more")
    return configs.get(node, shared)


def _write_for_node(tables: Any, name: str, setting: Setting, value: object) -> None:
    """Set a setting in a node's own table of a document, however the table is written."""
    import tomlkit
    from tomlkit.items import InlineTable

    table = next(each for each in tables if each["name"] == name)
    made = tomlkit.inline_table() if isinstance(table, InlineTable) else tomlkit.table()
    own = table.setdefault("settings", made)
    section = own.get(setting.section)
    if isinstance(section, dict) and setting.key in section:
        section[setting.key] = value
    else:
        own[setting.name] = value


def _replace(path: str, data: bytes) -> None:
    """Replace a file by new content, durably and in one step. A new file is for its owner only."""
    folder = os.path.dirname(path)
    temporary = f"{path}.{os.getpid()}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            _copy_owner(path, descriptor)
            os.fsync(descriptor)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy_owner(path: str, descriptor: int) -> None:
    """Give an open file the owner (if we may) and mode of the file at `path`, if there is one."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, status.st_mode & 0o7777)
