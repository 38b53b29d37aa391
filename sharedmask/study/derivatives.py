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
from sharedmask.study.analysis import Analysis, Outputs
from sharedmask.study.atlases import Atlas
from sharedmask.study.bids import Run
from sharedmask.study.tables import split, write_matrix, write_parcels, write_series, write_table
from sharedmask.system.files import atomic_write, write_json, write_text
from sharedmask.system.inputs import read_json
from sharedmask.typing import Array, NDArray

_BIDS_VERSION = "1.11.1"
_SOURCE = "preprocessed"


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

    def path(
        self,
        run: Run,
        atlas: Atlas | None,
        statistic: str | None,
        suffix: str,
        extension: str,
        desc: str | None = None,
    ) -> Path:
        """Where an output of ``run`` belongs; one that is of no atlas tells of the run itself."""
        entities: dict[str, str] = {} if atlas is None else atlas.entities
        name = run.name.replace(**entities, stat=statistic, desc=desc, suffix=suffix, extension=extension)
        return self.root / run.folder / str(name)

    def page(self, run: Run, analysis: Analysis) -> Path:
        """Where the page of ``run`` belongs."""
        return self.root / f"{analysis.key(run)}.html"

    def planned(self, run: Run, analysis: Analysis) -> list[Path]:
        """All that will be written of ``run``, without the sidecars beside it."""
        outputs, desc, paths = analysis.outputs, analysis.desc(run), []
        for atlas in analysis.atlases:
            if outputs.voxels:
                paths.append(self.path(run, atlas, None, "timeseries", ".h5", desc))
                continue
            form = f".{outputs.form}"
            paths += [
                self.path(run, atlas, camel(statistic), "timeseries", form, desc)
                for statistic in outputs.statistics
            ]
            paths += [
                self.relmat(run, atlas, statistic, measure(kind, outputs.fisher_z), desc)
                for statistic in outputs.statistics
                for kind in outputs.kinds
            ]
            paths.append(self.path(run, atlas, "coverage", "bold", ".tsv", desc))
            paths += self._planned_parcels(run, atlas, outputs, desc)
        if not outputs.voxels:
            paths.append(self.path(run, None, None, "qc", ".tsv", desc))
        if analysis.denoise is not None:
            paths.append(self.path(run, None, None, "outliers", ".tsv", desc))
        if outputs.reports and not outputs.voxels:
            paths.append(self.page(run, analysis))
        return paths

    def _planned_parcels(self, run: Run, atlas: Atlas, outputs: Outputs, desc: str | None) -> Iterator[Path]:
        if run.is_volume:
            return
        yield self.path(run, atlas, "coverage", "boldmap", ".pscalar.nii", desc)
        for statistic in outputs.statistics:
            yield self.path(run, atlas, camel(statistic), "timeseries", ".ptseries.nii", desc)
            for kind in outputs.kinds:
                yield _boldmap(self.relmat(run, atlas, statistic, measure(kind, outputs.fisher_z), desc))

    def write_parcels(
        self,
        run: Run,
        atlas: Atlas,
        statistic: str,
        signals: Array,
        regions: Regions,
        table: Sequence[RegionRow],
        *,
        t_r: float | None,
        desc: str | None = None,
    ) -> list[Path]:
        """The signals of ``regions`` and their coverage as CIFTI-2, whose sidecars those of the tables are.

        Regions that are not covered enough are no parcels.
        """
        shares = {row.name: row.coverage for row in table}
        covered = np.array([[shares[name] for name in regions.names]])
        series = self.path(run, atlas, camel(statistic), "timeseries", ".ptseries.nii", desc)
        shown = self.path(run, atlas, "coverage", "boldmap", ".pscalar.nii", desc)
        _make_folder(shown)
        write_json(_sidecar_of(shown), self._sidecar(run, atlas) | {"Statistic": "coverage"})
        write_parcels(shown, covered, regions)
        write_parcels(series, signals, regions, t_r)
        return [shown, series]

    def write_signals(
        self,
        run: Run,
        atlas: Atlas,
        statistic: str,
        signals: Array,
        table: Sequence[RegionRow],
        *,
        desc: str | None = None,
        facts: Mapping[str, Any] | None = None,
        form: str = "tsv",
        drop_empty: bool = False,
    ) -> Path:
        """One column per region, its sidecar, and the table of coverage.

        ``statistic``: as ``mean``; part of the name.
        ``signals``: (n_timepoints, n_regions).
        ``table``: of the columns; see ``Regions.table``.
        ``desc``: what was done to the signals; part of the name.
        ``facts``: further fields of the sidecar.
        ``form``: {"tsv", "parquet"}.
        ``drop_empty``: leave out the columns without a number.

        Returns the path of the signals, which are written last: where they are, the others are too.
        """
        path = self.path(run, atlas, camel(statistic), "timeseries", f".{form}", desc)
        _make_folder(path)
        kept = _kept(signals, drop_empty)
        names = [table[number].name for number in kept.tolist()]
        _write_coverage(self.path(run, atlas, "coverage", "bold", ".tsv", desc), table)
        sidecar = self._sidecar(run, atlas) | {"Statistic": statistic} | dict(facts or {})
        write_json(path.with_name(path.name.removesuffix(f".{form}") + ".json"), sidecar)
        (write_table if form == "tsv" else _write_parquet)(path, signals[:, kept], names)
        return path

    def relmat(self, run: Run, atlas: Atlas, statistic: str, meas: str, desc: str | None) -> Path:
        """Where a matrix of regions belongs."""
        table = self.path(run, atlas, camel(statistic), "relmat", ".tsv", desc)
        return table.with_name(str(Name.parse(table).replace(meas=meas)))

    def write_matrix(
        self,
        run: Run,
        atlas: Atlas,
        statistic: str,
        signals: Array,
        table: Sequence[RegionRow],
        kind: str,
        matrix: Array,
        *,
        fisher_z: bool = False,
        desc: str | None = None,
        facts: Mapping[str, Any] | None = None,
        drop_empty: bool = False,
        parcels: tuple[Regions, Array] | None = None,
    ) -> list[Path]:
        """The matrix of regions' signals by a measure, and its sidecar; else as :meth:`write_signals`.

        ``parcels``, regions that are covered and their matrix, are also written as CIFTI-2.
        """
        path = self.relmat(run, atlas, statistic, measure(kind, fisher_z), desc)
        kept = _kept(signals, drop_empty)
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
            write_json(_sidecar_of(one), self._sidecar(run, atlas) | told | dict(facts or {}))
        names = [table[number].name for number in kept.tolist()]
        write_matrix(path, matrix[np.ix_(kept, kept)] if drop_empty else matrix, names)
        return written

    def write_voxels(
        self,
        run: Run,
        atlas: Atlas,
        series: Mapping[str, Array],
        *,
        desc: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Path:
        """The (n_timepoints, n_voxels) series of each region, as HDF5, with their sidecar."""
        path = self.path(run, atlas, None, "timeseries", ".h5", desc)
        _make_folder(path)
        write_json(path.with_suffix(".json"), self._sidecar(run, atlas) | dict(facts or {}))
        write_series(path, series)
        return path

    def write_outliers(
        self, run: Run, kept: NDArray[np.intp], n_timepoints: int, *, desc: str | None
    ) -> Path:
        """One row per volume of the run: 1 for those that the signals lack, 0 for those they have."""
        path = self.path(run, None, None, "outliers", ".tsv", desc)
        _make_folder(path)
        dropped = np.ones(n_timepoints, int)
        dropped[kept] = 0
        described = {"outlier": {"Description": "1: this volume was left out of the signals", "Levels": {
            "0": "kept", "1": "left out"}}}  # fmt: skip
        write_json(path.with_suffix(".json"), {"Sources": [self.uri(run.bold)], **described})
        write_table(path, dropped[:, None], ["outlier"])
        return path

    def write_quality(self, run: Run, measures: Mapping[str, str], *, desc: str | None) -> Path:
        """One row: what the run is like, before anything is taken out of it."""
        path = self.path(run, None, None, "qc", ".tsv", desc)
        _make_folder(path)
        write_json(path.with_suffix(".json"), {"Sources": [self.uri(run.bold)], **DESCRIBED})
        write_text(path, ["\t".join(measures), "\n", "\t".join(measures.values()), "\n"])
        return path

    def uri(self, path: Path) -> str:
        """A file of the data set, by the name that the data set has for it."""
        text, root = os.fspath(path), os.path.join(self.source, "")
        within = text[len(root) :] if text.startswith(root) else os.fspath(path.relative_to(self.source))
        return f"bids:{_SOURCE}:{within.replace(os.sep, '/')}"

    def _told(self, path: Path) -> str:
        """A file that may be of another place: where that is on this machine says nothing on others."""
        if url_of(path):
            return named(path)
        return self.uri(path) if path.is_relative_to(self.source) else Path(named(path)).name

    def _sidecar(self, run: Run, atlas: Atlas) -> dict[str, Any]:
        return {
            "Sources": [self.uri(run.bold)],
            "AtlasFile": self._told(atlas.image),
            "AtlasDigest": atlas.digest,
            "AtlasLabels": None if atlas.lut is None else self._told(atlas.lut),
            "AtlasSpace": atlas.space,
            "GeneratedBy": [{"Name": "sharedmask", "Version": __version__}],
        }


def _boldmap(relmat: Path) -> Path:
    """What XCP-D calls a matrix that is no table."""
    return relmat.with_name(str(Name.parse(relmat).replace(suffix="boldmap", extension=".pconn.nii")))


def _sidecar_of(path: Path) -> Path:
    return path.with_name(f"{split(path)[0]}.json")


def _kept(signals: Array, drop_empty: bool) -> NDArray[np.intp]:
    """The columns that are written."""
    return np.flatnonzero(~np.isnan(signals).all(axis=0)) if drop_empty else np.arange(signals.shape[1])


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
