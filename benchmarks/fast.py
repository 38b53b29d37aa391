"""FAST: times in turns, and their ratios against the bars.

Covers: what is timed beside what, and on which inputs. Does not cover: rounds and ratios
(``timing``). Everything is by path, results included, unless its name says "resident": there the
run is in memory on both sides, and the masks are arrays.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from joblib.externals.loky import get_reusable_executor

from benchmarks import memory, variants
from benchmarks.data import Dataset
from benchmarks.report import Bar, Row
from benchmarks.timing import Contender, Times, take_turns
from benchmarks.variants import Signals
from sharedmask import Grid, Regions, SharedImage, extract

_N_JOBS = 20
_LIGHT = 4  # rounds of what takes milliseconds, for one of what takes seconds
_IMPORTS = 10  # rounds at least
_LIBRARIES = "import numpy, nibabel"
_PACKAGE = "import sharedmask"
_NAME = "from sharedmask import SharedImage"
_SECTION = "FAST: medians over rounds"


@dataclass(frozen=True)
class _Comparison:
    """Ours beside a reference, by the names of contenders."""

    what: str
    ours: str
    reference: str
    bar: Bar | None = None
    note: str = ""
    turned: bool = False
    """Whether the ratio is that of the reference to ours."""


def _slower(what: str, ours: str, reference: str, limit: float, note: str = "") -> _Comparison:
    """Ours may take ``limit`` times as long as the reference."""
    return _Comparison(what, ours, reference, Bar(limit, at_most=True), note)


def _faster(what: str, ours: str, reference: str, limit: float, note: str = "") -> _Comparison:
    """The reference takes at least ``limit`` times as long as ours."""
    return _Comparison(what, ours, reference, Bar(limit, at_most=False), note, turned=True)


_COMPARISONS = [
    _slower("extract / decompression", "extract", "decompress", 1.25),
    _Comparison("  (masks given as arrays)", "extract, arrays", "decompress"),
    _faster(
        "SharedMemory recipe / extract", "extract", "shared_recipe, cold", 8, "20 jobs, as a script runs it"
    ),
    _faster("SharedMemory recipe / extract", "extract", "shared_recipe", 8, "20 jobs, their workers running"),
    _faster("union masker / extract", "extract", "union_masker", 5),
    _faster("NiftiMasker loop / extract", "extract", "masker_loop", 80),
    _slower("resident / copy", "resident", "copy", 1.5, "n_jobs=None"),
    _slower("resident / copy", "resident, 2 jobs", "copy", 1.5, "n_jobs=2"),
    _slower("resident / copy", "resident, 20 jobs", "copy", 1.5, "n_jobs=20"),
    _Comparison("  (masks given as Regions)", "resident, Regions", "copy", note="n_jobs=None"),
    _Comparison("  (masks given as paths)", "resident, paths", "copy", note="n_jobs=None"),
    _faster("data[mask] / resident", "resident", "indexing", 15, "n_jobs=None"),
    _faster("data[mask] / resident", "resident, 20 jobs", "indexing", 15, "n_jobs=20"),
    _slower("import sharedmask / libraries", _PACKAGE, _LIBRARIES, 1.25),
    _slower("import SharedImage / libraries", _NAME, _LIBRARIES, 1.25),
]


def measure(dataset: Dataset, n_rounds: int, loop_masks: int | None = None) -> list[Row]:
    """All comparisons. ``loop_masks``: time the loop of maskers on so many, and scale."""
    times, notes = Times(), dict[str, str]()
    expected = variants.as_nilearn(variants.numpy_indexing(dataset.run, dataset.masks, 1), dataset.shape[3])
    _time_streams(dataset, expected, n_rounds, times, notes)
    _time_resident(dataset, expected, n_rounds * _LIGHT, times)
    _time_imports(max(n_rounds, _IMPORTS), times)
    _time_loop(dataset, expected, loop_masks, times, notes)
    return [_row(comparison, times, notes) for comparison in _COMPARISONS]


def _row(comparison: _Comparison, times: Times, notes: dict[str, str]) -> Row:
    ours, reference = comparison.ours, comparison.reference
    said = [notes[name] for name in (ours, reference) if name in notes]
    note = "; ".join([comparison.note, *said] if comparison.note else said)
    wrong = not times.wrong.isdisjoint((ours, reference))
    if not times.knows(ours, reference):
        return Row(_SECTION, comparison.what, bar=comparison.bar, wrong=wrong, note=note)
    ratio = times.ratio(reference, ours) if comparison.turned else times.ratio(ours, reference)
    return Row(
        _SECTION,
        comparison.what,
        ours=times.median(ours),
        reference=times.median(reference),
        ratio=ratio,
        bar=comparison.bar,
        note=note,
    )


# --- from the file -------------------------------------------------------------------------------


def _time_streams(
    dataset: Dataset, expected: Signals, n_rounds: int, times: Times, notes: dict[str, str]
) -> None:
    _tell("passes over the file")
    right = partial(_equal, expected=expected)
    arrays = variants.load_masks(dataset.masks)
    by_path = partial(_contender, dataset=dataset, right=right, notes=notes)
    contenders = [
        Contender("decompress", partial(variants.decompress, dataset.run)),
        by_path("extract", 1),
        Contender("extract, arrays", lambda: extract(dataset.run, arrays), right),
        by_path("union_masker", 1),
        by_path("shared_recipe", _N_JOBS, "shared_recipe, cold", before=_stop_joblib),
        by_path("shared_recipe", _N_JOBS),
    ]
    take_turns([one for one in contenders if one is not None], n_rounds, times)
    _stop_joblib()


def _contender(
    variant: str,
    n_jobs: int,
    name: str | None = None,
    *,
    dataset: Dataset,
    right: Any,
    notes: dict[str, str],
    before: Any = lambda: None,
) -> Contender | None:
    """A variant as a contender, if this machine has room for it."""
    name = name or variant
    lacking = memory.lacking(variant, dataset, n_jobs, len(dataset.masks))
    if lacking is not None:
        notes[name] = lacking
        return None
    run = partial(variants.VARIANTS[variant], dataset.run, dataset.masks, n_jobs)
    return Contender(name, run, right, before)


def _stop_joblib() -> None:
    get_reusable_executor().shutdown(wait=True)


def _time_loop(
    dataset: Dataset, expected: Signals, n_masks: int | None, times: Times, notes: dict[str, str]
) -> None:
    """Once: it takes minutes."""
    masks = dataset.masks[:n_masks]
    _tell(f"NiftiMasker's loop over {len(masks)} masks")
    loop = Contender(
        "masker_loop",
        partial(variants.masker_loop, dataset.run, masks, 1),
        partial(_equal, expected=expected[: len(masks)]),
    )
    take_turns([loop], 1, times, warm_up=False)
    notes[loop.name] = "one loop"
    if len(masks) < len(dataset.masks) and times.knows(loop.name):
        times.seconds[loop.name] = [s * len(dataset.masks) / len(masks) for s in times.seconds[loop.name]]
        notes[loop.name] = f"scaled from {len(masks)} masks"


# --- in memory -----------------------------------------------------------------------------------


def _time_resident(dataset: Dataset, expected: Signals, n_rounds: int, times: Times) -> None:
    _tell("the run in memory")
    masks = variants.load_masks(dataset.masks)
    right = partial(_equal, expected=expected)
    rows = [np.ascontiguousarray(one.T).T for one in expected]
    data = variants.load_array(dataset.run)
    with SharedImage(dataset.run) as image:
        regions = Regions.from_any(masks, Grid(image.shape[:3], image.affine))
        mask = image.load().mask_parallel
        contenders = [
            Contender("resident", lambda: mask(masks), right),
            Contender("copy", lambda: variants.copies(rows), right),
            Contender("resident, 2 jobs", lambda: mask(masks, n_jobs=2), right),
            Contender("resident, 20 jobs", lambda: mask(masks, n_jobs=20), right),
            Contender("resident, Regions", lambda: mask(regions), right),
            Contender("resident, paths", lambda: mask(list(dataset.masks)), right),
            Contender("indexing", lambda: [data[one].T for one in masks], right),
        ]
        take_turns(contenders, n_rounds, times)


def _equal(signals: Any, expected: Signals) -> bool:
    """Whether these are the same values, whatever their shape and dtype."""
    found = variants.as_nilearn(signals, len(expected[0]))
    return len(found) == len(expected) and all(map(np.array_equal, found, expected))


# --- imports -------------------------------------------------------------------------------------


def _time_imports(n_rounds: int, times: Times) -> None:
    """In fresh interpreters, each timing its own import: their start is the same for all.

    All modules are compiled beforehand, as those of an installed package are.
    """
    _tell("imports")
    statements = (_LIBRARIES, _PACKAGE, _NAME)
    with tempfile.TemporaryDirectory() as folder:
        for statement in statements:
            _import_seconds(statement, folder)
        for number in range(n_rounds):
            for statement in statements[:: 1 if number % 2 == 0 else -1]:
                times.seconds.setdefault(statement, []).append(_import_seconds(statement, folder))


def _import_seconds(statement: str, compiled: str) -> float:
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=compiled, env=environment, check=True, capture_output=True, text=True)
    return float(ran.stdout)


def _tell(what: str) -> None:
    print(f"timing {what}", file=sys.stderr, flush=True)
