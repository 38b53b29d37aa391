"""The array functions against one line of numpy each."""

import itertools
import warnings
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.volumeutils import apply_read_scaling
from scipy import ndimage

from sharedmask.compute import kernels as compute_kernels
from sharedmask.compute import reduction
from sharedmask.compute.cleaning import Cleaning
from sharedmask.errors import ParameterError
from sharedmask.sources import values as kernels
from sharedmask.sources.values import Conversion

F4, F8, I2 = np.dtype("f4"), np.dtype("f8"), np.dtype("i2")


def conversion(stored="i2", result="f4", slope=1.0, inter=0.0, nan_policy="propagate"):
    scaled = apply_read_scaling(np.zeros(1, stored), slope, inter).dtype
    return Conversion(slope, inter, scaled, np.dtype(result), nan_policy)


def random_rows(n_rows=50, n_timepoints=9, dtype="i2", seed=0):
    return np.random.default_rng(seed).normal(0, 1000, (n_rows, n_timepoints)).astype(dtype)


def converted(stored, how):
    out = np.empty(stored.shape, how.result)
    kernels.convert(stored, out, how)
    return out


# ---- conversion


@pytest.mark.parametrize(
    ("how", "stored", "finite", "kept"),
    [
        (conversion("f4", "f4"), F4, False, True),
        (conversion("f4", "f4", nan_policy="zero"), F4, True, True),
        (conversion("f4", "f4", nan_policy="zero"), F4, False, False),
        (conversion("f4", "f4", nan_policy="raise"), F4, False, False),
        (conversion("i2", "i2", nan_policy="zero"), I2, False, True),
        (conversion("i2", "f4"), I2, True, False),
        (conversion("f4", "f8"), F4, True, False),
        (conversion("f8", "f8", slope=2.0), F8, True, False),
        (conversion("f8", "f8", inter=2.0), F8, True, False),
    ],
)
def test_stored_values_that_are_the_results_already(how, stored, finite, kept):
    assert how.keeps(stored, finite) is kept


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("scaling", [(0.25, -100.0), (1.0, 0.1), (-3.7, 0.0), (0.1, 1e9)])
def test_scaling_is_nibabels(dtype, scaling):
    stored = random_rows(dtype=dtype)
    expected = apply_read_scaling(stored, *scaling)
    scaled = kernels.scale(stored, conversion(dtype, "f8", *scaling))
    assert scaled.dtype == expected.dtype
    np.testing.assert_array_equal(scaled, expected)


def test_unscaled_values_are_not_copied():
    stored = random_rows()
    assert kernels.scale(stored, conversion()) is stored


@pytest.mark.parametrize(
    ("nan_policy", "expected"),
    [
        ("zero", [1, 0, 0, 0]),
        ("propagate", [1, np.nan, np.inf, -np.inf]),
        ("omit", [1, np.nan, np.nan, np.nan]),
    ],
)
@pytest.mark.parametrize("result", ["f4", "f8"])
def test_non_finite_values(nan_policy, expected, result):
    stored = np.array([1, np.nan, np.inf, -np.inf], "f4")
    got = converted(stored, conversion("f4", result, nan_policy=nan_policy))
    np.testing.assert_array_equal(got, np.array(expected, result))


def test_non_finite_values_are_counted_when_refused():
    stored = np.array([1, np.nan, np.inf, 2], "f4")
    with pytest.raises(ParameterError, match=r"2 of \d+ values"):
        converted(stored, conversion("f4", nan_policy="raise"))


def test_values_that_scaling_makes_infinite_are_not_finite():
    stored = np.array([1e300, 1], "f8")
    with np.errstate(over="ignore"):
        got = converted(stored, conversion("f8", "f8", slope=1e30, nan_policy="zero"))
    np.testing.assert_array_equal(got, [0, 1e30])


def test_the_stored_values_stay_as_they_are():
    stored = np.array([1, np.nan], "f4")
    converted(stored, conversion("f4", nan_policy="zero"))
    np.testing.assert_array_equal(stored, np.array([1, np.nan], "f4"))


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([1, 2, 3], True),
        ([1, np.nan], False),
        ([np.inf, 1], False),
        ([np.inf, -np.inf], False),
        ([np.finfo("f4").max] * 3, True),
        ([np.finfo("f4").max] * 3 + [np.nan], False),
        ([], True),
    ],
)
def test_all_finite(values, finite):
    assert kernels.all_finite(np.array([values], "f4")) is finite


@pytest.mark.parametrize("n_rows", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("row_bytes", [0, 1, 4096, 2**20])
def test_pieces_are_all_rows_once(n_rows, row_bytes):
    rows = [row for piece in kernels.pieces(n_rows, row_bytes) for row in range(n_rows)[piece]]
    assert rows == list(range(n_rows))


def test_pieces_fit_the_cache():
    sizes = [piece.stop - piece.start for piece in kernels.pieces(1000, 1000)]
    assert max(sizes) * 1000 <= kernels.PIECE_BYTES
    assert len(sizes) > 1


def test_rows_larger_than_the_cache_are_pieces_of_their_own():
    assert list(kernels.pieces(2, 10 * kernels.PIECE_BYTES)) == [slice(0, 1), slice(1, 2)]


# ---- gathering

INDEX = np.array([3, 49, 0, 3, 17])


@pytest.mark.parametrize("stored", ["i2", "u1", "f4", "f8", "i8"])
@pytest.mark.parametrize("result", ["i2", "f4", "f8"])
def test_gather(stored, result):
    rows = random_rows(dtype=stored)
    out = np.empty((5, 9), result)
    compute_kernels.gather(rows, False, out, conversion(stored, result), INDEX, 0)
    np.testing.assert_array_equal(out, rows[INDEX].astype(result))


@pytest.mark.parametrize("result", ["i2", "f4"])
def test_gather_writes_where_it_is_told_and_nowhere_else(result):
    rows, out = random_rows(), np.full((9, 9), -1, result)
    compute_kernels.gather(rows, True, out, conversion("i2", result), INDEX, 2)
    np.testing.assert_array_equal(out[2:7], rows[INDEX])
    np.testing.assert_array_equal(out[[0, 1, 7, 8]], -1)


@pytest.mark.parametrize("stored", ["i2", "f4"])
def test_gather_by_more_than_one_piece(stored):
    rows = random_rows(300, 1500, stored)
    index = np.random.default_rng(1).permutation(300)
    out = np.empty((300, 1500))
    compute_kernels.gather(rows, True, out, conversion(stored, "f8", 0.3, 2.0), index, 0)
    np.testing.assert_array_equal(out, apply_read_scaling(rows[index], 0.3, 2.0))


def test_gather_without_non_finite_values():
    rows = random_rows(dtype="f4")
    rows[::7, 2] = np.nan
    out = np.empty((5, 9), "f4")
    compute_kernels.gather(rows, False, out, conversion("f4", nan_policy="zero"), INDEX, 0)
    np.testing.assert_array_equal(out, np.nan_to_num(rows[INDEX]))


def test_refused_values_are_counted_over_all_pieces():
    rows = random_rows(300, 1500, "f4")
    rows[::10, 5] = np.nan
    out = np.empty_like(rows)
    with pytest.raises(ParameterError, match=r"\d+ of \d+ values"):
        compute_kernels.gather(rows, False, out, conversion("f4", nan_policy="raise"), np.arange(300), 0)


def test_signals_are_fresh_and_contiguous():
    rows = random_rows(dtype="f4")
    signals = compute_kernels.signals_of(rows, True, conversion("f4"), INDEX)
    assert signals.flags.c_contiguous
    assert signals.flags.writeable
    assert not np.shares_memory(signals, rows)
    np.testing.assert_array_equal(signals, rows[INDEX].T)


# ---- reductions

BY_NUMPY = {
    "mean": (np.mean, np.nanmean),
    "median": (np.median, np.nanmedian),
    "sum": (np.sum, np.nansum),
    "minimum": (np.min, np.nanmin),
    "maximum": (np.max, np.nanmax),
    "variance": (np.var, np.nanvar),
    "standard_deviation": (np.std, np.nanstd),
}


def reduced(strategy, rows, index, how):
    out = np.full((3, rows.shape[1]), -1.0)
    reduction.reduce_region(rows, False, out, how, strategy, index, 1)
    np.testing.assert_array_equal(out[[0, 2]], -1)
    return out[1]


def test_each_strategy_is_tested():
    assert {*BY_NUMPY, "pc1"} == set(reduction.STRATEGIES)


@pytest.mark.parametrize("strategy", BY_NUMPY)
@pytest.mark.parametrize("size", [(50, 9), (50, 1), (400, 1500)])
@pytest.mark.parametrize("stored", ["i2", "f4", "f8"])
def test_reductions(strategy, size, stored):
    rows = random_rows(*size, dtype=stored)
    index = np.random.default_rng(2).permutation(size[0])[: size[0] // 2]
    expected = BY_NUMPY[strategy][0](rows[index].astype(float), axis=0)
    got = reduced(strategy, rows, index, conversion(stored, "f8"))
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-9)


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


@given(
    st.lists(st.sampled_from([1, 2, 7, 300, 9000]), min_size=1, max_size=6),
    st.sampled_from([1, 2, 3, 16, 70]),
    st.sampled_from(sorted(reduction.BY_VOLUME)),
    st.sampled_from(["zero", "propagate", "omit"]),
)
@settings(max_examples=60, deadline=None)
def test_volumes_that_pass_by_give_the_bits_of_rows(sizes, n_volumes, strategy, policy):
    rows = random_rows(sum(sizes), n_volumes, "f4")
    rows[np.random.default_rng(5).random(rows.shape) < 0.01] = np.nan
    how = conversion("f4", "f8", nan_policy=policy)
    offsets = np.cumsum([0, *sizes])
    expected, got = np.empty((len(sizes), n_volumes)), np.empty((n_volumes, len(sizes)))
    for column, (start, stop) in enumerate(itertools.pairwise(offsets)):
        reduction.reduce_region(rows, False, expected, how, strategy, np.arange(start, stop), column)
    finite = reduction.reduce_volumes(np.ascontiguousarray(rows.T), got, how, strategy, offsets)
    assert finite == bool(np.isfinite(rows).all())
    np.testing.assert_array_equal(got, expected.T)


@pytest.mark.parametrize("n_volumes", [1, 2, 3])
def test_sums_have_the_bits_of_scipy_for_few_volumes(n_volumes):
    rows = random_rows(3000, n_volumes, "f4")
    expected = [ndimage.sum(volume, np.ones(3000, int), [1])[0] for volume in rows.T]
    np.testing.assert_array_equal(reduced("sum", rows, np.arange(3000), conversion("f4", "f8")), expected)


def eigenvariate(signals):
    courses, scales, weights = np.linalg.svd(signals - signals.mean(axis=0), full_matrices=False)
    return np.sign(weights[0].sum()) * courses[:, 0] * scales[0] / np.sqrt(signals.shape[1])


def correlated(n_voxels, n_timepoints, sign=1):
    rng = np.random.default_rng(n_voxels)
    shared = rng.normal(size=n_timepoints)
    weights = rng.uniform(0.5, 2, (n_voxels, 1))
    return 100 + sign * weights * shared + 0.3 * rng.normal(size=(n_voxels, n_timepoints))


@pytest.mark.parametrize("size", [(5, 40), (40, 40), (90, 40), (40, 2)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("piece_bytes", [kernels.PIECE_BYTES, 2000])
def test_first_principal_course(size, sign, piece_bytes, monkeypatch):
    monkeypatch.setattr(kernels, "PIECE_BYTES", piece_bytes)
    rows = correlated(*size, sign)
    got = reduced("pc1", rows, np.arange(size[0]), conversion("f8", "f8"))
    np.testing.assert_allclose(got, eigenvariate(rows.T), atol=1e-9 * np.abs(got).max())


def test_first_principal_course_of_one_voxel_is_its_course():
    rows = correlated(3, 40)
    got = reduced("pc1", rows, np.array([1]), conversion("f8", "f8"))
    np.testing.assert_allclose(got, rows[1] - rows[1].mean(), atol=1e-12)


@pytest.mark.parametrize("size", [(5, 9), (9, 5)])
def test_first_principal_course_of_constants_is_zero(size):
    got = reduced("pc1", np.full(size, 7.0), np.arange(size[0]), conversion("f8", "f8"))
    np.testing.assert_array_equal(got, 0)


def test_first_principal_course_needs_every_value():
    with pytest.raises(ParameterError, match="pc1"):
        reduced("pc1", random_rows(), INDEX, conversion("i2", "f8", nan_policy="omit"))


# ---- cleaning and functions


@pytest.mark.parametrize(
    ("cleaning", "needed"),
    [
        ({}, False),
        ({"t_r": 2.0}, False),
        ({"standardize": "psc"}, True),
        ({"detrend": True}, True),
        ({"confounds": np.zeros((9, 1))}, True),
        ({"sample_mask": np.arange(3)}, True),
        ({"low_pass": 0.1}, True),
        ({"high_pass": 0.1}, True),
    ],
)
def test_whether_cleaning_is_needed(cleaning, needed):
    assert Cleaning(**cleaning).needed is needed


def test_clean_writes_where_it_is_told():
    rows = random_rows(n_timepoints=40, dtype="f4")
    out = np.full((9, 40), -1, "f4")
    cleaning = Cleaning(detrend=True, standardize="zscore_sample")
    compute_kernels.clean(rows, True, out, conversion("f4"), cleaning, INDEX, 2)
    np.testing.assert_array_equal(out[2:7], cleaning.apply(rows[INDEX].T).T)
    np.testing.assert_array_equal(out[[0, 1, 7, 8]], -1)


def test_clean_keeps_the_sampled_volumes():
    rows, kept = random_rows(dtype="f4"), np.array([0, 4, 5])
    out = np.empty((5, 3), "f4")
    compute_kernels.clean(rows, True, out, conversion("f4"), Cleaning(sample_mask=kept), INDEX, 0)
    np.testing.assert_array_equal(out, rows[INDEX][:, kept])


def test_functions_get_signals():
    rows = random_rows()
    got = compute_kernels.apply(rows, True, conversion(), Cleaning(), partial(np.sum, axis=1), INDEX)
    np.testing.assert_array_equal(got, rows[INDEX].astype("f4").sum(axis=0))


def test_functions_get_cleaned_signals():
    rows = random_rows()
    cleaning = Cleaning(sample_mask=np.array([2, 3]))
    got = compute_kernels.apply(rows, True, conversion(), cleaning, lambda signals: signals, INDEX)
    np.testing.assert_array_equal(got, rows[INDEX].T[[2, 3]])


@pytest.mark.parametrize("nan_policy", ["zero", "omit", "propagate"])
def test_no_kernel_warns_of_non_finite_values(nan_policy):
    rows = np.full((6, 4), np.nan, "f4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for strategy in BY_NUMPY:
            reduced(strategy, rows, np.arange(6), conversion("f4", "f8", nan_policy=nan_policy))
