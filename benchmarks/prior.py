"""What a memory-efficient loader was to save, measured: loading, regions, subjects at a time, a second run.

Covers: the same work through nibabel's float64 arrays (reference), which is what such loaders fall back to
and compare themselves with, and through sharedmask (ours); a process each, its time and its peak, shared
pages included. Does not cover: loops of maskers (``experiment``), single operations (``core``).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine, report
from benchmarks.memory import sampled
from benchmarks.report import Bar, Row

_GRID = (64, 64, 36)
_MIB = 2**20
_LESS = Bar(0.5, at_most=True)
_LIMIT = "600M"  # of memory for all subjects at work


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.3, 0.6], metavar="GB",
                        help="of a run as float64 (default: 0.3 0.6)")  # fmt: skip
    parser.add_argument("--voxels", type=int, nargs="+", default=[1000, 5000, 10_000], metavar="N")
    parser.add_argument("--subjects", type=int, nargs="+", default=[4, 8], metavar="N")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="subjects at a time (default: 2)")


def run(arguments: argparse.Namespace) -> int:
    print(machine.described(machine.facts()), flush=True)
    with tempfile.TemporaryDirectory() as place:
        rows = list(_rows(Path(place), arguments))
    print(report.table(rows))
    return 1 if any(row.failed for row in rows) else 0


def _rows(folder: Path, asked: argparse.Namespace) -> Iterator[Row]:
    for size in asked.sizes:
        path = _run_of(folder, size)
        yield from _pair("LOADING: one region of 5000 voxels", f"{size:g} GB as float64", path, 5000)
        path.unlink()
    path = _run_of(folder, min(asked.sizes))
    for count in asked.voxels:
        yield from _pair("REGIONS: of one run", f"{count} voxels", path, count)
    for count in asked.subjects:
        yield from _pair(
            f"SUBJECTS: {_LIMIT} for all at work", f"{count} subjects", path, 5000, count, asked.jobs
        )
    first, again = (_measured("ours, cached", path, 5000, 1, 1) for _ in range(2))
    ratio, wrong = again["seconds"] / first["seconds"], again["sum"] != first["sum"]
    yield Row("SECOND RUN: from the cache", "again, first", again["seconds"], first["seconds"],
              ratio=ratio, wrong=wrong)  # fmt: skip


def _pair(
    section: str, what: str, path: Path, n_voxels: int, n_subjects: int = 1, n_jobs: int = 1
) -> Iterator[Row]:
    ours, reference = (_measured(way, path, n_voxels, n_subjects, n_jobs) for way in ("ours", "reference"))
    wrong = not np.isclose(ours["sum"], reference["sum"])
    for name, unit in (("seconds", "s"), ("MiB", "MiB")):
        one, other = ours[name], reference[name]
        bar = _LESS if unit == "MiB" else None
        yield Row(section, f"{what}, {name}", one, other, unit, one / other, bar, wrong)


def _measured(way: str, path: Path, *numbers: int) -> dict[str, Any]:
    peak = sampled([sys.executable, "-m", "benchmarks.prior", way, str(path), *map(str, numbers)])
    return {**peak.said, "MiB": peak.nbytes / _MIB}


def _run_of(folder: Path, size: float) -> Path:
    """A run whose float64 values take ``size`` GB."""
    import nibabel as nib

    n_timepoints = max(2, int(size * 1e9 / (np.prod(_GRID) * 8)))
    rng = np.random.default_rng(0)
    data = np.empty((*_GRID, n_timepoints), np.int16)
    for t in range(n_timepoints):
        data[..., t] = rng.normal(1000, 30, _GRID)
    path = folder / f"sub-{size:g}_bold.nii.gz"
    nib.Nifti1Image(data, np.eye(4)).to_filename(path)
    return path


# --- in a process of its own ---------------------------------------------------------------------


def _mask(n_voxels: int) -> Any:
    inside = np.zeros(np.prod(_GRID), bool)
    inside[np.random.default_rng(1).choice(inside.size, n_voxels, replace=False)] = True
    return inside.reshape(_GRID)


def _reference(path: str, mask: Any, n_subjects: int, n_jobs: int) -> float:
    from joblib import Parallel, delayed

    return float(sum(Parallel(n_jobs)(delayed(_by_nibabel)(path, mask) for _ in range(n_subjects))))


def _by_nibabel(path: str, mask: Any) -> float:
    import nibabel as nib

    return float(nib.load(path).get_fdata()[mask].sum())


def _ours(path: str, mask: Any, n_subjects: int, n_jobs: int) -> float:
    from sharedmask import extract_many

    runs = dict.fromkeys(range(n_subjects), path)
    found = extract_many(runs, mask, n_jobs=n_jobs, memory_limit=_LIMIT)
    if found.errors:
        raise next(iter(found.errors.values()))
    return float(sum(one.sum(dtype=np.float64) for one in found.results.values()))


def _cached(path: str, mask: Any, n_subjects: int, n_jobs: int) -> float:
    from sharedmask import extract

    return float(extract(path, mask, memory=Path(path).parent).sum(dtype=np.float64))


_WAYS: dict[str, Callable[..., float]] = {"ours": _ours, "reference": _reference, "ours, cached": _cached}


def main(way: str, path: str, n_voxels: str, n_subjects: str, n_jobs: str) -> None:
    start = time.perf_counter()
    total = _WAYS[way](path, _mask(int(n_voxels)), int(n_subjects), int(n_jobs))
    seconds = time.perf_counter() - start
    print("done", flush=True)
    sys.stdin.read()  # until nobody looks any more
    print(json.dumps({"seconds": seconds, "sum": total}))


if __name__ == "__main__":
    main(*sys.argv[1:])
