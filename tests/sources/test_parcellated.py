"""Parcellated files as images: parcels by their names, in either order of the axes, in every call."""

import os
from dataclasses import replace
from pathlib import Path

import cifti_files as files
import nibabel as nib
import numpy as np
import pytest
from command import called
from images import same_bits

from sharedmask import Regions, SharedCiftiMasker, SharedImage, errors, extract
from sharedmask.regions.parcels import dense
from sharedmask.sources.opening import open_source

REAL = Path(os.environ.get("SHAREDMASK_TEST_DATA", "")) / "sub-RAPIDTIDETEST_cifti.ptseries.nii"


@pytest.mark.shares
@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("dtype", ["f4", ">i2"])
def test_parcels_are_the_elements(tmp_path, by_row, dtype):
    path = files.ptseries(tmp_path / "a.ptseries.nii", 9, dtype, by_row=by_row)
    true = files.truth(path)
    with SharedImage(path) as image:
        assert (image.shape, image.t_r, image.space.names) == ((3, 9), 0.8, ("V1", "A1", "A1"))
        np.testing.assert_array_equal(image.mask("V1"), true[:, :1])
        np.testing.assert_array_equal(image.mask("A1"), true[:, 1:])
        with SharedImage.attach(image.handle) as other:
            assert other.space.matches(image.space)
    np.testing.assert_array_equal(extract(path, [np.array([0, 1, 0])])[0][:, 0], true[:, 1])
    labels = extract(path, Regions.from_labels(np.array([2, 1, 2]), open_source(path).grid), strategy="mean")
    np.testing.assert_allclose(labels, np.stack([true[:, 1], true[:, ::2].mean(1)], axis=1), rtol=1e-6)


@pytest.mark.parametrize("by_row", [True, False])
def test_what_is_written_of_parcels_is_read_again(tmp_path, by_row):
    path = files.ptseries(tmp_path / "a.ptseries.nii", by_row=by_row)
    source = open_source(path)
    regions = Regions.from_labels(path, source.grid)
    assert regions.names == ("V1", "A1", "A1_2")
    signals = extract(path, regions, strategy="mean")
    np.testing.assert_allclose(signals, files.truth(path), rtol=1e-6)
    masker = SharedCiftiMasker("A1", standardize=None).fit(path)
    for image in (
        replace(regions, names=source.grid.names).to_cifti(signals, t_r=0.8),
        dense(source.grid, signals, 0.8),
        masker.inverse_transform(masker.transform(path)),
    ):
        image.to_filename(tmp_path / "b.ptseries.nii")
        back = open_source(tmp_path / "b.ptseries.nii")
        assert source.grid.numbers_of(back.grid, np.arange(3)).tolist() == [0, 1, 2]


def test_a_parcellated_series_is_an_atlas_of_elements(tmp_path):
    atlas = files.ptseries(tmp_path / "a.ptseries.nii")
    path = files.dtseries(tmp_path / "run.dtseries.nii", places=files.whole() + files.voxels())
    found = Regions.from_labels(atlas, open_source(path).grid)
    assert [part.tolist() for part in found] == [[0, 1, 13, 14], [3, 4, 7], [24, 25, 26, 27]]
    other = files.dtseries(tmp_path / "other.dtseries.nii", places=files.surface())
    with pytest.raises(errors.GridMismatchError, match=r"other\.dtseries\.nii"):
        Regions.from_labels(atlas, open_source(other).grid)


def test_what_lies_elsewhere_is_refused_with_both_named(tmp_path):
    path = files.ptseries(tmp_path / "a.ptseries.nii")
    labels = tmp_path / "b.dlabel.nii"
    files.save(labels, np.ones((1, 15), "f4"), files.labels(), files.models())
    with pytest.raises(errors.GridMismatchError, match=r"3 parcels \(V1, A1, A1\)") as caught:
        extract(path, Regions.from_labels(labels), strategy="mean")
    assert "15 elements" in str(caught.value) and "dense series" in str(caught.value)
    with pytest.raises(errors.MissingFileError, match=r"no parcel: there are V1, A1, A1"):
        extract(path, "V2")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"0 1<", b"0 12<", "places that CIFTI_STRUCTURE_CORTEX_LEFT has not"),
        (b"<Vertices BrainStructure", b"<Vertices BrainStrukture", "BrainStructure"),
        (b'Name="V1"', b'Nane="V1"', "Name"),
        (b"<Parcel ", b"<Parcer ", "axes"),
        (b'VolumeDimensions="4,3,2"', b'VolumeDimensions="4,3,1"', "places that CIFTI_STRUCTURE_OTHER"),
        (b"CIFTI_INDEX_TYPE_SERIES", b"CIFTI_INDEX_TYPE_STORIES", "unknown"),
    ],
)  # fmt: skip
def test_parcels_that_do_not_fit_are_refused(tmp_path, old, new, said):
    path = files.ptseries(tmp_path / "a.ptseries.nii")
    whole = path.read_bytes()
    assert old in whole
    path.write_bytes(whole.replace(old, new, 1))
    with pytest.raises(errors.ImageError, match=rf"a\.ptseries\.nii.*{said}"):
        open_source(path)


def test_info_names_parcels(tmp_path):
    said = called("info", files.ptseries(tmp_path / "a.ptseries.nii")).stdout
    assert "3 parcels (V1, A1, A1) of 11 elements" in said and "0.8 s: its header" in said


@pytest.mark.skipif(not REAL.is_file(), reason="there is none in SHAREDMASK_TEST_DATA")
def test_a_real_file():
    image, source = nib.load(REAL), open_source(REAL)
    axis = image.header.get_axis(1)
    assert source.grid.names == tuple(axis.name)
    assert source.t_r == image.header.get_axis(0).step
    same_bits(source.read().T.copy(), np.asarray(image.dataobj))
    regions = Regions.from_labels(REAL, source.grid)
    assert regions.to_cifti(source.read().T).header.get_axis(1) == axis
