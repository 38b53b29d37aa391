"""Folders of results: many images in, one file per image out.

Covers: names of outputs, resuming, a summary of failures. Does not cover: BIDS (``study``), what
runs at the same time (``cohort``), how files are written (``writing``).
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sharedmask.cohort import Study, extract_many
from sharedmask.errors import ParameterError
from sharedmask.extraction import regions_of
from sharedmask.journal import Failures
from sharedmask.regions import Grid, Regions
from sharedmask.sources import open_source
from sharedmask.writing import series_writer, write_series, write_table

_PRIVATE = ".sharedmask"
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
    overwrite: bool = False,
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
    overwrite : bool
        Do images again that are complete with the same inputs and parameters.
    **options
        Those of :func:`sharedmask.extract_many`.

    Returns
    -------
    Study
        Each failure also has a file in the folder's ``.sharedmask/failed``.
    """
    if form != ".tsv":
        series_writer(f"x{form}")
        strategy = None
    paths = outputs(images, folder, form)
    private = Path(folder) / _PRIVATE
    private.mkdir(parents=True, exist_ok=True)
    journal = private / "complete.jsonl"
    if overwrite:
        journal.unlink(missing_ok=True)
    work = _Work(paths, masks, strategy, Failures(private / "failed"))
    return extract_many(
        dict(zip(images, images, strict=True)),
        work.regions,
        strategy=strategy,
        on_result=work.keep,
        on_error=work.failures.add,
        resume=journal,
        variant=f"{form} {Path(folder).resolve()}",
        **options,
    )


@dataclass
class _Work:
    """What happens to each image's result."""

    paths: Mapping[str, Path]
    masks: Any
    strategy: str | None
    failures: Failures
    _names: dict[str, Sequence[str]] = field(default_factory=dict)

    def regions(self, key: str) -> Regions:
        source = open_source(key)
        grid = Grid(source.shape[:3], source.affine)
        regions: Regions = (
            self.masks(grid) if callable(self.masks) else regions_of(self.masks, grid, self.strategy, None)
        )
        self._names[key] = regions.names
        return regions

    def keep(self, key: str, signals: Any) -> Path:
        names = self._names.pop(key)
        if self.strategy is not None:
            write_table(self.paths[key], signals, names)
        else:
            write_series(self.paths[key], dict(zip(names, _each(signals), strict=True)))
        self.failures.remove(key)
        return self.paths[key]


def _each(signals: Any) -> Sequence[Any]:
    """The arrays of a list, of a dict, or one alone."""
    if isinstance(signals, dict):
        return list(signals.values())
    return signals if isinstance(signals, list) else [signals]
