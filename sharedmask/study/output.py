"""Folders of results: many images in, one file per image out.

Covers: names of outputs, resuming, a summary of failures. Does not cover: BIDS (``dataset``), what
runs at the same time (``cohort``), how files are written (``tables``).
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import field, replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sharedmask.compute.connectivity import connectivity, measure
from sharedmask.compute.journal import JOURNAL, PRIVATE, Failures, Inputs
from sharedmask.compute.request import Strategy
from sharedmask.errors import ParameterError, SharedMaskError
from sharedmask.image.extraction import Extraction, regions_of
from sharedmask.records import dataclass
from sharedmask.regions.naming import columns, members
from sharedmask.regions.regions import Regions
from sharedmask.remote.addresses import absolute, named
from sharedmask.sources.names import camel
from sharedmask.sources.opening import open_source
from sharedmask.sources.sidecar import sidecars_and_folders
from sharedmask.sources.source import Facts, Source
from sharedmask.spaces.space import Space, per_space
from sharedmask.study.cohort import extract_many
from sharedmask.study.completion import Resumption, stamp_of
from sharedmask.study.denoising import Denoise, Denoising, Denoisings
from sharedmask.study.tables import (
    PARCELLATED,
    Style,
    holds_regions,
    series_writer,
    split,
    write_matrix,
    write_parcels,
    write_series,
    write_table,
)
from sharedmask.study.tasks import Apart, Study, may_be_small
from sharedmask.system.budget import MemoryBudget
from sharedmask.system.files import write_json
from sharedmask.system.process import cached_property
from sharedmask.system.together import Together
from sharedmask.typing import Array

_EXTENSIONS = (".nii.gz", ".nii", ".nii.bz2", ".img", ".hdr", ".img.gz")


def outputs(images: Sequence[str], folder: str | Path, form: str) -> dict[str, Path]:
    """Where each image's result goes: its name with another ending.

    Raises ParameterError: two images would go to one file.

    Examples
    --------
    >>> outputs(["in/sub-01_bold.nii.gz"], "out", ".tsv")
    {'in/sub-01_bold.nii.gz': PosixPath('out/sub-01_bold.tsv')}
    """
    stems = {image: _stem(image) for image in images}
    if form in PARCELLATED:
        stems = {
            image: stem.removesuffix(".dtseries").removesuffix(".ptseries") for image, stem in stems.items()
        }
    twice = [stem for stem, count in Counter(stems.values()).items() if count > 1]
    if twice:
        both = [image for image in images if stems[image] == twice[0]]
        raise ParameterError(f"{' and '.join(both[:2])} would both be written to {twice[0]}{form}")
    root = Path(folder).expanduser()
    return {image: root / f"{stem}{form}" for image, stem in stems.items()}


def check_places(written: Mapping[str, Sequence[Path]], read: Iterable[str | Path]) -> None:
    """That no file of an image goes where another's goes, or where an input lies.

    Raises ParameterError: naming the file, and what it would be written over.
    """
    taken = {os.path.realpath(path): "which is read" for path in read}
    for image, paths in written.items():
        for path in paths:
            if found := taken.get(os.path.realpath(path)):
                raise ParameterError(f"signals of {image} would be written over {path}, {found}")
            taken[os.path.realpath(path)] = f"as those of {image}"


def _stem(image: str) -> str:
    name = os.path.basename(named(image))
    ending = next((end for end in _EXTENSIONS if name.endswith(end)), os.path.splitext(name)[1])
    return name.removesuffix(ending)


def extract_to(
    folder: str | Path,
    images: Sequence[str],
    masks: Any,
    *,
    form: str = ".tsv",
    strategy: Strategy = "mean",
    denoise: Denoise | None = None,
    **options: Any,
) -> Study:
    """Extract ``masks`` from many images, one file each.

    ``folder``: for the results; made if it is missing.
    ``images``: paths.
    ``masks``: as for :func:`sharedmask.extract`; a function makes the regions on an image's grid.
    ``form``, {".tsv", ".ptseries.nii", ".pconn.nii", ".npz", ".h5"}: one value per region and volume, the
    regions' matrix, or the series of all voxels.
    ``strategy``: for tables.
    **options: those of :func:`sharedmask.extract_many`.

    Each failure also has a file in the folder's ``.sharedmask/failed``.
    """
    work = OutputFolder.begin(folder, images, masks, form, strategy, denoise, options.get("t_r"))
    variant = "".join([form, *work.parts.names, *work.parts.measures, *work.parts.style.words])
    asked = _told({"variant": variant, "strategy": work.strategy, "denoise": repr(denoise), **options})
    bare = replace(work, paths={}, parts=replace(work.parts), denoisings=None)
    said = {name: value for name, value in options.items() if name not in _HERE}
    some = partial(_extract_some, bare, denoise, asked, variant, said)
    apart = Apart.of(may_be_small, work.paths, some) if work.stamped(asked) else None
    return work.extract(asked, variant, apart=apart, **options)


# What is said to the caller alone.
_HERE = {"executor", "n_jobs", "progress", "overwrite", "shard"}
# What is said once for all images, and changes no number.
_HOW = {"executor", "n_jobs", "progress", "memory", "memory_limit", "overwrite", "shard", "store", "prefer"}


def _told(options: Mapping[str, Any]) -> str:
    """What is asked of all images as a text; empty if it has none."""
    said = {name: value for name, value in sorted(options.items()) if name not in _HOW}
    plain = (str, int, float, tuple, type(None))
    return repr(said) if all(isinstance(value, plain) for value in said.values()) else ""


def largest(
    images: Sequence[str], masks: Any, strategy: Strategy, smoothing_fwhm: float | None, **options: Any
) -> int:
    """Bytes that :func:`extract_to` needs for the image that needs most; their headers are read."""
    # What another machine has is its own business: here nothing is refused.
    unlimited = MemoryBudget(sys.maxsize, "the job's own")

    parts = Parts.of(masks, strategy)

    def needed(path: str) -> int:
        asked = Extraction.prepared(path, parts.regions_on, smoothing_fwhm, strategy=strategy, **options)
        return asked.needed(unlimited)

    return max(map(needed, images))


@dataclass(frozen=True)
class Parts:
    """What of an image is written: one file, or one for each of several atlases and statistics.

    ``atlases``: what tells an atlas's files from those of others, as ``atlas-A`` -> a function that makes its
    regions on a Grid. The name of a single one, which may be masks too, is not written.
    ``strategy``: None: the series of all voxels.
    ``connectivity``, ``fisher_z``: a matrix by each measure beside each table.
    """

    atlases: Mapping[str, Callable[[Space], Regions]]
    strategy: str | tuple[str, ...] | None
    connectivity: tuple[str, ...] = ()
    fisher_z: bool = False
    style: Style = field(default_factory=Style)
    stamp: str = ""
    """Of the files that the regions are made of, and how; empty if that is not known."""

    @classmethod
    def of(cls, masks: Any, strategy: Strategy) -> "Parts":
        """Of masks as for :func:`sharedmask.extract`, or a function of a Grid that gives them."""
        if isinstance(masks, cls):
            return masks
        strategy = strategy if strategy is None or isinstance(strategy, str) else tuple(strategy)
        made = masks if callable(masks) else partial(regions_of, masks, strategy=strategy, target=None)
        return cls({"": made}, strategy, stamp=stamp_of("", [masks]) if isinstance(masks, str) else "")

    @property
    def count(self) -> int:
        return len(self.names)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What each file has in its name besides the image's, atlas by atlas."""
        several = self.strategy if isinstance(self.strategy, tuple) else ()
        stats = [f"_stat-{camel(one)}" for one in several] or [""]
        atlases = [f"_{name}" for name in self.atlases] if len(self.atlases) > 1 else [""]
        return tuple(atlas + stat for atlas in atlases for stat in stats)

    @property
    def measures(self) -> list[str]:
        return [measure(kind, self.fisher_z) for kind in self.connectivity]

    def paths(self, path: str | Path) -> list[Path]:
        """The files, where a single one would go to ``path``."""
        stem, ending = split(path)
        return [Path(path).with_name(f"{stem}{name}{ending}") for name in self.names]

    def planned(self, path: str | Path, denoised: bool) -> list[Path]:
        """All that :meth:`write` writes for ``path``."""
        tables = self.paths(path)
        matrices = [self._matrix(table, name) for table in tables for name in self.measures]
        return [*dict.fromkeys([*tables, *matrices]), *(_of_denoising(path) if denoised else ())]

    def regions_on(self, grid: Space) -> Regions:
        """The regions of all atlases, one atlas after the other."""
        parts = self._on(grid)
        if len(parts) == 1:
            return parts[0]
        return replace(Regions.joined([part.on(parts[0].grid) for part in parts]), container="list")

    @cached_property
    def _on(self) -> Callable[[Space], list[Regions]]:
        return per_space(self._each_on)

    def _each_on(self, grid: Space) -> list[Regions]:
        parts = [regions_on(grid) for regions_on in self.atlases.values()]
        for part in parts:
            (members if self.strategy is None else columns)(part.names)  # refused before the pass
        return parts

    def write(
        self,
        path: str | Path,
        signals: Any,
        image: Facts,
        denoising: Denoising | None = None,
        t_r: float | None = None,
    ) -> list[Path]:
        """Write what :meth:`regions_on` of an image's grid gave, a file each; and what was taken out before.

        A repetition time that is given is that of what is written, whatever the image says.
        """
        if denoising is not None:
            write_denoising(path, denoising)
        parts, paths = self._on(image.grid), self.paths(path)
        ends = [0, *accumulate(map(len, parts))]
        tables = list(signals.values()) if isinstance(self.strategy, tuple) else [signals]
        targets = iter(tuple(paths))
        for part, (start, stop) in zip(parts, pairwise(ends), strict=True):
            for table in tables:
                if self.strategy is None:
                    series = _each(table)[start:stop]
                    write_series(next(targets), dict(zip(part.names, series, strict=True)))
                else:
                    target = next(targets)
                    paths += self._write_matrices(target, table[..., start:stop], part)
                    self._write_signals(target, table[..., start:stop], part, t_r or image.t_r)
        return list(dict.fromkeys(paths))

    def _write_signals(self, path: Path, signals: Array, regions: Regions, t_r: float | None) -> None:
        kind = PARCELLATED.get(split(path)[1].lower())
        if kind is None:
            write_table(path, signals, regions.names, self.style)
        elif kind != "matrix":  # which is written where matrices are
            write_parcels(path, signals, regions, t_r)

    def _write_matrices(self, table: Path, signals: Array, regions: Regions) -> list[Path]:
        written = []
        for kind, name in zip(self.connectivity, self.measures, strict=True):
            path, matrix = self._matrix(table, name), connectivity(signals, kind, fisher_z=self.fisher_z)
            if split(path)[1].lower() in PARCELLATED:
                write_parcels(path, matrix, regions)
            else:
                write_matrix(path, matrix, regions.names)
            written.append(path)
        return written

    def _matrix(self, table: Path, name: str) -> Path:
        """Where a matrix goes: beside its table, or in its place."""
        stem, ending = split(table)
        if PARCELLATED.get(ending.lower()) == "matrix":
            return table
        return table.with_name(
            f"{stem}_meas-{name}_relmat{'.pconn.nii' if ending in PARCELLATED else '.tsv'}"
        )


@dataclass
class OutputFolder:
    """A folder for the files of each image: where each result goes, and what failed."""

    paths: Mapping[str, Path]
    parts: Parts
    private: Path
    denoisings: Denoisings | None = None
    t_r: float | None = None
    """That is given, of all images."""
    _beside: dict[str, list[Path]] = field(default_factory=dict, init=False)
    """The sidecars of an image whose inputs were asked for, until it is opened: they are looked for once."""
    _at_work: dict[str, Source] = field(default_factory=dict, init=False)

    @classmethod
    def begin(
        cls,
        folder: str | Path,
        images: Sequence[str],
        masks: Any,
        form: str,
        strategy: Any,
        denoise: Denoise | None = None,
        t_r: float | None = None,
    ) -> "OutputFolder":
        """Check what can be checked, and make the folder; ``masks`` may be :class:`Parts` too."""
        if not holds_regions(form):
            series_writer(f"x{form}")
            strategy = None
        private = Path(folder).expanduser() / PRIVATE
        denoisings = None if denoise is None else Denoisings(denoise, dict(zip(images, images, strict=True)))
        work = cls(outputs(images, folder, form), Parts.of(masks, strategy), private, denoisings, t_r)
        private.mkdir(parents=True, exist_ok=True)
        return work

    @property
    def strategy(self) -> str | tuple[str, ...] | None:
        return self.parts.strategy

    @property
    def failures(self) -> Failures:
        return Failures(self.private / "failed")

    def source(self, key: str) -> Source:
        """An image, opened once."""
        source = open_source(key, self._beside.pop(key, None))
        self._at_work[key] = source
        return source

    def regions(self, key: str) -> Regions:
        return self.parts.regions_on(self._at_work[key].grid)

    def extract(self, asked: str, variant: str, **options: Any) -> Study:
        """Have all images worked on, and keep what comes of it."""
        return extract_many(
            dict.fromkeys(self.paths, self.source),
            self.regions,
            strategy=self.strategy,
            denoise=self.denoisings,
            on_result=self.keep,
            resume=Resumption(
                self.private / JOURNAL, self.stamped(asked), self.inputs, self.skip, self._outputs
            ),
            variant=variant,
            **{"on_error": self.fail, **options},
        )

    def stamped(self, asked: str) -> str:
        """What is asked of all images, and what regions are made of by names, sizes and times.

        Empty if that cannot be told.
        """
        return f"{asked} {self.parts.stamp}" if asked and self.parts.stamp else ""

    def inputs(self, key: str) -> Inputs:
        """All that an image's outputs depend on."""
        with suppress(SharedMaskError, OSError):  # which preparing it will tell
            beside, folders = sidecars_and_folders(key)
            self._beside[key] = beside
            more = () if self.denoisings is None else self.denoisings.files(key)
            return Inputs((key, *beside, *more), folders)
        return Inputs()

    def _outputs(self, key: str) -> list[Path]:
        return self.parts.paths(self.paths[key])

    def skip(self, key: str) -> None:
        """There is nothing more to do for it."""
        self._at_work.pop(key, None)
        self._beside.pop(key, None)
        if self.denoisings is not None:
            self.denoisings.forget(key)

    def keep(self, key: str, signals: Any) -> Together:
        denoising = None if self.denoisings is None else self.denoisings.pop(key)
        with Together() as written:
            to, source = self.paths[key], self._at_work.pop(key)
            written.paths += self.parts.write(to, signals, source, denoising, self.t_r)
        self.failures.remove(named(absolute(key)))
        return written

    def fail(self, key: str, error: Exception) -> None:
        self.skip(key)
        self.failures.add(named(absolute(key)), error)


def _extract_some(
    bare: OutputFolder,
    denoise: Denoise | None,
    asked: str,
    variant: str,
    options: Mapping[str, Any],
    paths: Mapping[str, Path],
    **how: Any,
) -> Study:
    """In a worker, which has the folder without its images: these of them."""
    denoisings = None if denoise is None else Denoisings(denoise, dict(zip(paths, paths, strict=True)))
    work = replace(bare, paths=paths, denoisings=denoisings)
    return work.extract(asked, variant, **options, **how)


def write_denoising(path: str | Path, denoising: Denoising) -> None:
    """What was taken out of an image beside ``path``: a sidecar, and which volumes went.

    ``OUT.json`` has the confounds and the volumes kept, ``OUT_outliers.tsv`` one row per volume of the run, 1
    for those that the signals lack.
    """
    if str(path) == "-":
        return
    sidecar, outliers = _of_denoising(path)
    write_json(sidecar, denoising.facts())
    dropped = np.isin(np.arange(denoising.n_timepoints), denoising.dropped).astype(int)
    write_table(outliers, dropped[:, None], ["outlier"])


def _of_denoising(path: str | Path) -> tuple[Path, Path]:
    stem = split(path)[0]
    return Path(path).with_name(f"{stem}.json"), Path(path).with_name(f"{stem}_outliers.tsv")


def _each(signals: Any) -> Sequence[Any]:
    """The arrays of a list, of a dict, or one alone."""
    if isinstance(signals, dict):
        return list(signals.values())
    return signals if isinstance(signals, list) else [signals]
