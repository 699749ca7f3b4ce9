"""What the command line asks for."""

from pathlib import Path
from typing import cast

import pytest

from bench.process import CpuTime
from bench.replicated import Bench, parse_options, systems_for
from bench.replicated_generator import Generators
from bench.replicated_load import Job, Outcome, Wait
from bench.replicated_report import BY_SLOT, CLOSED, FIXED, ONE_NODE, REDIS, REDIS_WAIT
from bench.replicated_route import everything_at
from bench.replicated_servers import Cluster, Group, Member
from bench.server import Server


class Resting(Group):
    """Servers that do not run, and so use no time."""

    def cpu(self) -> list[CpuTime]:
        return [CpuTime(0.0, 0.0)]

    def settled_cpu(self, wait_s: float) -> tuple[list[CpuTime], bool]:
        return self.cpu(), True


PRIMARY = Resting("redis", (Server("redis", "7", ("127.0.0.1", 7000), 1),))


class Described(Cluster):
    """A cluster whose nodes do not run."""

    def __init__(self) -> None:
        self.members = [Member("a", 7001, Path()), Member("b", 7002, Path())]

    @property
    def group(self) -> Group:
        servers = [Server("respkv", "1", each.address, 1) for each in self.members]
        return Group("respkv", tuple(servers))


class Recorded:
    """Generators that answer at once; each system has its own speed."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def run(self, job: Job) -> Outcome:
        self.jobs.append(job)
        return Outcome(answered_count=5000 if job.wait else 9000, wall_s=0.5)


def test_the_default_is_the_load_of_the_aim() -> None:
    options = parse_options([])
    assert (options.keys, options.value_bytes, options.connections) == (100_000, 100, 50)
    assert (options.commands, options.pipelines) == (["SET", "GET"], [1, 16])
    assert options.modes == [CLOSED, FIXED]


def test_each_way_to_use_a_store_gets_the_load() -> None:
    found = systems_for(("SET", 16), PRIMARY, Described(), 250)
    assert [(each.label, each.wait) for each in found] == [
        (REDIS_WAIT, Wait(1, 250)),
        ("redis WAIT per 16", Wait(16, 250)),
        (BY_SLOT, None),
        (ONE_NODE, None),
    ]
    assert found[0].read_route() == everything_at(("127.0.0.1", 7000))
    assert found[3].read_route() == everything_at(("127.0.0.1", 7001))


def test_one_set_at_a_time_has_one_wait_each() -> None:
    labels = [each.label for each in systems_for(("SET", 1), PRIMARY, None, 250)]
    assert labels == [REDIS_WAIT]


def test_reads_do_not_wait() -> None:
    found = systems_for(("GET", 16), PRIMARY, Described(), 250)
    assert [(each.label, each.wait) for each in found] == [
        (REDIS, None),
        (BY_SLOT, None),
        (ONE_NODE, None),
    ]


def test_the_fixed_rate_is_half_of_what_the_slowest_did() -> None:
    generators = Recorded()
    options = parse_options(["--commands", "SET", "--pipelines", "16"])
    bench = Bench(options, cast(Generators, generators), PRIMARY, None)
    assert bench.warm_up() == {("SET", 16): 5000}
    assert [job.rate for job in generators.jobs] == [None, None]
    assert bench.groups == [PRIMARY]


def test_a_given_rate_is_used() -> None:
    options = parse_options(["--commands", "SET", "--pipelines", "1", "--rate", "77"])
    bench = Bench(options, cast(Generators, Recorded()), PRIMARY, None)
    assert bench.warm_up() == {("SET", 1): 77}


@pytest.mark.parametrize(
    "words",
    [
        ["--rounds", "0"],
        ["--commands", "SET,LPUSH"],
        ["--pipelines", "1,x"],
        ["--modes", "open"],
        ["--seconds", "0"],
        ["--connections", "5", "--generators", "2"],
    ],
)
def test_bad_choices_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(words)
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err
