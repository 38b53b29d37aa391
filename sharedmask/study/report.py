"""Reports: one HTML page per run and one per study, each a single file.

Covers: what a page shows, from plain results. Does not cover: the pictures (``figures``), making
the results (``extraction``, ``cohort``), where pages are put (``dataset``).
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sharedmask.errors import ParameterError
from sharedmask.records import dataclass
from sharedmask.regions.regions import RegionRow, Regions
from sharedmask.sources.source import Facts
from sharedmask.study import figures
from sharedmask.system.files import atomic_write
from sharedmask.system.units import format_bytes
from sharedmask.typing import Array

_TEMPLATES = Path(__file__).with_name("templates")
_PACKAGES = ("sharedmask", "numpy", "nibabel", "nilearn")


@dataclass(frozen=True)
class Timeline:
    """Memory of all processes at work over time: seconds from the start, bytes, and the limit that held."""

    seconds: Sequence[float]
    nbytes: Sequence[float]
    limit: float | None = None


@dataclass(frozen=True)
class RunReport:
    """What a run's page shows.

    Parameters
    ----------
    title : str
    facts : Facts
        Of the image.
    regions : Regions
    signals : ndarray, (n_timepoints, n_regions)
    table : sequence of RegionRow
        With the coverage of each region.
    picture : ndarray, (x, y, z)
        What the regions are drawn on: the mean image.
    parameters : mapping
        What was asked for.
    timeline : Timeline, optional
    read : mapping, optional
        Which files were read and written, where facts are from, what was missing: the page's head.
    """

    title: str
    facts: Facts
    regions: Regions
    signals: Array
    table: Sequence[RegionRow]
    picture: Array
    parameters: Mapping[str, Any] = field(default_factory=dict)
    timeline: Timeline | None = None
    read: Mapping[str, str] = field(default_factory=dict)

    def write(self, path: str | Path) -> None:
        """Write the page, whole or not at all."""
        check_installed()
        _write(path, "run.html", self._context())

    def _context(self) -> dict[str, Any]:
        signals = np.atleast_2d(self.signals)
        pictures = [
            (
                "Regions on the mean image, left is left",
                figures.outlines(self.picture, self._region_numbers(), self.facts.affine),
            ),
            ("Signals, each standardized", figures.carpet(signals, self.facts.t_r)),
            ("Coverage", figures.coverage([row.coverage for row in self.table])),
        ]
        if self.timeline is not None and self.timeline.seconds:
            line = self.timeline
            pictures.append(
                (
                    "Memory, of all processes, while this run was at work",
                    figures.timeline(line.seconds, line.nbytes, line.limit),
                )
            )
        return {
            "title": self.title,
            "facts": {**self.read, **self._facts(), **self.read},
            "pictures": pictures,
            "table": self.table,
            "parameters": _as_texts(self.parameters),
            "versions": versions(),
        }

    def _facts(self) -> dict[str, str]:
        facts = {
            "image": self.facts.name,
            "shape": " x ".join(map(str, self.facts.shape)),
            "stored as": str(self.facts.dtype),
            "repetition time": "unknown" if self.facts.t_r is None else f"{self.facts.t_r:g} s",
            "regions": f"{len(self.regions)}, {len(self.regions.missing)} more without voxels",
        }
        if self.timeline is not None and self.timeline.seconds:
            facts["took"] = f"{self.timeline.seconds[-1]:.1f} s"
            facts["peak memory"] = format_bytes(max(self.timeline.nbytes))
        return facts

    def _region_numbers(self) -> Array:
        """Each voxel's region, 0 for none; (x, y, z)."""
        numbers = np.zeros(self.regions.grid.n_voxels, np.int32)
        for number, voxels in enumerate(self.regions, 1):
            numbers[voxels] = number
        return numbers.reshape(self.regions.grid.shape, order="F")


@dataclass(frozen=True)
class RunRow:
    """One run in a study's table; ``error`` is empty if all went well."""

    name: str
    error: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    page: str | None = None


@dataclass(frozen=True)
class StudyReport:
    """What a study's page shows: every run, failures first.

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
    parameters: Mapping[str, Any] = field(default_factory=dict)
    timeline: Timeline | None = None
    notes: Sequence[str] = ()
    """What was left out or found missing."""

    def write(self, path: str | Path) -> None:
        """Write the page, whole or not at all."""
        check_installed()
        failed = [run for run in self.runs if run.error]
        done = [run for run in self.runs if not run.error]
        line = self.timeline
        context = {
            "title": self.title,
            "failed": failed,
            "done": done,
            "notes": self.notes,
            "columns": list(dict.fromkeys(name for run in done for name in run.facts)),
            "memory": figures.timeline(line.seconds, line.nbytes, line.limit)
            if line and line.seconds
            else None,
            "parameters": _as_texts(self.parameters),
            "versions": versions(),
        }
        _write(path, "study.html", context)


def versions() -> dict[str, str]:
    """Of Python and of the packages that make the numbers."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES}


def _as_texts(parameters: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in parameters.items() if value not in (None, False, (), [])}


def _write(path: str | Path, template: str, context: Mapping[str, Any]) -> None:
    page = _templates().get_template(template).render(context)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def missing() -> list[str]:
    """The packages that pages need and that are not installed."""
    return [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]


def check_installed() -> None:
    """Learn before the work that it cannot be shown.

    Raises
    ------
    ParameterError
        Naming the packages that pages need and that are not there.
    """
    if lacking := missing():
        raise ParameterError(
            f"pages need {' and '.join(lacking)}: install sharedmask[report], "
            "or go without (reports=False, --no-reports)"
        )


@cache
def _templates() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(_TEMPLATES)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
