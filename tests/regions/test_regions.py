"""Grid and Regions: order, reorientation, containers, names, the table, and every refusal."""

import contextlib
import doctest
import gzip
import os
import pickle
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff

from sharedmask import errors
from sharedmask.regions import masks as regions
from sharedmask.regions import regions as regions_regions
from sharedmask.regions.regions import RegionRow, Regions
from sharedmask.sources.grid import Grid

SHAPE = (4, 5, 3)
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.1, -0.2, 0.3) @ np.diag([-2.0, 2.5, 3.1]), [31.7, -64.2, -11.9]
)
NIBABEL_DATA = Path(nib.__file__).parent / "tests" / "data"

shapes = st.tuples(*[st.integers(1, 6)] * 3)
seeds = st.integers(0, 2**32 - 1)
orientations = st.tuples(st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([1, -1])] * 3)).map(
    lambda both: np.column_stack(both)
)


@pytest.fixture
def grid():
    return Grid(SHAPE, OBLIQUE)


@pytest.fixture
def mask():
    return np.random.default_rng(0).random(SHAPE) < 0.4


def rows_of(data):
    """The image as rows: one per voxel, x fastest."""
    return data.reshape(-1, data.shape[3], order="F")


def random_mask(rng, shape):
    """Never empty; C or Fortran order."""
    mask = np.asarray(rng.random(shape) < 0.5, order=rng.choice(["C", "F"]))
    mask[tuple(rng.integers(0, shape))] = True
    return mask


def image_of(data, affine=OBLIQUE):
    return nib.Nifti1Image(np.asarray(data), affine)


def save(path, data, affine=OBLIQUE):
    data = np.asarray(data)
    nib.save(nib.Nifti1Image(data.astype(np.uint8) if data.dtype == bool else data, affine), path)
    return path


def reoriented(img, ornt):
    """The same voxels in the same place, stored along other axes."""
    data = apply_orientation(np.asanyarray(img.dataobj), ornt)
    return nib.Nifti1Image(data, img.affine @ inv_ornt_aff(ornt, img.shape[:3]))


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


# ---- grids


def test_grid_matches_as_numpy_does(grid):
    shifted = OBLIQUE.copy()
    shifted[0, 3] += 1e-3
    assert grid.matches(Grid(SHAPE, OBLIQUE + 1e-9))
    assert not grid.matches(Grid(SHAPE, shifted))
    assert not grid.matches(Grid((4, 5, 2), OBLIQUE))
    assert grid.n_voxels == 60
    assert not grid.affine.flags.writeable


def test_grid_does_not_follow_the_caller_s_array():
    affine = np.eye(4)
    grid = Grid((1, 1, 1), affine)
    affine[0, 0] = 7
    assert grid.affine[0, 0] == 1
    assert affine.flags.writeable


def test_grid_says_where_it_is():
    text = str(Grid((50, 59, 50), nib.affines.from_matvec(np.diag([-3, 3, 4.5]), [72, -106.25, -64])))
    assert text == (
        "50 x 59 x 50 voxels of 3 x 3 x 4.5 mm, axes LAS, affine [-3 0 0 72] [0 3 0 -106.25] [0 0 4.5 -64]"
    )
    assert "axes ???" in str(Grid((1, 1, 1), np.full((4, 4), np.nan)))


@pytest.mark.parametrize(("shape", "affine"), [((2, 3), np.eye(4)), ((2, 3, 4), np.eye(3))])
def test_grid_refuses_other_sizes(shape, affine):
    with pytest.raises(errors.ParameterError, match="is 3 sizes and"):
        Grid(shape, affine)


HALF_VOXEL = nib.affines.from_matvec(np.eye(3), [0.5, 0, 0])
TURNED = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2), [0, 0, 0])
FLIPPED_AND_SHIFTED = nib.affines.from_matvec(np.diag([-1.0, 1, 1]), [SHAPE[0] - 0.5, 0, 0])
FLIPPED_AND_ZOOMED = nib.affines.from_matvec(np.diag([-1.0, 1.001, 1]), [SHAPE[0] - 1.0, 0, 0])
HAIR = nib.affines.from_matvec(np.eye(3), [2.6e-4, 0, 0])
FLIPPED_IN_PLACE = nib.affines.from_matvec(np.diag([-1.0, 1, 1]), [0, 0, 0])


@pytest.mark.parametrize(
    "move",
    [
        HALF_VOXEL,
        HAIR,
        TURNED,
        FLIPPED_AND_SHIFTED,
        FLIPPED_AND_ZOOMED,
        FLIPPED_IN_PLACE,
        np.diag([2, 1, 1, 1]),
    ],
    ids=[
        "half voxel",
        "hair",
        "turned",
        "flipped, shifted",
        "flipped, zoomed",
        "flipped elsewhere",
        "zoomed",
    ],
)
def test_other_grids_are_refused_with_both_printed(grid, mask, move):
    own = Grid(SHAPE, OBLIQUE @ move)
    made = Regions.from_any({"insula": mask}, own)
    attempts = [
        lambda: made.on(grid),
        lambda: Regions.from_any(made, grid),
        lambda: Regions.from_any({"insula": image_of(mask.astype(np.uint8), own.affine)}, grid),
        lambda: Regions.from_any(mask, grid).on(own),
    ]
    for attempt in attempts:
        with pytest.raises(errors.GridMismatchError) as caught:
            attempt()
        assert str(own) in str(caught.value)
        assert str(grid) in str(caught.value)
        assert 'resampling_target="data"' in str(caught.value)
    with pytest.raises(errors.GridMismatchError, match="insula"):
        made.on(grid)


def test_flipped_with_another_shape_is_refused(mask):
    img = reoriented(image_of(mask.astype(np.uint8)), np.array([[0, -1], [1, 1], [2, 1]]))
    with pytest.raises(
        errors.GridMismatchError, match=r"region 'mask_000' .and 1 more. lies on another grid"
    ):
        Regions.from_any([img, img]).on(Grid((4, 5, 2), OBLIQUE))


def test_equal_singular_affines_are_one_grid(mask):
    nowhere = Grid(SHAPE, np.zeros((4, 4)))
    made = Regions.from_any(mask, nowhere)
    with pytest.raises(errors.GridMismatchError, match="lies on another grid"):
        made.on(Grid(SHAPE, OBLIQUE))
    with pytest.raises(errors.GridMismatchError, match="lies on another grid"):
        Regions.from_any(mask, Grid(SHAPE, OBLIQUE)).on(nowhere)
    assert made.on(Grid(SHAPE, np.zeros((4, 4)))) is made


# ---- resampling


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", "float32", "float64"])
def test_resampling_is_nilearn_s_nearest(tmp_path, dtype):
    from nilearn.image import resample_to_img

    rng = np.random.default_rng(2)
    data = rng.integers(0, 6, (8, 9, 7)).astype(dtype)
    affine = nib.affines.from_matvec(np.diag([2, 2, 2]), [-8, -9, -7])
    target = Grid((10, 11, 6), nib.affines.from_matvec(np.diag([-1.5, 1.7, 2.1]), [7.1, -8.3, -6.2]))
    nib.save(nib.Nifti1Image(data, affine, dtype=dtype), tmp_path / "atlas.nii.gz")
    reference = resample_to_img(
        nib.Nifti1Image(data.astype(np.int32), affine),
        nib.Nifti1Image(np.zeros(target.shape, np.uint8), target.affine),
        interpolation="nearest", force_resample=True, copy_header=True,
    ).get_fdata()  # fmt: skip
    atlas = Regions.from_labels(tmp_path / "atlas.nii.gz", target, resampling_target="data")
    assert atlas.labels == (1, 2, 3, 4, 5)
    for label, indices in zip(atlas.labels, atlas, strict=True):
        np.testing.assert_array_equal(
            indices, np.ravel_multi_index(np.nonzero(reference == label), target.shape, order="F")
        )
    mask = Regions.from_any(image_of((data > 2).astype(np.uint8), affine), target, resampling_target="data")
    expected = np.ravel_multi_index(np.nonzero(reference > 2), target.shape, order="F")
    np.testing.assert_array_equal(mask[0], expected)
    assert mask.grid is target


def test_resampling_takes_nan_and_bool_and_leaves_flips_exact(grid, mask):
    data = np.where(mask, 1.0, np.nan)
    zoomed = Grid(tuple(2 * n for n in SHAPE), OBLIQUE @ np.diag([0.5, 0.5, 0.5, 1]))
    made = Regions.from_any(image_of(data), zoomed, resampling_target="data")
    assert 0 < made.sizes[0] < zoomed.n_voxels
    flipped = reoriented(image_of(mask.astype(np.uint8)), np.array([[0, -1], [2, 1], [1, -1]]))
    exact = Regions.from_any(flipped, grid)
    np.testing.assert_array_equal(
        Regions.from_any(flipped, grid, resampling_target="data").indices, exact.indices
    )


def test_labels_lost_in_resampling_are_missing():
    data = np.zeros((8, 8, 8), np.int16)
    data[:4], data[4:], data[1, 1, 1] = 1, 3, 2
    coarse = Grid((2, 2, 2), np.diag([4, 4, 4, 1]))
    made = Regions.from_labels(image_of(data, np.eye(4)), coarse, lut={2: "dot"}, resampling_target="data")
    assert made.labels == (1, 3)
    assert made.missing == ((2, "dot"),)
    assert made.table() == [
        RegionRow(1, "1", 4, 4, 1.0, 0),
        RegionRow(2, "dot", 0, 0, 0.0, None),
        RegionRow(3, "3", 4, 4, 1.0, 1),
    ]


def test_resampling_refusals(grid, mask):
    far = nib.affines.from_matvec(np.eye(3), [1e4, 0, 0])
    with pytest.raises(errors.GridMismatchError, match=r"'mask_000' cannot be resampled .*view"):
        Regions.from_any(image_of(mask.astype(np.uint8), far), grid, resampling_target="data")
    corner = np.zeros(SHAPE, np.uint8)
    corner[0, 0, 0] = 1
    shifted = OBLIQUE @ nib.affines.from_matvec(np.eye(3), [-2.3, 0, 0])
    with pytest.raises(errors.EmptyMaskError, match="'mask_000' is empty once resampled to the image"):
        Regions.from_any(image_of(corner, shifted), grid, resampling_target="data")
    for make in (Regions.from_any, Regions.from_labels):
        with pytest.raises(errors.ParameterError, match='"data", "mask" or None, not \'atlas\''):
            make(mask, grid, resampling_target="atlas")


# ---- what is given, what comes back


def test_containers_and_names(tmp_path, grid, mask):
    path = save(tmp_path / "left.nii.gz", mask)
    results = ["a", "b"]
    single = Regions.from_any(path, grid)
    assert (single.names, single.labels, single.container) == (("left",), (1,), "single")
    assert single.pack(["a"]) == "a"
    listed = Regions.from_any([str(path), mask], grid)
    assert (listed.names, listed.labels, listed.container) == (("left", "mask_001"), (1, 2), "list")
    assert listed.pack(results) == results
    named = Regions.from_any({"x": mask, ("tuple", 1): image_of(mask.astype(np.uint8))}, grid)
    assert (named.names, named.container) == (("x", "('tuple', 1)"), "dict")
    assert named.pack(results) == {"x": "a", ("tuple", 1): "b"}
    assert Regions.from_any((mask, mask), grid).names == ("mask_000", "mask_001")
    assert Regions.from_any(mask, grid).names == ("mask_000",)
    assert Regions.from_any(nib.load(path)).names == ("left",)
    assert Regions.from_any({1: mask, "1": mask}, grid).pack(results) == {1: "a", "1": "b"}
    for made in (listed, named):
        np.testing.assert_array_equal(made[0], made[1])
        np.testing.assert_array_equal(made[-1], single[0])
        with pytest.raises(IndexError):
            made[2]


def test_pack_counts():
    made = Regions.from_any(np.ones((1, 1, 1)), Grid((1, 1, 1), np.eye(4)))
    with pytest.raises(errors.ParameterError, match="2 results for 1 regions"):
        made.pack([1, 2])


def test_glob_is_sorted_and_names_are_unique(tmp_path, monkeypatch, mask):
    for folder in ("b", "a", "c"):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "roi.nii.gz", mask)
    save(tmp_path / "b" / "roi_2.nii", mask)
    made = Regions.from_any(str(tmp_path / "*" / "roi*.nii*"))
    assert made.names == ("roi", "roi_3", "roi_2", "roi_4")
    assert made.container == "dict"
    assert made.pack([1, 2, 3, 4]) == {"roi": 1, "roi_3": 2, "roi_2": 3, "roi_4": 4}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Regions.from_any("~/a/roi.nii.gz").names == ("roi",)
    assert Regions.from_any(Path("~/a/roi.nii.gz")).names == ("roi",)
    assert Regions.from_any("~/**/roi_2*").names == ("roi_2",)
    (tmp_path / "a" / "deep").mkdir()
    save(tmp_path / "a" / "deep" / "roi.nii.gz", mask)
    assert len(Regions.from_any(str(tmp_path / "**" / "roi.nii.gz"))) == 4
    odd = save(tmp_path / "a" / "roi[1].nii", mask)
    assert Regions.from_any(str(odd)).container == "single"


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.nii", "a"),
        ("a.b.nii.gz", "a.b"),
        ("p.img", "p"),
        ("p.hdr", "p"),
        ("A.NII.GZ", "A"),
        ("f.mgz", "f"),
    ],
)
def test_stems(name, stem):
    assert regions.file_stem(f"/some/where/{name}") == stem


def test_stacks(tmp_path, grid, mask):
    stack = np.stack([mask, ~mask, np.ones(SHAPE, bool)], axis=-1)
    path = save(tmp_path / "networks.nii.gz", stack)
    for masks, stem in [(path, "networks"), (stack, "mask"), (image_of(stack.astype(np.uint8)), "mask")]:
        made = Regions.from_any(masks, grid)
        assert made.names == tuple(f"{stem}_{i:03d}" for i in range(3))
        assert made.container == "list"
        for i in range(3):
            np.testing.assert_array_equal(made[i], Regions.from_any(stack[..., i], grid)[0])
    for one in (mask[..., None], mask[..., None, None], image_of(mask[..., None].astype(np.uint8))):
        made = Regions.from_any(one, grid)
        assert made.container == "single"
        np.testing.assert_array_equal(made[0], Regions.from_any(mask, grid)[0])


def test_grid_of_the_first_mask_is_taken(mask):
    first = image_of(mask.astype(np.uint8))
    second = reoriented(first, np.array([[1, 1], [0, -1], [2, 1]]))
    made = Regions.from_any([first, second, mask])
    assert made.grid.matches(Grid(SHAPE, OBLIQUE))
    np.testing.assert_array_equal(np.sort(made[1]), np.sort(made[0]))
    np.testing.assert_array_equal(made[2], made[0])


@pytest.mark.parametrize(
    ("values", "inside"),
    [
        ([0, 0.3, 0, 0.3], [1, 3]),
        ([0, -1, 0, 0], [1]),
        ([np.nan, 1, np.inf, -np.inf], [1]),
        ([2, 2, 2, 2], [0, 1, 2, 3]),
        ([1, 2, 1, 2], [0, 1, 2, 3]),
        ([0, 0.2, 0.5, 0.9], [1, 2, 3]),
        ([-0.0, 1, 0, 5e-324], [1, 3]),
        ([0, np.nan, 1, np.inf], [2]),
    ],
)
def test_nonzero_and_finite_is_inside(values, inside):
    made = Regions.from_any(np.reshape(values, (4, 1, 1)), Grid((4, 1, 1), np.eye(4)))
    assert made[0].tolist() == inside


@pytest.mark.parametrize("values", [[0, 1, 2, 0], [1, 2, 3, 3], [0.0, 1, 1, 3], [0, -1, 1, 0]])
def test_more_than_two_values_warn(values):
    with pytest.warns(
        errors.SharedMaskWarning, match=r"'mask_000' holds more than two.*from_labels"
    ) as caught:
        made = Regions.from_any(np.reshape(values, (4, 1, 1)), Grid((4, 1, 1), np.eye(4)))
    assert made[0].tolist() == np.flatnonzero(values).tolist()
    assert caught[0].filename == __file__


def test_scaling_comes_before_nonzero(tmp_path):
    """Stored 255 and 0 with slope 1/255; and stored 7 that the intercept makes 0."""
    for slope, inter, stored, inside in [(1 / 255, 0, [0, 255], [1]), (1, -7, [7, 8], [1])]:
        img = nib.Nifti1Image(np.zeros((2, 1, 1), np.uint8), np.eye(4))
        img.header.set_slope_inter(slope, inter)
        with (tmp_path / "m.nii").open("wb") as file:
            header = img.header.copy()
            header["vox_offset"] = 352
            header["magic"] = b"n+1"
            header["scl_slope"], header["scl_inter"] = slope, inter
            file.write(header.binaryblock + bytes(4) + bytes(stored))
        assert Regions.from_any(tmp_path / "m.nii")[0].tolist() == inside


def test_callers_objects_stay_as_they_are(tmp_path, mask):
    img = nib.load(save(tmp_path / "m.nii.gz", mask))
    array = mask.astype(float)
    array[0, 0, 0] = np.nan
    before = array.copy()
    Regions.from_any([img, array])
    Regions.from_labels(img)
    assert not img.in_memory
    np.testing.assert_array_equal(array, before)
    made = Regions.from_any(img)
    for held in (made.indices, made.offsets, made.union):
        assert not held.flags.writeable


def test_big_endian_files(tmp_path, mask):
    img = nib.Nifti1Image(mask.astype(">i2"), OBLIQUE, nib.Nifti1Header(endianness=">"))
    nib.save(img, tmp_path / "be.nii")
    np.testing.assert_array_equal(
        Regions.from_any(tmp_path / "be.nii").indices, Regions.from_any(mask, Grid(SHAPE, OBLIQUE)).indices
    )
    assert Regions.from_labels(tmp_path / "be.nii").labels == (1,)


@pytest.mark.parametrize(
    "name", ["anatomical.nii", "functional.nii", "example_nifti2.nii.gz", "standard.nii.gz", "test.mgz"]
)
def test_nibabel_s_files(name):
    path = NIBABEL_DATA / name
    if not path.exists():
        pytest.skip(f"nibabel was installed without {name}")
    img = nib.load(path)
    data = np.asanyarray(img.dataobj)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.SharedMaskWarning)
        made = Regions.from_any(path)
    volumes = [data] if data.ndim == 3 else np.moveaxis(data, 3, 0)
    assert len(made) == len(volumes)
    assert made.grid.matches(Grid(img.shape[:3], img.affine))
    for indices, volume in zip(made, volumes, strict=True):
        np.testing.assert_array_equal(
            indices, np.ravel_multi_index(np.nonzero(volume), volume.shape, order="F")
        )


def test_header_without_its_image():
    with pytest.raises(errors.MissingFileError, match=r"mask 'analyze' .*analyze\.img"):
        Regions.from_any(NIBABEL_DATA / "analyze.hdr")


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


class Frame:
    """What of a DataFrame is used."""

    def __init__(self, **columns):
        self.columns = list(columns)
        self._columns = columns

    def __getitem__(self, name):
        return np.asarray(self._columns[name])


def test_look_up_tables(tmp_path, grid):
    data = np.arange(60).reshape(SHAPE) % 4
    tsv = "index\tname\tcolor\n0\tbackground\t#000\n1\tInsula, left\t#111\n3\tPutamen\t#222\n7\tLost\t#333\n"
    (tmp_path / "dseg.tsv").write_text(tsv)
    (tmp_path / "bom.csv").write_text(
        'name,index\nbackground,0\n"Insula, left",1.0\nPutamen,3\nLost,7\n\n', encoding="utf-8-sig"
    )
    import pandas as pd

    tables = [
        tmp_path / "dseg.tsv",
        str(tmp_path / "bom.csv"),
        pd.DataFrame({"index": [0, 1, 3, 7], "name": ["background", "Insula, left", "Putamen", "Lost"]}),
        Frame(index=[0.0, 1.0, 3.0, 7.0], name=["background", "Insula, left", "Putamen", "Lost"]),
        {np.int16(0): "background", 1: "Insula, left", 3: "Putamen", "7": "Lost"},
    ]
    for lut in tables:
        made = Regions.from_labels(data, grid, lut=lut)
        assert made.names == ("Insula, left", "2", "Putamen")
        assert made.keys == made.names
        assert made.missing == ((7, "Lost"),)
        assert made.table()[-1] == RegionRow(7, "Lost", 0, 0, 0.0, None)
        assert all(type(label) is int for label in made.labels)


def test_equal_names_in_a_table_lose_no_region(grid):
    data = np.arange(60).reshape(SHAPE) % 4
    made = Regions.from_labels(data, grid, lut={1: "unknown", 2: "unknown", 3: "x"})
    assert made.pack([1, 2, 3]) == {"unknown": 1, "unknown_2": 2, "x": 3}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("index\tlabel\n1\ta\n", r"no column name, only \['index', 'label'\]"),
        ("value\tlabel\n1\ta\n", "no column index nor name"),
        ("", "no column index nor name"),
        ("index\tname\n1\ta\n1\tb\n", "has the index 1 twice: 'a' and 'b'"),
        ("index\tname\n1.5\ta\n", "index '1.5' is not an integer"),
        ("index\tname\nn/a\ta\n", "index 'n/a' is not an integer"),
        ("index\tname\ninf\ta\n", "index 'inf' is not an integer"),
        ("name\tindex\nalone\n", "index None is not an integer"),
        ('index\tname\n1\t"a"b\n', "cannot be read"),
    ],
)
def test_look_up_tables_refused(tmp_path, grid, text, problem):
    lut = tmp_path / "lut.tsv"
    lut.write_text(text)
    with pytest.raises(errors.MaskError, match=problem) as caught:
        Regions.from_labels(np.ones(SHAPE), grid, lut=lut)
    assert str(lut) in str(caught.value)


def test_look_up_tables_missing_or_of_another_kind(tmp_path, grid):
    with pytest.raises(errors.MissingFileError, match=r"gone\.tsv does not exist"):
        Regions.from_labels(np.ones(SHAPE), grid, lut=tmp_path / "gone.tsv")
    (tmp_path / "binary.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(errors.MaskError, match=r"binary\.tsv cannot be read"):
        Regions.from_labels(np.ones(SHAPE), grid, lut=tmp_path / "binary.tsv")
    with pytest.raises(errors.MaskError, match="not a path, a DataFrame or a mapping but a list"):
        Regions.from_labels(np.ones(SHAPE), grid, lut=["a"])


# ---- the table


@given(shapes, seeds)
def test_table_counts_the_stored_voxels(shape, seed):
    rng = np.random.default_rng(seed)
    masks = {name: random_mask(rng, shape) for name in "abc"}
    brain = random_mask(rng, shape)
    stored = np.flatnonzero(brain.ravel(order="F"))
    rows = Regions.from_any(masks, Grid(shape, np.eye(4))).table(stored)
    for i, (row, (name, mask)) in enumerate(zip(rows, masks.items(), strict=True)):
        n, held = int(mask.sum()), int((mask & brain).sum())
        assert row == RegionRow(i + 1, name, n, held, held / n, i)


def test_table_without_stored_and_with_an_empty_region(grid):
    made = Regions(grid, np.array([3, 1]), np.array([0, 0, 2]), ("none", "two"), (5, 6), "list")
    assert made.table() == [RegionRow(5, "none", 0, 0, 0.0, 0), RegionRow(6, "two", 2, 2, 1.0, 1)]
    assert made.table(np.array([], dtype=np.intp))[1].coverage == 0.0
    assert made[0].size == 0
    assert made.sizes.tolist() == [0, 2]
    assert made.keys == ("none", "two")


# ---- the digest


def test_digest_tells_regions_apart(grid, mask):
    made = Regions.from_any({"a": mask, "b": ~mask}, grid)
    assert made.digest == Regions.from_any({"a": mask.astype(float), "b": ~mask}, grid).digest
    assert pickle.loads(pickle.dumps(made)).digest == made.digest
    int(made.digest, 16)
    moved = OBLIQUE.copy()
    moved[0, 3] += 1
    others = [
        Regions.from_any({"a": mask, "c": ~mask}, grid),
        Regions.from_any({"a": ~mask, "b": mask}, grid),
        Regions.from_any({"a": mask, "b": ~mask}, Grid(SHAPE, moved)),
        Regions.from_any({"a": mask}, grid),
        Regions(grid, made.indices, made.offsets, made.names, (1, 3), "dict"),
        Regions(grid, made.indices, made.offsets - [0, 1, 0], made.names, made.labels, "dict"),
    ]
    assert len({made.digest, *(other.digest for other in others)}) == 7


def test_digest_ignores_the_sign_of_zero(mask):
    signed = np.eye(4)
    signed[0, 1] = -0.0
    digests = {Regions.from_any(mask, Grid(SHAPE, affine)).digest for affine in (np.eye(4), signed)}
    assert len(digests) == 1


# ---- refusals


def test_empty_masks_are_named(tmp_path, grid, mask):
    path = save(tmp_path / "nothing.nii.gz", np.zeros(SHAPE))
    for masks, name in [
        (path, str(path)),
        ({"insula": mask * 0}, "'insula'"),
        ([mask, np.full(SHAPE, np.nan)], "'mask_001'"),
        (np.stack([mask, mask * 0], -1), "'mask_000', volume 1"),
        (np.zeros((*SHAPE, 1)), "'mask_000'"),
    ]:
        with pytest.raises(errors.EmptyMaskError) as caught:
            Regions.from_any(masks, grid)
        assert name in str(caught.value)
        assert "is empty" in str(caught.value)


@pytest.mark.parametrize(
    ("masks", "problem"),
    [
        ([], "no mask was given"),
        ({}, "no mask was given"),
        (np.ones((4, 5, 3, 0)), "no mask was given"),
        (np.ones((4, 5)), r"2 dimensions \(4 x 5\)"),
        (np.ones((4, 5, 3, 2, 2)), r"5 dimensions \(4 x 5 x 3 x 2 x 2\)"),
        ([np.ones((4, 5, 3, 2))], r"'mask_000' has 4 dimensions \(4 x 5 x 3 x 2\)"),
        (np.ones(SHAPE, complex), "holds complex128"),
        (np.ones(SHAPE, [("r", "u1"), ("g", "u1")]), "holds .*'r', 'u1'"),
        (np.full(SHAPE, "a"), "holds <U1"),
        (np.full(SHAPE, None), "holds object"),
        (3, "'mask_000': not a path, a volume image or an array but a int"),
        ([None], "but a NoneType"),
        ([[1, 2]], "but a list"),
    ],
)
def test_things_that_are_no_masks(grid, masks, problem):
    with pytest.raises(errors.MaskError, match=problem):
        Regions.from_any(masks, grid)


def test_arrays_need_a_grid_of_their_shape(grid, mask):
    with pytest.raises(errors.MaskError, match="'mask_000' is an array and has no affine: give grid="):
        Regions.from_any(mask)
    for target in (None, "data"):
        for make in (Regions.from_any, Regions.from_labels):
            with pytest.raises(errors.GridMismatchError, match="array of 4 x 5 x 2, the image 4 x 5 x 3"):
                make(mask[..., :2], grid, resampling_target=target)


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


def test_missing_files(tmp_path):
    gone = tmp_path / "gone.nii.gz"
    for masks in (gone, str(gone), [gone], {"a": gone}, tmp_path / "gone.nii"):
        with pytest.raises(errors.MissingFileError, match=r"gone\.nii"):
            Regions.from_any(masks)
    with pytest.raises(errors.MissingFileError, match=r"no file matches .*none_"):
        Regions.from_any(str(tmp_path / "none_*.nii"))
    with pytest.raises(FileNotFoundError):
        Regions.from_labels(gone)


def test_files_that_are_not_images(tmp_path):
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "text.nii").write_text("hello" * 100)
    (tmp_path / "text.nii.gz").write_text("hello" * 100)
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "empty.nii").write_bytes(b"")
    mesh = nib.GiftiImage(darrays=[nib.gifti.GiftiDataArray(np.ones((3, 3), np.float32))])
    nib.save(mesh, tmp_path / "mesh.gii")
    for path in [*tmp_path.iterdir(), tmp_path]:
        with pytest.raises(errors.MaskError) as caught:
            Regions.from_any(path)
        assert str(path) in str(caught.value)


def test_damaged_files(tmp_path):
    rng = np.random.default_rng(3)
    data = rng.integers(0, 2, (20, 20, 20)).astype(np.uint8)
    save(tmp_path / "plain.nii", data)
    save(tmp_path / "packed.nii.gz", data)
    for name in ("plain.nii", "packed.nii.gz"):
        whole = (tmp_path / name).read_bytes()
        for size in (10, 100, 300, len(whole) // 2, len(whole) - 9):
            (tmp_path / f"cut_{name}").write_bytes(whole[:size])
            with pytest.raises(errors.MaskError, match=f"cut_{name}"):
                Regions.from_any(tmp_path / f"cut_{name}")
    wrong_crc = bytearray((tmp_path / "packed.nii.gz").read_bytes())
    wrong_crc[-6] ^= 1
    (tmp_path / "crc.nii.gz").write_bytes(wrong_crc)
    with pytest.raises(errors.MaskError, match=r"crc\.nii\.gz. cannot be read: .*checksum"):
        Regions.from_any(tmp_path / "crc.nii.gz")


@settings(max_examples=300)
@given(position=st.integers(0, 351), byte=st.integers(0, 255))
def test_damaged_headers_raise_our_errors_or_nothing(tmp_path_factory, position, byte):
    # dim is left alone: sizes read from noise would only test how much memory there is
    position = position if not 40 <= position < 56 else 0
    folder = tmp_path_factory.getbasetemp()
    raw = bytearray(image_of(np.ones(SHAPE, np.uint8)).to_bytes())
    raw[position] = byte
    (folder / "header.nii").write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(errors.MaskError, errors.MissingFileError):
            Regions.from_any(folder / "header.nii", Grid(SHAPE, OBLIQUE))


def test_unreadable_file(tmp_path, mask):
    path = save(tmp_path / "secret.nii.gz", mask)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads everything")
    with pytest.raises(errors.MaskError, match=r"secret\.nii\.gz"):
        Regions.from_any(path)


# ---- cost


def test_a_thousand_labels_on_2_mm():
    shape = (91, 109, 91)
    data = np.random.default_rng(4).integers(0, 1001, shape).astype(np.int32)
    made = Regions.from_labels(nib.Nifti1Image(data, np.eye(4)), Grid(shape, np.eye(4)))
    assert made.labels == tuple(range(1, 1001))
    np.testing.assert_array_equal(made.sizes, np.bincount(data.ravel())[1:])


def test_many_files_hold_one_mask_at_a_time(tmp_path):
    shape = (60, 60, 60)
    data = np.zeros(shape)
    data[:3, :3, :3] = 1
    files = [save(tmp_path / f"{i:02d}.nii.gz", data) for i in range(40)]
    tracemalloc.start()
    made = Regions.from_any(files)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(made) == 40
    assert peak < 4 * data.nbytes


def test_a_gzip_file_of_many_members_is_one_mask(tmp_path, mask):
    raw = image_of(mask.astype(np.uint8)).to_bytes()
    (tmp_path / "m.nii.gz").write_bytes(gzip.compress(raw[:200]) + gzip.compress(raw[200:]))
    assert Regions.from_any(tmp_path / "m.nii.gz").sizes.tolist() == [mask.sum()]


def test_importing_costs_neither_nilearn_nor_pandas():
    code = "import sys, sharedmask.regions; print({'nilearn', 'pandas', 'scipy.ndimage'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_examples():
    assert doctest.testmod(regions_regions).failed == 0


# ---- the real run


@pytest.fixture
def real():
    folder = os.environ.get("SHAREDMASK_TEST_DATA")
    if not folder:
        pytest.skip("SHAREDMASK_TEST_DATA does not name the folder of the real run")
    return Path(folder)


@pytest.mark.realdata
def test_real_atlas(real):
    run = nib.load(real / "sub-RAPIDTIDETEST.nii.gz")
    path = real / "sub-RAPIDTIDETEST_atlas-Schaefer1000_dseg.nii.gz"
    made = Regions.from_labels(
        path, Grid(run.shape[:3], run.affine), lut={i: f"parcel {i}" for i in range(1, 1001)}
    )
    assert len(made) == 994
    assert len(made.missing) == 6
    table = made.table(Regions.from_any(real / "sub-RAPIDTIDETEST_brainmask.nii.gz", made.grid).union)
    assert [row.index for row in table] == list(range(1, 1001))
    assert sum(row.column is None for row in table) == 6
    data = np.asanyarray(nib.load(path).dataobj)
    for label in (made.labels[0], made.labels[500], made.labels[-1]):
        expected = np.ravel_multi_index(np.nonzero(data == label), data.shape, order="F")
        np.testing.assert_array_equal(made[made.labels.index(label)], expected)


@pytest.mark.realdata
def test_real_masks(real):
    brain = Regions.from_any(real / "sub-RAPIDTIDETEST_brainmask.nii.gz")
    data = np.asanyarray(nib.load(real / "sub-RAPIDTIDETEST_brainmask.nii.gz").dataobj)
    assert brain.sizes[0] == np.count_nonzero(data)
    with pytest.raises(errors.EmptyMaskError, match="nullmask"):
        Regions.from_any(real / "sub-RAPIDTIDETEST_nullmask.nii.gz")
    with pytest.warns(errors.SharedMaskWarning, match="Schaefer400"):
        Regions.from_any(real / "sub-RAPIDTIDETEST_atlas-Schaefer400_dseg.nii.gz")
