"""Maps: regions whose voxels have weights, through every entry point."""

import numpy as np
import pytest
from command import sharedmask
from images import AFFINE, SHAPE, bold, niimg, save, truth
from nilearn.image import resample_img

from sharedmask import Grid, Regions, SharedImage, extract, extract_many
from sharedmask.errors import EmptyMaskError, GridMismatchError, MaskError, ParameterError
from sharedmask.regions.coverage import Coverage

RNG = np.random.default_rng(4)
MAPS = np.where(RNG.random((*SHAPE, 3)) < 0.5, RNG.random((*SHAPE, 3)), 0.0).astype("f4")
del RNG
GRID = Grid(SHAPE, AFFINE)


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "bold.nii.gz", bold(dtype="f4"))


def expected(path, maps=MAPS):
    values, weights = truth(path).reshape(-1, 12).astype(float), maps.reshape(-1, maps.shape[-1])
    return (values.T @ weights) / weights.sum(0)


def test_every_entry_point_weighs(path, tmp_path):
    maps, wanted = save(tmp_path / "maps.nii.gz", MAPS), expected(path)
    with SharedImage(path) as image:
        held = image.reduce(niimg(MAPS), "weighted_mean")
        np.testing.assert_array_equal(image.reduce(MAPS, "weighted_mean", n_jobs=2), held)
    np.testing.assert_allclose(held, wanted, rtol=1e-5)
    np.testing.assert_array_equal(extract(path, maps, strategy="weighted_mean"), held)
    study = extract_many([path], maps, strategy="weighted_mean")
    np.testing.assert_array_equal(study.results[str(path)], held)
    both = extract(path, maps, strategy=["weighted_mean", "maximum"])
    np.testing.assert_array_equal(both["weighted_mean"], held)
    support = truth(path)[MAPS[..., 0] != 0].max(0)
    np.testing.assert_array_equal(both["maximum"][:, 0], support)
    table = tmp_path / "out.tsv"
    sharedmask("extract", path, "--atlas", maps, "--stat", "weighted-mean", "-o", table)
    np.testing.assert_array_equal(np.loadtxt(table, skiprows=1, dtype="f4"), held)


def test_missing_values_take_their_weight_with_them(tmp_path):
    data = bold(dtype="f4")
    data[2, 2, 2, 3] = np.nan
    path = save(tmp_path / "nan.nii", data)
    weights = np.where(np.isnan(data), 0, MAPS[..., :1])
    wanted = (np.nan_to_num(data) * weights).sum((0, 1, 2)) / weights.sum((0, 1, 2))
    got = extract(path, MAPS[..., :2], strategy="weighted_mean", nan_policy="omit")[:, 0]
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_weights_go_where_regions_go(path):
    regions = Regions.from_maps(MAPS, GRID, lut={2: "insula"})
    assert regions.names == ("1", "insula", "3")
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    flipped = niimg(MAPS[::-1], AFFINE @ flip)
    np.testing.assert_allclose(extract(path, flipped, strategy="weighted_mean"), expected(path), rtol=1e-5)
    batches = list(regions.batches(2))
    np.testing.assert_array_equal(Regions.joined(batches).weights, regions.weights)
    plain = Regions.from_any([np.ones(SHAPE)], GRID)
    assert Regions.joined([plain, batches[1]]).weights[: plain.sizes[0]].tolist() == [1.0] * plain.sizes[0]
    assert regions.digest != Regions.from_maps(MAPS * 2, GRID, lut={2: "insula"}).digest
    brain = np.sort(regions.union[::2])
    kept = np.isin(np.arange(GRID.n_voxels), brain).reshape(SHAPE, order="F")
    cut = Coverage.from_atlases([regions], brain).regions
    got = extract(path, cut, strategy="weighted_mean")
    np.testing.assert_allclose(got, expected(path, MAPS * kept[..., None]), rtol=1e-5)


def test_maps_on_another_grid_are_resampled_linearly(path):
    affine = AFFINE.copy()
    affine[:3, 3] += 1.3
    maps = niimg(MAPS, affine)
    with pytest.raises(GridMismatchError):
        extract(path, maps, strategy="weighted_mean")
    got = extract(path, maps, strategy="weighted_mean", resampling_target="data")
    moved = resample_img(maps, AFFINE, SHAPE, interpolation="linear", copy_header=True, force_resample=True)
    np.testing.assert_allclose(got, expected(path, moved.get_fdata()), rtol=1e-5)


def test_what_has_no_weights_is_refused(path):
    with pytest.raises(MaskError, match="one 4D image"):
        extract(path, niimg(MAPS[..., 0]), strategy="weighted_mean")
    with pytest.raises(MaskError, match="one 4D image"):
        extract(path, [MAPS[..., 0]], strategy="weighted_mean")
    with pytest.raises(ParameterError, match="maps with weights"):
        extract(path, Regions.from_any([np.ones(SHAPE)], GRID), strategy="weighted_mean")
    with pytest.raises(EmptyMaskError, match="volume 1 is empty"):
        Regions.from_maps(MAPS * [1, 0, 1], GRID)
