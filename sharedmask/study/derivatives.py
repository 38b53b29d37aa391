"""Derivatives: the signals of a study's runs as a BIDS data set of their own.

Covers: file names, tables, sidecars, the data set's description. Does not cover: finding inputs
(``bids``), making the signals (``extraction`` of ``image``), how a table is written (``tables``).

Region time series are in no BIDS standard yet; names and sidecars follow what XCP-D writes.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharedmask._version import __version__
from sharedmask.compute.connectivity import measure
from sharedmask.errors import DatasetError, ParameterError
from sharedmask.records import dataclass
from sharedmask.regions.naming import columns
from sharedmask.regions.regions import Regions
from sharedmask.regions.sets import RegionRow
from sharedmask.remote.addresses import named, place_of, url_of
from sharedmask.reports.quality import DESCRIBED
from sharedmask.sources.names import Name, camel
from sharedmask.sources.sidecar import DESCRIPTION
from sharedmask.study.analysis import Analysis
from sharedmask.study.atlases import Atlas
from sharedmask.study.bids import Run
from sharedmask.study.tables import split, write_matrix, write_parcels, write_series, write_table
from sharedmask.system.files import atomic_write, write_json, write_text
from sharedmask.system.inputs import read_json
from sharedmask.system.process import cached_property
from sharedmask.typing import Array, NDArray

_BIDS_VERSION = "1.11.1"
_SOURCE = "preprocessed"
_OUTLIERS = {
    "outlier": {
        "Description": "1: this volume was left out of the signals",
        "Levels": {"0": "kept", "1": "left out"},
    }
}


@dataclass(frozen=True)
class Derivatives:
    """A folder of outputs; :meth:`create` makes it.

    ``root``: the folder.
    ``source``: the data set that the runs are of.
    """

    root: Path
    source: Path

    @classmethod
    def at(cls, root: str | Path, source: str | Path) -> "Derivatives":
        """Those in the folder ``root``, which is not touched."""
        if url_of(root):
            raise ParameterError(f"outputs go to a folder of this machine, not to {named(root)}")
        return cls(place_of(root), place_of(source))

    @classmethod
    def create(cls, root: str | Path, source: str | Path) -> "Derivatives":
        """Make the folder and describe it; what is in it stays.

        Raises DatasetError: the folder is another program's data set.
        """
        derivatives = cls.at(root, source)
        derivatives._check_place()
        derivatives.root.mkdir(parents=True, exist_ok=True)
        description = derivatives.root / DESCRIPTION
        if description.exists() and not _is_ours(description):
            what = f"{root} is another data set: {description} does not name sharedmask"
            raise DatasetError(f"{what}; choose another folder for the outputs")
        write_json(description, derivatives._description())
        return derivatives

    @staticmethod
    def check(root: Path) -> None:
        """That outputs of ours are there.

        Raises DatasetError.
        """
        if not _is_ours(root / DESCRIPTION):
            raise DatasetError(f"{root} has no outputs of sharedmask: run the participant level first")

    def _check_place(self) -> None:
        """A description there would be what ends the search for sidecars of that subject's runs."""
        if url_of(self.source):
            return
        inside = os.path.relpath(os.path.realpath(self.root), os.path.realpath(self.source))
        if inside.startswith("sub-"):
            raise DatasetError(
                f"{self.root} lies in the folder of a subject of {self.source}: choose another"
            )

    def _description(self) -> dict[str, Any]:
        return {
            "Name": "Region signals",
            "BIDSVersion": _BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "sharedmask", "Version": __version__}],
            "SourceDatasets": [{"URL": self._address}],
            "DatasetLinks": {_SOURCE: self._address},
        }

    @property
    def _address(self) -> str:
        """Of the data set, without who asks for it."""
        return named(self.source) if url_of(self.source) else self.source.absolute().as_uri()

    def of(self, run: Run, analysis: Analysis) -> "RunDerivatives":
        """Those of one run."""
        return RunDerivatives(self, run, analysis)

    def uri(self, path: Path) -> str:
        """A file of the data set, by the name that the data set has for it."""
        text, root = os.fspath(path), os.path.join(self.source, "")
        within = text[len(root) :] if text.startswith(root) else os.fspath(path.relative_to(self.source))
        return f"bids:{_SOURCE}:{within.replace(os.sep, '/')}"

    def told(self, path: Path) -> str:
        """A file that may be of another place: where that is on this machine says nothing on others."""
        if url_of(path):
            return named(path)
        return self.uri(path) if path.is_relative_to(self.source) else Path(named(path)).name


@dataclass(frozen=True)
class RunDerivatives:
    """The outputs of one run: what :meth:`Derivatives.of` gives."""

    derivatives: Derivatives
    run: Run
    analysis: Analysis

    @cached_property
    def _desc(self) -> str | None:
        """Which of the run's images they are of and what was done; part of their names."""
        return self.analysis.desc(self.run)

    def _path(self, atlas: Atlas | None, statistic: str | None, suffix: str, extension: str) -> Path:
        """Where an output belongs; one that is of no atlas tells of the run itself."""
        entities: dict[str, str] = {} if atlas is None else atlas.entities
        told = {**entities, "stat": statistic and camel(statistic), "desc": self._desc}
        name = self.run.name.replace(**told, suffix=suffix, extension=extension)
        return self.derivatives.root / self.run.folder / str(name)

    def _relmat(self, atlas: Atlas, statistic: str, kind: str) -> Path:
        """Where a matrix of regions belongs."""
        table = self._path(atlas, statistic, "relmat", ".tsv")
        meas = measure(kind, self.analysis.outputs.fisher_z)
        return table.with_name(str(Name.parse(table).replace(meas=meas)))

    @property
    def page(self) -> Path:
        """Where the run's page belongs."""
        return self.derivatives.root / f"{self.analysis.key(self.run)}.html"

    @property
    def planned(self) -> list[Path]:
        """All that will be written, without the sidecars beside it."""
        outputs, paths = self.analysis.outputs, list[Path]()
        for atlas in self.analysis.atlases:
            if outputs.voxels:
                paths.append(self._path(atlas, None, "timeseries", ".h5"))
                continue
            several = [(statistic, kind) for statistic in outputs.statistics for kind in outputs.kinds]
            form = f".{outputs.form}"
            paths += [self._path(atlas, statistic, "timeseries", form) for statistic in outputs.statistics]
            paths += [self._relmat(atlas, *one) for one in several]
            paths.append(self._path(atlas, "coverage", "bold", ".tsv"))
            paths += self._planned_parcels(atlas)
        if not outputs.voxels:
            paths.append(self._path(None, None, "qc", ".tsv"))
        if self.analysis.denoise is not None:
            paths.append(self._path(None, None, "outliers", ".tsv"))
        if outputs.reports and not outputs.voxels:
            paths.append(self.page)
        return paths

    def _planned_parcels(self, atlas: Atlas) -> Iterator[Path]:
        if self.run.is_volume:
            return
        yield self._path(atlas, "coverage", "boldmap", ".pscalar.nii")
        for statistic in self.analysis.outputs.statistics:
            yield self._path(atlas, statistic, "timeseries", ".ptseries.nii")
            for kind in self.analysis.outputs.kinds:
                yield _boldmap(self._relmat(atlas, statistic, kind))

    def write_parcels(
        self,
        atlas: Atlas,
        statistic: str,
        signals: Array,
        table: Sequence[RegionRow],
        regions: Regions,
        t_r: float | None,
    ) -> list[Path]:
        """The signals of ``regions`` and their coverage as CIFTI-2, whose sidecars those of the tables are.

        Regions that are not covered enough are no parcels.
        """
        shares = {row.name: row.coverage for row in table}
        covered = np.array([[shares[name] for name in regions.names]])
        series = self._path(atlas, statistic, "timeseries", ".ptseries.nii")
        shown = self._path(atlas, "coverage", "boldmap", ".pscalar.nii")
        _make_folder(shown)
        write_json(_sidecar_of(shown), self._sidecar(atlas) | {"Statistic": "coverage"})
        write_parcels(shown, covered, regions)
        write_parcels(series, signals, regions, t_r)
        return [shown, series]

    def write_signals(
        self,
        atlas: Atlas,
        statistic: str,
        signals: Array,
        table: Sequence[RegionRow],
        facts: Mapping[str, Any],
    ) -> Path:
        """One column per region, its sidecar, and the table of coverage.

        ``signals``: (n_timepoints, n_regions).
        ``table``: of the columns; see ``Regions.table``.
        ``facts``: further fields of the sidecar.

        Returns the path of the signals, which are written last: where they are, the others are too.
        """
        form = self.analysis.outputs.form
        path = self._path(atlas, statistic, "timeseries", f".{form}")
        _make_folder(path)
        kept, names = self._columns(signals, table)
        _write_coverage(self._path(atlas, "coverage", "bold", ".tsv"), table)
        sidecar = self._sidecar(atlas) | {"Statistic": statistic} | dict(facts)
        write_json(path.with_name(path.name.removesuffix(f".{form}") + ".json"), sidecar)
        (write_table if form == "tsv" else _write_parquet)(path, signals[:, kept], names)
        return path

    def write_matrix(
        self,
        atlas: Atlas,
        statistic: str,
        signals: Array,
        table: Sequence[RegionRow],
        facts: Mapping[str, Any],
        kind: str,
        matrix: Array,
        parcels: tuple[Regions, Array] | None,
    ) -> list[Path]:
        """The matrix of regions' signals by a measure, and its sidecar; else as :meth:`write_signals`.

        ``parcels``, regions that are covered and their matrix, are also written as CIFTI-2.
        """
        fisher_z = self.analysis.outputs.fisher_z
        path = self._relmat(atlas, statistic, kind)
        kept, names = self._columns(signals, table)
        _make_folder(path)
        told = {
            "Statistic": statistic,
            "RelationshipMeasure": kind + (", Fisher's z" if fisher_z else ""),
            "MeasureDescription": f"nilearn.connectome.ConnectivityMeasure(kind={kind!r})",
            "Weighted": True,
            "Directed": False,
            "ValidDiagonal": not fisher_z,
            "StorageFormat": "Full",
            "NonNegative": False,
        }
        written = [path]
        if parcels is not None:
            written.append(_boldmap(path))
            write_parcels(written[-1], parcels[1], parcels[0])
        for one in written:
            write_json(_sidecar_of(one), self._sidecar(atlas) | told | dict(facts))
        write_matrix(path, matrix[np.ix_(kept, kept)], names)
        return written

    def _columns(self, signals: Array, table: Sequence[RegionRow]) -> tuple[NDArray[np.intp], list[str]]:
        """Those that are written, and their names."""
        kept = np.arange(len(table))
        if self.analysis.outputs.drop_empty:
            kept = np.flatnonzero(~np.isnan(signals).all(axis=0))
        return kept, [table[number].name for number in kept.tolist()]

    def write_voxels(self, atlas: Atlas, series: Mapping[str, Array], facts: Mapping[str, Any]) -> Path:
        """The (n_timepoints, n_voxels) series of each region, as HDF5, with their sidecar."""
        path = self._path(atlas, None, "timeseries", ".h5")
        _make_folder(path)
        write_json(path.with_suffix(".json"), self._sidecar(atlas) | dict(facts))
        write_series(path, series)
        return path

    def write_outliers(self, kept: NDArray[np.intp], n_timepoints: int) -> Path:
        """One row per volume of the run: 1 for those that the signals lack, 0 for those they have."""
        dropped = np.ones(n_timepoints, int)
        dropped[kept] = 0
        path = self._beside_sidecar("outliers", _OUTLIERS)
        write_table(path, dropped[:, None], ["outlier"])
        return path

    def write_quality(self, measures: Mapping[str, str]) -> Path:
        """One row: what the run is like, before anything is taken out of it."""
        path = self._beside_sidecar("qc", DESCRIBED)
        write_text(path, ["\t".join(measures), "\n", "\t".join(measures.values()), "\n"])
        return path

    def _beside_sidecar(self, suffix: str, described: Mapping[str, Any]) -> Path:
        """Where a table of the run itself goes, whose columns its sidecar, written now, describes."""
        path = self._path(None, None, suffix, ".tsv")
        _make_folder(path)
        write_json(path.with_suffix(".json"), {"Sources": [self.derivatives.uri(self.run.bold)], **described})
        return path

    def _sidecar(self, atlas: Atlas) -> dict[str, Any]:
        told = self.derivatives.told
        return {
            "Sources": [self.derivatives.uri(self.run.bold)],
            "AtlasFile": told(atlas.image),
            "AtlasDigest": atlas.digest,
            "AtlasLabels": None if atlas.lut is None else told(atlas.lut),
            "AtlasSpace": atlas.space,
            "GeneratedBy": [{"Name": "sharedmask", "Version": __version__}],
        }


def _boldmap(relmat: Path) -> Path:
    """What XCP-D calls a matrix that is no table."""
    return relmat.with_name(str(Name.parse(relmat).replace(suffix="boldmap", extension=".pconn.nii")))


def _sidecar_of(path: Path) -> Path:
    return path.with_name(f"{split(path)[0]}.json")


def _make_folder(path: Path) -> None:
    """That a file goes to, which is there for all of a run's but the first."""
    if not os.path.isdir(folder := os.path.dirname(path)):
        os.makedirs(folder, exist_ok=True)


def _is_ours(description: Path) -> bool:
    try:
        names = [by["Name"] for by in read_json(description)["GeneratedBy"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return "sharedmask" in names


def _write_coverage(path: Path, table: Sequence[RegionRow]) -> None:
    names = columns(row.name for row in table)
    lines = [f"{name}\t{row.coverage:.6g}\n" for name, row in zip(names, table, strict=True)]
    write_text(path, ["Node\tcoverage\n", *lines])


def _write_parquet(path: Path, signals: Array, names: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = np.atleast_2d(signals).T
    with atomic_write(path) as temporary:
        pq.write_table(pa.table([pa.array(column) for column in values], names=columns(names)), temporary)
