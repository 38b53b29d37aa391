"""A result found again against the computation that it saves.

Covers: signals, means and cleaned signals of 20 masks, by one pass and by the shared image; that a hit
reads no volume. Does not cover: how something is timed (``timing``).

The masks are regions already: opening their files is part of neither time, but of the last row's.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import data, machine, report
from benchmarks.data import Dataset
from benchmarks.report import Bar, Row
from benchmarks.timing import Contender, Times, take_turns

_BAR = Bar(100, at_most=False)
_SECTION = "CACHE: computing (reference) against finding again (ours)"
_CLEANING = {"detrend": True, "standardize": "zscore_sample"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument("--data", type=Path, default=data.default_folder(), metavar="FOLDER",
                        help="where the generated run is kept (default: %(default)s)")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    dataset = data.prepare(arguments.data)
    print(f"{machine.described(machine.facts())}\n{dataset}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        asks = _asks(dataset).items()
        rows = [_row(dataset, what, ask, place, arguments.repeats) for what, ask in asks]
    print(report.table(rows))
    return 1 if any(row.failed for row in rows) else 0


def _asks(dataset: Dataset) -> dict[str, Callable[..., Any]]:
    from sharedmask import Regions, SharedImage, extract

    files = list(map(str, dataset.masks))
    with SharedImage(dataset.run) as image:
        regions = Regions.from_any(files)
        assert image.shape[:3] == regions.grid.shape

    def resident(**more: Any) -> Any:
        with SharedImage(dataset.run) as image:
            return image.mask_parallel(regions, **more)

    return {
        "extract, signals": partial(extract, dataset.run, regions),
        "extract, means": partial(extract, dataset.run, regions, strategy="mean"),
        "extract, cleaned": partial(extract, dataset.run, regions, **_CLEANING),
        "SharedImage, signals": resident,
        "SharedImage, cleaned": partial(resident, **_CLEANING),
        "(extract, masks' files opened)": partial(extract, dataset.run, files),
    }


def _row(dataset: Dataset, what: str, ask: Callable[..., Any], place: str, n_rounds: int) -> Row:
    expected = ask(memory=False)

    def right(signals: Any) -> bool:
        return all(map(np.array_equal, signals, expected))

    def found() -> Any:
        with _unread(dataset.run):
            return ask(memory=place)

    ask(memory=place)
    times = Times()
    compute = Contender("computed", partial(ask, memory=False), right)
    take_turns([compute, Contender("found", found, right)], n_rounds, times)
    wrong = bool(times.wrong)
    return Row(
        _SECTION,
        what,
        ours=None if wrong else times.median("found"),
        reference=None if wrong else times.median("computed"),
        ratio=None if wrong else times.ratio("computed", "found"),
        bar=None if what.startswith("(") else _BAR,
        wrong=wrong,
    )


@contextlib.contextmanager
def _unread(run: Path) -> Iterator[None]:
    """Reading a volume of the run is an error meanwhile."""
    from sharedmask.sources.source import FileSource

    volumes = FileSource.volumes

    def refusing(source: FileSource) -> Any:
        assert source.file != str(run), "the image was read"
        return volumes(source)

    with mock.patch.object(FileSource, "volumes", refusing):
        yield
