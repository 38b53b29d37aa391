"""The drop-in maskers: time and memory beside nilearn's, and what is cleaned, in one run.

Covers: which maskers stand side by side, and what ours have to reach. Does not cover: how they are
called (``variants``), rounds and ratios (``timing``), how memory is seen (``memory``).

Each pair is compared for equality before it is timed. Memory comes first, as in ``core``: as long
as this process has not imported numpy, it makes nothing that it measures look smaller.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import core, data, machine, memory, report
from benchmarks.data import Dataset
from benchmarks.report import Bar, Row
from benchmarks.timing import Contender, Times, take_turns

_MB = 1e6
_TOLERANCE = 1e-6
_SPEED = "SPEED: medians over rounds, by path, .nii.gz"
_MEMORY = "MEMORY: peak above an interpreter that has imported the masker"
_WHOLE = "MEMORY: peak above a bare interpreter"
_WORK = "WORK: columns cleaned, all masks at once and in a loop"


@dataclass(frozen=True)
class _Pair:
    """Our masker and nilearn's, by the names of their variants, and our bars."""

    what: str
    ours: str
    theirs: str
    inputs: Callable[[Dataset], list[Path]]
    masker: str
    speed: Bar
    memory: Bar | None = None
    rounds: float = 1.0
    """For one of the rounds asked for."""


_PAIRS = [
    _Pair(
        what="400 regions",
        ours="shared_labels_masker",
        theirs="labels_masker",
        inputs=lambda dataset: [dataset.atlas],
        masker="LabelsMasker",
        speed=Bar(10, at_most=False),
        memory=Bar(1 / 5, at_most=True),
    ),
    _Pair(
        what="one mask",
        ours="shared_one_masker",
        theirs="one_masker",
        inputs=lambda dataset: [dataset.masks[0]],
        masker="NiftiMasker",
        speed=Bar(4, at_most=False),
    ),
    _Pair(
        what="whole brain, cleaned",
        ours="shared_cleaning_masker",
        theirs="cleaning_masker",
        inputs=lambda dataset: [dataset.brain, dataset.confounds],
        masker="NiftiMasker",
        speed=Bar(1, at_most=False),
        memory=Bar(1 / 2, at_most=True),
        rounds=0.5,  # half a minute each
    ),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    core.add_arguments(parser, only=("speed", "memory", "work"), quick="3 rounds, and 3 of the 20 masks")


def run(arguments: argparse.Namespace) -> int:
    dataset = data.prepare(arguments.data)
    facts = machine.facts()
    print(f"{machine.described(facts)}\n{dataset}", flush=True)
    n_rounds = 3 if arguments.quick else arguments.repeats
    sections = {
        "memory": partial(_measure_memory, dataset),
        "speed": partial(_measure_speed, dataset, n_rounds),
        "work": partial(_count_work, dataset, 3 if arguments.quick else None),
    }
    chosen = [arguments.only] if arguments.only else list(sections)
    rows = [row for name in chosen for row in sections[name]()]
    settings = {"repeats": n_rounds, "quick": arguments.quick, "data": str(dataset)}
    return report.conclude(rows, arguments.json, {"machine": facts, **settings})


# --- memory --------------------------------------------------------------------------------------


def _measure_memory(dataset: Dataset) -> list[Row]:
    """Above what importing the masker takes, which is nilearn's import for both; and above nothing."""
    bare = memory.bare_interpreter()
    above_imports, above_nothing = [], []
    for pair in _PAIRS:
        peaks = [_peak(pair, name, dataset, bare) for name in (pair.ours, pair.theirs)]
        imports = [memory.bare_interpreter(_importing(pair, side)) - bare for side in (True, False)]
        own = [None if peak is None else peak - used for peak, used in zip(peaks, imports, strict=True)]
        above_imports.append(_memory_row(_MEMORY, pair, *own, bar=pair.memory))
        above_nothing.append(_memory_row(_WHOLE, pair, *peaks))
    return above_imports + above_nothing


def _peak(pair: _Pair, variant: str, dataset: Dataset, bare: int) -> int | None:
    if (lacking := memory.lacking(variant, dataset, 1, 1)) is not None:
        print(f"{variant}: {lacking}", file=sys.stderr)
        return None
    _tell(f"watching {variant}")
    return memory.measure(variant, dataset, 1, pair.inputs(dataset), bare).peak


def _importing(pair: _Pair, ours: bool) -> str:
    if ours:
        return f"from sharedmask import Shared{pair.masker}"
    return f"from nilearn.maskers import Nifti{pair.masker.removeprefix('Nifti')}"


def _memory_row(
    section: str, pair: _Pair, ours: int | None, theirs: int | None, bar: Bar | None = None
) -> Row:
    if ours is None or theirs is None:
        return Row(section, pair.what, unit="MB", bar=bar)
    return Row(
        section, pair.what, ours=ours / _MB, reference=theirs / _MB, unit="MB", ratio=ours / theirs, bar=bar
    )


# --- speed ---------------------------------------------------------------------------------------


def _measure_speed(dataset: Dataset, n_rounds: int) -> list[Row]:
    times = Times()
    for pair in _PAIRS:
        _tell(f"timing {pair.what}")
        if _compared(pair.ours, pair.theirs, dataset, pair.inputs(dataset), times):
            names = pair.ours, pair.theirs
            contenders = [Contender(name, _variant(name, dataset, pair.inputs(dataset))) for name in names]
            contenders.append(Contender(f"decompress, {pair.what}", _decompress(dataset)))
            take_turns(contenders, max(1, round(pair.rounds * n_rounds)), times, warm_up=False)
    return [_speed_row(pair, times) for pair in _PAIRS] + [_floor_row(pair, times) for pair in _PAIRS]


def _decompress(dataset: Dataset) -> Callable[[], None]:
    from benchmarks import variants

    return partial(variants.decompress, dataset.run)


def _floor_row(pair: _Pair, times: Times) -> Row:
    """Nobody is faster than decompressing the file."""
    what, floor = f"  ({pair.what}: ours / decompression)", f"decompress, {pair.what}"
    if not times.knows(pair.ours, floor):
        return Row(_SPEED, what)
    return Row(
        _SPEED,
        what,
        ours=times.median(pair.ours),
        reference=times.median(floor),
        ratio=times.ratio(pair.ours, floor),
    )


def _speed_row(pair: _Pair, times: Times) -> Row:
    what = f"{pair.what}: nilearn / ours"
    if pair.ours in times.wrong:
        return Row(_SPEED, what, bar=pair.speed, wrong=True)
    return Row(
        _SPEED,
        what,
        ours=times.median(pair.ours),
        reference=times.median(pair.theirs),
        ratio=times.ratio(pair.theirs, pair.ours),
        bar=pair.speed,
        note=f"{len(times.seconds[pair.ours])} rounds",
    )


def _variant(name: str, dataset: Dataset, inputs: list[Path]) -> Callable[[], Any]:
    from benchmarks import variants

    return partial(variants.VARIANTS[name], dataset.run, inputs, 1)


def _compared(ours: str, theirs: str, dataset: Dataset, inputs: list[Path], times: Times) -> bool:
    """Whether both give the same; which is the warm-up, too."""
    expected = _variant(theirs, dataset, inputs)()
    if _equal(_variant(ours, dataset, inputs)(), expected):
        return True
    times.wrong.add(ours)
    return False


def _equal(found: list[Any], expected: list[Any]) -> bool:
    """Same shapes and dtypes, and values within a millionth of each column's largest."""
    import numpy as np

    def equal(one: Any, other: Any) -> bool:
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return False
        return bool(np.all(abs(one - other) <= _TOLERANCE * abs(other).max(axis=0)))

    return len(found) == len(expected) and all(map(equal, found, expected))


# --- work ----------------------------------------------------------------------------------------


def _count_work(dataset: Dataset, n_masks: int | None) -> list[Row]:
    """Columns that nilearn's cleaning is given, by one masker for all masks and by a loop."""
    inputs = [*dataset.masks[:n_masks], dataset.confounds]
    found: dict[str, list[Any]] = {}
    cleaned: dict[str, int] = {}
    for name in ("shared_multi_masker", "cleaning_loop"):
        _tell(f"counting what {name} cleans")
        with _columns() as counted:
            found[name] = _variant(name, dataset, inputs)()
        cleaned[name] = sum(counted)
    wrong = not _equal(found["shared_multi_masker"], found["cleaning_loop"])
    union, ours, loop = _union(dataset, n_masks), cleaned["shared_multi_masker"], cleaned["cleaning_loop"]
    at_most_once = Bar(1, at_most=True)
    return [
        Row(_WORK, "ours / voxels of the union", ours, union, "columns", ours / union, at_most_once, wrong),
        Row(_WORK, "ours / loop", ours, loop, "columns", ours / loop, note=f"{len(inputs) - 1} masks"),
    ]


def _union(dataset: Dataset, n_masks: int | None) -> int:
    import numpy as np

    from benchmarks.variants import load_masks

    return int(np.logical_or.reduce(load_masks(dataset.masks[:n_masks])).sum())


@contextmanager
def _columns() -> Iterator[list[int]]:
    """The widths of all arrays given to ``nilearn.signal.clean``, by whatever name it is called."""
    import inspect
    import threading

    from nilearn.signal import clean

    code = inspect.unwrap(clean).__code__
    widths: list[int] = []

    def watch(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is code:
            widths.append(frame.f_locals["signals"].shape[1])

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        yield widths
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
