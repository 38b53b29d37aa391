"""Results as CIFTI-2: what nibabel reads back is what was given, with every region's places."""

import cifti_files as files
import nibabel as nib
import numpy as np
import pytest
from images import same_bits

from sharedmask import Grid, Regions, SharedCiftiLabelsMasker, errors, extract
from sharedmask.regions import parcels
from sharedmask.sources.opening import open_source

ATLAS = np.array([1, 1, 0, 2, 2, 2, 0, 1, 3, 3, 0, 0, 2, 0, 1])


@pytest.mark.parametrize(
    ("kind", "ending"), [("series", "ptseries"), ("matrix", "pconn"), ("scalars", "pscalar")]
)
def test_parcellated_files_read_back(tmp_path, kind, ending):
    path = files.dtseries(tmp_path / "run.dtseries.nii", 20)
    source = open_source(path)
    regions = Regions.from_labels(ATLAS, source.grid, lut={1: "V1", 2: "A1", 3: "M1"})
    signals = extract(path, regions, strategy="mean")
    values = signals if kind == "series" else np.corrcoef(signals.T) if kind == "matrix" else signals[:2]
    regions.to_cifti(values, kind, t_r=source.t_r).to_filename(tmp_path / f"out.{ending}.nii")
    back = nib.load(tmp_path / f"out.{ending}.nii")
    same_bits(np.asarray(back.dataobj).copy(), values)
    axis = back.header.get_axis(1)
    assert list(axis.name) == ["V1", "A1", "M1"]
    own = files.models()
    for label, (_, voxels, vertices) in enumerate(
        zip(axis.name, axis.voxels, axis.vertices, strict=True), start=1
    ):
        inside = label == ATLAS
        assert {tuple(v) for v in voxels} == {tuple(v) for v in own.voxel[inside & ~own.surface_mask]}
        for name, found in vertices.items():
            assert found.tolist() == own.vertex[inside & (own.name == name)].tolist()
    if kind == "series":
        assert back.header.get_axis(0).step == 0.8


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2"])
@pytest.mark.parametrize("kind", ["series", "matrix", "scalars"])
def test_files_have_the_bytes_that_nibabel_writes_again_and_again(tmp_path, kind, dtype):
    source = open_source(files.dtseries(tmp_path / "run.dtseries.nii"))
    atlases = [Regions.from_labels(labels, source.grid) for labels in (ATLAS, ATLAS[::-1])]
    renamed = Regions.from_labels(ATLAS, source.grid, lut={1: "V1", 2: "A1", 3: "M1"})
    box = Regions.from_labels(np.arange(24).reshape(files.BOX) % 4, Grid(files.BOX, files.AFFINE))
    for seed in range(3):
        for regions in (*atlases, renamed, box):
            for length, t_r in ((3, 0.8), (3, 2.0), (5, None)):
                length = 3 if kind == "matrix" else length
                values = (np.random.default_rng(seed).normal(size=(length, 3)) * 100).astype(dtype)
                expected = regions.to_cifti(values, kind, t_r=t_r).to_bytes()
                assert parcels.content(regions, values, kind, t_r) == expected


def test_regions_of_a_volume_are_parcels_of_voxels(tmp_path):
    grid = Grid(files.BOX, files.AFFINE)
    regions = Regions.from_labels(np.arange(24).reshape(files.BOX) % 3, grid)
    image = regions.to_cifti(np.ones((5, 2), "f4"))
    image.to_filename(tmp_path / "a.ptseries.nii")
    axis = nib.load(tmp_path / "a.ptseries.nii").header.get_axis(1)
    assert sorted(map(tuple, axis.voxels[0])) == sorted(
        map(tuple, np.argwhere(np.arange(24).reshape(files.BOX) % 3 == 1))
    )


@pytest.mark.parametrize("series", [True, False])
def test_dense_images_read_back(tmp_path, series):
    source = open_source(files.dtseries(tmp_path / "run.dtseries.nii", 6))
    values = source.read().T
    if series:
        image = parcels.dense(source.grid, values, source.t_r)
    else:
        image = parcels.maps(source.grid, np.arange(source.grid.n_voxels), values.T)
    image.to_filename(tmp_path / "b.dscalar.nii")
    back = open_source(tmp_path / "b.dscalar.nii")
    assert back.grid.matches(source.grid)
    same_bits(back.read(), values.T)


@pytest.mark.parametrize(("shape", "kind"), [((5, 3), "series"), ((3, 2), "matrix"), ((5, 2), "dense")])
def test_other_shapes_are_refused(shape, kind):
    regions = Regions.from_labels(np.array([1, 2]), open_source(dense_image()).grid)
    with pytest.raises(errors.ParameterError, match=r"of shape|is none of"):
        regions.to_cifti(np.ones(shape), kind)


def dense_image():
    return nib.Cifti2Image(np.ones((1, 2), "f4"), (files.scalars(), files.surface(vertices=(0, 3))))


@pytest.mark.parametrize("by", [Regions, SharedCiftiLabelsMasker])
def test_a_matrix_is_no_series_unless_it_is_said_to_be_one(tmp_path, by):
    path = files.dtseries(tmp_path / "run.dtseries.nii", 3)
    if by is Regions:
        made = Regions.from_labels(ATLAS, open_source(path).grid)
    else:
        made = SharedCiftiLabelsMasker(ATLAS, standardize=None).fit(path)
    signals = extract(path, Regions.from_labels(ATLAS, open_source(path).grid), strategy="mean")
    diagonals = (np.where(np.eye(3), one, 0.5) for one in (1.0, np.inf, np.nan))
    for matrix in (np.corrcoef(signals.T), *diagonals):
        with pytest.raises(errors.ParameterError, match=r"\(3, 3\) are symmetric.* kind='matrix'"):
            made.to_cifti(matrix)
        assert isinstance(made.to_cifti(matrix, "series").header.get_axis(0), nib.cifti2.SeriesAxis)
        assert isinstance(made.to_cifti(matrix, "matrix").header.get_axis(0), nib.cifti2.ParcelsAxis)
    assert isinstance(made.to_cifti(signals).header.get_axis(0), nib.cifti2.SeriesAxis)
