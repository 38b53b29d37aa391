"""Regions as CIFTI-2 files: what nibabel reads back is what a table beside them has."""

import cifti_files as files
import nibabel as nib
import numpy as np
import pytest
from command import called
from nibabel.cifti2 import ParcelsAxis, SeriesAxis

from sharedmask.compute.connectivity import connectivity

VALUES = np.array([1, 1, 0, 2, 2, 2, 0, 1, 3, 3, 0, 0, 2, 0, 1])
NAMES = ["V1", "A1", "M1"]


@pytest.fixture
def atlas(tmp_path):
    return files.save(tmp_path / "toy.dlabel.nii", VALUES[None].astype("f4"), files.labels(), files.models())


def check_parcels(axis):
    """Each has the vertices and voxels of its label, by structure and within its surface."""
    own = files.models()
    assert isinstance(axis, ParcelsAxis) and list(axis.name) == NAMES
    assert axis.nvertices == own.nvertices and axis.volume_shape == own.volume_shape
    for label, (voxels, vertices) in enumerate(zip(axis.voxels, axis.vertices, strict=True), start=1):
        inside = label == VALUES
        assert {*map(tuple, voxels)} == {*map(tuple, own.voxel[inside & ~own.surface_mask])}
        for name, found in vertices.items():
            assert found.tolist() == own.vertex[inside & (own.name == name)].tolist()


def succeeds(*args):
    done = called(*args)
    assert done.returncode == 0, done.stderr


def means(path):
    true = files.truth(path).astype(float)
    return np.stack([true[:, label == VALUES].mean(axis=1) for label in (1, 2, 3)], axis=1)


def test_extract_writes_parcellated_series_and_matrices(tmp_path, atlas):
    run = files.dtseries(tmp_path / "run.dtseries.nii", 30)
    series, matrix = tmp_path / "out.ptseries.nii", tmp_path / "out.pconn.nii"
    succeeds("extract", run, "--atlas", atlas, "-o", series, "--connectivity", "partial-correlation")
    succeeds("extract", run, "--atlas", atlas, "-o", matrix, "--connectivity", "covariance")
    back = nib.load(series)
    np.testing.assert_allclose(back.get_fdata(), means(run), rtol=1e-6)
    along, axis = back.header.get_axis(0), back.header.get_axis(1)
    assert isinstance(along, SeriesAxis) and (along.step, along.unit) == (0.8, "SECOND")
    check_parcels(axis)
    back = nib.load(matrix)
    np.testing.assert_allclose(back.get_fdata(), connectivity(means(run), "covariance"), rtol=1e-4, atol=1e-4)
    assert back.nifti_header.get_intent()[0] == "ConnParcels"
    for axis in map(back.header.get_axis, (0, 1)):
        check_parcels(axis)
    check_parcels(nib.load(tmp_path / "out_meas-partialCorrelation_relmat.pconn.nii").header.get_axis(0))


def test_a_folder_of_parcellated_series(tmp_path, atlas):
    runs = [files.dtseries(tmp_path / f"{name}.dtseries.nii", 10, seed=ord(name)) for name in "ab"]
    asked = [
        "--out-dir",
        tmp_path / "out",
        "--format",
        "ptseries.nii",
        "--t-r",
        2,
        "--stat",
        "mean",
        "median",
    ]
    succeeds("extract", *runs, "--atlas", atlas, *asked)
    for run in runs:
        stem = run.name.partition(".")[0]
        back = nib.load(tmp_path / "out" / f"{stem}_stat-mean.ptseries.nii")
        np.testing.assert_allclose(back.get_fdata(), means(run), rtol=1e-6)
        assert back.header.get_axis(0).step == 2
        assert (tmp_path / "out" / f"{stem}_stat-median.ptseries.nii").exists()


def test_the_pipeline_writes_matrices_of_named_regions(tmp_path, atlas):
    run = files.dtseries(tmp_path / "a.dtseries.nii", 10)
    succeeds(
        "run",
        run,
        "--atlas",
        atlas,
        "--rois",
        "A1",
        "M1",
        "--output-dir",
        tmp_path / "out",
        "--format",
        "pconn.nii",
    )
    back = nib.load(tmp_path / "out" / "a.pconn.nii")
    assert list(back.header.get_axis(0).name) == ["A1", "M1"] and back.shape == (2, 2)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--connectivity", "covariance", "correlation", "-o", "a.pconn.nii"], "one matrix"),
        (["--no-header", "-o", "a.ptseries.nii"], "are for tables"),
    ],
)
def test_what_such_files_do_not_hold_is_refused(tmp_path, atlas, asked, said):
    run = files.dtseries(tmp_path / "run.dtseries.nii", 10)
    done = called("extract", run, "--atlas", atlas, *asked)
    assert done.returncode == 64 and said in done.stderr
