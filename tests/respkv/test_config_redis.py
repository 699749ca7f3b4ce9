"""CONFIG GET and CONFIG SET: names, values and error texts as Redis 7.0 has them."""

from __future__ import annotations

import pytest

from respkv.config import Config, ConfigError, redis_get, redis_set
from respkv.config_redis import OPTIONS, UNEQUAL
from respkv.node_config import SETTINGS

FAILED = "ERR CONFIG SET failed (possibly related to argument '{}') - {}"


def get(config: Config, name: str) -> str:
    """Return the one value that CONFIG GET answers."""
    ((found, value),) = redis_get(config, name.encode())
    assert found == name
    return value


def set_all(config: Config, *words: str) -> set[str]:
    encoded = [word.encode() for word in words]
    return redis_set(config, list(zip(encoded[::2], encoded[1::2], strict=True)))


def failure(config: Config, *words: str) -> str:
    with pytest.raises(ConfigError) as error:
        set_all(config, *words)
    return error.value.line


# CONFIG GET


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # As a Redis 7.0 answers without a configuration.
        ("maxclients", "10000"),
        ("timeout", "0"),
        ("tcp-keepalive", "300"),
        ("port", "6379"),
        ("unixsocket", ""),
        ("unixsocketperm", "0"),
        ("requirepass", ""),
        ("protected-mode", "yes"),
        ("tcp-backlog", "511"),
        ("proto-max-bulk-len", "536870912"),
        ("client-query-buffer-limit", "1073741824"),
        ("appendfsync", "everysec"),
        ("slowlog-log-slower-than", "10000"),
        ("slowlog-max-len", "128"),
        ("latency-monitor-threshold", "0"),
        ("loglevel", "notice"),
        ("databases", "16"),
        ("cluster-enabled", "no"),
        ("maxmemory-policy", "noeviction"),
        ("notify-keyspace-events", ""),
        # Different here.
        ("bind", "127.0.0.1"),
        ("maxmemory", "1073741824"),
        ("save", ""),
        ("appendonly", "yes"),
        ("dir", ""),
        (
            "client-output-buffer-limit",
            "normal 67108864 1048576 10 slave 0 0 0 pubsub 33554432 8388608 60",
        ),
        # Under our names.
        ("client.hosts", "127.0.0.1"),
        ("client.protected_mode", "true"),
        ("memory.bytes_max", "1073741824"),
        ("memory.memtable_share", "0.25"),
    ],
)
def test_config_get(name: str, value: str) -> None:
    assert get(Config(), name) == value


def test_dir_is_the_directory_in_use() -> None:
    config = Config()
    config.data_dir = "/var/lib/respkv"
    assert get(config, "dir") == "/var/lib/respkv"
    assert get(config, "storage.data_dir") == ""


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        (b"maxm*", ["maxmemory", "maxmemory-policy"]),
        (b"MAXCLIENTS", ["MAXCLIENTS"]),
        (b"MAXCLIENT?", ["maxclients"]),
        (b"?or[st]", ["port"]),
        (b"[^a-o]ort", ["port"]),
        (b"[^p]ort", []),
        (b"p\\ort", ["port"]),
        (b"\\*", []),
        (b"slowlog.*", ["slowlog.threshold_us", "slowlog.entries_max"]),
        (b"por", []),
        (b"ort", []),
        (b"nothing", []),
        (b"maxmemory-samples", []),
        (b"\xff*", []),
        (b"[", []),
        (b"[z-a]*", []),
        (b"", []),
        (b"*" * 2000, []),
    ],
)
def test_config_get_takes_glob_patterns(pattern: bytes, names: list[str]) -> None:
    assert [name for name, _ in redis_get(Config(), pattern)] == names


def test_config_get_answers_the_first_spelling() -> None:
    names = (b"Timeout", b"timeout", b"time?ut")
    assert redis_get(Config(), *names) == [("Timeout", "0")]
    assert redis_get(Config(), *reversed(names)) == [("timeout", "0")]


def test_config_get_star_is_everything_once() -> None:
    names = [name for name, _ in redis_get(Config(), b"*", b"port", b"maxc*")]
    assert sorted(names) == sorted(OPTIONS)
    assert set(SETTINGS) <= set(names)


def test_a_pattern_that_backtracks_takes_no_time() -> None:
    assert redis_get(Config(), b"*?" * 500 + b"!") == []


# CONFIG SET


@pytest.mark.parametrize(
    ("name", "value", "setting", "expected"),
    [
        ("maxclients", "50", "client.clients_max", 50),
        ("MaxClients", "51", "client.clients_max", 51),
        ("timeout", "0", "client.idle_timeout_s", 0),
        ("tcp-keepalive", "60", "client.tcp_keepalive_s", 60),
        ("requirepass", "foo bar", "client.requirepass", "foo bar"),
        ("protected-mode", "NO", "client.protected_mode", False),
        ("proto-max-bulk-len", "2mb", "client.bulk_bytes_max", 2 << 20),
        ("client-query-buffer-limit", "2m", "client.query_buffer_bytes_max", 2 * 10**6),
        ("appendfsync", "ALWAYS", "log.fsync", "always"),
        ("maxmemory", "100mb", "memory.bytes_max", 100 << 20),
        ("slowlog-log-slower-than", "-1", "slowlog.threshold_us", -1),
        ("slowlog-max-len", "0", "slowlog.entries_max", 0),
        ("latency-monitor-threshold", "100", "latency.threshold_ms", 100),
        ("loglevel", "debug", "logging.level", "debug"),
        ("loglevel", "verbose", "logging.level", "info"),
        ("loglevel", "warning", "logging.level", "warning"),
        ("logging.level", "error", "logging.level", "error"),
        ("memory.bytes_max", "64MiB", "memory.bytes_max", 64 << 20),
        ("client.protected_mode", "false", "client.protected_mode", False),
        ("client.shutdown_grace_s", "0.5", "client.shutdown_grace_s", 0.5),
    ],
)
def test_config_set(name: str, value: str, setting: str, expected: object) -> None:
    config = Config()
    changed = set_all(config, name, value)
    assert config.get(setting) == expected
    assert changed == ({setting} if expected != SETTINGS[setting].default else set())


def test_every_live_setting_shows_a_value_that_config_set_takes() -> None:
    config = Config()
    for name, value in redis_get(config, b"*"):
        if OPTIONS[name].is_live:
            assert set_all(config, name, value) == set()
    assert config.differing(Config()) == []


def test_output_buffer_limits_are_three_settings_of_each_class() -> None:
    config = Config()
    changed = set_all(config, "client-output-buffer-limit", "normal 1mb 32k 5 pubsub 64k 0 7")
    assert changed == {
        "pubsub.output_buffer_bytes_max",
        "pubsub.output_buffer_soft_bytes",
        "pubsub.output_buffer_soft_s",
        "client.output_buffer_bytes_max",
        "client.output_buffer_soft_bytes",
        "client.output_buffer_soft_s",
    }
    shown = "normal 1048576 32000 5 slave 0 0 0 pubsub 64000 0 7"
    assert get(config, "client-output-buffer-limit") == shown
    assert set_all(config, "client-output-buffer-limit", "") == set()


@pytest.mark.parametrize(
    ("words", "name", "text"),
    [
        (["maxclients", "abc"], "maxclients", "argument couldn't be parsed into an integer"),
        (["timeout", "+1"], "timeout", "argument couldn't be parsed into an integer"),
        (["timeout", "1.5"], "timeout", "argument couldn't be parsed into an integer"),
        (["timeout", ""], "timeout", "argument couldn't be parsed into an integer"),
        (
            ["timeout", "-5"],
            "timeout",
            "argument must be between 0 and 2147483647 inclusive",
        ),
        (
            ["slowlog-log-slower-than", "-2"],
            "slowlog-log-slower-than",
            "argument must be between -1 and 9223372036854775807 inclusive",
        ),
        (
            ["appendfsync", "allways"],
            "appendfsync",
            "argument(s) must be one of the following: everysec, always, no",
        ),
        (
            ["loglevel", "foo"],
            "loglevel",
            "argument(s) must be one of the following: debug, verbose, notice, warning",
        ),
        (["protected-mode", "maybe"], "protected-mode", "argument must be 'yes' or 'no'"),
        (["maxmemory", "1xb"], "maxmemory", "argument must be a memory value"),
        (["maxmemory", "-1"], "maxmemory", "argument must be a memory value"),
        (["proto-max-bulk-len", "1x"], "proto-max-bulk-len", "argument must be a memory value"),
        (["tcp-backlog", "1"], "tcp-backlog", "can't set immutable config"),
        (["unixsocket", "/run/x.sock"], "unixsocket", "can't set immutable config"),
        (["unixsocketperm", "700"], "unixsocketperm", "can't set immutable config"),
        (["databases", "16"], "databases", "can't set immutable config"),
        (["cluster-enabled", "no"], "cluster-enabled", "can't set immutable config"),
        (["timeout", "5", "appendfsync", "no", "timeout", "6"], "timeout", "duplicate parameter"),
        (["maxclients", "x", "MAXCLIENTS", "x"], "MAXCLIENTS", "duplicate parameter"),
        (["TCP-backlog", "1"], "TCP-backlog", "can't set immutable config"),
        (["TIMEOUT", "x"], "timeout", "argument couldn't be parsed into an integer"),
        (["timeout", "x", "tcp-backlog", "3"], "tcp-backlog", "can't set immutable config"),
        (
            ["client-output-buffer-limit", "normal 1 2"],
            "client-output-buffer-limit",
            "Wrong number of arguments in buffer limit configuration.",
        ),
        (
            ["client-output-buffer-limit", "foo 1 2 3"],
            "client-output-buffer-limit",
            "Invalid client class specified in buffer limit configuration.",
        ),
        (
            ["client-output-buffer-limit", "normal a 2 3"],
            "client-output-buffer-limit",
            "Error in hard, soft or soft_seconds setting in buffer limit configuration.",
        ),
    ],
)  # fmt: skip
def test_config_set_fails_with_the_texts_of_redis(words: list[str], name: str, text: str) -> None:
    config = Config()
    assert failure(config, *words) == FAILED.format(name, text)
    assert config.differing(Config()) == []


@pytest.mark.parametrize("words", [["foo", "1"], ["port", "1", "foo", "2"], ["x", "1", "foo", "2"]])
def test_an_unknown_name_is_answered_as_by_redis(words: list[str]) -> None:
    unknown = "x" if words[0] == "x" else "foo"
    expected = f"ERR Unknown option or number of arguments for CONFIG SET - '{unknown}'"
    assert failure(Config(), *words) == expected


@pytest.mark.parametrize(
    ("words", "name", "text"),
    [
        # Bounds that Redis has not.
        (["maxclients", "0"], "maxclients", "argument must be between 1 and 1000000 inclusive"),
        (
            ["maxmemory", "0"],
            "maxmemory",
            "argument must be between 16777216 and 1125899906842624 inclusive",
        ),
        (
            ["client-output-buffer-limit", "normal 0 0 0"],
            "client-output-buffer-limit",
            "client.output_buffer_bytes_max: "
            "argument must be between 16384 and 1099511627776 inclusive",
        ),
        # Names that Redis can change and we cannot.
        (["port", "7000"], "port", "can't set immutable config"),
        (["bind", "127.0.0.1"], "bind", "can't set immutable config"),
        (["dir", "/srv"], "dir", "can't set immutable config"),
        (["cluster.n", "1"], "cluster.n", "can't set immutable config"),
        # Names that have no equal, or one value.
        (
            ["maxmemory-samples", "5"],
            "maxmemory-samples",
            "respkv has no setting that is equal to this one",
        ),
        (
            ["save", "900 1"],
            "save",
            "argument must be '': every write is in the commit log, there are no RDB files",
        ),
        (
            ["appendonly", "no"],
            "appendonly",
            "argument must be 'yes': the commit log cannot be switched off",
        ),
        (
            ["client-output-buffer-limit", "replica 1 1 1"],
            "client-output-buffer-limit",
            "only the classes normal and pubsub have limits here",
        ),
        # Our names.
        (
            ["client.clients_max", "many"],
            "client.clients_max",
            "must be an integer from 1 to 1000000",
        ),
        (["timeout", "5", "client.idle_timeout_s", "5"], "client.idle_timeout_s",
         "duplicate parameter"),
        (
            ["timeout", "5", "expiry.budget_ms", "101"],
            "expiry.budget_ms",
            "expiry.budget_ms = 101: must be at most expiry.interval_ms (100)",
        ),
    ],
)  # fmt: skip
def test_config_set_fails_with_texts_of_our_own(words: list[str], name: str, text: str) -> None:
    config = Config()
    assert failure(config, *words) == FAILED.format(name, text)
    assert config.differing(Config()) == []


@pytest.mark.parametrize(
    "words",
    [["save", ""], ["appendonly", "yes"], ["maxmemory-policy", "noeviction"]],
)
def test_a_constant_may_be_set_to_what_it_is(words: list[str]) -> None:
    assert set_all(Config(), *words) == set()


def test_config_set_is_all_or_nothing() -> None:
    config = Config()
    failure(config, "timeout", "5", "maxclients", "0")
    assert config.differing(Config()) == []
    assert set_all(config, "timeout", "5", "maxclients", "7") == {
        "client.idle_timeout_s",
        "client.clients_max",
    }


def test_two_settings_may_leave_a_contradiction_together() -> None:
    config = Config()
    set_all(config, "expiry.budget_ms", "200", "expiry.interval_ms", "300")
    assert (config.expiry.budget_ms, config.expiry.interval_ms) == (200, 300)


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(ConfigError) as error:
        redis_set(Config(), [(b"requirepass", b"\xff")])
    assert error.value.line == FAILED.format("requirepass", "argument must be UTF-8")


def test_an_unknown_name_cannot_break_the_reply() -> None:
    with pytest.raises(ConfigError) as error:
        redis_set(Config(), [(b"a\r\n+OK" + b"x" * 9999, b"")])
    assert "\r" not in error.value.line
    assert "\n" not in error.value.line
    assert len(error.value.line) < 250


def test_no_name_is_both_known_and_without_an_equal() -> None:
    assert not UNEQUAL & set(OPTIONS)
