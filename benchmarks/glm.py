"""``python -m benchmarks glm``: a linear model of every voxel of the brain, beside nilearn.

Covers: least squares and AR(1), from the file to the map of a contrast and of an image that is held; what
fitting takes beside the image. Does not cover: how something is timed (``timing``).
"""

import argparse
import ctypes
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data, machine, report
from benchmarks.data import Dataset
from benchmarks.report import Bar, Row
from benchmarks.timing import Contender, Times, take_turns

_T_R = 2.0
_MIB = 2**20
_TIME = "TIME: from the file to the map of a contrast; nilearn takes so many times as long"
_MEMORY = "MEMORY: a fit beside the image, and its outputs (reference)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="rounds (default: 1)")
    parser.add_argument("--data", type=Path, default=data.default_folder(), metavar="FOLDER",
                        help="where the generated run is kept (default: %(default)s)")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    dataset = data.prepare(arguments.data)
    print(f"{machine.described(machine.facts())}\n{dataset}", flush=True)
    design = _design(dataset.shape[3])
    rows = [row for noise in ("ols", "ar1") for row in _rows(dataset, design, noise, arguments.repeats)]
    print(report.table(rows))
    return 1 if any(row.failed for row in rows) else 0


def _design(n_timepoints: int) -> Any:
    import pandas
    from nilearn.glm.first_level import make_first_level_design_matrix

    times = np.arange(n_timepoints) * _T_R
    onsets = np.arange(10, times[-1] - 30, 30.0)
    kinds = ["face", "house"] * len(onsets)
    events = pandas.DataFrame({"onset": onsets, "duration": 10.0, "trial_type": kinds[: len(onsets)]})
    return make_first_level_design_matrix(times, events)


def _rows(dataset: Dataset, design: Any, noise: str, n_rounds: int) -> list[Row]:
    from sharedmask import SharedImage

    contrast = np.where(design.columns == "face", 1.0, np.where(design.columns == "house", -1.0, 0.0))

    def ours(image: Any) -> Any:
        return image.fit_glm(design, dataset.brain, contrasts={"it": contrast}, noise_model=noise)

    def whole() -> Any:
        with SharedImage(dataset.run) as image:
            return ours(image).contrasts["it"].effect

    with SharedImage(dataset.run) as image:
        image.load()
        fitted, peak = _watched(partial(ours, image))
    expected = fitted.contrasts["it"].effect
    nilearn = partial(_nilearn, dataset, design, noise, contrast)

    def right(found: Any) -> bool:
        return np.allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())

    times = Times()
    contenders = [Contender("ours", whole, right), Contender("nilearn", nilearn, right)]
    take_turns(contenders, n_rounds, times, warm_up=False)
    outputs = fitted.estimates.nbytes + sum(
        one.effect.nbytes + one.variance.nbytes for one in fitted.contrasts.values()
    )
    wrong = bool(times.wrong)
    ours_s, theirs_s = (None, None) if wrong else map(times.median, ("ours", "nilearn"))
    return [
        Row(_TIME, noise, ours_s, theirs_s, ratio=None if wrong else times.ratio("nilearn", "ours"),
            bar=Bar(3, at_most=False), wrong=wrong),
        Row(_MEMORY, noise, peak / _MIB, outputs / _MIB, unit="MB", ratio=(peak - outputs) / _MIB,
            bar=Bar(64, at_most=True), note="ratio: MiB above the outputs"),
    ]  # fmt: skip


def _nilearn(dataset: Dataset, design: Any, noise: str, contrast: Any) -> Any:
    import nibabel as nib
    from nilearn.glm.first_level import FirstLevelModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = FirstLevelModel(_T_R, mask_img=dataset.brain, noise_model=noise, signal_scaling=False)
        model.fit(dataset.run, design_matrices=design)
        effect = model.compute_contrast(contrast, output_type="effect_size")
    inside = np.asanyarray(nib.load(dataset.brain).dataobj) != 0
    return np.asanyarray(effect.dataobj)[inside]


def _watched(work: Callable[[], Any]) -> tuple[Any, int]:
    """What it gives, and how much memory of this process's own it takes on the way."""
    ctypes.CDLL(None).malloc_trim(0)  # what others left free would be taken again, unseen
    held, done = [_anonymous()], threading.Event()

    def look() -> None:
        while not done.wait(0.005):
            held.append(_anonymous())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        found = work()
    finally:
        done.set()
        watcher.join()
    return found, max(held) - held[0]


def _anonymous() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(text.partition("Anonymous:")[2].split()[0]) * 1024
