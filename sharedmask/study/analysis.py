"""Analyses: what is asked of every run of a study.

Covers: atlases, outputs, denoising and cleaning together, and what outputs are called for it. Does not
cover: what a run has for it (``manifest``), where outputs go (``derivatives``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sharedmask.compute.connectivity import check_matrices, checked_kinds, connectivity
from sharedmask.compute.request import Probed, check_for_all, checked_strategy, is_weighted
from sharedmask.errors import ParameterError
from sharedmask.records import dataclass
from sharedmask.regions.coverage import check_share
from sharedmask.regions.naming import columns, members
from sharedmask.regions.regions import Regions
from sharedmask.reports.quality import Quality, kept_of
from sharedmask.sources.names import camel, label
from sharedmask.spaces.space import Space, per_space
from sharedmask.study.atlases import Atlas, distinct
from sharedmask.study.bids import Run
from sharedmask.study.denoising import Denoise
from sharedmask.surfaces.gifti import Mesh, read_mesh
from sharedmask.system.process import cached_property
from sharedmask.typing import Array

Matrices = Mapping[tuple[str, str], Sequence[Array]]

FORMATS = ("tsv", "parquet")
# Parameters that change no signal, or only where it is said in the sidecar.
_UNSAID = {"detrend", "high_pass", "low_pass", "standardize", "t_r", "dtype", "prefer", "memory"}


@dataclass(frozen=True)
class Outputs:
    """What is written for each run.

    ``statistic``: as for :func:`sharedmask.extract`; several give a table each.
    ``min_coverage``: regions with a smaller share of their voxels inside the brain mask get ``n/a``.
    ``form``, {"tsv", "parquet"}: of the regions' signals.
    ``voxels``: write the series of all voxels of each region, as HDF5, instead of one value per region.
    ``drop_empty``: leave out the columns of regions that are not covered enough; the table of coverage has
    them.
    ``reports``: write a page per run.
    ``connectivity``: matrices of regions' signals; see ``SharedImage.connectivity``.
    ``fisher_z``: of correlations the inverse hyperbolic tangent.
    ``meshes``: GIFTI meshes on which pages of dense series show the regions, one for each hemisphere.
    """

    statistic: str | Sequence[str] = "mean"
    min_coverage: float = 0.5
    form: str = "tsv"
    voxels: bool = False
    drop_empty: bool = False
    reports: bool = True
    connectivity: Sequence[str] = ()
    fisher_z: bool = False
    meshes: Sequence[str] = ()

    @property
    def statistics(self) -> tuple[str, ...]:
        """A table is written of each; none if the series of voxels are."""
        several = (self.statistic,) if isinstance(self.statistic, str) else tuple(self.statistic)
        return () if self.voxels else several

    @property
    def kinds(self) -> tuple[str, ...]:
        """Measures of connectivity by nilearn's names."""
        return checked_kinds(self.connectivity)

    def check(self) -> None:
        """That they can be written.

        Raises ParameterError: naming what is wrong, or the package that is not installed.
        """
        if self.statistics:
            checked_strategy(self.statistics)
        check_share(self.min_coverage)
        check_matrices(self.connectivity, self.fisher_z, not self.voxels)
        if self.form not in FORMATS:
            raise ParameterError(f"{self.form!r} is none of {', '.join(FORMATS)}")
        package, ending = ("h5py", ".h5") if self.voxels else ("pyarrow", ".parquet")
        if (self.voxels or self.form == "parquet") and find_spec(package) is None:
            raise ParameterError(f"writing {ending} needs {package}: install it, or write .tsv")


@dataclass(frozen=True)
class Analysis:
    """What is asked of every run.

    ``denoise``: what is taken for noise.
    ``cleaning``: parameters of :func:`sharedmask.extract`.

    Examples
    --------
    >>> Analysis((), denoise=Denoise("simple"), cleaning={"high_pass": 0.008, "standardize": "psc"}).steps
    'denoiseSimpleHighpass8mHzPsc'
    """

    atlases: tuple[Atlas, ...]
    outputs: Outputs = field(default_factory=Outputs)
    denoise: Denoise | None = None
    cleaning: Mapping[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> dict[str, Any]:
        """The parameters of cleaning that are not left out."""
        return {name: value for name, value in self.cleaning.items() if value not in (None, False)}

    @property
    def filters(self) -> bool:
        """Whether it needs a repetition time."""
        return bool({"low_pass", "high_pass"} & set(self.asked))

    @cached_property
    def steps(self) -> str:
        """What is done to signals, as the value of ``desc-``; empty if nothing is."""
        asked = self.asked
        words = self.denoise.words if self.denoise else []
        words += ["detrend"] if "detrend" in asked else []
        words += [
            f"{name.replace('_', '')}{_hertz(asked[name])}"
            for name in ("high_pass", "low_pass")
            if name in asked
        ]
        words += [f"{label(name)}{_text(asked[name])}" for name in sorted(set(asked) - _UNSAID)]
        if standardize := asked.get("standardize"):
            words.append(label(str(standardize).removesuffix("_sample")))
        return camel("_".join(words))

    def desc(self, run: Run) -> str | None:
        """What outputs of ``run`` are called: which of its images they are of, and what was done."""
        own = run.name.entities.get("desc")
        return _joined(None if own == "preproc" else own, self.steps)

    def key(self, run: Run) -> str:
        """The name of ``run`` among all that is done to the data set."""
        return str(run.name.replace(desc=_joined(run.name.entities.get("desc"), self.steps), extension=""))

    @property
    def notes(self) -> list[str]:
        """What was found missing of the atlases."""
        said = []
        for atlas in self.atlases:
            if atlas.lut is None and not atlas.image.name.lower().endswith(".dlabel.nii"):
                said.append(f"atlas {atlas.image} has no table of names beside it: its labels are the names")
            if atlas.space is None:
                where = "no tpl- or space- in its name or its folder, no SpatialReference in a sidecar"
                said.append(
                    f"atlas {atlas.image}: its space is not known ({where}); no run's is compared with it"
                )
        return said

    @cached_property
    def near(self) -> "Callable[[Space], Analysis]":
        """The same with atlases in the resolutions nearest to an image's."""
        if not any(len(atlas.resolutions) > 1 for atlas in self.atlases):
            return lambda space: self
        return per_space(
            lambda space: replace(self, atlases=tuple(atlas.nearest(space) for atlas in self.atlases))
        )

    @cached_property
    def regions_on(self) -> Callable[[Space], list[Regions]]:
        """The regions of each atlas on a grid, resampled to it, nearest neighbour, if need be."""
        return per_space(lambda grid: [self._regions_of(atlas, grid) for atlas in self.atlases])

    def _regions_of(self, atlas: Atlas, grid: Space) -> Regions:
        make = Regions.from_maps if is_weighted(self.outputs.statistics) else Regions.from_labels
        regions = make(atlas.image, grid, lut=atlas.lut, resampling_target="data")
        every = [row.name for row in regions.table()]
        (members if self.outputs.voxels else columns)(every)  # refused before the pass
        return regions

    def check(self) -> None:
        """That it can be asked of any run.

        Raises ParameterError: there is no atlas, outputs of two would go by one name, outputs cannot be
        written, or parameters make no sense.
        Raises ImageError: a mesh cannot be read.
        """
        if not self.atlases:
            raise ParameterError("no atlas is given")
        self.outputs.check()
        check_for_all(self.cleaning)
        distinct(self.atlases)
        _ = self.meshes

    @cached_property
    def meshes(self) -> tuple[Mesh, ...]:
        """Those that pages show regions on, read."""
        return tuple(map(read_mesh, self.outputs.meshes))


class Findings(NamedTuple):
    """What work on a run gives."""

    signals: Mapping[str, Array]
    """By statistic, (n_timepoints, n_regions)."""
    related: Matrices
    """By statistic and measure a matrix of each atlas."""
    measures: Mapping[str, float]
    """Of the run's quality."""
    quality: Quality | None
    """That is shown on a page, if there will be one."""


@dataclass(frozen=True)
class Findable:
    """What is made of a run's signals where they are.

    ``kinds``: measures of connectivity.
    ``spans``: columns of each atlas.
    ``kept``: numbers of the volumes that signals have, if not all.
    ``confounds``: the run's table.
    ``shown``: whether its quality is shown on a page.
    """

    kinds: tuple[str, ...]
    fisher_z: bool
    spans: Sequence[tuple[int, int]]
    kept: Array | None
    confounds: Path | None
    shown: bool

    def __call__(self, probed: Probed) -> Findings:
        quality = Quality.of(probed.values, kept_of(len(probed.values), self.kept), self.confounds)
        related = {
            (statistic, kind): [
                connectivity(np.atleast_2d(values)[:, start:stop], kind, fisher_z=self.fisher_z)
                for start, stop in self.spans
            ]
            for statistic, values in probed.signals.items()
            for kind in self.kinds
        }
        return Findings(probed.signals, related, quality.measures(), quality if self.shown else None)


def _hertz(frequency: float) -> str:
    """Without a point, which names of files cannot have: ``8mHz``, ``12500uHz``."""
    for unit, size in (("Hz", 1.0), ("mHz", 1e-3), ("uHz", 1e-6)):
        if abs(round(frequency / size) * size - frequency) < 1e-9:
            return f"{round(frequency / size)}{unit}"
    return f"{round(frequency / 1e-9)}nHz"


def _text(value: Any) -> str:
    return label((f"{value:g}" if isinstance(value, float) else str(value)).replace(".", "p"))


def _joined(own: str | None, steps: str) -> str | None:
    return camel("_".join(filter(None, (own, steps)))) or None
