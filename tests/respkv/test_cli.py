"""The command line: what reaches the node, and what a user is told."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from respkv.cli import main
from respkv.config import Config, load
from respkv.version import VERSION

ROOT = Path(__file__).parents[2]


class Node:
    """Takes the node's place and keeps what it was run with."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.runs: list[tuple[Config, str, str]] = []

    def __call__(self, config: Config, data_dir: str, node_name: str) -> int:
        self.runs.append((config, data_dir, node_name))
        return self.status


class Nodes:
    """Takes the supervisor's place and keeps what it was run with."""

    def __init__(self) -> None:
        self.runs: list[tuple[Config, list[str], bool]] = []

    def __call__(self, config: Config, overrides: list[str], is_restarting: bool) -> int:
        self.runs.append((config, overrides, is_restarting))
        return 0


TWO = """\
[[node]]
name = "a"
host = "127.0.0.1"
port = 7001
data_dir = "data/a"
[[node]]
name = "b"
host = "::1"
port = 7002
data_dir = "data/b"
zone = "z"
  [node.settings]
  "log.fsync" = "no"
"""


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with two nodes, in the working directory."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "cluster.toml"
    file.write_text(TWO)
    return file


def serve(*words: str) -> tuple[Config, str, str]:
    """Return what `respkv serve` runs a node with."""
    node = Node()
    assert main(["serve", *words], run=node) == 0
    (run,) = node.runs
    return run


def misuse(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the one line that a wrong command line is answered with."""
    node = Node()
    try:
        status = main(words, run=node)
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else -1
    assert status == 2
    assert node.runs == []
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.removesuffix("\n")


# serve


def test_serve_without_options_is_all_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    config, data_dir, node_name = serve()
    assert config.differing(Config()) == []
    assert data_dir == config.data_dir == f"{tmp_path}/respkv"
    assert node_name == os.uname().nodename


def test_root_has_data_in_the_place_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert serve()[1] == "/var/lib/respkv"


def test_serve_hands_its_options_to_the_node(tmp_path: Path) -> None:
    file = tmp_path / "respkv.toml"
    file.write_text('[client]\nport = 1\nbacklog = 9\n[log]\nfsync = "no"\n')
    config, data_dir, node_name = serve(
        *("--config", str(file), "--node", "n1", "--host", "::1", "--host", "127.0.0.1"),
        *("--port", "7000", "--data-dir", str(tmp_path / "d"), "--set", "client.port=3"),
        *("--set", "log.fsync=always", "--set", "log.fsync=everysec"),
    )
    assert config.path == str(file)
    assert config.client.hosts == ("::1", "127.0.0.1")
    assert config.client.port == 7000
    assert config.client.backlog == 9
    assert config.log.fsync == "everysec"
    assert data_dir == config.data_dir == str(tmp_path / "d")
    assert node_name == "n1"


@pytest.mark.parametrize(("given", "expected"), [("d", "{cwd}/d"), ("~/d", "{home}/d")])
def test_a_data_directory_is_made_absolute(
    given: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/u")
    data_dir = serve("--set", f"storage.data_dir={given}")[1]
    assert data_dir == expected.format(cwd=tmp_path, home="/home/u")


def test_the_status_of_the_node_is_the_status() -> None:
    assert main(["serve", "--data-dir", "d"], run=Node(status=1)) == 1


def test_ctrl_c_before_the_node_handles_it_ends_without_a_traceback() -> None:
    def interrupted(config: Config, data_dir: str, node_name: str) -> int:
        raise KeyboardInterrupt

    assert main(["serve", "--data-dir", "d"], run=interrupted) == 130


# What is wrong


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], 'respkv: the following arguments are required: COMMAND; see "respkv --help"'),
        (["serve", "--prot", "1"], 'respkv: unrecognized arguments: --prot 1; see "respkv --help"'),
        (
            ["serve", "--port"],
            'respkv serve: argument --port: expected one argument; see "respkv serve --help"',
        ),
        (
            ["serve", "--port", "x"],
            'command line: client.port = "x": must be an integer from 0 to 65535',
        ),
        (
            ["serve", "--set", "log.fsinc=no"],
            "command line: unknown setting log.fsinc; did you mean log.fsync?",
        ),
        (
            ["serve", "--node", "a b"],
            '--node = "a b": must be 1 to 64 letters, digits, dots, dashes and underscores, '
            "the first a letter or digit",
        ),
        (["serve", "--config", "none"], "none: cannot be read: No such file or directory"),
        (["check-config", "none"], "none: cannot be read: No such file or directory"),
    ],
)
def test_what_is_wrong_is_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    assert misuse(capsys, *words) == line


def test_an_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    line = misuse(capsys, "serv")
    assert "serv" in line
    assert "check-config" in line


def test_options_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--conf" in misuse(capsys, "serve", "--conf", "x")


def test_a_host_with_a_strange_name_needs_a_node_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = os.uname_result(("Linux", "", "6", "1", "x"))
    monkeypatch.setattr(os, "uname", lambda: strange)
    assert misuse(capsys, "serve").endswith("; give --node NAME")
    assert serve("--node", "n1", "--data-dir", "d")[2] == "n1"


# Nodes of a cluster


def test_serve_runs_the_node_that_is_named(two: Path) -> None:
    config, data_dir, name = serve("--config", "cluster.toml", "--node", "b")
    assert name == config.node == "b"
    assert (config.client.hosts, config.client.port) == (("::1",), 7002)
    assert data_dir == f"{two.parent}/data/b"
    assert config.log.fsync == "no"


def test_options_win_over_the_nodes_table(two: Path) -> None:
    words = ("--node", "b", "--data-dir", "d", "--host", "127.0.0.1", "--set", "log.fsync=always")
    config, data_dir, _ = serve("--config", "cluster.toml", *words)
    assert data_dir == f"{two.parent}/d"
    assert config.client.hosts == ("127.0.0.1",)
    assert config.log.fsync == "always"


def test_without_a_name_the_node_with_the_hosts_name_is_meant(
    two: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "b", "6", "1", "x")))
    assert serve("--config", "cluster.toml")[0].client.port == 7002
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host7", "6", "1", "x")))
    assert misuse(capsys, "serve", "--config", "cluster.toml") == (
        "cluster.toml: lists nodes, and this host's name, host7, is none of them: "
        "give --node with one of a, b"
    )
    assert misuse(capsys, "serve", "--config", "cluster.toml", "--node", "c") == (
        'cluster.toml: no node has the name "c"; there are a, b'
    )


def cluster(*words: str) -> tuple[Config, list[str], bool]:
    """Return what `respkv cluster` runs a supervisor with."""
    nodes = Nodes()
    assert main(["cluster", *words], supervise=nodes) == 0
    (run,) = nodes.runs
    return run


def test_cluster_hands_nodes_overrides_and_the_place_of_the_secret_on(two: Path) -> None:
    config, overrides, is_restarting = cluster("cluster.toml", "--set", "cluster.w=1")
    secret = f"{two.parent}/data/cluster.secret"
    assert [node.name for node in config.nodes] == ["a", "b"]
    assert overrides == ["cluster.w=1", f"cluster.secret_file={secret}"]
    assert (config.w, config.cluster.secret_file) == (1, secret)
    assert is_restarting
    assert not cluster("cluster.toml", "--no-restart")[2]


def test_cluster_takes_the_secret_that_is_given(two: Path) -> None:
    two.write_text('[cluster]\nsecret_file = "s"\n' + TWO)
    assert cluster("cluster.toml")[0].cluster.secret_file == f"{two.parent}/s"
    given = cluster("cluster.toml", "--set", "cluster.secret_file=/t")[0]
    assert given.cluster.secret_file == "/t"


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        (
            "",
            [],
            'cluster.toml: has no [[node]] tables; "respkv serve --config cluster.toml" runs a '
            "single node",
        ),
        (
            '[[node]]\nname = "a"\nhost = "::1"\nport = 1\n',
            [],
            'cluster.toml: cluster.secret_file = "": must be given, since node "a" has no data_dir '
            "beside which the file could be made",
        ),
        (
            TWO,
            ["--set", "client.port=7"],
            "command line: client.port = 7: cannot be given for a node of a cluster: the other "
            "nodes read the port in cluster.toml",
        ),
        (
            TWO,
            ["--set", "cluster.n=3"],
            "cluster.toml: cluster.n = 3: must be at most 2, the number of nodes",
        ),
    ],
)
def test_a_cluster_that_cannot_be_is_one_line(
    two: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str], line: str
) -> None:
    two.write_text(text)
    assert misuse(capsys, "cluster", "cluster.toml", *words).startswith(line)


def test_check_config_summarises_a_cluster(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two.write_text('[cluster]\nw = 1\nr = 1\nsecret_file = "s"\n[client]\nhosts = ["::"]\n' + TWO)
    assert main(["check-config", "cluster.toml"]) == 0
    assert capsys.readouterr().out == (
        "cluster.toml: can be used; 2 nodes of the cluster respkv; "
        "settings that differ from their defaults: 4\n"
        '  client.hosts = ["::"]\n'
        "  cluster.r = 1\n"
        "  cluster.w = 1\n"
        '  cluster.secret_file = "s"\n'
        "replicas of each key: n = 2, r = 1, w = 1\n"
        "nodes:\n"
        "  a: 127.0.0.1:7001, cluster port 7101, bus 17001, admin 27001, listens on ::, "
        "data in data/a\n"
        "  b: [::1]:7002, cluster port 7102, bus 17002, admin 27002, listens on ::, "
        'data in data/b, zone "z"\n'
        '    log.fsync = "no"\n'
        "note: r + w is not more than all replicas, so a read may miss the latest write\n"
        'note: cluster.toml: cluster.secret_file = "s": cannot be read: No such file or directory\n'
    )


def test_check_config_refuses_what_no_node_could_start_with(
    two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two.write_text(TWO.replace("::1", "10.0.0.1"))
    line = 'cluster.toml: cluster.secret_file = "": must be given'
    assert misuse(capsys, "check-config", "cluster.toml").startswith(line)


# check-config, default-config, help


def test_check_config_says_what_differs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "respkv.toml"
    file.write_text('[client]\nport = 7000\nrequirepass = "hush"\n[memory]\nbytes_max = "1GiB"\n')
    assert main(["check-config", str(file)]) == 0
    assert capsys.readouterr().out == (
        f"{file}: can be used; settings that differ from their defaults: 2\n"
        "  client.port = 7000\n"
        "  client.requirepass\n"
    )


def test_check_config_of_a_wrong_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "respkv.toml"
    file.write_text('[log]\nfsync = "allways"\n')
    expected = f'{file}: log.fsync = "allways": must be one of "always", "everysec", "no"'
    assert misuse(capsys, "check-config", str(file)) == expected


def test_default_config_is_a_file_that_can_be_used(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["default-config"]) == 0
    file = tmp_path / "respkv.toml"
    file.write_text(capsys.readouterr().out)
    assert load(str(file)).differing(Config()) == []


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as exit:
        main([*words, "--help"])
    assert exit.value.code == 0
    return capsys.readouterr().out


def test_help_tells_the_defaults_that_hold(capsys: pytest.CaptureFixture[str]) -> None:
    config = Config()
    text = " ".join(help_of(capsys, "serve").split())
    assert f"listens on {config.client.hosts[0]}, port {config.client.port}." in text
    assert "/var/lib/respkv" in text
    assert "client.shutdown_grace_s" in text
    assert hasattr(config.client, "shutdown_grace_s")
    assert config.log.fsync == "everysec"
    assert "once a second; log.fsync=always" in text


@pytest.mark.parametrize(("words", "count"), [(["serve"], 4), (["cluster"], 2), ([], 4)])
def test_the_examples_in_the_help_are_right(
    capsys: pytest.CaptureFixture[str], words: list[str], count: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "respkv.toml").write_text("")
    (tmp_path / "cluster.toml").write_text(TWO)
    _, _, examples = help_of(capsys, *words).partition("\nexamples:\n")
    commands = [line.strip().split("  ")[0] for line in examples.splitlines()]
    ours = [command.split()[1:] for command in commands if command.startswith("respkv ")]
    assert len(ours) == count
    for command in ours:
        node, nodes = Node(), Nodes()
        status = main(command[:1] if ">" in command else command, run=node, supervise=nodes)
        assert status == 0
        assert len(node.runs) == (command[0] == "serve")
        assert len(nodes.runs) == (command[0] == "cluster")


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION
    assert project["scripts"]["respkv"] == "respkv.cli:main"


# The real process


def test_python_m_respkv_is_the_command() -> None:
    command = [sys.executable, "-m", "respkv", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"respkv {VERSION}\n"


def test_a_wrong_command_ends_the_process_with_status_2() -> None:
    command = [sys.executable, "-m", "respkv", "serve", "--set", "client.port=x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == 'command line: client.port = "x": must be an integer from 0 to 65535\n'


def test_the_command_line_imports_little() -> None:
    code = (
        "import sys; from respkv.cli import main; main(['check-config', 'conf/respkv.toml']);"
        "print([m for m in ('trio', 'structlog', 'msgspec', 'tomlkit', 'asyncio', 'respkv.node', 'respkv.serve')"
        " if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")
