"""A variant in a fresh process: under mprof and sampled, or undisturbed and timed.

Covers: starting it, both accounts of its memory over time, its CPU time. Does not cover: what
counts as memory (``memory``), the process itself (``child``).

Two accounts, of one run::

    mprof     resident sizes of all processes, summed: what was published; a shared page counts
              once per process. ``mprof run --include-children --multiprocess``, its file is kept
    sampled   what is held: PSS, and each shared memory object once; and bytes in the spill folder

Watching costs time, so times come from runs that nobody watches.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from benchmarks import memory
from benchmarks.data import ROOT

_MPROF_INTERVAL = 0.05
_LEAST_INTERVAL = 0.01
_EASE = 9  # times the CPU time of looking, the sampler rests
_MIB = 2**20


class VariantError(Exception):
    """A variant that ended without a result."""


@dataclass(frozen=True)
class Sample:
    seconds: float
    """Since the variant began."""
    held: int
    spilled: int


@dataclass(frozen=True)
class Timed:
    """One run of a variant; seconds, and digests of its signals."""

    seconds: float
    cpu_seconds: float
    """Of all its processes together."""
    digests: list[str]


@dataclass(frozen=True)
class Watched(Timed):
    """One run of a variant that was watched; bytes."""

    samples: list[Sample]
    mprof: list[tuple[float, float]]
    """Seconds since the variant began, and bytes."""
    n_processes: int

    @property
    def peak(self) -> int:
        return max(sample.held for sample in self.samples)

    @property
    def peak_spilled(self) -> int:
        return max(sample.spilled for sample in self.samples)

    @property
    def mprof_peak(self) -> float:
        return max(nbytes for _, nbytes in self.mprof)


@dataclass(frozen=True)
class Task:
    """A variant and what it is given."""

    variant: str
    run: Path
    masks: Sequence[Path]
    n_jobs: int
    n_timepoints: int

    @property
    def command(self) -> list[str]:
        numbers = map(str, (self.n_jobs, self.n_timepoints))
        masks = map(str, self.masks)
        return [sys.executable, "-m", "benchmarks.child", self.variant, *numbers, str(self.run), *masks]


def timed(task: Task, spill: Path) -> Timed:
    """Run it undisturbed."""
    with _started(task.command, spill) as process:
        _done(process)
        cpu = _cpu_seconds(process.pid)
        said = _said(process)
    return Timed(said["seconds"], cpu - said["cpu_before"], said["digests"])


def watched(task: Task, spill: Path, dat: Path) -> Watched:
    """Run it under mprof, whose file becomes ``dat``, and sample it."""
    dat.unlink(missing_ok=True)  # mprof appends
    options = ["--include-children", "--multiprocess", "--interval", str(_MPROF_INTERVAL)]
    command = [sys.executable, "-m", "mprof", "run", *options, "--output", str(dat), *task.command]
    looks: list[tuple[float, int, int]] = []
    with _started(command, spill) as process:
        child = _only_child(process)
        counts = [1]

        def look() -> None:
            at, before = time.time(), time.process_time()
            nbytes, count = memory.look(child)
            looks.append((at, nbytes, _bytes_in(spill)))
            counts.append(count)
            time.sleep(max(_LEAST_INTERVAL, _EASE * (time.process_time() - before)))

        _done(process, look)
        look()
        ended, cpu = time.time(), _cpu_seconds(child)
        said = _said(process)
    began = said["began"]
    return Watched(
        said["seconds"],
        cpu - said["cpu_before"],
        said["digests"],
        samples=[Sample(at - began, held, spilled) for at, held, spilled in looks],
        mprof=[(at - began, nbytes) for at, nbytes in read_dat(dat) if at <= ended],
        n_processes=max(counts),
    )


@contextmanager
def _started(command: list[str], spill: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process, waiting for its end; what it complained about is raised if it fails."""
    environment = {**os.environ, "SHAREDMASK_TMPDIR": str(spill), "PYTHONUNBUFFERED": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    with tempfile.TemporaryFile() as complaints:
        options: dict[str, Any] = {"cwd": ROOT, "env": environment, "stderr": complaints, **pipes}
        with subprocess.Popen(command, **options) as process:
            try:
                yield process
            except VariantError:
                raise VariantError(_last_line(complaints)) from None


def _last_line(complaints: IO[bytes]) -> str:
    complaints.seek(0)
    lines = complaints.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "ended without a result"


def _only_child(process: subprocess.Popen[bytes]) -> int:
    """The program that mprof runs."""
    while process.poll() is None:
        for child in psutil.Process(process.pid).children():
            return child.pid
        time.sleep(_LEAST_INTERVAL)
    raise VariantError


def _done(process: subprocess.Popen[bytes], meanwhile: Callable[[], None] | None = None) -> None:
    """Wait until the variant says that it is done, and do something over and over meanwhile."""
    assert process.stdout is not None
    while True:
        if meanwhile is not None:
            meanwhile()
            if not select.select([process.stdout], [], [], 0)[0]:
                continue
        line = process.stdout.readline()
        if line == b"done\n":
            return
        if not line:
            raise VariantError


def _said(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    lines = process.stdout.read().splitlines()
    found = next((line for line in lines if line.startswith(b"{")), None)
    if found is None:
        raise VariantError
    said: dict[str, Any] = json.loads(found)
    return said


def _cpu_seconds(pid: int) -> float:
    """Of the tree so far, with those that have left it."""
    total = 0.0
    for process in memory.processes(pid):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def _bytes_in(folder: Path) -> int:
    """On disk."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_blocks * 512
    return total


def read_dat(path: Path) -> list[tuple[float, float]]:
    """(time, bytes) of all processes together, from a file of mprof's."""
    lines = (line.split() for line in path.read_text().splitlines())
    return [(float(words[2]), float(words[1]) * _MIB) for words in lines if words and words[0] == "MEM"]
