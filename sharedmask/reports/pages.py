"""Reports: one HTML page per run and one per study, each a single file.

Covers: what a page shows, from plain results. Does not cover: the pictures (``figures``), what is measured
(``quality``), where pages are put (``study.dataset``, ``summary``).
"""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np

from sharedmask._version import __version__
from sharedmask.errors import ParameterError
from sharedmask.records import dataclass
from sharedmask.regions.regions import Regions
from sharedmask.regions.sets import RegionRow
from sharedmask.reports import figures, meshes
from sharedmask.reports.quality import FD_THRESHOLD, Quality, as_texts
from sharedmask.sources.source import Facts
from sharedmask.spaces.brain_models import BrainModels
from sharedmask.surfaces.gifti import Mesh
from sharedmask.system.files import legible, write_text
from sharedmask.system.units import format_bytes
from sharedmask.typing import Array

_TEMPLATES = Path(__file__).with_name("templates")
_MOST_PICTURES = 500  # small ones, of the runs that come first
_PACKAGES = ("numpy", "nibabel", "nilearn")
_DISTRIBUTIONS = (
    ("mean_fd", "mean framewise displacement (mm)", FD_THRESHOLD),
    ("tsnr", "temporal signal-to-noise ratio", None),
)


@dataclass(frozen=True)
class Timeline:
    """Memory of all processes at work over time: seconds from the start, bytes, and the limit that held."""

    seconds: Sequence[float]
    nbytes: Sequence[float]
    limit: float | None = None


@dataclass(frozen=True)
class Parcels:
    """Regions of one atlas on a run's page."""

    name: str
    """The atlas's."""
    regions: Regions
    """Those with signals."""
    table: Sequence[RegionRow]
    """All of them, with their coverage."""

    @property
    def left_out(self) -> list[str]:
        """Names of the regions without signals."""
        there = set(self.regions.names)
        return [row.name for row in self.table if row.name not in there]

    @property
    def numbers(self) -> Array:
        """Each voxel's region, 0 for none; (x, y, z)."""
        numbers = np.zeros(self.regions.grid.n_voxels, np.int32)
        for number, voxels in enumerate(self.regions, 1):
            numbers[voxels] = number
        return numbers.reshape(self.regions.grid.shape, order="F")


@dataclass(frozen=True)
class RunReport:
    """What a run's page shows."""

    title: str
    facts: Facts
    """Of the image."""
    atlases: Sequence[Parcels]
    signals: Array
    """(n_timepoints, n_regions), of the regions of all atlases."""
    picture: Array
    """(x, y, z): what the regions are drawn on, the mean image. Nothing is drawn on one of elements."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """What was asked for."""
    timeline: Timeline | None = None
    read: Mapping[str, str] = field(default_factory=dict)
    """Which files were read and written, where facts are from, what was missing: the page's head."""
    quality: Quality | None = None
    """Before anything was taken out; its voxels in the order of ``groups``."""
    groups: Sequence[tuple[str, int]] = ()
    """What those voxels are, and how many."""
    matrices: Mapping[str, Array] = field(default_factory=dict)
    """Name -> (n_regions, n_regions)."""
    meshes: Sequence[Mesh] = ()
    """On which regions of surfaces are shown."""

    def write(self, path: str | Path) -> None:
        """Write the page, whole or not at all."""
        check_installed()
        context = {
            "facts": {**self.read, **self._facts(), **self.read},
            "measures": {} if self.quality is None else as_texts(self.quality.measures()),
            "pictures": list(self._pictures()),
            "atlases": self.atlases,
        }
        _write(path, "run.html", self, context)

    def _pictures(self) -> Iterator[tuple[str, str]]:
        """Caption and picture."""
        if self.quality is not None:
            said = "The brain before anything was taken out; volumes that signals lack are shaded"
            yield said, figures.brain(self.quality, self.groups, self.facts.t_r)
        signals = np.atleast_2d(self.signals)
        kept = np.ones(len(signals), bool) if self.quality is None else self.quality.kept
        yield "Signals, each standardized", figures.carpet(signals, self.facts.t_r, kept)
        for atlas in self.atlases:
            if len(atlas.regions) and self.meshes:
                space = cast(BrainModels, self.facts.models)
                owners = [meshes.regions_on(mesh, space, atlas.numbers) for mesh in self.meshes]
                said = f"Regions of {atlas.name} on their surfaces, from the left and from the right"
                yield said, meshes.drawn(self.meshes, owners)
            if len(atlas.regions) and self.facts.models is None:  # of elements there is the table
                drawn = figures.outlines(self.picture, atlas.numbers, self.facts.affine)
                yield f"Regions of {atlas.name} on the mean image, left is left", drawn
        for name, matrix in self.matrices.items():
            yield f"Connectome: {name}", figures.data_url(figures.matrix(matrix, ""))
        shares = [row.coverage for atlas in self.atlases for row in atlas.table]
        yield "Coverage", figures.coverage(shares)
        yield from _memory("Memory, of all processes, while this run was at work", self.timeline)

    def _facts(self) -> dict[str, str]:
        kept = sum(len(atlas.regions) for atlas in self.atlases)
        missing = sum(len(atlas.left_out) for atlas in self.atlases)
        facts = {
            "image": self.facts.name,
            "shape": " x ".join(map(str, self.facts.shape)),
            "stored as": str(self.facts.dtype),
            "repetition time": "unknown" if self.facts.t_r is None else f"{self.facts.t_r:g} s",
            "regions": f"{kept}, {missing} more without signals",
        }
        if self.timeline is not None and self.timeline.seconds:
            facts["took"] = f"{self.timeline.seconds[-1]:.1f} s"
            facts["peak memory"] = format_bytes(max(self.timeline.nbytes))
        return facts


@dataclass(frozen=True)
class RunRow:
    """One run in a study's table; ``error`` is empty if all went well."""

    name: str
    error: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    page: str | None = None
    thumbnail: bytes | None = None


@dataclass(frozen=True)
class StudyReport:
    """What a study's page shows: every run, failures first, then the worst.

    Examples
    --------
    >>> import tempfile
    >>> rows = [RunRow("sub-01", facts={"volumes": 168}), RunRow("sub-02", error="sub-02 is truncated")]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     StudyReport("A study", rows).write(f"{folder}/study.html")
    ...     "sub-02 is truncated" in Path(folder, "study.html").read_text()
    True
    """

    title: str
    runs: Sequence[RunRow]
    """In the order in which the table has them at first."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    timeline: Timeline | None = None
    notes: Sequence[str] = ()
    """What was left out or found missing."""
    coverage: Mapping[str, Array] = field(default_factory=dict)
    """Name of an atlas -> (n_regions, n_runs), of the runs sorted by name."""

    def write(self, path: str | Path) -> None:
        """Write the page, whole or not at all."""
        check_installed()
        failed = [run for run in self.runs if run.error]
        done = [run for run in self.runs if not run.error]
        columns = list(dict.fromkeys(name for run in done for name in run.facts))
        context = {
            "failed": failed,
            "rows": list(self._rows(done, columns)),
            "pictured": any(run.thumbnail for run in done[:_MOST_PICTURES]),
            "notes": self.notes,
            "columns": columns,
            "pictures": list(self._pictures(done)),
        }
        _write(path, "study.html", self, context)

    def _rows(self, done: Sequence[RunRow], columns: Sequence[str]) -> Iterator[list[str | None]]:
        """Name, page, picture and facts of each run, which a script makes a table of."""
        for number, run in enumerate(done):
            picture = figures.data_url(run.thumbnail) if run.thumbnail and number < _MOST_PICTURES else None
            yield [run.name, run.page, picture, *(str(run.facts.get(name, "")) for name in columns)]

    def _pictures(self, done: Sequence[RunRow]) -> Iterator[tuple[str, str]]:
        for name, label, threshold in _DISTRIBUTIONS:
            values = [float(run.facts[name]) for run in done if run.facts.get(name, "n/a") != "n/a"]
            if len(values) > 1:
                yield f"Runs by {label}", figures.distribution(values, label, threshold)
        for atlas, shares in self.coverage.items():
            yield f"Coverage of {atlas}", figures.coverage_of_runs(shares)
        yield from _memory("Memory of the last pass, all processes", self.timeline)


def _memory(said: str, line: Timeline | None) -> Iterator[tuple[str, str]]:
    if line is not None and line.seconds:
        yield said, figures.timeline(line.seconds, line.nbytes, line.limit)


def versions() -> dict[str, str]:
    """Of Python and of the packages that make the numbers."""
    own = {"python": platform.python_version(), "sharedmask": __version__}
    return own | {name: metadata.version(name) for name in _PACKAGES}


def _as_texts(parameters: Mapping[str, Any]) -> dict[str, str]:
    asked = {name: value for name, value in parameters.items() if value not in (None, False, (), [])}
    return {
        name: ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for name, value in asked.items()
    }


def _write(path: str | Path, template: str, report: RunReport | StudyReport, context: dict[str, Any]) -> None:
    shared = {"title": report.title, "parameters": _as_texts(report.parameters), "versions": versions()}
    page = _templates().get_template(template).render(shared | context)
    write_text(path, [legible(page)])


def check_installed() -> None:
    """Learn before the work that it cannot be shown.

    Raises ParameterError: naming the packages that pages need and that are not there.
    """
    if lacking := [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]:
        raise ParameterError(
            f"pages need {' and '.join(lacking)}: install {' and '.join(lacking)}, "
            "or go without (reports=False, --no-reports)"
        )


@cache
def _templates() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(_TEMPLATES)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
