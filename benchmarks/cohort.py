"""A cohort: many runs at a time, beside what the cores allow and beside a loop of nilearn's.

Covers: throughput of ``extract_many`` on this machine. Does not cover: one run (``core``).

What the cores allow is the number of cores divided by the CPU seconds that one ``extract`` takes,
its best of several: no arrangement of the same work can be faster.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks import machine, report
from benchmarks.report import Bar, Row
from benchmarks.timing import Contender, Times, take_turns

_SHAPE = (50, 59, 50, 70)
_N_REGIONS = 400
_SECTION = "THROUGHPUT: seconds for all runs, medians over rounds"
_AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=32, help="how many (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--data", type=Path, default=Path(f"/tmp/sharedmask-benchmarks-{os.geteuid()}"))


def run(arguments: argparse.Namespace) -> int:
    facts = machine.facts()
    runs, atlas = _prepare(arguments.data / "cohort", arguments.runs)
    n_cores = len(os.sched_getaffinity(0))
    print(f"{machine.described(facts)}\n{len(runs)} runs of {_SHAPE}, {_N_REGIONS} regions", flush=True)
    floor = min(_cpu_seconds(runs[number], atlas) for number in (0, 1, 2) for _ in range(5))
    times = Times()
    expected = _nilearn(runs[:1], atlas, 1)

    def right(found: dict[str, Any]) -> bool:
        first = found[runs[0]]
        return len(found) == len(runs) and np.allclose(first, expected[runs[0]], rtol=1e-6)

    contenders = [
        Contender("ours", lambda: _ours(runs, atlas, n_cores), right),
        Contender("loop", lambda: _nilearn(runs, atlas, n_cores), right),
        Contender("decompress", lambda: _decompress(runs, n_cores)),
    ]
    take_turns(contenders, arguments.repeats, times)
    rows = _rows(times, floor * len(runs) / n_cores, f"{arguments.repeats} rounds, {n_cores} at a time")
    return report.conclude(rows, arguments.json, {"machine": facts, "runs": len(runs)})


def _rows(times: Times, ideal: float, note: str) -> list[Row]:
    if times.wrong:
        return [Row(_SECTION, f"{name} differs", wrong=True) for name in sorted(times.wrong)]
    ours = times.median("ours")
    return [
        Row(
            _SECTION,
            "what the cores allow / extract_many",
            ours,
            ideal,
            ratio=ideal / ours,
            bar=Bar(0.9, at_most=False),
            note=note,
        ),
        Row(
            _SECTION,
            "extract_many / decompressing with as many threads",
            ours,
            times.median("decompress"),
            ratio=times.ratio("ours", "decompress"),
            bar=Bar(1.3, at_most=True),
            note=note,
        ),
        Row(
            _SECTION,
            "joblib loop of NiftiLabelsMasker / extract_many",
            ours,
            times.median("loop"),
            ratio=times.ratio("loop", "ours"),
            bar=Bar(5, at_most=False),
            note=note,
        ),
    ]


def _ours(runs: list[str], atlas: str, n_jobs: int) -> dict[str, Any]:
    from sharedmask import extract_many

    return dict(extract_many(runs, atlas, strategy="mean", n_jobs=n_jobs).results)


def _decompress(runs: list[str], n_jobs: int) -> None:
    """All bytes of the files, into one small buffer for each thread."""
    from isal import igzip

    def one(path: str) -> None:
        buffer = bytearray(2**20)
        with igzip.open(path) as stream:
            while stream.readinto(buffer):
                pass

    with ThreadPoolExecutor(n_jobs) as threads:
        list(threads.map(one, runs))


def _nilearn(runs: list[str], atlas: str, n_jobs: int) -> dict[str, Any]:
    from joblib import Parallel, delayed

    signals = Parallel(n_jobs=n_jobs)(delayed(_masker)(run, atlas) for run in runs)
    return dict(zip(runs, signals, strict=True))


def _masker(run: str, atlas: str) -> Any:
    from nilearn.maskers import NiftiLabelsMasker

    with warnings.catch_warnings(action="ignore"):
        return NiftiLabelsMasker(atlas, standardize=None, reports=False).fit_transform(run)


def _cpu_seconds(run: str, atlas: str) -> float:
    from sharedmask import extract

    return _cpu_of(lambda: extract(run, atlas, strategy="mean"))


def _cpu_of(call: Callable[[], Any]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def _prepare(folder: Path, count: int) -> tuple[list[str], str]:
    """Int16 runs of 20 MB and an atlas, seeded; made once."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    atlas = folder / "atlas.nii.gz"
    labels = np.zeros(_SHAPE[:3], np.int16)
    labels[5:45, 5:54, 5:45] = rng.integers(1, _N_REGIONS + 1, (40, 49, 40))
    nib.save(nib.Nifti1Image(labels, _AFFINE), atlas)
    runs = [folder / f"sub-{number:02}_bold.nii.gz" for number in range(count)]
    for path in runs:
        if not path.exists():
            partial = path.with_name(f"partial-{path.name}")
            nib.save(nib.Nifti1Image(rng.normal(1000, 50, _SHAPE).astype(np.int16), _AFFINE), partial)
            partial.rename(path)
    return [str(path) for path in runs], str(atlas)
