"""Spheres: nilearn's voxels and numbers, with a radius for each seed."""

import nibabel as nib
import numpy as np
import pytest
from images import bold, niimg, save
from nilearn.maskers import NiftiSpheresMasker

from sharedmask import Grid, SharedImage, SharedSpheresMasker
from sharedmask.errors import EmptyMaskError, MaskError, ParameterError
from sharedmask.regions.spheres import spheres

SEEDS = [(4.0, 4.0, 4.0), (8.0, 6.0, 2.0), (10.0, 8.0, 8.0)]
DATA = np.random.default_rng(1).normal(100, 5, (7, 6, 5, 30)).astype("f4")
IMAGE_AFFINE = np.diag([2.0, 2, 2, 1])
MASK = nib.Nifti1Image(np.ones(DATA.shape[:3], "u1"), IMAGE_AFFINE)


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "run.nii.gz", DATA, affine=IMAGE_AFFINE)


@pytest.mark.some(12)
@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    "steps",
    [
        {},
        {"smoothing_fwhm": 3.0},
        {"detrend": True, "standardize": "zscore_sample"},
        {"low_pass": 0.1, "t_r": 2.0},
    ],
)
@pytest.mark.parametrize("held", [False, True])
def test_the_numbers_are_nilearns(path, mask, overlap, steps, held):
    radius = 5.0 if overlap else 2.0
    given_parameters = {"standardize": None} | steps
    options = {"mask_img": mask, "allow_overlap": overlap} | given_parameters
    expected = NiftiSpheresMasker(SEEDS, radius, **options).fit_transform(str(path))
    masker = SharedSpheresMasker(SEEDS, radius, **options)
    if held:
        with SharedImage(path) as image:
            got = masker.fit_transform(image)
    else:
        got = masker.fit_transform(path)
    assert got.shape == expected.shape
    # nilearn adds float32 to float32; what is left after cleaning is small beside what went in
    tolerance = 1e-4 if steps else 1e-6
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def test_a_radius_for_each_seed(path):
    each = SharedSpheresMasker(SEEDS, [1.0, 2.0, 3.0], MASK, standardize=None)
    signals = each.fit_transform(path)
    for column, radius in enumerate([1.0, 2.0, 3.0]):
        alone = SharedSpheresMasker(SEEDS[column : column + 1], radius, standardize=None).fit_transform(path)
        np.testing.assert_array_equal(signals[:, [column]], alone)
    back = each.inverse_transform(signals)
    for voxels, signal in zip(
        spheres(SEEDS, [1.0, 2.0, 3.0], Grid(MASK.shape, IMAGE_AFFINE)), signals.T, strict=True
    ):
        rows = np.asarray(back.dataobj).reshape(-1, len(signal), order="F")[voxels]
        np.testing.assert_allclose(rows, np.broadcast_to(signal, rows.shape), rtol=1e-6)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("row", [np.s_[:], np.s_[0]])
def test_the_way_back_is_nilearns(path, overlap, row):
    options = {
        "radius": 5.0 if overlap else 2.0,
        "mask_img": MASK,
        "allow_overlap": overlap,
        "standardize": None,
    }
    theirs, ours = NiftiSpheresMasker(SEEDS, **options), SharedSpheresMasker(SEEDS, **options)
    signals = theirs.fit_transform(str(path))[row]
    expected, got = theirs.inverse_transform(signals), ours.fit(path).inverse_transform(signals)
    assert got.shape == expected.shape
    assert got.get_data_dtype() == expected.get_data_dtype()
    np.testing.assert_allclose(got.get_fdata(), expected.get_fdata(), rtol=1e-6, atol=1e-9)


def test_means_of_integers_keep_their_fractions(tmp_path):
    data = bold()
    path = save(tmp_path / "run.nii", data, affine=IMAGE_AFFINE)
    got = SharedSpheresMasker(SEEDS, 2.0, standardize=None).fit_transform(path)
    voxels = spheres(SEEDS, 2.0, Grid(data.shape[:3], IMAGE_AFFINE))
    rows = data.reshape(-1, data.shape[3], order="F").astype(float)
    np.testing.assert_allclose(got, np.transpose([rows[own].mean(axis=0) for own in voxels]), rtol=1e-6)


@pytest.mark.parametrize(
    ("seeds", "radius", "kind", "said"),
    [
        ([(500.0, 0, 0)], 2.0, EmptyMaskError, "These spheres are empty"),
        ([(4.0, 4, 4), (4.0, 4, 5)], 3.0, MaskError, "Overlap detected"),
        (SEEDS, [1.0], ParameterError, "1 radii for 3 seeds"),
        ([(1.0, 2.0)], 1.0, ValueError, "length 2 instead of 3"),
    ],
)
def test_impossible_spheres_are_refused(path, seeds, radius, kind, said):
    with pytest.raises(kind, match=said):
        SharedSpheresMasker(seeds, radius, standardize=None).fit_transform(path)


@pytest.mark.long
def test_the_report_draws_spheres_of_several_sizes(path):
    masker = SharedSpheresMasker(SEEDS, [1.0, 2.0, 3.0], standardize=None).fit(niimg(DATA, IMAGE_AFFINE))
    assert "spheres" in str(masker.generate_report(displayed_spheres=3).body)
