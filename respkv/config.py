"""The configuration: read from a TOML file and the command line, checked, and written back.

Not the list of settings (`sections.py`), nor what CONFIG GET and SET make of it
(`config_redis.py`); both are offered here too, so that a user needs this module only. Reading and
writing the file are this module's I/O; they happen at a start and at CONFIG REWRITE, never while
serving a command.

    config = load("respkv.toml", ["client.port=7000"])
    config.client.port                              7000
    redis_get(config, b"maxc*")                     [("maxclients", "10000")]
    redis_set(config, [(b"maxclients", b"50")])     {"client.clients_max"}
    rewrite(config, "respkv.toml")                  clients_max = 50, and port as it was

The file has one table per section and one key per setting; what it leaves out has its default.
The first thing wrong ends the reading with a `ConfigError`, whose line names the file, the
setting, its value and what is allowed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from respkv.config_redis import redis_get, redis_set
from respkv.sections import SECTIONS, SETTINGS, Config, conflict_of
from respkv.setting import ConfigError, Rejected, Setting, toml_text

__all__ = [
    "Config",
    "ConfigError",
    "default_data_dir",
    "load",
    "redis_get",
    "redis_set",
    "reference",
    "rewrite",
]

FILE_BYTES_MAX = 1 << 20
SYSTEM_DATA_DIR = "/var/lib/respkv"


def load(path: str | None, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a file (None: defaults), with `section.key=value` overrides.

    Raises `ConfigError` for the first thing that is wrong.
    """
    config = Config(path=path)
    if path is not None:
        _put_tables(config, path, _read_toml(path))
    for override in overrides:
        _put_override(config, override)
    if conflict := conflict_of(config):
        raise ConfigError(f"{path or 'command line'}: {conflict[1]}")
    return config


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
        return f"{_plain(section)} stands outside a section{_did_you_mean(_suggested(section))}"
    near = _near(section, SECTIONS)
    hint = f"; did you mean [{near}]?" if near else f"; sections are {', '.join(SECTIONS)}"
    return f"unknown section [{_plain(section)}]{hint}"


def _unknown_setting(name: str) -> str:
    return f"unknown setting {_plain(name)}{_did_you_mean(_suggested(name))}"


def _did_you_mean(name: str | None) -> str:
    return f"; did you mean {name}?" if name else ""


def _plain(name: str) -> str:
    """Return a name that a person wrote, quoted if it is strange or long."""
    return name if name.isprintable() and len(name) <= 60 else toml_text(name)


def _suggested(name: str) -> str | None:
    """Return the setting that was probably meant: by Redis' name, key, full name, any key."""
    section, _, key = name.rpartition(".")
    if redis := [s.name for s in SETTINGS.values() if s.redis == key.replace("_", "-")]:
        return redis[0]
    if near := _near(key, [s.key for s in SETTINGS.values() if s.section == section]):
        return f"{section}.{near}"
    keys = {s.key: s.name for s in SETTINGS.values()}
    if near := _near(name, SETTINGS):
        return near
    return keys[near] if (near := _near(key, keys)) else None


def _near(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like this one, or None if none is."""
    import difflib

    return next(iter(difflib.get_close_matches(word[:80], list(known), n=1, cutoff=0.7)), None)


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
    return "\n".join(parts)


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


def _entry(setting: Setting) -> str:
    comments = [setting.doc, f"Must be {setting.kind.allowed()}."]
    names = [f"Redis: {setting.redis}."] if setting.redis else []
    live = ["Live."] if setting.is_live else []
    comments += [" ".join(names + live)] if names or live else []
    value = toml_text(setting.kind.literal(setting.default))
    return "".join(map(_comment, comments)) + f"{setting.key} = {value}\n"


def _comment(text: str) -> str:
    import textwrap

    lines = textwrap.wrap(text, 98, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in lines)


def rewrite(config: Config, path: str) -> None:
    """Carry out CONFIG REWRITE: write into the file what differs, keep all else and comments.

    What the command line gave stays on the command line, unless CONFIG SET named it since. The
    file is replaced in one step, so that a crash leaves the old one or the new one; both are
    durable. Blocks on the disk. Raises `ConfigError` if the file cannot be written, or cannot be
    read as it stands.
    """
    import tomlkit

    exists = os.path.exists(path)
    differing = config.differing(load(path) if exists else Config())
    changed = [setting for setting in differing if setting.name not in config.overridden]
    if not changed:
        return
    try:
        with open(path, "rb") if exists else contextlib.nullcontext() as file:
            document = tomlkit.parse(file.read() if file else b"")
        for setting in changed:
            table = document.setdefault(setting.section, tomlkit.table())
            table[setting.key] = setting.kind.literal(config.get(setting.name))
        _replace(os.path.realpath(path), tomlkit.dumps(document).encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


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
