"""Peak memory of a variant: the tree of its processes, sampled from outside.

Covers: sampling, what a variant is projected to take; on Linux. Does not cover: what counts
(``sharedmask.usage``: PSS of private and file-backed pages, shared memory once), the variants
(``variants``), the process that runs one (``child``).
"""

import json
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks import machine
from benchmarks.data import ROOT, Dataset, Sizes
from sharedmask.system import usage

INTERVAL = 0.01
_BARE = "import sys; {}; print('done', flush=True); sys.stdin.read(); print('{{}}')"
_BARE_SAMPLES = 10


@dataclass(frozen=True)
class Cost:
    """What a variant is projected to take besides its results."""

    images: float
    """Of the decoded image's bytes, in all."""
    images_per_job: float = 0.0
    bytes_per_job: float = 0.0

    def projected(self, dataset: Sizes, n_jobs: int, n_masks: int) -> float:
        images = self.images + self.images_per_job * n_jobs
        results = 2 * dataset.signal_bytes(n_masks)
        return images * dataset.image_bytes + results + self.bytes_per_job * n_jobs


COSTS = {
    "extract": Cost(0.5),
    "resident": Cost(1.1),
    "resident_processes": Cost(1.1, bytes_per_job=10e6),
    "numpy_indexing": Cost(2.1),
    "shared_recipe": Cost(6.5, bytes_per_job=40e6),
    "shared_array": Cost(3.2, bytes_per_job=40e6),
    "indexing_loop": Cost(0.0, images_per_job=2.05, bytes_per_job=60e6),
    "indexing_loop_memory": Cost(2.1, bytes_per_job=60e6),
    "shm": Cost(1.1),
    "memfd": Cost(1.1),
    "disk": Cost(1.1),
    "file": Cost(1.1),
    "masker_loop_memory": Cost(2.1, images_per_job=1.25, bytes_per_job=230e6),
    "union_masker": Cost(3.0),
    "masker_loop": Cost(0.0, images_per_job=2.05, bytes_per_job=230e6),
    "masker_loop_shared": Cost(1.1, images_per_job=1.25, bytes_per_job=230e6),
    "indexing_loop_shared": Cost(1.3, bytes_per_job=60e6),
    "labels_masker": Cost(2.5, bytes_per_job=300e6),
    "one_masker": Cost(2.5, bytes_per_job=300e6),
    "cleaning_masker": Cost(4.0, bytes_per_job=300e6),
    "shared_labels_masker": Cost(0.5, bytes_per_job=300e6),
    "shared_one_masker": Cost(0.5, bytes_per_job=300e6),
    "shared_cleaning_masker": Cost(2.0, bytes_per_job=300e6),
}


def lacking(name: str, dataset: Sizes, n_jobs: int, n_masks: int) -> str | None:
    """Why ``name`` cannot be run here; None if it can."""
    return machine.lacking(COSTS[name].projected(dataset, n_jobs, n_masks))


@dataclass(frozen=True)
class Measured:
    """What one run took; ``peak`` is above the bare interpreter."""

    peak: int
    peak_rss: int
    """The first process's own resident peak by the kernel's account: no sample can miss it."""
    n_processes: int
    n_samples: int
    seconds: float
    """Of the variant with what it imports, while it is watched."""
    digests: list[str]


@dataclass(frozen=True)
class _Peak:
    nbytes: int
    n_processes: int
    n_samples: int
    said: dict[str, Any]


def bare_interpreter(statement: str = "pass") -> int:
    """Bytes of a Python that does nothing, or nothing but ``statement``, seen in the same way."""
    return sampled([sys.executable, "-c", _BARE.format(statement)], at_least=_BARE_SAMPLES).nbytes


def measure(name: str, dataset: Dataset, n_jobs: int, masks: Sequence[Path], bare: int) -> Measured:
    """Run the variant ``name`` in a fresh process and watch it."""
    arguments = [name, str(n_jobs), str(dataset.shape[3]), str(dataset.run), *map(str, masks)]
    peak = sampled([sys.executable, "-m", "benchmarks.child", *arguments])
    said = peak.said
    return Measured(
        peak=peak.nbytes - bare,
        peak_rss=said["peak_rss"],
        n_processes=peak.n_processes,
        n_samples=peak.n_samples,
        seconds=said["seconds"],
        digests=said["digests"],
    )


def sampled(command: list[str], at_least: int = 1) -> _Peak:
    """Sample the tree of ``command`` from its start until it says "done"."""
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        peak, n_processes, n_samples, done = 0, 0, 0, False
        while not done or n_samples < at_least:
            done = done or bool(select.select([process.stdout], [], [], 0)[0])
            nbytes, count = look(process.pid)
            peak, n_processes = max(peak, nbytes), max(n_processes, count)
            n_samples += 1
            time.sleep(INTERVAL)
        first = process.stdout.readline()
        process.stdin.close()
        rest = process.stdout.read()
    if first != b"done\n":
        raise RuntimeError(f"{' '.join(command[:4])} failed with exit code {process.returncode}")
    return _Peak(peak, n_processes, n_samples, json.loads(rest))


def look(pid: int) -> tuple[int, int]:
    """Bytes that the tree of ``pid`` holds at this moment, and its number of processes."""
    now = usage.of_tree(pid)
    return now.total, len(now.private)


def processes(pid: int) -> list[psutil.Process]:
    """``pid`` and its descendants; empty once it has ended."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []
