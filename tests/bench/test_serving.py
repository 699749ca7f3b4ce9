"""What the command line asks for."""

import pytest

from bench import report, serving
from bench.connection import Connection
from bench.load import Lookups
from bench.serving import keys_for_memtables, parse_options, parse_size, plans
from tests.bench.scripted_server import scripted


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("5", 5), ("2KiB", 2048), ("64MiB", 67_108_864), ("1GiB", 2**30)]
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


def test_keys_fill_the_memtable_as_often_as_asked() -> None:
    memtable_bytes = 64 * 2**20 // 4
    assert keys_for_memtables("64MiB", 10) == 10 * memtable_bytes // 330
    assert 500_000 < keys_for_memtables("64MiB", 10) < 520_000


def test_the_default_is_one_table_of_four_workloads_at_both_servers() -> None:
    (plan,) = plans(parse_options([]))
    assert plan.servers == ("respkv", "redis")
    assert [str(workload) for workload in plan.workloads] == [
        "SET at pipeline 1",
        "SET at pipeline 16",
        "GET at pipeline 1",
        "GET at pipeline 16",
    ]
    assert (plan.key_count, plan.round_count, plan.memory) == (100_000, 5, None)
    assert plan.aims == report.RATIO_AIMS


def test_large_adds_a_table_beyond_memory_and_without_an_aim() -> None:
    small, large = plans(parse_options(["--large", "--keys", "7"]))
    assert (small.key_count, small.memory) == (7, None)
    assert (large.key_count, large.memory) == (keys_for_memtables("64MiB", 10), "64MiB")
    assert large.aims == {}


def test_large_follows_the_memory_and_factor_that_are_given() -> None:
    options = parse_options(["--large", "--memory", "128MiB", "--keys-factor", "3"])
    small, large = plans(options)
    assert small.memory == "128MiB"
    assert large.key_count == keys_for_memtables("128MiB", 3)


def test_choices_reach_the_plan() -> None:
    words = ["--only", "redis", "--commands", "get", "--pipelines", "2,8", "--requests", "600"]
    (plan,) = plans(parse_options(words))
    assert plan.servers == ("redis",)
    assert [(each.command, each.pipeline) for each in plan.workloads] == [("GET", 2), ("GET", 8)]
    assert plan.request_count == 600


@pytest.mark.parametrize(
    "words",
    [
        ["--rounds", "0"],
        ["--commands", "SET,LPUSH"],
        ["--pipelines", "1,x"],
        ["--memory", "much"],
        ["--only", "other"],
    ],
)
def test_bad_choices_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(words)
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wire", "lookups"),
    [
        (b"$37\r\nkeyspace_hits:12\r\nkeyspace_misses:3\r\n\r\n", Lookups(12, 3)),
        (b"$9\r\n# Stats\r\n\r\n", None),
        (b"-ERR unknown command 'INFO'\r\n", None),
    ],
)
def test_a_server_that_keeps_no_count_has_none(wire: bytes, lookups: Lookups | None) -> None:
    with scripted([wire], closes=True) as address, Connection(address) as connection:
        assert serving.read_lookups(connection) == lookups


def test_only_respkv_gets_the_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, list[str]] = {}

    def record(name: str, *, settings: list[str]) -> None:
        started[name] = settings

    monkeypatch.setattr(serving, "running", record)
    (plan,) = plans(parse_options(["--memory", "64MiB"]))
    for name in plan.servers:
        serving._start(name, plan)
    assert started == {"respkv": ["memory.bytes_max=64MiB"], "redis": []}
