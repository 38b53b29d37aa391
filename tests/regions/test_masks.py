"""What callers give as masks, read and placed on a grid, and every refusal."""

import contextlib
import gc
import gzip
import os
import tracemalloc
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oblique import NIBABEL_DATA, OBLIQUE, SHAPE, image_of, reoriented, save
from programs import sharedmask
from surface_files import labels as label_file

from sharedmask import FrameDataset, SharedImage, SharedLabelsMasker, errors, extract, extract_many
from sharedmask.regions import masks as reading
from sharedmask.regions.masks import file_stem
from sharedmask.regions.regions import Regions
from sharedmask.regions.sets import RegionRow
from sharedmask.settings import using
from sharedmask.sources.opening import open_source
from sharedmask.spaces.grid import Grid

# ---- what is not read


@pytest.mark.some(1)
@pytest.mark.parametrize(
    "make", [Regions.from_any, Regions.from_labels, lambda m, g: Regions.from_any([m], g)]
)
def test_a_mask_on_another_grid_is_refused_before_it_is_read(tmp_path, make, grid):
    nib.save(nib.Nifti1Image(np.ones((500, 500, 200), np.uint8), OBLIQUE), tmp_path / "large.nii.gz")
    tracemalloc.start()
    with pytest.raises(errors.GridMismatchError, match="large"):
        make(tmp_path / "large.nii.gz", grid)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_a_mask_that_does_not_fit_in_memory_is_refused_before_it_is_read(tmp_path, grid):
    nib.save(nib.Nifti1Image(np.ones((500, 500, 300), np.uint8), OBLIQUE), tmp_path / "large.nii.gz")
    with using(memory_limit="64M"), pytest.raises(errors.MemoryLimitError, match=r"reading mask 'large'"):
        Regions.from_any(tmp_path / "large.nii.gz", grid, resampling_target="data")


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
    assert file_stem(f"/some/where/{name}") == stem


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
@pytest.mark.filterwarnings("ignore:.*(and no 0|as of probabilities)")
def test_nonzero_and_finite_is_inside(values, inside):
    made = Regions.from_any(np.reshape(values, (4, 1, 1)), Grid((4, 1, 1), np.eye(4)))
    assert made[0].tolist() == inside


ODD = {
    "{1, 2}": ([1, 2, 1, 2], "holds 1 and 2 and no 0: all its voxels are inside"),
    "probabilities": ([0, 0.2, 0.5, 1], "holds 0.2 to 1, as of probabilities; all but 0 are inside"),
    "a run": ([0, 940.5, 1000.25, 1], "holds 1 to 1000.25, no whole numbers; all but 0 are inside"),
}


def with_a_brain(image, mask):
    with SharedImage(image, mask_img=mask):
        pass


def frames(image, mask):
    with FrameDataset(image, mask_img=mask):
        pass


MASKED = {
    "extract": lambda image, mask: extract(image, mask),
    "extract_many": lambda image, mask: extract_many([image], mask),
    "Regions": lambda image, mask: Regions.from_any(mask),
    "SharedImage": with_a_brain,
    "frames": frames,
}


@pytest.mark.parametrize("entry", MASKED)
@pytest.mark.parametrize("kind", ODD)
def test_a_mask_that_may_be_none_is_said(entry, kind):
    values, said = ODD[kind]
    image = nib.Nifti1Image(np.arange(12, dtype="f4").reshape(4, 1, 1, 3), np.eye(4))
    mask = nib.Nifti1Image(np.reshape(np.array(values, "f4"), (4, 1, 1)), np.eye(4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        MASKED[entry](image, mask)
    assert [said in str(one.message) for one in caught] == [True]


@pytest.mark.parametrize("entry", ["extract", "extract_many", "Regions"])
@pytest.mark.parametrize("stack", [lambda one: nib.concat_images([one] * 3), lambda one: [one] * 3])
def test_many_that_may_be_none_are_said_once(entry, stack):
    image = nib.Nifti1Image(np.arange(12, dtype="f4").reshape(4, 1, 1, 3), np.eye(4))
    mask = nib.Nifti1Image(np.reshape(np.array([0, 0.2, 0.5, 1], "f4"), (4, 1, 1)), np.eye(4))
    with pytest.warns(
        errors.SharedMaskWarning, match=r"as of probabilities; .* So it is with 2 more$"
    ) as caught:
        MASKED[entry](image, stack(mask))
    assert len(caught) == 1


@pytest.mark.parametrize("values", [[0, 1.0000000591, 1, 0], [3, 3, 3, 3], [0, 0.3, 0, 0.3], [0, 1, 1, 0]])
def test_masks_of_one_value_are_not_spoken_of(values):
    Regions.from_any(np.reshape(values, (4, 1, 1)), Grid((4, 1, 1), np.eye(4)))


@pytest.mark.parametrize("share", [0.02, 0.4])
@pytest.mark.parametrize("turned", [np.asfortranarray, np.ascontiguousarray, lambda one: one[::-1][::-1]])
def test_however_an_array_lies_in_memory_its_voxels_are_those_of_numpy_s_indexing(turned, share):
    mask, data = np.random.default_rng(0).random((20, 21, 22)) < share, np.arange(20 * 21 * 22)
    regions = Regions.from_any([turned(mask)], Grid(mask.shape, np.eye(4)))
    np.testing.assert_array_equal(regions[0], data.reshape(mask.shape, order="F")[mask])


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
        (
            [(2, 0, 5.5)],
            r"an array but the numbers \(2, 0, 5.5\): SharedSpheresMasker and --sphere make spheres",
        ),
        ([[(2, 0, 5.5), (1, 1, 1)]], r"an array but the numbers \(2, 0, 5.5\): SharedSpheresMasker"),
        ([None], "but a NoneType"),
        ([[1, 2]], "but a list"),
    ],
)
def test_things_that_are_no_masks(grid, masks, problem):
    with pytest.raises(errors.MaskError, match=problem):
        Regions.from_any(masks, grid)


def test_arrays_need_a_grid_of_their_shape(grid, mask):
    with pytest.raises(
        errors.MaskError, match="'mask_000' is an array and has no affine: give a nibabel image, or grid="
    ):
        Regions.from_any(mask)
    for target in (None, "data"):
        for make in (Regions.from_any, Regions.from_labels):
            with pytest.raises(errors.GridMismatchError, match="array of 4 x 5 x 2, the image 4 x 5 x 3"):
                make(mask[..., :2], grid, resampling_target=target)


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
    points = nib.gifti.GiftiDataArray(np.ones((3, 3), np.float32), intent="NIFTI_INTENT_POINTSET")
    mesh = nib.GiftiImage(darrays=[points])
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


@settings(max_examples=100)
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


# ---- the real run


@pytest.mark.realdata
def test_real_masks(real_data):
    brain = Regions.from_any(real_data / "sub-RAPIDTIDETEST_brainmask.nii.gz")
    data = np.asanyarray(nib.load(real_data / "sub-RAPIDTIDETEST_brainmask.nii.gz").dataobj)
    assert brain.sizes[0] == np.count_nonzero(data)
    with pytest.raises(errors.EmptyMaskError, match="nullmask"):
        Regions.from_any(real_data / "sub-RAPIDTIDETEST_nullmask.nii.gz")
    with pytest.warns(errors.SharedMaskWarning, match="Schaefer400"):
        Regions.from_any(real_data / "sub-RAPIDTIDETEST_atlas-Schaefer400_dseg.nii.gz")


# ---- labels beyond 32 bits, or a rounding error off an integer

FIRST, SECOND, THIRD = (np.zeros((6, 4, 4), bool) for _ in range(3))
FIRST[:2], SECOND[2:4], THIRD[4:, 1:] = True, True, True
SERIES = np.random.default_rng(0).normal(1000, 10, (6, 4, 4, 5)).astype("f4")
MEANS = np.stack([SERIES[part].astype("f8").mean(0) for part in (FIRST, SECOND, THIRD)], axis=1)


def labelled(labels, dtype):
    every = [np.asarray(label, dtype) for label in labels]
    return np.select([FIRST, SECOND, THIRD], every, np.zeros((), dtype))


def scaled(path, stored, slope, inter):
    """Labels that the header's slope and intercept, in float32, make of ``stored``."""
    header = nib.Nifti1Image(stored, np.eye(4)).header
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = slope, inter, 352
    with gzip.open(path, "wb") as file:
        file.write(header.binaryblock + b"\0" * 4 + stored.tobytes(order="F"))


def saved(path, labels):
    nib.save(nib.Nifti1Image(labels, np.eye(4), dtype=labels.dtype), path)


LARGE = {
    "uint32": ("u4", (1, 3_000_000_000, 4_294_967_295)),
    "int64": ("i8", (5, 2**31 + 7, 2**40)),
    "int64, no floats": ("i8", (2**53 - 1, 2**53, 2**53 + 1)),
    "negative": ("i8", (-(2**40), -1, 7)),
    "uint64": ("u8", (2**63, 2**63 + 5, 2**64 - 1)),
}
NEAR = {
    "a third": lambda path: scaled(path, labelled((3, 21009, 21045), "i4"), np.float32(1 / 3), 0),
    "a tenth": lambda path: scaled(path, labelled((10, 70030, 70150), "i4"), np.float32(0.1), 0),
    "a slope of almost 1": lambda path: scaled(path, labelled((1, 7003, 7015), "i2"), 1 + 1.2e-7, 0),
    "an intercept of almost 0": lambda path: scaled(path, labelled((1, 7003, 7015), "i2"), 1, -1e-6),
    "some a thousandth off": lambda path: saved(path, _off(labelled((1, 7003, 7015), "f4"), 1e-3)),
}


def _off(labels, error):
    labels[::2] -= error * (labels[::2] > 1)
    return labels


def by_regions(bold, atlas, labels):
    regions = Regions.from_labels(atlas)
    assert regions.labels == labels and regions.names == tuple(map(str, labels))
    assert [row.coverage for row in regions.table()] == [1, 1, 1]
    return extract(bold, regions, strategy="mean")


def by_masker(bold, atlas, labels):
    masker = SharedLabelsMasker(atlas, standardize=None, reports=False)
    signals = masker.fit_transform(bold)
    table = masker.region_table_
    assert table["index"].tolist() == list(labels)
    assert (table["n_voxels"] == table["n_voxels_used"]).all() and (table["coverage"] == 1).all()
    assert masker.region_ids_ == {"background": 0, **dict(enumerate(labels))}
    assert table["column"].tolist() == list(range(len(labels)))
    assert [name.removesuffix(".0") for name in table["name"]] == list(map(str, labels))
    used = np.asarray(masker.region_atlas_.dataobj)
    back = np.asarray(masker.inverse_transform(signals).dataobj)
    for column, label in enumerate(labels):
        inside = (FIRST, SECOND, THIRD)[column]
        np.testing.assert_array_equal(used == label, inside)
        np.testing.assert_array_equal(back[inside], np.broadcast_to(signals[:, column], back[inside].shape))
    return signals


def by_program(bold, atlas, labels):
    out = Path(bold).with_name("out.tsv")
    ended = sharedmask("extract", bold, "--atlas", atlas, "-o", out)
    assert ended.code == 0, ended.err
    assert tuple(out.read_text().splitlines()[0].split("\t")) == tuple(map(str, labels))
    return np.loadtxt(out, skiprows=1)


LABEL_ENTRIES = pytest.mark.parametrize("entry", [by_regions, by_masker, by_program])


@pytest.fixture
def run(tmp_path):
    nib.save(nib.Nifti1Image(SERIES, np.eye(4)), tmp_path / "bold.nii.gz")
    return tmp_path / "bold.nii.gz"


@LABEL_ENTRIES
@pytest.mark.parametrize(("dtype", "labels"), LARGE.values(), ids=LARGE.keys())
def test_large_labels_have_their_signal_number_and_coverage(run, tmp_path, dtype, labels, entry):
    saved(tmp_path / "atlas.nii.gz", labelled(labels, dtype))
    np.testing.assert_allclose(entry(run, tmp_path / "atlas.nii.gz", labels), MEANS, rtol=1e-6)


@LABEL_ENTRIES
@pytest.mark.parametrize("made", NEAR.values(), ids=NEAR.keys())
def test_labels_a_rounding_error_off_are_the_nearest_integers(run, tmp_path, made, entry):
    made(tmp_path / "atlas.nii.gz")
    np.testing.assert_allclose(entry(run, tmp_path / "atlas.nii.gz", (1, 7003, 7015)), MEANS, rtol=1e-6)


def test_values_further_off_are_no_labels(tmp_path):
    saved(tmp_path / "maps.nii.gz", _off(labelled((1, 7003, 7015), "f4"), 0.02))
    with pytest.raises(errors.MaskError, match="not an atlas, whose values are integers"):
        Regions.from_labels(tmp_path / "maps.nii.gz")


# ---- patterns


def test_each_pattern_of_a_list_stands_for_its_files(tmp_path):
    run = nib.Nifti1Image(np.random.default_rng(0).normal(size=(*SHAPE, 4)), OBLIQUE)
    for number in range(4):
        data = np.zeros(SHAPE, np.uint8)
        data[number] = 1
        nib.save(nib.Nifti1Image(data, OBLIQUE), tmp_path / f"roi{number}.nii.gz")
    patterns = [str(tmp_path / "roi[23].nii.gz"), tmp_path / "roi0.nii.gz", str(tmp_path / "roi[1].nii.gz")]
    files = [tmp_path / f"roi{number}.nii.gz" for number in (2, 3, 0, 1)]
    assert Regions.from_any(patterns, Grid(SHAPE, OBLIQUE)).names == ("roi2", "roi3", "roi0", "roi1")
    with SharedImage(run) as image:
        for call in (
            image.mask_parallel,
            lambda masks: image.map(np.copy, masks),
            lambda masks: extract(run, masks),
            lambda masks: [signals for _, signals in image.iter_masks(masks)],
        ):
            for got, expected in zip(call(patterns), call(files), strict=True):
                np.testing.assert_array_equal(got, expected)
    with pytest.raises(errors.MissingFileError, match=r"no file matches .*other"):
        Regions.from_any([*files, str(tmp_path / "other*.nii")], Grid(SHAPE, OBLIQUE))


@pytest.mark.parametrize("kind", ["atlas", "masks", "maps", "labels", "pair"])
def test_a_file_is_opened_once_to_see_what_it_is_and_to_read_it(tmp_path, monkeypatch, kind):
    shape = (4, 3, 2) if kind in ("atlas", "labels") else (4, 3, 2, 3)
    given = tmp_path / "given.nii"
    nib.save(nib.Nifti1Image(np.ones(shape, np.int16), np.eye(4)), given)
    if kind == "pair":
        given = [label_file(tmp_path / f"{side}.x.label.gii", [1] * 10) for side in ("lh", "rh")]
    opened = []
    monkeypatch.setattr(reading, "open_source", lambda image: opened.append(image) or open_source(image))
    if kind == "labels":
        Regions.from_labels(given)
    else:
        Regions.from_atlas_or_masks(given, weighted=kind == "maps")
    assert len(opened) == 1


@pytest.mark.parametrize("ending", ["mgh", "mgz"])
def test_volumes_of_freesurfer_are_masks_and_their_files_are_closed(tmp_path, ending, mask):
    path, image = tmp_path / f"mask.{ending}", nib.MGHImage(mask.astype("u1"), OBLIQUE)
    nib.save(image, path)
    gc.collect()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        regions = Regions.from_any(path, Grid(SHAPE, image.affine))
        gc.collect()
    assert not said
    np.testing.assert_array_equal(np.sort(regions[0]), np.flatnonzero(mask.ravel(order="F")))
