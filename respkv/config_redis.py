"""The configuration as CONFIG GET and CONFIG SET see it: under Redis' names and under ours.

Not the CONFIG command itself, which parses arguments and applies what changed. This is a core:
plain data, no I/O.

Every name that CONFIG knows is an *option* in one table. It shows itself, and reads a word into new
values of settings:

- Redis' name of a setting, in Redis' units and words (`maxclients`, `appendfsync`);
- our own name of a setting, in the words of the command line (`memory.bytes_max 64MiB`);
- `client-output-buffer-limit`, which is three settings;
- constants that clients read to learn what the server does (`save`, `databases`).

A name that Redis 7.0 has and respkv does not is an error of its own, so that a script that sets it
learns why. Setting a constant to what it is does nothing and succeeds.

Differences a user can see: limits that Redis switches off with 0 have bounds here, and `port`,
`bind` and `dir` change with a restart only. Error texts are those of Redis 7.0, compared against
a running one.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NoReturn, Protocol

from respkv.config_conflict import conflict_of
from respkv.node_config import SETTINGS, Config
from respkv.setting import ConfigError, Rejected, Setting

PATTERN_BYTES_MAX = 1024
"""A longer pattern matches no name. Names have less than 40 characters."""


class Option(Protocol):
    """One name that CONFIG GET and SET know."""

    @property
    def is_live(self) -> bool:
        """Say whether CONFIG SET may name it."""

    def show(self, config: Config) -> str:
        """Return what CONFIG GET answers."""

    def read(self, text: str) -> dict[str, object]:
        """Return new values by setting name, or raise `Rejected`."""


@dataclass(frozen=True)
class RedisName:
    """A setting under the name that Redis has for it."""

    setting: Setting

    @property
    def is_live(self) -> bool:
        return self.setting.is_live

    def show(self, config: Config) -> str:
        return self.setting.kind.to_redis(config.get(self.setting.name))

    def read(self, text: str) -> dict[str, object]:
        return {self.setting.name: self.setting.kind.from_redis(text)}


@dataclass(frozen=True)
class OwnName:
    """A setting under our name, `section.key`."""

    setting: Setting

    @property
    def is_live(self) -> bool:
        return self.setting.is_live

    def show(self, config: Config) -> str:
        return self.setting.kind.show(config.get(self.setting.name))

    def read(self, text: str) -> dict[str, object]:
        return {self.setting.name: self.setting.kind.parse(text)}


class DataDir(RedisName):
    """`dir`: the directory in use, also where the setting leaves it to the usual place."""

    def show(self, config: Config) -> str:
        return config.data_dir or super().show(config)


@dataclass(frozen=True)
class Constant:
    """A name of Redis that has one value here, and why."""

    value: str
    why: str
    is_live: bool = True

    def show(self, config: Config) -> str:
        return self.value

    def read(self, text: str) -> dict[str, object]:
        if text.lower() != self.value:
            raise Rejected(f"argument must be '{self.value}': {self.why}")
        return {}


class OutputBufferLimit:
    """`client-output-buffer-limit`: class, hard limit, soft limit, soft seconds, once or more.

    The class `pubsub` has the settings of clients with subscriptions, `normal` those of all others.
    """

    is_live = True
    _SECTIONS: ClassVar = {"normal": "client", "pubsub": "pubsub"}
    _KEYS = ("output_buffer_bytes_max", "output_buffer_soft_bytes", "output_buffer_soft_s")
    _OTHERS = ("slave", "replica")

    def show(self, config: Config) -> str:
        normal, pubsub = (
            " ".join(str(config.get(f"{section}.{key}")) for key in self._KEYS)
            for section in self._SECTIONS.values()
        )
        return f"normal {normal} slave 0 0 0 pubsub {pubsub}"

    def read(self, text: str) -> dict[str, object]:
        words = text.split()
        if len(words) % 4:
            raise Rejected("Wrong number of arguments in buffer limit configuration.")
        values: dict[str, object] = {}
        for i in range(0, len(words), 4):
            name, limits = words[i].lower(), words[i + 1 : i + 4]
            if name in self._SECTIONS:
                values |= self._read_class(self._SECTIONS[name], limits)
            elif name not in self._OTHERS:
                raise Rejected("Invalid client class specified in buffer limit configuration.")
            elif limits != ["0", "0", "0"]:
                raise Rejected("only the classes normal and pubsub have limits here")
        return values

    def _read_class(self, section: str, limits: list[str]) -> dict[str, object]:
        values: dict[str, object] = {}
        for key, text in zip(self._KEYS, limits, strict=True):
            name = f"{section}.{key}"
            try:
                values[name] = SETTINGS[name].kind.from_redis(text)
            except Rejected as rejected:
                if "between" in str(rejected):
                    raise Rejected(f"{name}: {rejected}") from None
                raise Rejected(
                    "Error in hard, soft or soft_seconds setting in buffer limit configuration."
                ) from None
        return values


def _options() -> dict[str, Option]:
    options: dict[str, Option] = {
        setting.redis: RedisName(setting) for setting in SETTINGS.values() if setting.redis
    }
    options["dir"] = DataDir(SETTINGS["storage.data_dir"])
    options["client-output-buffer-limit"] = OutputBufferLimit()
    options["save"] = Constant("", "every write is in the commit log, there are no RDB files")
    options["appendonly"] = Constant("yes", "the commit log cannot be switched off")
    options["maxmemory-policy"] = Constant("noeviction", "this is a store, it evicts nothing")
    options["databases"] = Constant("16", "it is fixed", is_live=False)
    options["cluster-enabled"] = Constant("no", "it is fixed", is_live=False)
    return options | {name: OwnName(setting) for name, setting in SETTINGS.items()}


OPTIONS = _options()

# Names of Redis 7.0 (CONFIG GET *) that have no equal here.
_UNEQUAL = """
    acl-pubsub-default aclfile acllog-max-len active-defrag-cycle-max active-defrag-cycle-min
    active-defrag-ignore-bytes active-defrag-max-scan-fields active-defrag-threshold-lower
    active-defrag-threshold-upper active-expire-effort activedefrag activerehashing always-show-logo
    aof-disable-auto-gc aof-load-truncated aof-rewrite-incremental-fsync aof-timestamp-enabled
    aof-use-rdb-preamble aof_rewrite_cpulist appenddirname appendfilename auto-aof-rewrite-min-size
    auto-aof-rewrite-percentage bgsave_cpulist bind-source-addr bio_cpulist busy-reply-threshold
    cluster-allow-pubsubshard-when-down cluster-allow-reads-when-down
    cluster-allow-replica-migration cluster-announce-bus-port cluster-announce-hostname
    cluster-announce-ip cluster-announce-port cluster-announce-tls-port cluster-config-file
    cluster-link-sendbuf-limit cluster-migration-barrier cluster-node-timeout cluster-port
    cluster-preferred-endpoint-type cluster-replica-no-failover cluster-replica-validity-factor
    cluster-require-full-coverage cluster-slave-no-failover cluster-slave-validity-factor
    crash-log-enabled crash-memcheck-enabled daemonize dbfilename disable-thp dynamic-hz
    enable-debug-command enable-module-command enable-protected-configs hash-max-listpack-entries
    hash-max-listpack-value hash-max-ziplist-entries hash-max-ziplist-value hll-sparse-max-bytes hz
    ignore-warnings io-threads io-threads-do-reads jemalloc-bg-thread latency-tracking
    latency-tracking-info-percentiles lazyfree-lazy-eviction lazyfree-lazy-expire
    lazyfree-lazy-server-del lazyfree-lazy-user-del lazyfree-lazy-user-flush lfu-decay-time
    lfu-log-factor list-compress-depth list-max-listpack-size list-max-ziplist-size logfile
    lua-time-limit masterauth masteruser maxmemory-clients maxmemory-eviction-tenacity
    maxmemory-samples min-replicas-max-lag min-replicas-to-write min-slaves-max-lag
    min-slaves-to-write no-appendfsync-on-rewrite oom-score-adj oom-score-adj-values pidfile
    proc-title-template propagation-error-behavior rdb-del-sync-files rdb-save-incremental-fsync
    rdbchecksum rdbcompression repl-backlog-size repl-backlog-ttl repl-disable-tcp-nodelay
    repl-diskless-load repl-diskless-sync repl-diskless-sync-delay repl-diskless-sync-max-replicas
    repl-ping-replica-period repl-ping-slave-period repl-timeout replica-announce-ip
    replica-announce-port replica-announced replica-ignore-disk-write-errors
    replica-ignore-maxmemory replica-lazy-flush replica-priority replica-read-only
    replica-serve-stale-data replicaof sanitize-dump-payload server_cpulist set-max-intset-entries
    set-proc-title shutdown-on-sigint shutdown-on-sigterm shutdown-timeout slave-announce-ip
    slave-announce-port slave-ignore-maxmemory slave-lazy-flush slave-priority slave-read-only
    slave-serve-stale-data slaveof socket-mark-id stop-writes-on-bgsave-error
    stream-node-max-bytes stream-node-max-entries supervised syslog-enabled syslog-facility
    syslog-ident tls-auth-clients tls-ca-cert-dir tls-ca-cert-file tls-cert-file tls-ciphers
    tls-ciphersuites tls-client-cert-file tls-client-key-file tls-client-key-file-pass tls-cluster
    tls-dh-params-file tls-key-file tls-key-file-pass tls-port tls-prefer-server-ciphers
    tls-protocols tls-replication tls-session-cache-size tls-session-cache-timeout
    tls-session-caching tracking-table-max-keys zset-max-listpack-entries zset-max-listpack-value
    zset-max-ziplist-entries zset-max-ziplist-value
"""
UNEQUAL = frozenset(_UNEQUAL.split())


def redis_get(config: Config, *patterns: bytes) -> list[tuple[str, str]]:
    """Answer CONFIG GET: names that match any of the glob patterns, each once, with their values.

    Names do not mind case; one that was asked for without wildcards is answered as it was spelled.
    Names without an equal here are left out, as are names that nobody has.
    """
    spellings: dict[str, str] = {}
    for pattern in patterns:
        asked = pattern.decode(errors="replace")
        for name in _matching(asked.lower()):
            spellings.setdefault(name, asked if asked.lower() == name else name)
    return [(shown, OPTIONS[name].show(config)) for name, shown in spellings.items()]


def _matching(pattern: str) -> list[str]:
    r"""Return the options that a glob pattern of Redis matches: `*`, `?`, `[a-z]`, `[^a]`, `\x`."""
    if pattern in OPTIONS:
        return [pattern]
    if len(pattern) > PATTERN_BYTES_MAX or not re.search(r"[*?[\\]", pattern):
        return []
    # fnmatch knows neither backslashes nor ^, and makes an expression that does not backtrack.
    pattern = re.sub(r"\\(.)", r"[\1]", pattern).replace("[^", "[!")
    matches = re.compile(fnmatch.translate(pattern)).match
    return [name for name in OPTIONS if matches(name)]


def redis_set(config: Config, pairs: Iterable[tuple[bytes | str, bytes | str]]) -> set[str]:
    """Carry out CONFIG SET, all of it or nothing, and return the names of settings that changed.

    The caller puts into effect what changed. Raises `ConfigError`, whose line is the error reply.
    """
    named = [(_name(name), value) for name, value in pairs]
    for name, _ in named:
        if name.lower() not in OPTIONS and name.lower() not in UNEQUAL:
            text = f"ERR Unknown option or number of arguments for CONFIG SET - '{name}'"
            raise ConfigError(text)
    _refuse_unchangeable([name for name, _ in named])
    values: dict[str, object] = {}
    source: dict[str, str] = {}
    for name, value in named:
        for setting, read in _read(name.lower(), value).items():
            if setting in values:  # Once under Redis' name and once under ours.
                _fail(name, "duplicate parameter")
            values[setting] = read
            source[setting] = name.lower()
    return _put(config, values, source)


def _refuse_unchangeable(names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        known = name.lower()
        if known in UNEQUAL:
            _fail(name, "respkv has no setting that is equal to this one")
        if not OPTIONS[known].is_live:
            _fail(name, "can't set immutable config")
        if known in seen:
            _fail(name, "duplicate parameter")
        seen.add(known)


def _read(name: str, value: bytes | str) -> dict[str, object]:
    try:
        return OPTIONS[name].read(value if isinstance(value, str) else value.decode())
    except UnicodeDecodeError:
        _fail(name, "argument must be UTF-8")
    except Rejected as rejected:
        _fail(name, str(rejected))


def _put(config: Config, values: dict[str, object], source: dict[str, str]) -> set[str]:
    """Set the values, or set them back if they contradict others."""
    before = {name: config.get(name) for name in values}
    for name, value in values.items():
        config.put(name, value)
    if conflict := conflict_of(config):
        for name, value in before.items():
            config.put(name, value)
        names, text = conflict
        _fail(next(option for name, option in source.items() if name in names), text)
    config.overridden -= values.keys()
    return {name for name, value in values.items() if before[name] != value}


def _name(name: bytes | str) -> str:
    """Return an option's name for messages, without what would break a reply's line."""
    text = name if isinstance(name, str) else name.decode(errors="replace")
    return re.sub(r"[\r\n]", " ", text[:128])


def _fail(name: str, why: str) -> NoReturn:
    raise ConfigError(f"ERR CONFIG SET failed (possibly related to argument '{name}') - {why}")
