"""One engine in a process of its own: carries out the phases of a `Spec` and measures each (shell).

    python -m bench.engine_child SPEC      JSON of `bench.engine_workload.Spec`

The result is JSON on standard output: one object per phase, as `Measure` has it.

What is measured:

- **serving**: CPU time of the thread that calls the engine, while it calls, and while it waits for
  the end of background work (respkv swaps its tables in that thread).
- **process**: CPU time of all threads of the process that serves: with a library, its compactions too.
- **CPU**: of all threads of the process, and of respkv's worker process, until flushes and
  compactions have ended.
- **wall**: while it calls. How long the background work went on after that is `settle_s`.
- **written**: bytes given to write calls, `wchar` of `/proc/PID/io`, of the same processes. It
  counts what an engine writes, whether or not it reaches the disk before it is replaced.
- **folder**: sum of the lengths of all files, once at rest.
- **peak**: VmHWM of the process since it began, and of the worker process, added up.

Making the keys and values is not measured: it happens between, in pieces of `CHUNK` operations, and
its CPU time is taken off.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import trio

from bench.engine_subject import ENGINES, Subject
from bench.engine_workload import (
    GET_HIT,
    KEY_BYTES,
    READS,
    SCAN,
    WRITES,
    Spec,
    Values,
    key_of,
    numbers,
    op_count,
)
from bench.process import peak_bytes
from bench.process_clock import process_cpu_s, written_bytes

CHUNK: Final = 256  # A multiple of every batch, and little enough to stay in the CPU's cache.


class WrongAnswer(Exception):
    """An engine did not find what was written, or found what was not."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One phase of one process."""

    engine: str
    value_bytes: int
    batch: int
    cache: str
    phase: str
    ops: int
    rows: int  # Found by gets, read by scans; 0 for writes.
    serving_s: float
    process_s: float
    cpu_s: float
    wall_s: float
    settle_s: float
    is_settled: bool
    written_bytes: int
    user_bytes: int  # What the phase's writes hold.
    folder_bytes: int
    live_bytes: int  # What all records hold.
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Used:
    """Readings of what the engine's processes have used so far."""

    process_s: float
    cpu_s: float
    written_bytes: int


class Meter:
    """Reads the clocks of this process and of an engine's worker, which may begin later."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.excluded_s = 0.0  # CPU time of this thread that is not the engine's.

    def read(self) -> Used:
        own = os.getpid()
        process_s, written = process_cpu_s(own) - self.excluded_s, written_bytes(own)
        worker = self._subject.worker_pid()
        if worker is None:
            return Used(process_s, process_s, written)
        return Used(process_s, process_s + process_cpu_s(worker), written + written_bytes(worker))

    def peak_bytes(self) -> int:
        worker = self._subject.worker_pid()
        return peak_bytes(os.getpid()) + (peak_bytes(worker) if worker is not None else 0)


def folder_bytes(folder: Path) -> int:
    """Length of all files of a folder. A file that vanishes meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


async def run(spec: Spec) -> list[Measure]:
    """Open the folder, do the phases, close."""
    subject = ENGINES[spec.engine](spec)
    values = Values(spec.value_bytes, random.Random(spec.seed))
    gc.collect()
    gc.freeze()  # As a node does.
    measures = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subject.work)
        await subject.settle()
        for phase in spec.phases:
            print(f"  {spec.engine}: {phase}", file=sys.stderr, flush=True)
            if phase in READS and spec.cache == "large":
                await _phase(subject, spec, phase, values)  # Fills the caches.
            measures.append(await _phase(subject, spec, phase, values))
        nursery.cancel_scope.cancel()
    await subject.close()
    return measures


async def _phase(subject: Subject, spec: Spec, phase: str, values: Values) -> Measure:
    meter = Meter(subject)
    count = op_count(phase, spec.record_count)
    rng = random.Random(f"{spec.seed} {phase}")
    chosen = numbers(phase, spec.cache, spec.record_count, rng)
    before = meter.read()
    serving_s = wall_s = 0.0
    rows = 0
    made_s = time.thread_time()
    while chunk := list(islice(chosen, CHUNK)):
        ops = _prepared(subject, phase, chunk, values)
        began_s, began_wall_s = time.thread_time(), time.perf_counter()
        meter.excluded_s += began_s - made_s
        if phase in WRITES:
            await subject.put(ops, spec.batch)
        elif phase == SCAN:
            rows += sum(map(subject.scan, chunk))
        else:
            rows += subject.get(ops)
        wall_s += time.perf_counter() - began_wall_s
        made_s = time.thread_time()
        serving_s += made_s - began_s
    _check(spec, phase, count, rows)
    began_s, began_wall_s = time.thread_time(), time.perf_counter()
    is_settled = await subject.settle() if phase in WRITES else True
    settle_s = time.perf_counter() - began_wall_s
    serving_s += time.thread_time() - began_s
    used = meter.read()
    is_write = phase in WRITES
    return Measure(
        engine=spec.engine,
        value_bytes=spec.value_bytes,
        batch=spec.batch,
        cache=spec.cache,
        phase=phase,
        ops=count,
        rows=rows,
        serving_s=serving_s,
        process_s=used.process_s - before.process_s,
        cpu_s=used.cpu_s - before.cpu_s,
        wall_s=wall_s,
        settle_s=settle_s,
        is_settled=is_settled,
        written_bytes=used.written_bytes - before.written_bytes if is_write else 0,
        user_bytes=count * (KEY_BYTES + spec.value_bytes) if is_write else 0,
        folder_bytes=folder_bytes(Path(spec.folder)),
        live_bytes=spec.user_bytes,
        peak_bytes=meter.peak_bytes(),
    )


def _prepared(subject: Subject, phase: str, chunk: list[int], values: Values) -> object:
    if phase in WRITES:
        return subject.prepare([(key_of(number), values.make()) for number in chunk])
    return None if phase == SCAN else subject.prepare_keys([key_of(number) for number in chunk])


def _check(spec: Spec, phase: str, count: int, rows: int) -> None:
    """Figures of an engine that answers wrongly are worth nothing."""
    if phase in WRITES or phase == SCAN:
        return
    expected = count if phase == GET_HIT else 0
    if rows != expected:
        raise WrongAnswer(f"{spec.engine}: {phase} found {rows} of {count}, expected {expected}")


def to_json(measures: Iterator[Measure] | list[Measure]) -> str:
    return json.dumps([dataclasses.asdict(each) for each in measures])


def main(arguments: list[str]) -> int:
    (text,) = arguments
    fields = json.loads(text)
    spec = Spec(**{**fields, "phases": tuple(fields["phases"])})
    measures = trio.run(run, spec)
    print(to_json(measures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
