"""Folders of results: many images in, one file per image out.

Covers: names of outputs, resuming, a summary of failures. Does not cover: BIDS (``dataset``), what
runs at the same time (``cohort``), how files are written (``tables``).
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sharedmask.compute.journal import PRIVATE, Failures
from sharedmask.errors import ParameterError
from sharedmask.image.extraction import Extraction, regions_of
from sharedmask.records import dataclass
from sharedmask.regions.naming import columns, members
from sharedmask.regions.regions import Regions
from sharedmask.sources.grid import Grid, per_grid
from sharedmask.sources.source import open_source
from sharedmask.study.cohort import Study, extract_many
from sharedmask.study.tables import series_writer, write_series, write_table
from sharedmask.system.budget import MemoryBudget
from sharedmask.system.process import cached_property

_EXTENSIONS = (".nii.gz", ".nii", ".nii.bz2", ".img", ".hdr", ".img.gz")


def outputs(images: Sequence[str], folder: str | Path, form: str) -> dict[str, Path]:
    """Where each image's result goes: its name with another ending.

    Raises
    ------
    ParameterError
        Two images would go to one file.

    Examples
    --------
    >>> outputs(["in/sub-01_bold.nii.gz"], "out", ".tsv")
    {'in/sub-01_bold.nii.gz': PosixPath('out/sub-01_bold.tsv')}
    """
    stems = {image: _stem(image) for image in images}
    twice = [stem for stem, count in Counter(stems.values()).items() if count > 1]
    if twice:
        both = [image for image in images if stems[image] == twice[0]]
        raise ParameterError(f"{' and '.join(both[:2])} would both be written to {twice[0]}{form}")
    return {image: Path(folder) / f"{stem}{form}" for image, stem in stems.items()}


def _stem(image: str) -> str:
    name = os.path.basename(image)
    ending = next((end for end in _EXTENSIONS if name.endswith(end)), os.path.splitext(name)[1])
    return name.removesuffix(ending)


def extract_to(
    folder: str | Path,
    images: Sequence[str],
    masks: Any,
    *,
    form: str = ".tsv",
    strategy: str | None = "mean",
    **options: Any,
) -> Study:
    """Extract ``masks`` from many images, one file each.

    Parameters
    ----------
    folder : str or path
        For the results; made if it is missing.
    images : sequence of str
        Paths.
    masks : masks, or a function of a Grid
        As for :func:`sharedmask.extract`; a function makes the regions on an image's grid.
    form : {".tsv", ".npz", ".h5"}
        A table of one value per region and volume, or the series of all voxels.
    strategy : str
        For tables.
    **options
        Those of :func:`sharedmask.extract_many`.

    Returns
    -------
    Study
        Each failure also has a file in the folder's ``.sharedmask/failed``.
    """
    work = OutputFolder.begin(folder, images, masks, form, strategy)
    return extract_many(
        dict(zip(images, images, strict=True)),
        work.regions,
        strategy=work.strategy,
        on_result=work.keep,
        on_error=work.fail,
        resume=work.private / "complete.jsonl",
        variant=form,
        **options,
    )


def largest(
    images: Sequence[str], masks: Any, strategy: str | None, smoothing_fwhm: float | None, **options: Any
) -> int:
    """Bytes that :func:`extract_to` needs for the image that needs most; their headers are read."""
    # What another machine has is its own business: here nothing is refused.
    unlimited = MemoryBudget(sys.maxsize, "the job's own")

    def regions_on(grid: Grid) -> Regions:
        return _regions_on(masks, grid, strategy)

    def needed(path: str) -> int:
        asked = Extraction.prepared(path, regions_on, smoothing_fwhm, strategy=strategy, **options)
        return asked.needed(unlimited)

    return max(map(needed, images))


def _regions_on(masks: Any, grid: Grid, strategy: str | None) -> Regions:
    if callable(masks):
        made: Regions = masks(grid)
        return made
    return regions_of(masks, grid, strategy, None)


@dataclass
class OutputFolder:
    """A folder for one file per image: where each result goes, and what failed."""

    paths: Mapping[str, Path]
    masks: Any
    strategy: str | None
    private: Path

    @classmethod
    def begin(
        cls, folder: str | Path, images: Sequence[str], masks: Any, form: str, strategy: str | None
    ) -> "OutputFolder":
        """Check what can be checked, and make the folder."""
        if form != ".tsv":
            series_writer(f"x{form}")
            strategy = None
        private = Path(folder) / PRIVATE
        work = cls(outputs(images, folder, form), masks, strategy, private)
        private.mkdir(parents=True, exist_ok=True)
        return work

    @property
    def failures(self) -> Failures:
        return Failures(self.private / "failed")

    def regions(self, key: str) -> Regions:
        source = open_source(key)
        return self._on(source.grid)

    @cached_property
    def _on(self) -> Callable[[Grid], Regions]:
        return per_grid(self._regions_on)

    def _regions_on(self, grid: Grid) -> Regions:
        regions = _regions_on(self.masks, grid, self.strategy)
        (members if self.strategy is None else columns)(regions.names)  # refused before the pass
        return regions

    def keep(self, key: str, signals: Any) -> Path:
        names = self.regions(key).names
        if self.strategy is not None:
            write_table(self.paths[key], signals, names)
        else:
            write_series(self.paths[key], dict(zip(names, _each(signals), strict=True)))
        self.failures.remove(os.path.abspath(key))
        return self.paths[key]

    def fail(self, key: str, error: Exception) -> None:
        self.failures.add(os.path.abspath(key), error)


def _each(signals: Any) -> Sequence[Any]:
    """The arrays of a list, of a dict, or one alone."""
    if isinstance(signals, dict):
        return list(signals.values())
    return signals if isinstance(signals, list) else [signals]
