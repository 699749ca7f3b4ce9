"""The store does what a dict does, in every configuration; and a store that is broken does not.

The long form is `python -m tests.model --seeds 200`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from engine import compaction, merge
from engine.codec import COMPLETE, Entry, RecordCodec
from engine.drop import DropIndex
from engine.job import EVERYTHING, Job, JobResult
from engine.levels import Levels, Retirement
from engine.log import CommitLog
from engine.memtable import Memtable
from engine.store import Store
from tests.engine.segments import remove_before
from tests.model.configuration import CONFIGURATIONS, WEIGHTS
from tests.model.machine import Machine
from tests.model.record import CODEC, Record, decode
from tests.model.script import Failed, run, shortened

STEPS = 1200
SEEDS_MAX = 25

Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_the_store_does_what_a_dict_does(name: str) -> None:
    counts: Counter[str] = Counter()
    for seed in range(100, 105):
        counts += run(seed, name, range(STEPS))
    # What did not happen was not tested.
    wanted = {
        *WEIGHTS,
        "flush job",
        "compact job",
        "job beside another",
        "flush of a short log",
        "scan to the end",
    }
    if name != "horizon":
        wanted.discard("move_horizon")
    if name == "deep":
        wanted |= {"move job", "remove job", "job at the bottom", "job of 3 levels"}
    assert wanted <= counts.keys()


def test_a_script_does_the_same_again() -> None:
    said: list[list[str]] = [[], []]
    counts = [run(7, "tiny", range(300), each.append) for each in said]
    assert said[0] == said[1]
    assert counts[0] == counts[1]


def test_steps_that_are_left_out_change_no_others() -> None:
    all_steps: list[str] = []
    some_steps: list[str] = []
    run(7, "tiny", range(100), all_steps.append)
    run(7, "tiny", range(0, 100, 3), some_steps.append)
    assert some_steps == all_steps[::3]


# Records


def test_the_join_is_a_join() -> None:
    additions = [frozenset[tuple[int, int]](), frozenset({(1, 9)}), frozenset({(1, 9), (3, 8)})]
    records = [
        Record(time, is_dead=time != 2, value=b"v" if time == 2 else b"", additions=each)
        for time in (0, 2, 4)
        for each in additions
        if not time or all(at > time for at, _ in each)
    ]
    for a in records:
        assert a.join(a) == a == decode(a.encode())
        for b in records:
            assert a.join(b) == b.join(a)
            for c in records:
                assert a.join(b).join(c) == a.join(b.join(c))


# A store that is broken


def oldest_table_first(patch: pytest.MonkeyPatch) -> None:
    original = Levels.__init__

    def init(self: Levels, levels: Any) -> None:
        original(self, levels)
        self._newest = self._newest[::-1]

    patch.setattr(Levels, "__init__", init)


def deepest_level_first(patch: pytest.MonkeyPatch) -> None:
    original = Levels.__init__

    def init(self: Levels, levels: Any) -> None:
        original(self, levels)
        self._runs.reverse()

    patch.setattr(Levels, "__init__", init)


def everything_is_at_the_bottom(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(compaction._State, "is_bottom", lambda self, inputs, level: True)


def horizon_that_is_ignored(patch: pytest.MonkeyPatch) -> None:
    def next_job(self: Store, *args: Any, original: Any = Store.next_job) -> Job | None:
        job: Job | None = original(self, *args)
        if job is not None:
            job.horizon_position = EVERYTHING
        return job

    patch.setattr(Store, "next_job", next_job)


def drop_without_position(patch: pytest.MonkeyPatch) -> None:
    def hides(self: DropIndex, slot: int, tag: int, position_max: int) -> bool:
        return bool({tag, -1} & self.of_slot(slot).keys())

    patch.setattr(DropIndex, "hides", hides)


def move_that_forgets_its_tables(patch: pytest.MonkeyPatch) -> None:
    original = Levels.names_after

    def names_after(self: Levels, job: Job, result: JobResult) -> list[list[str]]:
        names = original(self, job, result)
        if job.kind == "move":
            names = [[name for name in level if name not in job.inputs] for level in names]
        return names

    patch.setattr(Levels, "names_after", names_after)


def compaction_that_undoes_a_flush(patch: pytest.MonkeyPatch) -> None:
    """It replaces the tables that there were when it began."""
    levels: dict[str, Levels] = {}

    def next_job(self: Store, *args: Any, original: Any = Store.next_job) -> Job | None:
        job: Job | None = original(self, *args)
        if job is not None and job.kind != "flush":
            levels[job.output] = self.levels
        return job

    def prepare(self: Store, job: Job, *args: Any, original: Any = Store.prepare) -> Any:
        now, self.levels = self.levels, levels.get(job.output, self.levels)
        try:
            return original(self, job, *args)
        finally:
            self.levels = now

    patch.setattr(Store, "next_job", next_job)
    patch.setattr(Store, "prepare", prepare)


def delta_that_ends_a_lookup(patch: pytest.MonkeyPatch) -> None:
    original = merge.join_versions

    def join_versions(entries: list[Entry], codec: RecordCodec) -> list[Entry]:
        return original([(key, flags | COMPLETE, raw) for key, flags, raw in entries], codec)

    patch.setattr(merge, "join_versions", join_versions)


def row_cache_that_outlives_a_flush(patch: pytest.MonkeyPatch) -> None:
    def forget_frozen(self: Store, log_start: int) -> None:
        self.frozen.pop()
        remove_before(self.log, log_start)

    patch.setattr(Store, "_forget_frozen", forget_frozen)


def scan_that_holds_no_tables(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Retirement, "hold", lambda self, tables: None)


def delta_that_replaces_another(patch: pytest.MonkeyPatch) -> None:
    def join(
        self: Memtable, slot: int, row: bytes, raw: bytes, codec: Any, original: Any = Memtable.join
    ) -> None:
        self.deltas.pop((slot, row), None)
        original(self, slot, row, raw, codec)

    patch.setattr(Memtable, "join", join)


def log_that_is_removed_too_early(patch: pytest.MonkeyPatch) -> None:
    original = CommitLog.roll

    def roll(self: CommitLog) -> str:
        name = original(self)
        remove_before(self, self.position)
        return name

    patch.setattr(CommitLog, "roll", roll)


def stub_that_shows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        type(CODEC),
        "stub",
        lambda self, raw: Record(decode(raw).time, is_dead=False, value=b"again").encode(),
    )


@pytest.mark.parametrize(
    "plant",
    [
        oldest_table_first,
        deepest_level_first,
        everything_is_at_the_bottom,
        horizon_that_is_ignored,
        drop_without_position,
        move_that_forgets_its_tables,
        compaction_that_undoes_a_flush,
        delta_that_ends_a_lookup,
        row_cache_that_outlives_a_flush,
        scan_that_holds_no_tables,
        delta_that_replaces_another,
        log_that_is_removed_too_early,
        stub_that_shows,
    ],
)
def test_a_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    for seed in range(SEEDS_MAX):
        for name in ("tiny", "deep", "horizon", "drops"):
            try:
                run(seed, name, range(500))
            except Failed as found:
                print(f"{plant.__name__}: found with seed {seed} in {name}: {found.cause!r}")
                return
    pytest.fail(f"not found with {SEEDS_MAX} seeds")


def test_a_failing_script_is_shortened_and_told_how_to_repeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Machine, "_compare", _compare_without_deltas)
    with pytest.raises(
        Failed, match=r"python -m tests\.model --seed 3 --config tiny --steps"
    ) as caught:
        run(3, "tiny", range(400))
    steps = shortened(3, "tiny", caught.value, seconds=10)
    assert 0 < len(steps) <= 3
    with pytest.raises(Failed):
        run(3, "tiny", steps)


def _compare_without_deltas(self: Machine, place: Any, raw: bytes | None, *rest: Any) -> None:
    """Finds an addition wrong."""
    assert raw is None or not decode(raw).additions
