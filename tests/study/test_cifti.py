"""BIDS data sets of dense series: which runs and atlases are meant, what is written of them."""

import json
import sys

import cifti_files as files
import nibabel as nib
import numpy as np
import pytest
from surface_files import mesh

from sharedmask.cli.bids import main
from sharedmask.errors import NoInputError
from sharedmask.sources.by_row import RowSource
from sharedmask.sources.source import FileSource
from sharedmask.study.analysis import Outputs
from sharedmask.study.atlases import find_atlas
from sharedmask.study.bids import find_runs
from sharedmask.study.dataset import analyse
from sharedmask.study.tables import read_rows

STEM = "sub-01_task-rest_space-fsLR_den-91k"
NAMED = "sub-01_task-rest_space-fsLR_atlas-Toy_den-91k"
VALUES = np.array([1, 1, 0, 2, 2, 2, 0, 1, 3, 3, 0, 0, 2, 0, 1])


@pytest.fixture
def study(tmp_path):
    func = tmp_path / "prep" / "sub-01" / "func"
    func.mkdir(parents=True)
    (tmp_path / "prep" / "dataset_description.json").write_text(json.dumps({"Name": "Preprocessed"}))
    files.dtseries(func / f"{STEM}_bold.dtseries.nii", 30)
    (func / f"{STEM}_bold.json").write_text('{"RepetitionTime": 0.8}')
    atlas = tmp_path / "atlases" / "atlas-Toy_space-fsLR_den-91k_dseg.dlabel.nii"
    atlas.parent.mkdir()
    files.save(atlas, VALUES[None].astype("f4"), files.labels(), files.models())
    return tmp_path, func / f"{STEM}_bold.dtseries.nii"


def test_signals_of_a_data_set_of_dense_series(study, monkeypatch):
    folder, bold = study
    asked = ["--file-format", "cifti", "--atlases", "Toy", "--atlases-dir", folder / "atlases"]
    args = ["sharedmask-bids", folder / "prep", folder / "out", "participant", *asked]
    monkeypatch.setattr(sys, "argv", list(map(str, args)))
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    found = folder / "out" / "sub-01" / "func"
    table = np.genfromtxt(found / f"{NAMED}_stat-mean_timeseries.tsv", names=True)
    assert table.dtype.names == ("V1", "A1", "M1")
    true = files.truth(bold)
    for name, label in (("V1", 1), ("A1", 2), ("M1", 3)):
        np.testing.assert_allclose(
            table[name], true[:, label == VALUES].astype(float).mean(axis=1), rtol=1e-6
        )
    sidecar = json.loads((found / f"{NAMED}_stat-mean_timeseries.json").read_text())
    assert (sidecar["RepetitionTime"], sidecar["Space"]) == (0.8, "fsLR")
    page = (folder / "out" / f"{STEM}_bold.html").read_text()
    assert "<td>V1</td>" in page and "on the mean image" not in page and "Signals, each standardized" in page


def test_parcels_of_a_data_set_beside_its_tables(study, monkeypatch):
    folder, _ = study
    asked = ["--file-format", "cifti", "--atlases", "Toy", "--atlases-dir", folder / "atlases"]
    more = ["--connectivity", "correlation", "--stat", "mean", "median", "--no-reports"]
    args = ["sharedmask-bids", folder / "prep", folder / "out", "participant", *asked, *more]
    monkeypatch.setattr(sys, "argv", list(map(str, args)))
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    found = folder / "out" / "sub-01" / "func"
    for stat in ("mean", "median"):
        series = nib.load(found / f"{NAMED}_stat-{stat}_timeseries.ptseries.nii")
        table = np.loadtxt(found / f"{NAMED}_stat-{stat}_timeseries.tsv", skiprows=1)
        np.testing.assert_array_equal(series.get_fdata(), table.astype("f4"))
        assert series.header.get_axis(0).step == 0.8
        stem = f"{NAMED}_stat-{stat}_meas-correlation_"
        matrix = nib.load(found / f"{stem}boldmap.pconn.nii")
        same = np.loadtxt(found / f"{stem}relmat.tsv", skiprows=1, usecols=(1, 2, 3))
        np.testing.assert_array_equal(matrix.get_fdata(), same)
        assert json.loads((found / f"{stem}boldmap.json").read_text())["RelationshipMeasure"] == "correlation"
    shares = nib.load(found / f"{NAMED}_stat-coverage_boldmap.pscalar.nii")
    assert shares.get_fdata().tolist() == [[1, 1, 1]]
    assert json.loads((found / f"{NAMED}_stat-coverage_boldmap.json").read_text())["Statistic"] == "coverage"
    for image in (series, matrix, shares):
        assert list(image.header.get_axis(1).name) == ["V1", "A1", "M1"]


def test_volumes_and_dense_series_are_told_apart(study):
    folder, bold = study
    assert [run.bold for run in find_runs(folder / "prep", {"file_format": "cifti"})] == [bold]
    with pytest.raises(NoInputError, match=r"_bold\.nii\.gz"):
        find_runs(folder / "prep")


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("nothing", [0.0, np.nan, np.inf])
def test_coverage_is_the_share_of_elements_with_data(study, by_row, nothing):
    """Region 1 has elements 0, 1, 7 and 14, of which two have none; of region 3, 8 and 9, neither has.

    Of region 2 one is 0 in some volumes, which is data, or not finite there, which is none.
    """
    folder, bold = study
    values = files.values(15, 30)
    values[:, [1, 7, 8, 9]] = nothing
    values[::2, 3] = nothing
    files.save(bold, values, files.series(30), files.models(), by_row=by_row)
    atlas = find_atlas(str(folder / "atlases" / "atlas-Toy_space-fsLR_den-91k_dseg.dlabel.nii"))
    outputs = Outputs(reports=False)
    analyse(folder / "prep", folder / "out", [atlas], outputs, filters={"file_format": "cifti"})
    found = folder / "out" / "sub-01" / "func"
    rows = read_rows(found / f"{NAMED}_stat-coverage_bold.tsv")
    assert [float(row["coverage"]) for row in rows] == [0.5, 1.0 if nothing == 0 else 0.75, 0]
    table = np.genfromtxt(found / f"{NAMED}_stat-mean_timeseries.tsv", names=True, missing_values="n/a")
    np.testing.assert_allclose(table["V1"], values[:, [0, 14]].astype(float).mean(axis=1), rtol=1e-6)
    covered = [3, 4, 5, 12] if nothing == 0 else [4, 5, 12]
    np.testing.assert_allclose(table["A1"], values[:, covered].astype(float).mean(axis=1), rtol=1e-6)
    assert np.isnan(table["M1"]).all()


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("reports", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_series_is_read_once_for_each_of_two_questions(study, monkeypatch, by_row, reports):
    """Which elements have values, and what the signals are."""
    folder, bold = study
    files.dtseries(bold, 30, by_row=by_row)
    read = []
    kind, name = (RowSource, "blocks") if by_row else (FileSource, "volumes")
    once = getattr(kind, name)

    def counted(self, *given):
        read.extend([self.name] if self.is_series else [])
        return once(self, *given)

    monkeypatch.setattr(kind, name, counted)
    atlas = find_atlas(str(folder / "atlases" / "atlas-Toy_space-fsLR_den-91k_dseg.dlabel.nii"))
    how = {"filters": {"file_format": "cifti"}, "n_jobs": 1}
    analyse(folder / "prep", folder / "out", [atlas], Outputs(reports=reports), **how)
    assert read == [str(bold)] * (1 if by_row else 2)  # rows are reduced where they lie


def test_what_tells_of_an_atlas_is_beside_it_by_the_name_that_is_before_its_kind(tmp_path):
    """As XCP-D has them: a_dseg.dlabel.nii, a_dseg.json, a_dseg.tsv."""
    atlas = tmp_path / "Toy_dseg.dlabel.nii"
    files.save(atlas, VALUES[None].astype("f4"), files.labels(), files.models())
    (tmp_path / "Toy_dseg.json").write_text('{"SpatialReference": "fsLR"}')
    (tmp_path / "Toy_dseg.tsv").write_text("index\tname\n1\tone\n")
    found = find_atlas(str(atlas))
    assert (found.name, found.space, found.lut) == ("Toydseg", "fsLR", tmp_path / "Toy_dseg.tsv")
    assert tmp_path / "Toy_dseg.json" in found.files


def test_pages_show_regions_on_meshes(study, monkeypatch):
    folder, _ = study
    points, triangles = np.random.default_rng(0).normal(size=(12, 3)) * 50, [[0, 1, 2], [2, 3, 4]]
    meshes = [mesh(folder / f"hemi-{side}_inflated.surf.gii", points, triangles) for side in "LR"]
    asked = ["--file-format", "cifti", "--atlases", "Toy", "--atlases-dir", folder / "atlases"]

    def ended(*more):
        args = ["sharedmask-bids", folder / "prep", folder / "out", "participant", *asked, *more]
        monkeypatch.setattr(sys, "argv", list(map(str, args)))
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0

    other = mesh(folder / "hemi-L_other.surf.gii", points[:10], triangles)
    assert ended("--surface-mesh", other) == 1 and not list((folder / "out").glob("*_bold.html"))
    assert ended("--surface-mesh", folder / "none.surf.gii") == 66
    assert ended("--surface-mesh", meshes[0], "--no-reports") == 64
    assert ended("--surface-mesh", *meshes) == 0
    page = (folder / "out" / f"{STEM}_bold.html").read_text()
    assert "Regions of Toy on their surfaces" in page
