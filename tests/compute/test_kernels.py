"""Kernels that workers run, against one line of numpy each."""

from functools import partial

import numpy as np
import pytest
from nibabel.volumeutils import apply_read_scaling
from stored import INDEX, conversion, random_rows

from sharedmask.compute import kernels
from sharedmask.compute.cleaning import Cleaning
from sharedmask.errors import ParameterError


@pytest.mark.parametrize("stored", ["i2", "u1", "f4", "f8", "i8"])
@pytest.mark.parametrize("result", ["i2", "f4", "f8"])
def test_gather(stored, result):
    rows = random_rows(dtype=stored)
    out = np.empty((5, 9), result)
    kernels.gather(rows, False, out, conversion(stored, result), INDEX, 0)
    np.testing.assert_array_equal(out, rows[INDEX].astype(result))


@pytest.mark.parametrize("result", ["i2", "f4"])
def test_gather_writes_where_it_is_told_and_nowhere_else(result):
    rows, out = random_rows(), np.full((9, 9), -1, result)
    kernels.gather(rows, True, out, conversion("i2", result), INDEX, 2)
    np.testing.assert_array_equal(out[2:7], rows[INDEX])
    np.testing.assert_array_equal(out[[0, 1, 7, 8]], -1)


@pytest.mark.parametrize("stored", ["i2", "f4"])
def test_gather_by_more_than_one_piece(stored):
    rows = random_rows(300, 1500, stored)
    index = np.random.default_rng(1).permutation(300)
    out = np.empty((300, 1500))
    kernels.gather(rows, True, out, conversion(stored, "f8", 0.3, 2.0), index, 0)
    np.testing.assert_array_equal(out, apply_read_scaling(rows[index], 0.3, 2.0))


def test_gather_without_non_finite_values():
    rows = random_rows(dtype="f4")
    rows[::7, 2] = np.nan
    out = np.empty((5, 9), "f4")
    kernels.gather(rows, False, out, conversion("f4", nan_policy="zero"), INDEX, 0)
    np.testing.assert_array_equal(out, np.nan_to_num(rows[INDEX]))


def test_refused_values_are_counted_over_all_pieces():
    rows = random_rows(300, 1500, "f4")
    rows[::10, 5] = np.nan
    out = np.empty_like(rows)
    with pytest.raises(ParameterError, match=r"\d+ of \d+ values"):
        kernels.gather(rows, False, out, conversion("f4", nan_policy="raise"), np.arange(300), 0)


def test_signals_are_fresh_and_contiguous():
    rows = random_rows(dtype="f4")
    signals = kernels.signals_of(rows, True, conversion("f4"), INDEX)
    assert signals.flags.c_contiguous
    assert signals.flags.writeable
    assert not np.shares_memory(signals, rows)
    np.testing.assert_array_equal(signals, rows[INDEX].T)


def test_clean_writes_where_it_is_told():
    rows = random_rows(n_timepoints=40, dtype="f4")
    out = np.full((9, 40), -1, "f4")
    cleaning = Cleaning(detrend=True, standardize="zscore_sample")
    to, which = np.array([8, 2, 3, 5, 4, 6]), np.array([0, 0, 1, 2, 3, 4])
    kernels.clean(rows, True, out, conversion("f4"), cleaning, INDEX, to, which)
    np.testing.assert_array_equal(out[to], cleaning.apply(rows[INDEX].T).T[which])
    np.testing.assert_array_equal(out[[0, 1, 7]], -1)


def test_clean_keeps_the_sampled_volumes():
    rows, kept = random_rows(dtype="f4"), np.array([0, 4, 5])
    out = np.empty((5, 3), "f4")
    kernels.clean(
        rows, True, out, conversion("f4"), Cleaning(sample_mask=kept), INDEX, np.arange(5), np.arange(5)
    )
    np.testing.assert_array_equal(out, rows[INDEX][:, kept])


def test_functions_get_signals():
    rows = random_rows()
    got = kernels.apply(rows, True, conversion(), Cleaning(), partial(np.sum, axis=1), INDEX, 0, len(INDEX))
    np.testing.assert_array_equal(got, rows[INDEX].astype("f4").sum(axis=0))


def test_functions_get_cleaned_signals():
    rows = random_rows()
    cleaning = Cleaning(sample_mask=np.array([2, 3]))
    got = kernels.apply(rows, True, conversion(), cleaning, lambda signals: signals, INDEX, 0, len(INDEX))
    np.testing.assert_array_equal(got, rows[INDEX].T[[2, 3]])
