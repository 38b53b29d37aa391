"""What is asked of a held image with one job and with several, and in halves by two processes.

Covers: the operations; two processes that have the image in common and nothing else, neither an interpreter
nor memory that is handed out: what two cores give at most. Does not cover: timing (``scaling``).
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import variants
from benchmarks.data import Dataset
from sharedmask import Grid, Regions, SharedImage
from sharedmask.compute.strategies import STRATEGIES

Operations = dict[str, Callable[[int], Any]]

CLEANING = {"detrend": True, "standardize": "zscore_sample"}
_HALVES = (slice(0, None, 2), slice(1, None, 2))


def operations(image: SharedImage, dataset: Dataset, part: slice = slice(None)) -> Operations:
    """What is done with so many jobs, to all masks and regions or some, by name."""
    masks = variants.load_masks(dataset.masks)[part]
    grid = Grid(image.shape[:3], image.affine)
    atlas = Regions.from_labels(dataset.atlas, grid)
    n_regions = len(atlas)
    atlas = Regions.from_labels(dataset.atlas, grid, labels=list(atlas.labels[part]))
    cleaned = partial(image.mask_parallel, masks, **CLEANING)
    asked: dict[str, Callable[..., Any]] = {
        "20 masks": partial(image.mask_parallel, masks),
        "cleaned": partial(cleaned, prefer="threads"),
        "cleaned, processes": partial(cleaned, prefer="processes"),
    }
    for strategy in sorted(set(STRATEGIES) - {"weighted_mean"}):  # which is of maps
        asked[f"{strategy} of {n_regions} regions"] = partial(image.reduce, atlas, strategy)
    asked[f"map over {n_regions} regions"] = partial(image.map, _deviation, atlas)
    return {name: partial(_with_jobs, call) for name, call in asked.items()}


def _with_jobs(call: Callable[..., Any], n_jobs: int) -> Any:
    return call(n_jobs=n_jobs)


def _deviation(signals: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(signals.std(axis=0))


@contextlib.contextmanager
def apart(image: SharedImage, dataset: Dataset) -> Iterator[Callable[[str], None]]:
    """Does an operation in two processes, each half of it with one job."""
    context, pipes = multiprocessing.get_context("spawn"), list[Connection]()
    with contextlib.ExitStack() as stack:
        for part in _HALVES:
            here, there = context.Pipe()
            stack.callback(here.close)
            process = context.Process(target=_do_half, args=(there, image.handle, dataset, part), daemon=True)
            process.start()
            there.close()
            pipes.append(here)

        def do(name: str) -> None:
            for pipe in pipes:
                pipe.send(name)
            for pipe in pipes:
                pipe.recv()

        yield do


def _do_half(pipe: Connection, handle: Any, dataset: Dataset, part: slice) -> None:
    with SharedImage.attach(handle) as image, contextlib.suppress(EOFError):
        asked = operations(image, dataset, part)
        while True:
            result = asked[pipe.recv()](1)
            pipe.send(None)
            del result
