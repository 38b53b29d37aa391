"""``python -m benchmarks kernels``: array functions beside a copy, against the stored ratios.

Covers: each kernel on arrays of a usual size, how many copies of its input it takes, and whether
that is more than it was. Does not cover: whole calls (``limits``).

What is stored is a ratio: a kernel's best time over the best time of copying the bytes that it
reads, both in turns in one run. It moves from machine to machine far less than seconds do.
"""

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks import machine
from benchmarks.timing import Contender, Times, take_turns
from sharedmask.compute import kernels, reduction
from sharedmask.compute.strategies import STRATEGIES
from sharedmask.sources import loader, values
from sharedmask.sources.values import Conversion

Array = NDArray[Any]

_BASELINE = Path(__file__).with_name("kernels.json")
_SLOWER = 1.2
_N_ROWS, _N_TIMEPOINTS = 24_000, 600
_SEED = 0


@dataclass(frozen=True)
class _Kernel:
    name: str
    run: Callable[[], Any]
    reads: Array
    """What is copied beside it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="rounds (default: 15)")
    parser.add_argument(
        "--update", action="store_true", help="store the ratios found as those to compare with"
    )


def run(arguments: argparse.Namespace) -> int:
    facts = machine.facts()
    print(machine.described(facts), flush=True)
    ratios = measured(arguments.repeats)
    baseline: dict[str, float] = json.loads(_BASELINE.read_text())["ratios"] if _BASELINE.exists() else {}
    print(_table(ratios, baseline))
    if arguments.update:
        kept = {"machine": facts, "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()}}
        _BASELINE.write_text(json.dumps(kept, indent=1) + "\n")
        return 0
    return int(bool(slower(ratios, baseline)))


def slower(ratios: dict[str, float], baseline: dict[str, float]) -> list[str]:
    """Kernels that take more copies than they did, by more than a fifth."""
    return [name for name, ratio in ratios.items() if name in baseline and ratio > _SLOWER * baseline[name]]


def _table(ratios: dict[str, float], baseline: dict[str, float]) -> str:
    late = slower(ratios, baseline)
    lines = [f"{'kernel':<36}{'copies':>8}{'stored':>8}{'change':>8}"]
    for name, ratio in ratios.items():
        stored = baseline.get(name)
        then = "        " * 2 if stored is None else f"{stored:8.2f}{ratio / stored - 1:+8.0%}"
        lines.append(f"{name:<36}{ratio:8.2f}{then}{'  SLOWER' if name in late else ''}")
    return "\n".join([*lines, f"\n{len(late)} of {len(baseline)} more than {_SLOWER - 1:.0%} slower"])


def measured(n_rounds: int) -> dict[str, float]:
    """Best time of each kernel over the best time of copying what it reads."""
    times, found = Times(), list(_kernels())
    with threadpool_limits(1):
        for kernel in found:
            take_turns(_beside_a_copy(kernel), n_rounds, times)
    best = {name: min(seconds) for name, seconds in times.seconds.items()}
    return {kernel.name: best[kernel.name] / best[f"copy for {kernel.name}"] for kernel in found}


def _beside_a_copy(kernel: _Kernel) -> list[Contender]:
    copied = np.empty_like(kernel.reads)
    copy = Contender(f"copy for {kernel.name}", lambda: np.copyto(copied, kernel.reads))
    return [Contender(kernel.name, kernel.run), copy]


def _kernels() -> Iterator[_Kernel]:
    rng = np.random.default_rng(_SEED)
    rows = rng.standard_normal((_N_ROWS, _N_TIMEPOINTS), np.float32)
    yield from _gathers(rows, rng)
    yield from _reductions(rows, rng)
    yield _Kernel("all finite", lambda: values.all_finite(rows), rows)
    yield _transposition(rows)


def _gathers(rows: Array, rng: np.random.Generator) -> Iterator[_Kernel]:
    """Half of the rows, compact and scattered, with each conversion."""
    half = _N_ROWS // 2
    scattered, compact = np.sort(rng.choice(_N_ROWS, half, replace=False)), np.arange(half)
    whole = (rows * 1000).astype(np.int16)
    damaged = rows.copy()
    damaged[::100, 7] = np.nan
    plain = _conversion(rows.dtype, rows.dtype)
    zeroing = _conversion(rows.dtype, rows.dtype, nan_policy="zero")
    scaling = _conversion(np.dtype(np.float64), np.dtype(np.float32), slope=0.5)
    casting = _conversion(whole.dtype, np.dtype(np.float32))
    yield _gather("gather, compact rows", rows, True, plain, compact)
    yield _gather("gather, scattered rows", rows, True, plain, scattered)
    yield _gather("gather, non-finite to 0", damaged, False, zeroing, scattered)
    yield _gather("gather, int16 to float32", whole, True, casting, scattered)
    yield _gather("gather, int16 scaled", whole, True, scaling, scattered)


def _conversion(
    scaled: np.dtype[Any], result: np.dtype[Any], slope: float = 1.0, **policy: Any
) -> Conversion:
    return Conversion(slope, 0.0, scaled, result, **policy)


def _gather(name: str, rows: Array, finite: bool, conversion: Conversion, index: NDArray[np.intp]) -> _Kernel:
    out = np.empty((len(index), rows.shape[1]), conversion.result)
    return _Kernel(name, lambda: kernels.gather(rows, finite, out, conversion, index, 0), rows[: len(index)])


def _reductions(rows: Array, rng: np.random.Generator) -> Iterator[_Kernel]:
    """Of a region of usual size."""
    index = np.sort(rng.choice(_N_ROWS, 1000, replace=False))
    conversion = _conversion(rows.dtype, np.dtype(np.float64))
    out, whole = np.empty((1, rows.shape[1])), np.array([0, len(index)])
    for strategy in STRATEGIES:
        if strategy == "weighted_mean":  # has no region without its weights
            continue

        (part,) = reduction.parts(rows, True, conversion, strategy, index, whole, None, 1)

        def reduce(strategy: str = strategy, part: Any = part) -> None:
            reduction.reduce_part(rows, True, out, conversion, strategy, 0, part)

        yield _Kernel(f"reduce, {strategy}", reduce, rows[: len(index)])


def _transposition(rows: Array) -> _Kernel:
    """Of volumes that are in memory: the pipeline of loading, without a file."""
    source = _InMemory(np.ascontiguousarray(rows.T))
    out = np.empty_like(rows)
    return _Kernel("load from memory", lambda: loader.load(source, out), rows)


class _InMemory:
    """Volumes, (n_volumes, n_voxels), that are there already."""

    reads_ahead = False
    reading_bytes = 0

    def __init__(self, volumes: Array) -> None:
        self._volumes = volumes
        self.n_timepoints, self.n_voxels = volumes.shape
        self.dtype = volumes.dtype

    @contextlib.contextmanager
    def volumes(self) -> Iterator["_InMemory"]:
        self._next = 0
        yield self

    def readinto(self, out: Array) -> None:
        count = out.size // self.n_voxels
        out[...] = self._volumes[self._next : self._next + count].reshape(out.shape)
        self._next += count
