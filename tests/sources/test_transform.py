"""Smoothing and resampling volume by volume: nilearn's bits, whatever the encoding, chunks and threads."""

import tracemalloc
import warnings
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import AFFINE, SHAPE, bold, niimg, same_bits, save
from nilearn.image import resample_img, smooth_img
from nilearn.maskers import NiftiLabelsMasker, NiftiMasker

from sharedmask import Grid, Regions, extract
from sharedmask.errors import DamagedImageError, EmptyMaskError, GridMismatchError, ParameterError
from sharedmask.regions import alignment
from sharedmask.sources import loader, transform
from sharedmask.sources.opening import open_source

N = 5
DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
INTERPOLATIONS = ["continuous", "linear", "nearest"]


STRAIGHT = np.eye(3)


def moved(x=0.0, y=0.0, z=0.0, size=1.0, turn=STRAIGHT):
    """An affine by which voxel 0 lies on voxel (x, y, z) of AFFINE, in voxels of ``size`` of its."""
    return AFFINE @ nib.affines.from_matvec(turn * size, [x, y, z])


ROTATION = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])
GRIDS = {
    "finer": Grid((13, 11, 9), moved(size=0.5)),
    "coarser": Grid((4, 3, 3), moved(0.3, 0.1, 0.2, size=2)),
    "rotated": Grid((8, 7, 5), moved(turn=ROTATION)),
    "rotated out of plane": Grid((5, 6, 7), moved(1, 0, 1, turn=ROTATION[[2, 0, 1]])),
    "flipped": Grid(SHAPE, moved(SHAPE[0] - 1, turn=np.diag([-1, 1, 1]))),
    "permuted": Grid((5, 6, 7), moved(turn=STRAIGHT[[2, 1, 0]])),
    "shifted": Grid((9, 9, 9), moved(-1.5, -2.25, 0.5)),
    "shifted by whole voxels": Grid((4, 4, 4), moved(-1, 1, 2)),
    "a corner": Grid((3, 3, 2), moved()),
    "partly outside": Grid((6, 6, 6), moved(4, 4, 3)),
}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())


def values(dtype="int16", shape=(*SHAPE, N)):
    """Values all over the range, so that splines overshoot."""
    rng = np.random.default_rng(3)
    return rng.integers(-100 if np.dtype(dtype).kind in "if" else 0, 110, shape).astype(dtype)


def with_holes(dtype="float32"):
    data = values(dtype)
    data[3, 3, 3, 1], data[0, 0, 0, :], data[4, 2, :2, 2] = np.nan, np.inf, -np.inf
    return data


def smoothed_by_nilearn(image, fwhm):
    return np.asanyarray(smooth_img(image, fwhm).dataobj)


def resampled_by_nilearn(image, grid, interpolation="continuous"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = resample_img(image, grid.affine, grid.shape, interpolation=interpolation)
    return np.asanyarray(made.dataobj)


def smoothed(image, fwhm=6.0):
    return transform.smoothed(open_source(image), fwhm)


def resampled(image, grid, interpolation="continuous"):
    return transform.resampled(open_source(image), grid, interpolation)


STEPS = {
    "smoothed": lambda image: smoothed(image, 5),
    "resampled": lambda image: resampled(image, GRIDS["finer"]),
    "both": lambda image: transform.smoothed(resampled(image, GRIDS["rotated"]), 5),
}
every_step = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())


# ---- smoothing


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaling", [(None, None), (0.25, -100.0)], ids=["stored", "scaled"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_smoothed_files_have_nilearns_bits(tmp_path, dtype, scaling, suffix):
    path = save(tmp_path / f"run{suffix}", values(dtype), slope=scaling[0], inter=scaling[1])
    same_bits(smoothed(path).read(), smoothed_by_nilearn(path, 6.0))


@pytest.mark.parametrize("fwhm", [0.1, 1, 2.5, 8, np.float32(6), 40.0])
def test_widths(fwhm):
    image = niimg(bold(dtype="f4"))
    same_bits(smoothed(image, fwhm).read(), smoothed_by_nilearn(image, fwhm))


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4", ">i2"])
def test_smoothed_values_that_are_not_finite_count_as_zero(tmp_path, dtype):
    data = with_holes(dtype) if "f" in dtype else values(dtype)
    path = save(tmp_path / "run.nii.gz", data)
    got = smoothed(path).read()
    assert np.isfinite(got).all()
    same_bits(got, smoothed_by_nilearn(path, 6.0))


def test_a_single_volume_is_smoothed():
    image = niimg(values(shape=SHAPE))
    source = smoothed(image)
    assert source.ndim == 3
    same_bits(source.read(), smoothed_by_nilearn(image, 6.0))


def test_no_width_is_no_step():
    source = open_source(niimg(bold()))
    assert transform.smoothed(source, None) is source


@pytest.mark.parametrize("fwhm", [0, -1, 0.0, float("nan"), float("inf"), "fast", "6", [6, 6, 6], True, 1j])
def test_what_is_no_width_is_refused(fwhm):
    with pytest.raises(ParameterError, match=r"smoothing_fwhm=.* is no width: give millimetres above 0"):
        smoothed(niimg(bold()), fwhm)


def test_voxels_without_size_are_not_smoothed():
    flat = replace(open_source(niimg(bold())), affine=np.diag([0.0, 1, 1, 1]))
    with pytest.raises(ParameterError, match=r"cannot be smoothed: its voxels measure \[0.0, 1.0, 1.0\] mm"):
        transform.smoothed(flat, 6)


# ---- resampling


@pytest.mark.some(50)
@every_grid
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("dtype", ["int16", "float32", "float64", "uint8"])
def test_resampled_images_have_nilearns_bits(grid, interpolation, dtype):
    image = niimg(values(dtype))
    same_bits(resampled(image, grid, interpolation).read(), resampled_by_nilearn(image, grid, interpolation))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_of_splines(dtype):
    image = niimg(values(dtype))
    expected = resampled_by_nilearn(image, GRIDS["shifted"])
    got = resampled(image, GRIDS["shifted"]).read()
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == (dtype if dtype == "uint64" else expected.dtype)  # nilearn makes new images int32


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_scaled_files_are_resampled_as_floats(tmp_path, suffix):
    path = save(tmp_path / f"run{suffix}", values(), slope=0.25, inter=-100.0)
    for grid in (GRIDS["finer"], GRIDS["rotated"]):
        same_bits(resampled(path, grid).read(), resampled_by_nilearn(path, grid))


@every_grid
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_holes_stay_holes_and_spoil_nothing_else(grid, interpolation):
    image = niimg(with_holes())
    expected = resampled_by_nilearn(image, grid, interpolation)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(resampled(image, grid, interpolation).read(), expected)
    warned = [True for warning in said if "NaNs or infinite values are present" in str(warning.message)]
    assert warned == ([] if interpolation == "nearest" else [True])


@given(
    st.lists(st.floats(-0.4, 0.4), min_size=9, max_size=9),
    st.lists(st.floats(-2, 2), min_size=3, max_size=3),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.sampled_from(INTERPOLATIONS),
)
@settings(max_examples=40)
def test_any_grid(bent, start, shape, interpolation):
    grid = Grid(shape, moved(*start, turn=STRAIGHT + np.reshape(bent, (3, 3))))
    image = niimg(bold(shape=(*SHAPE, 2), dtype="f4"))
    try:
        expected = resampled_by_nilearn(image, grid, interpolation)
    except ValueError:  # nilearn sees nothing of the image there
        expected = np.zeros((*shape, 2), "f4")
    np.testing.assert_array_equal(resampled(image, grid, interpolation).read(), expected)


def test_splines_are_clipped_to_the_range_of_all_volumes():
    data = np.zeros((*SHAPE, 2), "f4")
    data[3:, ..., 0], data[..., 1] = 100, 105  # the second raises the limit of the first
    got = resampled(niimg(data), GRIDS["finer"]).read()
    assert 100 < got[..., 0].max() <= 105
    assert got.min() == 0
    same_bits(got, resampled_by_nilearn(niimg(data), GRIDS["finer"]))


def test_only_splines_read_the_image_twice(monkeypatch):
    source = open_source(niimg(values()))
    opened = []
    volumes = type(source).volumes
    monkeypatch.setattr(type(source), "volumes", lambda of: opened.append(of) or volumes(of))
    transform.resampled(source, GRIDS["finer"], "nearest").read()
    assert len(opened) == 1
    twice = transform.resampled(source, GRIDS["finer"])
    for reads in (3, 4):  # the range is known the second time
        twice.read()
        assert len(opened) == reads


def test_the_same_grid_is_no_step():
    source = open_source(niimg(bold()))
    assert transform.resampled(source, Grid(SHAPE, AFFINE + 1e-9)) is source


def test_what_is_no_interpolation_is_refused():
    with pytest.raises(ParameterError, match="interpolation='cubic' is none of 'continuous', 'linear'"):
        resampled(niimg(bold()), GRIDS["finer"], "cubic")


def test_an_affine_without_inverse_is_refused():
    source = replace(open_source(niimg(bold())), affine=np.diag([0.0, 1, 1, 1]))
    with pytest.raises(GridMismatchError, match="in memory cannot be resampled: its affine has no inverse"):
        transform.resampled(source, GRIDS["finer"])


# ---- any step


@every_step
def test_facts_are_those_of_the_new_image(tmp_path, step):
    source = step(save(tmp_path / "run.nii.gz", values(), slope=2.0, inter=1.0, t_r=1.5))
    assert (source.slope, source.inter, source.t_r) == (1.0, 0.0, 1.5)
    assert source.dtype == source.scaled_dtype == np.float64
    assert source.read().shape == source.shape
    assert source.name.endswith("run.nii.gz")


@every_step
@given(st.lists(st.integers(1, N), max_size=N))
@settings(max_examples=10)
def test_chunks_do_not_change_the_values(step, sizes):
    source = step(niimg(values("f4")))
    expected = source.read()
    out = np.empty((N, source.n_voxels), source.dtype)
    with source.volumes() as reader:
        for size in [*sizes, N]:
            start = N - reader.remaining
            reader.readinto(out[start : start + size])
    np.testing.assert_array_equal(out.reshape(expected.shape[::-1]).T, expected)


@pytest.mark.filterwarnings("ignore:NaNs or infinite values")
@every_step
def test_threads_do_not_change_the_values(step, monkeypatch):
    expected = step(niimg(with_holes())).read()
    for n_threads in (1, 2, 9):
        monkeypatch.setattr(transform, "n_cpus", lambda n=n_threads: n)
        np.testing.assert_array_equal(step(niimg(with_holes())).read(), expected)


@pytest.mark.filterwarnings("ignore:NaNs or infinite values")
@every_step
def test_the_image_is_left_alone(step):
    image = niimg(with_holes())
    before = image.dataobj.tobytes()
    step(image).read()
    assert image.dataobj.tobytes() == before


@every_step
@pytest.mark.parametrize(("dtype", "made"), [("f2", "f4"), (np.longdouble, "f8")])
def test_floats_that_scipy_does_not_know(step, dtype, made):
    odd = nib.spatialimages.SpatialImage(values().astype(dtype), AFFINE)
    same_bits(step(odd).read(), step(niimg(values(made))).read())


@every_step
def test_reading_may_stop_early(step):
    source = step(niimg(values()))
    with source.volumes() as reader:
        reader.readinto(np.empty(source.n_voxels, source.dtype))
        assert reader.remaining == N - 1


@every_step
def test_a_damaged_file_is_named(tmp_path, step):
    path = save(tmp_path / "run.nii.gz", bold())
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DamagedImageError, match=r"run\.nii\.gz"):
        step(path).read()


def test_fingerprints_tell_what_is_done(tmp_path):
    path = save(tmp_path / "run.nii.gz", bold())
    finer = GRIDS["finer"]
    made = [open_source(path), smoothed(path, 5), smoothed(path, 6), transform.smoothed(smoothed(path, 5), 6)]
    made += [resampled(path, finer, by) for by in INTERPOLATIONS]
    made += [resampled(path, Grid(finer.shape, finer.affine * 1.01)), resampled(path, GRIDS["shifted"])]
    assert len({source.fingerprint for source in made}) == len(made)
    assert smoothed(path, 5).fingerprint == made[1].fingerprint
    before = [source.fingerprint for source in made]
    save(path, bold(seed=1))
    after = [smoothed(path, 5).fingerprint, resampled(path, finer).fingerprint]
    assert not set(after) & set(before)


@pytest.mark.some(2)
@every_step
@pytest.mark.parametrize("slope", [None, 0.5], ids=["stored", "scaled"])
def test_no_more_memory_than_projected(tmp_path, step, slope, monkeypatch):
    for name in ("finer", "rotated"):
        monkeypatch.setitem(GRIDS, name, Grid((40, 40, 30), moved(0.5, 0.5, 0.5)))
    source = step(save(tmp_path / "run.nii", bold((40, 40, 30, 40)), slope=slope))
    voxels = np.arange(0, source.n_voxels, 100)
    rows = np.empty((len(voxels), source.n_timepoints), source.dtype)
    step(niimg(bold())).read()  # what it imports is not counted
    tracemalloc.start()
    loader.load(source, rows, select=voxels)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= loader.buffer_bytes(source, len(rows)) + 500_000 < source.nbytes


# ---- an image and its masks


def one_or_other(grid, seed=2):
    inside = np.random.default_rng(seed).random(grid.shape) < 0.5
    inside[0, 0, 0] = True  # which lies in the image, whatever the grid
    return niimg(inside.astype(np.uint8), grid.affine)


def masked_by_nilearn(mask, image):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return NiftiMasker(mask, standardize=None).fit().transform(image)


RESAMPLED = {name: grid for name, grid in GRIDS.items() if name not in ("flipped", "permuted")}


@pytest.mark.parametrize("grid", RESAMPLED.values(), ids=RESAMPLED.keys())
def test_one_mask_has_niftimaskers_bits(grid):
    mask, image = one_or_other(grid), niimg(values())
    same_bits(extract(image, mask, resampling_target="mask"), masked_by_nilearn(mask, image))


def test_a_small_mask_resamples_its_box_only():
    inside = np.zeros((60, 60, 60), np.uint8)
    inside[20:24, 30:33, 25] = 1
    mask, image = niimg(inside, moved(-9, -11, -10, size=0.5)), niimg(values())
    source, regions = alignment.align_to_masks(open_source(image), Regions.from_any(mask))
    assert source.shape == (6, 5, 3, N)
    np.testing.assert_array_equal(regions.sizes, [12])
    same_bits(extract(image, mask, resampling_target="mask"), masked_by_nilearn(mask, image))


def test_several_masks_share_a_box():
    grid, image = GRIDS["finer"], niimg(values("f4"))
    masks = {seed: one_or_other(grid, seed) for seed in range(3)}
    got = extract(image, masks, resampling_target="mask")
    for seed, mask in masks.items():
        np.testing.assert_allclose(got[seed], masked_by_nilearn(mask, image), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("name", ["flipped", "permuted"])
def test_reoriented_masks_need_no_resampling(name):
    mask, image = one_or_other(GRIDS[name]), niimg(values())
    source = open_source(image)
    assert alignment.align_to_masks(source, Regions.from_any(mask))[0] is source
    same_bits(extract(image, mask, resampling_target="mask"), extract(image, mask))


@pytest.mark.parametrize("target", ["mask", "labels"])
def test_an_image_is_resampled_to_an_atlas(target):
    grid, image = GRIDS["shifted"], niimg(values("f4"))
    data = np.random.default_rng(1).integers(0, 4, grid.shape).astype(np.int16)
    atlas = niimg(data, grid.affine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masker = NiftiLabelsMasker(atlas, standardize=None, resampling_target="labels")
        expected = masker.fit().transform(image)
    got = extract(image, atlas, strategy="mean", resampling_target=target)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-4)


def test_a_smoothed_image_is_resampled():
    grid, image = GRIDS["finer"], niimg(values("f4"))
    mask = one_or_other(grid)
    got = extract(image, mask, smoothing_fwhm=5, resampling_target="mask")
    same_bits(got, masked_by_nilearn(mask, smooth_img(image, 5)))


def test_an_array_lies_on_the_images_grid():
    mask, image = np.ones(SHAPE, bool), niimg(values())
    same_bits(extract(image, mask, resampling_target="mask"), extract(image, mask))


def test_masks_on_two_grids_are_refused():
    masks = [one_or_other(GRIDS["finer"]), one_or_other(GRIDS["coarser"])]
    said = r"'mask_001' lies on another grid than .*:\n  mask: .*\n  first: .*\n.*the image to their grid"
    with pytest.raises(GridMismatchError, match=said):
        extract(niimg(bold()), masks, resampling_target="mask")


@pytest.mark.parametrize("far", [-1e4, 1e4])
def test_a_mask_beyond_the_image_is_named(far):
    away = niimg(np.ones(SHAPE, np.uint8), AFFINE + far * np.eye(4, k=3))
    with pytest.raises(EmptyMaskError, match=r"'away' lies beyond .* in memory: no voxel of it is in the"):
        extract(niimg(bold()), {"away": away}, resampling_target="mask")


def test_one_mask_of_several_beyond_the_image_is_named():
    affine, corner = moved(2, 2, 2), np.zeros((9, 9, 9), np.uint8)
    corner[-1, -1, -1] = 1
    masks = {"near": niimg(np.ones_like(corner), affine), "corner": niimg(corner, affine)}
    with pytest.raises(EmptyMaskError, match="'corner' lies beyond"):
        extract(niimg(bold()), masks, resampling_target="mask")
