"""The configuration file: read, checked, documented, written back."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path

import pytest

from respkv.config import (
    Config,
    ConfigError,
    default_data_dir,
    load,
    load_nodes,
    redis_set,
    reference,
    rewrite,
)
from respkv.node_config import SECTIONS, SETTINGS
from respkv.setting import Integer, Number, toml_text

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "respkv.toml"


def error_of(file: Path, text: str | bytes) -> str:
    """Return the line of the error for the text of a file, without its folder."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as error:
        load(str(file))
    assert "\n" not in error.value.line
    return error.value.line.replace(f"{file.parent}/", "")


# What is loaded


def test_without_a_file_everything_has_its_default() -> None:
    config = load(None)
    assert config.client.hosts == ("127.0.0.1",)
    assert config.client.port == 6379
    assert config.log.fsync == "everysec"
    assert config.memory.bytes_max == 1 << 30
    assert config.path is None


def test_every_default_is_allowed_by_its_kind_in_every_spelling() -> None:
    for setting in SETTINGS.values():
        kind = setting.kind
        assert kind.check(kind.literal(setting.default)) == setting.default
        assert kind.parse(kind.show(setting.default)) == setting.default


def test_every_section_of_config_is_declared() -> None:
    config = Config()
    assert {name for name in SECTIONS if hasattr(config, name)} == set(SECTIONS)
    assert set(tomllib.loads(reference())) == set(SECTIONS)


def test_a_file_changes_what_it_names(file: Path) -> None:
    file.write_text('[client]\nhosts = ["::1"]\nport = 7000\n[memory]\nbytes_max = "64MiB"\n')
    config = load(str(file))
    assert config.client.hosts == ("::1",)
    assert config.path == str(file)
    names = [setting.name for setting in config.differing(Config())]
    assert names == ["client.hosts", "client.port", "memory.bytes_max"]


def test_overrides_win_over_the_file(file: Path) -> None:
    file.write_text("[client]\nport = 7000\nbacklog = 9\n")
    config = load(str(file), ["client.port=7001", "client.requirepass=a=b"])
    assert (config.client.port, config.client.backlog) == (7001, 9)
    assert config.client.requirepass == "a=b"
    assert config.overridden == {"client.port", "client.requirepass"}


# What is wrong, in one line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            '[log]\nfsync = "allways"',
            'log.fsync = "allways": must be one of "always", "everysec", "no"',
        ),
        ("[client]\nport = 70000", "client.port = 70000: must be an integer from 0 to 65535"),
        ("[client]\nport = true", "client.port = true: must be an integer from 0 to 65535"),
        (
            "[client]\nidle_timeout_s = -1",
            "client.idle_timeout_s = -1: must be an integer from 0 to 2147483647, in seconds",
        ),
        (
            '[memory]\nbytes_max = "1gb"',
            'memory.bytes_max = "1gb": must be a size from 16MiB to 1024TiB, '
            'in bytes or such as "64MiB" or "64MB"',
        ),
        ("[cluster]\nn = 3", "cluster.n = 3: must be at most 1, the number of nodes"),
        ("[cluster]\nw = 2", "cluster.w = 2: must be at most cluster.n (1)"),
        ("client = 3", "client = 3: must be a table, which begins with [client]"),
        (
            "[[client]]\nport = 1",
            "client = [a table]: must be a table, which begins with [client]",
        ),
        ("[client]\nport =", "line 2, column 7: not TOML: Invalid value"),
        (
            "[client]\nport = 1\nport = 2",
            "line 3, column 9: not TOML: Cannot overwrite a value",
        ),
        ('a = """\nbc', "line 2, column 3: not TOML: Unterminated string"),
        (b"[client]\nunix_socket = '\xff'", "line 2, column 16: not UTF-8"),
        (b"#" * (1 << 20) + b"#", "has more than 1048576 bytes"),
    ],
)
def test_a_wrong_file_is_one_line(file: Path, text: str | bytes, line: str) -> None:
    assert error_of(file, text) == f"respkv.toml: {line}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[clinet]\nport = 1", "unknown section [clinet]; did you mean [client]?"),
        ("[client]\nprot = 1", "unknown setting client.prot; did you mean client.port?"),
        ("[client]\nfsync = 'no'", "unknown setting client.fsync; did you mean log.fsync?"),
        (
            "[client]\nmaxclients = 5",
            "unknown setting client.maxclients; did you mean client.clients_max?",
        ),
        (
            "[client]\nappendfsync = 'no'",
            "unknown setting client.appendfsync; did you mean log.fsync?",
        ),
        ("port = 1", "port stands outside a section; did you mean client.port?"),
        ("[client]\nxyzzy = 1", "unknown setting client.xyzzy"),
        ('[client]\n"a\\nb" = 1', 'unknown setting "client.a\\nb"'),
        ("[xyzzy]", f"unknown section [xyzzy]; sections are {', '.join(SECTIONS)}"),
    ],
)
def test_an_unknown_name_is_answered_with_the_one_meant(file: Path, text: str, line: str) -> None:
    assert error_of(file, text) == f"respkv.toml: {line}"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("client.port=x", 'client.port = "x": must be an integer from 0 to 65535'),
        ("cleint.port=1", "unknown setting cleint.port; did you mean client.port?"),
        ("latncy.threshold=1",
         "unknown setting latncy.threshold; did you mean latency.threshold_ms?"),
        ("port=1", "unknown setting port; did you mean client.port?"),
        ("foo", 'a setting is given as section.key=value, not as "foo"'),
        ("expiry.budget_ms=101",
         "expiry.budget_ms = 101: must be at most expiry.interval_ms (100)"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_one_line(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(None, [override])
    assert error.value.line == f"command line: {line}"


def test_a_wrong_password_is_not_shown(file: Path) -> None:
    assert "12345" not in error_of(file, "[client]\nrequirepass = 12345")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(str(tmp_path / "none.toml"))
    assert error.value.line == f"{tmp_path}/none.toml: cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[memory]\nrow_cache_share = 0.6", "add up to 1.1: must be at most 1"),
        ("[expiry]\nbudget_ms = 101", "must be at most expiry.interval_ms (100)"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(file: Path, text: str, part: str) -> None:
    assert part in error_of(file, text)


def test_settings_at_the_edge_of_contradiction_are_taken(file: Path) -> None:
    file.write_text(
        "[expiry]\nbudget_ms = 100\n"
        "[memory]\nrow_cache_share = 0.7\nmemtable_share = 0.1\nblock_cache_share = 0.2"
    )
    assert load(str(file)).expiry.budget_ms == 100


# Where data goes


@pytest.mark.parametrize(
    ("environ", "is_root", "is_writable", "expected"),
    [
        ({}, True, False, "/var/lib/respkv"),
        ({"HOME": "/home/u"}, False, True, "/var/lib/respkv"),
        ({"HOME": "/home/u"}, False, False, "/home/u/.local/state/respkv"),
        ({"HOME": "/home/u", "XDG_STATE_HOME": "/s"}, False, False, "/s/respkv"),
        ({"HOME": "/home/u", "XDG_STATE_HOME": "s"}, False, False, "/home/u/.local/state/respkv"),
    ],
)
def test_the_usual_place_of_data(
    environ: dict[str, str], is_root: bool, is_writable: bool, expected: str
) -> None:
    assert default_data_dir(environ, is_root, lambda path: is_writable) == expected


def test_without_a_home_the_usual_place_is_unknown() -> None:
    with pytest.raises(ConfigError, match="--data-dir"):
        default_data_dir({}, is_root=False, is_writable=lambda path: False)


# The files in conf/


def test_the_documented_file_is_what_the_declarations_say() -> None:
    """`respkv default-config > conf/respkv.toml` makes it so."""
    assert (CONF / "respkv.toml").read_text() == reference()


def test_the_documented_file_loads_to_exactly_the_defaults() -> None:
    assert load(str(CONF / "respkv.toml")).differing(Config()) == []


def test_the_documented_file_names_every_setting_with_its_facts() -> None:
    text = (CONF / "respkv.toml").read_text()
    tables = tomllib.loads(text)
    unwrapped = " ".join(text.replace("\n# ", " ").split())
    for setting in SETTINGS.values():
        value = setting.kind.literal(setting.default)
        assert tables[setting.section][setting.key] == value
        facts = f"{setting.doc} Must be {setting.kind.allowed()}."
        facts += f" Redis: {setting.redis}." if setting.redis else ""
        facts += " Live." if setting.is_live else ""
        assert f"{facts} {setting.key} = {toml_text(value)}" in unwrapped
        if isinstance(setting.kind, (Integer, Number)) and setting.kind.unit:
            assert setting.key.endswith(("_s", "_ms", "_us"))
    assert sum(map(len, tables.values())) == len(SETTINGS)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.toml")), ids=lambda path: path.name)
def test_every_example_loads(path: Path) -> None:
    config = load(str(path))
    assert path.name == "respkv.toml" or config.differing(Config())


def test_the_cluster_on_this_machine_is_three_nodes_that_share_little() -> None:
    configs = load_nodes(str(CONF / "cluster.toml"))
    assert list(configs) == ["a", "b", "c"]
    assert [config.client.port for config in configs.values()] == [6379, 6380, 6381]
    assert list(configs["a"].admin_ports.values()) == [26379, 26380, 26381]
    assert [(node.cluster_port, node.bus_port) for node in configs["a"].nodes] == [
        (6479, 16379),
        (6480, 16380),
        (6481, 16381),
    ]
    for name, config in configs.items():
        assert config.storage.data_dir == f"data/{name}"
        assert config.client.hosts == ("127.0.0.1",)
        assert config.memory.bytes_max == 256 << 20
        assert (config.n, config.r, config.w) == (3, 2, 2)
        assert load(str(CONF / "cluster.toml"), node=name) == config


def test_the_cluster_of_machines_can_lose_a_zone() -> None:
    path = str(CONF / "cluster-hosts.toml")
    config = load(path, node="gamma")
    assert config.client.hosts == ("10.0.0.3",)
    assert config.cluster.secret_file
    assert config.client.requirepass
    assert config.memory.bytes_max == 8 << 30
    assert load(path, node="alpha").memory.bytes_max == 4 << 30
    assert len({node.zone for node in config.nodes}) == len(config.nodes) == config.n == 3


# Written back


def set_live(config: Config) -> None:
    redis_set(config, [(b"maxclients", b"30"), (b"timeout", b"5")])


CLUSTER = """\
# mine
[client]
idle_timeout_s = 1 # for all

[[node]]
name = "a"
host = "127.0.0.1"
port = 7001 # the usual
data_dir = "a"

[[node]]
name = "b"
host = "127.0.0.1"
port = 7002
data_dir = "b"
"""


def test_rewrite_of_a_member_changes_its_own_table_and_keeps_all_else(file: Path) -> None:
    file.write_text(CLUSTER)
    config = load(str(file), node="b")
    set_live(config)
    rewrite(config, str(file))
    settings = '\n[node.settings]\n"client.clients_max" = 30\n"client.idle_timeout_s" = 5\n'
    assert file.read_text() == CLUSTER + settings
    assert load(str(file), node="b").differing(config) == []
    a = load(str(file), node="a")
    assert (a.client.clients_max, a.client.idle_timeout_s) == (10_000, 1)
    set_live(a)
    rewrite(a, str(file))
    assert load(str(file), node="a").differing(a) == []
    assert load(str(file), node="b").differing(config) == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ('"client.idle_timeout_s" = 2', '"client.idle_timeout_s" = 5'),
        ("client.idle_timeout_s = 2", "client.idle_timeout_s = 5"),
    ],
)
def test_rewrite_changes_a_setting_where_the_member_has_it(
    file: Path, settings: str, expected: str
) -> None:
    file.write_text(f"{CLUSTER}[node.settings]\n{settings} # here\n")
    config = load(str(file), node="b")
    redis_set(config, [(b"timeout", b"5")])
    rewrite(config, str(file))
    assert file.read_text() == f"{CLUSTER}[node.settings]\n{expected} # here\n"


def test_rewrite_knows_nodes_in_one_line(file: Path) -> None:
    file.write_text('node = [{name = "a", host = "::1", port = 1}]\n')
    config = load(str(file), node="a")
    set_live(config)
    rewrite(config, str(file))
    assert load(str(file), node="a").differing(config) == []


def test_rewrite_of_a_member_whose_secret_the_command_line_gave(file: Path) -> None:
    file.write_text(CLUSTER.replace("127.0.0.1", "10.0.0.1"))
    config = load(str(file), ["cluster.secret_file=/s"], node="a")
    set_live(config)
    rewrite(config, str(file))
    assert load(str(file), ["cluster.secret_file=/s"], node="a").differing(config) == []
    assert "/s" not in file.read_text()


def test_rewrite_of_a_member_that_is_no_more_says_so(file: Path) -> None:
    file.write_text(CLUSTER)
    config = load(str(file), node="b")
    set_live(config)
    file.write_text(CLUSTER.replace('"b"', '"c"'))
    with pytest.raises(ConfigError, match='it has no node "b" any more'):
        rewrite(config, str(file))


def test_rewrite_changes_what_differs_and_keeps_all_else(file: Path) -> None:
    file.write_text(
        "# mine\n\n[client]\nport = 7000 # the usual\n# many\nclients_max = 20 # few\n\n"
        '[memory]\nbytes_max = "1024MiB"\n'
    )
    config = load(str(file))
    redis_set(config, [(b"maxclients", b"30"), (b"timeout", b"5"), (b"appendfsync", b"no")])
    rewrite(config, str(file))
    assert file.read_text() == (
        "# mine\n\n[client]\nport = 7000 # the usual\n# many\nclients_max = 30 # few\n"
        'idle_timeout_s = 5\n\n[memory]\nbytes_max = "1024MiB"\n\n[log]\nfsync = "no"\n'
    )
    assert load(str(file)).differing(config) == []


def test_rewrite_writes_values_as_people_do(file: Path) -> None:
    config = load(None)
    redis_set(config, [(b"maxmemory", b"64mb"), (b"requirepass", 'a"\n\\ñ'.encode())])
    redis_set(config, [(b"protected-mode", b"no"), (b"client.shutdown_grace_s", b"2")])
    rewrite(config, str(file))
    text = file.read_text()
    assert 'bytes_max = "64MiB"' in text
    assert "protected_mode = false" in text
    assert load(str(file)).differing(config) == []
    assert stat.S_IMODE(file.stat().st_mode) == 0o600  # It may have a password.


def test_rewrite_changes_the_documented_file_in_place(file: Path) -> None:
    file.write_text(reference())
    config = load(str(file))
    redis_set(config, [(b"slowlog-max-len", b"7")])
    rewrite(config, str(file))
    assert file.read_text() == reference().replace("entries_max = 128", "entries_max = 7")


@pytest.mark.parametrize("text", ["client.port = 7000\n", "client = {port = 7000}\n"])
def test_rewrite_knows_other_ways_to_write_a_table(file: Path, text: str) -> None:
    file.write_text(text)
    config = load(str(file))
    redis_set(config, [(b"maxclients", b"30"), (b"timeout", b"5")])
    rewrite(config, str(file))
    assert load(str(file)).differing(config) == []


def test_rewrite_leaves_what_the_command_line_gave_unless_it_was_set_since(file: Path) -> None:
    file.write_text("[client]\nport = 7000\n")
    config = load(str(file), ["client.port=7001", "client.clients_max=5", "log.fsync=always"])
    redis_set(config, [(b"maxclients", b"6")])
    rewrite(config, str(file))
    assert file.read_text() == "[client]\nport = 7000\nclients_max = 6\n"


def test_rewrite_without_a_difference_writes_nothing(file: Path) -> None:
    file.write_text("[client]\nport = 7000\n")
    config = load(str(file))
    inode = file.stat().st_ino
    rewrite(config, str(file))
    assert file.stat().st_ino == inode


def test_rewrite_replaces_the_file_a_link_points_to_and_keeps_its_mode(
    file: Path, tmp_path: Path
) -> None:
    file.write_text("")
    file.chmod(0o640)
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    config = load(str(link))
    redis_set(config, [(b"timeout", b"5")])
    rewrite(config, str(link))
    assert link.is_symlink()
    assert file.read_text() == "[client]\nidle_timeout_s = 5\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["link.toml", "respkv.toml"]


def test_rewrite_of_a_file_that_became_wrong_says_so_and_leaves_it(file: Path) -> None:
    file.write_text("[client")
    config = Config()
    config.client.idle_timeout_s = 5
    with pytest.raises(ConfigError, match="not TOML"):
        rewrite(config, str(file))
    assert file.read_text() == "[client"


def test_a_rewrite_that_fails_leaves_the_old_file_and_nothing_else(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("# old\n")
    config = load(str(file))
    redis_set(config, [(b"timeout", b"5")])

    def full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(ConfigError) as error:
        rewrite(config, str(file))
    assert error.value.line == f"{file}: cannot be written: No space left on device"
    assert file.read_text() == "# old\n"
    assert os.listdir(tmp_path) == ["respkv.toml"]


def test_a_rewrite_into_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    config = Config()
    config.client.idle_timeout_s = 5
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        rewrite(config, str(tmp_path / "none" / "respkv.toml"))
