"""The worker process: does background jobs beside the serving process, at low priority.

It decides nothing and keeps nothing: jobs come on standard input, their results go out, and an end of
input ends it at once, in the middle of a job too: a thread waits for that, because a parent that was
killed says nothing else. It is started by exec, not fork, and holds no lock: its inputs never change,
and its output becomes live only when the parent has put it into the manifest.

A flush that comes in the middle of a compaction is done at once, and the compaction goes on after it. One
process is enough for that, and takes less memory than two: the flush is what is urgent. A compaction rests
where its budget is used up (`engine/pace.py`).

    python -m engine.worker DATA_DIR CODEC
    in   MessagePack of Job, as a line of hexadecimal; or "hurry": the compaction need not keep to its budget
    out  the name of the job's output, "ok" or "error", and MessagePack of JobResult, or a text, as hexadecimal:
         a line of three words

`Worker` is the parent's side: it restarts a worker that was lost, and raises `WorkerLost` so that
the job is given again.

Shell.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import subprocess
import sys
import threading
import time
from functools import partial
from typing import IO, NoReturn

import msgspec
import trio

from engine.codec import RecordCodec
from engine.disk import RealDisk
from engine.errors import EngineError
from engine.job import Job, JobResult, load_codec, run_job
from engine.pace import Pace

NICENESS = 10
LINE_BYTES_MAX = 1 << 24
REST_MIN_S = 0.002  # Shorter ones are put together.
HURRY = b"hurry\n"


class WorkerLost(EngineError):
    """The worker ended in the middle of a job, which has to be done again."""


class JobFailed(EngineError):
    """The worker could not do a job, and says why. The same job may succeed later (a full disk)."""


class Worker:
    """The parent's side: any number of `run` at a time. `codec` is an import path such as `cluster.record:CODEC`."""

    def __init__(self, data_dir: str, codec: str) -> None:
        self._arguments = [sys.executable, "-m", "engine.worker", data_dir, codec]
        self._child: _Child | None = None
        self._starting = trio.Lock()
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        return self._child.process.pid if self._child is not None else None

    async def run(self, job: Job) -> JobResult:
        """Have a job done. Raises WorkerLost, JobFailed. Who is cancelled here loses the worker, and so do others."""
        child = await self._living_child()
        try:
            kind, data = await child.ask(job)
        except (trio.BrokenResourceError, trio.ClosedResourceError, WorkerLost) as error:
            if self._child is child:
                self.restarts += 1
                await self.stop()
            raise WorkerLost("the worker ended during a job") from error
        except trio.Cancelled:
            if self._child is child:
                await self.stop()
            raise
        if kind != b"ok":
            raise JobFailed(data.decode())
        return msgspec.msgpack.decode(data, type=JobResult)

    async def hurry(self) -> None:
        """Have the compaction under way done as fast as it can be, if there is one."""
        if self._child is not None:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._child.tell(HURRY)

    async def _living_child(self) -> _Child:
        async with self._starting:
            child = self._child
            if child is None or child.process.poll() is not None:
                process = await trio.lowlevel.open_process(
                    self._arguments,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,
                )
                child = self._child = _Child(process)
            return child

    async def stop(self) -> None:
        """End the worker; the jobs that it was doing are lost."""
        child, self._child = self._child, None
        if child is not None:
            child.process.kill()
            with trio.CancelScope(shield=True):
                await child.process.wait()


class _Child:
    """One worker process, with the answers that have come. Whoever waits for one reads for all."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self._input = process.stdin
        self._output = process.stdout
        self._unread = bytearray()
        self._answers: dict[bytes, tuple[bytes, bytes]] = {}
        self._sending = trio.Lock()
        self._reading = trio.Lock()
        self._has_read = trio.Event()  # Another one after each line.

    async def ask(self, job: Job) -> tuple[bytes, bytes]:
        """Have a job done; returns how it went, and the result. Raises WorkerLost and what the pipes raise."""
        await self.tell(msgspec.msgpack.encode(job).hex().encode() + b"\n")
        name = job.output.encode()
        while name not in self._answers:
            try:
                self._reading.acquire_nowait()
            except trio.WouldBlock:
                await self._has_read.wait()
                continue
            try:
                answered, kind, body = (await self._read_line()).split(b" ")
                self._answers[answered] = kind, bytes.fromhex(body.decode())
            finally:
                self._reading.release()
                self._has_read.set()
                self._has_read = trio.Event()
        return self._answers.pop(name)

    async def tell(self, line: bytes) -> None:
        """Send a line. Raises what the pipe raises."""
        async with self._sending:
            await self._input.send_all(line)

    async def _read_line(self) -> bytes:
        while (end := self._unread.find(b"\n")) < 0:
            chunk = await self._output.receive_some(65536)
            if not chunk or len(self._unread) > LINE_BYTES_MAX:
                raise WorkerLost("the worker ended during a job")
            self._unread += chunk
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        return line


def main(arguments: list[str]) -> NoReturn:
    """The child's side."""
    data_dir, codec_path = arguments
    os.nice(NICENESS)
    gc.disable()  # A job makes millions of small objects and no cycles.
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, lines), daemon=True).start()
    work = _Work(RealDisk(data_dir), load_codec(codec_path), lines)
    while True:
        work.do(lines.get())


class _Work:
    """What a worker process does, line by line."""

    def __init__(self, disk: RealDisk, codec: RecordCodec, lines: queue.SimpleQueue[bytes]) -> None:
        self._disk = disk
        self._codec = codec
        self._lines = lines
        self._pace: Pace | None = None  # Of the compaction under way.

    def do(self, line: bytes) -> None:
        """Do a job and send its answer; or hurry."""
        if line == HURRY:
            if self._pace is not None:
                self._pace.lift()
            return
        job = msgspec.msgpack.decode(bytes.fromhex(line.decode()), type=Job)
        is_first = self._pace is None  # Else it is done in a pause of another one.
        pace = self._pace = self._pace or Pace(job.bytes_per_s, time.monotonic())
        pause = partial(self._pause, pace) if is_first else None
        try:
            result = run_job(self._disk, job, self._codec, pause)
        except EngineError as error:
            kind, data = b"error", str(error).encode()
        else:
            kind, data = b"ok", msgspec.msgpack.encode(result)
        if is_first:
            self._pace = None
        answer = b"%b %b %b\n" % (job.output.encode(), kind, data.hex().encode())
        sys.stdout.buffer.write(answer)
        sys.stdout.buffer.flush()

    def _pause(self, pace: Pace, byte_count: int) -> None:
        """Do what has come meanwhile, and rest."""
        rest_s = pace.rest_s(byte_count, time.monotonic())
        while True:
            try:
                line = self._lines.get(rest_s >= REST_MIN_S, rest_s)
            except queue.Empty:
                return
            self.do(line)
            rest_s = pace.rest_s(0, time.monotonic())


def _receive(source: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    for line in source:
        lines.put(line)
    os._exit(0)  # The parent is gone.


if __name__ == "__main__":
    main(sys.argv[1:])
