"""What is printed about runs on replicated stores."""

import dataclasses

import pytest

from bench.process import CpuTime
from bench.replicated_load import Job, Outcome
from bench.replicated_report import (
    BY_SLOT,
    CLOSED,
    FIXED,
    ONE_NODE,
    REDIS,
    REDIS_WAIT,
    Place,
    Run,
    cells,
    notes,
    ratio_lines,
    ratios,
    run_of,
    text,
    to_plain,
)

JOB = Job("SET", 16, None, (), 50, 1000, 100, 1.0, None, 1)


def run(
    system: str,
    cpu_s: float,
    number: int = 1,
    *,
    command: str = "SET",
    rate: int | None = None,
    errors: tuple[str, ...] = (),
    missed: int = 0,
) -> Run:
    """A run of 100,000 operations by three servers, the first of which uses half of the time."""
    is_read = command == "GET"
    outcome = Outcome(
        answered_count=100_000,
        hit_count=100_000 - missed if is_read else 0,
        missed_count=missed,
        latencies={1000: 99_000, 2000: 990, 9000: 10},
        cpu_s=1.0,
        wall_s=2.0,
    )
    for words in errors:
        outcome.add_error(words)
    parts = [CpuTime(cpu_s / 4, cpu_s / 4), CpuTime(cpu_s / 4, 0), CpuTime(0, cpu_s / 4)]
    job = dataclasses.replace(JOB, command=command, rate=rate)
    return run_of(system, job, number, outcome, parts, other_share=0.01, is_settled=True)


def test_a_run_sums_its_servers_and_divides_by_operations() -> None:
    one = run(BY_SLOT, 4.0)
    assert one.per_operation_us(one.cpu_s) == pytest.approx(40.0)
    assert one.throughput == 50_000
    assert one.percentiles_ms == (1.0, 1.0, 2.0, 9.0)
    assert one.generator_share == 0.5
    assert one.hit_share is None
    assert one.is_sound


def test_a_rate_is_that_of_whole_pipelines() -> None:
    one = run(BY_SLOT, 4.0, rate=1000)
    assert (one.place, one.rate) == (Place(FIXED, False, 16), 992)


def test_cells_are_medians_over_rounds() -> None:
    (one,) = cells([run(BY_SLOT, cpu_s, at) for at, cpu_s in enumerate([3.0, 9.0, 4.0])])
    assert (one.cpu_us.median, one.cpu_us.least, one.cpu_us.most) == pytest.approx((40, 30, 90))
    assert one.server_us == pytest.approx([20.0, 10.0, 10.0])
    assert one.latencies_ms == [1.0, 1.0, 2.0, 9.0]


def test_the_aim_compares_with_wait_in_the_same_run() -> None:
    runs = [
        run(REDIS_WAIT, 4.0, 1),
        run(BY_SLOT, 3.0, 1),
        run(ONE_NODE, 5.0, 1),
        run(REDIS_WAIT, 4.0, 2),
        run(BY_SLOT, 5.0, 2),
        run(ONE_NODE, 5.0, 2),
    ]
    by_slot, one_node = ratios(runs)
    assert (by_slot.system, by_slot.peer, by_slot.is_met) == (BY_SLOT, REDIS_WAIT, True)
    assert (by_slot.cpu.median, by_slot.cpu.least, by_slot.cpu.most) == (1.0, 0.75, 1.25)
    assert (one_node.system, one_node.cpu.median, one_node.is_met) == (ONE_NODE, 1.25, False)
    lines = ratio_lines([by_slot, one_node])
    assert "SET at pipeline 16, closed loop: CPU respkv by slot 40.00 / redis WAIT 1" in lines[0]
    assert lines[0].endswith("aim at most Redis SET with WAIT: met")
    assert lines[1].endswith("missed")


def test_modes_and_commands_are_compared_apart() -> None:
    runs = [
        run(REDIS_WAIT, 4.0),
        run(BY_SLOT, 8.0),
        run(REDIS_WAIT, 4.0, rate=1600),
        run(BY_SLOT, 2.0, rate=1600),
        run(REDIS, 1.0, command="GET"),
        run(BY_SLOT, 3.0, command="GET"),
    ]
    found = {one.place: one for one in ratios(runs)}
    assert found[Place(CLOSED, False, 16)].cpu.median == 2.0
    assert found[Place(FIXED, False, 16)].cpu.median == 0.5
    reads = found[Place(CLOSED, True, 16)]
    assert (reads.cpu.median, reads.is_met) == (3.0, None)
    assert "no aim" in ratio_lines([reads])[0]


def test_one_store_alone_is_compared_with_nothing() -> None:
    assert ratios([run(BY_SLOT, 1.0), run(ONE_NODE, 1.0)]) == []


@pytest.mark.parametrize("at", [0, 1])
def test_a_run_with_an_error_is_marked_and_meets_no_aim(at: int) -> None:
    runs = [run(REDIS_WAIT, 4.0), run(BY_SLOT, 1.0)]
    runs[at] = dataclasses.replace(runs[at], errors={"SET: ERR no": 2})
    (ratio,) = ratios(runs)
    assert ratio.cpu.median == 0.25
    assert ratio.is_met is False
    assert ratio_lines([ratio])[0].endswith("missed (with errors)")
    (note,) = notes(cells(runs))
    assert note.startswith(f"! {runs[at].system}")
    assert "2 errors: 2 times 'SET: ERR no'" in note
    # The mark stands at the figure of this system alone.
    marked = [line for line in text("t", runs).splitlines() if ")!" in line]
    assert len(marked) == 1
    assert runs[at].system in marked[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"missed_count": 3}, "3 keys were not found"),
        ({"unanswered_count": 4}, "4 requests were not answered"),
        ({"gave_up": True}, "gave up"),
    ],
)
def test_other_faults_are_said(changes: dict[str, int], words: str) -> None:
    bad = dataclasses.replace(run(BY_SLOT, 3.0, 2), **changes)  # type: ignore[arg-type]
    assert words in "\n".join(notes(cells([run(BY_SLOT, 3.0, 1), bad])))
    assert not bad.is_sound


def test_hits_are_the_least_of_all_rounds() -> None:
    runs = [run(BY_SLOT, 3.0, at, command="GET", missed=at * 500) for at in range(3)]
    (one,) = cells(runs)
    assert one.hit_share == 0.99
    assert "99.00" in text("t", runs)


def test_a_generator_that_limits_is_named() -> None:
    busy = dataclasses.replace(run(BY_SLOT, 3.0), generator_share=0.95)
    late = dataclasses.replace(run(BY_SLOT, 3.0, rate=1600), lag_p99_ms=11.0)
    assert "95% of a core" in "\n".join(notes(cells([busy])))
    assert "11 ms late" in "\n".join(notes(cells([late])))
    assert notes(cells([run(BY_SLOT, 3.0)])) == []


def test_short_runs_are_marked() -> None:
    assert "clock ticks matter" in text("t", [run(BY_SLOT, 1.9)])
    assert "clock ticks matter" not in text("t", [run(BY_SLOT, 2.1)])


def test_plain_data_holds_runs_and_ratios() -> None:
    document = to_plain([run(REDIS_WAIT, 4.0), run(BY_SLOT, 3.0)])
    assert [one["system"] for one in document["runs"]] == [REDIS_WAIT, BY_SLOT]
    assert document["ratios"][0]["is_met"] is True
