"""Regions: order, reorientation, labels, the table, the digest, and what they cost."""

import doctest
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oblique import (
    OBLIQUE,
    SHAPE,
    image_of,
    orientations,
    random_mask,
    reoriented,
    rows_of,
    save,
    seeds,
    shapes,
)

from sharedmask import errors
from sharedmask.regions import regions
from sharedmask.regions.regions import Regions
from sharedmask.spaces.grid import Grid

# ---- order


@given(shapes, seeds)
def test_order_is_that_of_boolean_indexing(shape, seed):
    rng = np.random.default_rng(seed)
    data = np.asfortranarray(rng.normal(size=(*shape, 3)))
    masks = [random_mask(rng, shape) for _ in range(3)]
    made = Regions.from_any(masks, Grid(shape, np.eye(4)))
    for mask, indices in zip(masks, made, strict=True):
        assert indices.dtype == np.intp
        np.testing.assert_array_equal(rows_of(data)[indices], data[mask])
        np.testing.assert_array_equal(indices, np.ravel_multi_index(np.nonzero(mask), shape, order="F"))
    np.testing.assert_array_equal(made.union, np.flatnonzero(np.any(masks, axis=0).ravel(order="F")))
    assert made.sizes.tolist() == [mask.sum() for mask in masks]


@given(shapes, seeds, orientations)
def test_masks_on_flipped_or_permuted_axes_are_renumbered_exactly(shape, seed, ornt):
    rng = np.random.default_rng(seed)
    affine = OBLIQUE.copy()
    affine[:3, 3] = rng.normal(size=3) * 50
    bold = nib.Nifti1Image(rng.normal(size=(*shape, 2)), affine)
    mask_img = reoriented(nib.Nifti1Image(random_mask(rng, shape).astype(np.uint8), affine), ornt)
    expected = reoriented(bold, ornt).get_fdata()[mask_img.get_fdata() > 0]
    grid = Grid(shape, affine)
    for made in (Regions.from_any(mask_img, grid), Regions.from_any(mask_img).on(grid)):
        np.testing.assert_array_equal(rows_of(bold.get_fdata())[made[0]], expected)
        assert made.grid.matches(grid)
    there_and_back = made.on(Grid(mask_img.shape, mask_img.affine))
    np.testing.assert_array_equal(there_and_back[0], Regions.from_any(mask_img)[0])


def test_closest_canonical_image_and_mask_as_given(grid, mask):
    """An LAS image, an RAS mask: what users meet most."""
    bold = image_of(np.random.default_rng(1).normal(size=(*SHAPE, 2)))
    canonical = nib.as_closest_canonical(bold)
    canonical_mask = nib.as_closest_canonical(image_of(mask.astype(np.uint8)))
    assert not np.allclose(canonical.affine, bold.affine)
    made = Regions.from_any(canonical_mask, grid)
    expected = canonical.get_fdata()[canonical_mask.get_fdata() > 0]
    np.testing.assert_array_equal(rows_of(bold.get_fdata())[made[0]], expected)


def test_flips_survive_the_rounding_of_files(tmp_path):
    """float32 in the header, and an origin that lands next to 0."""
    affine = nib.affines.from_matvec(np.diag([1.1, 1.3, 0.7]), [-1.1 * 199, 0, 0]).astype(np.float32)
    data = np.zeros((200, 2, 2), np.uint8)
    data[0] = 1
    flipped = nib.affines.from_matvec(np.diag([-1.1, 1.3, 0.7]), [0, 0, 0])
    path = save(tmp_path / "m.nii", data[::-1], flipped)
    assert abs(affine.astype(float)[0] @ [199, 0, 0, 1]) > 1e-6
    made = Regions.from_any(path, Grid(data.shape, affine))
    np.testing.assert_array_equal(made.union, np.flatnonzero(data.ravel(order="F")))


@given(shapes, seeds, st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=8), orientations)
def test_labels_equal_one_mask_per_value(shape, seed, values, ornt):
    rng = np.random.default_rng(seed)
    data = rng.choice([*values, 0], size=shape).astype(rng.choice(["int32", "float64"]))
    if not data.any():
        return
    img = reoriented(nib.Nifti1Image(data, OBLIQUE), ornt)
    made = Regions.from_labels(img, Grid(shape, OBLIQUE))
    present = np.unique(data[data != 0])
    assert made.labels == tuple(present.astype(int).tolist())
    assert made.names == tuple(str(int(value)) for value in present)
    assert made.container == "dict"
    given_data = np.asanyarray(img.dataobj)
    for value, indices in zip(present, made, strict=True):
        mask = nib.Nifti1Image((given_data == value).astype(np.uint8), img.affine)
        np.testing.assert_array_equal(indices, Regions.from_any(mask, Grid(shape, OBLIQUE))[0])
    assert sum(made.sizes) == len(made.union) == np.count_nonzero(data)


def test_same_grid_returns_itself_and_close_grid_takes_the_image_s(grid, mask):
    made = Regions.from_any(mask, grid)
    assert made.on(grid) is made
    assert made.on(Grid(SHAPE, OBLIQUE)) is made
    close = Grid(SHAPE, OBLIQUE * (1 + 1e-7))
    assert made.on(close).grid is close
    assert Regions.from_any(made) is made
    assert Regions.from_any(made, close).grid is close


# ---- atlases


def test_labels_with_gaps_signs_and_float_storage(grid):
    data = np.zeros(SHAPE)
    data[0, 0], data[1, 1], data[2, 2], data[3, 3] = 12175, -4, 2.0**40, np.nan
    made = Regions.from_labels(data, grid)
    assert made.labels == (-4, 12175, 2**40)
    assert made.names == ("-4", "12175", "1099511627776")
    assert made.pack([1, 2, 3]) == {"-4": 1, "12175": 2, "1099511627776": 3}
    assert made.missing == ()


def test_unsigned_64_bit_labels(grid):
    data = np.zeros(SHAPE, np.uint64)
    data[1] = 2**64 - 1
    assert Regions.from_labels(data, grid).labels == (2**64 - 1,)
    assert len(Regions.from_labels(data, grid).digest) == 32


def test_background_label(grid):
    data = np.zeros(SHAPE, np.uint8)
    data[0] = 9
    assert Regions.from_labels(data, grid, background_label=9).labels == (0,)
    assert Regions.from_labels(data, grid, background_label=-1).labels == (0, 9)
    with pytest.raises(errors.EmptyMaskError, match="'labels' is empty"):
        Regions.from_labels(np.full(SHAPE, 3), grid, background_label=3)


def test_labels_subset(grid):
    data = np.arange(60).reshape(SHAPE) % 5
    everything = Regions.from_labels(data, grid)
    made = Regions.from_labels(data, grid, labels=[4, np.int16(2)], lut={4: "four", 3: "three", 9: "nine"})
    assert made.names == ("2", "four")
    assert made.missing == ()
    np.testing.assert_array_equal(made[1], everything[3])
    assert Regions.from_labels(data, grid, labels=[4, 9], lut={9: "nine"}).missing == ((9, "nine"),)
    with pytest.raises(errors.MaskError, match=r"label image 'labels' .* no label 11, 7"):
        Regions.from_labels(data, grid, labels=[7, 11, 1])
    with pytest.raises(errors.MaskError, match="no label Vis"):
        Regions.from_labels(data, grid, labels=["Vis"])
    with pytest.raises(errors.MaskError, match="no label 0"):
        Regions.from_labels(data, grid, labels=[0])
    with pytest.raises(errors.EmptyMaskError, match="none of the labels asked for"):
        Regions.from_labels(data, grid, labels=[9], lut={9: "nine"})


@pytest.mark.parametrize(
    "wrong", [{"labels": 3}, {"labels": "3"}, {"background_label": "0"}, {"background_label": [0]}], ids=str
)
def test_what_are_no_labels_is_refused(grid, wrong):
    (said,) = (f"{name}={value!r}" for name, value in wrong.items())
    with pytest.raises(errors.ParameterError, match=re.escape(said)):
        Regions.from_labels(np.arange(60).reshape(SHAPE) % 5, grid, **wrong)


@pytest.mark.filterwarnings("ignore:.*more than two values")
def test_what_an_array_masks_is_outside(grid):
    hidden = np.zeros(SHAPE, bool)
    hidden[1] = True
    data = np.ma.masked_array(np.arange(60).reshape(SHAPE) % 5, mask=hidden)
    plain = data.filled(0)
    same = [
        (Regions.from_any, data, plain),
        (Regions.from_any, {"roi": data}, {"roi": plain}),
        (Regions.from_labels, data, plain),
        (Regions.from_maps, np.ma.stack([data, data], -1), np.stack([plain, plain], -1)),
    ]
    for make, masked, filled in same:
        np.testing.assert_array_equal(make(masked, grid).indices, make(filled, grid).indices)


def test_from_labels_refusals(tmp_path, grid):
    half = np.zeros(SHAPE)
    half[1, 1, 1] = 2.5
    path = save(tmp_path / "prob.nii.gz", half)
    with pytest.raises(
        errors.MaskError, match=r"label image 'prob' \(.*prob.nii.gz\) holds 2.5: not an atlas"
    ):
        Regions.from_labels(path, grid)
    with pytest.raises(errors.MaskError, match="has 4 dimensions"):
        Regions.from_labels(np.ones((*SHAPE, 2)), grid)
    with pytest.raises(errors.EmptyMaskError, match="label image 'labels' is empty"):
        Regions.from_labels(np.zeros(SHAPE), grid)
    with pytest.raises(errors.MaskError, match="holds complex128"):
        Regions.from_labels(np.ones(SHAPE, complex), grid)
    with pytest.raises(errors.GridMismatchError, match="'labels' lies on another grid"):
        Regions.from_labels(image_of(np.ones(SHAPE), np.eye(4)), grid)


# ---- cost


def test_a_thousand_labels_on_2_mm():
    shape = (91, 109, 91)
    data = np.random.default_rng(4).integers(0, 1001, shape).astype(np.int32)
    made = Regions.from_labels(nib.Nifti1Image(data, np.eye(4)), Grid(shape, np.eye(4)))
    assert made.labels == tuple(range(1, 1001))
    np.testing.assert_array_equal(made.sizes, np.bincount(data.ravel())[1:])


def test_importing_costs_neither_nilearn_nor_pandas():
    code = "import sys, sharedmask.regions; print({'nilearn', 'pandas', 'scipy.ndimage'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_examples():
    assert doctest.testmod(regions).failed == 0


# ---- the real run


@pytest.mark.realdata
def test_real_atlas(real_data):
    run = nib.load(real_data / "sub-RAPIDTIDETEST.nii.gz")
    path = real_data / "sub-RAPIDTIDETEST_atlas-Schaefer1000_dseg.nii.gz"
    made = Regions.from_labels(
        path, Grid(run.shape[:3], run.affine), lut={i: f"parcel {i}" for i in range(1, 1001)}
    )
    assert len(made) == 994
    assert len(made.missing) == 6
    table = made.table(Regions.from_any(real_data / "sub-RAPIDTIDETEST_brainmask.nii.gz", made.grid).union)
    assert [row.index for row in table] == list(range(1, 1001))
    assert sum(row.column is None for row in table) == 6
    data = np.asanyarray(nib.load(path).dataobj)
    for label in (made.labels[0], made.labels[500], made.labels[-1]):
        expected = np.ravel_multi_index(np.nonzero(data == label), data.shape, order="F")
        np.testing.assert_array_equal(made[made.labels.index(label)], expected)
