"""``python -m benchmarks sharing``: what attaching, publishing and travelling as a handle cost."""

import argparse
import gc
import mmap
import os
import pickle
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from sharedmask.storage import segment
from sharedmask.storage.registry import OwnedSegment

_GEOMETRY = {"rows": ((1000, 250), np.dtype(np.int16))}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument("--repeats", type=int, default=2000, help="attaches of each kind")
    parser.add_argument("--cycles", type=int, default=20_000, help="publish, attach and close cycles")


def run(arguments: argparse.Namespace) -> int:
    """Print the figures; 1 if a bar is missed."""
    missed = 0
    for store in ("shm", "memfd"):
        ratio, bare, attach = _attach_ratio(store, arguments.repeats)
        missed += _say(f"attach ({store})", ratio, 10, f"{attach:.1f} us against {bare:.1f} us bare")
    size = _pickled_bytes()
    missed += _say("pickled view", size, 1024, "bytes")
    for store in ("shm", "memfd"):
        growth = _growth(store, arguments.cycles)
        missed += _say(
            f"descriptors, maps after {arguments.cycles} cycles ({store})", sum(growth[:2]), 0, "more"
        )
        missed += _say(f"memory after {arguments.cycles} cycles ({store})", growth[2], 4, "MiB more")
    return int(missed > 0)


def _say(what: str, reached: float, bar: float, unit: str) -> int:
    ok = reached <= bar
    print(f"{what:<48}{reached:>9.1f}  at most {bar:<6g}{'ok' if ok else 'SHORT':<7}{unit}")
    return int(not ok)


def _attach_ratio(store: str, repeats: int) -> tuple[float, float, float]:
    """Median of validated over bare attach, in turn; the medians in microseconds."""
    owned = OwnedSegment("benchmark", _GEOMETRY, store)
    handle = owned.share({})
    name = f"/dev/shm/{handle.name}" if store == "shm" else f"/proc/{handle.pid}/fd/{handle.fd}"

    def bare() -> None:
        fd = os.open(name, os.O_RDONLY)
        mmap.mmap(fd, handle.nbytes, prot=mmap.PROT_READ).close()
        os.close(fd)

    times = [(_microseconds(bare), _microseconds(lambda: segment.attach(handle))) for _ in range(repeats)]
    owned.release()
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    return medians[1] / medians[0], medians[0], medians[1]


def _microseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e6


def _pickled_bytes() -> int:
    owned = OwnedSegment("sub-01_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz", _GEOMETRY)
    view = segment.attach(owned.share({})).view("rows")
    owned.release()
    return len(pickle.dumps(view[::2, 3:]))


def _growth(store: str, cycles: int) -> tuple[int, int, float]:
    """More descriptors, maps and MiB after many cycles than after a few."""
    _cycle(store, 200)
    before = _state()
    _cycle(store, cycles)
    after = _state()
    return after[0] - before[0], after[1] - before[1], (after[2] - before[2]) / 2**20


def _cycle(store: str, count: int) -> None:
    for _ in range(count):
        owned = OwnedSegment("benchmark", _GEOMETRY, store)
        segment.attach(owned.share({})).arrays["rows"].sum()
        owned.release()


def _state() -> tuple[int, int, int]:
    gc.collect()
    maps = Path("/proc/self/maps").read_text().count("sharedmask-")
    return len(os.listdir("/proc/self/fd")), maps, psutil.Process().memory_info().rss
