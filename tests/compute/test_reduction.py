"""One value per region, against numpy and scipy."""

import warnings

import numpy as np
import pytest
from scipy import ndimage
from stored import INDEX, conversion, random_rows, reduce_regions

from sharedmask.compute import reduction
from sharedmask.compute.strategies import STRATEGIES

BY_NUMPY = {
    "mean": (np.mean, np.nanmean),
    "median": (np.median, np.nanmedian),
    "sum": (np.sum, np.nansum),
    "minimum": (np.min, np.nanmin),
    "maximum": (np.max, np.nanmax),
    "variance": (np.var, np.nanvar),
    "standard_deviation": (np.std, np.nanstd),
}


def weights_of(n_voxels):
    return np.random.default_rng(8).random(n_voxels) + 0.1


def reduced(strategy, rows, index, how, finite=False):
    out = np.full((3, rows.shape[1]), -1.0)
    offsets = np.array([0, len(index)])
    reduce_regions(rows, finite, out, how, strategy, index, offsets, 1, weights_of(len(index)))
    np.testing.assert_array_equal(out[[0, 2]], -1)
    return out[1]


def test_each_strategy_is_tested():
    assert {*BY_NUMPY, "pc1", "weighted_mean"} == set(STRATEGIES)


@pytest.mark.some(30)
@pytest.mark.parametrize("strategy", BY_NUMPY)
@pytest.mark.parametrize("size", [(50, 9), (50, 1), (400, 1500)])
@pytest.mark.parametrize("stored", ["i2", "f4", "f8"])
def test_reductions(strategy, size, stored):
    rows = random_rows(*size, dtype=stored)
    index = np.random.default_rng(2).permutation(size[0])[: size[0] // 2]
    expected = BY_NUMPY[strategy][0](rows[index].astype(float), axis=0)
    got = reduced(strategy, rows, index, conversion(stored, "f8"))
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-9)


@pytest.mark.some(7)
@pytest.mark.parametrize("size", [(50, 9), (50, 1), (4000, 1500)])
@pytest.mark.parametrize("stored", ["i2", "f4", "f8"])
@pytest.mark.parametrize("policy", ["zero", "omit"])
def test_means_by_weight(size, stored, policy):
    rows = random_rows(*size, dtype=stored)
    index = np.random.default_rng(2).permutation(size[0])[: size[0] // 2]
    values, weights = rows[index].astype(float), weights_of(len(index))[:, None]
    if stored != "i2":
        spots = np.random.default_rng(3).random(values.shape) < 0.05
        rows[np.repeat(index, size[1]), np.tile(np.arange(size[1]), len(index))] = np.where(
            spots, np.nan, rows[index]
        ).ravel()
        values = np.where(spots, 0, values)
        weights = np.where(spots, 0, weights) if policy == "omit" else weights
    expected = (values * weights).sum(0) / (weights * np.ones_like(values)).sum(0)
    got = reduced("weighted_mean", rows, index, conversion(stored, "f8", nan_policy=policy))
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("strategy", BY_NUMPY)
def test_reductions_of_scaled_values(strategy):
    rows, how = random_rows(), conversion("i2", "f8", 0.25, -100.0)
    expected = BY_NUMPY[strategy][0](rows[INDEX] * 0.25 - 100, axis=0)
    np.testing.assert_allclose(reduced(strategy, rows, INDEX, how), expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("strategy", BY_NUMPY)
def test_reductions_of_one_voxel(strategy):
    rows = random_rows(dtype="f8")
    expected = BY_NUMPY[strategy][0](rows[[7]], axis=0)
    np.testing.assert_array_equal(reduced(strategy, rows, np.array([7]), conversion("f8", "f8")), expected)


@pytest.mark.some(16)
@pytest.mark.parametrize("strategy", BY_NUMPY)
@pytest.mark.parametrize("stored", ["i2", "i8", "f4", "f8", ">f4", "f2"])
@pytest.mark.parametrize("n_timepoints", [1, 2, 3, 9, 700])
def test_rows_that_are_finite_give_the_bits_of_others(strategy, n_timepoints, stored):
    rows = random_rows(3000, n_timepoints, dtype=stored)
    index, how = np.random.default_rng(2).permutation(3000)[:2000], conversion(stored, "f8")
    expected = reduced(strategy, rows, index, how, finite=False)
    np.testing.assert_array_equal(reduced(strategy, rows, index, how, finite=True), expected)
    in_float64 = reduced(strategy, rows.astype("f8"), index, conversion("f8", "f8"))
    np.testing.assert_array_equal(expected, in_float64)


@pytest.mark.some(12)
@pytest.mark.parametrize("strategy", ["mean", "sum", "minimum", "variance"])
@pytest.mark.parametrize("policy", ["zero", "omit", "propagate"])
@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -0.0])
@pytest.mark.parametrize("stored", ["f4", "i2"])
def test_rows_have_the_same_bits_wherever_they_lie(strategy, policy, bad, stored):
    rows, rng = random_rows(1200, 700, stored), np.random.default_rng(4)
    sizes = np.array([1, 2, 600, 397, 200])  # one is larger than what is picked out at a time
    if bad is not None and stored == "f4":
        rows[rng.integers(0, 1200, 40), rng.integers(0, 700, 40)] = bad
    how, offsets = conversion(stored, "f8", nan_policy=policy), np.append(0, np.cumsum(sizes))
    order = rng.permutation(1200)
    apart = np.empty_like(rows)
    apart[order] = rows
    by_volume = np.asfortranarray(rows)  # as an image is mapped that lies volume by volume
    together, picked, across, passing = np.empty((4, len(sizes), 700))
    reduce_regions(rows, False, together, how, strategy, np.arange(1200), offsets, 0)
    reduce_regions(apart, False, picked, how, strategy, order, offsets, 0)
    reduce_regions(by_volume, False, across, how, strategy, np.arange(1200), offsets, 0)
    reduction.reduce_volumes(rows.T, passing.T, how, strategy, offsets)
    for other in (picked, across, passing):
        np.testing.assert_array_equal(together, other)


@pytest.mark.parametrize("strategy", BY_NUMPY)
def test_omitting_reductions(strategy):
    rows = random_rows(400, 700, "f4")
    rows[np.random.default_rng(3).random(rows.shape) < 0.2] = np.nan
    expected = BY_NUMPY[strategy][1](rows.astype(float), axis=0)
    got = reduced(strategy, rows, np.arange(400), conversion("f4", "f8", nan_policy="omit"))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("strategy", "expected"), [("sum", 0.0), *((name, np.nan) for name in BY_NUMPY if name != "sum")]
)
def test_omitting_everything(strategy, expected):
    rows = random_rows(dtype="f4")
    rows[:, 3] = np.nan
    got = reduced(strategy, rows, INDEX, conversion("f4", "f8", nan_policy="omit"))
    np.testing.assert_array_equal(got[3], expected)
    assert np.isfinite(np.delete(got, 3)).all()


@pytest.mark.parametrize("strategy", BY_NUMPY)
def test_propagating_reductions(strategy):
    rows = random_rows(dtype="f4")
    rows[INDEX[1], 3] = np.nan
    got = reduced(strategy, rows, INDEX, conversion("f4", "f8"))
    assert np.isnan(got).tolist() == [t == 3 for t in range(9)]


@pytest.mark.parametrize("strategy", ["mean", "sum"])
def test_sums_have_the_bits_of_scipy(strategy):
    rows = random_rows(3000, 40, "f4")
    labels = np.ones(3000, int)
    expected = [getattr(ndimage, strategy)(volume, labels, [1])[0] for volume in rows.T]
    got = reduced(strategy, rows, np.arange(3000), conversion("f4", "f8"))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("stored", ["u1", "i2", "u2", "i4", "u4"])
@pytest.mark.parametrize("size", [2**15 - 1, 2**15, 2**16])
def test_the_largest_sums_of_integers_fit(stored, size):
    limits = np.iinfo(stored)
    for value in (limits.min, limits.max):
        got = np.empty((1, 1))
        volumes = np.full((1, size), value, stored)
        reduction.reduce_volumes(volumes, got, conversion(stored, "f8"), "sum", np.array([0, size]))
        assert got[0, 0] == float(int(value) * size)


@pytest.mark.parametrize("n_volumes", [1, 2, 3])
def test_sums_have_the_bits_of_scipy_for_few_volumes(n_volumes):
    rows = random_rows(3000, n_volumes, "f4")
    expected = [ndimage.sum(volume, np.ones(3000, int), [1])[0] for volume in rows.T]
    np.testing.assert_array_equal(reduced("sum", rows, np.arange(3000), conversion("f4", "f8")), expected)


@pytest.mark.parametrize("nan_policy", ["zero", "omit", "propagate"])
def test_no_kernel_warns_of_non_finite_values(nan_policy):
    rows = np.full((6, 4), np.nan, "f4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for strategy in BY_NUMPY:
            reduced(strategy, rows, np.arange(6), conversion("f4", "f8", nan_policy=nan_policy))
