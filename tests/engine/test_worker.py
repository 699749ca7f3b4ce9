"""A real worker process: it does jobs, fails them, is killed in the middle, and ends with its parent.

A job is held in its middle by its codec (`tests/engine/holding.py`), so that nothing here depends
on how fast the machine is.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

import engine
from engine.codec import COMPLETE, Entry
from engine.disk import RealDisk
from engine.job import Job, JobResult
from engine.merge import GROUP_ENTRIES
from engine.sstable import Table, TableWriter
from engine.worker import NICENESS, JobFailed, Worker, WorkerLost
from tests.engine.toy import SETS

CODEC_PATH = "tests.engine.holding:CODEC"
ENTRIES: list[Entry] = [(b"\0\1row", COMPLETE, b"value")]
HELD = "held.sst"
HOLD = "hold"
DEADLINE_S = 30


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker imports the toy codec, wherever the tests were started."""
    assert engine.__file__ is not None
    monkeypatch.setenv("PYTHONPATH", str(Path(engine.__file__).parent.parent))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with a table, and one whose merging is held up while there is a file `hold`."""
    (tmp_path / HOLD).touch()
    held_entries: list[Entry] = [(b"\0\1row", COMPLETE, bytes(tmp_path / HOLD))]
    make_table(tmp_path, "in.sst", ENTRIES)
    make_table(tmp_path, HELD, held_entries)
    return tmp_path


def make_table(folder: Path, name: str, entries: list[Entry]) -> None:
    disk = RealDisk(str(folder))
    writer = TableWriter(disk, name, block_bytes=4096, compression="lz4", codec=SETS)
    for entry in entries:
        writer.add_key(*entry)
    writer.finish(0, 9)
    disk.close()


def new_job(name: str = "in.sst", output: str = "out.sst") -> Job:
    return Job(
        kind="compact",
        inputs=[name],
        output=output,
        position_min=0,
        position_max=9,
        drops=[],
        block_bytes=4096,
        compression="lz4",
        is_bottom=True,
        now_ms=1000,
    )


def held_job() -> Job:
    return new_job(HELD, "new.sst")


async def wait_for_file(path: Path) -> None:
    with trio.fail_after(DEADLINE_S):
        while not await trio.Path(path).exists():  # noqa: ASYNC110 (another process makes it)
            await trio.sleep(0.005)


def entries_of(folder: Path, name: str) -> list[Entry]:
    disk = RealDisk(str(folder))
    try:
        return list(Table.open(disk, name).scan())
    finally:
        disk.close()


async def test_one_process_does_job_after_job(folder: Path) -> None:
    worker = Worker(str(folder), CODEC_PATH)
    assert worker.pid is None
    try:
        with trio.fail_after(DEADLINE_S):
            pids: set[int | None] = set()
            for output in ("1.sst", "2.sst", "3.sst"):
                result = await worker.run(new_job("in.sst", output))
                assert result == JobResult([output], 1)
                assert entries_of(folder, output) == ENTRIES
                pids.add(worker.pid)
            assert len(pids) == 1
            assert worker.pid is not None
            niceness = os.getpriority(os.PRIO_PROCESS, worker.pid)
            assert niceness == min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
            assert worker.restarts == 0
    finally:
        await worker.stop()
    assert worker.pid is None


async def test_a_job_that_fails_says_why_and_the_worker_goes_on(folder: Path) -> None:
    worker = Worker(str(folder), CODEC_PATH)
    try:
        with trio.fail_after(DEADLINE_S):
            with pytest.raises(JobFailed, match=r"missing\.sst.*No such file"):
                await worker.run(new_job("missing.sst"))
            pid = worker.pid
            assert (await worker.run(new_job("in.sst"))).tables == ["out.sst"]
            assert worker.pid == pid
            assert worker.restarts == 0
    finally:
        await worker.stop()


async def test_a_worker_killed_in_the_middle_is_lost_and_its_job_can_be_done_again(
    folder: Path,
) -> None:
    worker = Worker(str(folder), CODEC_PATH)
    try:
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill_when_in_the_middle, worker, folder)
                with pytest.raises(WorkerLost):
                    await worker.run(held_job())
            assert (worker.restarts, worker.pid) == (1, None)
            # Nothing of the output is live, and what is left is what `Store.abandon` removes.
            assert not (folder / "new.sst").exists()
            (folder / "new.sst.tmp").unlink()
            (folder / HOLD).unlink()
            assert await worker.run(held_job()) == JobResult(["new.sst"], 1)
            assert entries_of(folder, "new.sst") == entries_of(folder, HELD)
    finally:
        await worker.stop()


async def test_what_comes_in_the_middle_of_a_compaction_is_done_at_once(folder: Path) -> None:
    """And the compaction goes on after it. Each gets its own answer."""
    long = "long.sst"
    rest: list[Entry] = [(b"\0\2%05d" % n, COMPLETE, b"v") for n in range(10 * GROUP_ENTRIES)]
    make_table(folder, long, [(b"\0\1row", COMPLETE, bytes(folder / HOLD)), *rest])
    worker = Worker(str(folder), CODEC_PATH)
    done: list[JobResult] = []

    async def run(job: Job) -> None:
        done.append(await worker.run(job))

    try:
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, new_job(long, "new.sst"))
                await wait_for_file(folder / "new.sst.tmp")
                nursery.start_soon(run, new_job("in.sst", "urgent.sst"))
                await wait_until_read(worker)
                (folder / HOLD).unlink()
        assert done == [JobResult(["urgent.sst"], 1), JobResult(["new.sst"], len(rest) + 1)]
        assert entries_of(folder, "new.sst")[1:] == rest
    finally:
        await worker.stop()


async def test_a_compaction_that_rests_does_what_comes_and_is_done_when_it_has_to_hurry(
    folder: Path,
) -> None:
    long = "long.sst"
    rest: list[Entry] = [(b"\0\2%05d" % n, COMPLETE, b"v" * 100) for n in range(3000)]
    make_table(folder, long, rest)
    worker = Worker(str(folder), CODEC_PATH)
    done: list[str] = []

    async def run(job: Job) -> None:
        done.extend((await worker.run(job)).tables)

    job = new_job(long, "new.sst")
    job.bytes_per_s = 1000  # Several minutes.
    try:
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, job)
                await wait_for_file(folder / "new.sst.tmp")
                await run(new_job("in.sst", "urgent.sst"))
                assert done == ["urgent.sst"]
                await worker.hurry()
            assert done == ["urgent.sst", "new.sst"]
            assert entries_of(folder, "new.sst") == rest
            await worker.hurry()  # Nothing is under way.
            assert await worker.run(new_job("in.sst", "next.sst")) == JobResult(["next.sst"], 1)
    finally:
        await worker.stop()
    await worker.hurry()


async def wait_until_read(worker: Worker) -> None:
    """The worker has taken from its pipe what was sent to it."""
    assert worker._child is not None
    stdin = worker._child.process.stdin
    assert isinstance(stdin, trio.lowlevel.FdStream)
    await trio.testing.wait_all_tasks_blocked()  # It was sent.

    def unread() -> bytes:
        return fcntl.ioctl(stdin.fileno(), termios.FIONREAD, bytes(4))

    while unread() != bytes(4):  # noqa: ASYNC110 (another process reads it)
        await trio.sleep(0.005)


async def test_all_jobs_of_a_worker_that_is_killed_are_lost(folder: Path) -> None:
    worker = Worker(str(folder), CODEC_PATH)
    lost: list[str] = []

    async def run(job: Job) -> None:
        try:
            await worker.run(job)
        except WorkerLost:
            lost.append(job.output)

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, held_job())
            await wait_for_file(folder / "new.sst.tmp")
            nursery.start_soon(
                run, new_job(HELD, "next.sst")
            )  # Another one might be done before the end.
            await wait_until_read(worker)
            nursery.start_soon(kill_when_in_the_middle, worker, folder)
    assert sorted(lost) == ["new.sst", "next.sst"]
    assert (worker.restarts, worker.pid) == (1, None)


async def kill_when_in_the_middle(worker: Worker, folder: Path) -> None:
    await wait_for_file(folder / "new.sst.tmp")
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)


async def test_a_worker_that_died_between_jobs_is_replaced_without_an_error(folder: Path) -> None:
    worker = Worker(str(folder), CODEC_PATH)
    try:
        with trio.fail_after(DEADLINE_S):
            await worker.run(new_job("in.sst", "1.sst"))
            first = worker.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            await trio.to_thread.run_sync(os.waitid, os.P_PID, first, os.WEXITED | os.WNOWAIT)
            await worker.run(new_job("in.sst", "2.sst"))
            assert worker.pid not in (None, first)
    finally:
        await worker.stop()


async def test_a_job_whose_caller_was_cancelled_does_not_answer_the_next_one(folder: Path) -> None:
    worker = Worker(str(folder), CODEC_PATH)
    try:
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.run, held_job())
                await wait_for_file(folder / "new.sst.tmp")
                nursery.cancel_scope.cancel()
            assert worker.pid is None
            result = await worker.run(new_job("in.sst", "next.sst"))
            assert result.tables == ["next.sst"]
    finally:
        await worker.stop()


async def test_stop_ends_a_worker_in_the_middle_of_a_job(folder: Path) -> None:
    worker = Worker(str(folder), CODEC_PATH)
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_when_in_the_middle, worker, folder)
            with pytest.raises(WorkerLost):
                await worker.run(held_job())
    assert worker.pid is None
    await worker.stop()  # Again does nothing.


async def stop_when_in_the_middle(worker: Worker, folder: Path) -> None:
    await wait_for_file(folder / "new.sst.tmp")
    await worker.stop()


async def test_a_codec_that_is_not_there_loses_the_worker(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = Worker(str(folder), "tests.engine.toy:MISSING")
    with trio.fail_after(DEADLINE_S):
        with pytest.raises(WorkerLost):
            await worker.run(new_job("in.sst"))
    assert "MISSING" in capfd.readouterr().err


@pytest.mark.parametrize("is_at_work", [False, True], ids=["idle", "in the middle"])
async def test_the_worker_ends_when_its_parents_pipe_closes(folder: Path, is_at_work: bool) -> None:
    """A parent that is killed says nothing else."""
    arguments = [sys.executable, "-m", "engine.worker", str(folder), CODEC_PATH]
    child = await trio.lowlevel.open_process(arguments, stdin=subprocess.PIPE)
    try:
        with trio.fail_after(DEADLINE_S):
            assert child.stdin is not None
            if is_at_work:
                line = msgspec.msgpack.encode(held_job()).hex().encode() + b"\n"
                await child.stdin.send_all(line)
                await wait_for_file(folder / "new.sst.tmp")
            await child.stdin.aclose()
            assert await child.wait() == 0
    finally:
        child.kill()
        await child.wait()
